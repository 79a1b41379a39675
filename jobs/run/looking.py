"""What the loop's books say of workers and of the shards that they are with: for a snapshot."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from jobs.pool.contract import Pool
from jobs.progress.progress import Look
from jobs.progress.snapshot import SLOWEST_SHOWN, UnderWay
from jobs.run.assignments import Watch
from jobs.run.tally import Tally


def look(tally: Tally, watch: Watch, pool: Pool, released: AbstractSet[int], now: float) -> Look:
    """Workers that are `released` get no more shards. Time is the loop's."""
    ready, busy = pool.workers(), watch.busy
    leaving = released & ready.keys()
    without = watch.holding[0]
    pace = tally.s_a_row
    return Look(
        workers={
            "starting": max(0, pool.size() - len(ready)),
            "scoring": len(busy) - sum(worker in busy for worker in leaving),
            "idle": len(without) - sum(worker in without for worker in leaving),
            "leaving": len(leaving),
        },
        slowest=tuple(
            UnderWay(
                shard=it.shard.name,
                worker=worker,
                host=tally.host(worker),
                rows=it.shard.rows,
                age_s=now - it.since,
                expected_s=None if pace is None else pace * it.shard.rows,
            )
            for worker, it in watch.longest(SLOWEST_SHOWN)
        ),
        worker_s=tally.worker_seconds,
        idle_s=tally.idle_seconds,
        stage_s=dict(tally.stage_s),
        threads_per_core=tally.threads_per_core,
        failures_by_code=dict(tally.failures.counts),
    )
