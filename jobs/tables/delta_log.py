"""The log of a Delta table: what lies in `_delta_log/`, read through fsspec, as everything else is.

Source of the rules: PROTOCOL.md of delta-io/delta.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, NamedTuple
from urllib.parse import unquote
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import NothingThere, SpecError
from jobs.ledger.table_files import Positions
from jobs.tables.bitmaps import from_z85, positions_of, stored_vector
from workers.source.source_file import opened
from workers.storage.errors import NotFound, StoreError
from workers.storage.filesystems import AZURE, full_url, is_local, open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

_COMMIT = re.compile(r"(\d{20})\.json")
_CHECKPOINT = re.compile(r"(\d{20})\.checkpoint(?:\.\d{10}\.(\d{10})|\.[0-9a-fA-F-]{36})?\.(?:parquet|json)")
_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/+")
_OF_ADD = ("path", "size", "partitionValues", "stats", "stats_parsed.numRecords", "deletionVector")
TABLE_COLUMNS = ("protocol", "metaData", "txn")
FILE_COLUMNS = ("sidecar.path", *(f"add.{name}" for name in _OF_ADD))
"""Columns of checkpoints: what is said of a table, and of its files."""
_ROWS_TOGETHER = 16384

Action = tuple[str, Mapping[str, Any]]
"""One line of the log: its kind, and what it says."""
Wanted = Callable[[pa.StructArray], pa.BooleanArray]


class StoredVector(NamedTuple):
    """Where a deletion vector is kept; together with a file's path this is what the protocol calls a logical file."""

    kind: str
    place: str
    offset: int
    size: int
    rows: int


class NoDeltaTable(SpecError):
    """A folder without a log."""


