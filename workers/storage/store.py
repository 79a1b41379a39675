"""The output store: create-if-absent, get, list. No rename, no overwrite, no delete.

Everything exactly-once in Stint rests on one primitive, `create(key, data)`: atomic, and it fails when the key
exists. An unclear outcome (timeout, reset, 409, 412, "already exists" after a retried request) is settled by reading
the key back: our bytes carry a random token, so equal bytes mean that our write is the one there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from fsspec.implementations.local import LocalFileSystem

from workers.storage.errors import Cause, NotFound, StoreDenied, StoreError, cause_of
from workers.storage.filesystems import AZURE, GCS, S3, open_filesystem, version_of
from workers.storage.lookahead import ahead
from workers.storage.retries import Patience, retrying

PROBE_KEY = "_stint/probe"
S3_PUT_BYTES = 5 * 2**30
"""The largest object that S3 takes in one request."""

CONDITIONAL_PROTOCOLS = S3 | GCS | AZURE
"""fsspec protocols whose `pipe_file(mode="create")` is a conditional PUT on the server. The default implementation
is an exists() check that two writers pass together."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    size: int
    version: str


class Store(Protocol):
    url: str

    def create(self, key: str, data: bytes) -> bool:
        """Put `data` at `key` if nothing is there. True: these bytes are the object now. False: another object is.
        Raises StoreError when the outcome stayed unclear through every retry, StoreDenied when refused."""

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises NotFound, StoreError, StoreDenied."""

    def list(self, prefix: str, parts: Sequence[str] = ()) -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix`, recursively, by key; nothing if there is no such folder.

        `parts`, in order, are beginnings of the names that are wanted of a large folder. A store that answers with
        pages lists them side by side, holding a few at a time; another one may list everything.
        """


def open_store(url: str, *, single_writer: bool = False) -> Store:
    """The store at a local path or URL. Raises StoreDenied where create-if-absent cannot be had."""
    fs, path = open_filesystem(url)
    if isinstance(fs, LocalFileSystem):
        return LocalStore(path)
    protocol = url.split("://", 1)[0]
    if protocol not in CONDITIONAL_PROTOCOLS and not single_writer:
        raise StoreDenied(
            f"{url}: {protocol}:// has no atomic create-if-absent, so two runs could overwrite each other. "
            f"Write to one of {', '.join(sorted(CONDITIONAL_PROTOCOLS))} or a local path, "
            "or set output.single_writer: true and never start two runs of the job at once."
        )
    return ObjectStore(url, fs, path, single_writer=single_writer)


def probe(store: Store) -> None:
    """Prove that the store refuses to create a key twice; some look-alikes of S3 accept both and lie.

    One key serves all runs: whoever comes first creates it, and from then on every create must fail and change
    nothing. Raises StoreDenied.
    """
    try:
        before = store.get(PROBE_KEY)
    except NotFound:
        store.create(PROBE_KEY, uuid.uuid4().bytes)
        before = store.get(PROBE_KEY)
    if store.create(PROBE_KEY, uuid.uuid4().bytes) or store.get(PROBE_KEY) != before:
        raise StoreDenied(
            f"{store.url}: this store accepted a second create of the same key ({PROBE_KEY}), so it cannot keep "
            "concurrent runs apart. Use a store with conditional writes (AWS S3, GCS, Azure Blob, Ceph, local disk), "
            "or set output.single_writer: true and never start two runs of the job at once."
        )


