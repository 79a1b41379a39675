"""A run's report put together: what the loop counted, what the journal tells, how its predictions compare.

For a run that has died there is no report, and what its journal tells is put together in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow.compute as pc

from jobs.errors import SpecError
from jobs.plan.job import Job
from jobs.progress.snapshot import Price
from jobs.report import drift, figures, journal, runs
from jobs.report.drift import Distribution, Distributions
from jobs.report.journal import JournalContent
from jobs.report.report import COMPLETED, Report, night_figures, unfinished_report

_NIGHTS_READ = 40
"""The newest reports, among which those of the nights before are looked for."""
_IDLE_STAGES = ("idle", "wait")


def compose(
    report: Report, job: Job, price: Price, counted: Distributions, accuracy: Mapping[str, Any], *, hurry: bool
) -> None:
    """Add what the loop has not counted, part by part. In a `hurry` no error rows are looked for.

    Raises RunFailed for a bundle that cannot be read; StoreError, StoreDenied.
    """
    manifest = job.manifest() if accuracy or report.plans else None
    labels = manifest.labels if manifest else None
    if accuracy:
        _add_accuracy(report, accuracy, labels)
    if report.shards_scored_here or report.workers:
        content = journal.read_journal(job.store, report.run_id, figures.READ_COLUMNS)
        _add_journal(report, job, content, price, hurry=hurry)
    if report.plans:
        _add_predictions(report, job, counted, labels)
    if report.rows_scored_here and not hurry:
        nights = (night for night in runs.reports(job.store, report.root) if night.job == report.job)
        like = (night for night in nights if night.outcome == COMPLETED and night.rows_scored_here)
        report.before = next((night_figures(night) for night in like), {})


def _add_accuracy(report: Report, accuracy: Mapping[str, Any], labels: Sequence[str] | None) -> None:
    """What the bundle says of its accuracy, with classes by name."""

    def named(name: str) -> list[tuple[str, str, int]]:
        pairs = report.accuracy.pop(name, ())
        return [(drift.class_name(labels, a), drift.class_name(labels, b), rows) for a, b, rows in pairs]

    report.accuracy = dict(accuracy)
    report.confusion, report.disagreements = named("confusion"), named("disagreements")


def _add_journal(report: Report, job: Job, content: JournalContent, price: Price, *, hurry: bool = False) -> None:
    """What the journal tells of time: rows over time, shards, workers, and what the idle share cost; some bad rows."""
    report.workers = figures.worker_figures(content, report.workers or content.workers)
    threads_per_core = max((int(worker["plan"]["threads_per_core"]) for worker in report.workers), default=1)
    idle_s = sum(report.stage_s.get(stage, 0.0) for stage in _IDLE_STAGES)
    report.throughput = figures.rows_over_time(content)
    report.shard_times = figures.shard_times(content)
    report.stragglers = figures.stragglers(content)
    report.idle_core_hours = price.core_hours(idle_s)
    report.cost_idle = price.cost(idle_s, threads_per_core)
    if report.bad_by_code and not hurry:
        from jobs.report import bad_examples  # with all that reads pictures, which no run waits for when it begins

        report.bad_examples = bad_examples.find(job, content, report.bad_by_code)


def _add_predictions(report: Report, job: Job, counted: Distributions, labels: Sequence[str] | None) -> None:
    """Classes and scores of complete plans, against those of the nights before."""
    total = Distribution()
    for plan in map(job.ledger.plan, report.plans):
        total.add(
            counted.of(plan, labels, job.labels_key, lambda shard: job.store.get(f"{job.ledger.root}/{shard.key}"))
        )
    if not total.rows:
        return
    allowed = job.spec.drift
    before = [
        (night.run_id, night.classes, night.scores)
        for night in (runs.reports(job.store, report.root, _NIGHTS_READ) if allowed.nights else ())
        if night.scores and night.classes and night.outcome == COMPLETED and night.job == report.job
    ][: allowed.nights]
    report.classes, report.scores = dict(total.classes.most_common()), total.scores.tolist()
    report.distribution_rows = total.rows
    report.labelled_rows, report.right_rows = total.labelled, total.right
    found = drift.compare_nights(report.classes, report.scores, before, max_psi=allowed.max_psi, max_js=allowed.max_js)
    report.drift = asdict(found) if found else {}


def composed(job: Job, run_id: str) -> Report:
    """The report of a run as it wrote it, or, of one that could not, as its journal has it.

    Raises SpecError where there is no such run, StoreError, StoreDenied.
    """
    report = runs.read_run(job.store, run_id).report
    if report is not None:
        return report
    content = journal.read_journal(job.store, run_id, figures.READ_COLUMNS)
    if content.snapshot is None:
        known = journal.run_ids(job.store)
        raise SpecError(
            f"no run {run_id} in {job.store.url}/_stint/runs has left a report or a journal",
            f"one of these is there: {', '.join(known[-5:])}" if known else "run the job first",
        )
    return _of_journal(job, content)


def _of_journal(job: Job, content: JournalContent) -> Report:
    assert content.snapshot is not None, "the journal has a part"
    report, start = unfinished_report(content.snapshot), figures.began(content)
    report.output = job.store.url
    report.task = job.spec.model.task
    report.started = start.isoformat(timespec="seconds") if start else ""
    report.shards_scored_here = figures.settled(content).num_rows
    report.shards_committed_here = int(pc.sum(content.attempts["committed"]).as_py() or 0)
    threads = max((int(worker["plan"]["threads"]) for worker in content.workers), default=1)
    _add_journal(report, job, content, Price(threads, job.spec.cost.per_cpu_hour))
    return report
