"""Journals with known numbers, for tests of what is made of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import jobs.report.journal
from jobs.progress.snapshot import Snapshot
from jobs.report.journal import Journal
from tests.support.fakes import INFO, RESULT
from workers.contract import Shard, Slice
from workers.outcomes import Failure, FailureKind
from workers.storage.store import Store

BEGAN = datetime(2026, 3, 1, 2, 0, 0, tzinfo=UTC)
RUN = "20260301T020000Z-abcdef"


def shard(index: int, rows: int = 100, plan: int = 1) -> Shard:
    piece = Slice(uri="in/a.parquet", size=1, version="v1", row_group=0, row_start=0, row_stop=rows)
    return Shard(plan=plan, plan_token="t", index=index, slices=(piece,))


def snapshot(elapsed_s: float, **fields: Any) -> Snapshot:
    at = datetime.fromtimestamp(BEGAN.timestamp() + elapsed_s, UTC)
    counts = {"rows_total": 1000, "rows_ok": 0, "rows_bad": 0, "rows_gone": 0, "rows_elsewhere": 0}
    shards = {"shards_total": 10, "shards_done": 0}
    known = {"run_id": RUN, "job": "products", "root": "model=net-1", "at": at.isoformat(), "elapsed_s": elapsed_s}
    return Snapshot(**{**known, **counts, **shards, **fields})


def write_journal(store: Store, run_id: str = RUN) -> None:
    """Two workers, five shards of 100 rows in 40 seconds; the last is slow, one attempt at it failed before.

    Worker 0 ended shards 0, 2 and 3 after 10, 20 and 30 s, worker 1 shard 1 after 20 s and, after a failure at 30 s,
    shard 4 after 40 s; 5 rows of each are bad. Predicting took 4, 4, 4, 4 and 16 s.
    """
    journal = Journal(store, run_id, lambda text: None)
    with mock.patch.object(jobs.report.journal, "datetime") as clock:

        def at(seconds: float) -> None:
            clock.now.return_value = datetime.fromtimestamp(BEGAN.timestamp() + seconds, UTC)

        journal.note_worker(0, INFO)
        journal.note_worker(1, replace(INFO, host="there"))
        for index, worker, seconds in ((0, 0, 10), (1, 1, 20), (2, 0, 20)):
            at(seconds)
            _ended(journal, index, worker, 4.0)
        journal.show(snapshot(21))
        at(30)
        _ended(journal, 3, 0, 4.0)
        failure = Failure(kind=FailureKind.INFRA, code="crashed", message="died of https://me:secret@host/x")
        journal.note_attempt(shard(4), failure, worker=1, host="there", engine=INFO.engine, attempt=1)
        at(40)
        _ended(journal, 4, 1, 16.0, attempt=2)
        stage_s = {"decode": 10.0, "predict": 20.0, "wait": 6.0, "idle": 4.0}
        last = snapshot(
            40, rows_ok=475, rows_bad=25, shards_done=5, bad_by_code={"truncated": 25}, core_hours=80 / 3600, cost=0.5,
            stage_s=stage_s, failures_by_code={"crashed": 1},
        )  # fmt: skip
        journal.show(last)
    journal.close()


def _ended(journal: Journal, index: int, worker: int, wall_s: float, attempt: int = 1) -> None:
    stage_s = {"read": 0.5, "decode": wall_s / 4, "predict": wall_s / 2, "wait": wall_s / 4, "write": 0.1}
    result = replace(RESULT, index=index, wall_s=wall_s, stage_s=stage_s)
    host = INFO.host if worker == 0 else "there"
    journal.note_attempt(
        shard(index), result, worker=worker, host=host, engine=INFO.engine, attempt=attempt, first=True
    )
