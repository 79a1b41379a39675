"""What a run's loop did, for the report: counts, workers, predictions, and every failure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

from jobs.ledger.bad_rows import OverBudget, Reasons
from jobs.ledger.done import KnownObjects
from jobs.progress.counts import Counts
from jobs.progress.snapshot import Price, cost_per_million
from jobs.report.drift import Distributions
from jobs.report.journal import Journal
from jobs.run.fleet import HeldShard
from workers.contract import Shard
from workers.outcomes import Failure, ShardResult, WorkerInfo

FAILURES_KEPT = 200
"""The first ones tell what went wrong; of the others only the number is kept."""
STARTS_KEPT = 20
"""Of the workers that did not start: a run may wait for cores for hours."""
TRACEBACK_KEPT = 2000
"""Characters, of the end."""
_AS_COUNTED = (
    "rows_ok", "rows_bad", "rows_gone", "rows_copied", "bad_samples", "bytes_read", "peak_rss_bytes",
    "speculative_attempts", "speculative_wins", "failed_starts",
)  # fmt: skip
"""Fields that the report has under the same names."""


@dataclass
class Tally(Counts):
    """What this run did."""

    done: KnownObjects = field(default_factory=KnownObjects)
    """What a done record says of the objects of these shards. Those with rows that are gone are left out: which files
    those rows are of, only the object itself says."""
    reasons: defaultdict[int, Reasons] = field(default_factory=lambda: defaultdict(Reasons))
    """Of the bad rows scored here, by plan."""
    over: list[OverBudget] = field(default_factory=list)
    """Plans that were given up, because too many of their rows are bad."""
    speculative_attempts: int = 0
    """Second attempts at shards that another worker had already, see jobs.scaling.speculation: one of each two is
    wasted."""
    speculative_wins: int = 0
    """Of those, the ones that were first."""
    set_aside: list[tuple[Shard, Failure]] = field(default_factory=list)
    """Shards whose input cannot be read; the others go on without them."""
    failures_kept: list[dict[str, Any]] = field(default_factory=list)
    """The first ones in full, as the report has them."""
    failed_starts: int = 0
    journal: Journal | None = None
    """Where every attempt is noted, too."""
    distributions: Distributions = field(default_factory=Distributions)
    """Of the predictions, by plan."""
    scoring_s: float = 0.0
    """From the first worker being ready to the end of the loop."""

    def host(self, worker: int) -> str:
        """Empty where it is not known."""
        return self.workers[worker].host if worker in self.workers else ""

    def ready(self, worker: int, info: WorkerInfo) -> None:
        self.workers[worker] = info
        if self.journal:
            self.journal.note_worker(worker, info)

    def ended(self, worker: int, held: HeldShard, result: ShardResult, *, attempt: int, first: bool) -> None:
        """An attempt at a shard succeeded: the `first` to, or not."""
        self._note(worker, held, result, attempt, first=first, second=held.second)
        if not first:
            self.committed += result.committed  # the loser may be heard of before the winner
            return
        self.add_result(result)
        if result.rows_bad:
            self.reasons[held.shard.plan].add(result.bad_by_code, result.bad_samples)
        self.speculative_wins += held.second
        if not result.rows_gone:
            self.done.add(held.shard, result)
        self.distributions.add(held.shard, result)

    def failed(
        self, worker: int, held: HeldShard | None, failure: Failure, *, at: str, budget: str, attempt: int = 0
    ) -> None:
        """An attempt at a shard failed, or, without a shard, a worker did not start. `at` is in UTC, ISO 8601; `budget`
        is what it was charged to (jobs.run.policy.Budget), or `start`; `attempt` counts from 1, in this run."""
        shard = held.shard if held else None
        if held is None:
            self.failed_starts += 1
        else:
            self.failures[failure.code or failure.kind.value] += 1
            self._note(worker, held, failure, attempt)
        if len(self.failures_kept) < FAILURES_KEPT and (shard or self.failed_starts <= STARTS_KEPT):
            self.failures_kept.append(
                {
                    "at": at,
                    "worker": worker,
                    "host": self.host(worker),
                    "kind": failure.kind.value,
                    "code": failure.code,
                    "budget": budget,
                    "message": failure.message,
                    "traceback": failure.traceback[-TRACEBACK_KEPT:],
                    "shard": shard.name if shard else "",
                    "rows": shard.describe() if shard else "",
                    "attempt": attempt,
                }
            )

    def _note(self, worker: int, held: HeldShard, outcome: ShardResult | Failure, attempt: int, **how: bool) -> None:
        if self.journal:
            engine = self.workers[worker].engine if worker in self.workers else ""
            self.journal.note_attempt(
                held.shard, outcome, worker=worker, host=self.host(worker), engine=engine, attempt=attempt,
                isolated=held.isolated, **how,
            )  # fmt: skip

    def figures(self, price: Price) -> dict[str, Any]:
        """Fields of jobs.report.report.Report."""
        cost = price.cost(self.worker_seconds, self.threads_per_core)
        return {
            **{name: getattr(self, name) for name in _AS_COUNTED},
            "rows_scored_here": self.rows,
            "shards_scored_here": self.shards,
            "shards_committed_here": self.committed,
            "bad_by_code": dict(self.bad_by_code),
            "stage_s": {stage: round(s, 3) for stage, s in {**self.stage_s, "idle": self.idle_seconds}.items()},
            "threads_busy": round(self.threads_busy, 3),
            "workers": [{"worker": number, **asdict(info)} for number, info in self.workers.items()],
            "retries": self.failures.total(),
            "retries_by_code": dict(self.failures.most_common()),
            "failures": self.failures_kept,
            "failures_left_out": self.failures.total() + self.failed_starts - len(self.failures_kept),
            "set_aside": [f"{shard.describe()}: {failure.message}" for shard, failure in self.set_aside],
            "rate": round(self.rows / self.scoring_s, 2) if self.scoring_s else 0.0,
            "core_hours": price.core_hours(self.worker_seconds),
            "cost": cost,
            "cost_per_million": None if cost is None or not self.rows else cost_per_million(cost, self.rows),
        }
