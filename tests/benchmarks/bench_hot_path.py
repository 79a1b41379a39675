"""What a worker's pipeline costs a row over the bare loop that reads, decodes and predicts the same photographs.

    python -m tests.benchmarks.bench_hot_path [--rows 1000] [--rounds 10]

One process on one core; the candidates alternate. Microseconds of CPU a row, all threads of the process together, the
least of all rounds. First without decoding and with an engine that does nothing, stage by stage, so that nothing hides
the overhead; then the whole with that engine and with MobileNetV2 in INT8 on random weights.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tests.support.images import photographs
from tests.support.networks import quantize
from workers.contract import InputSpec, Preprocess, Shard, Slice
from workers.engines.artifact import open_artifact
from workers.engines.base import Buffer, Engine, InputLayout, Logits, Pixels, new_buffer
from workers.host.cpu import isa_class
from workers.image.resize import Preparer, decode_into
from workers.model.load import LoadedModel
from workers.model.torchvision_import import import_torchvision
from workers.score.predictor import Predictor
from workers.source.rows import RowBlock
from workers.source.shard_reader import ReadAhead, ShardReader
from workers.storage.filesystems import open_filesystem, version_of

HOW = Preprocess(resize_px=256, crop_px=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
INPUT = InputSpec(format="parquet", image="image", keys=("id",))
ROW_GROUP = 250
BATCH = 16
CLASSES = 1000


class NoEngine:
    """Answers at once."""

    precision = "int8"
    layout = InputLayout(crop_px=224, pad_px=(3, 3))

    def __init__(self) -> None:
        self._logits_NK = np.random.default_rng(0).random((BATCH, CLASSES), np.float32)

    def buffer(self, batch: int) -> Buffer:
        return new_buffer(self.layout, batch)

    def predict(self, pixels_NHWC: Pixels) -> Logits:
        return self._logits_NK[: len(pixels_NHWC)]


def mobilenet() -> Engine:
    torch.manual_seed(0)
    network = import_torchvision().models.mobilenet_v2(weights=None).eval()
    crops_NHWC = np.empty((16, 224, 224, 3), np.uint8)
    for row, picture in enumerate(photographs(16)):
        decode_into(picture, HOW, crops_NHWC[row])
    model = LoadedModel(name="mobilenet_v2", module=network, preprocess=HOW, labels=None, outputs=CLASSES)
    made = quantize(model, crops_NHWC, isa_class()).int8
    assert made is not None
    return open_artifact(made)


def write_input(file: Path, rows: int) -> Shard:
    pictures = photographs(64, quality=95)
    images = pa.array([pictures[i % len(pictures)] for i in range(rows)], pa.binary())
    table = pa.table({"id": pa.array(range(rows), pa.int64()), "image": images})
    pq.write_table(table, file, ROW_GROUP, compression="none", use_dictionary=False, write_statistics=False)
    fs, path = open_filesystem(str(file))
    info = fs.info(path)
    slices = [
        Slice(uri=str(file), size=info["size"], version=version_of(info), row_group=group, row_start=0, row_stop=stop)
        for group, stop in enumerate(min(ROW_GROUP, rows - first) for first in range(0, rows, ROW_GROUP))
    ]
    return Shard(plan=0, plan_token="bench", index=0, slices=tuple(slices))


class Candidates:
    """The same work, bare and by the pipeline."""

    def __init__(self, shard: Shard, engine: Engine, threads: int = 1) -> None:
        self.shard = shard
        self._engine = engine
        self._buffer = engine.buffer(BATCH)
        self._predictor = Predictor(engine, HOW, outputs=CLASSES, batch=BATCH, threads=threads, topk=5, task="classify")
        self._ready = list(self.blocks())

    def bare_cells(self) -> Iterator[list[pa.Buffer]]:
        """A row group at a time, as pyarrow reads it for anybody."""
        parquet = pq.ParquetFile(self.shard.slices[0].uri, pre_buffer=False)
        for group in range(parquet.num_row_groups):
            images = parquet.read_row_group(group, columns=["image"]).column(0).chunk(0)
            for first in range(0, len(images), BATCH):
                yield [image.as_buffer() for image in images[first : first + BATCH]]

    def bare_read(self) -> None:
        for cells in self.bare_cells():
            for cell in cells:
                memoryview(cell)

    def bare(self) -> None:
        for cells in self.bare_cells():
            for place, cell in enumerate(cells):
                decode_into(memoryview(cell), HOW, self._buffer.interior_NHWC[place])
            self._predict()

    def bare_predict(self) -> None:
        for _ in range(0, self.shard.rows, BATCH):
            self._predict()

    def _predict(self) -> None:
        torch.from_numpy(self._engine.predict(self._buffer.full_NHWC)).softmax(1).topk(5)

    def blocks(self) -> Iterator[RowBlock]:
        return ShardReader(self.shard, INPUT).blocks()

    def read(self) -> None:
        for block in self.blocks():
            for cell in block.images:
                memoryview(cell)

    def score_ready(self) -> None:
        self._predictor.score(iter(self._ready), self.shard.rows)

    def pipeline(self) -> None:
        ahead = ReadAhead(ShardReader(self.shard, INPUT))
        self._predictor.score(ahead, self.shard.rows)
        ahead.close()


@contextmanager
def no_decoding() -> Iterator[None]:
    with mock.patch.object(Preparer, "put", lambda _self, data, _out: memoryview(data)):
        yield


def cpu_us(candidates: Mapping[str, Callable[[], None]], rows: int, rounds: int) -> dict[str, float]:
    """Microseconds of CPU a row."""
    best = dict.fromkeys(candidates, float("inf"))
    for _ in range(rounds + 1):  # the first round compiles
        for name, candidate in candidates.items():
            started = time.process_time()
            candidate()
            best[name] = min(best[name], (time.process_time() - started) * 1e6 / rows)
    return best


def by_stage(shard: Shard, rounds: int) -> None:
    one, two = Candidates(shard, NoEngine()), Candidates(shard, NoEngine(), threads=2)
    with no_decoding():
        took = cpu_us(
            {
                "bare read": one.bare_read,
                "bare predict": one.bare_predict,
                "read": one.read,
                "score": one.score_ready,
                "score on 2 threads": two.score_ready,
                "pipeline": one.pipeline,
            },
            shard.rows,
            rounds,
        )
    read, score = took["read"] - took["bare read"], took["score"] - took["bare predict"]
    between = took["pipeline"] - took["read"] - took["score"]
    print("without decoding, µs of CPU a row        bare   pipeline   more")
    print(f"{'Parquet to encoded images':<36}{took['bare read']:>8.1f}{took['read']:>11.1f}{read:>7.1f}")
    print(f"{'rounds, softmax, top 5':<36}{took['bare predict']:>8.1f}{took['score']:>11.1f}{score:>7.1f}")
    print(f"{'  the same on 2 decode threads':<36}{'':>8}{took['score on 2 threads']:>11.1f}")
    print(f"{'from one thread to the other':<36}{'':>8}{between:>11.1f}{between:>7.1f}")
    bare = took["bare read"] + took["bare predict"]
    print(f"{'in all':<36}{bare:>8.1f}{took['pipeline']:>11.1f}{took['pipeline'] - bare:>7.1f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shard = write_input(Path(folder) / "photographs.parquet", given.rows)
        by_stage(shard, given.rounds)
        print("whole, µs of CPU a row                  bare   pipeline   pipeline ÷ bare")
        for name, engine in (("no engine", NoEngine()), ("MobileNetV2 INT8", mobilenet())):
            both = Candidates(shard, engine)
            took = cpu_us({"bare": both.bare, "pipeline": both.pipeline}, given.rows, given.rounds)
            ratio = took["pipeline"] / took["bare"]
            print(f"{name:<36}{took['bare']:>8.1f}{took['pipeline']:>11.1f}{ratio:>18.3f}")


if __name__ == "__main__":
    main()
