"""`stint plan`: what a run would do, from listing and ledger alone."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from jobs.console import Console
from jobs.errors import SpecError
from jobs.plan.command_line import for_each_day
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from jobs.plan.worker_width import worker_rate
from jobs.progress.format import duration
from jobs.report.runs import last_report
from workers.counted import counted
from workers.maker import judged_in, lacks_labels, outcome_of
from workers.storage.filesystems import is_local


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint plan`."""
    return for_each_day(arguments, console, lambda job: console.show(describe_plan(job)))


def describe_plan(job: Job) -> str:
    """New and missing shards and rows; time and cost by the rate of the last complete run, where there was one."""
    _check_output(job.store.url)
    found = discover(job)
    cut, manifest = found.cut(), job.manifest()
    missing = job.ledger.missing(*found.open_plans)
    rows = found.fresh_rows + missing.rows
    lines = [
        f"job {job.spec.name} → {job.store.url}/{job.fingerprints.root}/",
        *found.lines(),
        f"to be claimed: {counted(found.fresh_rows, 'row')} in {cut.sizes()}",
        f"open plans: {len(found.open_plans)}, {counted(missing.rows, 'row')} missing in "
        f"{counted(len(missing), 'shard')}",
        f"bundle {job.fingerprints.bundle}: {'to be made' if manifest is None else 'there'}",
    ]
    request = job.bundle_request()
    judge = manifest is not None and not lacks_labels(judged_in(manifest), request)
    if manifest is not None and judge and not outcome_of(judged_in(manifest), request).passed:
        lines.append("gate: refuses the bundle that is there; `stint quantize` shows why, and a run would end so, too")
    lines += [f"warning: {warning}" for warning in cut.warnings]
    lines.append(_estimate(job, rows))
    unchecked = [] if is_local(job.store.url) else ["whether the output may be written"]
    if manifest is None:
        unchecked.append("whether the network can be built and takes its weights and labels")
    if not judge:
        unchecked.append("whether it passes the gate")
    unchecked.append("whether the images can be decoded, and whether nodes have the cores and memory for workers")
    return "\n".join([*lines, f"not checked, as only a run can: {'; '.join(unchecked)}"])


def _check_output(url: str) -> None:
    """Nothing is written to find out, so of a local folder alone."""
    if not is_local(url):
        return
    there = next(place for place in (Path(url), *Path(url).parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written" if there.is_dir() else "is not a folder"
        raise SpecError(f"output.uri: cannot write {url}: {there} {why}")


def _estimate(job: Job, rows: int) -> str:
    """Scaled from the last run that scored something, else from how the nodes were tuned, with as many workers as the
    spec allows; honest about having neither."""
    report, profile = last_report(job.store, job.fingerprints.root), job.width.profile
    per_cpu_hour, cost, on_one_node = job.spec.cost.per_cpu_hour, None, ""
    if rows == 0:
        return "nothing to score"
    if report is not None:
        rate = report.rate_a_core
        cores, which, source = max(1, len(report.workers)) * job.threads, "", f"run {report.run_id}"
        cost = None if report.cost is None else report.cost * rows / report.rows_scored_here
    elif (of_worker := worker_rate(job.profiles, job.threads)) is not None:
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
