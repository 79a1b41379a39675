"""A shard that kills its workers, scored in processes that may die of it.

`workers.isolation.bisection` says which rows to try, a child process (`workers.isolation.isolated`) tries them under
the worker's own bound of memory and a limit of time, and a new one takes its place whenever it dies. What is scored
comes back part by part; at the end a child puts the parts together and commits one object like any other, in which the
rows that kill are error rows. The worker itself keeps its network meanwhile, so its node holds that beside the child.

What kills a child from outside (the kernel short of memory, a person, a preempted node) says nothing about rows, nor
does storage that does not answer.
"""

from __future__ import annotations

import enum
import time
from contextlib import closing
from dataclasses import replace
from typing import Any

from workers.contract import Shard, WorkerSpec
from workers.host.child import Child, Died, KilledFromOutside, Overdue
from workers.isolation.bisection import Hopeless, ReadingKills, Try, search
from workers.outcomes import Failure, FailureCode, FailureKind, ShardResult
from workers.redaction import redacted
from workers.score.scorer import Part

_START_S = 300.0
"""To load the bundle. Half a second is usual."""
_READ_S = 600.0
"""For storage to come up with the next block of rows, its own retries included."""
ROW_S = 60.0
"""Least time for a range of rows, where the caller's limit is not below it."""


class Phase(enum.Enum):
    """What a child is at; it tells whenever that changes."""

    READING = "reading"
    SCORING = "scoring"


class _GivenUp(Exception):
    """There is no result, and why."""

    def __init__(
        self, why: Failure | str, kind: FailureKind = FailureKind.TASK, code: str = FailureCode.CRASHED
    ) -> None:
        super().__init__(why)
        self.failure = why if isinstance(why, Failure) else Failure(kind=kind, code=code, message=redacted(why))


def score_isolated(spec: WorkerSpec, shard: Shard, limit_s: float, memory_bytes: int) -> ShardResult | Failure:
    """Score and commit a shard; rows that kill, or take more than `memory_bytes`, or never end, become error rows.

    `limit_s` is for scoring all rows in one go; halves have half of it, though at least ROW_S if it is that long. Time
    spent waiting for storage does not count. A child's ordinary failure is this call's.
    """
    with closing(_Process(spec, shard, memory_bytes)) as process:
        try:
            parts = _scored_parts(process, shard, limit_s)
            process.close()  # what puts them together is to have nothing else in memory
            result: ShardResult = process.ask(parts, _READ_S)
            return result
        except Died as died:
            return _GivenUp(f"{shard.describe()}: putting its scored rows together {died}").failure
        except _GivenUp as given_up:
            return given_up.failure


def _scored_parts(process: _Process, shard: Shard, limit_s: float) -> list[Part]:
    """Parts that together are all rows, in their order. Raises _GivenUp."""
    parts: list[Part] = []

    def attempt(this: Try) -> str | None:
        try:
            parts.append(process.ask(this, limit_of(this.rows, shard.rows, limit_s)))
        except Died as died:
            process.close()
            return str(died)
        return None

    try:
        search(shard.rows, attempt)
    except ReadingKills as error:
        message = f"{shard.describe()}: reading row {error.row} of it, without scoring it, {error.how}"
        raise _GivenUp(message, FailureKind.DATA) from error
    except Hopeless as error:
        rows = ", ".join(map(str, sorted(error.blamed)[:8]))
        how = next(iter(error.blamed.values()))
        message = f"{shard.describe()}: {len(error.blamed)} of its rows ({rows} …), each scored alone, {how}"
        raise _GivenUp(message) from error
    return parts


def limit_of(rows: int, of_rows: int, limit_s: float) -> float:
    """Seconds that scoring some rows of a shard may take, if all may take `limit_s`."""
    return min(limit_s, max(ROW_S, limit_s * rows / of_rows))


class _Process:
    """One child at a time, started when there is something for it to do. Use from one thread: they end with it."""

    def __init__(self, spec: WorkerSpec, shard: Shard, memory_bytes: int) -> None:
        self._about = replace(spec, pin=False), shard  # it inherits the cores of the worker
        self._memory_bytes = memory_bytes
        self._child: Child | None = None

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child = None

    def ask(self, request: Try | list[Part], limit_s: float) -> Any:
        """The answer: a Part, or the ShardResult of parts put together.

        Time runs only while the child scores; a single block may take _READ_S to be read. Raises Died, also when the
        limit is over; _GivenUp.
        """
        if self._child is None:
            self._child = Child("workers.isolation.isolated", self._memory_bytes, "scored")
            try:
                _answer(self._child, self._about, _START_S)
            except Died as died:
                raise _GivenUp(f"loading the bundle in an isolated process {died}") from died
        return _answer(self._child, request, limit_s)


def _answer(child: Child, request: object, limit_s: float) -> Any:
    child.put(request)
    phase, left_s = Phase.SCORING, limit_s
    while True:
        began = time.monotonic()
        try:
            message = child.take(left_s if phase is Phase.SCORING else _READ_S)
        except Overdue:
            if phase is Phase.SCORING:
                raise Died(f"was not scored within {limit_s:g} s") from None
            message = f"storage has given nothing for {_READ_S:g} s"
            raise _GivenUp(message, FailureKind.INFRA, FailureCode.OTHER) from None
        except KilledFromOutside as killed:
            why = f"the isolated process was killed from outside ({killed}): the node may be short of memory"
            raise _GivenUp(why, FailureKind.INFRA) from killed
        if phase is Phase.SCORING:
            left_s = max(0.0, left_s - (time.monotonic() - began))
        if isinstance(message, Failure):
            if message.code == FailureCode.MEMORY:
                raise Died("needed more memory than there is")
            raise _GivenUp(message)
        if not isinstance(message, Phase):
            return message
        phase = message
