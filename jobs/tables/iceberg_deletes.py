"""Which rows of an Iceberg table's data files its delete files have taken, and since which sequence number.

Source: the sections on scan planning and delete formats of https://iceberg.apache.org/spec/.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import SpecError
from jobs.tables.columns import present_columns
from jobs.tables.iceberg_files import EQUALITY_DELETES, POSITION_DELETES, ManifestEntry, StoreFiles, refuse_unreadable
from workers.source.source_file import opened
from workers.storage.errors import StoreError
from workers.storage.lookahead import ahead

DeadRows = Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]
"""By path of a data file: positions of rows that are not live, ascending, each once; and the sequence numbers of the
first deletes that took them."""

_ALIVE = np.iinfo(np.int64).max
_MAGIC = b"\xd1\xd3\x39\x64"


def dead_rows(
    files: StoreFiles,
    data: Mapping[str, ManifestEntry],
    deletes: Iterable[ManifestEntry],
    fields: Mapping[int, pa.Field],
    everywhere: frozenset[int],
    constants: Mapping[tuple[int, tuple[object, ...]], Mapping[int, object]],
) -> DeadRows:
    """Rows of the `data` files, by path, that the `deletes` took.

    `fields` are the columns that the table has or had, by number, and `constants` what partitions say of them. Equality
    deletes in partition specs `everywhere` are about files of all partitions. Raises SpecError, NotFound, StoreError,
    StoreDenied.
    """
    deletes = list(deletes)
    refuse_unreadable(deletes)
    dead: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
    positions = [
        one for one in deletes if one.content == POSITION_DELETES and (not one.referenced or one.referenced in data)
    ]
    for one, found in zip(positions, ahead(lambda one: _positions(files, one), positions, "deletes"), strict=True):
        for path, rows in found.items():
            if path in data and data[path].sequence <= one.sequence:
                dead[path].append((rows, np.full(len(rows), one.sequence)))
    groups = _keys(files, [one for one in deletes if one.content == EQUALITY_DELETES], fields, everywhere)

    def matched(one: ManifestEntry) -> tuple[Any, Any]:
        here = [keys for scope in (None, one.partition) for keys in groups.get(scope, ()) if keys.last > one.sequence]
        wanted = {number: fields[number] for keys in here for number in keys.numbers}
        said = constants.get(one.partition, {})
        fs, path = files.open_path(one.path)
        with opened(fs, path) as file:
            known = {field.name: said[number] for number, field in wanted.items() if number in said}
            table = _columns(file, one.path, list(wanted.values()), known)
        since = np.min([keys.taken_at(table, one.sequence) for keys in here], axis=0)
        rows = np.flatnonzero(since != _ALIVE)
        return rows, since[rows]

    touched = [
        one
        for one in data.values()
        if groups and any(k.last > one.sequence for scope in (None, one.partition) for k in groups.get(scope, ()))
    ]
    for one, found_rows in zip(touched, ahead(matched, touched, "keys", a_thread=1), strict=True):
        dead[one.path].append(found_rows)
    return {path: _first(parts, data[path].rows) for path, parts in dead.items()}


def _first(parts: Sequence[tuple[Any, Any]], rows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Each row once, with the first delete that took it."""
    at, since = (np.concatenate([part[n] for part in parts]).astype(np.int64) for n in (0, 1))
    order = np.lexsort((since, at))
    at, since = at[order], since[order]
    once = np.concatenate([[True], at[1:] != at[:-1]])[: len(at)] & (at < rows)
    return at[once], since[once]


def _positions(files: StoreFiles, one: ManifestEntry) -> dict[str, npt.NDArray[np.int64]]:
    """Positions of deleted rows by path of the data file."""
    data = files.read(one.path)
    if one.format == "PUFFIN":
        if one.referenced is None:
            raise SpecError(f"{one.path}: a deletion vector that does not say of which file")
        return {one.referenced: _deletion_vector(data[one.offset : one.offset + one.length], one.path)}
    try:
        table = pq.read_table(pa.BufferReader(data), columns=["file_path", "pos"])
    except (pa.ArrowException, OSError) as error:
        raise SpecError(f"{one.path} is not a readable file of position deletes: {error}") from error
    paths = table["file_path"].cast(pa.string()).combine_chunks().dictionary_encode()
    codes, at = paths.indices.to_numpy(), table["pos"].to_numpy()
    order = np.argsort(codes, kind="stable")
    cuts = np.cumsum(np.bincount(codes, minlength=len(paths.dictionary)))[:-1]
    return dict(zip(paths.dictionary.to_pylist(), np.split(at[order], cuts), strict=True))


