"""The workers of one candidate of `stint tune`: as many processes as it has workers, asked all at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from workers.contract import ThreadPlan, WorkerSpec
from workers.host import malloc
from workers.host.child import Child, Died, KilledFromOutside, Overdue
from workers.outcomes import Failure

START_LIMIT_S = 300.0
ANSWER_LIMIT_S = 120.0
"""Beyond the slice: one round of a slow network in large batches may take as long."""
START_TOGETHER_S = 0.02

T = TypeVar("T")


# ------------------------------------------------------------------------------ what a process is asked, and answers


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What to load, on which cores, over which images."""

    spec: WorkerSpec
    plan: ThreadPlan
    sample: str
    """Path of the file that workers.measure.tune_sample wrote."""
    first: int
    """Where in the sample to begin: the workers of a candidate are not to decode the same image at the same time."""


@dataclass(frozen=True)
class Prepare:
    """Make batches of this size ready, and run one, which is not measured."""

    batch: int


@dataclass(frozen=True)
class Go:
    """Score until then, by time.monotonic, which all processes of a machine share."""

    until: float


@dataclass(frozen=True)
class Ready:
    """What was asked for is done."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What one worker did in a slice."""

    rows: int
    wall_s: float
    cpu_s: float
    decode_s: float
    predict_s: float
    peak_bytes: int
    """Most resident memory during the slice, and while it was prepared."""
    resident_bytes: int
    """Now."""


# ----------------------------------------------------------------------------------------------------------


class Failed(Exception):
    """A worker of a candidate; the message says what happened."""

    def __init__(self, reason: str, *, died: bool) -> None:
        super().__init__(reason)
        self.died = died


class Crew:
    """The processes of one engine, width and number of workers."""

    def __init__(self, setups: Sequence[Setup], cap_bytes: int) -> None:
        """Raises Failed when one of them does not come up."""
        self.batches: set[int] = set()
        self.resident_bytes = 0
        self._children: list[Child] = []
        try:
            for setup in setups:
                child = Child("workers.measure.tune_measure", cap_bytes, "ran", malloc.variables())
                self._children.append(child)
                child.put(setup)
            self._all(Ready, START_LIMIT_S)
        except BaseException:
            self.end()
            raise

    def prepare(self, batch: int) -> None:
        self.batches.add(batch)
        self._ask(Prepare(batch))
        self._all(Ready, ANSWER_LIMIT_S)

    def run(self, slice_s: float) -> list[Ran]:
        self._ask(Go(time.monotonic() + START_TOGETHER_S + slice_s))
        runs = self._all(Ran, slice_s + ANSWER_LIMIT_S)
        self.resident_bytes = sum(run.resident_bytes for run in runs)
        return runs

    def end(self) -> None:
        for child in self._children:
            child.end()
        self._children = []

    def _ask(self, message: object) -> None:
        for child in self._children:
            child.put(message)

    def _all(self, kind: type[T], limit_s: float) -> list[T]:
        return [_answer(child, kind, limit_s) for child in self._children]


def _answer(child: Child, kind: type[T], limit_s: float) -> T:
    try:
        answer: Any = child.take(limit_s)
    except Overdue:
        raise Failed(f"a worker said nothing for {limit_s:.0f} s", died=False) from None
    except (Died, KilledFromOutside) as error:
        raise Failed(f"a worker {error}", died=True) from None
    if isinstance(answer, Failure):
        raise Failed(answer.message, died=False)
    assert isinstance(answer, kind), f"{answer} in place of {kind.__name__}"
    return answer
