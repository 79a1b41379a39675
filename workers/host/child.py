"""A process that may die of what it is given: both its ends.

It runs one module, `python -m MODULE FD PARENT`, and talks to the process that started it over one connection. A guard
sees to its memory. It ends with its parent, also where a decoder does not let go of the interpreter.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from workers.host.memory import Guard

_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
"""Signals that a process does not give itself."""
_PR_SET_PDEATHSIG = 1  # of prctl(2): a signal to get when the thread that started us ends


class Died(Exception):
    """By its own doing; the message says how."""


class KilledFromOutside(Exception):
    """The message names the signal."""


class Overdue(Exception):
    """It has said nothing for as long as it was waited for."""


def how_it_died(returncode: int, *, over_memory: bool, memory_bytes: int, did: str) -> str | None:
    """What a process died of, from its exit status as subprocess gives it; None if somebody else killed it.

    `did` is what it did to what killed it, as `scored`.
    """
    if over_memory:
        return f"took more than {memory_bytes / 2**30:.2f} GiB of memory"
    if returncode >= 0:
        return f"ended the process that {did} it, with exit code {returncode}"
    if -returncode in _FROM_OUTSIDE:
        return None
    return f"killed the process that {did} it: {signal.Signals(-returncode).name}"


def python_path() -> str:
    """PYTHONPATH of a process that is to find whatever this one does."""
    return os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)


class Child:
    """The parent's end. Use from one thread, and `end` it: the process ends with that thread."""

    def __init__(self, module: str, memory_bytes: int, did: str, environment: Mapping[str, str] | None = None) -> None:
        """`did` is what the process does to what it is given, for a person: `scored`.

        It has this process's environment, and `environment` besides.
        """
        self._memory_bytes = memory_bytes
        self._did = did
        self._pipe, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())],
            pass_fds=[theirs.fileno()],
            env={**os.environ, **(environment or {}), "PYTHONPATH": python_path()},
        )
        theirs.close()  # so that its end is the connection's
        self._guard = Guard(self._process.pid, memory_bytes)

    def put(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except ConnectionError:  # it is dead, and how is found out when its answer is waited for
            return

    def take(self, limit_s: float) -> Any:
        """The next message. Raises Overdue, Died, KilledFromOutside."""
        try:
            if not self._pipe.poll(limit_s):
                raise Overdue
            return self._pipe.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            code, over_memory = self._process.wait(), self._guard.close()
            how = how_it_died(code, over_memory=over_memory, memory_bytes=self._memory_bytes, did=self._did)
            raise (KilledFromOutside(signal.Signals(-code).name) if how is None else Died(how)) from None

    def end(self) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.wait()
        self._guard.close()


def to_parent() -> Connection:
    """The child's end. Called first of all; from then on this process ends with its parent."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(sys.argv[2]):  # it ended before it was asked for
        sys.exit(1)
    faulthandler.enable()  # where a crash was goes to the worker's log,
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # and a dump of each would only fill the node's disk
    return Connection(int(sys.argv[1]))


def serve(answer: Callable[[Connection], None], *, heeds_sigint: bool = False) -> None:
    """All of a child: `answer` its parent, until that closes the connection."""
    connection = to_parent()
    if not heeds_sigint:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's goes to all; our parent sees to our end
    with suppress(EOFError, ConnectionError):
        answer(connection)
