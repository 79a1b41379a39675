"""Runs as the ledger has them: by their report once they are over, by the last part of their journal before, or when
there never was a report.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from jobs.plan.job import Job
from jobs.plan.worker_width import worker_rate
from jobs.progress.displays import describe_snapshot
from jobs.progress.format import duration, money
from jobs.progress.snapshot import Snapshot
from jobs.report.journal import PART_EVERY_MOST_S, last_snapshot, run_ids
from jobs.report.report import PlanReport, PlanState, Report, read_report
from workers.counted import counted
from workers.storage.errors import NotFound
from workers.storage.lookahead import ahead
from workers.storage.store import Store

_SILENT_S = PART_EVERY_MOST_S + 30
"""A run that has not written for so long has died, or cannot reach the store."""
_RUNS_READ = 20


@dataclass(frozen=True)
class RunSeen:
    run_id: str
    report: Report | None
    """Once it is over."""
    snapshot: Snapshot | None
    """The last one of its journal, where there is no report."""

    @property
    def root(self) -> str:
        """The model's; empty where the run does not tell."""
        return getattr(self.report or self.snapshot, "root", "")

    @property
    def job(self) -> str:
        """Its name; empty where the run does not tell."""
        return getattr(self.report or self.snapshot, "job", "")

    @property
    def heard_at(self) -> datetime:
        """When it wrote last; of one that does not tell, as late as can be: it may be under way."""
        text = self.report.ended if self.report else self.snapshot.at if self.snapshot else ""
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            return datetime.max.replace(tzinfo=UTC)
        return at if at.tzinfo is not None else at.replace(tzinfo=UTC)

    def heard_s(self, now: datetime) -> float:
        """How long ago it wrote last; clocks of two machines may differ a little."""
        return max(0.0, (now - self.heard_at).total_seconds())

    def under_way(self, now: datetime) -> bool:
        return self.report is None and self.snapshot is not None and self.heard_s(now) <= _SILENT_S

    def describe(self, now: datetime, *, left: bool) -> str:
        """For a person; `left` says that there is something to do yet for whoever runs the job."""
        if self.report is not None:
            return _outcome(self.report)
        if self.snapshot is None:
            return "has begun, and has not said yet how it stands"
        heard = f"last heard of {duration(self.heard_s(now))} ago"
        if self.snapshot.ended:
            what = "; run the job to finish it" if left and not self.under_way(now) else ""
            return f"ended without a report{what}; {heard}: {describe_snapshot(self.snapshot)}"
        if self.under_way(now):
            return f"under way: {describe_snapshot(self.snapshot)}; {heard}"
        what = "run the job to finish it" if left else "other runs have done since what it left"
        return f"died or is cut off: {heard}; {what}"


def _outcome(report: Report) -> str:
    parts = [report.outcome]
    if report.elapsed_s:
        rows = report.rows_scored_here
        parts.append(f"{counted(rows, 'row')} at {report.rate:,.0f} rows/s" if rows else "no rows scored")
        parts.append(f"in {duration(report.elapsed_s)}")
    if report.cost is not None:
        parts.append(f"cost {money(report.cost)}")
    return " · ".join([*parts, *report.error.splitlines()[:1]])


def read_run(store: Store, run_id: str) -> RunSeen:
    """Raises StoreError, StoreDenied."""
    try:
        return RunSeen(run_id, read_report(json.loads(store.get(f"_stint/runs/{run_id}/report.json"))), None)
    except NotFound:
        return RunSeen(run_id, None, last_snapshot(store, run_id))
    except ValueError:
        return RunSeen(run_id, Report(run_id=run_id, outcome="ended"), None)  # whatever it left, it is no report


def newest_runs(store: Store) -> list[RunSeen]:
    """The last ones of any model of the output, oldest first: ids begin with their time."""
    return list(ahead(lambda run_id: read_run(store, run_id), run_ids(store)[-_RUNS_READ:], "runs"))


def too_bad_plans(runs: Sequence[RunSeen], root: str) -> dict[int, PlanReport]:
    """Plans that the last run that worked on them has left open, because of their bad rows, by number."""
    reports = (run.report for run in runs if run.report is not None and run.root == root)
    last = {left.plan: left for report in reports for left in report.of_plans}
    return {number: left for number, left in last.items() if left.state == PlanState.TOO_BAD}


def last_report(store: Store, root: str) -> Report | None:
    """The report of the last run that scored something with the model of `root`: what it measured is what a fleet is
    sized by at first, and what a dry run reckons with."""
    scored = (found for found in reports(store, root) if found.rows_scored_here and found.core_hours)
    return next(scored, None)


def reports(store: Store, root: str | None = None, most: int = _RUNS_READ) -> Iterator[Report]:
    """Of runs with the model of `root`, or with any, newest first; of the `most` newest of all.

    Run ids begin with their time, so the newest report is the last key. Reports are advisory: what is no report is
    passed over.
    """
    keys = [info.key for info in store.list("_stint/runs") if info.key.endswith("/report.json")]
    for key in sorted(keys, reverse=True)[:most]:
        report = read_run(store, key.split("/")[2]).report
        if report is not None and root in (None, report.root):
            yield report


def rate_of_worker(job: Job) -> float | None:
    """Rows a second of a worker: by the last run, else by the profiles of the nodes, else None."""
    before = last_report(job.store, job.ledger.root)
    return worker_rate(job.profiles, job.threads) if before is None else before.rate_a_core * job.threads


def estimate(job: Job, rows: int, before: str = "") -> str:
    """Time and cost, scaled from the last run that scored something with the job's model, else from how the nodes were
    tuned, with as many workers as the spec allows, else from the model `before`, a root; honest about having none."""
    report, profile = last_report(job.store, job.fingerprints.root), job.width.profile
    of_worker = worker_rate(job.profiles, job.threads)
    if report is None and of_worker is None:
        report = last_report(job.store, before)
    per_cpu_hour, cost, on_one_node = job.spec.cost.per_cpu_hour, None, ""
    if rows == 0:
        return "nothing to score"
    if report is not None:
        rate = report.rate_a_core
        cores, which, source = max(1, len(report.workers)) * job.threads, "", f"run {report.run_id}"
        cost = None if report.cost is None else report.cost * rows / report.rows_scored_here
    elif of_worker is not None:
        rate = of_worker / job.threads
        cores, which, source = job.spec.workers.max * job.threads, " (workers.max)", job.width.reason
        if profile is not None:
            on_one_node = f"; {duration(rows / (of_worker * profile.workers))} on one node"
            if per_cpu_hour is not None:
                cost = rows / rate / 3600 * profile.host.threads_per_core * per_cpu_hour
    else:
        return "time and cost: unknown until a first run, or `stint tune`, has measured the rate"
    return (
        f"time: {duration(rows / rate / cores)} with {counted(cores, 'core')}{which}, "
        f"{rows / rate / 3600:.2f} core-hours "
        f"({source}: {rate:,.0f} rows/s a core){on_one_node}" + ("" if cost is None else f"; cost {cost:.2f}")
    )
