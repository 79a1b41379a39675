"""`stint run` and `stint quantize`."""

from __future__ import annotations

import argparse
from dataclasses import replace

from jobs.console import Console
from jobs.errors import COMPLETE
from jobs.interrupt import InterruptFlag
from jobs.plan.command_line import days_of, for_each_day, spec_of
from jobs.plan.job import Job
from jobs.pool.connect import connect, in_cluster
from jobs.report.report import summary
from jobs.run.run import Run
from jobs.spec.days import Days
from workers.bundle.profiles import HostKind


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Score what is missing, and show the summary."""
    flag = console.interrupts()

    def complete(days: Days | None) -> None:
        console.show(summary(_new_run(arguments, console, days, flag).complete()))

    return for_each_day(arguments, console, complete)


def quantize(arguments: argparse.Namespace, console: Console) -> int:
    """Make the bundle, or show the gate's table of the one that is there."""
    outcome = _new_run(arguments, console, days_of(arguments)[-1], console.interrupts()).bundle()
    if not outcome.created and outcome.table:
        console.say(outcome.table)
    return COMPLETE


def _new_run(arguments: argparse.Namespace, console: Console, days: Days | None, flag: InterruptFlag) -> Run:
    job = Job.open(spec_of(arguments), days)
    return Run(
        job=job if in_cluster(arguments.address) else replace(job, host=HostKind.here()),
        connect=lambda: connect(arguments.pool, arguments.address, flag),
        interrupted=flag,
        say=console.say,
        progress=getattr(arguments, "progress", "auto"),  # of `stint run` alone
    )
