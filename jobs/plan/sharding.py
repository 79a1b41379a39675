"""Cutting sources into shards: pure functions of row counts and bytes.

Row groups stay whole and in order; neighbours share a shard while both bounds hold, also across files. A huge row group
comes in parts that are read alone, which count as row groups here. Only what is far beyond the bounds is split by rows,
with a warning: every piece must read past the rows before it.

Towards its end a plan is cut finer (guided self-scheduling, Polychronopoulos and Kuck 1987): no shard is larger than
its share of what is left, so that workers run dry together. Where a worker is late with its last shard, the others find
smaller ones to fill the time with; in the middle of a plan small shards would gain nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jobs.input.footers import Opened, opened_rows
from jobs.ledger.plans import Content, SlicesBuilder, Source
from workers.contract import Slice
from workers.counted import counted
from workers.source.rows import RowGroup

_MAX_SHARD_ROWS = 4096
_MIN_SHARD_ROWS = 256
_FEW_ROWS = 16
"""A shard of a small input need not be smaller than this: a batch or two."""
_SHARDS_A_WORKER = 4
"""Enough that a slow worker at the end costs little."""
_ROUNDS_LEFT = 2
"""A shard takes at most 1 / (_ROUNDS_LEFT * workers) of the rows that are left: the last two rounds grow smaller."""
_LAST_SHARE = 64
"""The last shards need not be smaller than this part of all that a worker does: what is gained then is below 1 %."""
_LAST_SHARD_ROWS = 64
"""Nor smaller than this: an object for every few batches costs more than it gains."""
MIN_SPLIT_ROWS = 1024
"""`auto` does not split a row group into smaller pieces than this: reading past rows would cost more than it gains."""
SPLIT_FACTOR = 2
"""A row group is split only when it is more than this many times over a bound."""


@dataclass(frozen=True)
class Bounds:
    """What a shard may hold."""

    rows: int
    split_rows: int
    """Rows of a piece where a row group must be split."""
    bytes: int
    workers: int = 0
    """For how many workers the end of the plan is cut finer; 0: it is not."""
    last_rows: int = 0
    """Down to how many rows a shard."""
    small: bool = False
    """There is so little that it costs nothing to tell of to read past the rows of a row group that is split."""

    def limit(self, left: int) -> int:
        """Most rows of the shard that begins when so many rows are left."""
        if not self.workers:
            return self.rows
        return min(self.rows, max(self.last_rows, -(-left // (_ROUNDS_LEFT * self.workers))))


def bounds(
    total_rows: int, workers: int, shard_rows: int | Literal["auto"], max_bytes: int, there: int | None = None
) -> Bounds:
    """For `auto`: an even share of several shards a worker, within _MIN_SHARD_ROWS and _MAX_SHARD_ROWS, finer at the
    end.

    Where an even share is below _MIN_SHARD_ROWS the `workers` that are allowed are more than there is work for, and
    shards stay at that size. What counts then is how many are `there`, where that is known: they finish together, and
    what would be less than two such shards for each of them is shared out evenly. Rows that the spec names are taken as
    they are, to the end.
    """
    if shard_rows != "auto":
        return Bounds(shard_rows, shard_rows, max_bytes)
    share = -(-total_rows // (workers * _SHARDS_A_WORKER))
    if share > _MIN_SHARD_ROWS:
        rows, finish = min(_MAX_SHARD_ROWS, share), workers
    elif there and total_rows <= there * _ROUNDS_LEFT * _MIN_SHARD_ROWS:
        parts = max(1, min(there * _ROUNDS_LEFT, total_rows // _FEW_ROWS))
        parts -= parts % there if parts > there else 0  # as many for each
        rows = max(1, -(-total_rows // parts))
        return Bounds(rows, rows, max_bytes, small=True)
    else:
        rows, finish = _MIN_SHARD_ROWS, there or 0
    last = max(_LAST_SHARD_ROWS, min(_MIN_SHARD_ROWS, total_rows // (finish * _LAST_SHARE))) if finish else 0
    return Bounds(rows, max(rows, MIN_SPLIT_ROWS), max_bytes, finish, last)


@dataclass
class _Filling:
    """The shard that is being filled."""

    builder: SlicesBuilder
    within: Bounds
    most_rows: int = 0
    rows: int = 0
    bytes: int = 0

    def make_room(self, rows: int, size: int, left: int) -> None:
        """For a piece with which `left` rows begin: where it is too much for the shard, it is the first of another."""
        if self.rows and (self.rows + rows > self.most_rows or self.bytes + size > self.within.bytes):
            self.builder.end_shard()
            self.rows = self.bytes = 0
        if not self.rows:
            self.most_rows = self.within.limit(left)
        self.rows += rows
        self.bytes += size


def cut(sources: Sequence[Opened], within: Bounds, again: Sequence[Slice] = ()) -> Content:
    """Cut into shards within the bounds where row groups allow it; `again` are slices that stay as they are."""
    builder = SlicesBuilder()
    split: list[str] = []
    empty: list[Source] = []
    left = opened_rows(sources) + sum(piece.rows for piece in again)
    shard = _Filling(builder, within)
    for opened in sources:
        source = opened.source
        groups = [group for group in opened.groups if group.rows]
        if not groups:
            empty.append(source)
            continue
        builder.source(source)
        for group in groups:
            pieces = _pieces(group, within, left)
            dear = not (group.paged or (within.small and group.bytes <= SPLIT_FACTOR * within.bytes))
            if len(pieces) > 1 and dear:
                size = f"{group.rows} rows, {group.bytes / 2**20:.0f} MiB"
                split.append(f"{source.uri} row group {group.number} ({size}) into {len(pieces)}")
            start = group.row_start
            for rows in pieces:
                shard.make_room(rows, group.bytes // len(pieces), left)
                builder.add(group.number, start, start + rows, group.byte_start)
                start += rows
                left -= rows
    for piece in again:
        shard.make_room(piece.rows, 0, left)
        left -= piece.rows
        builder.source(Source(piece.uri, piece.size, piece.version))
        builder.add(piece.row_group, piece.row_start, piece.row_stop, piece.byte_start)
    builder.end_shard()
    warnings = [
        f"{counted(len(split), 'row group is', 'row groups are')} split, being larger than a shard, and every piece "
        f"reads past the rows before it; row groups of at most a shard would be read once: {first}"
        for first in split[:1]
    ]
    return Content(builder.slices(), tuple(empty), tuple(warnings))


def _pieces(group: RowGroup, within: Bounds, left: int) -> list[int]:
    """Rows of the pieces of a row group with which `left` rows begin: one, or for a huge one even parts.

    Where the plan is cut finer the parts become smaller too.
    """
    if group.whole or (group.rows <= SPLIT_FACTOR * within.split_rows and group.bytes <= SPLIT_FACTOR * within.bytes):
        return [group.rows]
    parts = min(group.rows, max(-(-group.rows // within.split_rows), -(-group.bytes // within.bytes)))
    least, over = divmod(group.rows, parts)
    pieces: list[int] = []
    for rows in [least + 1] * over + [least] * (parts - over):
        here = left - sum(pieces)
        if within.workers and within.limit(here) < rows:
            return pieces + _finer(group.rows - sum(pieces), rows, within, here)
        pieces.append(rows)
    return pieces


def _finer(rows: int, most: int, within: Bounds, left: int) -> list[int]:
    """Pieces of the last `rows` of a row group, with which `left` rows begin, none of them larger than `most`.

    Not below MIN_SPLIT_ROWS, or half of it where there would be too little left for a piece of its own.
    """
    least = min(most, MIN_SPLIT_ROWS)
    pieces = []
    while rows:
        size = min(most, max(least, within.limit(left)))
        if rows < size + least:
            size = rows if rows <= size else -(-rows // 2)
        pieces.append(size)
        rows -= size
        left -= size
    return pieces
