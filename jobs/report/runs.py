"""Runs as the ledger has them: by their report once they are over, by the last part of their journal before, or when
there never was a report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jobs.progress.displays import line
from jobs.progress.format import duration
from jobs.progress.snapshot import Snapshot
from jobs.progress.words import amount
from jobs.report.journal import PART_EVERY_MOST_S, last_snapshot, run_ids
from workers.storage.errors import NotFound
from workers.storage.lookahead import ahead
from workers.storage.store import Store

SILENT_S = PART_EVERY_MOST_S + 30
"""A run that has not written for so long has died, or cannot reach the store."""
RUNS_READ = 20
"""The newest runs that are looked at."""
READS_AT_ONCE = 8


@dataclass(frozen=True)
class RunSeen:
    """What a run has left in the ledger."""

    run_id: str
    report: Mapping[str, Any] | None
    """Once it is over."""
    snapshot: Snapshot | None
    """The last one of its journal, where there is no report."""

    @property
    def root(self) -> str:
        """The model's; empty where the run does not tell."""
        return str((self.report or {}).get("root", "")) or (self.snapshot.root if self.snapshot else "")

    def heard_s(self, now: datetime) -> float:
        """How long ago it wrote last; clocks of two machines may differ a little."""
        assert self.snapshot is not None, "it has written"
        return max(0.0, (now - datetime.fromisoformat(self.snapshot.at)).total_seconds())

    def under_way(self, now: datetime) -> bool:
        return self.report is None and self.snapshot is not None and self.heard_s(now) <= SILENT_S

    def told(self, now: datetime, *, left: bool) -> str:
        """For a person; `left` says that there is something to do yet for whoever runs the job."""
        if self.report is not None:
            return _outcome(self.report)
        if self.snapshot is None:
            return "has begun to score, and has not said yet how it stands"
        heard = f"last heard of {duration(self.heard_s(now))} ago"
        if self.snapshot.ended:
            so_far = " so far" if self.under_way(now) else "; run the job to finish it" if left else ""
            return f"ended without a report{so_far}; {heard}: {line(self.snapshot)}"
        if self.under_way(now):
            return f"under way: {line(self.snapshot)}; {heard}"
        what = "run the job to finish it" if left else "other runs have done since what it left"
        return f"died or is cut off: {heard}; {what}"


def _outcome(report: Mapping[str, Any]) -> str:
    """Of any version: what it does not have is left out."""
    parts = [str(report.get("outcome", "ended"))]
    rows, rate, cost, elapsed_s = (report.get(key) for key in ("rows_scored_here", "rate", "cost", "elapsed_s"))
    if isinstance(rows, int) and isinstance(rate, int | float):
        parts.append(f"{rows:,} rows at {rate:,.0f} rows/s" if rows else "no rows scored")
    if isinstance(elapsed_s, int | float):
        parts.append(f"in {duration(elapsed_s)}")
    if isinstance(cost, int | float):
        parts.append(f"cost {amount(cost)}")
    if error := report.get("error"):
        parts.append(str(error).splitlines()[0])
    return " · ".join(parts)


def read_run(store: Store, run_id: str) -> RunSeen:
    """Raises StoreError, StoreDenied."""
    try:
        report = json.loads(store.get(f"_stint/runs/{run_id}/report.json"))
        return RunSeen(run_id, report if isinstance(report, dict) else {}, None)
    except NotFound:
        return RunSeen(run_id, None, last_snapshot(store, run_id))
    except ValueError:
        return RunSeen(run_id, {}, None)


def newest_runs(store: Store) -> list[RunSeen]:
    """The last ones of any model of the output, oldest first: ids begin with their time."""
    return list(ahead(lambda run_id: read_run(store, run_id), run_ids(store)[-RUNS_READ:], READS_AT_ONCE, "runs"))
