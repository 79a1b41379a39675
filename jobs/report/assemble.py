"""A run's report put together: what the loop counted, what the journal tells, how its predictions compare.

For a run that has died there is no report, and what its journal tells is put together in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow.compute as pc

from jobs.errors import SpecError
from jobs.plan.job import Job
from jobs.progress.snapshot import Price
from jobs.report import drift, figures, journal, runs
from jobs.report.drift import Distribution, Distributions
from jobs.report.journal import JournalContent
from jobs.report.report import COMPLETED, Report, unfinished_report

_NIGHTS_READ = 40
"""The newest reports, among which those of the nights before are looked for."""
_IDLE_STAGES = ("idle", "wait")

Fields = dict[str, Any]
"""Of a Report, by name."""


def compose(
    report: Report, job: Job, price: Price, counted: Distributions, accuracy: Mapping[str, Any], *, hurry: bool
) -> Iterator[Fields]:
    """What the loop has not counted, part by part. In a `hurry` no error rows are looked for.

    Raises StoreError, StoreDenied.
    """
    labels = _labels(job) if accuracy or report.plans else None
    if accuracy:
        yield _accuracy(accuracy, labels)
    if report.shards_scored_here or report.workers:
        content = journal.read_journal(job.store, report.run_id, figures.READ_COLUMNS)
        yield _journal_figures(report, content, price)
        if not hurry:
            yield _examples(report, job, content)
    if report.plans:
        yield _predictions(report, job, counted, labels)


def _journal_figures(report: Report, content: JournalContent, price: Price) -> Fields:
    """What the journal tells of time: rows over time, shards, workers, and what the idle share cost."""
    workers = figures.worker_figures(content, report.workers or None)
    threads_per_core = max((int(worker["plan"]["threads_per_core"]) for worker in workers), default=1)
    idle_s = sum(report.stage_s.get(stage, 0.0) for stage in _IDLE_STAGES)
    return {
        "throughput": figures.rows_over_time(content),
        "shard_times": figures.shard_times(content),
        "stragglers": figures.stragglers(content),
        "workers": workers,
        "idle_core_hours": price.core_hours(idle_s),
        "cost_idle": price.cost(idle_s, threads_per_core),
    }


def _labels(job: Job) -> Sequence[str] | None:
    from workers.bundle.bundle import read_manifest

    manifest = read_manifest(job.store, job.fingerprints.bundle)
    return manifest.labels if manifest else None


def _accuracy(accuracy: Mapping[str, Any], labels: Sequence[str] | None) -> Fields:
    """What the bundle says of its accuracy, with classes by name."""
    pairs = {
        field: [(drift.class_name(labels, a), drift.class_name(labels, b), rows) for a, b, rows in accuracy[field]]
        for field in ("confusion", "disagreements")
        if field in accuracy
    }
    return {**pairs, "accuracy": {name: value for name, value in accuracy.items() if name not in pairs}}


def _predictions(report: Report, job: Job, counted: Distributions, labels: Sequence[str] | None) -> Fields:
    """Classes and scores of complete plans, against those of the nights before."""
    total = Distribution()
    for plan in map(job.ledger.plan, report.plans):
        total.add(counted.of(plan, labels, lambda shard: job.store.get(f"{job.ledger.root}/{shard.key}")))
    if not total.rows:
        return {}
    allowed = job.spec.drift
    before = [
        (night.run_id, night.classes, night.scores)
        for night in (runs.reports(job.store, report.root, _NIGHTS_READ) if allowed.nights else ())
        if night.scores and night.classes and night.outcome == COMPLETED
    ][: allowed.nights]
    classes, scores = dict(total.classes.most_common()), total.scores.tolist()
    found = drift.compare_nights(classes, scores, before, max_psi=allowed.max_psi, max_js=allowed.max_js)
    return {
        "classes": classes,
        "scores": scores,
        "distribution_rows": total.rows,
        "drift": asdict(found) if found else {},
    }


def _examples(report: Report, job: Job, content: JournalContent) -> Fields:
    """Some of the bad rows."""
    if not report.bad_by_code:
        return {}
    from jobs.report import bad_examples  # with all that reads pictures, which a run does not wait for when it begins

    return {"bad_examples": bad_examples.find(job, content, report.bad_by_code)}


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
    """Of a run that died, or that is still under way."""
    assert content.snapshot is not None, "the journal has a part"
    start = figures.began(content)
    threads = max((int(worker["plan"]["threads"]) for worker in content.workers), default=1)
    report = replace(
        unfinished_report(content.snapshot),
        output=job.store.url,
        task=job.spec.model.task,
        started=start.isoformat(timespec="seconds") if start else "",
        shards_scored_here=figures.settled(content).num_rows,
        shards_committed_here=int(pc.sum(content.attempts["committed"]).as_py() or 0),
    )
    parts = _journal_figures(report, content, Price(threads, job.spec.cost.per_cpu_hour))
    return replace(report, **parts, **_examples(report, job, content))
