"""What results said of objects outlives the run, so that the plan is finished without reading them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.ledger import done as noting
from jobs.ledger import ledger as ledgers
from jobs.ledger.done import NOTE_KEY, DoneRecord, DoneShard, KnownObjects, Noting, PlanObjects, recall
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan, decode_plan
from tests.jobs.ledger.test_ledger import ROOT, claim, opened
from tests.support.fakes import RESULT, MemoryStore, object_of
from workers.contract import Shard
from workers.outcomes import ShardResult
from workers.output import object_facts
from workers.storage.errors import StoreError
from workers.storage.store import LocalStore


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noting, "NOTE_EVERY", 4)
    monkeypatch.setattr(noting, "NOTE_LEAST", 2)
    monkeypatch.setattr(ledgers, "NOTE_LEAST", 2)


class Counting(MemoryStore):
    """Keeps account of the objects of shards that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def get(self, key: str) -> bytes:
        if "/plan=" in key:
            self.read.append(key)
        return super().get(key)


def setup(shards: int = 10) -> tuple[Ledger, Counting, Plan]:
    store = Counting()
    here = Ledger(store, ROOT)
    plan = claim(here, opened("a", *[10] * shards))
    assert plan is not None
    for shard in plan.shards:
        store.create(f"{ROOT}/{shard.key}", object_of(shard, bad=(0,)))
    return here, store, plan


def result(here: Ledger, plan: Plan, index: int) -> tuple[Shard, ShardResult]:
    shard = plan.shards[index]
    facts = object_facts(MemoryStore.get(here.store, f"{ROOT}/{shard.key}"))  # type: ignore[arg-type]
    told = replace(RESULT, plan=plan.number, index=index, rows_ok=facts.rows_ok, rows_bad=facts.rows_bad)
    return shard, replace(told, sha256=facts.sha256, object_bytes=facts.size)


def killed_after(here: Ledger, plan: Plan, numbers: range) -> None:
    """A run that has scored these shards and is killed."""
    run = Noting(here.store, ROOT, [plan], pytest.fail)
    for index in numbers:
        run.add(*result(here, plan, index))
        run.note_due(plan.number)
    run._report_failures(10.0)
    run._writes.close()


def notes(here: Ledger) -> list[str]:
    return [info.key for info in here.store.list(f"{ROOT}/_stint/noted")]


def test_a_plan_is_finished_from_notes_of_killed_runs_and_only_the_rest_is_read() -> None:
    here, store, plan = setup()
    everything = list(here.finish(plan))
    store.read.clear()
    killed_after(here, plan, range(6))  # four are noted
    known = KnownObjects()
    for index in (8, 9):
        known.add(*result(here, plan, index))
    assert list(here.finish(plan, known[plan.number])) == everything
    assert store.read == [f"{ROOT}/{plan.shards[index].key}" for index in (4, 5, 6, 7)]


def test_a_run_that_ends_notes_the_rest_where_it_is_worth_it() -> None:
    here, store, plan = setup()
    run = Noting(here.store, ROOT, [plan], pytest.fail)
    for index in range(6):
        run.add(*result(here, plan, index))
        run.note_due(plan.number)
    run.close()
    assert len(notes(here)) == 2
    assert all(NOTE_KEY.fullmatch(key.removeprefix(f"{ROOT}/")) for key in notes(here))
    run = Noting(here.store, ROOT, [plan], pytest.fail)
    run.add(*result(here, plan, 7))
    run.close()
    assert len(notes(here)) == 2
    here.finish(plan)
    assert store.read == [f"{ROOT}/{plan.shards[index].key}" for index in (6, 7, 8, 9)]


def test_a_note_that_is_damaged_or_of_another_claim_says_nothing() -> None:
    here, store, plan = setup()
    killed_after(here, decode_plan(1, store.get(f"{ROOT}/_stint/plans/00000001.stint")), range(4))
    (key,) = notes(here)
    stranger = replace(plan, token="another")
    killed_after(here, stranger, range(4, 8))
    store.create(f"{key.rpartition('/')[0]}/{'0' * 32}.parquet", store.get(key)[:-20])
    objects = PlanObjects(plan.number)
    recall(store, ROOT, plan, objects)
    assert np.flatnonzero(objects.unknown(10)).tolist() == [4, 5, 6, 7, 8, 9]


