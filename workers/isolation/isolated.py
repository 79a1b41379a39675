"""The process that scores a shard's rows in isolation: `python -m workers.isolation.isolated FD PARENT`.

It does what its parent asks for over one connection, a part of the rows at a time, and may die of any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import numpy as np
import pyarrow as pa

from workers.contract import Shard, Slice
from workers.failures import classify
from workers.host.child import serve
from workers.host.without_pandas import without_pandas
from workers.image.errors import BadImage, ErrorCode
from workers.isolation.bisection import Try
from workers.isolation.isolate import Phase
from workers.outcomes import Failure, ShardResult
from workers.output import Scored
from workers.score.scorer import Part, Scorer
from workers.source.rows import RowBlock
from workers.source.shard_reader import ShardReader, SourceChanged


def _answer_requests(parent: Connection) -> None:
    """About one shard, which comes first with a WorkerSpec, until the parent closes the connection."""
    spec, shard = parent.recv()
    without_pandas()
    try:
        scorer = Scorer.load(spec)
    except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the parent acts on)
        parent.send(classify(error))
        return
    parent.send(None)  # ready
    while True:
        request: Try | list[Part] = parent.recv()
        answer: Part | ShardResult | Failure
        try:
            if isinstance(request, Try):
                answer = _scored(scorer, shard, request, parent)
            else:
                answer = scorer.commit(shard, joined(request))
        except Exception as error:  # noqa: BLE001  (as above)
            answer = classify(error)
        parent.send(answer)


def _scored(scorer: Scorer, shard: Shard, request: Try, parent: Connection) -> Part:
    how = scorer.spec.input
    this = excerpt(shard, request.first, request.last, how.format)
    blamed = None
    if request.blamed is not None:
        blamed = BadImage(ErrorCode.CRASHED_WORKER, request.blamed)
        how = replace(how, uri_roots=())  # it may be what a link leads to that takes all memory
    reader = ShardReader(this.shard, how)
    part = scorer.predict(this.wanted(_with_phases(reader.blocks(), parent), blamed), request.rows, reader)
    return replace(part, gone=tuple(index + this.slice_first for index in part.gone))


def _with_phases(blocks: Iterable[RowBlock], parent: Connection) -> Iterator[RowBlock]:
    """The parent knows at any time whether it waits for storage or for the rows. So there is no reading ahead."""
    parent.send(Phase.READING)
    for block in blocks:
        parent.send(Phase.SCORING)
        yield block
        parent.send(Phase.READING)
    parent.send(Phase.SCORING)


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
        scored.hashes += part.scored.hashes
        scored.copied += part.scored.copied
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


if __name__ == "__main__":
    serve(_answer_requests, heeds_sigint=True)
