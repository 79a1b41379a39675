"""A source's file, opened for reading, which remembers whether its storage failed."""

from __future__ import annotations

import io
from typing import Any

import pyarrow.parquet as pq
from fsspec.asyn import AsyncFileSystem

from workers.storage.retries import retrying

PIECE_BYTES = 128 * 2**20
"""More is read from a store in pieces: a store's library holds an answer twice while it puts it together."""


class InputUnreadable(Exception):
    """The source is there and is not what the plan says: not Parquet, no such column, damaged pages."""


class InputDenied(InputUnreadable):
    """The store does not let it be read: archived, encrypted, locked, or not for us. Another node may
    have the right."""


class SourceFile(io.RawIOBase):
    """A file of any fsspec file system, read with retries. It remembers the fault of its storage, if it had one.

    What reads raise is StoreError, StoreDenied, NotFound.
    """

    def __init__(self, fs: Any, path: str) -> None:
        self.fs, self.path = fs, path
        self.remote = isinstance(fs, AsyncFileSystem)
        # No cache between Arrow and the object: Arrow asks for what it needs, once.
        self._file = fs.open(path, "rb", **({"cache_type": "none"} if self.remote else {}))
        self.fault: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        if self.remote and size > PIECE_BYTES:
            whole: Any = memoryview(bytearray(size))
            filled = 0
            while piece := self.read(min(PIECE_BYTES, size - filled)):
                whole[filled : filled + len(piece)] = piece
                filled += len(piece)
            found: bytes = whole[:filled]
            return found
        try:
            # A failed read leaves the position where it was.
            return bytes(retrying(lambda: self._file.read(size), self.path))
        except Exception as error:
            self.fault = error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


def open_parquet(file: Any, *, buffer_size: int = 0, int96_unit: str = "us", metadata: Any = None) -> pq.ParquetFile:
    """INT96, as Spark and Athena write times, in microseconds: in nanoseconds, Arrow's default, 9999-12-31 is 1816."""
    return pq.ParquetFile(
        file,
        metadata=metadata,
        pre_buffer=False,
        buffer_size=buffer_size,
        page_checksum_verification=True,
        coerce_int96_timestamp_unit=int96_unit,
    )


def opened(fs: Any, path: str) -> SourceFile:
    """Open a source. Raises StoreError, StoreDenied, NotFound."""
    return retrying(lambda: SourceFile(fs, path), path)
