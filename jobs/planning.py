"""Cutting sources into shards: pure functions of row counts and bytes.

Row groups stay whole and in order; neighbours share a shard while both bounds hold, also across files. Only a row
group far beyond the bounds is split by rows, with a warning: every piece must read past the rows before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Literal

from jobs.sources import Opened, RowGroup, Source
from workers.contract import Slice

MAX_SHARD_ROWS = 4096
MIN_SHARD_ROWS = 256
SHARDS_A_WORKER = 4
"""Enough that a slow worker at the end costs little."""
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


@dataclass(frozen=True)
class Cut:
    """How the rows of a claim fall into shards."""

    shards: tuple[tuple[Slice, ...], ...]
    warnings: tuple[str, ...]
    empty: tuple[Source, ...] = ()
    """Sources with no row: claimed, in no shard."""


def bounds(total_rows: int, workers: int, shard_rows: int | Literal["auto"], max_bytes: int) -> Bounds:
    """For `auto`: an even share of several shards a worker, within MIN_SHARD_ROWS and MAX_SHARD_ROWS."""
    if shard_rows != "auto":
        return Bounds(shard_rows, shard_rows, max_bytes)
    rows = max(MIN_SHARD_ROWS, min(MAX_SHARD_ROWS, -(-total_rows // (workers * SHARDS_A_WORKER))))
    return Bounds(rows, max(rows, MIN_SPLIT_ROWS), max_bytes)


def cut(sources: Sequence[Opened], within: Bounds, again: Sequence[Slice] = ()) -> Cut:
    """Cut into shards within the bounds where row groups allow it; `again` are slices that stay as they are."""
    shards: list[tuple[Slice, ...]] = []
    split: list[str] = []
    current: list[Slice] = []
    current_rows = current_bytes = 0
    kept = frozenset(again)
    for piece, piece_bytes in chain(_pieces(sources, within, split), ((piece, 0) for piece in again)):
        if current and (current_rows + piece.rows > within.rows or current_bytes + piece_bytes > within.bytes):
            shards.append(tuple(current))
            current, current_rows, current_bytes = [], 0, 0
        if current and piece not in kept and _continues(current[-1], piece):
            current[-1] = replace(current[-1], row_stop=piece.row_stop)
        else:
            current.append(piece)
        current_rows += piece.rows
        current_bytes += piece_bytes
    if current:
        shards.append(tuple(current))
    empty = tuple(s.source for s in sources if not any(g.rows for g in s.groups))
    warning = (
        f"{len(split)} huge row group(s) split by rows, and every piece reads past the rows before it; "
        f"smaller row groups (10 to 100 MiB) would be read once: {split[0]}"
        if split
        else ""
    )
    return Cut(tuple(shards), (warning,) if warning else (), empty)


def _continues(last: Slice, piece: Slice) -> bool:
    return (last.uri, last.version, last.row_group, last.row_stop) == (
        piece.uri, piece.version, piece.row_group, piece.row_start,
    )  # fmt: skip


def _pieces(sources: Sequence[Opened], within: Bounds, split: list[str]) -> Iterator[tuple[Slice, int]]:
    """Whole row groups, or even parts of huge ones, each with its bytes. Describes what it splits in `split`."""
    for opened in sources:
        for group in opened.groups:
            if group.rows == 0:
                continue
            parts = _parts(group, within)
            source = opened.source
            if parts > 1:
                size = f"{group.rows} rows, {group.bytes / 2**20:.0f} MiB"
                split.append(f"{source.uri} row group {group.number} ({size}) into {parts}")
            for part in range(parts):
                piece = Slice(
                    uri=source.uri,
                    size=source.size,
                    version=source.version,
                    row_group=group.number,
                    row_start=group.row_start + group.rows * part // parts,
                    row_stop=group.row_start + group.rows * (part + 1) // parts,
                    byte_start=group.byte_start,
                )
                yield piece, group.bytes // parts


def _parts(group: RowGroup, within: Bounds) -> int:
    if group.whole or (group.rows <= SPLIT_FACTOR * within.split_rows and group.bytes <= SPLIT_FACTOR * within.bytes):
        return 1
    return min(group.rows, max(-(-group.rows // within.split_rows), -(-group.bytes // within.bytes)))
