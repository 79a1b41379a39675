"""The pool of Ray actors by itself: what it makes of the errors that Ray raises. No cluster is started."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    ActorUnschedulableError,
    OutOfMemoryError,
    RuntimeEnvSetupError,
)

from jobs.pool import ray_pool
from jobs.pool.contract import ShardEnded, WorkerGone, WorkerPlaced, WorkerReady
from jobs.pool.nodes import NodeListing
from jobs.pool.ray_pool import RayPool
from tests.support.fakes import INFO
from workers.contract import BundleRequest, Shard, Slice
from workers.outcomes import FailureCode, FailureKind

SHARD = Shard(
    plan=1,
    plan_token="t",
    index=0,
    slices=(Slice(uri="a", size=1, version="v", row_group=0, row_start=0, row_stop=1),),
)

NODES: list[dict[str, Any]] = [
    {"NodeID": "up", "Alive": True, "Resources": {"CPU": 2}, "DeathReason": 0},
    {"NodeID": "killed", "Alive": False, "Resources": {}, "DeathReason": 2},
    {"NodeID": "health check", "Alive": False, "Resources": {}, "DeathReason": 0},
    {"NodeID": "told to end", "Alive": False, "Resources": {}, "DeathReason": 1},
    {"NodeID": "preempted", "Alive": False, "Resources": {}, "DeathReason": 3},
]
"""As `ray.nodes()` tells them."""
ASKED: list[int] = []
"""CPUs that actors asked for."""
GPUS: list[int | None] = []
"""And GPUs."""
MEMORY: list[int | None] = []
"""And bytes of memory."""
CLASSES: list[Any] = []
"""That were made actor classes, each of which Ray sends to the whole cluster."""


class Nodes:
    """A NodeWatch that answers at once, or never."""

    def __init__(self, *, answers: bool = True) -> None:
        self._answers = answers
        self.draining: dict[str, int] = {}

    def check(self) -> None:
        pass

    def since(self, at: float) -> NodeListing | None:
        now = time.monotonic()
        return NodeListing(now, ray_pool.ray.nodes()) if self._answers and now >= at else None


class Call:
    """A reference to a call that has ended."""

    def future(self) -> Future[None]:
        future: Future[None] = Future()
        future.set_result(None)
        return future


def pool_with_one_actor(
    monkeypatch: pytest.MonkeyPatch,
    outcome: Any,
    *,
    ready: bool = False,
    node: str = "gone",
    nodes: Nodes | None = None,
    device: str = "cpu",
    request: BundleRequest | None = None,
) -> RayPool:
    """One actor, every call of which ends with the outcome, which may be an error. With a `request` it is a maker."""
    call = SimpleNamespace(remote=lambda *_: Call())
    handle = SimpleNamespace(__ray_call__=call, start=call, score=call, make=call)
    made = SimpleNamespace(remote=lambda _: handle)

    def options(**asked: Any) -> Any:
        ASKED.append(asked["num_cpus"])
        GPUS.append(asked["num_gpus"])
        MEMORY.append(asked["memory"])
        assert asked["max_restarts"] == 0
        return made

    actor_class = SimpleNamespace(options=options)
    ASKED.clear()
    GPUS.clear()
    MEMORY.clear()

    def get(_: Any) -> Any:
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def remote(_: type) -> Any:
        CLASSES.append(actor_class)
        return actor_class

    CLASSES.clear()
    monkeypatch.setattr(ray_pool.ray, "remote", remote)
    monkeypatch.setattr(ray_pool.ray, "get", get)
    monkeypatch.setattr(ray_pool.ray, "kill", lambda _, no_restart: None)
    monkeypatch.setattr(ray_pool.ray, "nodes", lambda: NODES)
    monkeypatch.setattr(ray_pool, "SETTLE_S", 0.01)
    spec: Any = SimpleNamespace(threads=1, memory_bytes=None, model=SimpleNamespace(device=device))
    pool = RayPool(request or spec, 1, nodes or Nodes())  # type: ignore[arg-type]
    worker = pool.start({})
    if ready:
        pool._actors[worker].ready = True
        pool._actors[worker].node = node
        pool._waiting.clear()
        pool.assign(worker, SHARD)
    return pool


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        ActorDiedError(),
        OutOfMemoryError("killed by the memory monitor"),
        RuntimeEnvSetupError("no space left on device"),
        ActorUnschedulableError("no node"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_worker_that_ray_lost_however_is_gone_with_its_shards_and_no_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, error: Exception, ready: bool
) -> None:
    pool = pool_with_one_actor(monkeypatch, error, ready=ready)
    (event,) = pool.poll(1.0)
    assert isinstance(event, WorkerGone)
    assert event.failure.kind == FailureKind.INFRA
    assert (pool.size(), pool.workers(), pool.poll(1.0)) == (0, set(), [])


def preempted() -> ActorDiedError:
    error = ActorDiedError()
    error._preempted = True
    return error


@pytest.mark.parametrize(
    ("error", "node", "code"),
    [
        (ActorDiedError(), "up", FailureCode.CRASHED),
        (ActorDiedError(), "killed", FailureCode.NODE_LOST),
        (ActorDiedError(), "health check", FailureCode.NODE_LOST),
        (ActorDiedError(), "forgotten", FailureCode.NODE_LOST),
        (ActorDiedError(), "told to end", FailureCode.PREEMPTED),
        (ActorDiedError(), "preempted", FailureCode.PREEMPTED),
        (preempted(), "killed", FailureCode.PREEMPTED),
        (OutOfMemoryError(""), "up", FailureCode.MEMORY),
        (ActorUnavailableError("unreachable", None), "up", FailureCode.NODE_LOST),
    ],
)
def test_how_a_worker_was_lost_is_told_by_types_and_by_its_node(
    monkeypatch: pytest.MonkeyPatch, error: Exception, node: str, code: FailureCode
) -> None:
    pool = pool_with_one_actor(monkeypatch, error, ready=True, node=node)
    events = list(pool.poll(0.02))
    if not events:  # its node may be going too
        assert (pool.workers(), pool.size()) == (set(), 1)
        events = [*pool.poll(0.02), *pool.poll(0.02)]
    assert [(type(e), e.failure.code) for e in events if isinstance(e, WorkerGone)] == [(WorkerGone, code)]
    assert (pool.size(), pool.workers(), pool.poll(0.0)) == (0, set(), [])


def test_a_worker_that_dies_just_before_its_node_has_not_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_with_one_actor(monkeypatch, ActorDiedError(), ready=True, node="up")
    assert pool.poll(0.0) == []
    monkeypatch.setattr(ray_pool.ray, "nodes", lambda: [{**NODES[0], "Alive": False, "DeathReason": 2}])
    (event,) = pool.poll(0.0)
    assert isinstance(event, WorkerGone)
    assert event.failure.code == FailureCode.NODE_LOST


def test_a_worker_whose_cores_have_more_threads_than_it_asked_for_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would place a second worker on the other threads of its cores, where none is left to lease."""
    twice = replace(INFO, plan=replace(INFO.plan, threads_per_core=2))
    pool = pool_with_one_actor(monkeypatch, twice)
    del pool._waiting[pool._actors[0].placing]
    (event,) = pool.poll(1.0)
    assert isinstance(event, WorkerGone)
    assert (event.failure.kind, pool.size()) == (FailureKind.INFRA, 0)
    worker = pool.start({})
    del pool._waiting[pool._actors[worker].placing]
    assert [type(event) for event in pool.poll(1.0)] == [WorkerReady]
    assert ASKED == [1, 2]


