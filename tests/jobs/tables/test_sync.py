"""The output table holds exactly what readers see, whatever plans come and whoever else writes to it."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.errors import RunFailed, SpecError
from jobs.input.footers import Opened
from jobs.ledger.current import follow, followed_root
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Content, Plan
from jobs.ledger.table_files import FileStands, Standing, TablePart
from jobs.plan.sharding import Bounds, cut
from jobs.reader import place_of, predictions
from jobs.tables import sync as sync_module
from jobs.tables.editions import Edition, Editions
from jobs.tables.sync import sync
from jobs.tables.target import Portion, TableMoved
from tests.jobs.tables.memory_table import MemoryTable, Stored, places
from tests.support.fakes import object_of, opened
from workers.contract import TableOf
from workers.storage.store import LocalStore, Store

ROWS = 4
"""Of a file, in two row groups; a shard has three."""


def expected(store: Store) -> Counter[tuple[object, ...]]:
    """What readers see, by the reader."""
    root = followed_root(store)
    assert root is not None
    done = predictions(Ledger(store, root))
    found: Counter[tuple[object, ...]] = Counter()
    for file in done.files:
        part = Portion(root.removeprefix("model="), place_of(file)[0])
        found += places(part, done.superseded.seen(part.plan, pq.read_table(file)))
    return found


def of_table(says: dict[str, FileStands], new: Sequence[Opened]) -> Content:
    of = TableOf(url="s3://in", version="1", schema=b"", constants={}, copies=())
    table = TablePart(of=of, format="delta", files=says)
    return Content(cut(new, Bounds(3, 3, 2**20)).shards, table=table)


class Nights:
    """Random plans of two models, one of which is fed from a table: claimed, scored and done in any order."""

    def __init__(self, store: Store, random: Random) -> None:
        self.store, self.random = store, random
        self.files = {f"s3://in/{name}": 0 for name in "abc"}
        self.stands: dict[str, FileStands] = {}

    def ledger(self, root: str) -> Ledger:
        return Ledger(self.store, root)

    def claim(self, root: str) -> None:
        chosen = [uri for uri in self.files if self.random.random() < 0.5]
        ledger = self.ledger(root)
        content = self._of_table(chosen) if root == "model=table-1" else self._of_files(ledger, chosen)
        ledger.claim(lambda _: content)

    def _of_files(self, ledger: Ledger, chosen: list[str]) -> Content:
        claimed = {uri: version for plan in ledger.plans() for uri, version in sorted(plan.claimed)}
        supersedes = {}
        for uri in chosen:
            if self.random.random() < 0.6:
                self.files[uri] += 1
            if uri in claimed:
                supersedes[uri] = claimed[uri]  # its own version: afresh
        one = [opened(uri, ROWS // 2, ROWS // 2, version=f"v{self.files[uri]}") for uri in chosen]
        content = cut(one, Bounds(3, 3, 2**20))
        return Content(content.shards, supersedes=supersedes)

    def _of_table(self, chosen: list[str]) -> Content:
        """New files, and others of which rows go, come back, or all are out."""
        says, new = {}, []
        for uri in chosen:
            deleted = np.array(sorted(self.random.sample(range(ROWS), self.random.randrange(ROWS))), np.int64)
            out = uri in self.stands and self.random.random() < 0.3
            says[uri] = FileStands(Standing.OUT if out else Standing.LIVE, deleted, group_rows=(ROWS // 2, ROWS // 2))
            if uri not in self.stands:
                new.append(opened(uri, ROWS // 2, ROWS // 2, version="table"))
        self.stands |= says
        return of_table(says, new)

    def finish(self, ledger: Ledger, plan: Plan) -> None:
        for shard in plan.shards:
            self.store.create(f"{ledger.root}/{shard.key}", object_of(shard))
        ledger.record_done(plan, ledger.finish(plan))

    def open_plans(self, ledger: Ledger) -> list[Plan]:
        done = ledger.done_numbers()
        return [plan for plan in ledger.plans() if plan.number not in done]


@pytest.mark.parametrize("seed", range(25))
def test_the_table_holds_what_readers_see_whatever_comes(seed: int, tmp_path: Path) -> None:
    random, store, stored = Random(seed), LocalStore(str(tmp_path)), Stored()
    nights = Nights(store, random)
    roots = ["model=net-1", "model=table-1"]
    follow(store, random.choice(roots))
    shown = 0
    for _ in range(14):
        root = random.choice(roots)
        ledger = nights.ledger(root)
        match random.randrange(8):
            case 0 | 1 | 2:
                nights.claim(root)
                if random.random() < 0.7:
                    nights.finish(ledger, nights.open_plans(ledger)[-1])
            case 3:
                for plan in nights.open_plans(ledger)[:1]:
                    nights.finish(ledger, plan)
            case 4 if ledger.done_numbers():
                follow(store, root)
            case 5:
                stored.compact()
            case _:
                moved = [stored.compact] * random.randrange(3)
                table = MemoryTable(stored, before=lambda moved=moved: moved.pop()() if moved else None)
                if sync(store, table, "the table") is not None:
                    assert stored.rows() == expected(store)
                    shown += 1
    if (synced := sync(store, MemoryTable(stored), "the table")) is not None:
        assert stored.rows() == expected(store)
        before = stored.commits
        assert sync(store, MemoryTable(stored), "the table") == replace(synced, rows=0, changed=0)
        assert stored.commits == before  # nothing new is no commit


ROOT = "model=net-1"


def night(store: Store, *names: str, root: str = ROOT) -> Plan:
    """A plan that is done, of new files."""
    ledger = Ledger(store, root)
    plan = ledger.claim(lambda _: cut([opened(f"s3://in/{name}", 3) for name in names], Bounds(3, 3, 2**20)))
    assert plan is not None
    Nights(store, Random(0)).finish(ledger, plan)
    return plan


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return LocalStore(str(tmp_path))


def test_rows_that_came_back_and_went_again_between_two_looks_are_not_shown(store: Store) -> None:
    ledger, stored, nights = Ledger(store, "model=table-1"), Stored(), Nights(store, Random(0))
    file = opened("s3://in/a", ROWS // 2, ROWS // 2, version="table")

    def night(deleted: list[int], *new: Opened) -> None:
        stands = FileStands(Standing.LIVE, np.array(deleted, np.int64), group_rows=(ROWS // 2, ROWS // 2))
        plan = ledger.claim(lambda _: of_table({"s3://in/a": stands}, new))
        assert plan is not None
        nights.finish(ledger, plan)

    night([1], file)
    sync(store, MemoryTable(stored), "t")
    night([], file)
    night([1])
    sync(store, MemoryTable(stored), "t")
    assert stored.rows() == expected(store)


def test_two_runs_that_add_the_same_plan_add_it_once(store: Store) -> None:
    night(store, "a", "b")
    stored = Stored()
    both = threading.Barrier(2)

    def meet() -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(5)

    runs = [threading.Thread(target=sync, args=(store, MemoryTable(stored, before=meet), "t")) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(30)
    assert stored.rows() == expected(store)
    assert stored.commits == 1


def test_an_answer_that_is_lost_adds_nothing_twice(store: Store) -> None:
    night(store, "a")
    stored = Stored()

    class Loses(MemoryTable):
        def commit(self, *given: Any) -> None:
            super().commit(*given)
            raise TableMoved

    assert sync(store, Loses(stored), "t") is not None
    assert (stored.rows(), stored.commits) == (expected(store), 1)


def test_a_table_never_goes_back_to_what_an_older_look_at_the_ledger_saw(store: Store) -> None:
    night(store, "a")
    stored = Stored()

    class OvertakenWhileItLooks(MemoryTable):
        def read(self) -> int:
            if not stored.commits:
                night(store, "b")
                sync(store, MemoryTable(stored), "t")
            return super().read()

    sync(store, OvertakenWhileItLooks(stored), "t")
    assert (stored.rows(), stored.commits) == (expected(store), 1)


def test_a_run_that_dies_before_its_commit_leaves_it_to_the_next(store: Store) -> None:
    night(store, "a")
    stored = Stored()

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sync(store, MemoryTable(stored, before=die), "t")
    night(store, "b")
    assert sync(store, MemoryTable(stored), "t") is not None
    assert (stored.rows(), stored.commits) == (expected(store), 1)


def test_a_table_that_others_keep_changing_is_told_and_the_next_run_brings_it_up(store: Store) -> None:
    night(store, "a")
    stored = Stored()
    with pytest.raises(RunFailed, match="was changed by others 20 times") as raised:
        sync(store, MemoryTable(stored, before=stored.compact), "t")
    assert "stint table sync" in raised.value.next_step
    sync(store, MemoryTable(stored), "t")
    assert stored.rows() == expected(store)


def test_a_table_of_another_output_is_refused_and_left_as_it_is(store: Store, tmp_path: Path) -> None:
    night(store, "a")
    stored = Stored()
    sync(store, MemoryTable(stored), "t")
    other = LocalStore(str(tmp_path / "other"))
    night(other, "b")
    before = stored.rows()
    with pytest.raises(SpecError, match="holds predictions of another output"):
        sync(other, MemoryTable(stored), "t")
    assert stored.rows() == before


def test_an_output_of_many_nights_is_brought_up_in_several_commits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcde":
        night(store, name, f"{name}-2")
    monkeypatch.setattr(sync_module, "MOST_FILES", 5)
    stored = Stored()
    synced = sync(store, MemoryTable(stored), "t")
    assert synced is not None
    assert (synced.plans, synced.rows, stored.commits) == (5, 30, 3)
    assert stored.rows() == expected(store)


def test_a_promotion_is_one_commit(store: Store) -> None:
    night(store, "a")
    stored = Stored()
    sync(store, MemoryTable(stored), "t")
    night(store, "a", "b", root="model=net-2")
    follow(store, "model=net-2")
    sync(store, MemoryTable(stored), "t")
    assert (stored.rows(), stored.commits) == (expected(store), 2)
    assert {row[0] for row in stored.rows()} == {"net-2"}


def test_an_output_without_a_done_plan_has_no_table(store: Store) -> None:
    assert sync(store, MemoryTable(Stored()), "t") is None


def test_an_edition_is_recorded_once_and_read_as_it_was(store: Store) -> None:
    one, two = Edition(ROOT, frozenset({1, 2, 3, 7})), Edition(ROOT, frozenset({1, 2, 3, 7, 8}))
    stale = Editions(store)
    first = Editions(store).record(one)
    assert first is not None
    assert stale.record(two) is None  # another run was first
    assert Editions(store).record(one) == first
    assert Editions(store).record(two) == first + 1
    editions = Editions(store)
    assert (editions.get(first), editions.get(first + 1)) == (one, two)
    assert editions.get(first + 2) is None
    assert editions.get(first - 1) is None


def test_a_damaged_edition_is_named(store: Store) -> None:
    store.create("_stint/editions/00000001.json", b"{}")
    with pytest.raises(RunFailed, match=r"_stint/editions/00000001.json is damaged"):
        Editions(store)
