"""The process that scores a shard's rows in isolation: `python -m workers.isolation.isolated FD PARENT`.

It does what its parent asks for over one connection, a part of the rows at a time, and may die of any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

from workers.contract import Shard
from workers.failures import classify
from workers.host.child import serve
from workers.host.without_pandas import without_pandas
from workers.image.errors import BadImage, ErrorCode
from workers.isolation.bisection import Try
from workers.isolation.isolate import Phase
from workers.isolation.parts import excerpt, joined
from workers.outcomes import Failure, ShardResult
from workers.score.scorer import Part, Scorer
from workers.source.rows import RowBlock
from workers.source.shard_reader import ShardReader


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


if __name__ == "__main__":
    serve(_answer_requests, heeds_sigint=True)
