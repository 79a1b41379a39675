"""What the shards of a run came to: counted once, for the live view, metrics, the journal and the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from workers.outcomes import ShardResult, WorkerInfo, samples_of


@dataclass
class Counts:
    """Sums over shard results, because a night has a million shards."""

    shards: int = 0
    """Scored by this run."""
    shards_elsewhere: int = 0
    """There at the beginning, or committed by other runs meanwhile."""
    committed: int = 0
    """Less than `shards` when another run's attempt was first."""
    rows_ok: int = 0
    rows_bad: int = 0
    rows_gone: int = 0
    rows_copied: int = 0
    rows_elsewhere: int = 0
    """Of `shards_elsewhere`."""
    bad_by_code: Counter[str] = field(default_factory=Counter)
    bad_samples: dict[str, str] = field(default_factory=dict)
    """One bad row of each code, for a person."""
    stage_s: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Busy seconds by stage, as in ShardResult."""
    wall_s: float = 0.0
    """Seconds that workers were with these shards."""
    bytes_read: int = 0
    peak_rss_bytes: int = 0
    """Of the largest worker process."""
    threads_busy: float = 0.0
    """Most threads that a worker kept busy over a shard."""
    workers: dict[int, WorkerInfo] = field(default_factory=dict)
    """All that have been ready."""
    worker_seconds: float = 0.0
    """Of ready workers."""
    idle_seconds: float = 0.0
    """Of those, without any shard."""
    failures: Counter[str] = field(default_factory=Counter)
    """Attempts at shards, by the failure's code, or its kind where it has none."""

    @property
    def rows(self) -> int:
        """Scored by this run."""
        return self.rows_ok + self.rows_bad

    @property
    def rows_done(self) -> int:
        return self.rows + self.rows_gone + self.rows_elsewhere

    @property
    def shards_done(self) -> int:
        return self.shards + self.shards_elsewhere

    @property
    def s_a_row(self) -> float | None:
        """Seconds that a worker took for a row; None before the first shard has ended."""
        return self.wall_s / self.rows if self.rows else None

    @property
    def threads_per_core(self) -> int:
        return max((info.plan.threads_per_core for info in self.workers.values()), default=1)

    def add_result(self, result: ShardResult) -> None:
        """Count a shard; once, whichever of its attempts was first."""
        self.shards += 1
        self.committed += result.committed
        self.rows_ok += result.rows_ok
        self.rows_bad += result.rows_bad
        self.rows_gone += result.rows_gone
        self.rows_copied += result.rows_copied
        if result.rows_bad:
            self.bad_by_code.update(result.bad_by_code)
            self.bad_samples = samples_of(self.bad_samples, result.bad_samples)
        for stage, seconds in result.stage_s.items():
            self.stage_s[stage] += seconds
        self.wall_s += result.wall_s
        self.bytes_read += result.bytes_read
        self.peak_rss_bytes = max(self.peak_rss_bytes, result.peak_rss_bytes)
        self.threads_busy = max(self.threads_busy, result.threads_busy)

    def add_elsewhere(self, shards: int, rows: int) -> None:
        """Count shards that this run need not score."""
        self.shards_elsewhere += shards
        self.rows_elsewhere += rows
