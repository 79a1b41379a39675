"""What every candidate runs: the same archive, the same decoder, the same top-5; and how it tells what it has done.

After each batch a process appends a line to a file of its own: when, how many rows, and the most memory it has had.
That costs the same everywhere, and says when all processes scored and when the first ran dry.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.measure.rates import Completion

TOPK = 5


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one candidate is to do, as it is told in a JSON file."""

    images: str
    """Folder of Parquet files with columns `id` and `image`."""
    predictions: str
    """Folder for Parquet files with columns `id`, `topk_label` and `topk_score`."""
    stamps: str
    """Folder for one file of completions a process."""
    output: str
    """Store that holds the bundle."""
    bundle: str
    cores: tuple[int, ...]
    """One logical CPU of each physical core to use."""
    batch: int
    artifact: str
    """Its name in the bundle."""
    other: str = ""
    """A file to run in its place; beside it, `.json`, what ArtifactInfo says."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The candidate's own."""

    def write(self, file: Path) -> Path:
        file.write_text(json.dumps(asdict(self)))
        return file

    @classmethod
    def read(cls, file: str) -> Work:
        given = json.loads(Path(file).read_text())
        return cls(**{**given, "cores": tuple(given["cores"])})


class Network:
    """The bundle's network, ready to score with one thread; torch is imported here, and not before."""

    def __init__(self, work: Work) -> None:
        import torch

        from workers.bundle.bundle import load_engine, read_manifest
        from workers.storage.store import open_store

        torch.set_num_threads(1)
        store = open_store(work.output, single_writer=True)
        manifest = read_manifest(store, work.bundle)
        assert manifest is not None, work
        self._how = manifest.preprocess
        self._batch = work.batch
        self._engine = _other(work.other) if work.other else load_engine(store, manifest, work.artifact, threads=1)
        self._buffer = self._engine.buffer(self._batch)
        self._engine.predict(self._buffer.full_NHWC)
        self._stamps = Path(work.stamps) / f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stamps.parent.mkdir(parents=True, exist_ok=True)

    def score(self, images: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Labels and scores, N by TOPK, of encoded images."""
        import torch

        from workers.image.resize import decode_into

        label_NK = np.empty((len(images), TOPK), np.int32)
        score_NK = np.empty((len(images), TOPK), np.float32)
        for first in range(0, len(images), self._batch):
            part = images[first : first + self._batch]
            for place, image in enumerate(part):
                decode_into(memoryview(image.as_buffer()), self._how, self._buffer.interior_NHWC[place])
            logits_NK = self._engine.predict(self._buffer.full_NHWC)[: len(part)]
            score, label = torch.from_numpy(logits_NK).softmax(1).topk(TOPK)
            score_NK[first : first + len(part)] = score.numpy()
            label_NK[first : first + len(part)] = label.numpy()
            self._stamp(len(part))
        return label_NK, score_NK

    def table(self, ids: pa.Array, images: pa.Array) -> pa.Table:
        """Of predictions: `id`, `topk_label`, `topk_score`."""
        label_NK, score_NK = self.score(images)
        return pa.table({"id": ids, "topk_label": lists(label_NK), "topk_score": lists(score_NK)})

    def _stamp(self, rows: int) -> None:
        from workers.host.memory import peak_rss_bytes

        with self._stamps.open("a") as file:
            file.write(f"{time.time():.6f} {rows} {peak_rss_bytes()}\n")


def _other(file: str) -> Any:
    from workers.engines.artifact import Artifact, ArtifactInfo, open_artifact
    from workers.engines.base import InputLayout

    given = json.loads(Path(f"{file}.json").read_text())
    layout = {name: tuple(v) if isinstance(v, list) else v for name, v in given.pop("layout").items()}
    info = ArtifactInfo(**{**given, "float_layers": tuple(given["float_layers"]), "layout": InputLayout(**layout)})
    return open_artifact(Artifact(info=info, data=Path(file).read_bytes()), threads=1)


def lists(values_NK: np.ndarray) -> pa.Array:
    """N lists of K values, without a Python object for each."""
    return pa.ListArray.from_arrays(
        pa.array(range(0, values_NK.size + 1, values_NK.shape[1]), pa.int32()), pa.array(values_NK.reshape(-1))
    )


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def read_stamps(folder: Path) -> tuple[list[list[Completion]], int]:
    """Completions of each process, and the most memory that one of them had."""
    streams, peak_bytes = [], 0
    for file in sorted(folder.iterdir()):
        lines = [line.split() for line in file.read_text().splitlines()]
        streams.append([(float(at), int(rows)) for at, rows, _ in lines])
        peak_bytes = max(peak_bytes, *(int(peak) for _, _, peak in lines))
    return streams, peak_bytes


def steady_rate_of(streams: Sequence[Sequence[Completion]]) -> float | None:
    """Rows a second while all workers score, where it is known which worker completed what.

    Each worker is measured from its first to its last completion between the last worker's first one and the first
    worker's last one, and the rates are added. None where a worker has fewer than two there.
    """
    ordered = [sorted(stream) for stream in streams]
    if not ordered or not all(ordered):
        return None
    begin, end = max(stream[0][0] for stream in ordered), min(stream[-1][0] for stream in ordered)
    total = 0.0
    for stream in ordered:
        inside = [(at, rows) for at, rows in stream if begin <= at <= end]
        if len(inside) < 2 or inside[-1][0] <= inside[0][0]:
            return None
        total += sum(rows for _, rows in inside[1:]) / (inside[-1][0] - inside[0][0])
    return total
