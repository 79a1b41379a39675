"""A call to storage, again until it works or it is time to give up.

Faults are bounded by tries: a server that is gone will not come back for this call, and another worker may reach it.
Throttling is bounded by time: the server is there and asks for fewer requests, which every worker would hear alike, so
the run has to become slower and must not fail. Pauses are random (full jitter), so that a thousand callers who were
refused together do not come back together.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic, sleep
from typing import TypeVar

from workers.storage.errors import Cause, NotFound, StoreDenied, StoreError, cause_of, retry_after_s

TRIES = 6
BACKOFF_S = 0.2
BACKOFF_MAX_S = 8.0
THROTTLED_MAX_S = 900.0
"""How long one call lets itself be throttled before it fails."""
THROTTLED_BACKOFF_S = 0.5
THROTTLED_BACKOFF_MAX_S = 30.0
"""Also the most of a `Retry-After` that is honoured at a time."""

_T = TypeVar("_T")

_throttled_s: deque[float] = deque()
"""The pauses of this process's calls that nobody has asked for yet. Any thread may add and take."""


class Patience:
    """What is left of one call's tries and time."""

    def __init__(self, what: str) -> None:
        """`what` begins the message of the error that ends the call."""
        self._what = what
        self._faults = 0
        self._throttles = 0
        self._throttled_since: float | None = None

    def run(self, action: Callable[[], _T]) -> _T:
        """Run `action`, again after each storage fault and for as long as the store throttles. Raises as `after`.

        NotFound is not a fault and goes straight up; a refusal becomes StoreDenied; the last fault becomes StoreError.
        """
        while True:
            try:
                return action()
            except Exception as error:  # noqa: BLE001  (sorted by type; what is not storage's goes up as it is)
                self.after(error)

    def after(self, error: Exception) -> None:
        """Wait as long as it takes before the next try. Raises instead, when there is to be none: NotFound,
        StoreDenied, StoreError, and what is not storage's as it is."""
        match cause_of(error):
            case Cause.MISSING:
                raise NotFound(self._what) from error
            case Cause.DENIED:
                raise StoreDenied(f"{self._what}: {error}") from error
            case Cause.OTHER:
                raise error
            case Cause.THROTTLED:
                if self._throttled_since is None:
                    self._throttled_since = monotonic()
                waited_s = monotonic() - self._throttled_since
                if waited_s >= THROTTLED_MAX_S:
                    raise StoreError(f"{self._what}: {error} (throttled for {waited_s:.0f} s)") from error
                most_s = min(THROTTLED_BACKOFF_MAX_S, THROTTLED_BACKOFF_S * 2 ** min(self._throttles, 16))
                pause_s = min(THROTTLED_BACKOFF_MAX_S, retry_after_s(error)) + random.uniform(0, most_s)  # noqa: S311
                self._throttles += 1
                sleep(pause_s)
                _throttled_s.append(pause_s)
            case Cause.FAULT:
                self._faults += 1
                if self._faults == TRIES:
                    raise StoreError(f"{self._what}: {error} ({TRIES} tries)") from error
                sleep(random.uniform(0.5, 1.0) * min(BACKOFF_MAX_S, BACKOFF_S * 2**self._faults))  # noqa: S311  (jitter)


def retrying(action: Callable[[], _T], what: str) -> _T:
    """Run `action` with a patience of its own."""
    return Patience(what).run(action)


def take_throttled_s() -> float:
    """Seconds that this process's calls waited because a store throttled them, summed over threads, since last asked.

    Each second is counted once, so that the sum over a worker's results is what the worker waited.
    """
    taken_s = 0.0
    with suppress(IndexError):
        while True:
            taken_s += _throttled_s.popleft()
    return taken_s
