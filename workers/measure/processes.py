"""The parent's end of the processes that measure: as many as run at once, each on its own cores, asked together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import repeat
from typing import Any

from workers.host.child import Child, Died, KilledFromOutside, Overdue
from workers.measure.messages import Load, Measured, Score
from workers.outcomes import Failure, FailureCode

_POLL_S = 0.1
_START_TOGETHER_S = 0.02
"""Added to a slice, so that all processes have heard of it when it begins."""


class ProcessFailed(Exception):
    """A process that makes or measures cannot do what it was asked, or has ended; the message says what happened."""

    def __init__(self, reason: str, *, died: bool, code: str = FailureCode.OTHER) -> None:
        super().__init__(reason)
        self.died = died
        self.code = code


def receive(child: Child, limit_s: float, check: Callable[[], None] = lambda: None) -> Any:
    """The next message of a process. Raises ProcessFailed, and what `check` raises, which is called all the while."""
    ends_at = time.monotonic() + limit_s
    while True:
        check()
        try:
            answer = child.take(_POLL_S)
        except Overdue:
            if time.monotonic() > ends_at:
                raise ProcessFailed(f"its process has said nothing for {limit_s:.0f} s", died=False) from None
        except (Died, KilledFromOutside) as error:
            raise ProcessFailed(f"its process ended: {error}", died=True) from None
        else:
            if isinstance(answer, Failure):
                raise ProcessFailed(answer.message, died=False, code=answer.code)
            return answer


class Processes:
    """Processes that are measured at once, loaded and ready. Use from one thread, and `end` them."""

    def __init__(
        self,
        loads: Sequence[Load],
        memory_bytes: int,
        *,
        limit_s: float,
        environment: Mapping[str, str] | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """`memory_bytes` is the bound of each. They have `limit_s` to be loaded, and beyond the time measured: a slow
        network in large batches takes long for one of them. `check` is called meanwhile, and may raise.

        Raises ProcessFailed when one of them does not come up.
        """
        self.loads = loads
        self.batches: set[int] = set()
        """Sizes that they have run."""
        self.resident_bytes = 0
        """Of all of them, after the last measurement."""
        self._limit_s = limit_s
        self._check = check
        self._children: list[Child] = []
        try:
            for _ in loads:
                self._children.append(Child("workers.measure.measure", memory_bytes, "measured", environment))
            self.description: str = self._ask(loads, limit_s)[0]
        except BaseException:
            self.end()
            raise

    def prepare(self, batch: int) -> int:
        """Make batches of this size ready; the most memory that one of them has taken. Raises ProcessFailed."""
        self.batches.add(batch)
        peaks: list[int] = self._ask(repeat(Score(batch)), self._limit_s)
        return max(peaks)

    def measure(self, batch: int, seconds: float) -> list[Measured]:
        """Have all of them score in batches of this size for so long. Raises ProcessFailed."""
        self.prepare(batch)
        until = time.monotonic() + _START_TOGETHER_S + seconds
        measured: list[Measured] = self._ask(repeat(Score(batch, until)), seconds + self._limit_s)
        self.resident_bytes = sum(one.resident_bytes for one in measured)
        return measured

    def end(self) -> None:
        for child in self._children:
            child.end()
        self._children = []

    def _ask(self, messages: Iterable[object], limit_s: float) -> list[Any]:
        """A message to each of them, and what they answer."""
        for child, message in zip(self._children, messages, strict=False):
            child.put(message)
        return [receive(child, limit_s, self._check) for child in self._children]