class LocalStore:
    """A folder. Atomic by writing a temporary file, fsync, then a hard link, which fails when the name is taken."""

    def __init__(self, path: str) -> None:
        self.url = path
        self._base = Path(path)

    def create(self, key: str, data: bytes) -> bool:
        target = self._base / key
        # Temporary files live apart from the data, so that a killed writer leaves nothing among the predictions.
        temporary = self._base / "_stint" / "tmp" / uuid.uuid4().hex
        try:
            for folder in (temporary.parent, target.parent):
                folder.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                linked = _link(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
            if linked:
                descriptor = os.open(target.parent, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
        except OSError as error:
            if error.errno in _REFUSALS:
                raise StoreDenied(f"cannot write {target}: {error.strerror}") from error
            raise StoreError(f"cannot write {target}: {error}") from error
        return linked

    def get(self, key: str) -> bytes:
        return retrying((self._base / key).read_bytes, f"{self.url}/{key}")

    def list(self, prefix: str, parts: Sequence[str] = ()) -> Iterator[ObjectInfo]:  # noqa: ARG002  (no pages here)
        folder = str(self._base / prefix.strip("/"))
        for path in retrying(lambda: sorted(_files_below(folder)), folder):
            with contextlib.suppress(NotFound):  # another writer's temporary file, gone by now
                stat = retrying(partial(os.stat, path), path)
                yield ObjectInfo(path[len(self.url) :].lstrip("/"), stat.st_size, f"{stat.st_mtime_ns}")


_REFUSALS = frozenset(
    [
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
        *(errno.EEXIST, errno.EISDIR, errno.ENOTSUP, errno.ENAMETOOLONG),
    ]
)
"""EEXIST: a file lies where a folder is wanted."""


def _link(temporary: Path, target: Path) -> bool:
    """Give the file its name. False when the name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        # NFS repeats a request whose answer was lost and then says "exists" of our own link: the count of links tells.
        return temporary.stat().st_nlink > 1
    return True


def _files_below(folder: str) -> Iterator[str]:
    """Their paths. Of links only those to files; nothing where there is no such folder. Raises OSError."""

    def unless_gone(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for path, _, names in os.walk(folder, onerror=unless_gone):
        yield from (f"{path}/{name}" for name in names)


class ObjectStore:
    """An object store through fsspec: one conditional PUT a key."""

    def __init__(self, url: str, fs: Any, path: str, *, single_writer: bool) -> None:
        self.url = url.rstrip("/")
        self._fs = fs
        self._base = path.rstrip("/")
        self._single_writer = single_writer
        self._options: dict[str, Any] = {} if single_writer else {"mode": "create"}
        protocol = url.split("://", 1)[0]
        self._lists_parts = protocol in CONDITIONAL_PROTOCOLS
        """fsspec's own `find` passes over `prefix`; those of the object stores' libraries send it to the server."""
        self._most_bytes = sys.maxsize
        if protocol in S3:
            # One PUT whatever the size: completing a multipart upload ignores the condition on some servers.
            self._most_bytes = self._options["chunksize"] = S3_PUT_BYTES

    def create(self, key: str, data: bytes) -> bool:
        path = f"{self._base}/{key}"
        if len(data) >= self._most_bytes:
            raise StoreDenied(
                f"{self.url}/{key}: {len(data)} bytes are more than one PUT takes, and several cannot be conditional "
                "on every such store. Make shards smaller (input.shard_rows)."
            )
        patience = Patience(f"cannot write {self.url}/{key}")
        while True:
            if self._single_writer and (found := self._read_back(path, patience)) is not None:
                return found == data
            try:
                self._fs.pipe_file(path, data, **self._options)
            except Exception as error:  # sorted by type right below; what is not storage's goes up as it is
                match cause_of(error):
                    case Cause.MISSING | Cause.DENIED:
                        raise StoreDenied(f"cannot write {self.url}/{key}: {error}") from error
                    case Cause.FAULT:
                        # A lost acknowledgement looks exactly like a lost race: only what is at the key tells.
                        if (found := self._read_back(path, patience)) is not None:
                            return found == data
                patience.after(error)
            else:
                return True

    def _read_back(self, path: str, patience: Patience) -> bytes | None:
        try:
            return bytes(patience.run(lambda: self._fs.cat_file(path)))
        except NotFound:
            return None

    def get(self, key: str) -> bytes:
        return bytes(retrying(lambda: self._fs.cat_file(f"{self._base}/{key}"), f"{self.url}/{key}"))

    def list(self, prefix: str, parts: Sequence[str] = ()) -> Iterator[ObjectInfo]:
        folder = f"{self._base}/{prefix}".rstrip("/")
        if parts and self._lists_parts:
            for found in ahead(partial(self._found, folder), parts, "list"):
                yield from found
        else:
            yield from self._found(folder)

    def _found(self, folder: str, part: str = "") -> Sequence[ObjectInfo]:
        options = {"prefix": part} if part else {}
        try:
            found = retrying(lambda: self._fs.find(folder, detail=True, **options), folder)
        except NotFound:
            return []
        start = len(self._base) + 1
        return [ObjectInfo(path[start:], int(info["size"]), version_of(info)) for path, info in sorted(found.items())]
