"""Figures of a run from a journal with known numbers; see tests.support.journals.write_journal."""

from __future__ import annotations

import pytest

from jobs.report import figures, journal
from jobs.report.journal import JournalContent
from tests.support.fakes import MemoryStore
from tests.support.journals import BEGAN, RUN, write_journal


@pytest.fixture(scope="module")
def told() -> JournalContent:
    store = MemoryStore()
    write_journal(store)
    return journal.read(store, RUN, figures.COLUMNS)


def test_rows_over_time_are_counted_from_when_scoring_began(told: JournalContent) -> None:
    found = figures.throughput(told)
    assert figures.began(told) == BEGAN
    assert found["step_s"] == 1
    assert len(found["rows"]) == 40
    assert {second: rows for second, rows in enumerate(found["rows"]) if rows} == {10: 100, 20: 200, 30: 100, 39: 100}


def test_what_shards_took(told: JournalContent) -> None:
    found = figures.shard_times(told)
    assert (found["median_s"], found["max_s"]) == (4.0, 16.0)
    assert sum(found["shards"]) == 5
    assert (found["shards"][0], found["shards"][-1]) == (4, 1)
    assert (found["edges_s"][0], found["edges_s"][-1]) == (4.0, 16.0)


def test_a_shard_that_took_four_times_the_median_is_a_straggler(told: JournalContent) -> None:
    assert figures.stragglers(told) == [
        {"shard": "00000001/00000004", "rows": 100, "wall_s": 16.0, "times_median": 4.0, "worker": 1, "host": "there"}
    ]


def test_what_each_worker_did(told: JournalContent) -> None:
    first, second = figures.workers(told)
    assert [(it["rows"], it["shards"], it["failed_attempts"]) for it in (first, second)] == [(300, 3, 0), (200, 2, 1)]
    assert first["rate"] == pytest.approx(300 / 12)
    assert second["rate"] == pytest.approx(200 / 20)
    assert first["busy_s"] == pytest.approx(9)


def test_a_worker_that_ended_nothing_is_named_too(told: JournalContent) -> None:
    idle = {"worker": 7, "host": "late"}
    assert figures.workers(told, [idle]) == [
        {**idle, "rows": 0, "shards": 0, "busy_s": 0.0, "rate": 0.0, "failed_attempts": 0}
    ]


def test_stages_are_summed_over_what_was_settled(told: JournalContent) -> None:
    found = figures.stage_s(told)
    assert (found["predict"], found["decode"], found["wait"]) == (16.0, 8.0, 8.0)


def test_a_journal_without_attempts_has_no_figures() -> None:
    told = journal.read(MemoryStore(), RUN, figures.COLUMNS)
    assert (figures.throughput(told), figures.shard_times(told), figures.stragglers(told)) == ({}, {}, [])
    assert figures.workers(told) == []
