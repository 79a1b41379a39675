"""Parquet sources: footers, row groups larger than memory, URIs that are followed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.contract import InputSpec, Slice
from workers.image.errors import BadImage
from workers.source.columns import (
    Link,
    cells_of,
    column_at,
    column_path,
    image_columns,
    key_columns_read,
    keys_of,
    without_views,
)
from workers.source.links import image_at
from workers.source.rows import BLOCK_BYTES, FETCHES, ImageCell, RowBlock
from workers.source.source_file import InputUnreadable
from workers.storage.lookahead import ahead

WHOLE_CHUNK_BYTES = 128 * 2**20
"""Column chunks up to this size are read in one request, if all rows are wanted; others are streamed, BUFFER_BYTES at a
time."""
BUFFER_BYTES = 8 * 2**20


def open_parquet(file: Any, *, buffer_size: int = 0, int96_unit: str = "us") -> pq.ParquetFile:
    """INT96, as Spark and Athena write times, in microseconds: in nanoseconds, Arrow's default, 9999-12-31 is 1816."""
    return pq.ParquetFile(
        file,
        pre_buffer=False,
        buffer_size=buffer_size,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit=int96_unit,
    )


def chunk_sizes(group: Any, columns: Iterable[str]) -> list[int]:
    """Compressed bytes of each column chunk of a row group that belongs to one of the columns, or fields of structs."""
    wanted = {*columns}
    within = tuple(f"{column}." for column in wanted)
    chunks = (group.column(i) for i in range(group.num_columns))
    return [int(c.total_compressed_size) for c in chunks if (p := c.path_in_schema) in wanted or p.startswith(within)]


def read_keys(parquet: Any, how: InputSpec, uri: str, row_group: int | None = None) -> pa.Table:
    """The key columns of all rows, or of a row group, under their names in the output. Raises what Arrow raises."""
    columns = key_columns_read(parquet.schema_arrow, how)
    rows = parquet.read(columns) if row_group is None else parquet.read_row_group(row_group, columns)
    return keys_of(rows, how, uri)


def row_group_blocks(
    file: Any, parquet: Any, index: int, rows: Slice, how: InputSpec, only: Container[int] | None = None
) -> Iterator[RowBlock]:
    """The rows of one slice, which is number `index` of its shard, all or those among `only`.

    Raises InputUnreadable and what Arrow raises.
    """
    schema = parquet.schema_arrow
    columns = [*image_columns(schema, how.image), *key_columns_read(schema, how)]
    group = parquet.metadata.row_group(rows.row_group)
    if only is not None or max(chunk_sizes(group, columns)) > WHOLE_CHUNK_BYTES:
        parquet = open_parquet(file, buffer_size=BUFFER_BYTES)
    batches = parquet.iter_batches(
        batch_size=_rows_a_batch(group),
        row_groups=[rows.row_group],
        columns=columns,
        use_threads=False,
    )
    position = 0
    for batch in map(without_views, batches):
        wanted: Sequence[int] = range(max(rows.row_start, position), min(rows.row_stop, position + batch.num_rows))
        if only is not None:
            wanted = [row for row in wanted if row in only]
        if wanted:
            places = None if only is None else pa.array([row - position for row in wanted])
            part = batch.slice(wanted[0] - position, len(wanted)) if places is None else batch.take(places)
            yield from _blocks(part, index, wanted, rows.uri, how)
        position += batch.num_rows
        if position >= rows.row_stop:
            return
    raise InputUnreadable(f"row group {rows.row_group} ended at row {position}, {rows.row_stop} planned")


def _rows_a_batch(group: Any) -> int:
    """Rows of a row group, given its metadata, that are about BLOCK_BYTES."""
    bytes_a_row = max(1, group.total_byte_size // max(1, group.num_rows))
    return int(min(1024, max(16, BLOCK_BYTES // bytes_a_row)))


def _blocks(batch: pa.RecordBatch, index: int, rows: Sequence[int], source: str, how: InputSpec) -> Iterator[RowBlock]:
    """The rows of a batch, by their numbers; more than one block where the images that its URIs lead to are large."""
    keys = keys_of(batch, how, source) if how.keys else None
    images: list[ImageCell] = []
    done = held_bytes = 0

    def block() -> RowBlock:
        here = slice(done, done + len(images))
        return RowBlock(index, rows[here], images, None if keys is None else keys.slice(done, len(images)), held_bytes)

    for image in _followed(cells_of(column_at(batch, column_path(batch.schema, how.image))), source, how):
        images.append(image)
        held_bytes += 0 if isinstance(image, BadImage) else len(image)
        if held_bytes >= BLOCK_BYTES:
            yield block()
            done, images, held_bytes = done + len(images), [], 0
    if images:
        yield block()


def _followed(cells: Sequence[ImageCell | Link], source: str, how: InputSpec) -> Iterator[ImageCell]:
    """The cells in order, links replaced by the images that they lead to: FETCHES at a time, and no more in memory."""

    def image_of(cell: ImageCell | Link) -> ImageCell:
        return image_at(cell.value, source, how.uri_roots, how.image_encoding) if isinstance(cell, Link) else cell

    if any(isinstance(cell, Link) for cell in cells):
        return ahead(image_of, cells, "fetch", at_once=FETCHES, a_thread=1)
    return map(image_of, cells)
