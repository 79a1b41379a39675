"""Slices in columns, from slices that a test writes down."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobs.ledger.plans import Slices, SlicesBuilder, Source
from workers.contract import Slice


def slices_of(shards: Iterable[Sequence[Slice]]) -> Slices:
    builder = SlicesBuilder()
    for slices in shards:
        for piece in slices:
            builder.source(Source(piece.uri, piece.size, piece.version))
            builder.add(piece.row_group, piece.row_start, piece.row_stop, piece.byte_start)
        builder.end_shard()
    return builder.slices()
