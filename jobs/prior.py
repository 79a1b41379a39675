"""What the last run measured: the rate that a fleet is sized by before this run has measured its own."""

from __future__ import annotations

import json

from workers.store import NotFound, Store

REPORTS_READ = 20
"""The newest reports that are looked at for one of the same model."""


def rate_before(store: Store, root: str, threads: int) -> float | None:
    """Rows a second of a worker of `threads` cores in the last run that scored with the model of `root`.

    Run ids begin with their time, so the newest report is the last key. Reports are advisory: without one, or with one
    that another version wrote differently, there is no rate.
    """
    keys = [info.key for info in store.list("_stint/runs") if info.key.endswith("/report.json")]
    for key in sorted(keys, reverse=True)[:REPORTS_READ]:
        try:
            report = json.loads(store.get(key))
            if report["root"] == root and report["rows_scored_here"] and report["core_hours"]:
                return float(report["rows_scored_here"] / report["core_hours"] / 3600 * threads)
        except (NotFound, ValueError, KeyError, TypeError):
            continue
    return None
