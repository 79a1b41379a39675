"""What scoring rows will take, by what the ledger knows of the model's rate."""

from __future__ import annotations

from jobs.plan.job import Job
from jobs.plan.worker_width import worker_rate
from jobs.progress.format import duration
from jobs.report.runs import last_report
from workers.counted import counted


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
