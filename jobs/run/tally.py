"""What a run's loop did, for the report and for a person: results, workers, and every failure."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from jobs.ledger.bad_rows import BadRows
from jobs.ledger.done import KnownObjects
from jobs.report.drift import Distributions
from jobs.report.journal import Journal
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
    """What it was charged to, see jobs.run.policy.Budget; `start` for a worker that did not start."""
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
    """What this run did, for its report: sums, because a night has a million shards."""

    shards: int = 0
    """Scored here."""
    committed: int = 0
    """Less than `shards` when another run's attempt was first."""
    rows_ok: int = 0
    rows_bad: int = 0
    reasons: BadRows = field(default_factory=BadRows)
    """Of bad rows."""
    done: KnownObjects = field(default_factory=KnownObjects)
    """What a done record says of the objects of these shards, but of those with rows that are gone: which files those
    are of, the object itself tells."""
    stage_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Busy seconds by stage."""
    bytes_read: int = 0
    peak_rss_bytes: int = 0
    threads_busy: float = 0.0
    """Most threads that a worker kept busy over a shard."""
    speculative_attempts: int = 0
    """Second attempts at shards that another worker had already, see jobs.fleet.speculation: one of each two is
    wasted."""
    speculative_wins: int = 0
    """Of those, the ones that were first."""
    workers: dict[int, WorkerInfo] = field(default_factory=dict)
    set_aside: list[tuple[Shard, Failure]] = field(default_factory=list)
    """Shards whose input cannot be read; the others go on without them."""
    failures: FailureLog = field(default_factory=FailureLog)
    journal: Journal | None = None
    """Where every attempt is noted, too."""
    distributions: Distributions = field(default_factory=Distributions)
    """Of the predictions, by plan."""
    worker_seconds: float = 0.0
    """Of ready workers."""
    idle_seconds: float = 0.0
    """Of those, without any shard."""
    scoring_s: float = 0.0
    """From the first worker being ready to the end of the loop."""
    _wall_s: float = field(default=0.0, init=False)

    @property
    def rows(self) -> int:
        return self.rows_ok + self.rows_bad

    @property
    def rate(self) -> float:
        """Rows a second while there were workers."""
        return self.rows / self.scoring_s if self.scoring_s else 0.0

    @property
    def s_a_row(self) -> float | None:
        """Seconds that a worker took for a row; None before the first shard has ended."""
        return self._wall_s / self.rows if self.rows else None

    def host(self, worker: int) -> str:
        """Empty where it is not known."""
        return self.workers[worker].host if worker in self.workers else ""

    def engine(self, worker: int) -> str:
        """Empty where it is not known."""
        return self.workers[worker].engine if worker in self.workers else ""

    @property
    def threads_per_core(self) -> int:
        return max((info.plan.threads_per_core for info in self.workers.values()), default=1)

    def ready(self, worker: int, info: WorkerInfo) -> None:
        self.workers[worker] = info
        if self.journal:
            self.journal.note_worker(worker, info)

    def ended(
        self, worker: int, shard: Shard, result: ShardResult, *, attempt: int, first: bool, second: bool = False,
        isolated: bool = False,
    ) -> None:  # fmt: skip
        """An attempt at a shard succeeded: the `first` to, or not; begun as the `second` beside another, or not."""
        if self.journal:
            self.journal.note_result(
                shard, result, worker=worker, host=self.host(worker), engine=self.engine(worker), attempt=attempt,
                first=first, second=second, isolated=isolated,
            )  # fmt: skip
        if first:
            self.add(shard, result, second=second)
        else:
            self.committed += result.committed  # the loser may be heard of before the winner

    def failed(
        self, worker: int, shard: Shard | None, failure: Failure, *, at: str, budget: str, attempt: int = 0,
        isolated: bool = False,
    ) -> None:  # fmt: skip
        """An attempt at a shard failed, or, without a shard, a worker did not start."""
        host = self.host(worker)
        if self.journal and shard:
            self.journal.note_failure(
                shard, failure, worker=worker, host=host, engine=self.engine(worker), attempt=attempt, isolated=isolated
            )
        self.failures.add(failure, at=at, worker=worker, host=host, budget=budget, shard=shard, attempt=attempt)

    def add(self, shard: Shard, result: ShardResult, *, second: bool = False) -> None:
        """Count a shard, once; `second` says that the attempt that was first had begun as the second."""
        self.shards += 1
        self.committed += result.committed
        self.rows_ok += result.rows_ok
        self.rows_bad += result.rows_bad
        self.speculative_wins += second
        if result.rows_bad:
            self.reasons.add(result.bad_by_code, result.bad_samples)
        if not result.rows_gone:
            self.done.add(shard.key, result)
        for stage, seconds in result.stage_s.items():
            self.stage_s[stage] += seconds
        self.distributions.add(shard, result)
        self.bytes_read += result.bytes_read
        self.peak_rss_bytes = max(self.peak_rss_bytes, result.peak_rss_bytes)
        self.threads_busy = max(self.threads_busy, result.threads_busy)
        self._wall_s += result.wall_s
