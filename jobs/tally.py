"""What a run's loop did, for the report and for a person: results, workers, and every failure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from workers.contract import Shard
from workers.outcomes import Failure, ShardResult, WorkerInfo

FAILURES_KEPT = 200
"""The first ones tell what went wrong; of the others only the number is kept."""
STARTS_KEPT = 20
"""Of the workers that did not start: a run may wait for cores for hours."""
TRACEBACK_KEPT = 2000
"""Characters, of the end."""


@dataclass(frozen=True, kw_only=True)
class FailureRecord:
    """One thing that went wrong, as the report tells it."""

    at: str
    """UTC, ISO 8601."""
    worker: int
    host: str
    """Empty where it is not known."""
    kind: str
    code: str
    budget: str
    """What it was charged to, see jobs.policy.Budget; `start` for a worker that did not start."""
    message: str
    traceback: str
    shard: str = ""
    rows: str = ""
    """The shard for a person: which rows of which sources."""
    attempt: int = 0
    """Of the shard in this run, from 1."""


@dataclass
class FailureLog:
    """Every failure of a run: the first ones in full, all of them by number."""

    kept: list[FailureRecord] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Attempts at shards, by the failure's code, or its kind where it has none."""
    starts: int = 0
    """Workers that did not start."""

    def add(
        self, failure: Failure, *, at: str, worker: int, host: str, budget: str, shard: Shard | None, attempt: int = 0
    ) -> None:
        if shard is None:
            self.starts += 1
        else:
            self.counts[failure.code or failure.kind.value] += 1
        if len(self.kept) < FAILURES_KEPT and (shard or self.starts <= STARTS_KEPT):
            self.kept.append(
                FailureRecord(
                    at=at,
                    worker=worker,
                    host=host,
                    kind=failure.kind.value,
                    code=failure.code,
                    budget=budget,
                    message=failure.message,
                    traceback=failure.traceback[-TRACEBACK_KEPT:],
                    shard=shard.name if shard else "",
                    rows=shard.describe() if shard else "",
                    attempt=attempt,
                )
            )

    @property
    def total(self) -> int:
        """Attempts at shards that failed."""
        return self.counts.total()

    @property
    def left_out(self) -> int:
        return self.total + self.starts - len(self.kept)


@dataclass
class Tally:
    """What this run did, for its report."""

    results: list[ShardResult] = field(default_factory=list)
    workers: dict[int, WorkerInfo] = field(default_factory=dict)
    set_aside: list[tuple[Shard, Failure]] = field(default_factory=list)
    """Shards whose input cannot be read; the others go on without them."""
    failures: FailureLog = field(default_factory=FailureLog)
    worker_seconds: float = 0.0
    scoring_s: float = 0.0
    """From the first worker being ready to the end of the loop."""
    _rows: int = field(default=0, init=False)
    _wall_s: float = field(default=0.0, init=False)

    @property
    def rate(self) -> float:
        """Rows a second while there were workers."""
        return sum(r.rows_ok + r.rows_bad for r in self.results) / self.scoring_s if self.scoring_s else 0.0

    @property
    def s_a_row(self) -> float | None:
        """Seconds that a worker took for a row; None before the first shard has ended."""
        return self._wall_s / self._rows if self._rows else None

    def host(self, worker: int) -> str:
        """Empty where it is not known."""
        return self.workers[worker].host if worker in self.workers else ""

    def add(self, result: ShardResult) -> None:
        self.results.append(result)
        self._rows += result.rows_ok + result.rows_bad
        self._wall_s += result.wall_s