class DeltaLog:
    """The commits and checkpoints that are there, and what they hold. All methods raise SpecError for what is damaged,
    StoreError, StoreDenied."""

    def __init__(self, url: str, spec: str = "input.uri") -> None:
        """`spec`: the key that names it, for messages. Raises NothingThere; NoDeltaTable."""
        self.spec = spec
        self.fs, path = open_filesystem(url)
        self.url, self.root, self.folder = url, path.rstrip("/"), f"{path.rstrip('/')}/_delta_log"
        try:
            found = retrying(lambda: self.fs.ls(self.folder, detail=True), url)
        except NotFound:
            if not retrying(lambda: self.fs.exists(path), url):
                raise NothingThere(f"{spec}: there is nothing at {url}", "check the path") from None
            found = []
        sizes = {str(one["name"]).rpartition("/")[2]: one["size"] for one in found if one["type"] == "file"}
        names = sorted(name for name, size in sizes.items() if size)
        self.commits = {int(match[1]) for match in map(_COMMIT.fullmatch, sizes) if match}
        while self.commits and not sizes[f"{max(self.commits):020}.json"]:
            self.commits.remove(max(self.commits))  # created, and about to be written
        parts: dict[tuple[int, int], list[str]] = {}
        for match in map(_CHECKPOINT.fullmatch, names):
            if match:
                parts.setdefault((int(match[1]), int(match[2] or 0)), []).append(match[0])
        whole = {key: some for key, some in parts.items() if len(some) >= key[1]}
        self.checkpoints = {number: some if count else some[:1] for (number, count), some in whole.items()}
        self.versions = sorted(self.commits | self.checkpoints.keys())
        if not self.versions:
            raise NoDeltaTable(
                f"{spec}: {url} is not a Delta table: it has no _delta_log/ with commits",
                "name the folder that _delta_log/ lies in, or take `format: parquet`",
            )

    def base(self, number: int) -> int:
        """The newest checkpoint up to a version; -1, the beginning, where there is none."""
        return max((one for one in self.checkpoints if one <= number), default=-1)

    def committed(self, numbers: range) -> Iterator[tuple[int, Iterator[Action]]]:
        """The actions of these commits, in order."""
        return ahead(lambda number: (number, self._lines(f"{number:020}.json")), numbers, "log", a_thread=1)

    def actions(self, number: int, columns: Sequence[str], wanted: Wanted | None = None) -> Iterator[Action]:
        """What the log says up to a version; of checkpoints, these columns and the adds wanted."""
        base = self.base(number)
        since = (action for _, some in self.committed(range(base + 1, number + 1)) for action in some)
        return chain(self.checkpoint(base, columns, wanted), since)

    def checkpoint(
        self, number: int, columns: Sequence[str] = (*TABLE_COLUMNS[:2], *FILE_COLUMNS), wanted: Wanted | None = None
    ) -> Iterator[Action]:
        """All actions up to a version, but for what readers have no use for; none without such a checkpoint. Of adds
        those that are `wanted`."""
        for name in self.checkpoints.get(number, ()):
            for kind, one in self._actions(name, columns, wanted):
                yield kind, one
                if kind == "sidecar":
                    name = f"_sidecars/{unquote(one['path']).rpartition('/')[2]}"
                    yield from self._actions(name, columns, wanted)

    def at(self, number: int) -> datetime:
        """When a version was committed."""
        numbers = range(number, number + 1) if number in self.commits else range(0)
        said = (one for _, actions in self.committed(numbers) for kind, one in actions if kind == "commitInfo")
        return self.time(number, next(said, {}))

    def time(self, number: int, info: Mapping[str, Any]) -> datetime:
        """The same, of a commit whose writer noted `info`: the time of its file, which a copy changes, comes last."""
        if said := info.get("inCommitTimestamp") or info.get("timestamp"):
            return datetime.fromtimestamp(said / 1000, UTC)
        name = f"{number:020}.json" if number in self.commits else self.checkpoints[number][0]
        found: datetime = self._there(lambda: self.fs.modified(f"{self.folder}/{name}"), self.url)
        return found if found.tzinfo else found.replace(tzinfo=UTC)

    def uri(self, path: str) -> str:
        """Of a file that the log names: by a path below the table, or, as in shallow clones, by an absolute one."""
        path = unquote(path)
        if path.startswith("file:/"):
            return "/" + path.removeprefix("file:").lstrip("/")
        if not (absolute := _ABSOLUTE.match(path)):
            above = self.root if not path.startswith("/") else "" if is_local(self.url) else self.root.partition("/")[0]
            return full_url(self.fs, f"{above}/{path.lstrip('/')}")
        if not absolute[0].endswith("://"):
            raise SpecError(f"{self.spec}: {self.url}: one of its files lies at {path}, which cannot be read from here")
        return path if absolute[1] in AZURE else full_url(*open_filesystem(path))

    def deleted(self, vectors: Iterable[StoredVector]) -> dict[StoredVector, Positions]:
        """What deletion vectors hold; of those in one file by one request."""
        stored: dict[str, list[StoredVector]] = {}
        found: dict[StoredVector, Positions] = {}

        def read(place: str) -> tuple[str, int, bytes]:
            begin = min(one.offset for one in stored[place])
            end = max(one.offset + one.size for one in stored[place]) + 8
            fs, path = open_filesystem(place)
            return place, begin, bytes(self._there(lambda: fs.cat_file(path, begin, end), place))

        try:
            for one in vectors:
                if one.kind == "i":
                    found[one] = positions_of(from_z85(one.place))
                elif one.kind == "u":
                    name = f"deletion_vector_{UUID(bytes=from_z85(one.place[-20:]))}.bin"
                    above = f"{self.root}/{one.place[:-20]}".rstrip("/")
                    stored.setdefault(full_url(self.fs, f"{above}/{name}"), []).append(one)
                elif one.kind == "p":
                    stored.setdefault(self.uri(one.place), []).append(one)
                else:
                    raise ValueError(f"a deletion vector is stored in a way that is not known ({one.kind})")
            for place, begin, raw in ahead(read, stored, "vectors", a_thread=1):
                for one in stored[place]:
                    at = one.offset - begin
                    found[one] = positions_of(stored_vector(raw[at : at + one.size + 8]))
            if any(len(found[one]) != one.rows for one in found):
                raise ValueError("a deletion vector does not hold as many rows as the log says")
        except ValueError as error:
            raise SpecError(f"{self.spec}: {self.url}: {error}") from error
        return found

    def _actions(self, name: str, columns: Sequence[str], wanted: Wanted | None) -> Iterator[Action]:
        if name.endswith(".json"):
            yield from self._lines(name)
            return
        path = f"{self.folder}/{name}"
        with self._there(lambda: opened(self.fs, path), path) as file:
            try:
                rows = pq.ParquetFile(file, pre_buffer=False).iter_batches(_ROWS_TOGETHER, columns=list(columns))
                for batch in rows:
                    for kind in batch.schema.names:
                        some = batch[kind].drop_null()
                        some = some.filter(wanted(some)) if wanted and kind == "add" else some
                        yield from ((kind, one) for one in some.to_pylist())
            except (pa.ArrowException, OSError) as error:
                if file.fault is not None:
                    raise StoreError(f"{path}: {error}") from error
                raise SpecError(f"{self.spec}: {path} is not a checkpoint of a Delta table: {error}") from error

    def _lines(self, name: str) -> Iterator[Action]:
        """Of a file, which is read at once."""
        path = f"{self.folder}/{name}"
        raw = bytes(self._there(lambda: self.fs.cat_file(path), path))

        def actions() -> Iterator[Action]:
            try:
                for line in filter(bytes.strip, raw.splitlines()):
                    yield from ((kind, one) for kind, one in json.loads(line).items() if one)
            except ValueError as error:
                raise SpecError(f"{self.spec}: {path} is damaged: {error}") from error

        return actions()

    def _there(self, action: Callable[[], Any], path: str) -> Any:
        try:
            return retrying(action, path)
        except NotFound as error:
            raise StoreError(f"{path} was cleaned up while it was to be read") from error


def named_files(url: str) -> frozenset[str]:
    """Paths of files that are in the Delta table at this place, or were; none without a table. Raises as DeltaLog."""
    try:
        log = DeltaLog(url)
    except (NothingThere, NoDeltaTable):
        return frozenset()
    actions = log.actions(log.versions[-1], ("sidecar.path", "add.path", "remove.path"))
    return frozenset(unquote(one["path"]) for kind, one in actions if kind in ("add", "remove"))
