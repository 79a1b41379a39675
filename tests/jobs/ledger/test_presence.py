"""Which shards have an object: listed in parts where there are many, and no part again that is whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

from jobs.ledger.presence import PART, PARTS_TOGETHER, PlanListing, Present
from tests.support.fakes import MemoryStore
from workers.contract import Shard, shard_key
from workers.storage.lookahead import AT_ONCE
from workers.storage.store import ObjectInfo, ObjectStore

ROOT = "model=net-0123"
SHARDS = 40 * PART + 7


class Paged(MemoryStore):
    """Lists just the parts that it is asked for, and keeps account of them."""

    def __init__(self, there: Iterable[int]) -> None:
        super().__init__()
        self.there = set(there)
        self.asked: list[str] = []

    def list(self, prefix: str, parts: Sequence[str] = ()) -> Iterator[ObjectInfo]:
        assert prefix == f"{ROOT}/plan=00000003"
        self.asked += parts or ["everything"]
        for index in sorted(self.there):
            if not parts or f"{index:08d}".startswith(tuple(parts)):
                yield ObjectInfo(f"{ROOT}/{shard_key(3, index)}", 1, "v")


def look(store: MemoryStore, shards: int = SHARDS) -> PlanListing:
    return PlanListing(store, ROOT, 3, shards)


def test_a_large_folder_is_listed_in_parts_of_one_page_each() -> None:
    store = Paged(range(0, SHARDS, 2))
    bits = look(store).present()
    assert bits.nonzero()[0].tolist() == list(range(0, SHARDS, 2))
    assert store.asked == [f"{part:05d}" for part in range(41)]


def test_a_small_folder_takes_one_listing_and_is_always_listed() -> None:
    store = Paged(range(PART))
    here = look(store, PART)
    assert here.present().all()
    store.there.add(PART)  # a stray
    assert len(here.present()) == PART
    assert store.asked == ["everything"]
    assert look(Paged([]), 0).whole()


def test_parts_that_were_whole_are_not_listed_again() -> None:
    store = Paged(set(range(SHARDS)) - {5, 17_500})
    here = look(store)
    assert here.present().sum() == SHARDS - 2
    store.asked.clear()
    store.there.add(5)
    assert here.present().sum() == SHARDS - 1
    assert store.asked == ["00000", "00017"]
    store.asked.clear()
    assert not here.whole()
    assert store.asked == ["00017"]


def test_whether_a_plan_is_whole_takes_no_more_requests_than_it_must() -> None:
    store = Paged(set(range(SHARDS)) - {1_999, 39_000})
    assert not look(store).whole()
    assert len(store.asked) == PARTS_TOGETHER
    store = Paged(range(SHARDS))
    assert look(store).whole()
    assert len(store.asked) == 41


def test_what_is_seen_is_a_copy() -> None:
    here = look(Paged([1]), 3)
    here.present()[:] = True
    assert here.present().tolist() == [False, True, False]


def test_keys_that_are_there_are_told_from_others() -> None:
    present = Present({1: look(Paged([0, 2]), 3).present(), 4: look(Paged([]), 2).present()})
    shard = Shard(plan=1, plan_token="t", index=2, slices=())
    assert shard.key in present
    assert list(present) == ["plan=00000001/00000000.parquet", "plan=00000001/00000002.parquet"]
    assert len(present) == 2
    for other in ("plan=00000001/00000001.parquet", "plan=00000001/00000003.parquet", "plan=00000002/00000000.parquet",
                  "plan=00000001/000000002.parquet", "plan=00000001/00000002.parquet.bak", "x", 2):  # fmt: skip
        assert other not in present


class Fs:
    """An object store's file system, as far as it lists."""

    def __init__(self) -> None:
        self.prefixes: list[str] = []

    def find(self, folder: str, *, detail: bool, prefix: str = "") -> dict[str, Any]:
        assert detail
        self.prefixes.append(prefix)
        return {f"{folder}/{prefix}.parquet": {"size": 1, "ETag": "e"}}


@pytest.mark.parametrize(("scheme", "asked"), [("s3", 100), ("gs", 100), ("abfs", 100), ("sftp", 1)])
def test_object_stores_list_parts_by_prefix_and_others_the_folder(scheme: str, asked: int) -> None:
    fs = Fs()
    store = ObjectStore(f"{scheme}://bucket/out", fs, "bucket/out", single_writer=True)
    parts = [f"{part:05d}" for part in range(100)]
    keys = [info.key for info in store.list("plan=1", parts)]
    assert len(fs.prefixes) == asked
    if asked > 1:
        assert keys == [f"plan=1/{part}.parquet" for part in parts]


def test_a_listing_that_nobody_reads_to_its_end_asks_for_few_parts() -> None:
    fs = Fs()
    found = ObjectStore("s3://bucket/out", fs, "bucket/out", single_writer=True).list(
        "plan=1", [f"{part:05d}" for part in range(10_000)]
    )
    next(found)
    found.close()
    assert len(fs.prefixes) <= 4 * AT_ONCE
