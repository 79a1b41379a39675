"""A plan: which rows of which source versions it claims, and how they fall into shards. One Parquet file each.

Slices of many shards are held in columns, and become objects only on demand: a plan of a million shards is 32 MB this
way, and its sources; as objects it would be most of a gigabyte.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.ledger.table_files import TablePart
from workers.contract import Shard, Slice
from workers.counted import counted

Ints = npt.NDArray[np.int64]

BOOK = ".stint"
"""How our own Parquet files end, those that hold no predictions. Of DuckDB, Polars, Daft and the loader of Hugging Face
none skips folders that begin with `_`; a name that ends otherwise is no data to any of them."""
EARLIER_BOOK = ".parquet"
"""How plans and done records ended in earlier releases. A root that has begun with these names goes on with them."""
BOOKS = r"\.(?:stint|parquet)"
"""Both, as a pattern."""

PIECE = np.dtype(
    {
        "names": ["source", "row_group", "row_start", "row_stop", "byte_start"],
        "formats": [np.int32, np.int32, np.int64, np.int64, np.int64],
    }
)
"""A slice: `source` is the row of its source in the table of sources, the others are as in workers.contract.Slice."""
WIDTH = len(PIECE.names or ())
SOURCES = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("version", pa.string())])
_TOGETHER, _SLICES_TOGETHER = 4096, 2**16
"""Shards, or slices of them, that are made into objects at once."""


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices of each shard, by the shard's number."""

    sources: pa.Table
    """As SOURCES."""
    pieces: npt.NDArray[Any]
    """As PIECE, in the order of shards."""
    starts: Ints
    """Where in `pieces` each shard begins, and where the last one ends."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __iter__(self) -> Iterator[tuple[Slice, ...]]:
        return self.picked(np.arange(len(self)))

    @cached_property
    def rows(self) -> Ints:
        """Of each shard."""
        rows = self.pieces["row_stop"] - self.pieces["row_start"]
        return np.diff(np.concatenate([[0], np.cumsum(rows)])[self.starts])

    def picked(self, numbers: Ints) -> Iterator[tuple[Slice, ...]]:
        """Of the shards with these numbers, in the order of `numbers`."""
        together = max(1, min(_TOGETHER, _SLICES_TOGETHER * len(self) // max(1, len(self.pieces))))
        for first in range(0, len(numbers), together):
            yield from self._objects(numbers[first : first + together])

    def _objects(self, numbers: Ints) -> Iterator[tuple[Slice, ...]]:
        begins, counts = self.starts[numbers], self.starts[numbers + 1] - self.starts[numbers]
        # Of each slice the place in its shard, added to the place where the shard begins.
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        chosen = self.pieces[np.repeat(begins, counts) + within]
        names, source = np.unique(chosen["source"], return_inverse=True)
        uris, sizes, versions = (column.to_pylist() for column in self.sources.take(pa.array(names)).columns)
        objects = (
            Slice(
                uri=uris[i],
                size=sizes[i],
                version=versions[i],
                row_group=row_group,
                row_start=row_start,
                row_stop=row_stop,
                byte_start=byte_start,
            )
            for i, (_, row_group, row_start, row_stop, byte_start) in zip(source.tolist(), chosen.tolist(), strict=True)
        )
        for count in counts.tolist():
            yield tuple(islice(objects, count))


@dataclass(frozen=True, order=True, slots=True)
class Source:
    uri: str
    size: int
    version: str

    @property
    def identity(self) -> tuple[str, str]:
        return self.uri, self.version


class SlicesBuilder:
    """Slices in the making: say of which source, add its slices, and where a shard ends."""

    def __init__(self) -> None:
        self._sources: list[Source] = []
        self._pieces = array("q")
        self._starts = array("q", [0])
        self._end: tuple[int, int] | None = None
        """Row group and row where the last slice ends, if one that begins there goes on with it."""

    def source(self, source: Source) -> None:
        """Whose slices come next."""
        self._end = None
        if self._sources[-1:] != [source]:
            self._sources.append(source)

    def add(self, row_group: int, row_start: int, row_stop: int, byte_start: int) -> None:
        """Rows that follow the last ones of the shard, since its source was named, become one slice with them."""
        if self._end == (row_group, row_start):
            self._pieces[-2] = row_stop
        else:
            self._pieces.extend((len(self._sources) - 1, row_group, row_start, row_stop, byte_start))
        self._end = row_group, row_stop

    def end_shard(self) -> None:
        """A shard without slices is none."""
        self._end = None
        if (end := len(self._pieces) // WIDTH) > self._starts[-1]:
            self._starts.append(end)

    def slices(self) -> Slices:
        columns = np.array(self._pieces, np.int64).reshape(-1, WIDTH)
        pieces = np.empty(len(columns), PIECE)
        for column, name in enumerate(PIECE.names or ()):
            pieces[name] = columns[:, column]
        return Slices(in_columns(self._sources), pieces, np.array(self._starts, np.int64))


CLAIMED_ONLY = -1
"""Shard number of a source that is claimed and has no rows."""
ROWS_TOGETHER = 2**17
"""Of a plan's file, that are written or read at once."""

PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        *SOURCES,
        *((name, pa.from_numpy_dtype(PIECE[name])) for name in (PIECE.names or ())[1:]),
        ("supersedes", pa.string()),
    ]
)
"""`supersedes` is the version of the same URI whose rows this claim puts out of date. Its own version means the rows
that earlier plans have of it: the source is claimed afresh. What else it says is for people."""


class NotAPlan(ValueError):
    """The file of a plan does not hold what a plan says."""


@dataclass(frozen=True, eq=False)
class Plan:
    """A numbered, immutable claim on input."""

    number: int
    token: str
    keys: pa.Schema | None
    """Types of the key columns as they were when the plan was made."""
    slices: Slices
    """By shard. Its sources are all that are claimed, also those without rows."""
    day: str = ""
    """That it was made for, the last one of its run; plans of earlier releases do not say."""
    named: bool = False
    """Whether predictions name their classes (`topk_name`): as in the root's first plan, so that all are alike."""
    table: TablePart | None = None
    """What it says of the table that the sources are files of."""
    afresh: frozenset[tuple[str, str]] = frozenset()
    """(uri, version) of sources whose earlier rows, in the same version, these put out of date."""

    @property
    def new_rows(self) -> int:
        """Rows but those that are scored again although they have not changed."""
        shards = self.shards_reading(self.afresh) if self.afresh else ()
        again = (piece for shard in shards for piece in shard.slices)
        return self.rows - sum(piece.rows for piece in again if (piece.uri, piece.version) in self.afresh)

    @property
    def name(self) -> str:
        """For a person."""
        return f"plan {self.number}" + (f" ({self.day})" if self.day else "")

    @property
    def sources(self) -> pa.Table:
        """`uri`, `size` and `version` of every source claimed."""
        return self.slices.sources

    @property
    def claimed(self) -> frozenset[tuple[str, str]]:
        """(uri, version) of every source claimed, made anew each time: a year of nights would be a gigabyte of them."""
        return frozenset(identities(self.sources))

    @cached_property
    def shards(self) -> Shards:
        return Shards([(self, np.arange(len(self.slices)))])

    @cached_property
    def rows(self) -> int:
        return int(self.slices.rows.sum())

    def shards_reading(self, wanted: Collection[tuple[str, str]]) -> Iterator[Shard]:
        """Shards with slices of sources whose (uri, version) is `wanted`."""
        uris = pa.array({uri for uri, _ in wanted}, pa.string())
        places = pc.indices_nonzero(pc.is_in(self.sources["uri"], value_set=uris))
        marked = np.zeros(len(self.sources), np.bool_)
        marked[places] = [identity in wanted for identity in identities(self.sources.take(places))]
        return self.shards_of(marked)

    def shards_of(self, sources: npt.NDArray[np.bool_]) -> Iterator[Shard]:
        """Shards with slices of any of the sources marked, which are those at these places in `sources`."""
        marked = np.logical_or.reduceat(sources[self.slices.pieces["source"]], self.slices.starts[:-1])
        return self.shards.picked(np.flatnonzero(marked))


