"""Which root readers follow: the promoted one, or the first that has a complete plan."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from jobs.errors import RunFailed
from jobs.ledger.current import current_root, follow, follow_one, followed_root, keep_following, record_first
from jobs.ledger.done import DoneRecord
from jobs.ledger.ledger import Ledger
from workers.storage.store import Store, open_store

OLD, NEW, OTHER = "model=old-1", "model=new-2", "model=other-3"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "out"))


def open_root(store: Store, root: str) -> None:
    assert store.create(f"{root}/_stint/plans/00000001.stint", b"")


def complete(store: Store, root: str) -> None:
    assert store.create(f"{root}/_stint/done/00000001.stint", b"")


def test_a_root_without_a_complete_plan_neither_has_readers_nor_takes_them(store: Store) -> None:
    open_root(store, OLD)
    assert followed_root(store) is None
    complete(store, OLD)
    open_root(store, NEW)
    assert followed_root(store) == OLD


def test_readers_keep_the_first_root_when_a_second_is_about_to_have_a_complete_plan(store: Store) -> None:
    complete(store, OLD)
    assert keep_following(store, NEW) == OLD
    complete(store, NEW)
    assert followed_root(store) == OLD
    assert keep_following(store, OTHER) is None, "it is written down already"
    follow(store, NEW)
    assert followed_root(store) == NEW


def test_a_first_root_needs_no_entry(store: Store) -> None:
    open_root(store, NEW)
    assert keep_following(store, NEW) is None
    complete(store, NEW)
    assert keep_following(store, NEW) is None
    assert (current_root(store), followed_root(store)) == (None, NEW)


def test_of_two_complete_roots_nobody_chooses(store: Store) -> None:
    complete(store, OLD)
    complete(store, OTHER)
    assert keep_following(store, NEW) is None
    assert followed_root(store) is None


def test_a_promotion_that_comes_between_wins(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    complete(store, OLD)

    def meanwhile(store: Store) -> list[str]:
        follow(store, NEW)
        return [OLD]

    monkeypatch.setattr("jobs.ledger.current.complete_roots", meanwhile)
    assert keep_following(store, NEW) is None
    assert current_root(store) == NEW


def test_of_two_roots_that_are_first_at_the_same_time_readers_follow_one(store: Store) -> None:
    for root in (OTHER, NEW):
        open_root(store, root)
        assert keep_following(store, root) is None  # the other has no complete plan yet
    complete(store, OTHER)
    assert follow_one(store) is None
    assert followed_root(store) == OTHER
    complete(store, NEW)
    assert follow_one(store) == NEW
    assert (follow_one(store), followed_root(store)) == (None, NEW)


def test_after_a_promotion_nobody_chooses(store: Store) -> None:
    complete(store, OLD)
    follow(store, OLD)
    complete(store, NEW)
    assert follow_one(store) is None
    assert followed_root(store) == OLD


@pytest.mark.parametrize("written", [b"garbage", b'{"a": 1}', b"[]"])
def test_a_damaged_entry_is_named_with_the_way_out(store: Store, written: bytes) -> None:
    follow(store, OLD)
    store.create("_stint/current/00000002.json", written)
    with pytest.raises(RunFailed, match=r"_stint/current/00000002\.json is damaged") as raised:
        current_root(store)
    assert "remove it" in str(raised.value.next_step)
    plan, said = mock.Mock(number=1, token="t"), list[str]()
    record_first(Ledger(store, NEW), plan, DoneRecord.of([]), said.append)
    assert len(said) == 1
    assert "00000002.json is damaged" in said[0]
    assert Ledger(store, NEW).done_numbers() == {1}
