"""Predictions that are copied: of an image that was scored before, at another place of its table.

A table that is updated copies rows into new files. The same bytes give the same prediction, so the hash of an image
finds it again, and neither decoder nor network has to run.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from workers.contract import MOST_COPIED
from workers.image.errors import BadImage
from workers.output import IMAGE_HASH, OutputObject
from workers.source.rows import ImageCell
from workers.storage.errors import NotFound
from workers.storage.lookahead import ahead
from workers.storage.store import Store

HASH_BYTES = 16
_OBJECTS_HELD = 8


def image_hash(cell: ImageCell) -> bytes | None:
    """The first HASH_BYTES of an encoded image's SHA-256; None where there is no image."""
    return None if isinstance(cell, BadImage) else hashlib.sha256(cell).digest()[:HASH_BYTES]


class Copies:
    """Good predictions of some objects of a root, by the hash of their image. For one thread at a time."""

    def __init__(self, store: Store, keys: Sequence[str], columns: Sequence[str]) -> None:
        """`columns` are what is copied of a row. Objects that are not there hold nothing. Raises NotOurs, StoreError,
        StoreDenied."""
        self._columns = columns

        def read(number: int, names: Sequence[str]) -> pa.Table:
            return OutputObject(store.get(keys[number])).table([IMAGE_HASH, *names])

        def hashes_of(number: int) -> pa.Array:
            """Of an object's rows; null where there is no prediction."""
            try:
                table = read(number, ["error_code"])
            except NotFound:
                return pa.array([], pa.binary())
            return pc.if_else(pc.is_null(table["error_code"]), table[IMAGE_HASH], None).combine_chunks()

        self._object = lru_cache(_OBJECTS_HELD)(lambda number: read(number, columns))
        begins, places, room = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)], MOST_COPIED
        latest_first = range(len(keys) - 1, -1, -1)
        for number, hashes in zip(latest_first, ahead(hashes_of, latest_first, "copies"), strict=True):
            rows = np.flatnonzero(pc.is_valid(hashes).to_numpy(zero_copy_only=False))[:room]
            begins.append(_begins(hashes.take(pa.array(rows))))
            places.append(number << 32 | rows)
            room -= len(rows)
            if not room:
                break
        begin = np.concatenate(begins)
        order = np.argsort(begin, kind="stable")
        self._begin, self._place = begin[order], np.concatenate(places)[order]

    def find(self, hashes: Sequence[bytes | None]) -> tuple[list[int], pa.Table]:
        """Which of the images have a prediction, by their numbers, and what is copied of it. Raises as when made."""
        known = [number for number, one in enumerate(hashes) if one is not None]
        begin = _begins(pa.array([hashes[number] for number in known], pa.binary()))
        at = np.minimum(np.searchsorted(self._begin, begin), max(0, len(self._begin) - 1))
        wanted = defaultdict[int, list[tuple[int, int]]](list)
        for index in np.flatnonzero(self._begin[at] == begin).tolist() if len(self._begin) else ():
            place = int(self._place[at[index]])
            wanted[place >> 32].append((known[index], place & (2**32 - 1)))
        numbers: list[int] = []
        tables: list[pa.Table] = []
        for number, pairs in wanted.items():
            table = self._object(number)
            same = [(n, row) for n, row in pairs if table[IMAGE_HASH][row].as_py() == hashes[n]]
            numbers += [n for n, _ in same]
            tables.append(table.take(pa.array([row for _, row in same], pa.int64())))
        return numbers, pa.concat_tables(tables).select(self._columns) if tables else pa.table({})


def _begins(hashes: pa.Array) -> npt.NDArray[np.uint64]:
    """The first 8 bytes of each, none of which is null."""
    whole = b"".join(hashes.to_pylist())
    return np.frombuffer(whole, np.uint64)[:: HASH_BYTES // 8]
