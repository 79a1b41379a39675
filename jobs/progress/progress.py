"""Progress of one run: its counts, its rate, and a snapshot for whoever wants one, when it is time to.

The loop calls `tick` at every step; that costs nothing until a watcher is due: a display, the journal, metrics. In
phases that are one long call, a thread does so (`beating`).
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from jobs.progress.counts import Counts
from jobs.progress.displays import Display
from jobs.progress.snapshot import Price, Snapshot, UnderWay
from workers.redaction import redacted

WINDOW_S = 120.0
"""The rate is that of the shards that ended within this time."""
WINDOW_STEP_S = 1.0
"""Shards that ended within so little of each other are kept as one."""
BEAT_S = 0.5
_WINDOW_PARTS = 6
"""How much their rates differ says how sure the rate is."""
UNSURE_LEAST, UNSURE_MOST = 0.03, 0.5
"""Bounds of the rate's uncertainty, as a share of it; the greater also while there are too few parts to tell."""


class Watcher(Protocol):
    @property
    def every_s(self) -> float: ...

    def show(self, snapshot: Snapshot) -> None: ...


WorkersNow = tuple[Mapping[str, int], Sequence[UnderWay]]
"""How many workers there are by state (jobs.progress.snapshot.WORKER_STATES), and the shards under way longest."""


def _unknown() -> WorkersNow:
    return {}, ()


