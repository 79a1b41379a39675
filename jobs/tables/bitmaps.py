"""Deletion vectors as Delta and Iceberg keep them: sets of row positions as 64-bit Roaring bitmaps.

Source of the layout: Delta's PROTOCOL.md, "Deletion Vector Format", and RoaringFormatSpec of RoaringBitmap.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from jobs.ledger.table_files import Positions

_MAGIC = 1681511377
_WITH_RUNS, _WITHOUT_RUNS = 12347, 12346
_OFFSETS_FROM = 4
"""Containers from which on a bitmap with runs says where each begins."""
_ARRAY_MOST = 4096
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
        raise ValueError("a deletion vector's checksum is wrong")
    return found


def positions_of(bitmap: bytes) -> Positions:
    """The positions in a 64-bit bitmap, ascending. Raises ValueError for anything else."""
    try:
        magic, buckets = struct.unpack_from("<IQ", bitmap)
        if magic != _MAGIC:
            raise ValueError(f"a deletion vector of another layout (magic number {magic})")
        at, found = 12, [np.zeros(0, np.int64)]
        for _ in range(buckets):
            [high] = struct.unpack_from("<I", bitmap, at)
            at = _bucket(bitmap, at + 4, high << 32, found)
    except struct.error as error:
        raise ValueError("a deletion vector is cut short") from error
    return np.concatenate(found)


def _bucket(bitmap: bytes, at: int, above: int, found: list[Positions]) -> int:
    """Append the positions of a 32-bit bitmap that begins at a byte; gives the byte after it."""
    [cookie] = struct.unpack_from("<I", bitmap, at)
    at, runs = at + 4, b""
    if cookie & 0xFFFF == _WITH_RUNS:
        containers = (cookie >> 16) + 1
        runs, at = bitmap[at : at + (containers + 7) // 8], at + (containers + 7) // 8
    elif cookie == _WITHOUT_RUNS:
        [containers], at = struct.unpack_from("<I", bitmap, at), at + 4
    else:
        raise ValueError(f"a deletion vector of another layout (cookie {cookie})")
    heads = struct.unpack_from(f"<{2 * containers}H", bitmap, at)
    at += 4 * containers + (4 * containers if not runs or containers >= _OFFSETS_FROM else 0)
    for number in range(containers):
        key, cardinality = heads[2 * number], heads[2 * number + 1] + 1
        if runs and runs[number // 8] >> (number % 8) & 1:
            [count] = struct.unpack_from("<H", bitmap, at)
            pairs = _numbers(bitmap, at + 2, 2 * count).reshape(-1, 2)
            low = np.concatenate([np.arange(first, first + more + 1) for first, more in pairs])
            at += 2 + 4 * count
        elif cardinality <= _ARRAY_MOST:
            low, at = _numbers(bitmap, at, cardinality), at + 2 * cardinality
        else:
            bits = np.unpackbits(_numbers(bitmap, at, 4096).astype("<u2").view(np.uint8), bitorder="little")
            low, at = np.flatnonzero(bits), at + 8192
        if len(low) != cardinality:
            raise ValueError("a deletion vector does not hold as many rows as it says")
        found.append(low + (above + (key << 16)))
    return at


def _numbers(bitmap: bytes, at: int, count: int) -> Positions:
    if len(bitmap) < at + 2 * count:
        raise struct.error
    return np.frombuffer(bitmap, "<u2", count, at).astype(np.int64)
