"""Figures of a run from a journal with known numbers; see tests.support.journals.write_journal."""

from __future__ import annotations

import pyarrow.compute as pc
import pytest

from jobs.report import figures, journal
from jobs.report.journal import JournalContent
from tests.support.fakes import MemoryStore
from tests.support.journals import BEGAN, RUN, write_journal


@pytest.fixture(scope="module")
def content() -> JournalContent:
    store = MemoryStore()
    write_journal(store)
    return journal.read_journal(store, RUN, figures.READ_COLUMNS)


def test_rows_over_time_are_counted_from_when_scoring_began(content: JournalContent) -> None:
    found = figures.rows_over_time(content)
    assert figures.began(content) == BEGAN
    assert found["step_s"] == 1
    assert len(found["rows"]) == 40
    assert {second: rows for second, rows in enumerate(found["rows"]) if rows} == {10: 100, 20: 200, 30: 100, 39: 100}


def test_what_shards_took(content: JournalContent) -> None:
    found = figures.shard_times(content)
    assert (found["median_s"], found["max_s"]) == (4.0, 16.0)
    assert sum(found["shards"]) == 5
    assert (found["shards"][0], found["shards"][-1]) == (4, 1)
    assert (found["edges_s"][0], found["edges_s"][-1]) == (4.0, 16.0)


def test_a_shard_that_took_four_times_the_median_is_a_straggler(content: JournalContent) -> None:
    assert figures.stragglers(content) == [
        {"shard": "00000001/00000004", "rows": 100, "wall_s": 16.0, "times_median": 4.0, "worker": 1, "host": "there"}
    ]


def test_what_each_worker_did(content: JournalContent) -> None:
    first, second = figures.worker_figures(content, content.workers)
    assert [(it["rows"], it["shards"], it["failed_attempts"]) for it in (first, second)] == [(300, 3, 0), (200, 2, 1)]
    assert first["rate"] == pytest.approx(300 / 12)
    assert second["rate"] == pytest.approx(200 / 20)
    assert first["busy_s"] == pytest.approx(9)


def test_a_worker_that_ended_nothing_is_named_too(content: JournalContent) -> None:
    idle = {"worker": 7, "host": "late"}
    assert figures.worker_figures(content, [idle]) == [
        {**idle, "rows": 0, "shards": 0, "busy_s": 0.0, "rate": 0.0, "failed_attempts": 0}
    ]


def test_stages_add_up_over_what_was_settled(content: JournalContent) -> None:
    table = figures.settled(content)
    assert [pc.sum(table[f"{stage}_s"]).as_py() for stage in ("predict", "decode", "wait")] == [16.0, 8.0, 8.0]


def test_a_journal_without_attempts_has_no_figures() -> None:
    content = journal.read_journal(MemoryStore(), RUN, figures.READ_COLUMNS)
    assert (figures.rows_over_time(content), figures.shard_times(content), figures.stragglers(content)) == ({}, {}, [])
    assert figures.worker_figures(content, content.workers) == []
