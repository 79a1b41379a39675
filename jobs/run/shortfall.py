"""What a run whose work is done still has to tell a person: each shortfall is an error, and all are told at once.

The plans concerned are done or open by then; nothing here writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from jobs.errors import DeliveryShort, RunFailed, SpecError, StintError
from jobs.input.listing import left_out, vanished
from jobs.ledger.bad_rows import Reasons
from jobs.ledger.done import DoneRecord
from jobs.ledger.plans import Plan, claims_of
from jobs.plan.asked import of_days
from jobs.plan.claims import rows_claimed
from jobs.plan.job import Job
from jobs.progress.format import first_few
from jobs.spec.days import Days
from workers.contract import Shard
from workers.counted import counted
from workers.outcomes import Failure, FailureCode
from workers.storage.errors import NotFound


def as_one(found: Sequence[StintError]) -> StintError:
    """The first of the errors, with what the others say."""
    if len(found) == 1:
        return found[0]
    steps = dict.fromkeys(one.next_step for one in found if one.next_step)
    return type(found[0])("\n".join(map(str, found)), "\n".join(steps))


def of_sources(unreadable: Mapping[str, str], set_aside: Sequence[tuple[Shard, Failure]]) -> list[StintError]:
    """Of files that cannot be read, by URI with the reason, and of shards that have no predictions."""
    found = list[StintError]()
    refused = [(shard, failure) for shard, failure in set_aside if failure.code == FailureCode.REFUSED]
    if refused:
        like_it = f", nor of {counted(len(refused) - 1, 'other shard')} like it" if len(refused) > 1 else ""
        plans = " or ".join(f"--plan {number}" for number in sorted({shard.plan for shard, _ in refused}))
        found.append(
            SpecError(
                f"input.uri_roots: {refused[0][1].message}; nothing of it is committed{like_it}",
                "name the folders or hosts of the images in input.uri_roots, or have the file removed or replaced, "
                f"then run again; to have these rows as bad ones: stint accept SPEC {plans} --why TEXT, and run again",
            )
        )
    names = [f"{uri}: {reason}" for uri, reason in unreadable.items()]
    names += [f"{shard.describe()}: {why.message}" for shard, why in set_aside if why.code != FailureCode.REFUSED]
    if names:
        found.append(
            RunFailed(
                f"{counted(len(names), 'source or shard', 'sources or shards')} could not be read or scored "
                f"and got no predictions: {'; '.join(first_few(names, 'of them'))}",
                "mend or replace these files, all of which report.html names (where workers died: mind workers.memory) "
                "and run again; everything else is committed",
            )
        )
    return found


def of_gone_rows(job: Job, gaps: Mapping[int, DoneRecord]) -> list[StintError]:
    """Of plans of which more rows are gone than the spec allows; `gaps` are their objects that lack rows.

    They stay done: what comes back is claimed again.
    """
    budget, lines = job.spec.limits.gone_rows, list[str]()
    plans = job.ledger.plans() if gaps else []
    for plan in (plan for plan in plans if plan.number in gaps):
        later = {uri for other in plans if other.number > plan.number for uri, _ in other.claimed}
        objects = [o for o in gaps[plan.number] if not later.issuperset(o.gone)]
        if budget.exceeded(rows := sum(o.rows_gone for o in objects), plan.rows):
            uri = next(uri for uri in objects[0].gone if uri not in later)
            what = f"{plan.name}: {rows:,} of {plan.rows:,} rows are gone"
            lines.append(f"{what}, as of {uri}: it was claimed in version {dict(plan.claimed)[uri]}")
    if not lines:
        return []
    return [
        RunFailed(
            "\n".join([f"more rows are gone than limits.gone_rows allows ({budget}): {lines[0]}", *lines[1:]]),
            "a file is gone when it was removed or changed after it was listed; where a manifest gives versions, "
            "they must be the store's, or be left out. Put the files in order and run again",
        )
    ]


def of_delivery(job: Job) -> DeliveryShort | None:
    """Whether the day's files, which other runs may have claimed, have as many rows as the spec wants; of a backfill
    those of all its days."""
    if not (wanted := job.spec.input.min_new_rows):
        return None
    days = job.days if job.days.backfill else Days(job.days.last, job.days.last)
    plans = job.ledger.plans()
    if job.spec.input.by_date:
        try:
            rows = rows_claimed(plans, list(of_days(job, pc.unique(claims_of(plans)["uri"]), days)))
        except NotFound:  # the day's manifest
            rows = 0
    else:
        rows = sum(plan.new_rows for plan in plans if plan.day == str(days.last))
    if rows >= wanted:
        return None
    wants = f"where input.min_new_rows wants {wanted:,}"
    return DeliveryShort(
        f"{rows:,} new rows for {days}, {wants}: the delivery is missing or not whole",
        "see to the delivery, then run again; what has come is scored",
    )


def reasons_left(job: Job, plan: Plan, objects: DoneRecord) -> Reasons:
    """Of a whole plan's bad rows that no other has newer ones of, and whose files are there and are still input."""
    ledger, excluded = job.ledger, left_out(job.spec.input, job.days)
    with_bad = np.flatnonzero(objects.table["rows_bad"].to_numpy())
    by_source = ledger.bad_rows(plan, plan.shards.picked(with_bad), ledger.plans(), ledger.done_numbers())
    there = {uri for uri, _ in by_source if not excluded(uri)}
    there -= vanished(there)
    found = Reasons()
    for (uri, _), reasons in by_source.items():
        if uri in there:
            found.add(reasons.by_code, reasons.samples)
    return found
