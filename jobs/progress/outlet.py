"""A stream that is written to as long as somebody is there to read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TextIO

NO_CURSOR = ("dumb", "unknown")
"""Values of TERM: a terminal that prints, and can do nothing else."""


class Outlet:
    """A stream that may go away, or not have every character: writing to it raises nothing."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.gone = False

    @property
    def can_draw(self) -> bool:
        utf = (self.encoding or "utf-8").lower().startswith("utf")
        return self.isatty() and utf and os.environ.get("TERM", "").lower() not in NO_CURSOR

    @property
    def encoding(self) -> str | None:
        return getattr(self._out, "encoding", None)

    def isatty(self) -> bool:
        return self._out.isatty()

    def fileno(self) -> int:
        return self._out.fileno()

    def write(self, text: str) -> int:
        try:
            self._out.write(text)
        except UnicodeEncodeError:
            encoding = self.encoding or "ascii"
            self._try(lambda: self._out.write(text.encode(encoding, "backslashreplace").decode(encoding)))
        except (OSError, ValueError):  # ValueError: it was closed here
            self.gone = True
        return len(text)

    def flush(self) -> None:
        self._try(self._out.flush)

    def _try(self, do: Callable[[], object]) -> None:
        try:
            do()
        except (OSError, ValueError):
            self.gone = True