@dataclass(frozen=True, eq=False)
class Shards(Sequence[Shard]):
    """Some shards, plan by plan, made when they are asked for and not kept: a million are a third of a gigabyte."""

    parts: Sequence[tuple[Plan, Ints]]
    """Plans, each with the numbers of its shards."""

    def __len__(self) -> int:
        return sum(len(numbers) for _, numbers in self.parts)

    @property
    def rows(self) -> int:
        """Of all of them."""
        return sum(int(plan.slices.rows[numbers].sum()) for plan, numbers in self.parts)

    def __iter__(self) -> Iterator[Shard]:
        return self.picked(np.arange(len(self)))

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Shard]: ...
    def __getitem__(self, at: int | slice) -> Shard | Sequence[Shard]:
        where = range(len(self))[at]
        if isinstance(where, int):
            return next(self.picked(np.array([where])))
        return tuple(self.picked(np.array(where, np.int64)))

    def picked(self, numbers: Ints) -> Iterator[Shard]:
        """Those at these places, in the order of `numbers`, many made at once."""
        begins = np.cumsum([0, *(len(of_plan) for _, of_plan in self.parts)])
        part = np.searchsorted(begins, numbers, side="right") - 1
        # One run of places within the same plan after the other.
        edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), len(numbers)]
        for first, end in pairwise(edges if len(numbers) else []):
            plan, of_plan = self.parts[part[first]]
            chosen = of_plan[numbers[first:end] - begins[part[first]]]
            for index, slices in zip(chosen.tolist(), plan.slices.picked(chosen), strict=True):
                table = plan.table and plan.table.of.of_files(piece.uri for piece in slices)
                yield Shard(plan=plan.number, plan_token=plan.token, index=index, slices=slices, table=table)


def picked(shards: Sequence[Shard], numbers: Ints) -> Iterator[Shard]:
    """The shards at these places, in the order of `numbers`."""
    return shards.picked(numbers) if isinstance(shards, Shards) else (shards[number] for number in numbers.tolist())


@dataclass(frozen=True)
class Content:
    """What a plan is to claim, and how its rows fall into shards."""

    shards: Slices
    empty: tuple[Source, ...] = ()
    """Sources with no row: claimed, in no shard."""
    warnings: tuple[str, ...] = ()
    """Of how the rows were cut, for a person."""
    keys: pa.Schema | None = None
    named: bool = True
    supersedes: Mapping[str, str] = field(default_factory=dict)
    """By URI, the version that its claim puts out of date."""
    day: str = ""
    """That the plan is made for: the last one of the run that claims."""
    table: TablePart | None = None

    def sizes(self) -> str:
        """For a person: how many shards, and how large."""
        if not len(self.shards):
            return "0 shards"
        rows = sorted(self.shards.rows.tolist())
        sizes = f"{rows[0]:,} to {counted(rows[-1], 'row')}, median {rows[len(rows) // 2]:,}"
        return f"{counted(len(rows), 'shard')} of {sizes}"


def encode_plan(content: Content, token: str) -> bytes:
    """One row a slice, and one for each source without rows."""
    metadata = {"token": token, "day": content.day}
    if content.keys is not None:
        metadata["keys"] = content.keys.serialize().to_pybytes().hex()
    if content.named:
        metadata["named"] = "yes"
    if content.table is not None:
        metadata["table"] = content.table.encode().hex()
    return to_bytes(_encoded(content), PLAN_SCHEMA, metadata)


def _encoded(content: Content) -> Iterator[pa.Table]:
    slices, empty = content.shards, in_columns(content.empty)
    no_rows = np.zeros(len(empty), PIECE)
    no_rows["source"] = len(slices.sources) + np.arange(len(empty))
    sources = pa.concat_tables([slices.sources, empty]).combine_chunks()
    pieces = np.concatenate([slices.pieces, no_rows])
    shards = np.repeat(np.arange(len(slices)), np.diff(slices.starts))
    shards = np.append(shards, np.full(len(empty), CLAIMED_ONLY))
    uris, before = (pa.array(values, pa.string()) for values in (content.supersedes, content.supersedes.values()))
    for first in range(0, len(pieces), ROWS_TOGETHER):
        chosen = pieces[first : first + ROWS_TOGETHER]
        named = sources.take(pa.array(chosen["source"]))
        columns = {
            "shard": pa.array(shards[first : first + ROWS_TOGETHER]),
            **{name: named[name] for name in SOURCES.names},
            **{name: pa.array(chosen[name]) for name in (PIECE.names or ())[1:]},
            "supersedes": before.take(pc.index_in(named["uri"].combine_chunks(), value_set=uris)),
        }
        yield pa.table(columns)


