"""Progress: a live bar on a terminal, one plain line every few seconds in a job log. Both say the same."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from workers.outcomes import ShardResult
from workers.redaction import redacted

LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.25
WINDOW_S = 120.0
"""The rate is that of the shards that ended within this time."""
WINDOW_STEP_S = 1.0
"""Shards that ended within so little of each other are kept as one."""


class Progress:
    """Counts of one run. `tick` shows them when it is time to."""

    def __init__(
        self,
        rows_total: int,
        shards_total: int,
        *,
        finish_in_s: float | None = None,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`finish_in_s` is how far away the deadline is, where there is one."""
        self.rows_total = rows_total
        self.shards_total = shards_total
        self.rows_ok = 0
        self.rows_bad = 0
        self.rows_gone = 0
        self.rows_elsewhere = 0
        """Rows of shards that another run committed meanwhile."""
        self.shards_done = 0
        self.bad_by_code: Counter[str] = Counter()
        self._out = out or sys.stderr
        self._clock = clock
        self._finish_at = None if finish_in_s is None else clock() + finish_in_s
        self._ended: deque[tuple[float, int]] = deque()
        """When shards ended, and their rows."""
        self._first_ready: float | None = None
        self._last_line = self._last_bar = clock() - LINE_EVERY_S
        self._workers = (0, 0)
        self._live: Live | None = None
        if self._out.isatty():
            self._live = Live(console=Console(file=self._out), transient=True, refresh_per_second=4)
            self._live.start()

    # ------------------------------------------------------------------------------------------ counts

    def shard_ended(self, result: ShardResult) -> None:
        rows = result.rows_ok + result.rows_bad
        self.rows_ok += result.rows_ok
        self.rows_bad += result.rows_bad
        self.rows_gone += result.rows_gone
        self.shards_done += 1
        if result.bad_by_code:
            self.bad_by_code.update(result.bad_by_code)
        now = self._clock()
        if self._ended and now - self._ended[-1][0] < WINDOW_STEP_S:
            now, before = self._ended.pop()
            rows += before
        self._ended.append((now, rows))

    def shards_elsewhere(self, shards: int, rows: int) -> None:
        self.shards_done += shards
        self.rows_elsewhere += rows

    @property
    def rows_done(self) -> int:
        return self.rows_ok + self.rows_bad + self.rows_gone + self.rows_elsewhere

    def rate(self) -> float:
        """Rows a second over the last WINDOW_S, counted from when the first worker was ready."""
        now = self._clock()
        while self._ended and self._ended[0][0] < now - WINDOW_S:
            self._ended.popleft()
        if self._first_ready is None or not self._ended:
            return 0.0
        return sum(rows for _, rows in self._ended) / max(1e-3, min(WINDOW_S, now - self._first_ready))

    def eta_s(self) -> float | None:
        rate = self.rate()
        return (self.rows_total - self.rows_done) / rate if rate else None

    # ---------------------------------------------------------------------------------------- display

    def tick(self, ready: int, wanted: int) -> None:
        self._workers = (ready, wanted)
        now = self._clock()
        if ready and self._first_ready is None:
            self._first_ready = now
        if self._live:
            if now - self._last_bar >= BAR_EVERY_S:
                self._last_bar = now
                self._live.update(self._bar())
        elif now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self.note(self.line())

    def note(self, text: str) -> None:
        """A line of its own, above the bar."""
        text = redacted(text)  # it may quote what a library or Ray said of a failure
        if self._live:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._out, flush=True)

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def line(self) -> str:
        share = self.rows_done / self.rows_total if self.rows_total else 1.0
        parts = [f"{self.rows_done:,}/{self.rows_total:,} rows ({share:.1%})"]
        if not self._workers[0] and self.rows_done < self.rows_total:
            parts.append(f"waiting for workers (0 of {self._workers[1]} ready)")
        else:
            eta = self.eta_s()
            parts.append(f"{self.rate():,.0f} rows/s")
            parts.append(f"ETA {duration(eta)}" if eta is not None else "ETA unknown")
            if self._finish_at is not None:
                parts.append(self._deadline(eta))
            ready, wanted = self._workers
            parts.append(f"{ready} workers" if ready >= wanted else f"{ready} of {wanted} workers")
        parts.append(f"shards {self.shards_done}/{self.shards_total}")
        parts.append(f"bad {self.rows_bad}")
        if self.bad_by_code:
            parts[-1] += " (" + ", ".join(f"{code} {n}" for code, n in self.bad_by_code.most_common(3)) + ")"
        return " · ".join(parts)

    def _deadline(self, eta_s: float | None) -> str:
        """How the run stands by its rate of now, which rises while workers are still coming up."""
        assert self._finish_at is not None, "there is a deadline"
        left_s = self._finish_at - self._clock()
        if eta_s is None:
            return f"deadline in {duration(left_s)}" if left_s > 0 else f"LATE by {duration(-left_s)}"
        spare_s = left_s - eta_s
        return f"{duration(spare_s)} to spare" if spare_s >= 0 else f"LATE by {duration(-spare_s)}"

    def _bar(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(ProgressBar(total=max(1, self.rows_total), completed=self.rows_done, width=30), self.line())
        return grid


def duration(seconds: float) -> str:
    """`8m33s`, `2h05m`, `12s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"
