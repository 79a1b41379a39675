"""Rows of Lance tables: those of one fragment, as a version of the table holds them, by Lance's own library.

A fragment is named by one of its data files. Its rows are counted with those that are deleted, which never come.
"""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from workers.contract import InputSpec, Slice
from workers.source.columns import column_path, columns_of, image_columns, key_places, keys_of, type_at
from workers.source.parquet import blocks_of
from workers.source.rows import BLOCK_BYTES, RowBlock
from workers.source.source_file import InputUnreadable
from workers.storage.access import object_store_url, storage_options
from workers.storage.errors import NotFound, StoreError
from workers.storage.filesystems import info_of, is_local, open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

READ_BYTES = 16 * 2**20
"""What one scan is to read, by the mean size of rows: a scan of a whole fragment is slower, and holds much more."""
SCANS = 2
"""Begun at a time."""
MOST_ROWS = 1024
"""Of one scan."""
SCAN_BUFFER_BYTES = 32 * 2**20
"""Of a scan, for what has come and is not decoded yet."""
OPEN_S = 900
"""After so long a table is opened anew: the credentials that it was opened with may have ended."""
_BLOBS = "lance.blob.v2"
"""Lance's type of blobs that may lie outside the table: the library would follow whatever they say."""
_EXTERNAL = 3
"""The kind of one that does."""
_OFFSET = 2**32 - 1
"""The part of a row's address that is its number in the fragment."""
_LAST = 2**64 - 1


def lance_root(url: str, version: str) -> tuple[str, int | None]:
    """Folder and number of a version: `17` lies in the table's own, `trial:17` in that of its branch `trial`."""
    branch, _, number = version.rpartition(":")
    return url.rstrip("/") + (f"/tree/{branch}" if branch else ""), int(number) if number else None


def lance_dataset(url: str, version: str = "") -> Any:
    """The table at a version, or at its newest (`trial:` the branch's). Raises NotFound, StoreError, StoreDenied;
    InputUnreadable where Lance cannot read it."""
    import lance

    folder, number = lance_root(url, version)
    opened = partial(
        lance.dataset,
        object_store_url(folder),
        version=number,
        storage_options=storage_options(folder),
        index_cache_size_bytes=0,
        metadata_cache_size_bytes=SCAN_BUFFER_BYTES,
    )
    with suppress(OSError, ValueError):
        return opened()
    # Lance has one type for all that can happen. So the store itself is asked, with patience, before it tries again.
    fs, path = open_filesystem(folder)
    paths = retrying(lambda: fs.ls(f"{path}/_versions", detail=False), folder)
    there = {name for name in (str(one).rpartition("/")[2] for one in paths) if name.endswith(".manifest")}
    wanted = there if number is None else {f"{number}.manifest", f"{_LAST - number:020}.manifest"}
    if not there & wanted:
        raise NotFound(f"version {version} of {url}")
    try:
        return opened()
    except (OSError, ValueError) as error:
        raise InputUnreadable(f"Lance cannot open {url}: {error}") from error


def lance_columns(dataset: Any) -> pa.Schema:
    """Its columns as they are read: blobs are plain bytes."""
    return dataset.scanner(blob_handling="all_binary").projected_schema


@dataclass(frozen=True)
class _Table:
    dataset: Any
    columns: pa.Schema
    fragments: Mapping[str, int]
    """By the names of their data files."""


@lru_cache(maxsize=2)
def _table(url: str, version: str, _period: int) -> _Table:
    dataset = lance_dataset(url, version)
    fragments = {
        file.path.rpartition("/")[2]: one.fragment_id for one in dataset.get_fragments() for file in one.data_files()
    }
    return _Table(dataset, lance_columns(dataset), fragments)


