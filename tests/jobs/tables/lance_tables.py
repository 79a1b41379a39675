"""Lance tables for tests, with what is live in them beside, in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.blob import BlobType, blob_array, blob_field

from jobs.tables.state import TableState
from workers.contract import InputSpec, Slice
from workers.image.errors import BadImage
from workers.source.lance_rows import lance_blocks

Row = tuple[int, bytes | None, int]
HOW = InputSpec(format="parquet", image="image", keys=("id", "label"))
BLOB_V1 = pa.field("image", pa.large_binary(), metadata={"lance-encoding:blob": "true"})
KINDS: dict[str, tuple[pa.Field, str]] = {
    "first": (pa.field("image", pa.binary()), "legacy"),
    "2.0": (pa.field("image", pa.binary()), "2.0"),
    "2.1": (pa.field("image", pa.large_binary()), "2.1"),
    "2.2": (pa.field("image", pa.binary()), "2.2"),
    "blobs v1": (BLOB_V1, "2.1"),
    "blobs v2": (blob_field("image"), "2.2"),
}
"""Columns of images, each with the format of files that it goes into."""


def lance_rows_of(rows: Iterable[Row], image: pa.Field = KINDS["2.2"][0]) -> pa.Table:
    ids, images, labels = ([row[at] for row in rows] for at in range(3)) if (rows := list(rows)) else ([], [], [])
    values = blob_array(images) if isinstance(image.type, BlobType) else pa.array(images, image.type)
    fields = [pa.field("id", pa.int64()), image, pa.field("label", pa.int32())]
    return pa.table([pa.array(ids, pa.int64()), values, pa.array(labels, pa.int32())], schema=pa.schema(fields))


def read_back(url: str, state: TableState, how: InputSpec = HOW, only: Any = None) -> list[tuple[Any, ...]]:
    """All rows of all files, by the reader of workers: image (or why there is none), then the keys."""
    rows: list[tuple[Any, ...]] = []
    for file in state.files:
        part = Slice(uri=file.uri, size=file.size, version="", row_group=0, row_start=0, row_stop=file.rows or 0)
        numbers: list[int] = []
        for block in lance_blocks(url, state.version, 0, part, how, only):
            cells = [str(cell.code) if isinstance(cell, BadImage) else bytes(cell) for cell in block.images]
            keys = zip(*(column.to_pylist() for column in block.keys.columns), strict=True) if block.keys else ()
            rows += [(cell, *key) for cell, key in zip(cells, keys, strict=True)]
            numbers += block.rows
        if only is None:
            assert sorted({*range(file.rows or 0)} - {*numbers}) == file.deleted.tolist()
            assert numbers == sorted(numbers)
    return rows


def folded(files: Iterable[str], state: TableState) -> set[str]:
    """URIs of the files that are there after the commits."""
    there = {*files}
    for commit in state.commits or ():
        assert commit.removed <= there
        assert commit.changed <= there - commit.removed
        there = (there - commit.removed) | commit.added
    return there


class LanceMaker:
    """A table, what is live in it, and what was at each version."""

    def __init__(self, folder: Path, kind: str = "2.2", stable_ids: bool = False) -> None:
        self.url = str(folder)
        self._image, self._format = KINDS[kind]
        self.rows: dict[int, Row] = {}
        self._next = 0
        self.history: dict[int, dict[int, Row]] = {}
        self._write({}, "create", enable_stable_row_ids=stable_ids)

    @property
    def dataset(self) -> Any:
        return lance.dataset(self.url)

    @property
    def version(self) -> int:
        return int(self.dataset.version)

    def new(self, count: int) -> list[Row]:
        first, self._next = self._next, self._next + count
        return [(n, None if n % 11 == 10 else b"image %d" % n * (n % 3 + 1), n % 5) for n in range(first, self._next)]

    def _write(self, rows: dict[int, Row], mode: str, **more: Any) -> None:
        table = lance_rows_of(rows.values(), self._image)
        # Files of a few rows: one write makes several fragments.
        lance.write_dataset(table, self.url, mode=mode, data_storage_version=self._format, max_rows_per_file=7, **more)
        self._done()

    def _done(self) -> None:
        for version in range(max(self.history, default=0) + 1, self.version):
            self.history[version] = self.history.get(version - 1, {})
        self.history[self.version] = dict(self.rows)

    def append(self, count: int) -> None:
        new = {row[0]: row for row in self.new(count)}
        self.rows |= new
        self._write(new, "append")

    def overwrite(self, count: int) -> None:
        self.rows = {row[0]: row for row in self.new(count)}
        self._write(self.rows, "overwrite")

    def delete(self, where: Callable[[int], bool]) -> None:
        gone = self._ids(where)
        self.dataset.delete(f"id IN ({', '.join(map(str, gone))})")
        self.rows = {n: row for n, row in self.rows.items() if n not in {*gone}}
        self._done()

    def update(self, where: Callable[[int], bool], label: int) -> None:
        changed = self._ids(where)
        self.dataset.update({"label": str(label)}, where=f"id IN ({', '.join(map(str, changed))})")
        self.rows |= {n: (n, self.rows[n][1], label) for n in changed if n in self.rows}
        self._done()

    def merge(self, where: Callable[[int], bool], new: int) -> None:
        """New images for some rows, and new rows."""
        rows = [(n, b"merged %d" % n, 9) for n in self._ids(where) if n in self.rows] + self.new(new)
        merging = self.dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        merging.execute(lance_rows_of(rows, self._image))
        self.rows |= {row[0]: row for row in rows}
        self._done()

    def compact(self) -> None:
        self.dataset.optimize.compact_files(target_rows_per_fragment=40, materialize_deletions_threshold=0.0)
        self._done()

    def restore(self, version: int) -> None:
        lance.dataset(self.url, version=version).restore()
        self.rows = dict(self.history[version])
        self._done()

    def expire(self) -> None:
        """What only earlier versions need is gone."""
        self.dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)

    def kept(self) -> list[int]:
        return [one["version"] for one in self.dataset.version_refs()]

    def live(self) -> list[tuple[Any, ...]]:
        return sorted(_as_read(self.rows.values()), key=str)

    def _ids(self, where: Callable[[int], bool]) -> list[int]:
        return [n for n in self.rows if where(n)] or [-1]


def _as_read(rows: Iterable[Row]) -> Sequence[tuple[Any, ...]]:
    return [("null" if image is None else image, n, label) for n, image, label in rows]
