"""Parquet sources: a fault of storage told apart from damage in the file, and the shapes of an image column."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.asyn import AsyncFileSystem

from workers.retries import retrying


class InputUnreadable(Exception):
    """The source is there and is not what the plan says: not Parquet, no such column, damaged pages."""


class SourceFile(io.RawIOBase):
    """A file of any fsspec file system that remembers the fault of its storage, if it had one."""

    def __init__(self, fs: Any, path: str) -> None:
        self._file = fs.open(path, "rb", **_open_options(fs))
        self._path = path
        self.remote = isinstance(fs, AsyncFileSystem)
        self.fault: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        try:
            # A failed read leaves the position where it was.
            return bytes(retrying(lambda: self._file.read(size), self._path) if self.remote else self._file.read(size))
        except Exception as error:
            self.fault = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_options(fs: Any) -> dict[str, Any]:
    """No cache between Arrow and the object: Arrow asks for what it needs, once."""
    return {"cache_type": "none"} if isinstance(fs, AsyncFileSystem) else {}


def opened(fs: Any, path: str) -> SourceFile:
    """Open a source. Raises StoreError, StoreDenied, NotFound."""
    return retrying(lambda: SourceFile(fs, path), path)


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
