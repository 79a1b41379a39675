"""Progress of one run: its counts, its rate, and a snapshot for whoever wants one, when it is time to.

The loop calls `tick` at every step; that costs nothing until a watcher is due: a display, the journal, metrics.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol, TextIO

from jobs.progress.counts import Counts
from jobs.progress.displays import Display, display_for
from jobs.progress.snapshot import Price, Snapshot, UnderWay
from workers.redaction import redacted

WINDOW_S = 120.0
"""The rate is that of the shards that ended within this time."""
WINDOW_STEP_S = 1.0
"""Shards that ended within so little of each other are kept as one."""
_WINDOW_PARTS = 6
"""How much their rates differ says how sure the rate is."""
UNSURE_LEAST, UNSURE_MOST = 0.03, 0.5
"""Bounds of the rate's uncertainty, as a share of it; the greater also while there are too few parts to tell."""


class Watcher(Protocol):
    """Is shown a snapshot every so often."""

    @property
    def every_s(self) -> float: ...

    def show(self, snapshot: Snapshot) -> None: ...


@dataclass(frozen=True, kw_only=True)
class WorkersNow:
    """What the loop knows of its workers, asked only when a snapshot is due."""

    by_state: Mapping[str, int] = field(default_factory=dict)
    """How many, by state, see jobs.progress.snapshot.WORKER_STATES."""
    slowest: Sequence[UnderWay] = ()
    ready_s: float = 0.0
    """Seconds that workers have been ready so far."""
    idle_s: float = 0.0
    """Of those, without a shard."""
    threads_per_core: int = 1
    failures_by_code: Mapping[str, int] = field(default_factory=dict)


class Progress:
    """How a run stands, by its counts: the rate, and when the rest will be done."""

    def __init__(
        self,
        rows_total: int,
        shards_total: int,
        *,
        counts: Counts | None = None,
        run_id: str = "",
        job: str = "",
        root: str = "",
        price: Price | None = None,
        finish_in_s: float | None = None,
        display: Display | None = None,
        watchers: Sequence[Watcher] = (),
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`counts` are kept by the loop. `finish_in_s` is how far away the deadline is, where there is one. Without a
        `display` it is what suits `out` (default: stderr)."""
        self.rows_total = rows_total
        self.shards_total = shards_total
        self.counts = counts or Counts()
        self._run_id, self._job, self._root, self._price = run_id, job, root, price or Price()
        self._display = display or display_for(out or sys.stderr)
        self._watchers: list[Watcher] = [self._display, *watchers]
        self._clock = clock
        self._began = clock()
        self._due = [-math.inf] * len(self._watchers)
        self._next_due = -math.inf
        self._finish_at = None if finish_in_s is None else clock() + finish_in_s
        self._ended: deque[tuple[float, int]] = deque()
        """When shards ended, and their rows."""
        self._first_ready: float | None = None
        self._ready = self._wanted = 0
        self._workers_now: Callable[[], WorkersNow] = WorkersNow

    def shard_ended(self, rows: int) -> None:
        """So many rows were scored just now."""
        now = self._clock()
        if self._ended and now - self._ended[-1][0] < WINDOW_STEP_S:
            now, before = self._ended.pop()
            rows += before
        self._ended.append((now, rows))

    @property
    def rows_left(self) -> int:
        return self.rows_total - self.counts.rows_done

    def rate(self) -> float:
        """Rows a second over the last WINDOW_S, counted from when the first worker was ready."""
        now = self._clock()
        while self._ended and self._ended[0][0] < now - WINDOW_S:
            self._ended.popleft()
        if self._first_ready is None or not self._ended:
            return 0.0
        return sum(rows for _, rows in self._ended) / max(1e-3, min(WINDOW_S, now - self._first_ready))

    def eta_s(self) -> tuple[float, float] | None:
        """Seconds to the end: if it goes as well as it may, with all workers that are asked for, and if it does not."""
        rate = self.rate()
        if not rate:
            return None
        unsure = self._unsure(rate)
        more = max(1.0, self._wanted / self._ready) if self._ready else 1.0
        return self.rows_left / (rate * (1 + unsure) * more), self.rows_left / (rate * (1 - unsure))

    def _unsure(self, rate: float) -> float:
        """Twice the standard error of the rate, as a share of it, by how its parts differ."""
        assert self._first_ready is not None, "there is a rate"
        now = self._clock()
        began = max(self._first_ready, now - WINDOW_S)
        part_s = (now - began) / _WINDOW_PARTS
        if part_s < 2 * WINDOW_STEP_S:
            return UNSURE_MOST
        rows = [0] * _WINDOW_PARTS
        for at, ended in self._ended:
            rows[max(0, min(_WINDOW_PARTS - 1, int((at - began) / part_s)))] += ended
        error = statistics.stdev(count / part_s for count in rows) / math.sqrt(_WINDOW_PARTS)
        return min(UNSURE_MOST, max(UNSURE_LEAST, 2 * error / rate))

    def tick(self, ready: int, wanted: int, workers_now: Callable[[], WorkersNow] = WorkersNow) -> None:
        """How many workers are ready of those wanted; `workers_now` is called only when a watcher is due."""
        now = self._clock()
        self._ready, self._wanted, self._workers_now = ready, wanted, workers_now
        if ready and self._first_ready is None:
            self._first_ready = now
        if now < self._next_due or not self._watchers:
            return
        snapshot = self.snapshot()
        for number, watcher in enumerate(self._watchers):
            if now >= self._due[number]:
                watcher.show(snapshot)
                self._due[number] = now + watcher.every_s
        self._next_due = min(self._due)

    def snapshot(self, *, ended: bool = False) -> Snapshot:
        now, workers, eta, rate = self._clock(), self._workers_now(), self.eta_s(), self.rate()
        counts = self.counts
        left_s = None if self._finish_at is None else self._finish_at - now
        states = workers.by_state or {"starting": max(0, self._wanted - self._ready), "scoring": self._ready}
        return Snapshot(
            run_id=self._run_id,
            job=self._job,
            root=self._root,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            elapsed_s=now - self._began,
            rows_total=self.rows_total,
            rows_ok=counts.rows_ok,
            rows_bad=counts.rows_bad,
            rows_gone=counts.rows_gone,
            rows_elsewhere=counts.rows_elsewhere,
            shards_total=self.shards_total,
            shards_done=counts.shards_done,
            bad_by_code=dict(counts.bad_by_code),
            rate=rate,
            eta_s=eta,
            late_s=None if left_s is None or not rate else self.rows_left / rate - left_s,
            deadline_in_s=left_s,
            workers_wanted=self._wanted,
            workers=states,
            slowest=tuple(workers.slowest),
            stage_s={**counts.stage_s, "idle": workers.idle_s},
            core_hours=self._price.core_hours(workers.ready_s),
            cost=self._price.cost(workers.ready_s, workers.threads_per_core),
            failures_by_code=dict(workers.failures_by_code),
            ended=ended,
        )

    def note(self, text: str) -> None:
        """A line of its own, above whatever is live."""
        self._display.note(redacted(text))  # it may quote what a library or Ray said of a failure

    def close(self) -> None:
        """Everybody is shown how it ended."""
        if self._watchers:
            snapshot = self.snapshot(ended=True)
            for watcher in self._watchers:
                watcher.show(snapshot)
            self._watchers = []
            self._display.close()
