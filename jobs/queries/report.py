"""`stint report`: what a run did, once more, and how the nights went; as text, or as a page in a file."""

from __future__ import annotations

import argparse
import io
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from rich.console import Console as Terminal

from jobs.console import Console
from jobs.errors import COMPLETE, SpecError
from jobs.pages.history import LOG_WIDTH, history_page, nights, nights_table
from jobs.pages.save import page_of
from jobs.plan.command_line import last_job_of
from jobs.plan.job import Job
from jobs.progress.format import duration
from jobs.report.assemble import composed
from jobs.report.report import COMPLETED, Report, ending, redacted_report, summary
from workers.storage.errors import NotFound

Show = Callable[[str], None]


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint report`: the last run with the job's model, or the one of `--run`, or with `--history` all nights.

    `--html` names a local file that gets the page instead. Raises SpecError where there is no such run, StoreError.
    """
    job = last_job_of(arguments)
    if arguments.history:
        _history(job, arguments.html, console.show)
        return COMPLETE
    report = composed(job, arguments.run or _last(job))
    if arguments.html is not None:
        _write(arguments.html, page_of(job, report), console.show)
    else:
        console.show(_describe(job, report))
    return COMPLETE


def _last(job: Job) -> str:
    found = nights(job.store, job.ledger.root, most=1)
    if not found:
        raise SpecError(
            f"no run of {job.spec.name} with this model has left a report or a journal in {job.store.url}",
            "run the job first, or name a run of another model with --run",
        )
    return found[-1].run_id


def _history(job: Job, html: Path | None, show: Show) -> None:
    found = nights(job.store, job.ledger.root)
    if html is not None:
        _write(html, history_page(job.spec.name, job.ledger.root, job.store.url, found), show)
        return
    if not found:
        show(f"no run of {job.spec.name} with this model has left a report or a journal in {job.store.url}")
        return
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else LOG_WIDTH
    text = io.StringIO()
    Terminal(file=text, width=width, force_terminal=terminal).print(nights_table(found, width))
    show(text.getvalue().rstrip("\n"))


def _describe(job: Job, report: Report) -> str:
    """The summary of a run that completed; of another one how it ended, what it did, and the way out."""
    report = redacted_report(report)
    if report.outcome == COMPLETED:
        lines = [line for line in summary(report).splitlines() if not line.startswith("report: ")]
    else:
        ended = ending(report)
        lines = [f"{report.outcome}: {ended.happened}", *ended.details.splitlines()]
        if report.next_step:
            lines.append(f"next: {report.next_step}")
        if report.rows_scored_here:
            done = f"{report.rows_scored_here:,} rows at {report.rate:,.0f} rows/s, {report.core_hours:.4f} core-hours"
            lines.append(f"scored here: {done}, in {duration(report.elapsed_s)}")
    return "\n".join([*lines, _page(job, report.run_id)])


def _page(job: Job, run_id: str) -> str:
    """Where the run's page is."""
    key = f"_stint/runs/{run_id}/report.html"
    try:
        job.store.get(key)
    except NotFound:
        return f"no report.html of run {run_id} is there; --html FILE makes one"
    return f"report: {job.store.url}/{key}"


def _write(file: Path, page: str, show: Show) -> None:
    """Raises SpecError where the file cannot be written."""
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise SpecError(f"--html {file}: {error.strerror}", "name a file in a folder that is there") from error
    show(f"page: {file.resolve()}")
