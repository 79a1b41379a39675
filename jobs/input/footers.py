"""Sources of the input, and what a Parquet footer or the headers of a tar file say is in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import SpecError
from jobs.input.key_types import changed_by_cast, common_keys, common_type, holds_all
from jobs.ledger.plans import Source
from jobs.ledger.table_files import Positions
from jobs.tables.state import TableFile
from workers.contract import InputSpec, TableOf
from workers.source.columns import Link, cells_of, column_at, column_path, file_columns, image_columns
from workers.source.parquet import PART_BYTES, parquet_groups, read_keys
from workers.source.rows import FILE_KEYS, RowGroup, keys_schema
from workers.source.source_file import InputUnreadable, SourceFile, open_parquet, opened
from workers.source.table_view import TableView
from workers.source.uris import Refused, resolve_uri
from workers.source.webdataset import row_groups
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem
from workers.storage.lookahead import ahead

_SAMPLES_TOGETHER = 16  # how finely a tar file may be cut
_NO_IMAGE_BYTES = 200  # where no statistics tell, a column chunk of few rows, all of them null, is smaller
_PATHS_TOGETHER = 1024


@dataclass(frozen=True, slots=True)
class Opened:
    """A source and what is in it."""

    source: Source
    groups: tuple[RowGroup, ...]
    keys: pa.Schema | None
    """Types of the key columns in the plan; None for image files without any."""
    columns: tuple[str, ...] | None = ()
    """Of every column, with the fields of structs and the folders of Hive; None for a tar: its samples differ; () for
    a file without rows that lacks a column."""
    group_rows: tuple[int, ...] = ()
    """Of a file of a table, all rows of each row group."""
    table: TableOf | None = None
    """What a worker must know to read it."""
    beside: Mapping[str, int] = field(default_factory=dict)
    """Members of a tar that are not the image of a sample: see row_groups."""

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


@dataclass(frozen=True)
class OpenedImages(Sequence[Opened]):
    """Image files, each a row, made into objects when they are asked for and not kept: a million are 200 MB."""

    sources: Sequence[Source]
    keys: pa.Schema | None

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return OpenedImages(self.sources[at], self.keys)
        source = self.sources[at]
        return Opened(source, (RowGroup(1, source.size),), self.keys, tuple(FILE_KEYS))


def opened_rows(opened_: Sequence[Opened]) -> int:
    """Of all of them."""
    return len(opened_) if isinstance(opened_, OpenedImages) else sum(one.rows for one in opened_)


class _Odd(Exception):
    """The file is whole, and its columns are not what the spec or the other files say."""


def open_sources(
    sources: Sequence[Source],
    spec: InputSpec,
    keys: pa.Schema | None = None,
    roots: Callable[[], tuple[str, ...]] | None = None,
    table: TableOf | None = None,
    files: Mapping[str, TableFile] | None = None,
) -> tuple[Sequence[Opened], dict[Source, str]]:
    """What is in the sources, many at a time; and those that are left out, each with the reason: they could not be
    read, or their columns do not fit.

    `keys` are the types of key columns in earlier plans; without any the common ones are taken. `roots` gives where
    images that rows point to must lie; `files` are those of a
    `table` by URI. A source that vanished since the listing is left out. Raises SpecError when the
    columns of no file are as the spec says, and no plan has shown that they can be.
    """
    if spec.format == "images":
        return OpenedImages(sources, keys_schema(spec.copied) if spec.keys else None), {}

    def attempt(task: Callable[..., Opened], *given: Any) -> Opened | Exception | None:
        try:
            return task(*given)
        except NotFound:
            return None
        except (_Odd, InputUnreadable, StoreError, StoreDenied) as error:
            return error

    read: Callable[[Source, InputSpec], Opened] = partial(_read_footer, roots=roots)
    if spec.format == "webdataset":
        read = _read_headers
    elif table is not None and files is not None:
        read = partial(_read_lance if spec.format == "lance" else _read_of_table, table=table, files=files)
    found = ahead(lambda source: attempt(read, source, spec), sources, "footer")
    outcomes = dict(zip(sources, found, strict=True))
    there = [one for one in outcomes.values() if isinstance(one, Opened) and one.keys is not None]
    decide = [one.keys for one in there if one.rows] or [one.keys for one in there]
    types = common_keys(decide) if keys is None else keys
    unlike = [one for one in there if one.keys != types]
    fitted = ahead(lambda one: attempt(_fitted, one, spec, types), unlike, "footer")
    outcomes |= zip([one.source for one in unlike], fitted, strict=True)
    opened_ = [outcome for outcome in outcomes.values() if isinstance(outcome, Opened)]
    odd = [(source.uri, outcome) for source, outcome in outcomes.items() if isinstance(outcome, _Odd)]
    if odd and not any(one.columns for one in opened_) and keys is None:
        raise SpecError(f"{odd[0][0]}: {odd[0][1]}")
    return opened_, {source: str(outcome) for source, outcome in outcomes.items() if isinstance(outcome, Exception)}


@contextmanager
def _parquet(source: Source) -> Iterator[tuple[SourceFile, pq.ParquetFile]]:
    fs, path = open_filesystem(source.uri)
    with opened(fs, path) as file:
        try:
            yield file, open_parquet(file)
        except (pa.ArrowException, OSError) as error:
            if file.fault is not None:
                raise StoreError(f"{source.uri}: {error}") from error
            raise InputUnreadable(f"{source.uri} is not a readable Parquet file: {error}") from error


def _read_footer(source: Source, spec: InputSpec, roots: Callable[[], tuple[str, ...]] | None) -> Opened:
    with _parquet(source) as (file, parquet):
        try:
            read, keys, columns = file_columns(parquet.schema_arrow, spec, source.uri)
        except InputUnreadable as error:
            if not parquet.metadata.num_rows:  # whatever its columns are, there is nothing to score
                return Opened(source, (), pa.schema([(name, pa.null()) for name in spec.copied]))
            raise _Odd(str(error)) from error
        if roots is not None and parquet.num_row_groups:
            _check_paths(parquet, source, spec, roots)
        _check_int96(file, parquet, source, spec)
        return Opened(
            source=source,
            groups=tuple(parquet_groups(file, parquet, read)),
            keys=pa.schema([field.with_nullable(True).remove_metadata() for field in keys]),
            columns=columns,
        )


def _read_of_table(source: Source, spec: InputSpec, table: TableOf, files: Mapping[str, TableFile]) -> Opened:
    with _parquet(source) as (file, parquet):
        of_file = table.of_files([source.uri])
        view = TableView.of(parquet.schema_arrow, of_file, source.uri)
        groups = (parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups))
        whole = _opened_of_table(source, spec, of_file, view.schema, tuple(groups))
        read, *_ = file_columns(view.schema, spec, "")
        found = parquet_groups(file, parquet, view.in_file(read))
        return replace(whole, groups=tuple(live_groups(found, whole.group_rows, files[source.uri].deleted)))


def _read_lance(source: Source, spec: InputSpec, table: TableOf, files: Mapping[str, TableFile]) -> Opened:
    """A fragment is read from any row on, so it comes in parts of about PART_BYTES."""
    rows, schema = files[source.uri].rows or 0, pa.ipc.read_schema(pa.py_buffer(table.schema))
    whole = _opened_of_table(source, spec, table.of_files([source.uri]), schema, (rows,))
    together = max(1, PART_BYTES * rows // max(1, source.size))
    parts = (
        RowGroup(min(together, rows - start), source.size * min(together, rows - start) // rows, 0, start, paged=True)
        for start in range(0, rows, together)
    )
    return replace(whole, groups=tuple(live_groups(parts, (rows,), files[source.uri].deleted)))


def _opened_of_table(
    source: Source, spec: InputSpec, table: TableOf, schema: pa.Schema, group_rows: tuple[int, ...]
) -> Opened:
    try:
        _, keys, columns = file_columns(schema, spec, "")
    except InputUnreadable as error:
        raise _Odd(str(error)) from error
    types = pa.schema([key.with_nullable(True).remove_metadata() for key in keys])
    return Opened(source, (), types, columns, group_rows, table)


def live_groups(groups: Iterable[RowGroup], group_rows: Sequence[int], deleted: Positions) -> Iterator[RowGroup]:
    """What stays of row groups, or parts of them, without rows at these positions in the file."""
    begins = np.cumsum([0, *group_rows])
    for group in groups:
        first = begins[group.number] + group.row_start
        dead = deleted[np.searchsorted(deleted, first) : np.searchsorted(deleted, first + group.rows)] - first
        for start, stop in zip([0, *(dead + 1).tolist()], [*dead.tolist(), group.rows], strict=True):
            if start < stop:
                size = group.bytes * (stop - start) // group.rows
                yield replace(group, rows=stop - start, bytes=size, row_start=group.row_start + start)


def _check_paths(parquet: pq.ParquetFile, source: Source, spec: InputSpec, roots: Any) -> None:
    """Raises _Odd where a struct of Hugging Face holds no image, but paths that may not be followed."""
    images = image_columns(parquet.schema_arrow, spec.image)
    group = parquet.metadata.row_group(0)
    chunks = map(group.column, range(group.num_columns))
    if len(images) != 2 or not all(_is_null(c) for c in chunks if f"{c.path_in_schema}.".startswith(f"{images[0]}.")):
        return
    batches = parquet.iter_batches(_PATHS_TOGETHER, row_groups=[0], columns=images)
    cells = (c for rows in batches for c in cells_of(column_at(rows, column_path(rows.schema, spec.image))))
    path = next((c.value for c in cells if isinstance(c, Link) and c.value and not c.value.startswith("data:")), "")
    try:
        if path:
            resolve_uri(path, source.uri, roots())
    except Refused as error:
        raise _Odd(
            f"input.image: no bytes in {images[0]}, but paths alone, and {error}: embed the images in the files "
            f"(docs/INPUT.md), or, if they are there, write `uri_roots: [{path.rpartition('/')[0]}/]`"
        ) from error


def _is_null(chunk: Any) -> bool:
    """Whether a column chunk holds nothing but nulls."""
    known = chunk.statistics
    if known is not None and known.has_null_count:
        return bool(known.null_count == chunk.num_values)
    return bool(chunk.total_compressed_size <= _NO_IMAGE_BYTES)


def _check_int96(file: SourceFile, parquet: pq.ParquetFile, source: Source, spec: InputSpec) -> None:
    """Raises _Odd where microseconds do not hold a key.

    In nanoseconds far dates wrap around, and 2**64 is no multiple of 1000: only where there may be one, or a part of a
    microsecond, it takes microseconds to tell, as products wrap around, too.
    """
    columns = [parquet.schema.column(number) for number in range(len(parquet.schema))] if spec.keys else []
    times = {leaf.path for leaf in columns if leaf.physical_type == "INT96"}
    if not (names := [name for name, column in spec.copied.items() if column in times]):
        return
    how = replace(spec, keys=tuple({name: spec.copied[name]} for name in names))

    def read(opened_: pq.ParquetFile) -> list[Any]:
        rows = read_keys(opened_, how, source.uri)
        return [pc.fill_null(rows[name].cast(pa.int64()), 0).to_numpy() for name in names]

    ns = read(open_parquet(file, int96_unit="ns"))
    us = read(parquet) if any((one % 1000).any() for one in ns) else [one // 1000 for one in ns]
    for name, fine, coarse in zip(names, ns, us, strict=True):
        if not np.array_equal(coarse * 1000, fine):
            raise _Odd(
                f"input.keys: {name!r} has times (INT96) with parts of a microsecond, which would be cut; write them "
                "as TIMESTAMP in nanoseconds, or leave the column out"
            )


def _fitted(one: Opened, spec: InputSpec, types: pa.Schema) -> Opened:
    """The source with the key columns of these types. Raises _Odd where that changes a value."""
    unlike = [(mine, wanted) for mine, wanted in zip(one.keys or (), types, strict=True) if mine.type != wanted.type]
    doubtful = [(mine, wanted) for mine, wanted in unlike if one.rows and not holds_all(wanted.type, mine.type)]
    how = replace(spec, keys=tuple({mine.name: spec.copied[mine.name]} for mine, _ in doubtful))
    rows = None
    for mine, wanted in doubtful:
        fault = "values of another kind"
        if common_type(mine.type, wanted.type) is not None:
            if rows is None:
                with _parquet(one.source) as (_, parquet):
                    rows = read_keys(parquet, how, one.source.uri, table=one.table)
            fault = changed_by_cast(rows[mine.name], wanted.type)
        if fault:
            raise _Odd(
                f"input.keys: {mine.name!r} is {mine.type}, and {wanted.type} in other files or earlier plans of this "
                f"output ({fault}): cast it in this file, or leave it out of input.keys; another name for it, "
                f"`{{{mine.name}_2: {spec.copied[mine.name]}}}`, begins a new root, for which all is scored"
            )
    return replace(one, keys=types)


def _read_headers(source: Source, spec: InputSpec) -> Opened:
    """The samples of a WebDataset tar file, a few together; every key is text."""
    fs, path = open_filesystem(source.uri)
    with opened(fs, path) as file:
        together = _SAMPLES_TOGETHER if spec.shard_rows == "auto" else min(_SAMPLES_TOGETHER, spec.shard_rows)
        beside = Counter[str]()
        groups = row_groups(file, together, spec, beside)
    return Opened(source, groups, keys_schema(spec.copied), None, beside=beside)
