"""Which rows of an Iceberg table's data files its delete files have taken, and since which sequence number.

Source: "Scan Planning" and "Delete Formats" in https://iceberg.apache.org/spec/
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import SpecError
from jobs.ledger.table_files import Positions
from jobs.tables.bitmaps import positions_of, stored_vector
from jobs.tables.iceberg_files import (
    EQUALITY_DELETES,
    POSITION_DELETES,
    ManifestEntry,
    Partition,
    StoreFiles,
    refuse_unreadable,
)
from workers.source.source_file import InputUnreadable, opened
from workers.source.table_view import TableView
from workers.storage.errors import StoreError
from workers.storage.lookahead import ahead

DeadRows = Mapping[str, tuple[Positions, Positions]]
"""By path of a data file: positions of rows that are not live, ascending, each once; and the sequence numbers of the
first deletes that took them."""

ALIVE = np.iinfo(np.int64).max
"""In place of a sequence number."""
_ROWS_TOGETHER = 2**20


def dead_rows(
    files: StoreFiles,
    data: Mapping[str, ManifestEntry],
    deletes: Sequence[ManifestEntry],
    fields: Mapping[int, pa.Field],
    everywhere: frozenset[int],
    constants: Callable[[Partition, Sequence[pa.Field]], Mapping[str, object]],
) -> DeadRows:
    """Rows of the `data` files, by path, that the `deletes` took.

    `fields` are the columns that the table has or had, by number, and `constants` gives what a partition says of some.
    Equality deletes in partition specs `everywhere` are about files of all partitions. Raises SpecError, NotFound,
    StoreError, StoreDenied.
    """
    refuse_unreadable(deletes)
    dead: dict[str, list[tuple[Positions, Positions]]] = defaultdict(list)
    named = [one for one in deletes if one.content == POSITION_DELETES and (one.about is None or one.about in data)]
    for one, found in zip(named, ahead(lambda one: _positions(files, one), named, "deletes"), strict=True):
        for path, rows in found.items():
            if path in data and data[path].sequence <= one.sequence:
                dead[path].append((rows, np.full(len(rows), one.sequence)))
    keys = _deleted_keys(files, [one for one in deletes if one.content == EQUALITY_DELETES], fields, everywhere)

    parted: dict[Partition | None, list[ManifestEntry]] = defaultdict(list)
    for one in data.values():
        parted[one.partition].append(one)

    def read(work: tuple[DeletedKeys, ManifestEntry]) -> pa.Table:
        columns, one = [fields[number] for number in work[0].numbers], work[1]
        with opened(*files.place(one.path)) as file:
            return table_columns(file, one.path, columns, constants(one.partition, columns))

    work = [
        (some, one)
        for scope, several in keys.items()
        for some in several
        for one in (data.values() if scope is None else parted[scope])
        if one.sequence < some.last
    ]
    together: list[tuple[ManifestEntry, pa.Table]] = []
    for at, ((some, one), table) in enumerate(zip(work, ahead(read, work, "keys", a_thread=1), strict=True), 1):
        together.append((one, table))
        ends = np.cumsum([table.num_rows for _, table in together])
        if at < len(work) and work[at][0] is some and ends[-1] < max(_ROWS_TOGETHER, some.rows):
            continue  # Arrow numbers all deleted keys at every look, whether for few rows or many
        sequences = np.repeat([one.sequence for one, _ in together], [table.num_rows for _, table in together])
        since = some.taken_at(pa.concat_tables([table for _, table in together]), sequences)
        for (one, _), part in zip(together, np.split(since, ends[:-1]), strict=True):
            dead[one.path].append((rows := np.flatnonzero(part != ALIVE), part[rows]))
        together = []
    return {path: _each_once(parts, data[path].rows) for path, parts in dead.items()}


def _each_once(parts: Iterable[tuple[Positions, Positions]], rows: int) -> tuple[Positions, Positions]:
    at, since = (np.concatenate(some).astype(np.int64) for some in zip(*parts, strict=True))
    order = np.lexsort((since, at))
    at, first = np.unique(at[order], return_index=True)
    return at[at < rows], since[order][first][at < rows]


def _positions(files: StoreFiles, one: ManifestEntry) -> dict[str, Positions]:
    """Of deleted rows, by path of the data file."""
    data = files.read(one.path)
    if one.format == "PUFFIN":
        if one.about is None or one.offset is None or one.length is None:
            raise SpecError(f"{one.path}: a deletion vector, and the manifest does not say where, or of which file")
        try:
            return {one.about: positions_of(stored_vector(data[one.offset : one.offset + one.length]))}
        except ValueError as error:
            raise SpecError(f"{one.path}: {error}", "roll the table back, or write the file again") from error
    try:
        table = pq.read_table(pa.BufferReader(data), columns=["file_path", "pos"])
    except (pa.ArrowException, OSError) as error:
        raise SpecError(f"{one.path} is not a readable file of position deletes: {error}") from error
    paths = table["file_path"].cast(pa.string()).combine_chunks().dictionary_encode()
    order = np.argsort(paths.indices, kind="stable")
    ends = np.cumsum(np.bincount(paths.indices, minlength=len(paths.dictionary)))
    return dict(zip(paths.dictionary.to_pylist(), np.split(table["pos"].to_numpy()[order], ends[:-1]), strict=True))


def table_columns(file: Any, path: str, fields: Sequence[pa.Field], constants: Mapping[str, object]) -> pa.Table:
    """These columns of a table, of all rows of one of its files. Raises SpecError, StoreError, StoreDenied."""
    try:
        parquet = pq.ParquetFile(file, pre_buffer=False)
        view = TableView(parquet.schema_arrow, pa.schema(list(fields)), constants)
        return view.rows(parquet.read(view.in_file([one.name for one in fields])))
    except (pa.ArrowException, OSError, InputUnreadable) as error:
        if getattr(file, "fault", None) is not None:
            raise StoreError(f"{path}: {error}") from error
        names = ", ".join(field.name for field in fields)
        raise SpecError(f"{path}: {names}: {error}", "roll the table back, or write the file again") from error


def _deleted_keys(
    files: StoreFiles, deletes: Sequence[ManifestEntry], fields: Mapping[int, pa.Field], everywhere: frozenset[int]
) -> dict[Partition | None, list[DeletedKeys]]:
    """What equality deletes took, by the partition they are about, None for all; each by the columns they compare."""

    def read(one: ManifestEntry) -> pa.Table:
        if not one.columns or not fields.keys() >= {*one.columns}:
            raise SpecError(
                f"{one.path}: equality deletes by columns number {one.columns}, not all of which are plain columns",
                "rewrite the table's data files, which applies its deletes",
            )
        return table_columns(pa.BufferReader(files.read(one.path)), one.path, [fields[n] for n in one.columns], {})

    parts: dict[Any, list[tuple[pa.Table, int]]] = defaultdict(list)
    for one, table in zip(deletes, ahead(read, deletes, "deletes"), strict=True):
        scope = None if one.partition[0] in everywhere else one.partition
        parts[scope, tuple(one.columns or ())].append((table, one.sequence))
    keys: dict[Partition | None, list[DeletedKeys]] = defaultdict(list)
    for (scope, numbers), tables in parts.items():
        keys[scope].append(DeletedKeys(numbers, tables))
    return keys


class DeletedKeys:
    """Keys of deleted rows, each with the sequence numbers of its deletes. Null equals null, and NaN NaN."""

    def __init__(self, numbers: tuple[int, ...], tables: Sequence[tuple[pa.Table, int]]) -> None:
        self.numbers = numbers
        self._table = pa.concat_tables([one for one, _ in tables])
        sequences = np.repeat([sequence for _, sequence in tables], [one.num_rows for one, _ in tables])
        self._sequences, self._ranks = np.unique(sequences, return_inverse=True)
        self.last, self.rows = int(max(self._sequences, default=0)), self._table.num_rows

    def taken_at(self, table: pa.Table, sequences: Positions) -> Positions:
        """For each row, of a file with this sequence number, that of the first later delete of its key, or ALIVE."""
        alike = [pc.is_in(table[name], value_set=self._table[name]).to_numpy() for name in self._table.column_names]
        some = np.flatnonzero(np.logical_and.reduce(alike))
        both = pa.concat_tables([self._table, table.take(some)])
        groups = both.append_column("", pa.array(np.arange(len(both)))).group_by(both.column_names)
        rows = groups.aggregate([("", "list")])["_list"].combine_chunks()
        codes, width = np.empty(len(both), np.int64), len(self._sequences) + 1
        codes[rows.flatten()] = np.repeat(np.arange(len(rows)) * width, rows.value_lengths())
        deletes = np.sort(codes[: self.rows] + self._ranks)
        start = codes[self.rows :] + np.searchsorted(self._sequences, sequences[some], side="right")
        found = deletes[np.minimum(np.searchsorted(deletes, start), len(deletes) - 1)]
        dead = (start <= found) & (found < codes[self.rows :] + width)
        since = np.full(len(table), ALIVE)
        since[some[dead]] = self._sequences[found[dead] % width]
        return since
