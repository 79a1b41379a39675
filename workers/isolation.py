"""A shard that kills its workers, scored in processes that may die of it.

`workers.bisection` says which rows to try, a child process (`workers.isolated`) tries them under the worker's own bound
of memory and a limit of time, and a new one takes its place whenever it dies. What is scored comes back part by part;
at the end a child puts the parts together and commits one object like any other, in which the rows that kill are error
rows. The worker itself keeps its network meanwhile, so its node holds that beside the child.

What kills a child from outside (the kernel short of memory, a person, a preempted node) says nothing about rows, nor
does storage that does not answer.
"""

from __future__ import annotations

import enum
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.bisection import Died, Hopeless, ReadingKills, Try, search
from workers.contract import Shard, WorkerSpec
from workers.memory import Guard
from workers.outcomes import Failure, FailureCode, FailureKind, ShardResult
from workers.redaction import redacted

if TYPE_CHECKING:
    from workers.scoring import Part

START_S = 300.0
"""To load the bundle. Half a second is usual."""
READ_S = 600.0
"""For storage to come up with the next block of rows, its own retries included."""
ROW_S = 60.0
"""Least time for a range of rows, where the caller's limit is not below it."""
OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that a process does not give itself."""


class Phase(enum.Enum):
    """What a child is at; it tells whenever that changes."""

    READY = "ready"
    READING = "reading"
    SCORING = "scoring"


@dataclass(frozen=True)
class Commit:
    """Put the parts together and create the shard's object."""

    parts: Sequence[Part]


class _GivenUp(Exception):
    """There is no result, and why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def _failure(kind: FailureKind, message: str, code: str = FailureCode.OTHER) -> Failure:
    return Failure(kind=kind, code=code, message=redacted(message))


def score_isolated(spec: WorkerSpec, shard: Shard, limit_s: float, memory_bytes: int) -> ShardResult | Failure:
    """Score and commit a shard; rows that kill, or take more than `memory_bytes`, or never end, become error rows.

    `limit_s` is for scoring all rows in one go; halves have half of it, though at least ROW_S if it is that long. Time
    spent waiting for storage does not count. A child's ordinary failure is this call's.
    """
    with closing(_Children(spec, shard, memory_bytes)) as children:
        try:
            return children.commit(_scored_parts(children, shard, limit_s))
        except _GivenUp as given_up:
            return given_up.failure
        except ReadingKills as error:
            message = f"{shard.describe()}: reading row {error.row} of it, without scoring it, {error.how}"
            return _failure(FailureKind.DATA, message, FailureCode.CRASHED)
        except Hopeless as error:
            rows = ", ".join(map(str, sorted(error.blamed)[:8]))
            how = next(iter(error.blamed.values()))
            message = f"{shard.describe()}: {len(error.blamed)} of its rows ({rows} …), each scored alone, {how}"
            return _failure(FailureKind.TASK, message, FailureCode.CRASHED)


def _scored_parts(children: _Children, shard: Shard, limit_s: float) -> list[Part]:
    """Parts that together are all rows, in their order."""
    parts: list[Part] = []
    steps = search(shard.rows)
    try:
        this = next(steps)
        while True:
            answer = children.score(this, limit_of(this.rows, shard.rows, limit_s))
            if isinstance(answer, Died):
                this = steps.send(answer)
            else:
                parts.append(answer)
                this = steps.send(None)
    except StopIteration:
        return parts


def limit_of(rows: int, of_rows: int, limit_s: float) -> float:
    """Seconds that scoring some rows of a shard may take, if all may take `limit_s`."""
    return min(limit_s, max(ROW_S, limit_s * rows / of_rows))


def how_it_died(returncode: int, *, over_memory: bool, memory_bytes: int) -> str | None:
    """What a child died of, from its exit status as subprocess gives it; None if somebody else killed it."""
    if over_memory:
        return f"took more than {memory_bytes / 2**30:.2f} GiB of memory"
    if returncode >= 0:
        return f"ended the process that scored it, with exit code {returncode}"
    if -returncode in OUTSIDE:
        return None
    return f"killed the process that scored it: {signal.Signals(-returncode).name}"


class _ChildDied(Exception):
    """By its own doing; the message says how."""


class _Children:
    """One child at a time, started when there is something for it to do. Use from one thread: they end with it."""

    def __init__(self, spec: WorkerSpec, shard: Shard, memory_bytes: int) -> None:
        self._spec = replace(spec, pin=False)  # it inherits the cores of the worker
        self._shard = shard
        self._memory_bytes = memory_bytes
        self._child: _Child | None = None
        self._used = False
        """The child has been asked for rows."""

    def score(self, this: Try, limit_s: float) -> Part | Died:
        """Raises _GivenUp for whatever is not the rows' doing."""
        if this.fresh and self._used:
            self.close()
        child, used = self._started(), self._used
        self._used = True
        try:
            part: Part = child.ask(this, limit_s)
        except _ChildDied as died:
            self.close()
            return Died(str(died), used)
        return part

    def commit(self, parts: Sequence[Part]) -> ShardResult:
        """In a child that has nothing else in memory. Raises _GivenUp."""
        self.close()
        try:
            result: ShardResult = self._started().ask(Commit(parts), READ_S)
        except _ChildDied as died:
            message = f"{self._shard.describe()}: putting its scored rows together {died}"
            raise _GivenUp(_failure(FailureKind.TASK, message, FailureCode.CRASHED)) from died
        return result

    def close(self) -> None:
        if self._child is not None:
            self._child.end()
        self._child, self._used = None, False

    def _started(self) -> _Child:
        if self._child is None:
            self._child = _Child(self._memory_bytes)
            try:
                self._child.load(self._spec, self._shard)
            except _ChildDied as died:
                message = f"loading the bundle in an isolated process {died}"
                raise _GivenUp(_failure(FailureKind.TASK, message, FailureCode.CRASHED)) from died
        return self._child