def test_where_a_note_and_a_result_differ_the_object_tells() -> None:
    """An object may be removed by hand, and scored again: what was noted of the former one must not be recorded."""
    here, store, plan = setup()
    everything = list(here.finish(plan))
    former, latest = Noting(here.store, ROOT, [plan], pytest.fail), KnownObjects()
    for index in range(4):
        shard, told = result(here, plan, index)
        former.add(shard, replace(told, sha256="0" * 64) if index == 2 else told)
        former.note_due(plan.number)
        latest.add(shard, told)
    former._report_failures(10.0)
    store.read.clear()
    assert list(here.finish(plan, latest[plan.number])) == everything
    assert store.read == [f"{ROOT}/{plan.shards[index].key}" for index in (2, *range(4, 10))]
    killed_after(here, plan, range(4))
    assert list(here.finish(plan)) == everything


def test_lines_that_cannot_be_true_of_the_plan_are_passed_over() -> None:
    lines = [
        DoneShard("plan=00000001/00000000.parquet", 9, 0, 0, 800, "cd" * 32),
        DoneShard("plan=00000001/00000001.parquet", 10, 0, 0, 800, "cd" * 32),
        DoneShard("plan=00000001/99999999.parquet", 10, 0, 0, 800, "cd" * 32),
    ]
    objects = PlanObjects(1)
    objects.add_noted(DoneRecord.of(lines), np.full(2, 10))
    assert np.flatnonzero(objects.unknown(2)).tolist() == [0]


def test_a_note_that_cannot_be_written_is_told_and_fails_nothing(tmp_path: Path) -> None:
    class Full(LocalStore):
        def create(self, key: str, data: bytes) -> bool:
            raise StoreError("no space left on device")

    here, _, plan = setup()
    told: list[str] = []
    run = Noting(Full(str(tmp_path)), ROOT, [plan], told.append)
    for index in range(5):
        run.add(*result(here, plan, index))
        run.note_due(plan.number)
    run.close()
    assert told == ["could not note what is done, so those objects will be read at the end: no space left on device"]
    assert np.flatnonzero(run[plan.number].unknown(10)).tolist() == [5, 6, 7, 8, 9]


def test_lines_of_a_record_come_back_as_they_were_and_those_of_other_plans_are_passed_over() -> None:
    lines = [
        DoneShard("plan=00000001/00000003.parquet", 5, 1, 4, 900, "ab" * 32, ("a", "b")),
        DoneShard("plan=00000001/00000000.parquet", 10, 0, 0, 800, "cd" * 32),
        DoneShard("plan=00000002/00000001.parquet", 10, 0, 0, 800, "cd" * 32),
    ]
    objects = PlanObjects(1)
    objects.add_noted(DoneRecord.of(lines), np.full(5, 10))
    objects.add_noted(DoneRecord.of([]), np.full(5, 10))
    assert np.flatnonzero(objects.unknown(5)).tolist() == [1, 2, 4]
    assert list(objects.record(pa.array([3, 0]).to_numpy())) == lines[:2]


def test_bad_rows_of_an_open_plan_are_looked_for_in_objects_that_may_hold_some_and_in_each_once() -> None:
    store = Counting()
    here = Ledger(store, ROOT)
    plan = claim(here, opened("a", *[10] * 10))
    assert plan is not None
    for shard in plan.shards[:9]:
        store.create(f"{ROOT}/{shard.key}", object_of(shard, bad=(0,) if shard.index < 2 else ()))
    assert Ledger(store, ROOT).failed([plan], (), []) == set()  # of a file that is not listed: not before it is whole
    assert store.read == []
    killed_after(here, plan, range(8))
    store.create(f"{ROOT}/{plan.shards[9].key}", object_of(plan.shards[9]))
    for _ in range(2):
        assert here.failed([plan], (), []) == {next(iter(plan.claimed))}
        assert sorted(store.read) == [f"{ROOT}/{plan.shards[index].key}" for index in (0, 1, 8, 9)]
