"""What the last run with a model measured: a fleet is sized by it at first, and a dry run reckons with it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jobs.plan.job import Job
from jobs.plan.worker_width import worker_rate
from workers.storage.errors import NotFound
from workers.storage.store import Store

REPORTS_READ = 20
"""The newest reports that are looked at for one of the same model."""


def last_report(store: Store, root: str) -> dict[str, Any] | None:
    """The report of the last run that scored something with the model of `root`."""
    return next((it for it in reports(store, root) if it.get("rows_scored_here") and it.get("core_hours")), None)


def reports(store: Store, root: str, most: int = REPORTS_READ) -> Iterator[dict[str, Any]]:
    """Of runs with the model of `root`, newest first; of the `most` newest of all.

    Run ids begin with their time, so the newest report is the last key. Reports are advisory: what is no report is
    passed over.
    """
    keys = [info.key for info in store.list("_stint/runs") if info.key.endswith("/report.json")]
    for key in sorted(keys, reverse=True)[:most]:
        try:
            report = json.loads(store.get(key))
        except (NotFound, ValueError):
            continue
        if isinstance(report, dict) and report.get("root") == root:
            yield report


def rate_of_worker(job: Job) -> float | None:
    """Rows a second of a worker: by the last run, else by the profiles of the nodes, else None."""
    before = rate_before(job.store, job.ledger.root, job.threads)
    return before if before is not None else worker_rate(job.profiles, job.threads, job.host)


def rate_before(store: Store, root: str, threads: int) -> float | None:
    """Rows a second of a worker of `threads` cores in that run; None without one."""
    report = last_report(store, root)
    return None if report is None else float(report["rows_scored_here"] / report["core_hours"] / 3600 * threads)