def test_a_cluster_that_tells_nothing_of_its_nodes_holds_up_neither_the_pool_nor_for_ever_a_dead_workers_shards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`ray.nodes()` waits without end for a GCS that is frozen."""
    monkeypatch.setattr(ray_pool, "UNKNOWN_S", 0.05)
    pool = pool_with_one_actor(monkeypatch, ActorDiedError(), ready=True, node="up", nodes=Nodes(answers=False))
    assert pool.poll(0.0) == []
    (event,) = pool.poll(0.1)
    assert isinstance(event, WorkerGone)
    assert event.failure.code == FailureCode.NODE_LOST


def test_a_worker_that_dies_after_it_was_told_to_go_was_taken_away_and_its_message_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = pool_with_one_actor(monkeypatch, ActorDiedError(), ready=True, node="up")
    pool._actors[0].leaving = True
    (event,) = pool.poll(0.0)
    assert isinstance(event, WorkerGone)
    assert (event.failure.code, event.failure.message) == (
        FailureCode.PREEMPTED,
        "worker lost: it was taken away with notice",
    )


def test_where_a_worker_is_placed_is_told_once_with_what_fits_there(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_with_one_actor(monkeypatch, "up")
    del pool._waiting[next(call for call in pool._waiting if call != pool._actors[0].placing)]
    assert pool.poll(0.0) == []
    monkeypatch.setattr(ray_pool.time, "sleep", lambda _: None)
    assert [*pool.poll(0.0), *pool.poll(0.0)] == [WorkerPlaced(0, "up", 2)]
    assert GPUS == [None]


def test_a_worker_of_a_gpu_job_takes_a_gpu_and_a_node_holds_as_many_as_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_with_one_actor(monkeypatch, "one gpu", device="cuda")
    node = {"NodeID": "one gpu", "Alive": True, "Resources": {"CPU": 8, "GPU": 1}, "DeathReason": 0}
    monkeypatch.setattr(ray_pool.ray, "nodes", lambda: [node])
    del pool._waiting[next(call for call in pool._waiting if call != pool._actors[0].placing)]
    monkeypatch.setattr(ray_pool.time, "sleep", lambda _: None)
    assert [*pool.poll(0.0), *pool.poll(0.0)] == [WorkerPlaced(0, "one gpu", 1)]
    assert GPUS == [1]


def test_the_class_of_workers_is_sent_to_the_cluster_once_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = pool_with_one_actor(monkeypatch, INFO)
    for _ in range(3):
        pool.start({})
    assert (pool.size(), len(CLASSES), len(ASKED)) == (4, 1, 4)


def test_nothing_is_asked_of_calls_that_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """There may be twenty thousand: Ray tells which ones end, and of those that are nobody's any more nothing comes."""
    pool = pool_with_one_actor(monkeypatch, INFO, ready=True, node="up")
    futures: list[Future[None]] = []

    class Lasting(Call):
        def future(self) -> Future[None]:
            futures.append(Future())
            return futures[-1]

    monkeypatch.setattr(ray_pool.ray, "wait", lambda *_, **__: pytest.fail("every call is looked at"))
    pool._actors[0].handle.score.remote = lambda *_: Lasting()
    other = replace(SHARD, index=1)
    pool.assign(0, other)
    assert [event.shard for event in pool.poll(0.0) if isinstance(event, ShardEnded)] == [SHARD]
    assert pool.poll(0.0) == []
    futures[0].set_result(None)
    assert [event.shard for event in pool.poll(1.0) if isinstance(event, ShardEnded)] == [other]
    pool.assign(0, other)
    pool.end(0)
    futures[1].set_result(None)
    assert pool.poll(0.0) == []
