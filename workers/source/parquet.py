"""Parquet sources: footers, every shape of image column, row groups larger than memory, URIs that are followed."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.contract import InputSpec, Slice
from workers.image.errors import BadImage, ErrorCode
from workers.source.links import image_at
from workers.source.rows import BLOCK_BYTES, FETCHES, ImageCell, RowBlock
from workers.source.source_file import InputUnreadable
from workers.storage.lookahead import ahead

WHOLE_CHUNK_BYTES = 128 * 2**20
"""Column chunks up to this size are read in one request, if all rows are wanted; others are streamed, BUFFER_BYTES at a
time."""
BUFFER_BYTES = 8 * 2**20
_BINARY = (pa.types.is_binary, pa.types.is_large_binary)
_TEXT = (pa.types.is_string, pa.types.is_large_string)


def open_parquet(file: Any, *, buffer_size: int = 0) -> pq.ParquetFile:
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=buffer_size, page_checksum_verification=True)


def chunk_sizes(group: Any, columns: Iterable[str]) -> list[int]:
    """Compressed bytes of each column chunk of a row group that belongs to one of the top-level columns."""
    wanted = set(columns)
    chunks = (group.column(i) for i in range(group.num_columns))
    return [int(c.total_compressed_size) for c in chunks if c.path_in_schema.split(".")[0] in wanted]


def image_columns(schema: pa.Schema, column: str) -> list[str]:
    """What to read of a column for its images: the column, or of a struct its fields `bytes` and, if any, `path`.

    Raises InputUnreadable when there is no such column or it holds something else.
    """
    if column not in schema.names:
        raise InputUnreadable(f"no column {column!r}; the file has {', '.join(schema.names)}")
    kind = schema.field(column).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return [f"{column}.{name}" for name in ("bytes", "path") if kind.get_field_index(name) >= 0]
    if not any(is_one(kind) for is_one in (*_BINARY, *_TEXT)):
        raise InputUnreadable(
            f"column {column!r} is {kind}: images are binary, large_binary, struct<bytes, path> or a string URI"
        )
    return [column]


def row_group_blocks(
    file: Any, parquet: Any, index: int, rows: Slice, how: InputSpec, only: Container[int] | None = None
) -> Iterator[RowBlock]:
    """The rows of one slice, which is number `index` of its shard, all or those among `only`.

    Raises InputUnreadable and what Arrow raises.
    """
    columns = [*image_columns(parquet.schema_arrow, how.image), *how.keys]
    group = parquet.metadata.row_group(rows.row_group)
    if only is not None or max(chunk_sizes(group, (how.image, *how.keys))) > WHOLE_CHUNK_BYTES:
        parquet = open_parquet(file, buffer_size=BUFFER_BYTES)
    batches = parquet.iter_batches(
        batch_size=_rows_a_batch(group),
        row_groups=[rows.row_group],
        columns=columns,
        use_threads=False,
    )
    position = 0
    for batch in batches:
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
    keys = pa.Table.from_batches([batch.select(list(how.keys))]) if how.keys else None
    images: list[ImageCell] = []
    done = held_bytes = 0

    def block() -> RowBlock:
        here = slice(done, done + len(images))
        return RowBlock(index, rows[here], images, None if keys is None else keys.slice(done, len(images)), held_bytes)

    for image in _followed(_cells_of(batch.column(how.image)), source, how):
        images.append(image)
        held_bytes += 0 if isinstance(image, BadImage) else len(image)
        if held_bytes >= BLOCK_BYTES:
            yield block()
            done, images, held_bytes = done + len(images), [], 0
    if images:
        yield block()


class _Link(NamedTuple):
    """In place of an image: where it is."""

    value: str | None


def _cells_of(column: pa.Array) -> Sequence[ImageCell | _Link]:
    if not pa.types.is_struct(column.type):
        is_text = any(is_one(column.type) for is_one in _TEXT)
        return [_Link(value) for value in _texts(column)] if is_text else binary_cells(column)
    # flatten() carries the nulls of the struct itself over to its fields.
    fields = dict(zip((f.name for f in column.type), column.flatten(), strict=True))
    images = binary_cells(fields["bytes"])
    paths = _texts(fields["path"]) if "path" in fields else [None] * len(column)
    # Hugging Face stores either the bytes or, when they were not embedded, the path.
    return [
        _Link(path) if path and isinstance(cell, BadImage) else cell for cell, path in zip(images, paths, strict=True)
    ]


def _texts(column: pa.Array) -> list[str | None]:
    """Each cell's text. Parquet's writers may put any bytes into it: those become lone surrogates, which no URI has."""
    return [
        None if cell is None else cell.decode("utf-8", "surrogateescape")
        for cell in column.cast(pa.large_binary()).to_pylist()
    ]


def binary_cells(column: pa.Array) -> list[ImageCell]:
    """Each cell of a (large) binary column as it lies in Arrow's memory, or the error row's code for a null.

    By the column's offsets, because pyarrow's own access to one cell copies it.
    """
    _, offsets, data = column.buffers()
    if data is None:  # not one byte in the column
        data = pa.py_buffer(b"")
    width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    ends = np.frombuffer(offsets, width, len(column) + 1, column.offset * width().itemsize).tolist()
    bytes_of_all = memoryview(data).cast("B")
    cells: list[ImageCell] = [bytes_of_all[start:stop] for start, stop in pairwise(ends)]
    if column.null_count:
        null = BadImage(ErrorCode.NULL, "the image cell is null")
        for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
            cells[row] = null
    return cells


def _followed(cells: Sequence[ImageCell | _Link], source: str, how: InputSpec) -> Iterator[ImageCell]:
    """The cells in order, links replaced by the images that they lead to: FETCHES at a time, and no more in memory."""

    def image_of(cell: ImageCell | _Link) -> ImageCell:
        return image_at(cell.value, source, how.uri_roots) if isinstance(cell, _Link) else cell

    if any(isinstance(cell, _Link) for cell in cells):
        return ahead(image_of, cells, "fetch", at_once=FETCHES, a_thread=1)
    return map(image_of, cells)
