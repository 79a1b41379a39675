"""The process that scores a shard's rows in isolation: `python -m workers.isolation.isolated FD PARENT`.

It does what its parent asks for over one connection, a part of the rows at a time, and may die of any of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection

from workers.contract import Shard, WorkerSpec
from workers.failures import classify
from workers.host.child import to_parent
from workers.host.without_pandas import without_pandas
from workers.image.errors import BadImage, ErrorCode
from workers.isolation.bisection import Try
from workers.isolation.isolate import Commit, Phase
from workers.isolation.parts import cut, joined, wanted
from workers.outcomes import ShardResult
from workers.score.scorer import Part, Scorer
from workers.source.rows import RowBlock
from workers.source.shard_reader import ShardReader


class Isolated:
    """Answers one parent, about one shard."""

    def __init__(self, parent: Connection) -> None:
        self._parent = parent

    def serve(self) -> None:
        """Until the parent closes the connection."""
        spec: WorkerSpec
        shard: Shard
        spec, shard = self._parent.recv()
        without_pandas()
        try:
            scorer = Scorer.load(spec)
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the parent acts on)
            self._parent.send(classify(error))
            return
        self._parent.send(Phase.READY)
        while True:
            request: Try | Commit = self._parent.recv()
            try:
                answer = self._answer(scorer, shard, request)
            except Exception as error:  # noqa: BLE001  (as above)
                self._parent.send(classify(error))
            else:
                self._parent.send(answer)

    def _answer(self, scorer: Scorer, shard: Shard, request: Try | Commit) -> Part | ShardResult:
        if isinstance(request, Commit):
            return scorer.commit(shard, joined(request.parts))
        this = cut(shard, request.first, request.last, scorer.spec.input.format)
        blamed = None if request.blamed is None else BadImage(ErrorCode.CRASHED_WORKER, request.blamed)
        how = scorer.spec.input
        if blamed is not None:  # it may be what a link leads to that takes all memory
            how = replace(how, uri_roots=())
        reader = ShardReader(this.shard, how)
        part = scorer.predict(wanted(self._told(reader.blocks()), this, blamed), request.rows, reader)
        return replace(part, gone=tuple(index + this.slice_first for index in part.gone))

    def _told(self, blocks: Iterable[RowBlock]) -> Iterator[RowBlock]:
        """The parent knows at any time whether it is storage or the rows that are waited for.

        So there is no reading ahead.
        """
        self._parent.send(Phase.READING)
        for block in blocks:
            self._parent.send(Phase.SCORING)
            yield block
            self._parent.send(Phase.READING)
        self._parent.send(Phase.SCORING)


if __name__ == "__main__":
    connection = to_parent()
    with suppress(EOFError, ConnectionError):
        Isolated(connection).serve()
