"""Parquet sources: footers, row groups larger than memory, URIs that are followed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Sequence
from functools import reduce
from typing import Any

import pyarrow as pa

from workers.contract import InputSpec, Slice, TableOf
from workers.image.errors import BadImage
from workers.source.columns import (
    Link,
    Places,
    cells_of,
    column_at,
    column_path,
    columns_of,
    image_columns,
    key_places,
    keys_of,
    without_views,
)
from workers.source.links import image_at
from workers.source.pages import Chunk, Page, chunk_of, pages_of, read_pages
from workers.source.rows import BLOCK_BYTES, FETCHES, ImageCell, RowBlock, RowGroup
from workers.source.source_file import InputUnreadable, SourceFile, open_parquet
from workers.source.table_view import TableView
from workers.storage.lookahead import ahead

WHOLE_CHUNK_BYTES = 128 * 2**20
"""Column chunks up to this size are read in one request, if all rows are wanted. Of a larger one the pages that hold
wanted rows are read; or where that cannot be, those before them too, BUFFER_BYTES at a time."""
TOGETHER_BYTES = 64 * 2**20
"""Pages of a large column chunk are read together, in one request, up to so many bytes."""
BUFFER_BYTES = 8 * 2**20
PART_BYTES = 16 * 2**20
MOST_HEADERS = 512
"""Of pages that are looked through to cut a row group: those of 26 GB where pages hold 100 MB, as DuckDB's do."""


def column_chunks(group: Any, columns: Iterable[str]) -> list[Any]:
    """Metadata of each column chunk of a row group that belongs to one of the columns, or fields of structs."""
    within = tuple(f"{column}." for column in columns)
    return [
        leaf for leaf in map(group.column, range(group.num_columns)) if f"{leaf.path_in_schema}.".startswith(within)
    ]


def read_keys(
    parquet: Any, how: InputSpec, uri: str, row_group: int | None = None, table: TableOf | None = None
) -> pa.Table:
    """The key columns of all rows, or of a row group, under their names in the output. Raises what Arrow raises."""
    view = TableView.of(parquet.schema_arrow, table, uri)
    places = key_places(view.schema, how, uri)
    groups = range(parquet.num_row_groups) if row_group is None else [row_group]
    return keys_of(view.rows(parquet.read_row_groups(groups, view.in_file(columns_of(places)))), places)


def parquet_groups(file: SourceFile, parquet: Any, names: Sequence[str]) -> Iterator[RowGroup]:
    """The row groups of a file, of which columns of these `names` are read. A huge one comes in parts of about
    PART_BYTES, which begin where a page does. Raises InputUnreadable, StoreError, StoreDenied."""
    for number in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(number)
        chunk, _ = _large_chunk(file, parquet, number, names)
        row, at = 0, chunk.start if chunk else 0
        for page in pages_of(file, chunk, range(chunk.rows), MOST_HEADERS)[:-1] if chunk else ():
            if page.stop - at >= PART_BYTES:
                yield RowGroup(page.stop_row - row, page.stop - at, number, row, paged=True)
                row, at = page.stop_row, page.stop
        size = chunk.stop - at if chunk else sum(leaf.total_compressed_size for leaf in column_chunks(group, names))
        yield RowGroup(group.num_rows - row, size, number, row, paged=chunk is not None)


def row_group_blocks(
    file: SourceFile,
    parquet: Any,
    view: TableView,
    index: int,
    rows: Slice,
    how: InputSpec,
    only: Container[int] | None = None,
) -> Iterator[RowBlock]:
    """The rows of one slice, which is number `index` of its shard, all or those among `only`. Raises InputUnreadable
    and what Arrow raises."""
    keys = key_places(view.schema, how, rows.uri)
    names = view.in_file([*image_columns(view.schema, how.image), *columns_of(keys)])
    wanted = [row for row in range(rows.row_start, rows.row_stop) if only is None or row in only]
    chunk, large = _large_chunk(file, parquet, rows.row_group, names)
    beside: list[tuple[int, pa.RecordBatch]] = []
    if chunk is None:
        batches = _from_start(file, parquet, names, rows, streamed=only is not None or large)
    else:
        batches = _from_pages(file, chunk, rows, wanted)
        if others := [name for name in names if name != chunk.name]:  # held for the whole slice
            small = list(_from_start(file, parquet, others, rows, streamed=False))
            beside = [
                (small[0][0], pa.Table.from_batches([batch for _, batch in small]).combine_chunks().to_batches()[0])
            ]
    came = 0
    for first, batch in batches:
        here = wanted[bisect_left(wanted, first) : bisect_left(wanted, first + batch.num_rows)]
        came += len(here)
        if here:
            picked = reduce(_joined, [_picked(part, start, here) for start, part in [(first, batch), *beside]])
            yield from blocks_of(view.rows(picked), keys, index, here, rows.uri, how)
    if came < len(wanted):
        raise InputUnreadable(f"row group {rows.row_group} gave {came} of {len(wanted)} rows")


def _large_chunk(file: SourceFile, parquet: Any, group: int, names: Sequence[str]) -> tuple[Chunk | None, bool]:
    """The column chunk that is to be read by pages, if there is one; and whether any is too large to be read whole."""
    leaves = column_chunks(parquet.metadata.row_group(group), names)
    large = [leaf for leaf in leaves if leaf.total_compressed_size > WHOLE_CHUNK_BYTES]
    alone = len(large) == 1 and large[0].path_in_schema in names  # not a field of a struct that is read with others
    return chunk_of(file, parquet, group, large[0].path_in_schema) if alone else None, bool(large)


