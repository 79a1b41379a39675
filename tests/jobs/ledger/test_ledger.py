"""Plans and done records: each source claimed once, boundaries pinned, whoever comes first."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import RunFailed
from jobs.input.footers import Opened
from jobs.ledger.done import DoneRecord
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import BOOK, EARLIER_BOOK, Content, Plan, Source, decode_plan, encode_plan
from jobs.plan.claims import next_claim
from jobs.plan.sharding import Bounds, cut
from jobs.run.backlog import Backlog
from jobs.spec.schema import Limits
from tests.support.fakes import MemoryStore, object_of, opened
from workers.output import NotOurs

ROOT = "model=net-0123"


def by_ten(sources: Sequence[Opened]) -> Content:
    return cut(sources, Bounds(10, 10, 2**20))


def ledger() -> Ledger:
    return Ledger(MemoryStore(), ROOT)


def claim(here: Ledger, *sources: Opened) -> Plan | None:
    def content(plans: Sequence[Plan]) -> Content | None:
        now = next_claim([o.source for o in sources], plans, (), rescore=True)
        new = [o for o in sources if o.source in now.new]
        return replace(by_ten(new), supersedes=now.supersedes) if new else None

    return here.claim(content)


def test_a_plan_comes_back_from_its_bytes_as_it_was_made() -> None:
    keys = pa.schema([("id", pa.int64())])
    made = by_ten([opened("a", 10, 5), opened("empty"), opened("b", 5)])
    plan = decode_plan(3, encode_plan(replace(made, keys=keys), "token"))
    assert [shard.slices for shard in plan.shards] == list(made.shards)
    assert [shard.key for shard in plan.shards] == ["plan=00000003/00000000.parquet", "plan=00000003/00000001.parquet"]
    assert plan.claimed == {("a", "v1"), ("b", "v1"), ("empty", "v1")}
    assert (plan.rows, plan.token, plan.keys) == (20, "token", keys)


@pytest.mark.parametrize("book", [BOOK, EARLIER_BOOK])
def test_a_root_goes_on_with_the_names_that_it_began_with(book: str) -> None:
    here = ledger()
    first = here.claim(lambda plans: by_ten([opened("a", 10)]), lambda: book)
    assert first is not None
    later = Ledger(here.store, ROOT)
    assert claim(later, opened("a", 10), opened("b", 10)) is not None  # whatever it would begin a root with
    later.record_done(first, DoneRecord.of([]))
    found = {info.key.removeprefix(f"{ROOT}/_stint/") for info in here.store.list(f"{ROOT}/_stint")}
    assert found == {f"plans/00000001{book}", f"plans/00000002{book}", f"done/00000001{book}"}
    assert later.keys_of(2) == (f"_stint/plans/00000002{book}", f"_stint/done/00000002{book}")
    assert Ledger(here.store, ROOT).done_numbers() == {1}
    assert len(Ledger(here.store, ROOT).read_done(1)) == 0


@pytest.mark.parametrize("other", ["00000001.parquet", "00000002.parquet", "00000002.later"])
def test_names_that_are_not_of_one_kind_end_a_command_before_anything_is_claimed(other: str) -> None:
    here = ledger()
    assert claim(here, opened("a", 10)) is not None
    here.store.create(f"{ROOT}/_stint/plans/{other}", b"")
    for reader in (here, Ledger(here.store, ROOT)):
        with pytest.raises(RunFailed, match=rf"names are to end alike, there are .*{other}"):
            claim(reader, opened("b", 10))


def test_what_a_desktop_leaves_among_the_plans_is_none() -> None:
    here = ledger()
    assert claim(here, opened("a", 10)) is not None
    for stray in (".DS_Store", "._00000001.stint", "notes.txt"):
        here.store.create(f"{ROOT}/_stint/plans/{stray}", b"")
    assert claim(Ledger(here.store, ROOT), opened("b", 10)) is not None


def test_a_source_is_claimed_once_and_a_new_version_of_it_again() -> None:
    here = ledger()
    first = claim(here, opened("a", 5))
    again = claim(here, opened("a", 5))
    changed = claim(here, opened("a", 5, version="v2"), opened("b", 5))
    assert first is not None
    assert again is None
    assert changed is not None
    assert changed.number == 2
    assert changed.claimed == {("a", "v2"), ("b", "v1")}


def test_sources_of_no_rows_are_claimed_too_so_that_they_are_not_opened_every_night() -> None:
    here = ledger()
    plan = claim(here, opened("empty"))
    assert plan is not None
    assert not plan.shards
    assert claim(here, opened("empty")) is None


def test_planners_that_race_claim_every_source_exactly_once() -> None:
    here = ledger()
    views = [[opened(f"s{i}", 3) for i in range(start, start + 6)] for start in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda view: claim(here, *view), views))
    claimed = [identity for plan in here.plans() for identity in plan.claimed]
    assert len(claimed) == len(set(claimed)) == 13
    assert [plan.number for plan in here.plans()] == list(range(1, len(here.plans()) + 1))


def test_missing_is_what_has_no_object_yet() -> None:
    here = ledger()
    plan = claim(here, opened("a", 10, 10, 10))
    assert plan is not None
    here.store.create(f"{ROOT}/{plan.shards[1].key}", b"there")
    assert list(here.missing(plan)) == [plan.shards[0], plan.shards[2]]


def test_what_is_missing_of_several_plans_is_made_when_it_is_asked_for_in_any_order() -> None:
    here = ledger()
    plans = [claim(here, opened(name, *[10] * shards)) for name, shards in (("a", 3), ("b", 1), ("c", 4))]
    first, whole, last = (plan for plan in plans if plan is not None)
    for shard in (first.shards[1], whole.shards[0], last.shards[0]):
        here.store.create(f"{ROOT}/{shard.key}", object_of(shard))
    missing = here.missing(first, whole, last)
    shards = [first.shards[0], first.shards[2], *last.shards[1:]]
    assert list(missing) == shards
    assert (len(missing), missing.rows) == (5, 50)
    for begin in range(5):
        turned = np.roll(np.arange(5), -begin)
        assert list(missing.picked(turned)) == shards[begin:] + shards[:begin]
        backlog = Backlog(missing, {}, Limits(), begin=begin, now=0.0)
        taken = [backlog.take(1, held=0, ready={1: "here"}, starting=False, now=0.0) for _ in shards]
        assert [it[0] for it in taken if it] == shards[begin:] + shards[:begin]
        assert (backlog.rows_left, set(backlog.plans)) == (50, {1, 3})
        assert backlog.drop([shards[0].key]) == (0, 0), "a worker has it"
        assert all(backlog.settle(shard.key) for shard in shards)
        assert (backlog.rows_left, set(backlog.plans), backlog.waiting) == (0, set(), 0)
    assert missing[4] == shards[4]
    assert not here.missing(whole)
    assert not here.missing()


def test_the_done_record_lists_every_object_with_rows_and_digest_read_back_where_unknown() -> None:
    here = ledger()
    plan = claim(here, opened("a", 10, 10))
    assert plan is not None
    for shard in plan.shards:
        here.store.create(f"{ROOT}/{shard.key}", object_of(shard, bad=(0,)))
    objects = here.finish(plan)
    here.record_done(plan, objects)
    here.record_done(plan, DoneRecord.of(()))  # a second record, by a run that came later, changes nothing
    assert here.done_numbers() == {1}
    assert list(here.read_done(1)) == list(objects)
    assert [(o.rows_ok, o.rows_bad) for o in objects] == [(9, 1), (9, 1)]


def test_an_object_that_stint_did_not_write_does_not_become_part_of_a_done_record() -> None:
    here = ledger()
    plan = claim(here, opened("a", 10))
    assert plan is not None
    here.store.create(f"{ROOT}/{plan.shards[0].key}", b"PAR1 not really")
    with pytest.raises(NotOurs):
        here.finish(plan)


def test_a_plan_that_lacks_a_shard_is_damaged() -> None:
    here = ledger()
    plan = claim(here, opened("a", 10, 10, 10))
    assert plan is not None
    rows = pq.read_table(pa.BufferReader(here.store.get(f"{ROOT}/_stint/plans/00000001.stint")))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.concat_tables([rows.slice(0, 1), rows.slice(2)]), sink, write_page_checksum=True)
    other = ledger()
    other.store.create(f"{ROOT}/_stint/plans/00000001.stint", sink.getvalue().to_pybytes())
    with pytest.raises(RunFailed, match=r"00000001\.stint is damaged: its shards are not numbered"):
        other.plans()


def test_what_became_of_files_that_a_run_does_not_look_at_costs_it_nothing() -> None:
    """An open plan of a day outside of the window: its objects are not read to find out which rows are lost."""
    here = ledger()
    plan = claim(here, opened("a", 10, 10), opened("b", 10))
    assert plan is not None
    here.store.create(f"{ROOT}/{plan.shards[0].key}", b"not to be read")
    assert here.lost([plan], set(), [Source("c", 1, "v1")]) == set()
    with pytest.raises(NotOurs):
        here.lost([plan], set(), [Source("a", 1, "v2")])
    assert here.lost([plan], set(), [Source("b", 1, "v2")]) == set(plan.shards[2].slices)
