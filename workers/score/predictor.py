"""The hot loop of a worker: encoded images in, columns of predictions out, in the order of the rows.

One phase at a time uses the worker's cores: first the decode threads fill a few batches, then the network runs over
them on as many threads. Nothing overlaps, so nothing is oversubscribed; with one core, decoding is inline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import torch

from workers.contract import Preprocess
from workers.engines.base import Engine, Logits
from workers.image.errors import BadImage
from workers.image.resize import Preparer
from workers.output import Scored
from workers.score.copies import Copies, image_hash
from workers.source.rows import ImageCell, RowBlock

BATCHES_A_ROUND = 4
"""With several decode threads: batches decoded before the network runs, so that the last straggler costs little."""


class Predictor:
    """Decode threads and one engine. Use from one thread at a time."""

    def __init__(
        self, engine: Engine, how: Preprocess, *, outputs: int, batch: int, threads: int, topk: int, task: str
    ) -> None:
        self._engine = engine
        self._batch = batch
        self._embeds = task == "embed"
        self._width = outputs if self._embeds else min(topk, outputs)
        rounds = BATCHES_A_ROUND if threads > 1 else 1
        self._buffers = [engine.buffer(batch) for _ in range(rounds)]
        self._places = [place_HWC for buffer in self._buffers for place_HWC in buffer.interior_NHWC]
        large = threading.RLock()
        self._preparers = [Preparer(how, large) for _ in range(threads)]
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
        return len(self._places)

    def score(
        self,
        blocks: Iterable[RowBlock],
        rows: int,
        between_rounds: Callable[[int], None] = lambda _: None,
        copies: Copies | None = None,
    ) -> Scored:
        """Score at most `rows` rows. A bad image takes an entry of `errors`; it never raises.

        `between_rounds` is called with the number of rows that are done, and may raise to give the rest up. With
        `copies` images are hashed, and predictions of those that are found there are taken over.
        """
        scored = Scored(
            label_NK=np.zeros((rows, 0 if self._embeds else self._width), np.int32),
            score_NK=np.zeros((rows, self._width), np.float32),
        )
        waiting: list[tuple[int, ImageCell]] = []
        for block in blocks:
            todo = range(scored.rows, scored.rows + len(block.images))
            if copies is not None:
                scored.hashes += map(image_hash, block.images)
                copied = self._copy(copies, scored, todo)
                waiting += ((row, cell) for row, cell in zip(todo, block.images, strict=True) if row not in copied)
            else:
                waiting += zip(todo, block.images, strict=True)
            scored.slice_index += [block.slice_index] * len(block.images)
            scored.row += block.rows
            if block.keys is not None:
                scored.keys.append(block.keys)
            scored.bytes_read += block.bytes_read
            while len(waiting) >= self.room:
                self._round(waiting[: self.room], scored)
                del waiting[: self.room]
                between_rounds(waiting[0][0] if waiting else scored.rows)
        self._round(waiting, scored)
        return scored

    def _copy(self, copies: Copies, scored: Scored, rows: range) -> set[int]:
        """Take over what there is of these rows, the last ones; gives their numbers."""
        found, table = copies.find(scored.hashes[rows.start :])
        places = [rows.start + number for number in found]
        for name, values_NK in zip(self.copied_columns, (scored.score_NK, scored.label_NK), strict=False):
            if places:
                values_NK[places] = table[name].combine_chunks().flatten().to_numpy().reshape(len(places), -1)
        scored.copied += len(places)
        return set(places)

    @property
    def copied_columns(self) -> tuple[str, ...]:
        """Of a prediction: those from which the others follow."""
        return ("embedding",) if self._embeds else ("topk_score", "topk_label")

    def _round(self, waiting: Sequence[tuple[int, ImageCell]], scored: Scored) -> None:
        """Decode up to as many images as the buffers hold, then predict them; each with its row."""
        rows, cells = [row for row, _ in waiting], [cell for _, cell in waiting]
        started = time.perf_counter()
        bad = self._decoded(cells)
        decoded = time.perf_counter()
        self.stage_s["decode"] += decoded - started
        for start, buffer in zip(range(0, len(cells), self._batch), self._buffers, strict=False):
            good = [n for n in range(start, min(start + self._batch, len(cells))) if n not in bad]
            if good:
                # Always the whole buffer: a new batch shape would make oneDNN compile and cache anew.
                logits_NK = self._engine.predict(buffer.full_NHWC)
                self._keep(logits_NK[[n - start for n in good]], [rows[n] for n in good], scored)
        scored.errors.update((rows[n], bad[n]) for n in sorted(bad))
        self.stage_s["predict"] += time.perf_counter() - decoded

    def _decoded(self, cells: Sequence[ImageCell]) -> dict[int, BadImage]:
        """Decode each cell into its place; those that cannot be, by number."""
        bad: dict[int, BadImage] = {}
        # One iterator for all threads: each takes the next image when it is done with its last one.
        numbers = iter(range(len(cells)))
        if self._pool is None:
            self._decode(self._preparers[0], numbers, cells, bad)
        else:
            working = [self._pool.submit(self._decode, one, numbers, cells, bad) for one in self._preparers]
            wait(working)
            for work in working:
                work.result()
        return bad

    def _decode(
        self, preparer: Preparer, numbers: Iterator[int], cells: Sequence[ImageCell], bad: dict[int, BadImage]
    ) -> None:
        for number in numbers:
            cell = cells[number]
            try:
                if isinstance(cell, BadImage):
                    raise cell
                preparer.put(memoryview(cell), self._places[number])
            except BadImage as error:
                bad[number] = error

    def _keep(self, logits_NK: Logits, rows: list[int], scored: Scored) -> None:
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