def _deletion_vector(blob: bytes, path: str) -> npt.NDArray[np.int64]:
    """Positions in a blob `deletion-vector-v1`. Source: https://iceberg.apache.org/puffin-spec/"""
    from pyroaring import BitMap64

    size = int.from_bytes(blob[:4], "big")
    body, check = blob[4 : 4 + size], blob[4 + size : 8 + size]
    if body[:4] != _MAGIC or zlib.crc32(body) != int.from_bytes(check, "big"):
        raise SpecError(f"{path}: a damaged deletion vector")
    return np.array(BitMap64.deserialize(body[4:]).to_array(), np.int64)


def _columns(file: Any, path: str, fields: Sequence[pa.Field], constants: Mapping[str, object]) -> pa.Table:
    try:
        return present_columns(pq.ParquetFile(file, pre_buffer=False), fields, constants)
    except (pa.ArrowException, OSError) as error:
        if getattr(file, "fault", None) is not None:
            raise StoreError(f"{path}: {error}") from error
        names = ", ".join(field.name for field in fields)
        raise SpecError(f"{path}: equality deletes need its columns {names}, which cannot be read: {error}") from error


def _keys(
    files: StoreFiles, deletes: Sequence[ManifestEntry], fields: Mapping[int, pa.Field], everywhere: frozenset[int]
) -> dict[tuple[int, tuple[object, ...]] | None, list[_Keys]]:
    """What equality deletes took, by the partition they are about, or None for all, and by the columns they compare."""
    parts: dict[Any, dict[tuple[int, ...], list[tuple[pa.Table, int]]]] = defaultdict(lambda: defaultdict(list))

    def read(one: ManifestEntry) -> pa.Table:
        if unknown := [number for number in one.equality if number not in fields]:
            raise SpecError(
                f"{one.path}: equality deletes by column number {unknown[0]}, which is a field of a struct, or none at "
                "all: only whole columns are compared here",
                "rewrite the table's data files, which applies its deletes",
            )
        wanted = [fields[number] for number in one.equality]
        return _columns(pa.BufferReader(files.read(one.path)), one.path, wanted, {})

    for one, table in zip(deletes, ahead(read, deletes, "deletes"), strict=True):
        scope = None if one.partition[0] in everywhere else one.partition
        parts[scope][tuple(one.equality)].append((table, one.sequence))
    return {
        scope: [_Keys(numbers, [fields[n].name for n in numbers], tables) for numbers, tables in by_columns.items()]
        for scope, by_columns in parts.items()
    }


class _Keys:
    """Keys of deleted rows and the sequence numbers of their deletes. Null equals null, and NaN NaN; 0.0 is not -0.0.

    A key is the number of what its columns hold so far, times the count of values of the next one, plus the number of
    its value; then numbered again, as products would not fit in 64 bits.
    """

    def __init__(self, numbers: tuple[int, ...], names: Sequence[str], tables: Sequence[tuple[pa.Table, int]]) -> None:
        self.numbers, self._names = numbers, names
        table = pa.concat_tables([one for one, _ in tables])
        sequences = np.repeat([sequence for _, sequence in tables], [one.num_rows for one, _ in tables])
        self._sequences, ranks = np.unique(sequences, return_inverse=True)
        self.last = int(self._sequences[-1]) if len(sequences) else 0
        self._values = [pc.unique(table[name]) for name in names]
        self._so_far: list[npt.NDArray[np.int64]] = []
        self._taken = np.unique(self._codes(table) * (len(self._sequences) + 1) + ranks)

    def _codes(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """Number of each row's key; -1 where it is none. The first call, of the deletes themselves, gives numbers."""
        first = len(self._so_far) == 0
        codes = np.zeros(table.num_rows, np.int64)
        for place, (name, values) in enumerate(zip(self._names, self._values, strict=True)):
            own = pc.fill_null(pc.index_in(table[name], value_set=values), -1).to_numpy().astype(np.int64)
            both = np.where((codes < 0) | (own < 0), -1, codes * len(values) + own)
            if first:
                self._so_far.append(np.unique(both))
            known = self._so_far[place]
            codes = np.searchsorted(known, both)
            codes[(codes == len(known)) | (known[np.minimum(codes, len(known) - 1)] != both)] = -1
        return codes

    def taken_at(self, table: pa.Table, sequence: int) -> npt.NDArray[np.int64]:
        """For each row of a file of this sequence number, that of the first later delete of its key, or _ALIVE."""
        codes, width = self._codes(table), len(self._sequences) + 1
        start = codes * width + np.searchsorted(self._sequences, sequence, side="right")
        at = np.minimum(np.searchsorted(self._taken, start), len(self._taken) - 1)
        found = self._taken[at]
        dead = (codes >= 0) & (found >= start) & (found < (codes + 1) * width)
        return np.where(dead, self._sequences[np.where(dead, found % width, 0)], _ALIVE)
