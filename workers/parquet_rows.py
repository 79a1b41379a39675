"""The rows of Parquet files: every shape of image column, row groups larger than memory, URIs that are followed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from workers.contract import InputSpec, Slice
from workers.decoding import BadImage, ErrorCode
from workers.linked_images import image_at
from workers.parquet import InputUnreadable, chunk_sizes, image_kind, open_parquet
from workers.rows import ImageCell, RowBlock

WHOLE_CHUNK_BYTES = 128 * 2**20
"""Column chunks up to this size are read in one request; larger ones are streamed, BUFFER_BYTES at a time."""
BUFFER_BYTES = 8 * 2**20
BLOCK_BYTES = 16 * 2**20
FETCHES = 16
"""Requests in flight when each image is an object of its own. Their threads wait; they do not compute."""


def slice_blocks(file: Any, parquet: Any, index: int, rows: Slice, how: InputSpec) -> Iterator[RowBlock]:
    """The rows of one slice, which is number `index` of its shard. Raises InputUnreadable and what Arrow raises."""
    schema = parquet.schema_arrow
    kind = image_kind(schema, how.image)
    columns = {"struct": [f"{how.image}.bytes", f"{how.image}.path"], "struct_bytes": [f"{how.image}.bytes"]}
    group = parquet.metadata.row_group(rows.row_group)
    bytes_a_row = max(1, group.total_byte_size // max(1, group.num_rows))
    if max(chunk_sizes(group, (how.image, *how.keys))) > WHOLE_CHUNK_BYTES:
        parquet = open_parquet(file, buffer_size=BUFFER_BYTES)
    batches = parquet.iter_batches(
        batch_size=min(1024, max(16, BLOCK_BYTES // bytes_a_row)),
        row_groups=[rows.row_group],
        columns=[*columns.get(kind, [how.image]), *how.keys],
        use_threads=False,
    )
    position = 0
    for batch in batches:
        start, stop = max(rows.row_start, position), min(rows.row_stop, position + batch.num_rows)
        if start < stop:
            yield _block(batch.slice(start - position, stop - start), index, start, kind, rows.uri, how)
        position += batch.num_rows
        if position >= rows.row_stop:
            return
    raise InputUnreadable(f"row group {rows.row_group} ended at row {position}, {rows.row_stop} planned")


def _block(batch: pa.RecordBatch, index: int, start: int, kind: str, source: str, how: InputSpec) -> RowBlock:
    column = batch.column(how.image)
    if kind == "binary":
        images: list[ImageCell] = _cells(column)
    elif kind == "uri":
        images = _fetch_uris(column.to_pylist(), source, how)
    else:
        # flatten() carries the nulls of the struct itself over to its fields.
        fields = dict(zip((f.name for f in column.type), column.flatten(), strict=True))
        images = _cells(fields["bytes"])
        paths = fields["path"].to_pylist() if kind == "struct" else [None] * len(column)
        # Hugging Face stores either the bytes or, when they were not embedded, the path.
        missing = [i for i, cell in enumerate(images) if isinstance(cell, BadImage) and paths[i]]
        for i, cell in zip(missing, _fetch_uris([paths[i] for i in missing], source, how), strict=True):
            images[i] = cell
    keys = pa.Table.from_batches([batch.select(list(how.keys))]) if how.keys else None
    return RowBlock(index, start, images, keys, sum(_size(cell) for cell in images))


def _cells(column: pa.Array) -> list[ImageCell]:
    """Each cell's bytes without a copy, or the error row's code for a null."""
    null = BadImage(ErrorCode.NULL, "the image cell is null")
    return [cell.as_buffer() if cell.is_valid else null for cell in column]


def _size(cell: ImageCell) -> int:
    return 0 if isinstance(cell, BadImage) else len(cell) if isinstance(cell, bytes) else cell.size


def _fetch_uris(values: list[str | None], source: str, how: InputSpec) -> list[ImageCell]:
    """The images that URIs point to, many requests at a time, each checked against the allowed roots first."""
    with ThreadPoolExecutor(FETCHES, "fetch") as pool:
        return list(pool.map(lambda value: image_at(value, source, how.uri_roots), values))
