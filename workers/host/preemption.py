"""A worker that has to go, and by when: what it is in the middle of is finished if it ends in time, else dropped.

Word comes by SIGTERM to the worker's process, or from the driver when Ray drains the worker's node. Whatever hangs, the
driver has its answer by the deadline. Nothing of this is needed for correctness: a worker may be killed at any point.
It saves the rows that were scored already, and tells a worker that was taken from one that its shard has killed.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import TypeVar

_T = TypeVar("_T")

SIGTERM_GRACE_S = 25.0
"""After SIGTERM. Whoever sends it kills later: Kubernetes after 30 s by default, systemd after 90."""
COMMIT_S = 3.0
"""Kept free for encoding and creating the object, and for the answer to reach the driver."""
SLACK = 1.25
"""How much slower than so far the rest of a shard may turn out to be."""


class Preempted(Exception):
    """The worker has to go and hands back what it held."""


def ends_in_time(rows_done: int, rows: int, took_s: float, left_s: float) -> bool:
    """Whether a shard of which `rows_done` took `took_s` is committed within `left_s`.

    As long as no row is done nobody can say, so it may go on while there is time at all.
    """
    if rows_done == 0:
        return left_s > COMMIT_S
    return (rows - rows_done) * took_s / rows_done * SLACK + COMMIT_S <= left_s


class Notice:
    """Notice that this worker has to go. Any thread may give it, and ask for it; a signal handler starts one to."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._deadline = math.inf
        self.given = False
        self._changed = threading.Condition()

    def give(self, left_s: float) -> None:
        """Everything has to be over in `left_s` seconds, which may be infinite; the earliest deadline counts."""
        with self._changed:
            self.given = True
            self._deadline = min(self._deadline, self._clock() + left_s)
            self._changed.notify_all()

    def left_s(self) -> float:
        return self._deadline - self._clock()

    def begin(self) -> None:
        """Raises Preempted if nothing is to be begun any more."""
        if self.given:
            raise Preempted("the worker has to go and begins nothing more")

    def between_rounds(self, rows_done: int, rows: int, took_s: float) -> None:
        """Raises Preempted if the shard under way is not worth going on with."""
        if self.given and not ends_in_time(rows_done, rows, took_s, self.left_s()):
            raise Preempted(f"{rows_done:,} of {rows:,} rows scored, and the worker has to go in {self.left_s():.0f} s")

    def result_of(self, work: Future[_T], *, take_back: bool) -> _T:
        """Wait for `work`; raises Preempted as soon as it is clear that there is no result before the deadline.

        With `take_back`, work that waits for its turn is taken back. Work that runs is left to itself when the time is
        up.
        """
        work.add_done_callback(self._wake)
        with self._changed:
            while not work.done():
                if not self.given:
                    self._changed.wait()
                elif take_back and work.cancel():
                    raise Preempted("the worker has to go and had only read ahead")
                elif (left_s := self.left_s()) > 0:
                    self._changed.wait(None if math.isinf(left_s) else left_s)
                else:
                    raise Preempted("the worker has to go now")
        return work.result()

    def _wake(self, _: Future[_T]) -> None:
        with self._changed:
            self._changed.notify_all()


def heed_sigterm(notice: Notice, grace_s: float = SIGTERM_GRACE_S) -> None:
    """Have SIGTERM give notice in place of ending the process at once. For a process of the worker's own, main thread.

    Ray's handler, which leaves, gets its turn after the grace, or at a second SIGTERM. Python runs handlers in the main
    thread; while actors with threads are at work Ray keeps that one free to.
    """
    before = signal.getsignal(signal.SIGTERM)

    def leave(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        # The handler may have interrupted a thread that has found no notice and is about to wait: given from here, that
        # thread would miss it. Another thread gives it once that one waits.
        threading.Thread(target=give, name="sigterm", daemon=True).start()

    def give() -> None:
        notice.give(grace_s)
        time.sleep(grace_s)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)
