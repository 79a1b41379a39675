"""Which rows of the input calibrate and judge the INT8 model: a seeded choice over the listing."""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence

from jobs.input.footers import Opened
from workers.contract import SampleSlice, Slice

_GROUPS = 16
"""Row groups to read from, where there are as many: enough to see a sorted data set, few enough to read quickly."""
_SPARE = 1.25
"""Rows asked for over rows needed, so that bad images do not make the sample short."""


def choose_sample(opened: Sequence[Opened], rows: int, seed: int) -> tuple[SampleSlice, ...]:
    """About `rows` × _SPARE rows, spread over row groups drawn without replacement; fewer if the input has fewer."""
    groups, sizes = array("q"), array("q")
    """By group where it lies, as its place in `opened` and its own there; and its rows. Image files may be millions."""
    for place, o in enumerate(opened):
        for at, group in enumerate(o.groups):
            if group.rows:
                groups.extend((place, at))
                sizes.append(group.rows)
    order = array("q", range(len(sizes)))
    random.Random(seed).shuffle(order)  # noqa: S311  (reproducible, not secret)
    wanted = int(rows * _SPARE) + 1
    share = -(-wanted // min(_GROUPS, max(1, len(order))))
    if sum(min(size, share) for size in sizes) < wanted:  # uneven groups: the large ones make up for the small ones
        share = max(sizes, default=0)
    sample: list[SampleSlice] = []
    for number in order:
        if wanted <= 0:
            break
        o, most = opened[groups[2 * number]], min(sizes[number], share)
        source, group = o.source, o.groups[groups[2 * number + 1]]
        whole = Slice(
            uri=source.uri,
            size=source.size,
            version=source.version,
            row_group=group.number,
            row_start=group.row_start,
            row_stop=group.row_start + group.rows,
            byte_start=group.byte_start,
        )
        sample.append(SampleSlice(rows=whole, take=min(most, wanted), table=o.table))
        wanted -= most
    return tuple(sample)
