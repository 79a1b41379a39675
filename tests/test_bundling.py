"""Where and how often the bundle is made: groups of nodes in turn, again after a lost worker, not for ever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from jobs import bundling
from jobs.bundling import Bundling
from jobs.errors import RunFailed
from jobs.policy import START_FAILURES
from jobs.spec import Workers
from tests.fakes import MemoryStore
from workers.contract import BundleRequest, GateSpec, InputSpec, ModelSpec
from workers.outcomes import BundleOutcome, Failure, FailureCode, FailureKind

SPOT, ON_DEMAND = {"m": "spot"}, {"m": "od"}
MADE = BundleOutcome(fingerprint="f", passed=True, created=True, table="", report={}, seconds=1.0)
LOST = Failure(kind=FailureKind.INFRA, message="preempted")
OURS = Failure(kind=FailureKind.TASK, message="ZeroDivisionError")


class Nodes:
    """A cluster where an attempt on nodes of some labels ends as told; without a word it gets no node."""

    def __init__(self, most_workers: int | None = None, **ends: Sequence[BundleOutcome | Failure]) -> None:
        self.asked: list[dict[str, str]] = []
        self._most_workers = most_workers
        self._ends = {key: list(of) for key, of in ends.items()}

    def most_workers(self, threads: int) -> int | None:
        return self._most_workers

    def start_bundle(self, request: BundleRequest, labels: Mapping[str, str]) -> None:
        self.asked.append(dict(labels))

    def bundle_has_node(self) -> bool:
        return bool(self._here)

    def poll_bundle(self, timeout_s: float) -> BundleOutcome | Failure | None:
        return self._here.pop(0) if self._here else None

    @property
    def _here(self) -> list[BundleOutcome | Failure]:
        return self._ends.get(self.asked[-1].get("m", "any"), [])


def ensure(monkeypatch: pytest.MonkeyPatch, nodes: Nodes, said: list[str]) -> BundleOutcome:
    monkeypatch.setattr(bundling, "PAUSE_S", 0.0)
    groups = [{"labels": SPOT, "patience_s": 0.01}, {"labels": ON_DEMAND, "patience_s": 0.01}]
    request = BundleRequest(
        fingerprint="f",
        model=ModelSpec(arch="a:b", weights=None, args={}, labels=None, task="classify", precision="int8",
                        preprocess={}, calibration_rows=1, calibration_seed=0),
        gate=GateSpec(min_agreement=0, min_cosine=0, labels_column=None, max_top1_drop=1, rows=1),
        input=InputSpec(format="parquet", image="image", keys=(), uri_roots=()),
        output=None,  # type: ignore[arg-type]
        sample=(),
        batch=1,
    )  # fmt: skip
    job: Any = SimpleNamespace(
        spec=SimpleNamespace(workers=Workers.model_validate({"groups": groups}), input=SimpleNamespace(uri="in")),
        store=MemoryStore(),
        threads=1,
        bundle_request=lambda: request,
        sample=lambda opened: ("a row",),
    )
    connected: Any = lambda: nodes  # noqa: E731
    return Bundling(job, lambda: [], connected, lambda: False, said.append).ensure()


def test_a_group_that_has_no_node_for_the_bundle_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, said = Nodes(od=[MADE]), list[str]()
    assert ensure(monkeypatch, nodes, said) is MADE
    assert nodes.asked == [SPOT, ON_DEMAND]
    assert "the bundle got no node in 0 s, asking the next group of workers.groups" in said


def test_groups_are_asked_in_turn_until_one_of_them_has_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Nodes):
        def start_bundle(self, request: BundleRequest, labels: Mapping[str, str]) -> None:
            super().start_bundle(request, labels)
            if len(self.asked) == 3:
                self._ends["spot"] = [MADE]

    nodes = Late()
    assert ensure(monkeypatch, nodes, []) is MADE
    assert nodes.asked == [SPOT, ON_DEMAND, SPOT]


def test_a_node_that_is_lost_while_the_bundle_is_made_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Failure(kind=FailureKind.INFRA, code=FailureCode.MEMORY, message="MemoryError")
    nodes, said = Nodes(spot=[LOST], od=[full, MADE]), list[str]()
    assert ensure(monkeypatch, nodes, said) is MADE
    assert [line for line in said if "again" in line] == [
        "making the bundle again: preempted",
        "making the bundle again: MemoryError",
    ]


def test_what_fails_everywhere_or_by_an_error_of_ours_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(spot=[LOST] * 9, od=[LOST] * 9)
    with pytest.raises(RunFailed, match="preempted"):
        ensure(monkeypatch, nodes, [])
    assert len(nodes.asked) == START_FAILURES + 1
    nodes = Nodes(spot=[OURS])
    with pytest.raises(RunFailed, match="ZeroDivisionError"):
        ensure(monkeypatch, nodes, [])
    assert nodes.asked == [SPOT]


def test_one_machine_is_asked_without_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = Nodes(most_workers=2, any=[MADE])
    assert ensure(monkeypatch, nodes, []) is MADE
    assert nodes.asked == [{}]
