"""Which workers get notice that their node drains, when, and how much time they are said to have."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from jobs.pool import ray_pool
from jobs.pool.contract import Event, ShardEnded, WorkerGone, WorkerLeaving
from jobs.pool.local import LocalPool
from jobs.pool.nodes import NodeWatch, drain_notice
from jobs.spec.schema import Limits, Workers
from tests.jobs.pool.test_ray_pool import SHARD, Nodes, pool_with_one_actor
from tests.jobs.run.test_loop import ROOT, loop, setup
from tests.support.fakes import RESULT, FakeWorker
from tests.support.ray_heads import await_true
from workers.contract import Shard
from workers.outcomes import Failure, FailureCode, FailureKind

INF = float("inf")


def test_workers_on_a_draining_node_get_notice_of_the_seconds_they_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes()
    pool = pool_with_one_actor(monkeypatch, RESULT, nodes=nodes)
    monkeypatch.setattr(ray_pool.time, "time", lambda: 40.0)
    for _ in range(2):
        pool.start({})
    pool._waiting.clear()
    for worker, node in enumerate("aba"):
        pool._actors[worker].node = node
    assert list(pool._drained()) == []
    nodes.draining = {"a": 70_000}
    assert list(pool._drained()) == [WorkerLeaving(0, 30.0), WorkerLeaving(2, 30.0)]


def test_a_drain_without_a_deadline_leaves_all_the_time_and_one_that_is_over_none() -> None:
    assert drain_notice(0, None, now_ms=40_000) == (INF, INF)
    assert drain_notice(30_000, None, now_ms=40_000) == (30_000, 0.0)


def test_a_worker_gets_notice_once_and_again_only_if_its_time_becomes_shorter() -> None:
    assert drain_notice(70_000, 70_000, now_ms=40_000) is None
    assert drain_notice(69_500, 70_000, now_ms=40_000) is None
    assert drain_notice(90_000, 70_000, now_ms=40_000) is None
    assert drain_notice(0, 70_000, now_ms=40_000) is None
    assert drain_notice(50_000, 70_000, now_ms=40_000) == (50_000, 10.0)
    assert drain_notice(50_000, INF, now_ms=40_000) == (50_000, 10.0)


HOME = [{"NodeID": "home", "Alive": True}]


def test_the_watch_has_the_nodes_that_drain() -> None:
    watch = NodeWatch("home", lambda: HOME, lambda: {"a": 100_000})
    try:
        assert await_true(lambda: watch.draining, "the drain is seen", 10) == {"a": 100_000}
    finally:
        watch.close()


def test_the_pool_remembers_whom_it_gave_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes()
    pool = pool_with_one_actor(monkeypatch, RESULT, ready=True, node="a", nodes=nodes)
    monkeypatch.setattr(ray_pool.time, "time", lambda: 90.0)
    notices: list[float] = []
    pool._actors[0].handle.leave = SimpleNamespace(remote=notices.append)
    assert [type(event) for event in pool.poll(1.0)] == [ShardEnded]
    nodes.draining = {"a": 100_000}
    assert pool.poll(0.0) == [WorkerLeaving(0, 10.0)]
    assert pool.poll(0.0) == []
    later = pool.start({})
    pool._waiting.clear()  # it is still starting
    pool._actors[later].node = "a"
    assert [event for event in pool.poll(0.0) if isinstance(event, WorkerLeaving)] == [WorkerLeaving(later, 10.0)]
    assert notices == [10.0]  # one that starts is only ended


def test_a_cluster_that_does_not_answer_or_cannot_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, entered = threading.Event(), threading.Event()

    def hang() -> Mapping[str, int]:
        entered.set()
        stuck.wait(30)
        return {}

    watch = NodeWatch("home", lambda: HOME, hang)
    assert entered.wait(10)
    assert watch.draining == {}
    watch.check()
    stuck.set()
    watch.close()

    asked = Counter[str]()

    def lacks_it() -> Mapping[str, int]:
        asked["times"] += 1
        raise AttributeError("get_draining_nodes")

    without = NodeWatch("home", lambda: HOME, lacks_it, every_s=0.01)
    try:
        await_true(lambda: asked["times"] > 2, "asked again", 10)
        assert without.draining == {}
    finally:
        without.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once


# ---------------------------------------------------------------------------------------- in the loop


class DrainsTheFirstWorker(LocalPool):
    """The node of the first worker is drained as soon as that holds two shards; it knows."""

    def __init__(self, factory: Callable[[], Any], drained: threading.Event) -> None:
        super().__init__(factory)
        self.assigned: list[tuple[int, bool]] = []
        self.ended: list[int] = []
        self._drained = drained

    def assign(self, worker: int, shard: Shard, **manner: Any) -> None:
        self.assigned.append((worker, self._drained.is_set()))
        super().assign(worker, shard, **manner)

    def end(self, worker: int) -> None:
        self.ended.append(worker)
        super().end(worker)

    def poll(self, timeout_s: float) -> Sequence[Event]:
        if len(self._ready.get(0, ())) == 2 and not self._drained.is_set():
            self._drained.set()
            return [WorkerLeaving(0, 20.0)]
        return super().poll(timeout_s)


def test_a_run_without_any_budget_outlives_a_drain_whose_worker_hands_back_what_it_held() -> None:
    ledger, plan = setup(12)
    drained, preempted = (
        threading.Event(),
        Failure(kind=FailureKind.INFRA, code=FailureCode.PREEMPTED, message="has to go"),
    )

    def factory() -> FakeWorker:
        first = not pool.size()
        return FakeWorker(ledger.store, ROOT, lambda _: preempted if first and drained.wait(10) else None)

    pool = DrainsTheFirstWorker(factory, drained)
    limits = Limits(infra_retries=0, task_retries=0, crash_retries=0)
    tally = loop(ledger, plan, factory, pool=pool, limits=limits, workers=Workers(max=2)).run()
    assert not ledger.missing(plan)
    assert [worker for worker, after in pool.assigned if worker == 0 and after] == []
    assert {worker for worker, _ in pool.assigned} >= {0, 1}
    assert pool.ended.count(0) == 1
    assert {failure["budget"] for failure in tally.failures_kept} == {"none"}
    assert len(tally.failures_kept) == 2


# ---------------------------------------------------------------------------------------- in the pool


def test_the_pool_tells_its_worker_and_the_loop_and_takes_its_later_death_for_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes()
    nodes.draining = {"up": 120_000}
    monkeypatch.setattr(ray_pool.time, "time", lambda: 100.0)
    death = ActorDiedError()  # it says nothing of the drain
    pool = pool_with_one_actor(monkeypatch, death, ready=True, node="up", nodes=nodes)
    notices: list[float] = []
    pool._actors[0].handle.leave = SimpleNamespace(remote=notices.append)
    leaving, gone = pool.poll(1.0)
    assert (leaving, notices) == (WorkerLeaving(0, 20.0), [20.0])
    assert isinstance(gone, WorkerGone)
    assert (gone.failure.kind, gone.failure.code) == (FailureKind.INFRA, FailureCode.PREEMPTED)
    assert pool.size() == 0


def test_the_pool_knows_that_a_worker_leaves_when_that_hands_a_shard_back(monkeypatch: pytest.MonkeyPatch) -> None:
    handed_back = Failure(kind=FailureKind.INFRA, code=FailureCode.PREEMPTED, message="has to go")
    pool = pool_with_one_actor(monkeypatch, handed_back, ready=True, node="up")
    assert pool.poll(1.0) == [ShardEnded(0, SHARD, handed_back)]
    assert pool._actors[0].leaving
