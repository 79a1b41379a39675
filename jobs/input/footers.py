"""Sources of the input, and what a Parquet footer or the headers of a tar file say is in them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from jobs.errors import SpecError
from jobs.ledger.plans import Source
from workers.contract import InputSpec
from workers.source.columns import image_columns
from workers.source.image_files import FILE_KEYS, keys_schema
from workers.source.parquet import open_parquet, parquet_groups
from workers.source.rows import RowGroup
from workers.source.source_file import InputUnreadable, opened
from workers.source.webdataset import row_groups
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem

_FOOTERS_AT_ONCE = 16
_SAMPLES_TOGETHER = 16
"""How finely a tar file may be cut."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A source and what is in it."""

    source: Source
    groups: tuple[RowGroup, ...]
    keys: pa.Schema | None
    """Types of the key columns; None for image files without any."""
    columns: tuple[str, ...] | None = ()
    """Names of every column; None for a tar, whose samples need not be alike."""

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


def open_sources(sources: Sequence[Source], spec: InputSpec) -> tuple[list[Opened], dict[Source, str]]:
    """What is in the sources, many at a time; and those that could not be read, each with the reason.

    A source that vanished since the listing is left out. Raises SpecError when the columns are not as the spec says.
    """
    if spec.format == "images":
        keys = keys_schema(spec.keys) if spec.keys else None
        return [Opened(s, (RowGroup(1, s.size),), keys, tuple(FILE_KEYS)) for s in sources], {}

    def read(source: Source) -> Opened | str | None:
        try:
            return _read_headers(source, spec) if spec.format == "webdataset" else _read_footer(source, spec)
        except NotFound:
            return None
        except (InputUnreadable, StoreError, StoreDenied) as error:
            return str(error)

    with ThreadPoolExecutor(_FOOTERS_AT_ONCE, "footer") as pool:
        outcomes = list(zip(sources, pool.map(read, sources), strict=True))
    opened_ = [outcome for _, outcome in outcomes if isinstance(outcome, Opened)]
    _check_key_types(opened_)
    return opened_, {source: outcome for source, outcome in outcomes if isinstance(outcome, str)}


def _read_footer(source: Source, spec: InputSpec) -> Opened:
    fs, path = open_filesystem(source.uri)
    with opened(fs, path) as file:
        try:
            parquet = open_parquet(file)
        except (pa.ArrowException, OSError) as error:
            if file.fault is not None:
                raise StoreError(f"{source.uri}: {error}") from error
            raise InputUnreadable(f"{source.uri} is not a readable Parquet file: {error}") from error
        schema = parquet.schema_arrow
        try:
            image_columns(schema, spec.image)
        except InputUnreadable as error:
            raise SpecError(f"input.image: {source.uri}: {error}", "name the image column in input.image") from error
        for key in spec.keys:
            if key not in schema.names:
                raise SpecError(f"input.keys: {source.uri} has no column {key!r}; it has {', '.join(schema.names)}")
        return Opened(
            source=source,
            groups=tuple(parquet_groups(file, parquet, spec)),
            keys=pa.schema([schema.field(key).with_nullable(True).remove_metadata() for key in spec.keys]),
            columns=tuple(schema.names),
        )


def _read_headers(source: Source, spec: InputSpec) -> Opened:
    """The samples of a WebDataset tar file, a few together; every key is text."""
    fs, path = open_filesystem(source.uri)
    with opened(fs, path) as file:
        together = _SAMPLES_TOGETHER if spec.shard_rows == "auto" else min(_SAMPLES_TOGETHER, spec.shard_rows)
        groups = row_groups(file, together)
    return Opened(source, groups, pa.schema([(key, pa.string()) for key in spec.keys]), None)


def _check_key_types(opened_: Sequence[Opened]) -> None:
    if other := next((this for this in opened_ if this.keys != opened_[0].keys), None):
        raise SpecError(
            f"input.keys: column types differ: {opened_[0].source.uri} has {_types(opened_[0])}, "
            f"{other.source.uri} has {_types(other)}",
            "cast them to one type, or leave the column out of input.keys",
        )


def _types(opened_: Opened) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in opened_.keys or [])