def decode_plan(number: int, data: bytes) -> Plan:
    """Raises NotAPlan, KeyError, and what Arrow raises, for bytes that are no plan."""
    file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    metadata = file.schema_arrow.metadata or {}
    keys, table = metadata.get(b"stint.keys"), metadata.get(b"stint.table")
    slices, afresh = _decoded(file)
    return Plan(
        number=number,
        token=metadata[b"stint.token"].decode(),
        keys=pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(keys.decode()))) if keys else None,
        slices=slices,
        afresh=afresh,
        day=metadata.get(b"stint.day", b"").decode(),
        named=b"stint.named" in metadata,
        table=TablePart.decode(bytes.fromhex(table.decode())) if table else None,
    )


def _decoded(file: pq.ParquetFile) -> tuple[Slices, frozenset[tuple[str, str]]]:
    """The slices of a plan's file, and which sources are claimed afresh. Sources are named once each, although there is
    a row for every slice."""
    afresh = set[tuple[str, str]]()
    sources, pieces, shards = [SOURCES.empty_table()], [np.zeros(0, PIECE)], [np.zeros(0, np.int64)]
    last = pa.table({"uri": pa.nulls(1, pa.string()), "version": pa.nulls(1, pa.string())})
    count = 0
    for group in range(file.num_row_groups):
        rows = file.read_row_group(group)
        if rows["supersedes"].null_count < len(rows):
            afresh.update(identities(rows.filter(pc.equal(rows["supersedes"], rows["version"]))))
        names = pa.concat_tables([last, rows.select(last.column_names)]).combine_chunks()
        new = _changes(names["uri"]) | _changes(names["version"])
        last = names.slice(len(rows))
        sources.append(rows.select(SOURCES.names).filter(pa.array(new)))
        there = np.zeros(len(rows), PIECE)
        there["source"] = count + np.cumsum(new) - 1
        for name in (PIECE.names or ())[1:]:
            there[name] = rows[name].to_numpy()
        shard = rows["shard"].to_numpy()
        pieces.append(there[shard != CLAIMED_ONLY])
        shards.append(shard[shard != CLAIMED_ONLY])
        count += int(new.sum())
    shard = np.concatenate(shards)
    numbers, starts = np.unique(shard, return_index=True)
    if np.any(np.diff(shard) < 0) or not np.array_equal(numbers, np.arange(len(numbers))):
        raise NotAPlan("its shards are not numbered from 0 on")
    starts = np.append(starts, len(shard))
    return Slices(pa.concat_tables(sources), np.concatenate(pieces), starts), frozenset(afresh)


def _changes(column: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """From the second row on, where the value is another than in the row before, or that one had none."""
    changes: npt.NDArray[np.bool_] = pc.fill_null(pc.not_equal(column[1:], column[:-1]), True).to_numpy()
    return changes


def to_bytes(tables: Iterable[pa.Table], schema: pa.Schema, metadata: Mapping[str, str]) -> bytes:
    """The rows of all tables as one Parquet file."""
    sink = pa.BufferOutputStream()
    schema = schema.with_metadata({f"stint.{name}": value for name, value in metadata.items()})
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as file:
        for table in tables:
            file.write_table(table.cast(schema))
    return bytes(sink.getvalue())


def latest_versions(plans: Iterable[Plan], uris: Iterable[str] | None = None) -> dict[str, str]:
    """By URI, the version claimed last: of all that are claimed, or of these."""
    claims = claims_of(plans)
    if uris is not None:
        claims = claims.filter(pc.is_in(claims["uri"], value_set=pa.array(uris, pa.string())))
    return dict(identities(claims))


def in_columns(sources: Collection[Source]) -> pa.Table:
    """As SOURCES."""
    return pa.table([[s.uri for s in sources], [s.size for s in sources], [s.version for s in sources]], SOURCES)


def identities(sources: pa.Table) -> Iterator[tuple[str, str]]:
    """(uri, version) of each."""
    return zip(sources["uri"].to_pylist(), sources["version"].to_pylist(), strict=True)


def claims_of(plans: Iterable[Plan]) -> pa.Table:
    """`uri`, `version` and `plan` of every source that the plans claim, in their order."""
    tables = [pa.schema([("uri", pa.string()), ("version", pa.string()), ("plan", pa.int64())]).empty_table()]
    for plan in plans:
        numbers = pa.array(np.full(len(plan.sources), plan.number, np.int64))
        tables.append(plan.sources.select(["uri", "version"]).append_column("plan", numbers))
    return pa.concat_tables(tables)
