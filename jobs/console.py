"""What every command is given beside its options: where to write, how to hear of an interrupt, how to run another one.

A command is a function of `(arguments, console)` that returns an exit code; `jobs.cli` has the table of them.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs.interrupt import InterruptFlag
from workers.redaction import redacted


def still_read() -> None:
    """Write what stdout and stderr hold back. One that nobody reads any more, as with `| head -1`, leads nowhere from
    now on: that neither ends a command nor changes how it ends."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def out(text: str, end: str = "\n") -> None:
    """Write to stdout at once, whether or not anybody still reads it."""
    try:
        print(text, end=end, flush=True)
    except BrokenPipeError:
        still_read()


@dataclass(frozen=True)
class Console:
    """The terminal or log of a command. Credentials are taken out of all that is written."""

    run: Callable[[Sequence[str]], int]
    """Runs another command line, as `stint` does, and returns its exit code."""
    json: bool = False
    """Whether what is said beside the result is one JSON object a line."""

    def show(self, text: str) -> None:
        """Write the result of a command, on stdout."""
        out(redacted(text))

    def say(self, text: str) -> None:
        """Write what happens meanwhile, on stderr."""
        if self.json:
            from jobs.progress.displays import display_for

            display_for(sys.stderr, "json").note(redacted(text))
            return
        with contextlib.suppress(OSError):  # a terminal that has gone away ends no run
            print(redacted(text), file=sys.stderr, flush=True)

    def interrupts(self) -> InterruptFlag:
        """A flag that SIGTERM and SIGINT set from now on."""
        flag = InterruptFlag()
        flag.install()
        return flag
