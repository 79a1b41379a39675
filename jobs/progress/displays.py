"""Where a person, or a program, sees how a run stands: a live view on a terminal, a plain line every few seconds in a
job log, or a JSON object a line. Each shows the same snapshots.

A terminal that goes away ends no run: from then on nothing is shown.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.text import Text

from jobs.progress.format import (
    describe_deadline,
    describe_eta,
    describe_phase,
    describe_waiting,
    duration,
    money,
    percent,
    printable,
)
from jobs.progress.live_view import view_lines
from jobs.progress.snapshot import Snapshot
from workers.counted import counted

_CODES_SHOWN = 3
_NO_CURSOR = ("dumb", "unknown")
"""Values of TERM: a terminal that prints, and can do nothing else."""


class Outlet:
    """A stream that may go away, or not have every character: writing to it raises nothing. In all else it is `out`."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.gone = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)

    def write(self, text: str) -> int:
        encoding = self.encoding or "utf-8"
        shown = text.encode(encoding, "backslashreplace").decode(encoding)
        self._try(lambda: self._out.write(shown))
        return len(text)

    def flush(self) -> None:
        self._try(self._out.flush)

    def _try(self, do: Callable[[], object]) -> None:
        try:
            do()
        except (OSError, ValueError):  # ValueError: it was closed here
            self.gone = True


class Display:
    """Shows snapshots on a stream, and notes above whatever is live."""

    every_s = 5.0
    """How often it wants to be shown something."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet

    @property
    def gone(self) -> bool:
        return self._outlet.gone

    def show(self, snapshot: Snapshot, *, heard_s: float | None = None) -> None:
        """`heard_s` is how old the snapshot is, where that is more than a moment."""
        raise NotImplementedError

    def note(self, text: str) -> None:
        """A line of its own; redacted already."""
        raise NotImplementedError

    def close(self) -> None:
        """The terminal is again as it was. Raises nothing, and may be called twice."""
        self._outlet.flush()

    def _print(self, text: str) -> None:
        self._outlet.write(f"{text}\n")
        self._outlet.flush()


def display_for(out: TextIO, how: str = "auto") -> Display:
    """What shows a run on `out`, by one of jobs.arguments.WAYS."""
    outlet = Outlet(out)
    if how == "auto":
        utf = (out.encoding or "utf-8").lower().startswith("utf")
        can_draw = out.isatty() and utf and os.environ.get("TERM", "").lower() not in _NO_CURSOR
        how = "live" if can_draw else "lines"
    return {"json": JsonDisplay, "live": LiveDisplay, "lines": LineDisplay}[how](outlet)


def describe_snapshot(snapshot: Snapshot) -> str:
    """How a run stands, on one line without escape codes."""
    if phase := describe_phase(snapshot):
        return phase
    if waiting := describe_waiting(snapshot):
        state = [waiting]
    else:
        ready, wanted = snapshot.workers_ready, snapshot.workers_wanted
        state = [
            f"{snapshot.rate:,.0f} rows/s",
            f"ETA {'unknown' if snapshot.eta_s is None else describe_eta(snapshot.eta_s)}",
            describe_deadline(snapshot),
            counted(ready, "worker") if ready >= wanted else f"{ready} of {counted(wanted, 'worker')}",
        ]
    codes = ", ".join(f"{printable(code)} {n}" for code, n in Counter(snapshot.bad_by_code).most_common(_CODES_SHOWN))
    others = " of those scored by this run" if snapshot.rows_elsewhere else ""
    parts = [
        f"{snapshot.rows_done:,}/{counted(snapshot.rows_total, 'row')} ({percent(snapshot.share_done)})",
        *state,
        "" if snapshot.cost is None else f"cost {money(snapshot.cost)}",
        f"shards {snapshot.shards_done}/{snapshot.shards_total}",
        f"bad {snapshot.rows_bad}" + (f" ({codes})" if codes else "") + others,
    ]
    return " · ".join(filter(None, parts))


class LineDisplay(Display):
    def show(self, snapshot: Snapshot, *, heard_s: float | None = None) -> None:
        self._print(describe_snapshot(snapshot) + ("" if heard_s is None else f" · as of {duration(heard_s)} ago"))

    def note(self, text: str) -> None:
        self._print("\n".join(map(printable, text.expandtabs().splitlines())))


class JsonDisplay(Display):
    """For programs: `{"event": "progress", …}` with the fields of a Snapshot, and `{"event": "note", "at", "text"}`."""

    def show(self, snapshot: Snapshot, *, heard_s: float | None = None) -> None:
        self._print_json({"event": "progress", **asdict(snapshot)} | ({} if heard_s is None else {"heard_s": heard_s}))

    def note(self, text: str) -> None:
        self._print_json({"event": "note", "at": datetime.now(UTC).isoformat(timespec="milliseconds"), "text": text})

    def _print_json(self, event: dict[str, Any]) -> None:
        finite = json.loads(json.dumps(event), parse_constant=lambda _: None)  # JSON has no infinity
        self._print(json.dumps(finite, separators=(",", ":")))


class LiveDisplay(Display):
    """For a person at a terminal: a view that is drawn over and over, with notes above it. It vanishes at the end, and
    leaves the notes, and a line of how a run ended."""

    every_s = 0.5

    def __init__(self, outlet: Outlet) -> None:
        super().__init__(outlet)
        self._console = Console(file=cast("TextIO", outlet), force_terminal=True, highlight=False, legacy_windows=False)
        self._live: Live | None = None
        """From the first snapshot on."""
        self._shown: tuple[Snapshot, float | None]

    def show(self, snapshot: Snapshot, *, heard_s: float | None = None) -> None:
        if self.gone:
            self.close()
            return
        if snapshot.ended and heard_s is None:  # what stays of the view
            self.close()
            self.note(describe_snapshot(snapshot))
            return
        self._shown = snapshot, heard_s
        if self._live is None:
            # What else prints to this terminal meanwhile comes above the view, too.
            self._live = Live(
                self, console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop",
                redirect_stdout=sys.stdout.isatty(), redirect_stderr=sys.stderr.isatty(),
            )  # fmt: skip
            self._live.start()
            self._console.show_cursor(True)  # a driver that is killed leaves it as it is
        self._live.refresh()

    def note(self, text: str) -> None:
        for line in text.expandtabs().splitlines():
            # Not broken into lines here: the terminal does that, and can put them together again when it is copied.
            self._console.print(Text(printable(line)), soft_wrap=True)

    def close(self) -> None:
        if self._live is not None:
            live, self._live = self._live, None
            live.update(Text(""))  # of a view with more rows than the terminal, all would be printed now
            live.stop()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The view, as wide as the terminal is when it is drawn."""
        snapshot, heard_s = self._shown
        yield Group(*view_lines(snapshot, options.max_width, heard_s))
