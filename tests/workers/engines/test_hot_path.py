"""What the way from Parquet's bytes to a prediction does not do: copy, convert, allocate. Nothing here is timed."""

from __future__ import annotations

import threading
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import simplejpeg
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from jobs.cli import main
from jobs.plan.job import Job
from jobs.spec.load import load_spec
from tests.support.digits_job import Digits
from tests.support.images import encode, photo, photographs
from tests.support.networks import Artifacts, loaded, quantize, sample_request
from tests.workers.source.test_reading import shard, slices_of
from workers.build.sample import read_sample
from workers.bundle.bundle import read_manifest
from workers.contract import InputSpec, Preprocess, SampleSlice
from workers.digits import DIGITS, digits_cnn
from workers.engines.artifact import open_artifact
from workers.engines.base import Buffer, InputLayout, Logits, Pixels, new_buffer
from workers.host.cpu import isa_class
from workers.image.errors import BadImage, ErrorCode
from workers.image.resize import Preparer, decode_into
from workers.model.load import LoadedModel
from workers.score.predictor import BATCHES_A_ROUND, Predictor
from workers.source import parquet
from workers.source.rows import RowBlock
from workers.source.shard_reader import ReadAhead, ShardReader

pytestmark = pytest.mark.int8

HOW = Preprocess(resize_px=64, crop_px=56, mean=(0.0,) * 3, std=(1.0,) * 3)
PARQUET = InputSpec(format="parquet", image="image")


class Summing:
    """An engine whose answer tells the pixels of each row apart, and that remembers which memory it was given."""

    precision = "int8"
    layout = InputLayout(crop_px=56, pad_px=(2, 1), pad_pixel=(3, 4, 5))

    def __init__(self) -> None:
        self.addresses: list[int] = []

    def buffer(self, batch: int) -> Buffer:
        return new_buffer(self.layout, batch)

    def predict(self, pixels_NHWC: Pixels) -> Logits:
        self.addresses.append(pixels_NHWC.ctypes.data)
        sums_NK = pixels_NHWC.reshape(len(pixels_NHWC), 4, -1).sum(axis=2, dtype=np.int64)
        return sums_NK.astype(np.float32)


def predictor(engine: Summing, *, batch: int = 4, threads: int = 1) -> Predictor:
    return Predictor(engine, HOW, outputs=4, batch=batch, threads=threads, topk=4, task="embed")


def block(images: list[Any], row_start: int = 0) -> RowBlock:
    return RowBlock(
        0,
        range(row_start, row_start + len(images)),
        images,
        None,
        sum(len(image) for image in images if isinstance(image, bytes)),
    )


# ------------------------------------------------------------------------------------- no float image


@pytest.fixture(scope="module")
def artifacts() -> Artifacts:
    torch.manual_seed(0)
    model = LoadedModel(name="digits", module=digits_cnn().eval(), preprocess=DIGITS, labels=None, outputs=10)
    return quantize(model, np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8), isa_class())


