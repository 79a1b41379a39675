"""Columns of a table: every shape that holds encoded images, or tells where they are."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from workers.image.errors import BadImage, ErrorCode
from workers.source.rows import ImageCell
from workers.source.source_file import InputUnreadable

_BINARY = (pa.types.is_binary, pa.types.is_large_binary)
_TEXT = (pa.types.is_string, pa.types.is_large_string)


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


class Link(NamedTuple):
    """In place of an image: where it is."""

    value: str | None


def cells_of(column: pa.Array) -> Sequence[ImageCell | Link]:
    """The images of a column's cells, or where they are."""
    if not pa.types.is_struct(column.type):
        is_text = any(is_one(column.type) for is_one in _TEXT)
        return [Link(value) for value in _texts(column)] if is_text else binary_cells(column)
    # flatten() carries the nulls of the struct itself over to its fields.
    fields = dict(zip((f.name for f in column.type), column.flatten(), strict=True))
    images = binary_cells(fields["bytes"])
    paths = _texts(fields["path"]) if "path" in fields else [None] * len(column)
    # Hugging Face stores either the bytes or, when they were not embedded, the path.
    return [
        Link(path) if path and isinstance(cell, BadImage) else cell for cell, path in zip(images, paths, strict=True)
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
