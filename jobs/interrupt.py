"""SIGTERM and SIGINT: exit 5 within the 3 seconds that `ray job stop` leaves before SIGKILL.

The handler sets a flag that the loop looks at. Should the main thread be stuck in something that does not look, a
timer ends the process: the ledger is crash-safe, so nothing is lost by that.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from jobs.errors import INTERRUPTED

GRACE_S = 1.5


class InterruptFlag:
    """True once SIGTERM or SIGINT has come. Install again after `ray.init`, which replaces the handlers."""

    def __init__(self) -> None:
        self._set = False

    def __call__(self) -> bool:
        return self._set

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if not self._set:
            self._set = True
            timer = threading.Timer(GRACE_S, _leave)
            timer.daemon = True
            timer.start()


def _leave() -> None:
    print("stint: interrupted; everything committed so far stays. Run the same command to go on.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(INTERRUPTED)
