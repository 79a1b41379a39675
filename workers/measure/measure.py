"""A process that loads a network and measures it on demand, or makes candidates of it for `stint compare`.

`python -m workers.measure.measure FD PARENT`: a process of its own, so that its memory is its own and what kills it
kills nothing else. It is pinned to its cores and waits while others are measured. See workers.measure.messages for what
it is asked.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from workers.failures import classify
from workers.host import cores, memory
from workers.host.child import serve
from workers.host.without_pandas import without_pandas
from workers.measure.messages import Load, LoadVariant, LoadWorker, Measured, Network, Score
from workers.measure.sample_file import map_sample
from workers.model.names import ModelError
from workers.outcomes import Failure
from workers.source.rows import RowBlock

if TYPE_CHECKING:
    from workers.contract import WorkerSpec
    from workers.engines.base import Pixels
    from workers.measure.variants import ForwardPass

WARM_UP = 2
"""Batches of a new size that are not measured: kernels are made for it."""
ROWS_A_CALL = 256
"""About as many rows as a worker's loop is given at a time; always whole rounds, so that no batch is padded."""
NOISE_IMAGES = 16


def _answer_requests(parent: Connection) -> None:
    asked: Load | Network = parent.recv()
    try:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its deprecation notices would be in the progress
        without_pandas()
        if asked.plan is not None:
            cores.apply(asked.plan)  # before torch is imported, which sizes its thread pool
        else:
            for name in cores.THREAD_VARIABLES:
                os.environ.pop(name, None)
        if isinstance(asked, Network):
            import torch

            from workers.measure.compare_make import CandidateMaker

            torch.set_num_threads(asked.plan.threads)
            for candidate in CandidateMaker(asked).each():
                parent.send(candidate)
            return parent.send(None)
        subject = _open(asked)
    except Exception as error:  # noqa: BLE001  (each library has its own; the parent gives it as the reason)
        failure = classify(error)
        if isinstance(asked, Network) and not isinstance(error, ModelError):  # of storage the message is the path alone
            failure = replace(failure, message=f"{type(error).__name__}: {failure.message}")
        return parent.send(failure)
    answer: str | int | Measured | Failure = subject.description
    while True:
        parent.send(answer)
        request: Score = parent.recv()
        try:
            if request.until is None:
                subject.prepare(request.batch)
                answer = memory.peak_rss_bytes()
            else:
                began, cpu = time.monotonic(), time.process_time()
                rows, stage_s = subject.score(request.until)
                answer = Measured(
                    rows=rows,
                    wall_s=time.monotonic() - began,
                    cpu_s=time.process_time() - cpu,
                    stage_s=stage_s,
                    peak_bytes=memory.peak_rss_bytes(),
                    resident_bytes=memory.resident_bytes(),
                )
        except Exception as error:  # noqa: BLE001  (as above)
            answer = classify(error)


def _open(load: Load) -> _Forward | _WorkerLoop:
    if isinstance(load, LoadWorker):
        return _WorkerLoop(load)
    import numpy as np
    import torch

    from workers.engines.artifact import Artifact, open_artifact

    if load.plan is not None:
        torch.set_num_threads(load.plan.threads)
    if isinstance(load, LoadVariant):
        from workers.measure.variants import open_variant

        return _Forward(*open_variant(load))
    engine = open_artifact(Artifact(info=load.info, data=Path(load.path).read_bytes()))
    crop_px = load.info.layout.crop_px
    # What the pixels are is all the same to its speed, as long as they are not all alike.
    noise_NHWC = np.random.default_rng(0).integers(0, 256, (NOISE_IMAGES, crop_px, crop_px, 3), np.uint8)
    return _Forward(lambda batch: (engine.predict, engine.buffer(batch)), noise_NHWC, load.info.name)


class _Forward:
    """The network alone, over and over on the same pixels."""

    def __init__(self, network: Callable[[int], ForwardPass], crops_NHWC: Pixels, description: str) -> None:
        """`network` gives what predicts batches of a size, and a buffer for them."""
        self.description = description
        self._network = network
        self._crops_NHWC = crops_NHWC
        self._forwards: dict[int, Callable[[], object]] = {}
        """By size of the batch."""
        self._batch = 0

    def prepare(self, batch: int) -> None:
        self._batch = batch
        if batch in self._forwards:
            return
        predict, buffer = self._network(batch)
        buffer.interior_NHWC[:] = self._crops_NHWC.take(range(batch), axis=0, mode="wrap")
        self._forwards[batch] = partial(predict, buffer.full_NHWC)
        for _ in range(WARM_UP):
            self._forwards[batch]()

    def score(self, until: float) -> tuple[int, Mapping[str, float]]:
        """Rows scored until then, by time.monotonic, one batch at least; it has no stages."""
        rows = 0
        while rows == 0 or time.monotonic() < until:
            self._forwards[self._batch]()
            rows += self._batch
        return rows, {}


class _WorkerLoop:
    """The bundle as a worker loads it, and a worker's own loop."""

    def __init__(self, load: LoadWorker) -> None:
        self._load(load.spec)
        images = map_sample(load.sample)
        first = load.first % len(images)
        self._images = images[first:] + images[:first]

    def _load(self, spec: WorkerSpec) -> None:
        from workers.score.scorer import Scorer

        scorer = Scorer.load(spec)
        assert scorer.info.name == spec.engine, "a candidate names its artifact, and gets it or none"
        self._spec, self._predictor, self.description = scorer.settled, scorer.predictor, scorer.info.name

    def prepare(self, batch: int) -> None:
        if batch != self._spec.batch:
            del self._predictor  # a worker holds one network, and so does this, for its memory is measured, too
            self._load(replace(self._spec, batch=batch))  # anew: an engine is quickest at the first size it meets
        memory.forget_peak()
        self._predictor.score([self._block(batch)], batch)

    def score(self, until: float) -> tuple[int, Mapping[str, float]]:
        """Rows scored until then, by time.monotonic, one batch at least; and seconds by stage."""
        room = self._predictor.room
        rows_a_call = room * max(1, ROWS_A_CALL // room)
        stage_s = self._predictor.stage_s = {"decode": 0.0, "predict": 0.0}

        def rounds() -> Iterator[RowBlock]:
            for first in range(0, rows_a_call, room):
                if first == 0 or time.monotonic() < until:
                    yield self._block(room, first)

        rows = 0
        while rows == 0 or time.monotonic() < until:
            rows += self._predictor.score(rounds(), rows_a_call).rows
        return rows, stage_s

    def _block(self, rows: int, first: int = 0) -> RowBlock:
        images = list(itertools.islice(itertools.cycle(self._images), first, first + rows))
        return RowBlock(slice_index=0, rows=range(rows), images=images, keys=None, bytes_read=0)


if __name__ == "__main__":
    serve(_answer_requests)
