"""Parts of a shard: reading some of its rows only, and putting the parts together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from workers.contract import Shard, Slice
from workers.image.errors import BadImage
from workers.output import Scored
from workers.score.scorer import Part
from workers.source.rows import RowBlock
from workers.source.shard_reader import SourceChanged


@dataclass(frozen=True)
class Excerpt:
    """A shard that holds the rows [first, last) of another, and, of tars, perhaps some before them."""

    shard: Shard
    slice_first: int
    """Which slice of the whole shard its first one is."""
    rows_before: int
    """Rows read before the first that is wanted."""

    def wanted(self, blocks: Iterable[RowBlock], blamed: BadImage | None) -> Iterator[RowBlock]:
        """The rows that are wanted, of all that are read, with their slices named as in the whole shard.

        `blamed`, where there is one, takes the place of the images, so that nothing but keys is left of the rows.
        """
        first_row = self.shard.slices[0].row_start + self.rows_before
        for block in blocks:
            skip = max(0, first_row - block.rows[0]) if block.slice_index == 0 else 0
            images = block.images[skip:]
            if images:
                yield RowBlock(
                    block.slice_index + self.slice_first,
                    block.rows[skip:],
                    images if blamed is None else [blamed] * len(images),
                    # A copy: of a slice all rows around it would travel along between processes.
                    None if block.keys is None else block.keys.take(pa.array(range(skip, block.keys.num_rows))),
                    block.bytes_read,
                )


def excerpt(shard: Shard, first: int, last: int, input_format: str) -> Excerpt:
    """The slices that hold rows [first, last) of `shard`, counted over all its slices, and no more of them than needed.

    The head of a slice of a tar stays: nobody knows at which byte its rows begin.
    """
    slices: list[Slice] = []
    slice_first = rows_before = start = 0
    for index, whole in enumerate(shard.slices):
        stop = start + whole.rows
        if start < last and first < stop:
            head, tail = max(0, first - start), max(0, stop - last)
            if not slices:
                slice_first = index
            if input_format == "webdataset":
                rows_before, head = rows_before + head, 0
            slices.append(replace(whole, row_start=whole.row_start + head, row_stop=whole.row_stop - tail))
        start = stop
    return Excerpt(replace(shard, slices=tuple(slices)), slice_first, rows_before)


def joined(parts: Sequence[Part]) -> Part:
    """One part of all of them, which are in the order of their rows.

    Raises SourceChanged where a slice is gone in one part and was read in another.
    """
    scored = Scored(
        label_NK=np.concatenate([part.scored.label_NK[: part.scored.rows] for part in parts]),
        score_NK=np.concatenate([part.scored.score_NK[: part.scored.rows] for part in parts]),
    )
    for part in parts:
        rows = scored.rows
        scored.slice_index += part.scored.slice_index
        scored.row += part.scored.row
        scored.errors |= {rows + row: bad for row, bad in part.scored.errors.items()}
        scored.keys += part.scored.keys
        scored.bytes_read += part.scored.bytes_read
    gone = {index for part in parts for index in part.gone}
    if gone & set(scored.slice_index):
        raise SourceChanged("a source vanished or changed between two parts of its shard")
    return Part(
        scored,
        tuple(sorted(gone)),
        {stage: sum(part.stage_s[stage] for part in parts) for stage in parts[0].stage_s},
        sum(part.wall_s for part in parts),
        sum(part.cpu_s for part in parts),
        max(part.peak_rss_bytes for part in parts),
        max(part.torch_threads for part in parts),
    )
