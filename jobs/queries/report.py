"""`stint report`: what a run did, once more, and how the nights went; as text, or as a page in a file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console as Terminal

from jobs.console import Console
from jobs.errors import COMPLETE, SpecError
from jobs.pages.history import LOG_WIDTH, Night, history_page, nights, nights_table
from jobs.pages.save import page_of
from jobs.plan.command_line import last_job_of
from jobs.plan.job import Job
from jobs.progress.format import duration
from jobs.report.assemble import composed
from jobs.report.report import COMPLETED, Report, accounts, ending, gone_lines, redacted_report, summary
from workers.counted import counted
from workers.storage.errors import NotFound


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint report`: the last run with the job's model, or the one of `--run`, or with `--history` all nights.

    `--html` names a local file that gets the page instead. Raises SpecError where there is no such run, StoreError.
    """
    job, file = last_job_of(arguments), arguments.html
    nothing = f"no run of {job.spec.name} with this model has left a report or a journal in {job.store.url}"
    if arguments.history:
        found = nights(job.store, job.ledger.root, job=job.spec.name)
        if file is None:
            console.show(_table(found) if found else nothing)
            return COMPLETE
        page = history_page(job.spec.name, job.ledger.root, job.store.url, found)
    else:
        newest = nights(job.store, job.ledger.root, most=1, job=job.spec.name)
        run_id = arguments.run or next((night.run_id for night in newest), None)
        if run_id is None:
            raise SpecError(nothing, "run the job first, or name a run of another model with --run")
        report = composed(job, run_id)
        if file is None:
            console.show(_describe(job, report))
            return COMPLETE
        page = page_of(job, report)
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"--html {file}: {error.strerror}", "name a file in a folder that is there") from error
    console.show(f"page: {file.resolve()}")
    return COMPLETE


def _table(found: Sequence[Night]) -> str:
    watched = sys.stdout.isatty()
    terminal = Terminal(width=None if watched else LOG_WIDTH, force_terminal=watched)
    with terminal.capture() as text:
        terminal.print(nights_table(found, terminal.width))
    return text.get().rstrip("\n")


def _describe(job: Job, report: Report) -> str:
    """The summary of a run that completed; of another one how it ended, what it did, and the way out. And where its
    page is."""
    report = redacted_report(report)
    if report.outcome == COMPLETED:
        lines = [line for line in summary(report).splitlines() if not line.startswith("report: ")]
    else:
        happened, details = ending(report)
        lines = [f"{report.outcome}: {happened}", *details.splitlines()]
        if report.next_step:
            lines.append(f"next: {report.next_step}")
        if report.rows_scored_here:
            done = f"{counted(report.rows_scored_here, 'row')} at {report.rate:,.0f} rows/s"
            took = duration(report.elapsed_s)
            lines.append(f"scored here: {done}, {report.core_hours:.4f} core-hours, in {took}")
        lines += gone_lines(report)
        if report.data_set_plans:  # reports of earlier releases count nothing but what was scored
            lines += [f"{name}: {rows.describe()}" for name, rows in accounts(report)]
    key = f"_stint/runs/{report.run_id}/report.html"
    try:
        job.store.get(key)
        lines.append(f"report: {job.store.url}/{key}")
    except NotFound:
        lines.append(f"no report.html of run {report.run_id} is there; --html FILE makes one")
    return "\n".join(lines)
