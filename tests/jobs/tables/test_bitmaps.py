"""Deletion vectors: every kind of container, and what is damaged."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from pyroaring import BitMap64

from jobs.tables.bitmaps import from_z85, positions_of, stored_vector
from tests.jobs.tables.delta_tables import bitmap, z85

MAGIC = 1681511377


def one_container(cookie: bytes, cardinality: int, body: bytes, key: int = 0) -> bytes:
    head = struct.pack("<IQI", MAGIC, 1, 0) + cookie
    offsets = struct.pack("<I", 16) if cookie.startswith(struct.pack("<I", 12346)) else b""
    return head + struct.pack("<HH", key, cardinality - 1) + offsets + body


def test_the_vector_that_deltas_own_tests_keep_inline_is_read() -> None:
    raw = from_z85("^Bg9^0rr910000000000iXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L")[:44]
    assert positions_of(raw).tolist() == [3, 4, 7, 11, 18, 29]
    assert positions_of(bitmap([3, 4, 7, 11, 18, 29])).tolist() == [3, 4, 7, 11, 18, 29]


def test_runs_are_read() -> None:
    runs = struct.pack("<H", 2) + struct.pack("<4H", 5, 2, 100, 0)
    raw = one_container(struct.pack("<I", 12347) + b"\x01", 4, runs, key=1)
    assert positions_of(raw).tolist() == [65541, 65542, 65543, 65636]


def test_containers_of_single_bits_are_read() -> None:
    alive = np.zeros(65536, bool)
    alive[::3] = True
    bits = np.packbits(alive, bitorder="little").tobytes()
    raw = one_container(struct.pack("<II", 12346, 1), int(alive.sum()), bits)
    assert positions_of(raw).tolist() == list(range(0, 65536, 3))


def test_positions_beyond_32_bits_are_read() -> None:
    every = [0, 1, 65536, 2**32 + 7, 2**33]
    assert positions_of(bitmap(every)).tolist() == every


def test_an_empty_vector_holds_nothing() -> None:
    assert positions_of(bitmap([])).tolist() == []


@pytest.mark.parametrize("seed", range(8))
def test_whatever_another_library_writes_is_read(seed: int) -> None:
    random = np.random.default_rng(seed)
    written = BitMap64()
    for _ in range(seed):
        first = int(random.integers(0, 3)) << 32 | int(random.integers(0, 2**16)) << 16
        written |= BitMap64((first + random.integers(0, 65536, random.integers(1, 9000))).tolist())
        written |= BitMap64(range(first + 60000, first + 70000))
    if seed % 2:
        written.run_optimize()
    raw = struct.pack("<I", MAGIC) + written.serialize()
    assert positions_of(raw).tolist() == list(written)
    for cut in range(0, len(raw), max(1, len(raw) // 20)):
        with pytest.raises(ValueError, match="deletion vector"):
            positions_of(raw[:cut])


def test_another_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="another layout"):
        positions_of(struct.pack("<IQ", MAGIC + 1, 0))
    with pytest.raises(ValueError, match="damaged"):
        positions_of(struct.pack("<IQII", MAGIC, 1, 0, 99))


def test_a_wrong_checksum_is_seen() -> None:
    raw = bitmap([1])
    stored = struct.pack(">I", len(raw)) + raw + struct.pack(">I", zlib.crc32(raw))
    assert stored_vector(stored) == raw
    for damaged in (stored[:-1], stored[:-1] + b"\x00", stored[:9] + b"\xff" + stored[10:]):
        with pytest.raises(ValueError, match="checksum"):
            stored_vector(damaged)


def test_base_85_goes_both_ways() -> None:
    assert from_z85(z85(bytes(range(16)))) == bytes(range(16))
