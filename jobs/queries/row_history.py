"""What has happened to one shard: every attempt that runs have noted in their journals, and crashes.

Both are advisory: what is not there may have happened all the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pyarrow.compute as pc

from jobs.ledger import crashes
from jobs.report.journal import attempts, run_ids
from jobs.report.runs import RunSeen, read_run
from workers.contract import Shard
from workers.storage.lookahead import ahead
from workers.storage.store import Store

READS_AT_ONCE = 16
CLOCKS_DIFFER = timedelta(hours=1)
COLUMNS = ("at", "worker", "host", "engine", "attempt", "second", "isolated", "failure", "message", "committed",
           "rows_ok", "rows_bad", "rows_gone", "wall_s")  # fmt: skip


@dataclass(frozen=True)
class Open:
    """When a shard could be tried at, by the store's clock; None where that is not known."""

    since: datetime | None
    """Its plan was made."""
    until: datetime | None
    """Its plan was done."""


def attempts_at(store: Store, root: str, shard: Shard, when: Open) -> list[dict[str, Any]]:
    """Each with its `run_id` and COLUMNS, oldest first. Raises StoreError, StoreDenied.

    Looks into the journals of the model's runs that were under way at that time; into all of them where those have
    nothing: a store that was copied tells other times.
    """
    ids = [run_id for run_id in run_ids(store) if when.until is None or _began(run_id) <= when.until + CLOCKS_DIFFER]
    seen = ahead(partial(read_run, store), ids, READS_AT_ONCE, "runs")
    runs = [run for run in seen if run.root == root]
    near = [run for run in runs if when.since is None or _ended(run) >= when.since - CLOCKS_DIFFER]
    return _noted(store, near, shard) or _noted(store, [run for run in runs if run not in near], shard)


def _noted(store: Store, runs: Sequence[RunSeen], shard: Shard) -> list[dict[str, Any]]:
    noted = []
    for run in runs:
        table = attempts(store, run.run_id, ("plan", "shard", *COLUMNS))
        here = table.filter(pc.and_(pc.equal(table["plan"], shard.plan), pc.equal(table["shard"], shard.index)))
        noted += [{"run_id": run.run_id, **row} for row in here.select(COLUMNS).to_pylist()]
    return noted


def _began(run_id: str) -> datetime:
    """Ids begin with their time; one that does not is as old as can be."""
    try:
        return datetime.strptime(run_id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def _ended(run: RunSeen) -> datetime:
    """When it was last heard of; one that does not tell may be under way."""
    text = str((run.report or {}).get("ended", "")) or (run.snapshot.at if run.snapshot else "")
    try:
        ended = datetime.fromisoformat(text)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC) - CLOCKS_DIFFER
    return ended if ended.tzinfo is not None else ended.replace(tzinfo=UTC)


def crashes_of(store: Store, root: str, shard: Shard) -> list[dict[str, Any]]:
    """As jobs.ledger.crashes records them, oldest first. Raises StoreError, StoreDenied."""

    def found() -> Iterator[str]:
        for info in store.list(f"{root}/{crashes.FOLDER}/{shard.plan:08d}", [f"{shard.index:08d}-"]):
            if crashes.parsed(info.key.removeprefix(f"{root}/")) == (shard.plan, shard.index):
                yield info.key

    read = ahead(store.get, found(), READS_AT_ONCE, "crashes")
    return sorted((json.loads(data) for data in read), key=lambda crash: str(crash.get("at", "")))
