"""The cluster's maker of bundles: what its end means, by what Ray raises and says of its node. No Ray is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayError, RuntimeEnvSetupError

from jobs.pool import ray_cluster, ray_pool
from jobs.pool.ray_cluster import RayCluster
from tests.support.ray_heads import await_true
from workers.contract import BundleRequest, GateSpec, InputSpec, ModelSpec, OutputSpec
from workers.outcomes import FailureCode, FailureKind

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


class FakeRay:
    """One actor: the call that places it ends with the node's id, the one that makes the bundle as told."""

    def __init__(self, outcome: Any, nodes: list[dict[str, Any]], *, placed: bool = True) -> None:
        """`nodes` is how the actor's node is found after its end was told once, twice, and so on."""
        self.outcome, self.found, self.placed = outcome, nodes, placed
        self.told = 0
        self.asked: dict[str, Any] = {}
        handle = SimpleNamespace(__ray_call__=_call("placing"), make=_call("make"))
        self._made = SimpleNamespace(remote=lambda _: handle)

    def init(self, *_: Any, **__: Any) -> None:
        pass

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "driver's")

    def remote(self, _: type) -> Any:
        return SimpleNamespace(options=lambda **asked: self.asked.update(asked) or self._made)

    def nodes(self) -> list[dict[str, Any]]:
        return [HOME, UP if self.told == 0 else self.found[min(self.told, len(self.found)) - 1]]

    def wait(self, calls: list[str], timeout: float) -> tuple[list[str], list[str]]:
        return (calls, []) if self.placed or calls == ["make"] else ([], calls)

    def get(self, call: str) -> Any:
        if call == "placing":
            return "n"
        self.told += 1
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def kill(self, _: Any) -> None:
        pass

    def shutdown(self) -> None:
        pass


def _call(name: str) -> Any:
    return SimpleNamespace(remote=lambda *_: name)


def ends(monkeypatch: pytest.MonkeyPatch, fake: FakeRay) -> Any:
    """How the cluster tells the end of its maker."""
    monkeypatch.setattr(ray_cluster, "ray", fake)
    monkeypatch.setattr(ray_cluster.ray_local, "start", lambda *_, **__: None)
    monkeypatch.setattr(ray_pool, "SETTLE_S", 0.05)
    cluster = RayCluster(None)
    try:
        cluster.start_bundle(REQUEST, {})
        return await_true(lambda: cluster.poll_bundle(0.01), "the end of the maker", 30)
    finally:
        cluster.close()


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
    failure = ends(monkeypatch, FakeRay(error, nodes))
    assert (failure.kind, failure.code) == (FailureKind.INFRA, code)
    assert failure.message.startswith("the worker that makes the bundle was lost: ")
    assert type(error).__name__ in failure.traceback


def test_a_maker_that_never_had_a_node_has_not_crashed(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = ends(monkeypatch, FakeRay(ActorDiedError(), [UP], placed=False))
    assert failure.code == FailureCode.NODE_LOST


def test_an_error_in_the_maker_itself_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    failure = ends(monkeypatch, FakeRay(RayError("cannot be pickled"), [UP]))
    assert failure.kind is FailureKind.TASK


def test_a_maker_asks_for_the_memory_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay(ActorDiedError(), [UP])
    ends(monkeypatch, fake)
    assert fake.asked["memory"] == REQUEST.memory_bytes
    assert fake.asked["max_restarts"] == 0
