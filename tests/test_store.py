"""The store contract: one winner a key, whatever is behind it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from tests.fakes import MemoryStore
from workers.filesystems import open_filesystem, version_of
from workers.storage_errors import NotFound, StoreDenied, StoreError
from workers.store import LocalStore, ObjectStore, Store, open_store, probe

RACES = 20
WRITERS = 8


@pytest.fixture(params=["memory", "local", pytest.param("s3", marks=pytest.mark.objectstore)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "local":
        return open_store(str(tmp_path / "out"))
    return open_store(request.getfixturevalue("s3") + "/out")


def test_created_bytes_are_read_back_and_a_second_create_changes_nothing(store: Store) -> None:
    assert store.create("a/b.bin", b"first")
    assert not store.create("a/b.bin", b"second")
    assert store.get("a/b.bin") == b"first"


def test_of_many_writers_of_one_key_exactly_one_wins_and_its_bytes_stay(store: Store) -> None:
    for race in range(RACES):
        barrier = threading.Barrier(WRITERS)

        def write(writer: int, key: str = f"race/{race}", barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return store.create(key, f"writer {writer}".encode())

        with ThreadPoolExecutor(WRITERS) as pool:
            won = list(pool.map(write, range(WRITERS)))
        assert won.count(True) == 1
        assert store.get(f"race/{race}") == f"writer {won.index(True)}".encode()


def test_list_gives_every_object_below_a_folder_and_nothing_beside_it(store: Store) -> None:
    for key in ("plan=1/b", "plan=1/a", "plan=1/deep/c", "plan=10/x"):
        store.create(key, b"12345")
    found = list(store.list("plan=1"))
    assert [info.key for info in found] == ["plan=1/a", "plan=1/b", "plan=1/deep/c"]
    assert {info.size for info in found} == {5}
    assert list(store.list("nothing")) == []


def test_a_missing_key_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        store.get("no/such/key")


def test_probe_accepts_a_store_that_keeps_its_word(store: Store) -> None:
    probe(store)


class LyingStore(MemoryStore):
    """Accepts every create, as some S3 look-alikes do."""

    def create(self, key: str, data: bytes) -> bool:
        self._objects[key] = data
        return True


def test_probe_refuses_a_store_that_accepts_a_second_create() -> None:
    with pytest.raises(StoreDenied, match=r"accepted a second create.*single_writer"):
        probe(LyingStore())


def test_a_scheme_without_conditional_writes_is_refused_unless_the_spec_promises_a_single_writer() -> None:
    with pytest.raises(StoreDenied, match=r"memory://.*create-if-absent.*single_writer: true"):
        open_store("memory://somewhere")
    lone = open_store("memory://somewhere", single_writer=True)
    assert lone.create("k", b"1")
    assert not lone.create("k", b"2")
    assert lone.get("k") == b"1"


def test_an_unwritable_folder_is_denied_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreDenied, match=r"cannot write .*file/out"):
        LocalStore(str(tmp_path / "file" / "out")).create("k", b"1")


@pytest.mark.objectstore
def test_a_bucket_that_does_not_exist_is_denied_by_name(s3: str) -> None:
    with pytest.raises(StoreDenied, match="no-such-bucket-here"):
        open_store("s3://no-such-bucket-here/x").create("k", b"1")


def test_local_store_leaves_no_temporary_file_behind(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.create("a", b"1")
    store.create("a", b"2")
    assert [p.name for p in (tmp_path / "_stint" / "tmp").iterdir()] == []


# ------------------------------------------------------------- outcomes that do not say what happened


class Flaky:
    """A file system whose PUT does `behave(path, data)`, over a dictionary."""

    def __init__(self, behave: Callable[[Flaky, str, bytes], None]) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts = 0
        self._behave = behave

    def pipe_file(self, path: str, data: bytes, **_: object) -> None:
        self.puts += 1
        self._behave(self, path, data)

    def cat_file(self, path: str) -> bytes:
        try:
            return self.objects[path]
        except KeyError:
            raise FileNotFoundError(path) from None


def _object_store(fs: Flaky) -> ObjectStore:
    return ObjectStore("s3://bucket", fs, "bucket", single_writer=False)


def test_a_lost_acknowledgement_is_recognised_as_our_own_win(monkeypatch: pytest.MonkeyPatch) -> None:
    def applied_then_exists(fs: Flaky, path: str, data: bytes) -> None:
        fs.objects[path] = data
        raise FileExistsError(path)  # what the library's own retry of a lost answer comes back with

    assert _object_store(Flaky(applied_then_exists)).create("k", b"mine")


def test_a_lost_race_is_recognised_as_the_other_writers(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(fs: Flaky, path: str, data: bytes) -> None:
        fs.objects[path] = b"theirs"
        raise OSError(22, "PreconditionFailed")

    assert not _object_store(Flaky(lost)).create("k", b"mine")


def test_a_write_that_vanished_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.retries.sleep", lambda seconds: None)

    def reset_twice(fs: Flaky, path: str, data: bytes) -> None:
        if fs.puts <= 2:
            raise ConnectionResetError("reset by peer")
        fs.objects[path] = data

    fs = Flaky(reset_twice)
    assert _object_store(fs).create("k", b"mine")
    assert fs.puts == 3


def test_an_unreachable_server_is_a_fault_and_missing_credentials_are_a_refusal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither of botocore's errors is an OSError."""
    monkeypatch.setattr("workers.retries.sleep", lambda seconds: None)

    def store_that_raises(error: Exception) -> ObjectStore:
        def fail(*_: object, **__: object) -> None:
            raise error

        fs = Flaky(fail)
        monkeypatch.setattr(fs, "cat_file", fail)
        return _object_store(fs)

    unreachable = store_that_raises(EndpointConnectionError(endpoint_url="http://127.0.0.1:1"))
    refused = store_that_raises(NoCredentialsError())
    for call in (lambda store: store.create("k", b"1"), lambda store: store.get("k")):
        with pytest.raises(StoreError, match="Could not connect"):
            call(unreachable)
        with pytest.raises(StoreDenied, match="Unable to locate credentials"):
            call(refused)


def test_an_error_that_is_not_storages_goes_up_as_it_is() -> None:
    def bug(fs: Flaky, path: str, data: bytes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _object_store(Flaky(bug)).create("k", b"1")


def test_the_version_of_a_local_file_changes_with_its_content(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    fs, path = open_filesystem(str(file))
    before = version_of(fs.info(path))
    file.write_bytes(b"two!")
    assert version_of(fs.info(path)) != before
