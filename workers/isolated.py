"""The process that scores a shard's rows in isolation: `python -m workers.isolated FD PARENT`.

It does what its parent asks for over one connection, a part of the rows at a time, and may die of any of them. It ends
with its parent, also where a decoder does not let go of the interpreter.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection

from workers.bisection import Try
from workers.contract import Shard, WorkerSpec
from workers.decoding import BadImage, ErrorCode
from workers.failures import classify
from workers.isolation import Commit, Phase
from workers.outcomes import ShardResult
from workers.parts import cut, joined, wanted
from workers.reading import ShardReader
from workers.rows import RowBlock
from workers.scoring import Part, Scorer

PR_SET_PDEATHSIG = 1
"""Of prctl(2): a signal to get when the thread that started us ends."""


class Isolated:
    """Answers one parent, about one shard."""

    def __init__(self, parent: Connection) -> None:
        self._parent = parent

    def serve(self) -> None:
        """Until the parent closes the connection."""
        spec: WorkerSpec
        shard: Shard
        spec, shard = self._parent.recv()
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
        reader = ShardReader(this.shard, scorer.spec.input)
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


def _end_with(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before it was asked for
        sys.exit(1)


if __name__ == "__main__":
    _end_with(int(sys.argv[2]))
    faulthandler.enable()  # where a crash was goes to the worker's log,
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # and a dump of each would only fill the node's disk
    with suppress(EOFError, ConnectionError):
        Isolated(Connection(int(sys.argv[1]))).serve()
