"""The job and the days that a command line names."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from jobs.console import Console
from jobs.errors import COMPLETE, DeliveryShort, NothingThere
from jobs.plan.job import Job
from jobs.spec.days import Days, days_in_zone, runs
from jobs.spec.load import load_spec
from jobs.spec.schema import JobSpec
from workers.counted import counted


def last_job_of(arguments: argparse.Namespace, *, writing: bool = False) -> Job:
    """The job as of the last day that is named."""
    spec, of_days = _named(arguments)
    return Job.open(spec, of_days[-1], writing=writing)


def for_each_day(
    arguments: argparse.Namespace, console: Console, do: Callable[[Job], None], *, writing: bool = False
) -> int:
    """Do each of the command's runs, oldest first, and return the exit code.

    Of several runs, those of days without a delivery are named and passed over; NothingThere if all are. So are days
    that bring less than the spec wants, and DeliveryShort is the end then.
    """
    spec, of_days = _named(arguments)
    absent, short = list[str](), list[str]()
    for days in of_days:
        try:
            do(Job.open(spec, days, writing=writing))
        except (NothingThere, DeliveryShort) as error:
            (short if isinstance(error, DeliveryShort) else absent).append(str(days))
            if len(of_days) in (1, len(absent)):
                raise
            what = "is short" if isinstance(error, DeliveryShort) else "is passed over"
            console.say(f"{days} {what}: {error}")
    if short:
        raise DeliveryShort(
            f"{counted(len(short), 'day')} of {len(of_days)} had fewer new rows than input.min_new_rows wants: "
            f"{', '.join(short)}",
            "see to the deliveries, then run again; what has come is scored",
        )
    return COMPLETE


def _named(arguments: argparse.Namespace) -> tuple[JobSpec, list[Days | None]]:
    """The spec, and the days of each run that the command stands for."""
    spec = load_spec(arguments.spec, arguments.overrides)
    return spec, runs(days_in_zone(arguments.days, spec.schedule.timezone), spec.input.by_date, spec.output.uri)


def schema(_: argparse.Namespace, console: Console) -> int:
    """`stint schema`: what a command line may name."""
    console.show(json.dumps(JobSpec.model_json_schema(), indent=2))
    return COMPLETE
