"""The pool of Ray actors by itself: what it makes of the errors that Ray raises. No cluster is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnschedulableError, OutOfMemoryError, RuntimeEnvSetupError

from jobs import ray_pool
from jobs.pool import WorkerGone
from jobs.ray_pool import RayPool
from workers.contract import FailureKind, Shard, Slice

SHARD = Shard(
    plan=1,
    plan_token="t",
    index=0,
    slices=(Slice(uri="a", size=1, version="v", row_group=0, row_start=0, row_stop=1),),
)


def pool_with_one_actor(monkeypatch: pytest.MonkeyPatch, error: Exception, *, ready: bool) -> RayPool:
    """One actor, every call of which ends with the error."""
    calls = iter(range(9))
    call = SimpleNamespace(remote=lambda *_: f"call {next(calls)}")
    handle = SimpleNamespace(__ray_call__=call, start=call, score=call)
    actor_class: Any = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: handle))

    def get(_: Any) -> Any:
        raise error

    monkeypatch.setattr(ray_pool.ray, "remote", lambda _: actor_class)
    monkeypatch.setattr(ray_pool.ray, "get", get)
    monkeypatch.setattr(ray_pool.ray, "wait", lambda calls, num_returns, timeout: (calls, []))
    monkeypatch.setattr(ray_pool.ray, "kill", lambda _, no_restart: None)
    pool = RayPool(SimpleNamespace(threads=1), threads_per_core=1)  # type: ignore[arg-type]
    worker = pool.start({})
    if ready:
        pool._actors[worker].ready = True
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
    assert (event.failure.kind, event.started) == (FailureKind.INFRA, ready)
    assert event.shards == ((SHARD,) if ready else ())
    assert (pool.size(), pool.workers(), pool.poll(1.0)) == (0, {}, [])
