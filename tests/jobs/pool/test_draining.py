"""Which workers are told that their node drains, when, and how much time they are said to have."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from jobs.pool.contract import Event, ShardEnded, WorkerGone, WorkerLeaving
from jobs.pool.local import LocalPool
from jobs.pool.nodes import DrainWatch, news
from jobs.spec.schema import Limits, Workers
from tests.jobs.pool.test_ray_pool import SHARD, pool_with_one_actor
from tests.jobs.run.test_loop import ROOT, loop, setup
from tests.support.fakes import FakeWorker
from tests.support.ray_heads import await_true
from workers.contract import Shard
from workers.outcomes import Failure, FailureCode, FailureKind

INF = float("inf")


def test_workers_on_a_draining_node_are_told_the_seconds_they_have_left() -> None:
    nodes = {1: "a", 2: "b", 3: "a"}
    assert news({"a": 70_000}, nodes, {}, now_ms=40_000) == {1: (70_000, 30.0), 3: (70_000, 30.0)}
    assert news({}, nodes, {}, now_ms=40_000) == {}


def test_a_drain_without_a_deadline_leaves_all_the_time_and_one_that_is_over_none() -> None:
    assert news({"a": 0}, {1: "a"}, {}, now_ms=40_000) == {1: (INF, INF)}
    assert news({"a": 30_000}, {1: "a"}, {}, now_ms=40_000) == {1: (30_000, 0.0)}


def test_a_worker_is_told_once_and_again_only_if_its_time_becomes_shorter() -> None:
    nodes = {1: "a"}
    assert news({"a": 70_000}, nodes, {1: 70_000}, now_ms=40_000) == {}
    assert news({"a": 69_500}, nodes, {1: 70_000}, now_ms=40_000) == {}
    assert news({"a": 90_000}, nodes, {1: 70_000}, now_ms=40_000) == {}
    assert news({"a": 0}, nodes, {1: 70_000}, now_ms=40_000) == {}
    assert news({"a": 50_000}, nodes, {1: 70_000}, now_ms=40_000) == {1: (50_000, 10.0)}
    assert news({"a": 50_000}, nodes, {1: INF}, now_ms=40_000) == {1: (50_000, 10.0)}


def test_the_watch_remembers_whom_it_told() -> None:
    asked = threading.Semaphore(0)

    def ask() -> Mapping[str, int]:
        asked.release()
        return {"a": 100_000}

    watch = DrainWatch(ask, wall=lambda: 90.0)
    try:
        assert asked.acquire(timeout=10)
        assert await_true(lambda: watch.news({1: "a", 2: "b"}), "the drain is seen", 10) == {1: 10.0}
        assert watch.news({1: "a", 2: "b"}) == {}
        assert watch.news({1: "a", 3: "a"}) == {3: 10.0}  # one that came since
    finally:
        watch.close()


def test_a_cluster_that_does_not_answer_or_cannot_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, entered = threading.Event(), threading.Event()

    def hang() -> Mapping[str, int]:
        entered.set()
        stuck.wait(30)
        return {}

    watch = DrainWatch(hang)
    assert entered.wait(10)
    assert watch.news({1: "a"}) == {}
    stuck.set()
    watch.close()

    asked = Counter[str]()

    def lacks_it() -> Mapping[str, int]:
        asked["times"] += 1
        raise AttributeError("get_draining_nodes")

    monkeypatch.setattr("jobs.pool.nodes.DRAIN_ASK_S", 0.01)
    without = DrainWatch(lacks_it)
    try:
        await_true(lambda: asked["times"] > 2, "asked again", 10)
        assert without.news({1: "a"}) == {}
    finally:
        without.close()
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # told once


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
        if self.workers().get(0) == 2 and not self._drained.is_set():
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
    assert {failure.budget for failure in tally.failures.kept} == {"none"}
    assert len(tally.failures.kept) == 2


# ---------------------------------------------------------------------------------------- in the pool


def test_the_pool_tells_its_worker_and_the_loop_and_takes_its_later_death_for_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = pool_with_one_actor(monkeypatch, ActorDiedError(), ready=True, node="up")  # a death that says nothing
    told: list[float] = []
    pool._actors[0].handle.leave = SimpleNamespace(remote=told.append)
    monkeypatch.setattr(pool._drains, "news", lambda nodes: {0: 20.0} if nodes == {0: "up"} and not told else {})
    leaving, gone = pool.poll(1.0)
    assert (leaving, told) == (WorkerLeaving(0, 20.0), [20.0])
    assert isinstance(gone, WorkerGone)
    assert (gone.failure.kind, gone.failure.code) == (FailureKind.INFRA, FailureCode.PREEMPTED)
    assert gone.shards == (SHARD,)


def test_the_pool_knows_that_a_worker_leaves_when_that_hands_a_shard_back(monkeypatch: pytest.MonkeyPatch) -> None:
    handed_back = Failure(kind=FailureKind.INFRA, code=FailureCode.PREEMPTED, message="has to go")
    pool = pool_with_one_actor(monkeypatch, handed_back, ready=True, node="up")
    assert pool.poll(1.0) == [ShardEnded(0, SHARD, handed_back)]
    assert pool._actors[0].leaving
