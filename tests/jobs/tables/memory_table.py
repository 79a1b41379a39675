"""A table in memory, with the contract of those that people read: what others do to it is done by its methods."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.tables.target import Change, Copy, Portion, TableMoved

PLACE = ["source_uri", "source_version", "row_group", "row"]


class Stored:
    """What all handles see: files of rows by name, and the edition."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[Portion, pa.Table]] = {}
        self.edition, self.version, self.commits = 0, 0, 0
        self.lock = threading.Lock()

    def rows(self) -> Counter[tuple[object, ...]]:
        """Portion and place of each."""
        return Counter(
            (*part, *place)
            for part, rows in self.files.values()
            for place in zip(*(rows[n].to_pylist() for n in PLACE), strict=True)
        )

    def compact(self) -> None:
        """Somebody else's: files of a part become one."""
        of_parts: dict[Portion, list[pa.Table]] = {}
        for part, rows in self.files.values():
            of_parts.setdefault(part, []).append(rows)
        self.version += 1
        self.files = {
            f"compacted-{self.version}-{part}": (part, pa.concat_tables(rows)) for part, rows in of_parts.items()
        }


class MemoryTable:
    def __init__(
        self, stored: Stored, before: Callable[[], None] = lambda: None, read: Callable[[str], pa.Table] = pq.read_table
    ) -> None:
        """`before` is called when a commit is about to be made."""
        self._stored, self._before, self._read = stored, before, read
        self._version = -1

    def read(self) -> int:
        with self._stored.lock:
            self._version = self._stored.version
            return self._stored.edition

    def commit(self, edition: int, schema: pa.Schema, change: Change, copy: Copy) -> None:
        self._before()
        added = {file.uri: (file.part, self._read(file.uri).cast(schema)) for file in change.added}
        assert all(file.rows == len(added[file.uri][1]) > 0 for file in change.added)
        with self._stored.lock:
            if self._version != self._stored.version:
                raise TableMoved
            files = {name: file for name, file in self._stored.files.items() if file[0] not in change.dropped}
            for name, (part, rows) in list(files.items()):
                if part in change.trimmed and len(rest := change.trimmed[part](rows)) < len(rows):
                    del files[name]
                    if len(rest):
                        file = copy(part, rest)
                        files[file.uri] = part, rest
            assert not files.keys() & added.keys()  # a file that is there twice
            self._stored.files = files | added
            self._stored.edition, self._stored.version = edition, self._stored.version + 1
            self._stored.commits += 1

    def rows(self) -> Mapping[Portion, int]:
        found: Counter[Portion] = Counter()
        for part, rows in self._stored.files.values():
            found[part] += len(rows)
        return found


def places(part: Portion, rows: pa.Table) -> Counter[tuple[object, ...]]:
    """As `Stored.rows`."""
    return Counter((*part, *place) for place in zip(*(rows[n].to_pylist() for n in PLACE), strict=True))
