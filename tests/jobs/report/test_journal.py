"""The journal: written part by part, read back whole, and never in the way of a run."""

from __future__ import annotations

from jobs.report import journal
from jobs.report.journal import PART_EVERY_MOST_S, PART_EVERY_S, Journal
from tests.support.fakes import MemoryStore
from tests.support.journals import RUN, snapshot, write_journal
from workers.storage.errors import StoreError


def test_every_attempt_and_worker_comes_back_in_order_and_the_last_snapshot_with_them() -> None:
    store = MemoryStore()
    write_journal(store)
    content = journal.read_journal(store, RUN)
    assert content.attempts["shard"].to_pylist() == [0, 1, 2, 3, 4, 4]
    assert content.attempts["failure"].to_pylist() == [None] * 4 + ["crashed", None]
    assert content.attempts["attempt"].to_pylist() == [1, 1, 1, 1, 1, 2]
    assert [(worker["worker"], worker["host"]) for worker in content.workers] == [(0, "here"), (1, "there")]
    assert content.snapshot == journal.last_snapshot(store, RUN)
    assert content.snapshot is not None
    assert content.snapshot.rows_done == 500


def test_only_the_columns_that_are_asked_for_are_read() -> None:
    store = MemoryStore()
    write_journal(store)
    assert journal.read_journal(store, RUN, ["worker", "shard"]).attempts.column_names == ["worker", "shard"]


def test_credentials_in_messages_do_not_reach_the_store() -> None:
    store = MemoryStore()
    write_journal(store)
    (message,) = [text for text in journal.read_journal(store, RUN).attempts["message"].to_pylist() if text]
    assert "secret" not in message


def test_parts_that_are_damaged_are_passed_over() -> None:
    store = MemoryStore()
    write_journal(store)
    store.create(f"_stint/journals/{RUN}/00000003.stint", b"PAR1 and nothing more")
    assert journal.read_journal(store, RUN).attempts.num_rows == 6
    assert journal.last_snapshot(store, RUN) is not None


def test_a_run_that_left_nothing_has_an_empty_journal() -> None:
    content = journal.read_journal(MemoryStore(), RUN)
    assert (content.attempts.num_rows, content.workers, content.snapshot) == (0, [], None)
    assert journal.last_snapshot(MemoryStore(), RUN) is None


def test_parts_come_more_rarely_as_the_night_goes_on() -> None:
    writing = Journal(MemoryStore(), RUN, lambda text: None)
    assert writing.every_s == PART_EVERY_S
    for part in range(40):
        writing.show(snapshot(part))
    writing.close()
    assert writing.every_s == PART_EVERY_MOST_S


def test_a_store_that_takes_no_parts_is_named_once_and_harms_nothing() -> None:
    class Full(MemoryStore):
        def create(self, key: str, data: bytes) -> bool:
            raise StoreError("no space left")

    said: list[str] = []
    writing = Journal(Full(), RUN, said.append)
    for part in range(3):
        writing.show(snapshot(part))
    writing.close()
    assert len(said) == 1
    assert "predictions are not affected" in said[0]


def test_runs_are_listed_oldest_first_by_what_they_left() -> None:
    store = MemoryStore()
    for run in ("20260302T020000Z-b", "20260301T020000Z-a"):
        store.create(f"_stint/runs/{run}/spec.json", b"{}")
    assert journal.run_ids(store) == ["20260301T020000Z-a", "20260302T020000Z-b"]
