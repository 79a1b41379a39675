"""Stores without a server: what is refused, faults of the local disk, and outcomes that do not say what happened."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from tests.workers.storage.test_retries import Clock, throttled
from workers.storage import retries
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem, version_of
from workers.storage.store import LocalStore, ObjectStore, open_store


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


# ------------------------------------------------------------------------------------ the local disk


def test_local_store_leaves_no_temporary_file_behind(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    store.create("a", b"1")
    store.create("a", b"2")
    assert [p.name for p in (tmp_path / "_stint" / "tmp").iterdir()] == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_local_write_that_fails_is_a_storage_fault_and_leaves_nothing(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(str(tmp_path))

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", fail)
        with pytest.raises(StoreError, match=os.strerror(number)):
            store.create("plan=1/a", b"1")
    assert list(store.list("")) == []
    assert store.create("plan=1/a", b"1")


def test_a_full_disk_is_a_storage_fault_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the kernel stops the write in the middle."""
    code = f"""
import resource
from workers.storage.errors import StoreError
from workers.storage.store import LocalStore
store = LocalStore({str(tmp_path)!r})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    store.create("plan=1/a", bytes(10_000))
except StoreError:
    print("refused")
print([info.key for info in store.list("")])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused", "[]"]


@pytest.mark.parametrize(("step", "there"), [("link", False), ("unlink", True)])
def test_a_killed_writer_leaves_the_object_or_nothing_and_at_most_a_temporary_file(
    step: str, there: bool, tmp_path: Path
) -> None:
    code = f"""
import os, signal
from workers.storage.store import LocalStore
os.{step} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
LocalStore({str(tmp_path)!r}).create("plan=1/a", b"theirs")
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    store = LocalStore(str(tmp_path))
    assert [info.key for info in store.list("plan=1")] == (["plan=1/a"] if there else [])
    assert len(list(store.list("_stint/tmp"))) == 1
    assert store.create("plan=1/a", b"mine") is not there
    assert store.get("plan=1/a") == (b"theirs" if there else b"mine")


def test_a_file_in_the_place_of_a_folder_is_not_a_lost_race(tmp_path: Path) -> None:
    (tmp_path / "plan=1").write_text("in the way")
    with pytest.raises(StoreDenied, match=r"cannot write .*plan=1/a"):
        LocalStore(str(tmp_path)).create("plan=1/a", b"1")


def test_below_a_file_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(NotFound):
        open_store(str(tmp_path / "file" / "out")).get("anything")
    assert list(open_store(str(tmp_path / "file" / "out")).list("plans")) == []


def test_a_link_whose_answer_was_lost_is_recognised_as_our_own_win(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS repeats the request and says "exists"."""
    link = os.link

    def linked_then_exists(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(target)

    monkeypatch.setattr("os.link", linked_then_exists)
    assert LocalStore(str(tmp_path)).create("k", b"mine")


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(str(tmp_path))
    store.create("plan=1/a", b"1")

    def refuse(path: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(StoreDenied, match="plan=1"):
        list(store.list("plan=1"))


# ------------------------------------------------------------- outcomes that do not say what happened


class Flaky:
    """A file system whose PUT does `behave(path, data)`, over a dictionary."""

    def __init__(self, behave: Callable[[Flaky, str, bytes], None]) -> None:
        self.objects: dict[str, bytes] = {}
        self.puts = self.gets = 0
        self._behave = behave

    def pipe_file(self, path: str, data: bytes, **_: object) -> None:
        self.puts += 1
        self._behave(self, path, data)

    def cat_file(self, path: str) -> bytes:
        self.gets += 1
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


def test_a_write_that_is_throttled_is_not_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking what is there would double the load of a store that asks for less."""
    Clock(monkeypatch)

    def throttled_at_first(fs: Flaky, path: str, data: bytes) -> None:
        if fs.puts <= 2 * retries.TRIES:
            raise throttled()
        fs.objects[path] = data

    fs = Flaky(throttled_at_first)
    assert _object_store(fs).create("k", b"mine")
    assert fs.gets == 0


def test_a_write_that_vanished_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.storage.retries.sleep", lambda seconds: None)

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
    monkeypatch.setattr("workers.storage.retries.sleep", lambda seconds: None)

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


def test_an_object_that_one_request_cannot_carry_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In parts it would not be conditional."""
    monkeypatch.setattr("workers.storage.store.S3_PUT_BYTES", 10)
    fs = Flaky(lambda fs, path, data: None)
    with pytest.raises(StoreDenied, match=r"10 bytes are more than one PUT takes.*shard_rows"):
        _object_store(fs).create("k", b"0123456789")
    assert fs.puts == 0


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
