"""`stint run` and `stint quantize`."""

from __future__ import annotations

import argparse
from dataclasses import replace

from jobs.console import Console
from jobs.errors import COMPLETE
from jobs.interrupt import InterruptFlag
from jobs.plan.command_line import for_each_day, last_job_of
from jobs.plan.job import Job
from jobs.pool.connect import connect, in_cluster
from jobs.report.report import summary
from jobs.run.run import Run
from workers.bundle.profiles import HostKind


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Score what is missing, and show the summary."""
    flag = console.interrupts()

    def complete(job: Job) -> None:
        console.show(summary(_new_run(job, arguments, console, flag).complete()))

    return for_each_day(arguments, console, complete, writing=True)


def quantize(arguments: argparse.Namespace, console: Console) -> int:
    """Make the bundle, or show the gate's table of the one that is there."""
    flag = console.interrupts()
    outcome = _new_run(last_job_of(arguments, writing=True), arguments, console, flag).bundle()
    if not outcome.created and outcome.table:
        console.say(outcome.table)
    return COMPLETE


def _new_run(job: Job, arguments: argparse.Namespace, console: Console, flag: InterruptFlag) -> Run:
    return Run(
        job=job if in_cluster(arguments.address) else replace(job, host=HostKind.here()),
        connect=lambda: connect(arguments.pool, arguments.address, flag),
        interrupted=flag,
        say=console.say,
        progress=getattr(arguments, "progress", "auto"),  # of `stint run` alone
    )
