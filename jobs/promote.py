"""`stint promote`: let readers follow another model.

A new model is scored into a root of its own while readers go on with the old one; `promote` moves them over in one
step, once the new root is whole, and back again in the same way. Nothing is rewritten.
"""

from __future__ import annotations

import argparse

from jobs.console import Console
from jobs.errors import RunFailed, SpecError
from jobs.ledger.current import current_root, follow, roots
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Source, latest_versions
from jobs.plan import claims
from jobs.plan.command_line import for_each_day
from jobs.plan.discovery import list_job_input
from jobs.plan.job import Job
from jobs.progress.format import first_few
from jobs.table import sync_table
from workers.counted import counted


def command(arguments: argparse.Namespace, console: Console) -> int:

    def move(job: Job) -> None:
        console.show(promote(job, arguments.to, allow_fewer=arguments.allow_fewer))
        if line := sync_table(job):
            console.show(line)

    return for_each_day(arguments, console, move)


def promote(job: Job, root: str | None = None, *, allow_fewer: bool = False) -> str:
    """Let readers follow the job's model, or another `root` of its output; returns a line for a person.

    Raises RunFailed while the job's own model lacks anything that the input holds; and, unless `allow_fewer`, while it
    lacks files that the current model has predictions of.
    """
    before = current_root(job.store)
    target = (root or job.ledger.root).rstrip("/")
    if target == before:
        return f"{target} is the current model already"
    ledger = Ledger(job.store, target)
    if root is None:
        _check_whole(job)
    if not ledger.done_numbers():
        there = ", ".join(roots(job.store.url)) or "none"
        raise SpecError(f"{job.store.url}/{target} has no complete plan", f"roots here: {there}")
    if before is not None and not allow_fewer:
        _check_covers(Ledger(job.store, before), ledger)
    follow(job.store, target)
    return f"{job.store.url}: readers now follow {target}" + (f", until now {before}" if before else "")


def _check_whole(job: Job) -> None:
    plans, done = job.ledger.plans(), job.ledger.done_numbers()
    listing = list_job_input(job, plans, done, delivered=not plans)
    lacking = [f"plan {plan.number} is not done" for plan in plans if plan.number not in done]
    lacking += [f"{source.uri} is not scored" for source in claims.unclaimed(plans, listing.sources)]
    lacking += [f"{uri} cannot be read" for uri in listing.unreadable]
    if lacking or not plans:
        why = "; ".join(first_few(lacking, "such lines")) or "no plan is done"
        raise RunFailed(f"{job.ledger.root} is not whole: {why}", "run the job to its end, then promote")


def _check_covers(before: Ledger, after: Ledger) -> None:
    """A model that was scored for last night only must not take the place of one that has every night."""
    lacking = _done_uris(before) - _done_uris(after)
    if lacking:
        raise RunFailed(
            f"{after.root} has no predictions for {counted(len(lacking), 'file')} that {before.root} has, "
            f"as {min(lacking)}",
            "score them with `stint run SPEC --backfill FROM..TO`; or, as of files that are no longer in the input, "
            "promote with --allow-fewer, which takes their rows from readers",
        )


def _done_uris(ledger: Ledger) -> set[str]:
    """Files that have all their predictions."""
    done = ledger.done_numbers()
    plans = [plan for plan in ledger.plans() if plan.number in done]
    latest = latest_versions(plans)
    lost = ledger.lost(plans, done, [Source(uri, 0, version) for uri, version in latest.items()])
    return latest.keys() - {piece.uri for piece in lost if latest[piece.uri] == piece.version}