class Made(TorchDispatchMode):
    """Every tensor that comes out of an operator of torch's, up to the first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.types: set[torch.dtype] = set()
        self.convolved = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.convolved |= "conv" in str(func)
        if not self.convolved:
            self.operators.append(str(func))
            self.types |= {made.dtype} if isinstance(made, torch.Tensor) else set()
        return made


@pytest.mark.parametrize(("precision", "floats"), [("int8", False), ("fp32", True)])
def test_pixels_are_never_floats_on_the_int8_path(artifacts: Artifacts, precision: str, floats: bool) -> None:
    artifact = getattr(artifacts, precision)
    engine = open_artifact(artifact)
    buffer = engine.buffer(2)
    preparer = Preparer(DIGITS)
    with Made() as made:
        for place, picture in enumerate(photographs(2, 60, 80)):
            preparer.put(picture, buffer.interior_NHWC[place])
        engine.predict(buffer.full_NHWC)
    assert made.convolved
    assert any("upsample" in operator for operator in made.operators)
    assert (torch.float32 in made.types) == floats
    assert made.types <= {torch.uint8, torch.quint8} or floats


# ---------------------------------------------------------------------------------------- no copies


def hugging_face(images: list[bytes]) -> pa.Array:
    return pa.array(
        [{"bytes": image, "path": "x"} for image in images], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )


@pytest.mark.parametrize(
    "column",
    [
        lambda images: pa.array(images, pa.binary()),
        lambda images: pa.array(images, pa.large_binary()),
        hugging_face,
        lambda images: pa.array([{"bytes": image} for image in images], pa.struct({"bytes": pa.binary()})),
    ],
    ids=["binary", "large_binary", "struct", "struct of bytes alone"],
)
def test_the_decoder_reads_what_arrow_has_read(column: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = photographs(5, 60, 80)
    file = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": column(pictures)}), file)
    batches: list[pa.RecordBatch] = []
    blocks = parquet.blocks_of
    monkeypatch.setattr(parquet, "blocks_of", lambda batch, *rest: batches.append(batch) or blocks(batch, *rest))
    decoded: list[int] = []
    decode_jpeg = simplejpeg.decode_jpeg

    def spy(data: memoryview, **options: Any) -> np.ndarray:
        decoded.append(np.frombuffer(data, np.uint8).ctypes.data)
        return decode_jpeg(data, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    ahead = ReadAhead(ShardReader(shard(slices_of(file, (0, 0, 5))), PARQUET))
    assert predictor(Summing()).score(ahead, 5).rows == 5
    ahead.close()
    ranges = [(b.address, b.address + b.size) for batch in batches for b in batch.column("image").buffers() if b]
    assert len(decoded) == 5
    assert all(any(start <= address < stop for start, stop in ranges) for address in decoded)


def test_every_round_uses_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: set[int] = set()
    decode_jpeg = simplejpeg.decode_jpeg

    def spy(data: memoryview, **options: Any) -> np.ndarray:
        rooms.add(options["buffer"].ctypes.data)
        return decode_jpeg(data, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    engine = Summing()
    scoring = predictor(engine)
    pictures = photographs(8, 60, 80) + photographs(8, 90, 70)
    for _ in range(2):
        scoring.score([block(pictures[:7]), block(pictures[7:], 7)], 16)
    assert len(engine.addresses) == 8
    assert len(set(engine.addresses)) == 1
    assert len(rooms) == 1


def test_scoring_allocates_less_than_one_decoded_picture() -> None:
    scoring = predictor(Summing())
    blocks = [block(photographs(16, 375, 500))]
    scoring.score(blocks, 16)
    tracemalloc.start()
    scoring.score(blocks, 16)
    _, peak_bytes = tracemalloc.get_traced_memory()  # NumPy's memory is traced, too
    tracemalloc.stop()
    assert peak_bytes < 375 * 500 * 3 / 4


# ------------------------------------------------------------------------------------- several threads


def images_with_bad_ones() -> list[Any]:
    null = BadImage(ErrorCode.NULL, "the image cell is null")
    return [*photographs(9, 60, 80), b"", null, *photographs(4, 90, 70), b"\xff\xd8\xff", *photographs(7, 50, 50)]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("cut", [1, 5, 23])
def test_rows_come_out_in_their_order_however_they_are_cut_and_decoded(threads: int, cut: int) -> None:
    images = images_with_bad_ones()
    rows = len(images)
    told: list[int] = []
    blocks = [block(images[first : first + cut], first) for first in range(0, rows, cut)]
    scored = predictor(Summing(), batch=2, threads=threads).score(blocks, rows, told.append)
    in_a_round = 2 * (BATCHES_A_ROUND if threads > 1 else 1)
    assert told == list(range(in_a_round, rows + 1, in_a_round))
    assert scored.row == list(range(rows))
    assert scored.slice_index == [0] * rows
    assert [(row, bad.code) for row, bad in scored.errors.items()] == [(9, "empty"), (10, "null"), (15, "truncated")]
    buffer = Summing().buffer(1)
    for row, image in enumerate(images):
        if row not in scored.errors:
            decode_into(image, HOW, buffer.interior_NHWC[0])
            assert (scored.score_NK[row] == Summing().predict(buffer.full_NHWC)[0]).all()
    assert not scored.score_NK[[9, 10, 15]].any()


def test_decode_threads_share_the_images_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each waits at its first image for the other: were they handed to one thread, the barrier would break."""
    both = threading.Barrier(2, timeout=60)
    seen: set[int] = set()
    put = Preparer.put

    def meeting(self: Preparer, data: memoryview, out_HWC: Pixels) -> None:
        if threading.get_ident() not in seen:
            seen.add(threading.get_ident())
            both.wait()
        put(self, data, out_HWC)

    monkeypatch.setattr(Preparer, "put", meeting)
    predictor(Summing(), threads=2).score([block(photographs(16, 50, 50))], 16)
    assert len(seen) == 2


