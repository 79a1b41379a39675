"""Discovery: what the input holds right now, as sources with exact versions, and what a Parquet footer says of each.

The identity of a source is (uri, version). Files whose names start with `_` or `.` are skipped, as Arrow, Spark and
Hive readers do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.errors import SpecError
from jobs.spec import Input
from workers.parquet import InputUnreadable, chunk_sizes, image_kind, open_parquet, opened
from workers.store import NotFound, StoreDenied, StoreError, full_url, open_filesystem, retrying, version_of

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif")
FOOTERS_AT_ONCE = 16


@dataclass(frozen=True, order=True)
class Source:
    uri: str
    size: int
    version: str

    @property
    def identity(self) -> tuple[str, str]:
        return self.uri, self.version


@dataclass(frozen=True)
class RowGroup:
    rows: int
    bytes: int
    """Compressed bytes of the columns that are read."""


@dataclass(frozen=True)
class Opened:
    """A source and what is in it."""

    source: Source
    groups: tuple[RowGroup, ...]
    keys: pa.Schema | None
    """Types of the key columns; None for image files."""
    columns: tuple[str, ...] = ()
    """Names of every column."""


def list_sources(spec: Input) -> list[Source]:
    """Every source of the input, by URI. Raises SpecError when the input is not there or not allowed."""
    suffixes = PARQUET_SUFFIXES if spec.format == "parquet" else IMAGE_SUFFIXES
    try:
        fs, path = open_filesystem(spec.uri)
        root = retrying(lambda: fs.info(path), spec.uri)
        if root["type"] == "file":
            return [Source(full_url(fs, path), int(root["size"]), version_of(root))]
        found = retrying(lambda: fs.find(path, detail=True), spec.uri)
    except NotFound as error:
        raise SpecError(
            f"input.uri: there is nothing at {spec.uri}", "check the path; a folder or prefix must hold a file to exist"
        ) from error
    except (StoreDenied, StoreError) as error:
        raise SpecError(f"input.uri: cannot list {spec.uri}: {error}") from error
    base = path.rstrip("/") + "/"
    return sorted(
        Source(full_url(fs, name), int(info["size"]), version_of(info))
        for name, info in found.items()
        if name.lower().endswith(suffixes) and not _hidden(name.removeprefix(base))
    )


def _hidden(relative: str) -> bool:
    return any(part.startswith(("_", ".")) for part in relative.split("/"))


def open_sources(sources: Sequence[Source], spec: Input) -> tuple[list[Opened], dict[Source, str]]:
    """Footers of the sources, many at a time; and those that could not be read, each with the reason.

    A source that vanished since the listing is left out. Raises SpecError when the columns are not as the spec says.
    """
    if spec.format == "images":
        return [Opened(s, (RowGroup(1, s.size),), None) for s in sources], {}

    def read(source: Source) -> Opened | str | None:
        try:
            return _read_footer(source, spec)
        except NotFound:
            return None
        except (InputUnreadable, StoreError, StoreDenied) as error:
            return str(error)

    with ThreadPoolExecutor(FOOTERS_AT_ONCE, "footer") as pool:
        outcomes = list(zip(sources, pool.map(read, sources), strict=True))
    opened_ = [outcome for _, outcome in outcomes if isinstance(outcome, Opened)]
    _check_key_types(opened_)
    return opened_, {source: outcome for source, outcome in outcomes if isinstance(outcome, str)}


def _read_footer(source: Source, spec: Input) -> Opened:
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
            image_kind(schema, spec.image)
        except InputUnreadable as error:
            raise SpecError(f"input.image: {source.uri}: {error}", "name the image column in input.image") from error
        for key in spec.keys:
            if key not in schema.names:
                raise SpecError(f"input.keys: {source.uri} has no column {key!r}; it has {', '.join(schema.names)}")
        wanted = (spec.image, *spec.keys)
        return Opened(
            source=source,
            groups=tuple(_row_group(parquet.metadata.row_group(i), wanted) for i in range(parquet.num_row_groups)),
            keys=pa.schema([schema.field(key).with_nullable(True).remove_metadata() for key in spec.keys]),
            columns=tuple(schema.names),
        )


def _row_group(group: Any, wanted: tuple[str, ...]) -> RowGroup:
    return RowGroup(group.num_rows, sum(chunk_sizes(group, wanted)))


def _check_key_types(opened_: Iterable[Opened]) -> None:
    first: Opened | None = None
    for this in opened_:
        first = first or this
        if this.keys != first.keys:
            raise SpecError(
                f"input.keys: column types differ: {first.source.uri} has {_types(first)}, "
                f"{this.source.uri} has {_types(this)}",
                "cast them to one type, or leave the column out of input.keys",
            )


def _types(opened_: Opened) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in opened_.keys or [])
