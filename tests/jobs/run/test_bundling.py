"""Where and how often the bundle is made: groups of nodes in turn, again after a lost worker, not for ever; and with
care once an image may have killed its maker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.errors import RunFailed, SpecError
from jobs.pool.contract import BundleMade, Event, WorkerGone, WorkerPlaced
from jobs.run import ensure_bundle as module
from jobs.run import policy
from jobs.run.ensure_bundle import ensure_bundle
from jobs.run.policy import MAKER_CRASHES, START_FAILURES, Attempts, MakerStep, maker_limit_s, maker_step
from jobs.spec.schema import Limits, Workers
from workers.contract import BundleRequest, CalibrationSpec, GateSpec, InputSpec, ModelSpec, SampleSlice, Slice
from workers.outcomes import BundleOutcome, Failure, FailureCode, FailureKind

PLACED = WorkerPlaced(0, "node", 1)
SPOT, ON_DEMAND = {"m": "spot"}, {"m": "od"}
MADE = BundleOutcome(fingerprint="f", passed=True, created=True, table="", report={}, seconds=1.0)
LOST = Failure(kind=FailureKind.INFRA, message="preempted")
CRASHED = Failure(kind=FailureKind.INFRA, code=FailureCode.CRASHED, message="its process died")
OURS = Failure(kind=FailureKind.TASK, message="ZeroDivisionError")
ROWS = Slice(uri="s3://b/x.parquet", size=1, version="v", row_group=3, row_start=0, row_stop=70)


class Nodes:
    """A cluster where an attempt on nodes of some labels ends as told; without a word it gets no node."""

    def __init__(self, most_workers: int | None = None, **ends: Sequence[BundleOutcome | Failure]) -> None:
        self.asked: list[dict[str, str]] = []
        self.without_extras: list[bool] = []
        self._most_workers = most_workers
        self._ends = {key: list(of) for key, of in ends.items()}

    def most_workers(self, threads: int) -> int | None:
        return self._most_workers

    def pool(self, request: BundleRequest) -> SimpleNamespace:
        self.without_extras.append(request.without_extras)
        return SimpleNamespace(start=self.start, poll=self.poll, doing=str, close=lambda: None)

    def start(self, labels: Mapping[str, str]) -> int:
        self.asked.append(dict(labels))
        return 0

    def poll(self, timeout_s: float) -> Sequence[Event]:
        ends = self._ends.get(self.asked[-1].get("m", "any"), [])
        return [PLACED, ended(ends.pop(0))] if ends else []


def ended(outcome: BundleOutcome | Failure) -> Event:
    return BundleMade(0, outcome) if isinstance(outcome, BundleOutcome) else WorkerGone(0, outcome)


def ensure(
    monkeypatch: pytest.MonkeyPatch, nodes: Nodes, said: list[str], limits: Limits | None = None
) -> BundleOutcome:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    groups = [{"labels": SPOT, "patience_s": 0.01}, {"labels": ON_DEMAND, "patience_s": 0.01}]
    request = BundleRequest(
        fingerprint="f",
        model=ModelSpec(arch="a:b", weights=None, args={}, labels=None, task="classify", precision="int8",
                        preprocess={}, calibration=CalibrationSpec(rows=1)),
        gate=GateSpec(min_agreement=0, min_cosine=0, labels_column=None, max_top1_drop=1, rows=1),
        input=InputSpec(format="parquet", image="image", keys=(), uri_roots=()),
        output=None,  # type: ignore[arg-type]
        sample=(),
        batch=1,
    )  # fmt: skip
    job: Any = SimpleNamespace(
        spec=SimpleNamespace(
            workers=Workers.model_validate({"groups": groups}),
            input=SimpleNamespace(uri="in"),
            limits=limits or Limits(),
        ),
        manifest=lambda: None,
        threads=1,
        bundle_request=lambda: request,
        sample=lambda opened: (SampleSlice(rows=ROWS, take=5),),
    )
    connected: Any = lambda: nodes  # noqa: E731
    return ensure_bundle(job, lambda: [], connected, lambda: False, said.append)


def test_a_group_that_has_no_node_for_the_bundle_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, said = Nodes(od=[MADE]), list[str]()
    assert ensure(monkeypatch, nodes, said) is MADE
    assert nodes.asked == [SPOT, ON_DEMAND]
    assert "the bundle got no node in 0 s, asking the next group of workers.groups" in said


def test_groups_are_asked_in_turn_until_one_of_them_has_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Nodes):
        def start(self, labels: Mapping[str, str]) -> int:
            super().start(labels)
            if len(self.asked) == 3:
                self._ends["spot"] = [MADE]
            return 0

    nodes = Late()
    assert ensure(monkeypatch, nodes, []) is MADE
    assert nodes.asked == [SPOT, ON_DEMAND, SPOT]


def test_a_node_that_is_lost_while_the_bundle_is_made_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Failure(kind=FailureKind.INFRA, code=FailureCode.MEMORY, message="MemoryError")
    nodes, said = Nodes(spot=[LOST], od=[full, MADE]), list[str]()
    assert ensure(monkeypatch, nodes, said) is MADE
    assert [line for line in said if "again" in line] == [
        "making the bundle again: preempted",
        "making the bundle again, without the engines that auto adds: MemoryError",
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


def test_cores_that_others_hold_are_told_once_and_waited_for_as_long_as_the_spec_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = Failure(kind=FailureKind.INFRA, code=FailureCode.NO_CORES, message="held by process 17")
    nodes, said = Nodes(most_workers=2, any=[held] * 70 + [MADE]), list[str]()
    assert ensure(monkeypatch, nodes, said) is MADE
    assert [line for line in said if "held by process 17" in line] == [
        "waiting for cores, for 1h00m at most (limits.wait_for_cores_s): held by process 17; "
        "they come free when that ends"
    ]
    with pytest.raises(SpecError, match="no cores came free") as caught:
        ensure(monkeypatch, Nodes(most_workers=2, any=[held] * 70), [], Limits(wait_for_cores_s=1e-9))
    assert "end what holds them" in caught.value.next_step


# ---------------------------------------------------------------------------- something kills the maker


@pytest.mark.parametrize("code", [FailureCode.CRASHED, FailureCode.MEMORY, FailureCode.STUCK])
def test_after_a_crash_the_maker_does_without_extras_and_stays_so(
    monkeypatch: pytest.MonkeyPatch, code: FailureCode
) -> None:
    left_out = tuple(f"row {n}: killed" for n in range(10))
    made = replace(MADE, left_out=left_out)
    nodes, said = Nodes(spot=[LOST, LOST], od=[replace(CRASHED, code=code), made]), list[str]()
    assert ensure(monkeypatch, nodes, said) is made
    assert nodes.without_extras == [False, False, True, True]
    warnings = [line for line in said if line.startswith("warning")]
    assert warnings[0] == "warning: left out of the sample: row 0: killed"
    assert warnings[8:] == ["warning: left out of the sample: and 2 more rows"]


def test_a_maker_that_crashes_without_extras_too_ends_the_run_with_the_rows_sampled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = Nodes(spot=[CRASHED] * 9, od=[CRASHED] * 9)
    with pytest.raises(RunFailed) as caught:
        ensure(monkeypatch, nodes, [])
    assert nodes.without_extras == [False] + [True] * MAKER_CRASHES
    assert "its process died" in str(caught.value)
    assert "the sample was 5 of the rows 0:70 of s3://b/x.parquet row group 3" in str(caught.value)
    assert "workers.memory" in caught.value.next_step


def test_a_maker_that_never_ends_is_given_up_and_asked_again_without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(Nodes):
        polls = 0

        def poll(self, timeout_s: float) -> Sequence[Event]:
            if self.without_extras[-1]:
                return [ended(MADE)]
            self.polls += 1
            return [PLACED] if self.polls == 1 else []

    monkeypatch.setattr(policy, "MAKER_LEAST_S", 0.0)
    monkeypatch.setattr(policy, "MAKER_S_A_ROW", 0.01)
    nodes, said = Endless(), list[str]()
    assert ensure(monkeypatch, nodes, said) is MADE
    assert nodes.without_extras == [False, True]
    assert any("the worker that makes the bundle has not ended in 0 s" in line for line in said)


def test_waiting_for_a_node_is_not_taken_for_a_maker_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Nodes):
        def __init__(self) -> None:
            super().__init__(most_workers=2)  # one group, whose node is waited for without end
            self.polls = 0

        def poll(self, timeout_s: float) -> Sequence[Event]:
            self.polls += 1
            return [ended(MADE)] if self.polls == 50 else []

    monkeypatch.setattr(policy, "maker_limit_s", lambda rows: 0.0)
    nodes = Late()
    assert ensure(monkeypatch, nodes, []) is MADE
    assert nodes.without_extras == [False]


def failed(code: FailureCode = FailureCode.OTHER, kind: FailureKind = FailureKind.INFRA) -> Failure:
    return Failure(kind=kind, code=code, message="")


@pytest.mark.parametrize(
    ("attempts", "failure", "step"),
    [
        (Attempts(infra=99), failed(FailureCode.NO_CORES), MakerStep.WAIT),
        (Attempts(infra=99, crashes=99), failed(FailureCode.PREEMPTED), MakerStep.WAIT),
        (Attempts(infra=1), failed(), MakerStep.AGAIN),
        (Attempts(infra=START_FAILURES), failed(FailureCode.NODE_LOST), MakerStep.AGAIN),
        (Attempts(infra=START_FAILURES + 1), failed(FailureCode.NODE_LOST), MakerStep.GIVE_UP),
        (Attempts(infra=1), failed(FailureCode.TOO_WIDE), MakerStep.GIVE_UP),
        (Attempts(infra=1), failed(FailureCode.WRONG_ISA), MakerStep.GIVE_UP),
        (Attempts(crashes=1), failed(FailureCode.CRASHED), MakerStep.WITHOUT_EXTRAS),
        (Attempts(crashes=MAKER_CRASHES), failed(FailureCode.MEMORY), MakerStep.WITHOUT_EXTRAS),
        (Attempts(crashes=MAKER_CRASHES + 1), failed(FailureCode.STUCK), MakerStep.GIVE_UP),
        (Attempts(infra=START_FAILURES, crashes=1), failed(FailureCode.CRASHED), MakerStep.GIVE_UP),
        (Attempts(task=1), failed(kind=FailureKind.TASK), MakerStep.GIVE_UP),
        (Attempts(data=1), failed(kind=FailureKind.DATA), MakerStep.GIVE_UP),
    ],
)
def test_what_a_failure_of_the_maker_comes_to(attempts: Attempts, failure: Failure, step: MakerStep) -> None:
    assert maker_step(attempts, failure, policy.budget_of(failure)) is step


def test_a_maker_of_a_larger_sample_may_take_longer() -> None:
    assert maker_limit_s(0) == 3600
    assert maker_limit_s(960) == 3600 + 9600