class _Child:
    """A process that scores, with the guard of its memory."""

    def __init__(self, memory_bytes: int) -> None:
        self._memory_bytes = memory_bytes
        self._pipe, theirs = Pipe()
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)  # whatever made this process find us
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.isolated", str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path},
        )
        theirs.close()  # so that its end is the connection's
        self._guard = Guard(self._process.pid, memory_bytes)

    def load(self, spec: WorkerSpec, shard: Shard) -> None:
        """Raises _ChildDied, _GivenUp."""
        self._put((spec, shard))
        self._take(START_S)

    def ask(self, request: Try | Commit, limit_s: float) -> Any:
        """The answer: a Part or a ShardResult. Raises _ChildDied, also when the limit is over; _GivenUp."""
        self._put(request)
        return self._take(limit_s)

    def end(self) -> tuple[int, bool]:
        """Its exit status, and whether the guard has killed it."""
        self._pipe.close()
        self._process.kill()
        returncode = self._process.wait()
        return returncode, self._guard.close()

    def _put(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except ConnectionError:  # it is dead, and how is found out when its answer is waited for
            return

    def _take(self, limit_s: float) -> Any:
        """The next answer. Time runs only while the child scores; a single block may take READ_S to be read."""
        phase, left_s = Phase.SCORING, limit_s
        while True:
            began = time.monotonic()
            try:
                if not self._pipe.poll(left_s if phase is Phase.SCORING else READ_S):
                    raise self._overdue(phase, limit_s)
                message = self._pipe.recv()
            except (EOFError, ConnectionError):
                raise self._dead() from None
            if phase is Phase.SCORING:
                left_s = max(0.0, left_s - (time.monotonic() - began))
            if message is Phase.READY:
                return None
            if isinstance(message, Failure):
                if message.code == FailureCode.MEMORY:
                    raise _ChildDied("needed more memory than there is")
                raise _GivenUp(message)
            if not isinstance(message, Phase):
                return message
            phase = message

    def _overdue(self, phase: Phase, limit_s: float) -> Exception:
        if phase is Phase.SCORING:
            return _ChildDied(f"was not scored within {limit_s:g} s")
        message = f"storage has given nothing for {READ_S:g} s"
        return _GivenUp(_failure(FailureKind.INFRA, message))

    def _dead(self) -> Exception:
        """Why there is no answer any more."""
        returncode = self._process.wait()
        how = how_it_died(returncode, over_memory=self._guard.close(), memory_bytes=self._memory_bytes)
        if how is not None:
            return _ChildDied(how)
        name = signal.Signals(-returncode).name
        message = f"the isolated process was killed from outside ({name}): the node may be short of memory"
        return _GivenUp(_failure(FailureKind.INFRA, message, FailureCode.CRASHED))
