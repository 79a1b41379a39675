"""Makers of bundles as workers of a pool: what their end means, by what Ray raises and says of their node. No Ray is
started."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, repeat
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RuntimeEnvSetupError

from jobs.pool import ray_pool
from jobs.pool.contract import BundleMade, WorkerGone
from tests.jobs.pool.test_ray_pool import GPUS, MEMORY, pool_with_one_actor
from tests.support.ray_heads import await_true
from workers.contract import BundleRequest, GateSpec, InputSpec, ModelSpec, OutputSpec
from workers.outcomes import BundleOutcome, FailureCode, FailureKind

HOME = {"NodeID": "driver's", "Alive": True, "Resources": {"CPU": 0}, "DeathReason": 0}
UP = {"NodeID": "n", "Alive": True, "Resources": {"CPU": 4}, "DeathReason": 0}
KILLED = UP | {"Alive": False, "DeathReason": 2}
TAKEN = UP | {"Alive": False, "DeathReason": 1}
REQUEST = BundleRequest(
    fingerprint="f",
    model=ModelSpec(arch="a:b", weights=None),
    gate=GateSpec(),
    input=InputSpec(format="parquet", image="image"),
    sample=(),
    output=OutputSpec(uri="out", topk=1),
    batch=1,
    memory_bytes=2**30,
)


def ends(
    monkeypatch: pytest.MonkeyPatch, error: RayError, nodes: list[dict[str, Any]], *, placed: bool = True
) -> WorkerGone:
    """How the pool tells the end of its maker; `nodes` is how its node is found when first asked for, and then."""
    pool = pool_with_one_actor(monkeypatch, error, request=REQUEST)
    monkeypatch.setattr(ray_pool, "SETTLE_S", 0.1)
    found = chain(nodes, repeat(nodes[-1]))
    monkeypatch.setattr(ray_pool.ray, "nodes", lambda: [HOME, next(found)])
    del pool._waiting[pool._actors[0].placing]
    pool._actors[0].node = "n" if placed else ""
    (gone,) = await_true(lambda: pool.poll(0.01), "the end of the maker", 30)
    assert isinstance(gone, WorkerGone)
    assert pool.size() == 0
    return gone


def preempted() -> ActorDiedError:
    error = ActorDiedError()
    error._preempted = True
    return error


@pytest.mark.parametrize(
    ("error", "nodes", "code"),
    [
        (ActorDiedError(), [UP], FailureCode.CRASHED),
        (ActorDiedError(), [UP, KILLED], FailureCode.NODE_LOST),  # its process went some milliseconds before it
        (ActorDiedError(), [KILLED], FailureCode.NODE_LOST),
        (ActorDiedError(), [TAKEN], FailureCode.PREEMPTED),
        (preempted(), [KILLED], FailureCode.PREEMPTED),
        (OutOfMemoryError("Ray's monitor"), [UP], FailureCode.MEMORY),
        (RuntimeEnvSetupError("no space left on device"), [KILLED], FailureCode.OTHER),
    ],
)
def test_how_a_maker_was_lost_is_told_by_types_and_by_its_node(
    monkeypatch: pytest.MonkeyPatch, error: RayError, nodes: list[dict[str, Any]], code: FailureCode
) -> None:
    failure = ends(monkeypatch, error, nodes).failure
    assert (failure.kind, failure.code) == (FailureKind.INFRA, code)
    assert failure.message.startswith("the worker that makes the bundle was lost: ")
    assert type(error).__name__ in failure.traceback


def test_a_maker_that_never_had_a_node_has_not_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = ends(monkeypatch, ActorDiedError(), [UP], placed=False).failure
    assert failure.code == FailureCode.NODE_LOST


def test_an_error_in_the_maker_itself_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = ends(monkeypatch, RayError("cannot be pickled"), [UP]).failure
    assert failure.kind is FailureKind.TASK


def test_a_maker_asks_for_the_memory_of_a_worker_and_for_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpus = replace(REQUEST, model=replace(REQUEST.model, device="cuda"))
    pool_with_one_actor(monkeypatch, ActorDiedError(), request=on_gpus)
    assert ([REQUEST.memory_bytes], [None]) == (MEMORY, GPUS)


def test_a_bundle_that_is_made_is_told_and_its_maker_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    made = BundleOutcome(fingerprint="f", passed=True, created=True, table="", report={}, seconds=1.0)
    pool = pool_with_one_actor(monkeypatch, made, request=REQUEST)
    del pool._waiting[pool._actors[0].placing]
    assert pool.poll(1.0) == [BundleMade(0, made)]
    assert pool.size() == 0