@dataclass
class Progress:
    """How a run stands, by its counts: the rate, and when the rest will be done."""

    rows_total: int
    shards_total: int
    display: Display
    watchers: Sequence[Watcher] = ()
    counts: Counts = field(default_factory=Counts)
    run_id: str = ""
    job: str = ""
    root: str = ""
    price: Price = field(default_factory=Price)
    finish_in_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    phase: str = "scoring"
    """With which it begins, one of jobs.progress.snapshot.PHASES."""

    def __post_init__(self) -> None:
        self._lock = threading.RLock()
        self._began = self._phase_began = self._beginning = self.clock()
        self._step = ""
        self.no_cores_since: float | None = None
        """By the clock, while it waits for cores that others hold."""
        self.timeline: list[dict[str, str | float]] = []
        """`phase`, `step`, `began_s` since the beginning, and `took_s`, of each phase or step that is over."""
        self._scored = self.phase == "scoring"
        self._watchers: list[Watcher] = [self.display, *self.watchers]
        first_s = 0.0 if self._scored else self.display.every_s  # a phase that takes no time is not worth a line
        self._due = [self._began + first_s, *(-math.inf for _ in self.watchers)]
        self._ended: deque[tuple[float, int]] = deque()
        """When shards ended, and their rows."""
        self._first_ready: float | None = None
        self._ready = self._wanted = 0
        self._workers_now: Callable[[], WorkersNow] = _unknown

    def enter(self, phase: str, step: str = "") -> None:
        """A phase begins, or another step of it; the one before is over."""
        with self._lock:
            if (phase, step) == (self.phase, self._step):
                return
            now = self.clock()
            self._note_phase(now)
            self.phase, self._step, self._phase_began = phase, step, now
            if phase not in ("workers", "scoring"):
                self._workers_now = _unknown

    def _note_phase(self, now: float) -> None:
        began_s = round(self._phase_began - self._beginning, 2)
        took_s = round(now - self._phase_began, 2)
        self.timeline.append({"phase": self.phase, "step": self._step, "began_s": began_s, "took_s": took_s})

    def watch(self, watcher: Watcher) -> None:
        """It is shown at once how the run stands, and from then on."""
        with self._lock:
            if watcher not in self._watchers:
                self._watchers.append(watcher)
                self._due.append(-math.inf)

    def score(self, rows: int, shards: int, *, price: Price, finish_in_s: float | None) -> None:
        """So many rows and shards more than are done are now to be scored."""
        with self._lock:
            self.rows_total, self.shards_total = self.counts.rows_done + rows, self.counts.shards_done + shards
            self.price, self.finish_in_s = price, finish_in_s
            self.enter("workers")
            self._began, self._first_ready, self._scored = self.clock(), None, True
            self._ended.clear()
            self._due = [-math.inf] * len(self._watchers)

    def dropped(self, shards: int, rows: int) -> None:
        with self._lock:
            self.shards_total -= shards
            self.rows_total -= rows

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Within it, watchers are shown how the run stands also while nobody calls `tick`."""
        over = threading.Event()

        def beat() -> None:
            while not over.wait(BEAT_S):
                with self._lock:
                    if self.phase not in ("workers", "scoring"):  # there the loop ticks
                        self.tick(self._ready, self._wanted, self._workers_now)

        thread = threading.Thread(target=beat, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(2 * BEAT_S)  # a terminal may take nothing more

    def shard_ended(self, rows: int) -> None:
        """So many rows were scored just now."""
        now = self.clock()
        if self._ended and now - self._ended[-1][0] < WINDOW_STEP_S:
            now, before = self._ended.pop()
            rows += before
        self._ended.append((now, rows))

    @property
    def rows_left(self) -> int:
        return self.rows_total - self.counts.rows_done

    def rate(self) -> float:
        """Rows a second over the last WINDOW_S, counted from when the first worker was ready."""
        now = self.clock()
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
        now = self.clock()
        began = max(self._first_ready, now - WINDOW_S)
        part_s = (now - began) / _WINDOW_PARTS
        if part_s < 2 * WINDOW_STEP_S:
            return UNSURE_MOST
        rows = [0] * _WINDOW_PARTS
        for at, ended in self._ended:
            rows[max(0, min(_WINDOW_PARTS - 1, int((at - began) / part_s)))] += ended
        error = statistics.stdev(count / part_s for count in rows) / math.sqrt(_WINDOW_PARTS)
        return min(UNSURE_MOST, max(UNSURE_LEAST, 2 * error / rate))

    def tick(self, ready: int, wanted: int, workers_now: Callable[[], WorkersNow] = _unknown) -> None:
        """How many workers are ready of those wanted; `workers_now` is called only when a watcher is due."""
        now = self.clock()
        self._ready, self._wanted, self._workers_now = ready, wanted, workers_now
        if ready and self._first_ready is None:
            self._first_ready = now
            self.enter("scoring")
        if now < min(self._due, default=math.inf):
            return
        with self._lock:
            snapshot = self.snapshot()
            for number, watcher in enumerate(self._watchers):
                if now >= self._due[number]:
                    watcher.show(snapshot)
                    self._due[number] = now + watcher.every_s

    def snapshot(self, *, ended: bool = False) -> Snapshot:
        elapsed_s, rate, counts = self.clock() - self._began, self.rate(), self.counts
        left_s = None if self.finish_in_s is None else self.finish_in_s - elapsed_s
        states, slowest = self._workers_now()
        return Snapshot(
            run_id=self.run_id,
            job=self.job,
            root=self.root,
            at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            elapsed_s=elapsed_s,
            phase=self.phase,
            step=self._step,
            phase_s=self.clock() - self._phase_began,
            no_cores_s=None if self.no_cores_since is None else self.clock() - self.no_cores_since,
            rows_total=self.rows_total,
            rows_ok=counts.rows_ok,
            rows_bad=counts.rows_bad,
            rows_gone=counts.rows_gone,
            rows_elsewhere=counts.rows_elsewhere,
            shards_total=self.shards_total,
            shards_done=counts.shards_done,
            bad_by_code=dict(counts.bad_by_code),
            rate=rate,
            eta_s=self.eta_s(),
            late_s=None if left_s is None or not rate else self.rows_left / rate - left_s,
            deadline_in_s=left_s,
            workers_wanted=self._wanted,
            workers=states or {"starting": max(0, self._wanted - self._ready), "scoring": self._ready},
            slowest=tuple(slowest),
            stage_s={**counts.stage_s, "idle": counts.idle_seconds},
            core_hours=self.price.core_hours(counts.worker_seconds),
            cost=self.price.cost(counts.worker_seconds, counts.threads_per_core),
            failures_by_code=dict(counts.failures),
            ended=ended,
        )

    def note(self, text: str) -> None:
        """A line of its own, above whatever is live."""
        self.display.note(redacted(text))  # it may quote what a library or Ray said of a failure

    def end(self) -> None:
        """Watchers that were shown something are shown how it ended; the display stays."""
        with self._lock:
            if len(self._watchers) > 1:
                self._note_phase(self.clock())
                snapshot = self.snapshot(ended=True)
                for watcher, due in zip(self._watchers[1:], self._due[1:], strict=True):
                    if self._scored or due != -math.inf:
                        watcher.show(snapshot)
                del self._watchers[1:], self._due[1:]

    def close(self) -> None:
        """Everybody is shown how it ended; a display only of a run that had something to score."""
        with self._lock:
            self.end()
            if self._watchers and self._scored:
                self.display.show(self.snapshot(ended=True))
            self._watchers, self._due = [], []
            self.display.close()