def _rows_a_batch(size: float, rows: int, together: float) -> int:
    """How many of `rows`, which have `size` bytes, are about BLOCK_BYTES.

    One, where the largest of them may lie side by side in `together` bytes, and that is too much to hold.
    """
    return 1 if together > WHOLE_CHUNK_BYTES else min(1024, max(1, int(BLOCK_BYTES * rows / max(1, size))))


def _from_start(
    file: SourceFile, parquet: Any, names: Sequence[str], rows: Slice, streamed: bool
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Rows from the first of a slice to its last, and a few around them, each batch with the number of its first; those
    before the slice are decoded, too."""
    group = parquet.metadata.row_group(rows.row_group)
    sizes = [int(leaf.total_uncompressed_size) for leaf in column_chunks(group, names)]
    if streamed:
        parquet = open_parquet(file, buffer_size=BUFFER_BYTES)
    batches = parquet.iter_batches(
        batch_size=_rows_a_batch(sum(sizes), group.num_rows, max(sizes, default=0)),
        row_groups=[rows.row_group],
        columns=names,
        use_threads=False,
    )
    position = 0
    for batch in map(without_views, batches):
        if rows.row_start < position + batch.num_rows:
            yield position, batch
        position += batch.num_rows
        if position >= rows.row_stop:
            return
    raise InputUnreadable(f"row group {rows.row_group} ended at row {position}, {rows.row_stop} planned")


def _from_pages(
    file: SourceFile, chunk: Chunk, rows: Slice, wanted: Sequence[int]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """As `_from_start`, of a large column chunk, the pages with some of the `wanted` rows."""
    for start, pages in _runs(chunk, pages_of(file, chunk, range(rows.row_start, rows.row_stop)), wanted):
        size, first = pages[-1].stop - start, pages[0].first_row
        together = size if start == chunk.start else max(page.stop - page.start for page in pages)
        a_batch = _rows_a_batch(size * chunk.growth, pages[-1].stop_row - first, together * chunk.growth)
        streamed = BUFFER_BYTES if size > WHOLE_CHUNK_BYTES and chunk.codec else 0
        for batch in map(without_views, read_pages(file, chunk, start, pages, a_batch, streamed)):
            yield first, batch
            first += batch.num_rows
            if a_batch == 1 and batch.nbytes > BLOCK_BYTES:  # Arrow has reserved as much as the page has
                pa.default_memory_pool().release_unused()


def _runs(chunk: Chunk, pages: Sequence[Page], wanted: Sequence[int]) -> Iterator[tuple[int, Sequence[Page]]]:
    """Pages that are read together, of all that hold wanted rows, and the byte where reading begins.

    Those that need the dictionary are read from the start of the chunk on: writers give a dictionary up early.
    """
    needed = [p for p in pages if bisect_left(wanted, p.first_row) < bisect_left(wanted, p.stop_row)]
    if last := max((page.stop for page in needed if page.by_dictionary), default=0):
        yield chunk.start, [page for page in pages if page.stop <= last]
    runs: list[list[Page]] = []
    for page in (page for page in needed if page.start >= last):
        if not runs or page.start != runs[-1][-1].stop or page.stop - runs[-1][0].start > TOGETHER_BYTES:
            runs.append([])
        runs[-1].append(page)
    yield from ((run[0].start, run) for run in runs)


def _picked(batch: pa.RecordBatch, first: int, rows: Sequence[int]) -> pa.RecordBatch:
    """Rows of a batch by their numbers, of which it begins with `first`."""
    if rows[-1] - rows[0] + 1 == len(rows):
        return batch.slice(rows[0] - first, len(rows))
    return batch.take(pa.array([row - first for row in rows], pa.int64()))


def _joined(one: Any, other: Any) -> Any:
    """The columns of two batches, and of a struct that is in both the fields of both; where it is null, they are."""
    columns = dict(zip(one.schema.names, one.columns, strict=True))
    for name, column in zip(other.schema.names, other.columns, strict=True):
        if name in columns:
            parts = [pa.RecordBatch.from_arrays(x.flatten(), schema=pa.schema(x.type)) for x in (columns[name], column)]
            column = _joined(*parts).to_struct_array()
        columns[name] = column
    return pa.RecordBatch.from_arrays(list(columns.values()), list(columns))


def blocks_of(
    batch: pa.RecordBatch, keys: Places, index: int, rows: Sequence[int], uri: str, how: InputSpec
) -> Iterator[RowBlock]:
    """Rows of a file, by their numbers; more than one block where the images that its URIs lead to are large.

    These are fetched FETCHES at a time, and no more are in memory.
    """
    cells = cells_of(column_at(batch, column_path(batch.schema, how.image)))
    table = keys_of(batch, keys) if keys else None

    def image_of(cell: ImageCell | Link) -> ImageCell:
        return image_at(cell.value, uri, how.uri_roots, how.image_encoding) if isinstance(cell, Link) else cell

    linked = any(isinstance(cell, Link) for cell in cells)
    found = ahead(image_of, cells, "fetch", at_once=FETCHES, a_thread=1) if linked else map(image_of, cells)
    images: list[ImageCell] = []
    held_bytes = 0
    for stop, image in enumerate(found, 1):
        images.append(image)
        held_bytes += 0 if isinstance(image, BadImage) else len(image)
        if held_bytes >= BLOCK_BYTES or stop == len(rows):
            start = stop - len(images)
            block_keys = None if table is None else table.slice(start, len(images))
            yield RowBlock(index, rows[start:stop], images, block_keys, held_bytes)
            images, held_bytes = [], 0
