"""`stint table sync SPEC`: a table of the predictions, for engines that read tables, holds what readers see.

Every run does this at its end, `accept` and `promote` too. The command is for an output that was written before
`output.table` was set, and for a table that others kept changing.
"""

from __future__ import annotations

import argparse
from importlib import import_module

from jobs.console import Console
from jobs.errors import RunFailed, SpecError
from jobs.plan.command_line import for_each_day
from jobs.plan.job import Job, absolute
from jobs.tables.sync import held_edition, sync
from jobs.tables.target import OutputTable
from workers.storage.errors import StoreDenied, StoreError


def command(arguments: argparse.Namespace, console: Console) -> int:

    def bring_up(job: Job) -> None:
        if job.spec.output.table is None:
            raise SpecError("output.table: the spec names no table", "write `table: {format: delta}` in output")
        console.show(sync_table(job) or f"{table_uri(job)}: no plan is done yet, so there is nothing to show")

    return for_each_day(arguments, console, bring_up, writing=True)


def sync_table(job: Job) -> str:
    """Let the job's table, if it has one, hold what readers see now; returns a line for a person, or nothing.

    Raises RunFailed, SpecError.
    """
    if job.spec.output.table is None:
        return ""
    try:
        done = sync(job.store, open_table(job), table_uri(job), job.ledger)
    except (StoreError, StoreDenied) as error:
        raise RunFailed(
            f"output.table: {table_uri(job)}: {error}; predictions are safe, and the table shows what it did before",
            "run `stint table sync SPEC` once that is mended, or leave it to the next run",
        ) from error
    return done.describe(table_uri(job)) if done else ""


def check_table(job: Job) -> None:
    """Raises SpecError for a table that the job names and cannot write, StoreError, StoreDenied."""
    if job.spec.output.table is not None:
        held_edition(job.store, open_table(job), table_uri(job))


def open_table(job: Job) -> OutputTable:
    """Of a spec that names one. Raises SpecError where its library is missing."""
    given = job.spec.output.table
    assert given is not None
    kind = import_module(f"jobs.tables.{given.format}_output").__dict__[f"{given.format.capitalize()}Output"]
    table: OutputTable = kind(table_uri(job))
    return table


def table_uri(job: Job) -> str:
    given = job.spec.output.table
    assert given is not None
    if given.uri:
        return given.uri if given.uri.startswith("iceberg://") else absolute(given.uri)
    # Arrow takes every file of the output for data that has no underscore before it.
    beside = {"iceberg": "/_iceberg", "lance": "/_predictions.lance"}
    return f"{job.store.url}{beside.get(given.format, '')}"
