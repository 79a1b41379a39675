"""Slices of many shards in columns, and as objects only on demand.

A plan of a million shards is 32 MB this way, and its sources; as objects it would be most of a gigabyte.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workers.contract import Slice

Ints = npt.NDArray[np.int64]
_T = TypeVar("_T", covariant=True)

PIECE = np.dtype(
    [
        ("source", np.int32),
        ("row_group", np.int32),
        ("row_start", np.int64),
        ("row_stop", np.int64),
        ("byte_start", np.int64),
    ]
)
"""A slice: `source` is the row of its source in the table of sources, the others are as in workers.contract.Slice."""
WIDTH = len(PIECE.names or ())
SOURCES = pa.schema([("uri", pa.string()), ("size", pa.int64()), ("version", pa.string())])
_TOGETHER = 4096
"""Shards that are made into objects at once."""


class OnDemand(Sequence[_T]):
    """A sequence that makes its items when they are asked for, and keeps none."""

    def picked(self, numbers: Ints) -> Iterator[_T]:
        """The items with these numbers, in the order of `numbers`."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[_T]:
        return self.picked(np.arange(len(self)))

    @overload
    def __getitem__(self, at: int) -> _T: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[_T]: ...
    def __getitem__(self, at: int | slice) -> _T | Sequence[_T]:
        where = range(len(self))[at]
        if isinstance(where, int):
            return next(self.picked(np.array([where])))
        return tuple(self.picked(np.array(where, np.int64)))


def picked(items: Sequence[_T], numbers: Ints) -> Iterator[_T]:
    """The items with these numbers, in the order of `numbers`; those made on demand many at once."""
    return items.picked(numbers) if isinstance(items, OnDemand) else (items[number] for number in numbers.tolist())


@dataclass(frozen=True, eq=False)
class Slices(OnDemand[tuple[Slice, ...]]):
    """The slices of each shard, by the shard's number."""

    sources: pa.Table
    """As SOURCES."""
    pieces: npt.NDArray[Any]
    """As PIECE, in the order of shards."""
    starts: Ints
    """Where in `pieces` each shard begins, and where the last one ends."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @cached_property
    def rows(self) -> Ints:
        """Of each shard."""
        rows = self.pieces["row_stop"] - self.pieces["row_start"]
        return np.diff(np.concatenate([[0], np.cumsum(rows)])[self.starts])

    def picked(self, numbers: Ints) -> Iterator[tuple[Slice, ...]]:
        for first in range(0, len(numbers), _TOGETHER):
            yield from self._objects(numbers[first : first + _TOGETHER])

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


class SlicesBuilder:
    """Slices in the making: say of which source, add its slices, and where a shard ends."""

    def __init__(self) -> None:
        self._uris: list[str] = []
        self._sizes = array("q")
        self._versions: list[str] = []
        self._pieces = array("q")
        self._starts = array("q", [0])
        self._end: tuple[int, int] | None = None
        """Row group and row where the last slice ends, if one that begins there goes on with it."""

    def source(self, uri: str, size: int, version: str) -> None:
        """Whose slices come next."""
        self._end = None
        if not self._uris or (self._uris[-1], self._versions[-1]) != (uri, version):
            self._uris.append(uri)
            self._sizes.append(size)
            self._versions.append(version)

    def add(self, row_group: int, row_start: int, row_stop: int, byte_start: int) -> None:
        """Rows that follow the last ones of the shard, since its source was named, become one slice with them."""
        if self._end == (row_group, row_start):
            self._pieces[-2] = row_stop
        else:
            self._pieces.extend((len(self._uris) - 1, row_group, row_start, row_stop, byte_start))
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
        sources = pa.table([self._uris, np.array(self._sizes), self._versions], schema=SOURCES)
        return Slices(sources, pieces, np.array(self._starts, np.int64))


@dataclass(frozen=True, order=True, slots=True)
class Source:
    uri: str
    size: int
    version: str

    @property
    def identity(self) -> tuple[str, str]:
        return self.uri, self.version