class _Fragment:
    """Live rows of a fragment, of which some columns are read."""

    def __init__(self, table: _Table, uri: str) -> None:
        if (number := table.fragments.get(name := uri.rpartition("/")[2])) is None:
            raise NotFound(uri)
        self._dataset, self._fragment = table.dataset, table.dataset.get_fragment(number)
        facts = self._fragment.metadata
        self._first = number * (_OFFSET + 1)
        file = next(one for one in facts.files if one.path.endswith(name))
        self._version = (file.file_major_version, file.file_minor_version)
        size = file.file_size_bytes or info_of(uri)["size"]  # old writers do not tell
        self.row_bytes = max(1, size // max(1, facts.physical_rows))
        self.live = np.arange(facts.physical_rows)
        if facts.num_deletions:
            self.live = np.concatenate([rows for _, rows in live_rows(table.dataset, [number])] or [self.live[:0]])

    def scan(self, columns: Sequence[str], rows: Sequence[int], blobs: str = "all_binary") -> Iterator[pa.RecordBatch]:
        """These live rows, in order, in batches of about BLOCK_BYTES."""
        if self._version < (2, 0):  # Lance's first format, without filters: rows are counted without the deleted ones
            yield from self._fragment.take(np.searchsorted(self.live, rows).tolist(), list(columns)).to_batches()
            return
        yield from self._dataset.scanner(
            columns=list(columns),
            fragments=[self._fragment],
            filter=f"_rowaddr IN ({', '.join(str(self._first + row) for row in rows)})",
            blob_handling=blobs,
            batch_size=max(1, BLOCK_BYTES // self.row_bytes),
            batch_size_bytes=BLOCK_BYTES if self._version > (2, 0) else None,
            batch_readahead=1,
            io_buffer_size=SCAN_BUFFER_BYTES,
            with_row_address=True,
        ).to_batches()

    def blobs(self, column: str, rows: Sequence[int]) -> Iterator[tuple[int, int, str]]:
        """These rows, each with the size of its blob, and where that is if it is not in the table."""
        cells = (
            cell for batch in self.scan([column], rows, "blobs_descriptions") for cell in batch.column(0).to_pylist()
        )
        for row, cell in zip(rows, cells, strict=True):
            if not cell or cell["kind"] != _EXTERNAL:
                yield row, cell["size"] if cell else 0, ""
            else:  # a part of a file is not followed: no file is called so
                yield row, 0, cell["blob_uri"] + (f", bytes from {cell['position']}" if cell["size"] else "")


def live_rows(dataset: Any, fragments: Iterable[int]) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    """Fragments' numbers and those of rows of each that are not deleted, ascending, some at a time."""
    chosen = [dataset.get_fragment(number) for number in fragments]
    for batch in dataset.scanner(columns=[], fragments=chosen, with_row_address=True).to_batches():
        of = batch.column("_rowaddr").to_numpy() >> 32
        starts = [0, *(np.flatnonzero(np.diff(of)) + 1).tolist()] if len(of) else []
        for start, stop in pairwise([*starts, len(of)]):
            yield int(of[start]), _numbers(batch.slice(start, stop - start))


def _numbers(batch: pa.RecordBatch) -> np.ndarray[Any, Any]:
    numbers: np.ndarray[Any, Any] = batch.column("_rowaddr").to_numpy().astype(np.int64)
    return numbers & _OFFSET


def lance_blocks(
    url: str, version: str, index: int, rows: Slice, how: InputSpec, only: Container[int] | None = None
) -> Iterator[RowBlock]:
    """The live rows of one slice, which is number `index` of its shard, all or those among `only`.

    The slice's URI is that of a data file of the fragment, in the table at `url` at this version. Blobs that lie
    outside the table are followed as URIs in cells are. Raises NotFound where version or fragment is gone, StoreError,
    StoreDenied, InputUnreadable.
    """
    for numbers, batch in _batches(url, version, rows, how, only, images=True):
        yield from blocks_of(batch, key_places(batch.schema, how, rows.uri), index, numbers, rows.uri, how)


def lance_keys(url: str, version: str, rows: Slice, how: InputSpec) -> tuple[list[int], pa.Table]:
    """Numbers of the live rows of a slice, and their key columns. Raises as `lance_blocks`."""
    batches = _batches(url, version, rows, how, None, images=False)
    parts = [(here, keys_of(batch, key_places(batch.schema, how, rows.uri))) for here, batch in batches]
    numbers = [number for here, _ in parts for number in here]
    return numbers, pa.concat_tables([keys for _, keys in parts]) if parts else pa.table({})


def _batches(
    url: str, version: str, rows: Slice, how: InputSpec, only: Container[int] | None, images: bool
) -> Iterator[tuple[list[int], pa.RecordBatch]]:
    """Live rows of a slice with their numbers, in order; of the images what `input.image` names, and the keys."""
    try:
        table = _table(url, version, period := int(time.monotonic()) // OPEN_S)
        if rows.uri.rpartition("/")[2] not in table.fragments:  # another table may be there in place of one that was
            _table.cache_clear()
            table = _table(url, version, period)
        fragment = _Fragment(table, rows.uri)
        keys = columns_of(key_places(table.columns, how, rows.uri))
        blobs = _outside(table.dataset.schema, image_columns(table.columns, how.image)) if images else ""
        if taken := _outside(table.dataset.schema, keys):
            raise InputUnreadable(f"input.keys: {taken!r} has blobs, which are not copied; take it out of input.keys")
        columns = list(dict.fromkeys([how.image, *keys] if images else keys))
        start, stop = np.searchsorted(fragment.live, [rows.row_start, rows.row_stop])
        wanted = [row for row in fragment.live[start:stop].tolist() if only is None or row in only]

        def begun(part: tuple[list[int], Mapping[int, str]]) -> Iterator[tuple[list[int], pa.RecordBatch]]:
            """With its first batch; the others come when they are asked for."""
            here, links = part
            scan = fragment.scan(keys if links else columns, here)
            first = next(scan, None)
            return _checked(here, links, how.image, chain([] if first is None else [first], scan))

        for batches in ahead(begun, _parts(fragment, wanted, blobs), "lance", at_once=SCANS, a_thread=1):
            yield from batches
    except (OSError, ValueError) as error:  # whatever it was: the store itself is asked
        info_of(rows.uri)
        raise (InputUnreadable if is_local(rows.uri) else StoreError)(f"{rows.uri}: {error}") from error


def _parts(fragment: _Fragment, wanted: Sequence[int], blobs: str) -> Iterator[tuple[list[int], Mapping[int, str]]]:
    """Rows that are scanned together, with where their blobs are, if they are all elsewhere."""
    rows_a_scan = min(MOST_ROWS, max(1, READ_BYTES // fragment.row_bytes))
    for first in range(0, len(wanted), rows_a_scan):
        here, held = wanted[first : first + rows_a_scan], 0
        if not blobs:
            yield list(here), {}
            continue
        found = []
        for row, size, where in fragment.blobs(blobs, here):
            held += size
            found.append((row, where, (where != "", held // READ_BYTES)))
        for (away, _), run in groupby(found, lambda each: each[2]):
            links = {row: where for row, where, _ in run}
            yield list(links), links if away else {}


def _checked(
    rows: list[int], links: Mapping[int, str], image: str, batches: Iterator[pa.RecordBatch]
) -> Iterator[tuple[list[int], pa.RecordBatch]]:
    """Batches with the numbers of their rows: all of them must come, in order."""
    done = 0
    for batch in batches:
        here = rows[done : done + batch.num_rows]
        if "_rowaddr" in batch.schema.names and _numbers(batch).tolist() != here:
            raise InputUnreadable(f"rows {_numbers(batch).tolist()} came in place of {here}")
        if links:
            batch = batch.append_column(image, pa.array([links[row] for row in here], pa.string()))
        done += batch.num_rows
        yield here, batch
    if done != len(rows):
        raise InputUnreadable(f"{done} of {len(rows)} rows came")


def _outside(schema: pa.Schema, names: Sequence[str]) -> str:
    """The first of these columns with blobs that may lie outside the table; "" if none has any."""
    for name in names:
        if _has_blobs(type_at(schema, column_path(schema, name) or (name,))):
            return name
    return ""


def _has_blobs(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return bool(kind.extension_name == _BLOBS)
    return any(_has_blobs(kind.field(number).type) for number in range(kind.num_fields))
