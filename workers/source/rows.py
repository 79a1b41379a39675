"""Rows of the input: those that stay together when it is cut into shards, and a block of them as it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import pyarrow as pa

from workers.image.errors import BadImage

BLOCK_BYTES = 4 * 2**20
"""Encoded images that are handed on at once, so that memory is used again while it is in the cache."""
FETCHES = 16
"""Requests in flight when each image is an object of its own. Their threads wait; they do not compute."""

ImageCell: TypeAlias = memoryview | bytes | BadImage
"""An encoded image, or why the row has none."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows that stay together: a row group of a Parquet file, some samples of a tar file, an image file."""

    rows: int
    bytes: int
    """Of the columns that are read, compressed; of a tar from the first sample's header to the end of the last one."""
    number: int = 0
    """Of the row group in its file; always 0 in files that have none."""
    row_start: int = 0
    """First row, counted from the start of the row group with this number."""
    byte_start: int = 0
    """Where in a tar file the first row lies: `Slice.byte_start`."""
    whole: bool = False
    """Never to be split: where a row in the middle lies is not known."""
    paged: bool = False
    """Read by its pages: a piece of it does not read past the rows before it."""


@dataclass(frozen=True)
class RowBlock:
    """What a reader gives to the predictor: encoded images with their key columns, rows of one slice."""

    slice_index: int
    rows: Sequence[int]
    """Their numbers in the row group, ascending."""
    images: Sequence[ImageCell]
    keys: pa.Table | None
    bytes_read: int


FILE_KEYS: Mapping[str, Callable[[str], str]] = {
    "path": lambda uri: uri.partition("://")[2].partition("/")[2] if "://" in uri else uri,
    "folder": lambda uri: uri.rpartition("/")[0].rpartition("/")[2],
    "name": lambda uri: uri.rpartition("/")[2],
}
"""What an image file is known by, from its URI alone: its path within its bucket or file system, the name of the folder
that it lies in, its own name."""


def file_keys(uris: Sequence[str], copied: Mapping[str, str]) -> pa.Table:
    """These keys of image files, as InputSpec.copied has them, a row each."""
    return pa.table([[FILE_KEYS[key](uri) for uri in uris] for key in copied.values()], keys_schema(copied))


def keys_schema(names: Iterable[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in names])
