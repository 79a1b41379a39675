"""Deletion vectors as Delta and Iceberg keep them: sets of row positions as 64-bit Roaring bitmaps.

Source of the layout: Delta's PROTOCOL.md, "Deletion Vector Format"; Iceberg's Puffin blobs of type deletion-vector-v1
are the same.
"""

from __future__ import annotations

import base64
import zlib

import numpy as np

from jobs.errors import SpecError
from jobs.ledger.table_files import Positions

_MAGIC = (1681511377).to_bytes(4, "little")
_Z85 = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_B85 = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
_BASE85 = bytes.maketrans(_Z85, _B85)


def from_z85(text: str) -> bytes:
    """What ZeroMQ's base 85 stands for. Raises ValueError."""
    return base64.b85decode(text.encode().translate(_BASE85))


def stored_vector(stored: bytes) -> bytes:
    """The bitmap out of what a file holds of it: its size, itself, its checksum. Raises ValueError."""
    size = int.from_bytes(stored[:4], "big")
    found, checksum = stored[4 : 4 + size], stored[4 + size : 8 + size]
    if zlib.crc32(found) != int.from_bytes(checksum, "big") or len(checksum) != 4:
        raise ValueError("a damaged deletion vector: its checksum is wrong")
    return found


def positions_of(bitmap: bytes) -> Positions:
    """The positions in a 64-bit bitmap, ascending. Raises ValueError for anything else; SpecError."""
    try:
        from pyroaring import BitMap64
    except ImportError as error:
        raise SpecError("reading a table's deletion vectors takes pyroaring", "pip install 'stint[delta]'") from error
    if not bitmap.startswith(_MAGIC):
        raise ValueError("a deletion vector of another layout")
    try:
        found = BitMap64.deserialize(bitmap[len(_MAGIC) :])
    except (ValueError, IndexError) as error:
        raise ValueError(f"a damaged deletion vector: {error}") from error
    return np.array(found.to_array(), np.int64)
