"""The job and the days that a command line names."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from jobs.console import Console
from jobs.errors import COMPLETE, NothingThere
from jobs.plan.job import Job
from jobs.spec.days import Days, runs
from jobs.spec.load import load_spec
from jobs.spec.schema import JobSpec


def spec_of(arguments: argparse.Namespace) -> JobSpec:
    return load_spec(arguments.spec, arguments.overrides)


def days_of(arguments: argparse.Namespace) -> list[Days | None]:
    """The days of each run that the command stands for, oldest first."""
    spec = spec_of(arguments)
    return runs(arguments.days, spec.input.by_date, spec.output.uri)


def job_of(arguments: argparse.Namespace, days: Days | None) -> Job:
    """For commands that only read."""
    return Job.open(spec_of(arguments), days, writing=False)


def last_job_of(arguments: argparse.Namespace) -> Job:
    """The job as of the last day that is named, for commands that only read."""
    return job_of(arguments, days_of(arguments)[-1])


def for_each_day(arguments: argparse.Namespace, console: Console, do: Callable[[Days | None], None]) -> int:
    """Do each of the command's runs and return the exit code.

    Of several runs, those of days without a delivery are named and passed over; NothingThere if all are.
    """
    of_days = days_of(arguments)
    absent = 0
    for days in of_days:
        try:
            do(days)
        except NothingThere as error:
            absent += 1
            if absent == len(of_days):
                raise
            console.say(f"{days} is passed over: {error}")
    return COMPLETE


def schema(_: argparse.Namespace, console: Console) -> int:
    """`stint schema`: what a command line may name."""
    console.show(json.dumps(JobSpec.model_json_schema(), indent=2))
    return COMPLETE
