"""What a reader gives to the predictor: encoded images with their key columns, a block of rows at a time."""

from __future__ import annotations

from collections.abc import Sequence
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


@dataclass(frozen=True)
class RowBlock:
    """Rows of one slice."""

    slice_index: int
    rows: Sequence[int]
    """Their numbers in the row group, ascending."""
    images: Sequence[ImageCell]
    keys: pa.Table | None
    bytes_read: int
