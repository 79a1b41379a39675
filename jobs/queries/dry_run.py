"""`stint plan`: what a run would do, from listing and ledger alone."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace

from jobs.console import Console
from jobs.plan.command_line import for_each_day
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from jobs.plan.worker_width import worker_rate
from jobs.progress.format import duration
from jobs.report.runs import last_report
from workers.host.cores import read_topology


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint plan`."""
    return for_each_day(arguments, console, lambda job: console.show(describe_plan(job)))


def describe_plan(job: Job) -> str:
    """New and missing shards and rows; time and cost by the rate of the last complete run, where there was one."""
    if not os.environ.get("RAY_ADDRESS"):  # which nodes a cluster has, only a run asks
        job = replace(job, workers_there=read_topology().budget // job.threads)
    found = discover(job)
    cut = found.cut()
    missing = job.ledger.missing(*found.open_plans)
    rows = found.fresh_rows + missing.rows
    lines = [
        f"job {job.spec.name} → {job.store.url}/{job.fingerprints.root}/",
        *found.lines(),
        f"to be claimed: {found.fresh_rows:,} rows in {cut.sizes()}",
        f"open plans: {len(found.open_plans)}, {missing.rows:,} rows missing in {len(missing):,} shards",
        f"bundle {job.fingerprints.bundle}: {'to be made' if job.manifest() is None else 'there'}",
    ]
    lines += [f"warning: {warning}" for warning in cut.warnings]
    lines.append(_estimate(job, rows))
    return "\n".join(lines)


def _estimate(job: Job, rows: int) -> str:
    """Scaled from the last run that scored something, else from how the nodes were tuned, with as many workers as the
    spec allows; honest about having neither."""
    report, profile = last_report(job.store, job.fingerprints.root), job.width.profile
    per_cpu_hour, cost, on_one_node = job.spec.cost.per_cpu_hour, None, ""
    if rows == 0:
        return "nothing to score"
    if report is not None:
        rate = report.rate_a_core
        cores, which, source = max(1, len(report.workers)) * job.threads, "cores", f"run {report.run_id}"
        cost = None if report.cost is None else report.cost * rows / report.rows_scored_here
    elif (of_worker := worker_rate(job.profiles, job.threads)) is not None:
        rate = of_worker / job.threads
        cores, which, source = job.spec.workers.max * job.threads, "cores (workers.max)", job.width.reason
        if profile is not None:
            on_one_node = f"; {duration(rows / (of_worker * profile.workers))} on one node"
            if per_cpu_hour is not None:
                cost = rows / rate / 3600 * profile.host.threads_per_core * per_cpu_hour
    else:
        return "time and cost: unknown until a first run, or `stint tune`, has measured the rate"
    return (
        f"time: {duration(rows / rate / cores)} with {cores} {which}, {rows / rate / 3600:.2f} core-hours "
        f"({source}: {rate:,.0f} rows/s a core){on_one_node}" + ("" if cost is None else f"; cost {cost:.2f}")
    )
