"""`stint accept`: a plan may be done with its bad rows, whatever limits.bad_rows allows.

What is scored already is done at once. Of a plan that is not whole, the next run scores the rest.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from datetime import UTC, datetime

from jobs.console import Console
from jobs.errors import COMPLETE, SpecError
from jobs.ledger.accepted import accept
from jobs.ledger.current import record_first
from jobs.plan.command_line import last_job_of
from jobs.plan.job import Job
from jobs.table import sync_table


def command(arguments: argparse.Namespace, console: Console) -> int:
    job = last_job_of(arguments)
    console.show(accept_plan(job, arguments.plan, arguments.why, console.say))
    if line := sync_table(job):
        console.show(line)
    return COMPLETE


def accept_plan(job: Job, number: int, why: str, say: Callable[[str], None]) -> str:
    """Record that the open plan with this number is accepted, and why; returns a line for a person, and may `say` more.

    Raises SpecError for a plan that is not there or done, and without a reason; RunFailed for a damaged record.
    """
    ledger = job.ledger
    done = ledger.done_numbers()
    plans = {plan.number: plan for plan in ledger.plans()}
    open_plans = ", ".join(plan.name for plan in plans.values() if plan.number not in done) or "none"
    if not why.strip():
        raise SpecError(
            "--why: a reason is wanted; it stands in the ledger and in every report", "--why 'a known loss'"
        )
    if number not in plans:
        raise SpecError(f"--plan {number}: there is no such plan in {ledger.root}", f"open plans: {open_plans}")
    if number in done:
        raise SpecError(f"--plan {number}: it is done, there is nothing to accept", f"open plans: {open_plans}")
    plan = plans[number]
    stands = accept(job.store, ledger.root, plan, why.strip(), datetime.now(UTC).isoformat(timespec="seconds"))
    said = f"{plan.name} is accepted with its bad rows, since {stands.at}: {stands.why}"
    if not ledger.whole(plan):
        return f"{said}; the next run scores what is missing and closes it"
    objects = ledger.finish(plan)
    if done:
        ledger.record_done(plan, objects)
    else:
        record_first(ledger, plan, objects, say)
    return f"{said}; it is done: {objects.rows.describe()}"
