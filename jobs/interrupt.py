"""SIGTERM and SIGINT: exit 5 within the 3 seconds that `ray job stop` leaves before SIGKILL.

A flag is set that the loop looks at. Should the main thread be stuck in something that does not look, a timer ends the
process: the ledger is crash-safe, so nothing is lost by that.

Python runs signal handlers in the main thread, but not while that waits in a library for a cluster that is silent.
So the signal's number is taken from the wake-up descriptor, to which it is written whatever that thread is at.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading

from jobs.errors import INTERRUPTED

GRACE_S = 1.5
SIGNALS = (signal.SIGTERM, signal.SIGINT)
_announced = threading.Event()
"""Somebody has said of the last interrupt how the command ends."""


class InterruptFlag:
    """True once SIGTERM or SIGINT has come. Install again after `ray.init`, which replaces the handlers."""

    def __init__(self) -> None:
        self._set = False
        self._noticed = threading.Lock()
        self._woken: socket.socket | None = None

    def __call__(self) -> bool:
        return self._set

    def install(self) -> None:
        """In the main thread."""
        for number in SIGNALS:
            signal.signal(number, lambda *_: self._interrupt())
        if self._woken is None:
            ours, self._woken = socket.socketpair()
            self._woken.setblocking(False)
            threading.Thread(target=self._listen, args=(ours,), name="interrupts", daemon=True).start()
        signal.set_wakeup_fd(self._woken.fileno(), warn_on_full_buffer=False)

    def _listen(self, ours: socket.socket) -> None:
        while numbers := ours.recv(64):
            if any(number in SIGNALS for number in numbers):
                self._interrupt()

    def _interrupt(self) -> None:
        # Not to be waited for: the handler may interrupt the very thread that holds it.
        if self._noticed.acquire(blocking=False):
            self._set = True
            _announced.clear()
            timer = threading.Timer(GRACE_S, _leave)
            timer.daemon = True
            timer.start()


def tell(text: str) -> None:
    """Say how a command ends that was interrupted; once, whoever comes to it first."""
    if not _announced.is_set():
        _announced.set()
        print(text, file=sys.stderr, flush=True)


def _leave() -> None:
    tell("stint: interrupted; everything committed so far stays. Run the same command to go on.")
    os._exit(INTERRUPTED)
