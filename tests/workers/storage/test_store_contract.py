"""The store's contract, on the local disk and on real object stores: one winner a key, whole objects, whole lists."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.objectstore import packages
from tests.objectstore.backends import S3, Backend, reach, versions
from tests.objectstore.ceph import KEY_ID, SECRET, Gateway
from tests.support.fakes import MemoryStore
from workers.storage.errors import NotFound, StoreDenied
from workers.storage.store import LocalStore, Store, open_store, probe

RACES = 100
WRITERS = 6
PROCESSES = 4
LARGE_BYTES = 110 * 2**20
"""Above 100 MiB, where s3fs by itself would send parts, and 64 MiB, where Azure's library does."""

SLOW_MARKS = (pytest.mark.objectstore, pytest.mark.slow)
MINISTACK = pytest.param("ministack", marks=pytest.mark.objectstore)
SLOW_MINISTACK = pytest.param("ministack", marks=SLOW_MARKS)
SLOW = [pytest.param(name, marks=SLOW_MARKS) for name in ("rados", "azurite")]


@pytest.fixture
def url(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the store of the test's parameter keeps a new output. Indirect: each test says which stores it is for."""
    if request.param == "local":
        return str(request.getfixturevalue("tmp_path") / "out")
    backend: Backend = request.getfixturevalue(request.param)
    reach(backend, backend.port, monkeypatch)
    return f"{backend.new_bucket()}/out"


@pytest.fixture
def store(url: str) -> Store:
    return open_store(url)


on_every_store = pytest.mark.parametrize("url", ["local", MINISTACK, *SLOW], indirect=True)
on_remote_stores = pytest.mark.parametrize("url", [MINISTACK, *SLOW], indirect=True)
with_processes = pytest.mark.parametrize("url", ["local", SLOW_MINISTACK, *SLOW], indirect=True)
on_remote_stores_with_patience = pytest.mark.parametrize("url", [SLOW_MINISTACK, *SLOW], indirect=True)


@on_every_store
def test_created_bytes_are_read_back_and_a_second_create_changes_nothing(store: Store) -> None:
    assert store.create("a/b.bin", b"first")
    before = list(store.list("a"))
    assert not store.create("a/b.bin", b"second")
    assert store.get("a/b.bin") == b"first"
    assert list(store.list("a")) == before


@on_every_store
def test_of_a_large_folder_the_parts_that_are_asked_for_are_listed_and_elsewhere_nothing(store: Store) -> None:
    keys = [f"run/{number:08d}.parquet" for number in (0, 999, 1000, 1999, 2000, 40_000)]
    for key in keys:
        store.create(key, b"x")
    store.create("run-00001/00001000.parquet", b"x")
    found = [info.key for info in store.list("run", ["00001", "00007", "00040"])]
    # A store that has no pages may list the whole folder.
    assert found == (keys if isinstance(store, LocalStore) else [keys[2], keys[3], keys[5]])
    assert list(store.list("absent", ["00000", "00001"])) == []


@on_every_store
def test_an_empty_object_is_an_object(store: Store) -> None:
    assert store.create("empty", b"")
    assert not store.create("empty", b"second")
    assert store.get("empty") == b""


@pytest.mark.parametrize(
    ("url", "races"),
    [
        ("local", RACES),
        pytest.param("ministack", RACES // 5, marks=pytest.mark.objectstore),
        *(pytest.param(name, RACES, marks=SLOW_MARKS) for name in ("ministack", "rados", "azurite")),
    ],
    indirect=["url"],
)
def test_of_many_writers_of_one_key_exactly_one_wins_and_its_bytes_stay(url: str, races: int) -> None:
    stores = [open_store(url) for _ in range(WRITERS)]
    barrier = threading.Barrier(WRITERS, timeout=60)

    def write(writer: int) -> list[bool]:
        won = []
        for race in range(races):
            barrier.wait()
            won.append(stores[writer].create(f"race/{race}", f"writer {writer}".encode()))
        return won

    with ThreadPoolExecutor(WRITERS) as pool:
        outcomes = list(zip(*pool.map(write, range(WRITERS)), strict=True))
    assert [won.count(True) for won in outcomes] == [1] * races
    for race, won in enumerate(outcomes):
        assert stores[0].get(f"race/{race}") == f"writer {won.index(True)}".encode()


@with_processes
def test_of_many_processes_that_write_one_key_exactly_one_wins(url: str) -> None:
    with racers(url) as processes:
        for race in range(RACES // 2):
            for process in processes:
                print(f"race/{race}", file=process.stdin, flush=True)
            won = [process.stdout.readline() == "True\n" for process in processes]
            assert won.count(True) == 1
            assert open_store(url).get(f"race/{race}") == f"racer {won.index(True)}".encode()


@contextmanager
def racers(url: str) -> Iterator[list[subprocess.Popen[str]]]:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.objectstore.racer", url, f"racer {number}"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                )
            )
            for number in range(PROCESSES)
        ]  # fmt: skip
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        yield processes  # leaving closes stdin, which ends them


@on_every_store
def test_list_gives_every_object_below_a_folder_at_once_and_nothing_beside_it(store: Store) -> None:
    for key in ("plan=1/b", "plan=1/a", "plan=1/deep/c", "plan=10/x"):
        store.create(key, b"12345")
        assert key in [info.key for info in store.list(key.split("/")[0])]
    found = list(store.list("plan=1"))
    assert [info.key for info in found] == ["plan=1/a", "plan=1/b", "plan=1/deep/c"]
    assert {info.size for info in found} == {5}
    assert len(list(store.list(""))) == 4
    assert list(store.list("nothing")) == []


@pytest.mark.parametrize("url", [SLOW_MINISTACK, SLOW[0]], indirect=True)
def test_a_list_of_more_than_a_page_is_whole(store: Store) -> None:
    """S3's pages hold 1,000 keys."""
    keys = [f"plan=1/{number:08d}" for number in range(1100)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda key: store.create(key, b"x"), keys))
    assert [info.key for info in store.list("plan=1")] == keys


