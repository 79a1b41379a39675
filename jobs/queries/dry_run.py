"""`stint plan`: what a run would do, from listing and ledger alone."""

from __future__ import annotations

import argparse

from jobs.console import Console
from jobs.plan.command_line import for_each_day
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from jobs.plan.worker_width import worker_rate
from jobs.progress.format import duration
from jobs.report.runs import last_report
from workers.storage.errors import NotFound


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint plan`."""
    return for_each_day(arguments, console, lambda job: console.show(describe_plan(job)))


def describe_plan(job: Job) -> str:
    """New and missing shards and rows; time and cost by the rate of the last complete run, where there was one."""
    found = discover(job)
    cut = found.cut()
    missing = job.ledger.missing(*found.open_plans)
    rows = found.fresh_rows + missing.rows
    lines = [
        f"job {job.spec.name} → {job.store.url}/{job.fingerprints.root}/",
        *found.lines(),
        f"to be claimed: {found.fresh_rows:,} rows in {cut.sizes()}",
        f"open plans: {len(found.open_plans)}, {missing.rows:,} rows missing in {len(missing):,} shards",
        f"bundle {job.fingerprints.bundle}: {'there' if _bundle_is_there(job) else 'to be made'}",
    ]
    lines += [f"warning: {warning}" for warning in cut.warnings]
    lines.append(_estimate(job, rows))
    return "\n".join(lines)


def _estimate(job: Job, rows: int) -> str:
    """Scaled from the last run that scored something; honest about having none."""
    report = last_report(job.store, job.fingerprints.root)
    if rows == 0:
        return "nothing to score"
    if report is None:
        return _by_profile(job, rows)
    rows_an_hour_core = report.rows_scored_here / report.core_hours
    core_hours = rows / rows_an_hour_core
    cores = max(1, len(report.workers)) * job.threads
    text = (
        f"time: {duration(core_hours / cores * 3600)} with {cores} cores, {core_hours:.2f} core-hours "
        f"(run {report.run_id}: {rows_an_hour_core / 3600:,.0f} rows/s a core)"
    )
    if report.cost is not None:
        text += f"; cost {report.cost * rows / report.rows_scored_here:.2f}"
    return text


def _by_profile(job: Job, rows: int) -> str:
    """As the nodes were tuned, with as many workers as the spec allows."""
    rate, profile = worker_rate(job.profiles, job.threads), job.width.profile
    if rate is None:
        return "time and cost: unknown until a first run, or `stint tune`, has measured the rate"
    cores = job.spec.workers.max * job.threads
    core_hours = rows / rate * job.threads / 3600
    text = (
        f"time: {duration(core_hours / cores * 3600)} with {cores} cores (workers.max), {core_hours:.2f} core-hours "
        f"({job.width.reason}: {rate / job.threads:,.0f} rows/s a core)"
    )
    if profile is not None:
        text += f"; {duration(rows / (rate * profile.workers))} on one node"
    if job.spec.cost.per_cpu_hour is not None and profile is not None:
        text += f"; cost {core_hours * profile.host.threads_per_core * job.spec.cost.per_cpu_hour:.2f}"
    return text


def _bundle_is_there(job: Job) -> bool:
    try:
        job.store.get(f"_stint/bundles/{job.fingerprints.bundle}/manifest.json")
    except NotFound:
        return False
    return True
