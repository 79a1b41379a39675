"""A run's report put together: what the loop counted, what the journal tells, how its predictions compare.

For a run that has died there is no report, and what its journal tells is put together in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow.compute as pc

from jobs.errors import SpecError
from jobs.ledger.plans import Plan
from jobs.plan.job import Job
from jobs.progress.snapshot import Price
from jobs.report import drift, figures, journal, runs
from jobs.report.drift import Distribution, Distributions
from jobs.report.journal import JournalContent
from jobs.report.report import Report
from workers.storage.errors import NotFound

REPORTS_READ = 40
"""The newest ones, among which those of the nights before are looked for."""
IDLE_STAGES = ("idle", "wait")


def compose(
    report: Report,
    job: Job,
    price: Price,
    counted: Distributions,
    accuracy: Mapping[str, Any],
    *,
    hurry: bool,
) -> None:
    """Everything that the loop has not counted. In a `hurry` no error rows are looked for.

    Raises StoreError, StoreDenied.
    """
    labels = add_accuracy(report, job, accuracy) if accuracy or report.plans else None
    if report.shards_scored_here or report.workers:
        content = journal.read(job.store, report.run_id, figures.COLUMNS)
        add_journal(report, content, price)
        if not hurry:
            add_examples(report, job, content)
    if report.plans:
        add_predictions(report, job, map(job.ledger.plan, report.plans), counted, labels)


def add_journal(report: Report, content: JournalContent, price: Price) -> None:
    """What the journal tells of time: rows over time, shards, workers, and what the idle share cost."""
    report.throughput = figures.throughput(content)
    report.shard_times = figures.shard_times(content)
    report.stragglers = figures.stragglers(content)
    report.workers = figures.workers(content, report.workers or None)
    idle_s = sum(report.stage_s.get(stage, 0.0) for stage in IDLE_STAGES)
    report.idle_core_hours = price.core_hours(idle_s)
    report.cost_idle = price.cost(idle_s, _threads_per_core(report.workers))
    if report.cost is not None and report.rows_scored_here:
        report.cost_per_million = report.cost / report.rows_scored_here * 1e6


def add_accuracy(report: Report, job: Job, accuracy: Mapping[str, Any]) -> Sequence[str] | None:
    """What the bundle says of its accuracy, with classes by name. Returns these names."""
    from workers.bundle.bundle import read_manifest

    manifest = read_manifest(job.store, job.fingerprints.bundle)
    labels = manifest.labels if manifest else None
    measured = dict(accuracy)
    for name in ("confusion", "disagreements"):
        pairs = measured.pop(name, ())
        setattr(report, name, [(_name(a, labels), _name(b, labels), rows) for a, b, rows in pairs])
    report.accuracy = measured
    return labels


def add_predictions(
    report: Report, job: Job, plans: Iterable[Plan], counted: Distributions, labels: Sequence[str] | None
) -> None:
    """Classes and scores of complete plans, against those of the nights before."""
    total = Distribution()
    for plan in plans:
        total.add(counted.of(plan, labels, lambda shard: job.store.get(f"{job.ledger.root}/{shard.key}")))
    if not total.rows:
        return
    report.classes = dict(total.classes.most_common())
    report.scores = total.scores.tolist()
    report.distribution_rows = total.rows
    wanted = job.spec.drift
    read = runs.reports(job.store, report.root, REPORTS_READ) if wanted.nights else ()
    before = [
        (report_before["run_id"], report_before["classes"], report_before["scores"])
        for report_before in read
        if report_before.get("scores") and report_before.get("classes") and report_before.get("outcome") == "complete"
    ][: wanted.nights]
    found = drift.compare(report.classes, report.scores, before, max_psi=wanted.max_psi, max_js=wanted.max_js)
    report.drift = asdict(found) if found else {}


def add_examples(report: Report, job: Job, content: JournalContent) -> None:
    """Some of the bad rows."""
    from jobs.report import bad_examples  # with all that reads pictures, which a run does not wait for when it begins

    if report.bad_by_code:
        report.bad_examples = bad_examples.find(job, content, report.bad_by_code)


def composed(job: Job, run_id: str) -> dict[str, Any]:
    """The report of a run as it wrote it, or, of one that could not, as its journal has it.

    Raises SpecError where there is no such run, StoreError, StoreDenied.
    """
    try:
        report: dict[str, Any] = json.loads(job.store.get(f"_stint/runs/{run_id}/report.json"))
        return report
    except NotFound:
        pass
    content = journal.read(job.store, run_id, figures.COLUMNS)
    if content.snapshot is None:
        known = journal.run_ids(job.store)
        raise SpecError(
            f"no run {run_id} in {job.store.url}/_stint/runs has left a report or a journal",
            f"one of these is there: {', '.join(known[-5:])}" if known else "run the job first",
        )
    return asdict(_of_journal(job, run_id, content))


def _of_journal(job: Job, run_id: str, content: JournalContent) -> Report:
    """Of a run that died, or that is still under way."""
    last = content.snapshot
    assert last is not None, "the journal has a part"
    start = figures.began(content)
    table = figures.settled(content)
    failed = content.attempts.filter(pc.is_valid(content.attempts["failure"]))
    threads = max((int(worker["plan"]["threads"]) for worker in content.workers), default=1)
    report = Report(
        run_id=run_id,
        job=last.job,
        root=job.ledger.root,
        output=job.store.url,
        task=job.spec.model.task,
        started=start.isoformat(timespec="seconds") if start else "",
        outcome="unfinished",
        error=f"no report: it was last heard of at {last.at}",
        next_step="if it is not under way any more, run the job: it does what is missing",
        rows_ok=last.rows_ok,
        rows_bad=last.rows_bad,
        rows_gone=last.rows_gone,
        rows_scored_here=int(sum(pc.sum(table[name]).as_py() or 0 for name in ("rows_ok", "rows_bad"))),
        shards_scored_here=table.num_rows,
        shards_committed_here=int(pc.sum(content.attempts["committed"]).as_py() or 0),
        bad_by_code=dict(last.bad_by_code),
        elapsed_s=round(last.elapsed_s, 2),
        core_hours=last.core_hours,
        cost=last.cost,
        stage_s={stage: round(seconds, 3) for stage, seconds in last.stage_s.items()},
        retries=failed.num_rows,
        retries_by_code=dict(last.failures_by_code),
    )
    report.rate = round(report.rows_scored_here / last.elapsed_s, 2) if last.elapsed_s else 0.0
    add_journal(report, content, Price(threads, job.spec.cost.per_cpu_hour))
    add_examples(report, job, content)
    return report


def _threads_per_core(workers: Sequence[Mapping[str, Any]]) -> int:
    return max((int(worker["plan"]["threads_per_core"]) for worker in workers), default=1)


def _name(index: int, labels: Sequence[str] | None) -> str:
    return str(labels[index]) if labels and 0 <= index < len(labels) else str(index)
