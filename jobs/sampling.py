"""Which rows of the input calibrate and judge the INT8 model: a seeded choice over the listing."""

from __future__ import annotations

import random
from collections.abc import Sequence

from jobs.sources import Opened
from workers.contract import SampleSlice, Slice

GROUPS = 16
"""Row groups to read from, where there are as many: enough to see a sorted data set, few enough to read quickly."""
SPARE = 1.25
"""Rows asked for over rows needed, so that bad images do not make the sample short."""


def choose_sample(opened: Sequence[Opened], rows: int, seed: int) -> tuple[SampleSlice, ...]:
    """About `rows` × SPARE rows, spread over row groups drawn without replacement; fewer if the input has fewer."""
    groups = [(o, i) for o in opened for i, group in enumerate(o.groups) if group.rows]
    random.Random(seed).shuffle(groups)  # noqa: S311  (reproducible, not secret)
    wanted = int(rows * SPARE) + 1
    share = -(-wanted // min(GROUPS, max(1, len(groups))))
    sizes = [o.groups[index].rows for o, index in groups]
    takes = [min(size, share) for size in sizes]
    if sum(takes) < wanted:  # uneven groups: the large ones make up for the small ones
        takes = sizes
    sample: list[SampleSlice] = []
    for (opened_, index), size, most in zip(groups, sizes, takes, strict=True):
        if wanted <= 0:
            break
        source = opened_.source
        whole = Slice(
            uri=source.uri, size=source.size, version=source.version, row_group=index, row_start=0, row_stop=size
        )
        sample.append(SampleSlice(rows=whole, take=min(most, wanted)))
        wanted -= most
    return tuple(sample)