@on_every_store
def test_a_folder_may_have_any_name(url: str) -> None:
    store = open_store(f"{url}/Bücher & 100 %+")
    assert store.create("plan=1/a b", b"1")
    assert not store.create("plan=1/a b", b"2")
    assert store.get("plan=1/a b") == b"1"
    assert [info.key for info in store.list("plan=1")] == ["plan=1/a b"]


@on_every_store
def test_a_missing_key_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.get("no/such/key")


@on_remote_stores
def test_a_bucket_that_does_not_exist_is_denied_by_name(url: str) -> None:
    scheme = url.split("://")[0]
    with pytest.raises(StoreDenied, match="no-such-bucket-here"):
        open_store(f"{scheme}://no-such-bucket-here/x").create("k", b"1")


@on_every_store
def test_probe_accepts_a_store_that_keeps_its_word(store: Store) -> None:
    probe(store)
    probe(store)


@on_remote_stores_with_patience
def test_of_two_large_objects_one_is_there_and_whole(url: str) -> None:
    """As one conditional request, or as parts that do not mix and of which one set is committed."""
    stores = [open_store(url) for _ in range(2)]
    data = [os.urandom(LARGE_BYTES) for _ in stores]
    with ThreadPoolExecutor(2) as pool:
        won = list(pool.map(lambda store, mine: store.create("large", mine), stores, data))
    assert won.count(True) == 1
    there = stores[0].get("large")
    assert hashlib.sha256(there).digest() == hashlib.sha256(data[won.index(True)]).digest()
    assert [info.size for info in stores[0].list("")] == [LARGE_BYTES]


# ---------------------------------------------------------------------------- stores that do not keep it


class LyingStore(MemoryStore):
    """Accepts every create, as some S3 look-alikes do."""

    def create(self, key: str, data: bytes) -> bool:
        self._objects[key] = data
        return True


def test_probe_refuses_a_store_that_accepts_a_second_create() -> None:
    with pytest.raises(StoreDenied, match=r"accepted a second create.*single_writer"):
        probe(LyingStore())


@pytest.mark.objectstore
def test_probe_refuses_a_server_that_ignores_the_condition(lying_store: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    reach(lying_store, lying_store.port, monkeypatch)
    with pytest.raises(StoreDenied, match=r"accepted a second create.*single_writer"):
        probe(open_store(f"{lying_store.new_bucket()}/out"))


@pytest.mark.objectstore
@pytest.mark.slow
def test_probe_refuses_a_bucket_of_ceph_with_versioning(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Release 16 keeps the condition in plain buckets only: with versioning, each writer makes a version and "wins"."""
    if "version 16." not in gateway.ceph.run(gateway.ceph.program("radosgw"), "--version"):
        pytest.skip("this is another release of Ceph")
    versioned = S3("ceph", gateway.port, KEY_ID, SECRET, versioned=True)
    reach(versioned, gateway.port, monkeypatch)
    bucket = versioned.new_bucket()
    with pytest.raises(StoreDenied, match=r"accepted a second create.*single_writer"):
        probe(open_store(f"{bucket}/out"))
    assert max(versions(bucket).values()) > 1


# ------------------------------------------------------------------------------ stores that cannot be had


def test_a_store_whose_packages_cannot_be_had_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch() -> Path:
        raise packages.Unavailable("there is no npm")

    monkeypatch.delenv("STINT_STORES", raising=False)
    with pytest.raises(pytest.skip.Exception, match="there is no npm"):
        packages.needed(fetch)
    monkeypatch.setenv("STINT_STORES", "required")
    with pytest.raises(packages.Unavailable, match="there is no npm"):
        packages.needed(fetch)
