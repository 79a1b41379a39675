"""A shard scored a part at a time gives the very bytes that it gives as a whole, whatever its input and its cuts."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.networks import png
from tests.support.tars import index, shard, write_tar
from workers.contract import InputSpec, Preprocess, Shard, Slice
from workers.engines.base import Buffer, InputLayout, Logits, Pixels, new_buffer
from workers.isolation.isolated import excerpt, joined
from workers.output import encode
from workers.score.predictor import Predictor
from workers.score.scorer import Part
from workers.source.shard_reader import ShardReader
from workers.storage.filesystems import open_filesystem, version_of

HOW = Preprocess(resize_px=8, crop_px=8, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="nearest")
OUTPUTS = 4


class Means:
    """An engine whose outputs depend on each image alone."""

    precision = "fp32"
    layout = InputLayout(crop_px=8)

    def buffer(self, batch: int) -> Buffer:
        return new_buffer(self.layout, batch)

    def predict(self, pixels_NHWC: Pixels) -> Logits:
        means_NC = pixels_NHWC.mean(axis=(1, 2), dtype=np.float32)
        return np.concatenate([means_NC, means_NC[:, :1] * 2], axis=1) / 64


def picture(number: int) -> bytes:
    if number % 7 == 3:
        return b"no image"
    return png(np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8))


def slice_of(file: Path, row_group: int, start: int, stop: int) -> Slice:
    fs, path = open_filesystem(str(file))
    info = fs.info(path)
    return Slice(
        uri=path, size=info["size"], version=version_of(info), row_group=row_group, row_start=start, row_stop=stop
    )


def of(*slices: Slice) -> Shard:
    return Shard(plan=1, plan_token="t", index=0, slices=slices)


def parquet(folder: Path) -> tuple[Shard, InputSpec]:
    for name in ("a", "b", "c"):
        images = pa.array([None if i == 5 else picture(i + ord(name)) for i in range(12)], pa.binary())
        table = pa.table({"id": [f"{name}{i}" for i in range(12)], "image": images})
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=6)
    a, b, c = (folder / f"{name}.parquet" for name in "abc")
    slices = slice_of(a, 0, 2, 6), slice_of(a, 1, 0, 6), slice_of(b, 1, 1, 3), slice_of(c, 0, 0, 5)
    return of(*slices), InputSpec(format="parquet", image="image", keys=("id",))


def links(folder: Path) -> tuple[Shard, InputSpec]:
    for i in range(9):
        (folder / f"{i}.png").write_bytes(picture(i))
    for name in ("a", "b"):
        uris = [*(f"{i}.png" for i in range(9)), "../out.png", "none.png", None]
        pq.write_table(pa.table({"id": range(12), "image": uris}), folder / f"{name}.parquet")
    slices = slice_of(folder / "a.parquet", 0, 1, 12), slice_of(folder / "b.parquet", 0, 0, 4)
    return of(*slices), InputSpec(format="parquet", image="image", keys=("id",), uri_roots=(str(folder),))


def tars(folder: Path) -> tuple[Shard, InputSpec]:
    slices: list[Slice] = []
    for name in ("a", "b"):
        samples = [{"__key__": f"{name}{i}", "png": picture(i + ord(name)), "cls": str(i)} for i in range(10)]
        path = write_tar(folder / f"{name}.tar", samples)
        slices += shard(path, index(path, 4)[1:] if name == "a" else index(path, 4)[:2]).slices
    return of(*slices), InputSpec(format="webdataset", image="png", keys=("__key__", "cls"))


def files(folder: Path) -> tuple[Shard, InputSpec]:
    for i in range(10):
        (folder / f"{i}.png").write_bytes(picture(i))
    return of(*(slice_of(folder / f"{i}.png", 0, 0, 1) for i in range(10))), InputSpec(format="images", image="")


INPUTS: dict[str, Callable[[Path], tuple[Shard, InputSpec]]] = {
    "parquet": parquet,
    "links": links,
    "tars": tars,
    "files": files,
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Shard, InputSpec]]:
    return {name: make(tmp_path_factory.mktemp(name)) for name, make in INPUTS.items()}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("task", ["classify", "embed"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_parts_that_are_joined_are_the_whole(
    inputs: dict[str, tuple[Shard, InputSpec]], name: str, task: str, data: st.DataObject
) -> None:
    given_shard, how = inputs[name]
    sources = sorted({piece.uri for piece in given_shard.slices})
    gone = data.draw(st.sets(st.sampled_from(sources)), "gone")
    slices = [replace(piece, version="older") if piece.uri in gone else piece for piece in given_shard.slices]
    whole = replace(given_shard, slices=tuple(slices))
    cuts = sorted(data.draw(st.sets(st.integers(1, whole.rows - 1)), "cuts"))
    predictor = Predictor(Means(), HOW, outputs=OUTPUTS, batch=4, threads=1, topk=2, task=task)

    def encoded(part: Part) -> bytes:
        schema = part.scored.keys[0].schema if part.scored.keys else pa.schema([])
        return encode(
            whole,
            part.scored,
            task=task,
            labels=None,
            keys=tuple(schema),
            outputs=OUTPUTS,
            named=True,
            metadata={},
            gone=part.gone,
        )

    reader = ShardReader(whole, how)
    expected = Part(predictor.score(reader.blocks(), whole.rows), tuple(sorted(reader.gone)), {}, 0, 0, 0, 1)
    parts = []
    for first, last in zip([0, *cuts], [*cuts, whole.rows], strict=True):
        this = excerpt(whole, first, last, how.format)
        reader = ShardReader(this.shard, how)
        scored = predictor.score(this.wanted(reader.blocks(), None), last - first)
        part = Part(scored, tuple(sorted(i + this.slice_first for i in reader.gone)), {}, 0, 0, 0, 1)
        parts.append(pickle.loads(pickle.dumps(part)))
    assert encoded(joined(parts)) == encoded(expected)
    assert sum(whole.slices[i].rows for i in expected.gone) + expected.scored.rows == whole.rows
