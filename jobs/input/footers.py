"""Sources of the input, and what a Parquet footer or the headers of a tar file say is in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import SpecError
from jobs.input.key_types import changed_by_cast, common_keys, common_type, holds_all
from jobs.ledger.plans import Source
from workers.contract import InputSpec
from workers.source.columns import (
    Link,
    cells_of,
    column_at,
    column_names,
    column_path,
    folder_values,
    image_columns,
    key_columns_read,
    key_schema,
    keys_of,
)
from workers.source.image_files import FILE_KEYS, keys_schema
from workers.source.parquet import chunk_sizes, open_parquet
from workers.source.rows import RowGroup
from workers.source.source_file import InputUnreadable, SourceFile, opened
from workers.source.uris import Refused, resolve_uri
from workers.source.webdataset import row_groups
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem

_FOOTERS_AT_ONCE = 16
_SAMPLES_TOGETHER = 16
"""How finely a tar file may be cut."""
_PATHS_LOOKED_AT = 64


@dataclass(frozen=True, slots=True)
class Opened:
    """A source and what is in it."""

    source: Source
    groups: tuple[RowGroup, ...]
    keys: pa.Schema | None
    """Types of the key columns in the plan; None for image files without any."""
    columns: tuple[str, ...] | None = ()
    """Of every column, with the fields of structs and the folders of Hive; None for a tar: its samples differ."""

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


class _Odd(Exception):
    """The file is whole, and its columns are not what the spec or the other files say."""


def open_sources(
    sources: Sequence[Source],
    spec: InputSpec,
    keys: pa.Schema | None = None,
    roots: Callable[[], tuple[str, ...]] | None = None,
) -> tuple[list[Opened], dict[Source, str]]:
    """What is in the sources, many at a time; and those that are left out, each with the reason: they could not be
    read, or their columns do not fit.

    `keys` are the types of key columns in earlier plans; without any the common ones are taken. `roots` gives where
    images that rows point to must lie. A source that vanished since the listing is left out. Raises SpecError when the
    columns of no file are as the spec says, and no plan has shown that they can be.
    """
    if spec.format == "images":
        types = keys_schema(spec.copied) if spec.keys else None
        return [Opened(s, (RowGroup(1, s.size),), types, tuple(FILE_KEYS)) for s in sources], {}

    def read(source: Source) -> Opened | Exception | None:
        try:
            return _read_headers(source, spec) if spec.format == "webdataset" else _read_footer(source, spec, roots)
        except NotFound:
            return None
        except (_Odd, InputUnreadable, StoreError, StoreDenied) as error:
            return error

    def fitted(one: Opened) -> Opened | Exception | None:
        try:
            return one if types is None or one.keys == types else _fitted(one, spec, types)
        except NotFound:
            return None
        except (_Odd, InputUnreadable, StoreError, StoreDenied) as error:
            return error

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE, "footer") as pool:
        outcomes = dict(zip(sources, pool.map(read, sources), strict=True))
        there = [outcome for outcome in outcomes.values() if isinstance(outcome, Opened)]
        types = common_keys([one.keys for one in there if one.keys is not None]) if keys is None else keys
        outcomes |= zip([one.source for one in there], pool.map(fitted, there), strict=True)
    opened_ = [outcome for outcome in outcomes.values() if isinstance(outcome, Opened)]
    odd = [(source.uri, outcome) for source, outcome in outcomes.items() if isinstance(outcome, _Odd)]
    if odd and not opened_ and keys is None:
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
        schema, key = parquet.schema_arrow, "input.image"
        try:
            images = image_columns(schema, spec.image)
            key = "input.keys"
            keys, read = key_schema(schema, spec, source.uri), [*images, *key_columns_read(schema, spec)]
        except InputUnreadable as error:
            raise _Odd(f"{key}: {error}") from error
        groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
        if roots is not None and len(images) == 2 and parquet.metadata.num_rows:
            _check_paths(parquet, groups, source, images, roots)
        for name in _cut_short(file, parquet, source, spec):
            raise _Odd(
                f"input.keys: {name!r} has times (INT96) with parts of a microsecond, which would be cut; write "
                "them as TIMESTAMP in nanoseconds, or leave the column out"
            )
        return Opened(
            source=source,
            groups=tuple(
                RowGroup(group.num_rows, sum(chunk_sizes(group, read)), number) for number, group in enumerate(groups)
            ),
            keys=pa.schema([field.with_nullable(True).remove_metadata() for field in keys]),
            columns=(*column_names(schema), *folder_values(source.uri)),
        )


def _check_paths(
    parquet: pq.ParquetFile,
    groups: Sequence[Any],
    source: Source,
    images: Sequence[str],
    roots: Callable[[], tuple[str, ...]],
) -> None:
    """Raises _Odd where a struct of Hugging Face holds no image, but paths that may not be followed."""
    chunks = [chunk for group in groups for chunk in map(group.column, range(group.num_columns))]
    counts = [c.statistics for c in chunks if c.path_in_schema == images[0]]
    if not all(c is not None and c.has_null_count and not c.num_values for c in counts):
        return
    column = images[1]
    rows = next(parquet.iter_batches(_PATHS_LOOKED_AT, columns=[column]))
    cells = cells_of(column_at(rows, column_path(rows.schema, column)))
    path = next((cell.value for cell in cells if isinstance(cell, Link) and cell.value), None)
    try:
        if path is not None and not path.startswith("data:"):
            resolve_uri(path, source.uri, roots())
    except Refused as error:
        folder = path.rpartition("/")[0] if path and "/" in path else "FOLDER"
        raise _Odd(
            f"input.image: no bytes in {images[0]}, but paths alone, and {error}: write `uri_roots: [{folder}/]` if "
            "they lie there, or embed the images in the files (docs/INPUT.md, Hugging Face)"
        ) from error


def _cut_short(file: SourceFile, parquet: pq.ParquetFile, source: Source, spec: InputSpec) -> Iterator[str]:
    """Keys with INT96 times that microseconds do not hold. Far dates in nanoseconds wrap around, as products do."""
    leaves = [parquet.schema.column(number) for number in range(len(parquet.schema))] if spec.keys else []
    columns = {leaf.path for leaf in leaves if leaf.physical_type == "INT96"} & set(spec.copied.values())
    how = replace(spec, keys=tuple({name: column} for name, column in spec.copied.items() if column in columns))
    if how.keys:
        exact = keys_of(parquet.read(key_columns_read(parquet.schema_arrow, how)), how, source.uri)
        finer = open_parquet(file, int96_unit="ns")
        fine = keys_of(finer.read(key_columns_read(finer.schema_arrow, how)), how, source.uri)
        for name in how.copied:
            us, ns = (pc.fill_null(table[name].cast(pa.int64()), 0).to_numpy() for table in (exact, fine))
            if not np.array_equal(us * 1000, ns):
                yield name


def _fitted(one: Opened, spec: InputSpec, types: pa.Schema) -> Opened:
    """The source with the key columns of these types. Raises _Odd where that changes a value."""
    assert one.keys is not None
    doubtful = []
    for mine, wanted in zip(one.keys, types, strict=True):
        if common_type(mine.type, wanted.type) is None:
            raise _Odd(_unlike(mine, wanted, "no value of one is one of the other"))
        if not holds_all(wanted.type, mine.type):
            doubtful.append({mine.name: spec.copied[mine.name]})
    if doubtful:
        how = replace(spec, keys=tuple(doubtful))
        with _parquet(one.source) as (_, parquet):
            rows = keys_of(parquet.read(key_columns_read(parquet.schema_arrow, how)), how, one.source.uri)
        for name in how.copied:
            if fault := changed_by_cast(rows[name], types.field(name).type):
                raise _Odd(_unlike(one.keys.field(name), types.field(name), fault))
    return replace(one, keys=types)


def _unlike(mine: pa.Field, wanted: pa.Field, why: str) -> str:
    return (
        f"input.keys: {mine.name!r} is {mine.type}, and {wanted.type} in other files or earlier plans of this output "
        f"({why}): cast it in this file, or leave it out of input.keys"
    )


def _read_headers(source: Source, spec: InputSpec) -> Opened:
    """The samples of a WebDataset tar file, a few together; every key is text."""
    fs, path = open_filesystem(source.uri)
    with opened(fs, path) as file:
        together = _SAMPLES_TOGETHER if spec.shard_rows == "auto" else min(_SAMPLES_TOGETHER, spec.shard_rows)
        groups = row_groups(file, together)
    return Opened(source, groups, keys_schema(spec.copied), None)
