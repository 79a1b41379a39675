"""The hot loop of a worker: encoded images in, columns of predictions out, in the order of the rows.

One phase at a time uses the worker's cores: first the decode threads fill a few batches, then the network runs over
them on as many threads. Nothing overlaps, so nothing is oversubscribed; with one core, decoding is inline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from workers.contract import Preprocess
from workers.decoding import BadImage
from workers.engines.base import Engine
from workers.pixels import decode_into
from workers.reading import ImageCell, RowBlock
from workers.writing import Floats, Scored

BATCHES_A_ROUND = 4
"""With several decode threads: batches decoded before the network runs, so that the last straggler costs little."""


class Predictor:
    """Decode threads and one engine. Use from one thread at a time."""

    def __init__(
        self, engine: Engine, how: Preprocess, *, outputs: int, batch: int, threads: int, topk: int, task: str
    ) -> None:
        self._engine = engine
        self._how = how
        self._batch = batch
        self._threads = threads
        self._topk = topk
        self._embeds = task == "embed"
        self._outputs = outputs
        rounds = BATCHES_A_ROUND if threads > 1 else 1
        self._large = threading.RLock()
        self._buffers = [engine.buffer(batch) for _ in range(rounds)]
        # A decode thread is one of `threads` that work at once, so torch's resize inside it must not fan out again.
        self._pool = (
            ThreadPoolExecutor(threads, "decode", initializer=_one_torch_thread, initargs=(threading.Barrier(threads),))
            if threads > 1
            else None
        )
        if self._pool:
            list(self._pool.map(lambda _: None, range(threads)))
        self.stage_s = {"decode": 0.0, "predict": 0.0}

    @property
    def room(self) -> int:
        """Rows of a round."""
        return self._batch * len(self._buffers)

    def in_batches(self, batch: int) -> Predictor:
        """The same engine with batches of another size."""
        return Predictor(
            self._engine,
            self._how,
            outputs=self._outputs,
            batch=batch,
            threads=self._threads,
            topk=self._topk,
            task="embed" if self._embeds else "classify",
        )

    def score(
        self, blocks: Iterable[RowBlock], rows: int, between_rounds: Callable[[int], None] = lambda _: None
    ) -> Scored:
        """Score at most `rows` rows. A bad image takes an entry of `errors`; it never raises.

        `between_rounds` is told how many rows are done, and may raise to give the rest up.
        """
        width = self._outputs if self._embeds else min(self._topk, self._outputs)
        scored = Scored(
            label_NK=np.zeros((rows, 0 if self._embeds else width), np.int32),
            score_NK=np.zeros((rows, width), np.float32),
        )
        waiting: list[tuple[int, ImageCell]] = []
        room = self.room
        for block in blocks:
            for offset, cell in enumerate(block.images):
                waiting.append((scored.rows, cell))
                scored.slice_index.append(block.slice_index)
                scored.row.append(block.row_start + offset)
                if len(waiting) == room:
                    self._round(waiting, scored)
                    waiting = []
                    between_rounds(scored.rows)
            if block.keys is not None:
                scored.keys.append(block.keys)
            scored.bytes_read += block.bytes_read
        self._round(waiting, scored)
        return scored

    def _round(self, cells: list[tuple[int, ImageCell]], scored: Scored) -> None:
        """Decode up to as many images as the buffers hold, then predict them."""
        started = time.perf_counter()
        places = [
            (cell, self._buffers[place // self._batch].interior_NHWC[place % self._batch])
            for place, (_, cell) in enumerate(cells)
        ]
        outcomes = list(self._pool.map(self._decode, places) if self._pool else map(self._decode, places))
        decoded = time.perf_counter()
        self.stage_s["decode"] += decoded - started
        for number in range(-(-len(cells) // self._batch)):
            first = number * self._batch
            part = range(first, min(first + self._batch, len(cells)))
            good = [place for place in part if outcomes[place] is None]
            for place in part:
                if (bad := outcomes[place]) is not None:
                    scored.errors[cells[place][0]] = bad
            if good:
                # Always the whole buffer: a new batch shape would make oneDNN compile and cache anew.
                logits_NK = self._engine.predict(self._buffers[number].full_NHWC)
                self._keep(logits_NK[[p - first for p in good]], [cells[p][0] for p in good], scored)
        self.stage_s["predict"] += time.perf_counter() - decoded

    def _decode(self, place: tuple[ImageCell, npt.NDArray[np.uint8]]) -> BadImage | None:
        cell, out_HWC = place
        if isinstance(cell, BadImage):
            return cell
        try:
            decode_into(memoryview(cell), self._how, out_HWC, self._large)
        except BadImage as bad:
            return bad
        return None

    def _keep(self, logits_NK: Floats, rows: list[int], scored: Scored) -> None:
        if self._embeds:
            scored.score_NK[rows] = logits_NK
            return
        probabilities_NK = torch.from_numpy(logits_NK).softmax(dim=1)
        score_NK, label_NK = probabilities_NK.topk(scored.label_NK.shape[1], dim=1)
        scored.score_NK[rows] = score_NK.numpy()
        scored.label_NK[rows] = label_NK.numpy()


def _one_torch_thread(barrier: threading.Barrier) -> None:
    torch.set_num_threads(1)
    barrier.wait()  # every decode thread has started and is sized before any of them works
