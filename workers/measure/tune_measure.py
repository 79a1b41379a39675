"""One worker of a candidate that `stint tune` measures: `python -m workers.measure.tune_measure FD PARENT`.

It loads the bundle as a worker does and runs a worker's own loop, decoding included, over a sample that lies in a file:
read from storage once and mapped by all. What it is asked comes over one connection.
"""

from __future__ import annotations

import itertools
import os
import time
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from workers.failures import classify
from workers.host import cores, memory
from workers.host.child import to_parent
from workers.host.without_pandas import without_pandas
from workers.measure.tune_crew import Go, Prepare, Ran, Ready, Setup
from workers.measure.tune_sample import map_sample
from workers.source.rows import ImageCell, RowBlock

if TYPE_CHECKING:
    from workers.contract import WorkerSpec
    from workers.score.predictor import Predictor

ROWS_A_CALL = 256
"""About as many rows as the loop is given at a time; always whole rounds, so that no batch is padded."""


class _TimeIsOver(Exception):
    def __init__(self, rows: int) -> None:
        super().__init__(rows)
        self.rows = rows


class Trial:
    """Answers one parent, about one engine on one set of cores."""

    def __init__(self, parent: Connection) -> None:
        self._parent = parent
        self._predictor: Predictor
        self._images: list[ImageCell]
        self._batch = 0
        self._rounds = 1

    def serve(self) -> None:
        """Until the parent closes the connection."""
        setup: Setup = self._parent.recv()
        try:
            self._begin(setup)
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the parent acts on)
            self._parent.send(classify(error))
            return
        self._parent.send(Ready())
        while True:
            asked: Prepare | Go = self._parent.recv()
            try:
                answer = self._prepare(setup, asked.batch) if isinstance(asked, Prepare) else self._run(asked.until)
            except Exception as error:  # noqa: BLE001  (as above)
                self._parent.send(classify(error))
            else:
                self._parent.send(answer)

    def _begin(self, setup: Setup) -> None:
        cores.apply(setup.plan)
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its deprecation notices would be in the progress
        without_pandas()
        self._load(setup.spec)
        images = map_sample(setup.sample)
        first = setup.first % len(images)
        self._images = images[first:] + images[:first]

    def _load(self, spec: WorkerSpec) -> None:
        from workers.score.scorer import Scorer

        scorer = Scorer.load(spec)
        assert scorer.info.name == spec.engine, "a candidate names its artifact, and gets it or none"
        self._predictor, self._batch = scorer.predictor, scorer.batch

    def _prepare(self, setup: Setup, batch: int) -> Ready:
        if batch != self._batch:
            del self._predictor  # a worker holds one network, and so does this, for its memory is measured, too
            self._load(replace(setup.spec, batch=batch))  # anew: an engine is quickest at the first size it meets
        memory.forget_peak()
        self._predictor.score([self._block(batch)], batch)
        return Ready()

    def _run(self, until: float) -> Ran:
        from workers.score.scorer import WORKER_STAGES

        room = self._predictor.room
        rows_a_call = room * max(1, ROWS_A_CALL // room)
        stage_s = self._predictor.stage_s = dict.fromkeys(WORKER_STAGES, 0.0)
        rows, began, cpu = 0, time.monotonic(), time.process_time()

        def between_rounds(done: int) -> None:
            if time.monotonic() >= until:
                raise _TimeIsOver(done)

        try:
            while rows == 0 or time.monotonic() < until:
                self._predictor.score([self._block(rows_a_call)], rows_a_call, between_rounds)
                rows += rows_a_call
        except _TimeIsOver as over:
            rows += over.rows
        return Ran(
            rows=rows,
            wall_s=time.monotonic() - began,
            cpu_s=time.process_time() - cpu,
            decode_s=stage_s["decode"],
            predict_s=stage_s["predict"],
            peak_bytes=memory.peak_rss_bytes(),
            resident_bytes=memory.resident_bytes(),
        )

    def _block(self, rows: int) -> RowBlock:
        images = list(itertools.islice(itertools.cycle(self._images), rows))
        return RowBlock(slice_index=0, row_start=0, images=images, keys=None, bytes_read=0)


if __name__ == "__main__":
    connection = to_parent()
    with suppress(EOFError, ConnectionError):
        Trial(connection).serve()
