"""The rate of the last run, from reports that nothing promises to be there or to be ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.report.runs import last_report
from tests.support.fakes import MemoryStore


def store(**reports: Any) -> MemoryStore:
    made = MemoryStore()
    for run_id, report in reports.items():
        data = report if isinstance(report, bytes) else json.dumps(report).encode()
        made.create(f"_stint/runs/{run_id}/report.json", data)
    return made


def report(rows: int, core_hours: float, root: str = "model=net-1") -> dict[str, Any]:
    return {"root": root, "rows_scored_here": rows, "core_hours": core_hours}


def test_the_newest_run_of_the_same_model_that_scored_something_tells_the_rate_of_a_core() -> None:
    runs = store(
        a=report(720_000, 1.0), b=report(360_000, 1.0), c=report(0, 0.0), d=report(9, 1.0, "model=other-2"), e=b"{"
    )
    last = last_report(runs, "model=net-1")
    assert last is not None
    assert last.rate_a_core == pytest.approx(100)


@pytest.mark.parametrize("runs", [{}, {"a": b"[]"}, {"a": {"root": "model=net-1"}}])
def test_without_a_report_that_tells_there_is_no_rate(runs: dict[str, Any]) -> None:
    assert last_report(store(**runs), "model=net-1") is None
