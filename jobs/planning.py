"""Cutting sources into shards: pure functions of row counts and bytes.

Row groups stay whole and in order; neighbours share a shard while both bounds hold, also across files. Only a row
group far beyond the bounds is split by rows, with a warning: every piece must read past the rows before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jobs.sources import Opened, Source
from workers.contract import Slice

MAX_SHARD_ROWS = 4096
MIN_SHARD_ROWS = 256
SHARDS_A_WORKER = 4
"""Enough that a slow worker at the end costs little."""
SPLIT_FACTOR = 4
"""A row group is split only when it is this many times over a bound."""


@dataclass(frozen=True)
class Cut:
    """How the rows of a claim fall into shards."""

    shards: tuple[tuple[Slice, ...], ...]
    warnings: tuple[str, ...]
    empty: tuple[Source, ...] = ()
    """Sources with no row: claimed, in no shard."""


def target_rows(total_rows: int, workers: int) -> int:
    """Rows a shard for `shard_rows: auto`: an even share of several shards a worker, within bounds."""
    return max(MIN_SHARD_ROWS, min(MAX_SHARD_ROWS, -(-total_rows // (workers * SHARDS_A_WORKER))))


def cut(sources: Sequence[Opened], *, rows: int, max_bytes: int) -> Cut:
    """Cut into shards of at most `rows` rows and `max_bytes` bytes where row groups allow it."""
    shards: list[tuple[Slice, ...]] = []
    warnings: list[str] = []
    current: list[Slice] = []
    current_bytes = 0
    for piece, piece_bytes in _pieces(sources, rows, max_bytes, warnings):
        full = sum(s.rows for s in current) + piece.rows > rows or current_bytes + piece_bytes > max_bytes
        if current and full:
            shards.append(tuple(current))
            current, current_bytes = [], 0
        current.append(piece)
        current_bytes += piece_bytes
    if current:
        shards.append(tuple(current))
    empty = tuple(s.source for s in sources if not any(g.rows for g in s.groups))
    return Cut(tuple(shards), tuple(warnings), empty)


def _pieces(sources: Sequence[Opened], rows: int, max_bytes: int, warnings: list[str]) -> Iterator[tuple[Slice, int]]:
    """Whole row groups, or even parts of huge ones, each with its bytes."""
    for opened in sources:
        for index, group in enumerate(opened.groups):
            if group.rows == 0:
                continue
            huge = group.rows > SPLIT_FACTOR * rows or group.bytes > SPLIT_FACTOR * max_bytes
            parts = min(group.rows, max(-(-group.rows // rows), -(-group.bytes // max_bytes))) if huge else 1
            if huge:
                warnings.append(
                    f"{opened.source.uri} row group {index} has {group.rows} rows in {group.bytes / 2**20:.0f} MiB: "
                    f"split by rows into {parts} shards, each of which reads past the rows before it; "
                    "smaller row groups would each be read once"
                )
            for part in range(parts):
                start, stop = group.rows * part // parts, group.rows * (part + 1) // parts
                source = opened.source
                yield (
                    Slice(
                        uri=source.uri,
                        size=source.size,
                        version=source.version,
                        row_group=index,
                        row_start=start,
                        row_stop=stop,
                    ),
                    group.bytes // parts,
                )
