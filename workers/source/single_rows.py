"""Single rows, found again: what a person calls a row, and its encoded image or why there is none."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from workers.contract import InputSpec, Shard, Slice, TableOf
from workers.image.errors import BadImage
from workers.redaction import redacted
from workers.source.rows import ImageCell
from workers.source.shard_reader import ShardReader, SourceChanged
from workers.storage.errors import NotFound
from workers.storage.filesystems import info_of, version_of
from workers.storage.lookahead import ahead

ROW_GROUPS_AT_ONCE = 8
GONE = "the file is gone"
CHANGED = "the file has changed since it was scored"
_PLACE = re.compile(r"(?P<uri>.+)#(?P<row_group>\d{1,9})/(?P<row>\d{1,18})", re.DOTALL)


@dataclass(frozen=True, order=True, slots=True)
class RowAt:
    """An input row, as the first four columns of the output name it."""

    uri: str
    version: str
    row_group: int
    row: int

    @property
    def place(self) -> Place:
        return Place(self.uri, self.row_group, self.row)


class Place(NamedTuple):
    """A row in whatever version of its source."""

    uri: str
    row_group: int = 0
    row: int = 0

    def write(self, how: InputSpec) -> str:
        """As a person names it: `URI#ROWGROUP/ROW`, and an image file by its URI."""
        return self.uri if how.format == "images" else f"{self.uri}#{self.row_group}/{self.row}"

    @classmethod
    def read(cls, text: str, how: InputSpec) -> Place | None:
        """What `write` has written; None for what names no row of such an input."""
        if found := _PLACE.fullmatch(text):
            return cls(found["uri"], int(found["row_group"]), int(found["row"]))
        return cls(text) if how.format == "images" else None


def fetch_images(given: InputSpec, rows: Sequence[RowAt], shards: Iterable[Shard] = ()) -> list[bytes | str]:
    """The images of the rows, or why there is none, for a person; in their order. Raises nothing for a row's sake.

    All are held in memory, and rows of one row group read together. `shards` are those of plans, of these sources or
    of others: of a tar they tell from which byte to read, and without them it is read from its beginning; of a table
    how its files are read, which cannot be without them.
    """
    starts: defaultdict[tuple[str, str], list[tuple[int, int]]] = defaultdict(lambda: [(0, 0)])
    tables: dict[str, TableOf | None] = {}
    for shard in shards:
        for piece in shard.slices:
            tables[piece.uri] = shard.table
            if piece.byte_start:
                starts[piece.uri, piece.version].append((piece.row_start, piece.byte_start))
    groups = [list(group) for _, group in groupby(sorted(set(rows)), lambda row: (row.uri, row.version, row.row_group))]
    how = replace(given, keys=())

    def fetch(group: Sequence[RowAt]) -> dict[RowAt, bytes | str]:
        return _fetch(how, tables.get(group[0].uri), group, starts[group[0].uri, group[0].version])

    parts = ahead(fetch, groups, "rows", ROW_GROUPS_AT_ONCE)
    found = {row: fetched for part in parts for row, fetched in part.items()}
    return [found[row] for row in rows]


def _fetch(
    how: InputSpec, table: TableOf | None, rows: Sequence[RowAt], starts: Sequence[tuple[int, int]]
) -> dict[RowAt, bytes | str]:
    """Rows of one row group of a source, in ascending order; `starts` are rows that begin at a byte which is known."""
    source, cells, problem = rows[0], dict[int, ImageCell](), CHANGED
    try:
        info = info_of(source.uri)
        if version_of(info, source.version) == source.version:
            slices = tuple(
                Slice(
                    uri=source.uri, size=int(info["size"]), version=source.version, row_group=source.row_group,
                    row_start=start, row_stop=max(row.row for row in near) + 1, byte_start=byte_start,
                )
                for (start, byte_start), near in groupby(rows, lambda row: max(at for at in starts if at[0] <= row.row))
            )  # fmt: skip
            shard = Shard(plan=0, plan_token="rows", index=0, slices=slices, table=table)  # noqa: S106
            for block in ShardReader(shard, how, {row.row for row in rows}).blocks():
                cells.update(zip(block.rows, block.images, strict=True))
    except NotFound:
        problem = GONE
    except SourceChanged:
        cells.clear()
    except Exception as error:  # noqa: BLE001  (each library has its own; whatever it is, it concerns this source alone)
        problem = redacted(f"cannot be read: {error}")
    found = {row: cells.get(row.row, problem) for row in rows}
    return {row: str(cell) if isinstance(cell, BadImage | str) else bytes(cell) for row, cell in found.items()}
