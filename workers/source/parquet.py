"""Parquet sources: how they are opened, and the shapes of an image column."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from workers.source.source_file import InputUnreadable


def open_parquet(file: Any, *, buffer_size: int = 0) -> pq.ParquetFile:
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=buffer_size, page_checksum_verification=True)


def chunk_sizes(group: Any, columns: Iterable[str]) -> list[int]:
    """Compressed bytes of each column chunk of a row group that belongs to one of the top-level columns."""
    wanted = set(columns)
    chunks = (group.column(i) for i in range(group.num_columns))
    return [int(c.total_compressed_size) for c in chunks if c.path_in_schema.split(".")[0] in wanted]


def image_kind(schema: pa.Schema, column: str) -> str:
    """How a column holds images: `binary`, `struct` (bytes and path), `struct_bytes` or `uri`.

    Raises InputUnreadable when there is no such column or it holds something else.
    """
    if column not in schema.names:
        raise InputUnreadable(f"no column {column!r}; the file has {', '.join(schema.names)}")
    arrow_type = schema.field(column).type
    if pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type):
        return "binary"
    if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type):
        return "uri"
    if pa.types.is_struct(arrow_type) and arrow_type.get_field_index("bytes") >= 0:
        if arrow_type.get_field_index("path") >= 0:
            return "struct"
        return "struct_bytes"
    raise InputUnreadable(
        f"column {column!r} is {arrow_type}: images are binary, large_binary, struct<bytes, path> or a string URI"
    )