def test_an_error_that_is_no_image_s_comes_out_of_the_decode_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Preparer, "put", no_memory)
    with pytest.raises(MemoryError):
        predictor(Summing(), threads=2).score([block(photographs(16, 50, 50))], 16)


# ------------------------------------------------------------------------------------- scaled decoding


@pytest.fixture
def large_digits(digits: Digits, tmp_path: Path) -> Digits:
    """The digits, eight times as large: a scaled decode makes quarters of them."""

    def enlarged() -> Iterator[dict[str, Any]]:
        for row in pq.read_table(sorted(digits.images.glob("*.parquet"))[0]).slice(0, 60).to_pylist():
            image_HWC = simplejpeg.decode_jpeg(row["image"], strict=False).repeat(8, 0).repeat(8, 1)
            yield {**row, "image": encode(image_HWC, "JPEG", quality=90)}

    folder = tmp_path / "large"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(list(enlarged())), folder / "digits.parquet")
    return Digits(folder, digits.weights, 60)


def test_a_sample_keeps_what_the_job_sees_and_what_the_reference_sees(tmp_path: Path) -> None:
    file = tmp_path / "images.parquet"
    pq.write_table(pa.table({"image": [encode(photo(400, 500, n), "JPEG") for n in (0, 1)]}), file)
    slices = [SampleSlice(rows=rows, take=2) for rows in slices_of(file, (0, 0, 2))]
    request = sample_request(slices, PARQUET)
    exactly, scaled = (loaded(nn.Identity(), replace(HOW, decode=decode), outputs=4) for decode in ("exact", "scaled"))
    plain = read_sample(request, exactly, 2**30)
    assert plain.reference_NHWC is plain.crops_NHWC
    both = read_sample(request, scaled, 2**30)
    assert (both.reference_NHWC == plain.crops_NHWC).all()
    assert (both.crops_NHWC == read_sample(request, scaled, 2**30).crops_NHWC).all()
    assert (both.crops_NHWC != both.reference_NHWC).any()


@pytest.mark.parametrize(("decode", "judged"), [("exact", False), ("scaled", True)])
def test_the_gate_judges_scaled_decoding_even_of_the_fp32_network(
    large_digits: Digits, decode: str, judged: bool, tmp_path: Path
) -> None:
    """Its reference is the same network on exactly decoded images: what differs are the pixels alone."""
    how = {"resize": 32, "crop": 32, "mean": [0.3] * 3, "std": [0.35] * 3, "decode": decode}
    file = tmp_path / "job.yaml"
    spec = large_digits.spec(tmp_path / "out", model__preprocess=how, model__precision="fp32")
    file.write_text(yaml.safe_dump(spec))
    assert main(["quantize", str(file), "--pool=local"]) == 0
    job = Job.open(load_spec(str(file), []), writing=False)
    manifest = read_manifest(job.store, job.fingerprints.bundle)
    assert manifest is not None
    assert manifest.preprocess.decode == decode
    (artifact,) = manifest.artifacts
    assert artifact.accuracy is not None  # these rows have labels, so how right it is counts in any case
    assert (0 < artifact.accuracy.logit_error < 0.1) == judged
    assert artifact.accuracy.rows == 60
