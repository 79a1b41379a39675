"""Bundles: the first writer settles what everybody uses, and nothing wrong is ever loaded."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from tests.support.fakes import MemoryStore
from tests.support.networks import (
    Artifacts,
    compare,
    digits,
    digits_artifacts,
    digits_model,
    engines,
    loaded,
    one_thread,
    only_float,
    png,
    quantize,
)
from workers.bundle.accuracy import AccuracyReport
from workers.bundle.bundle import BundleRefused, check_golden, load_engine, read_manifest, write_bundle
from workers.bundle.manifest import CalibrationSample, Manifest, RowRef
from workers.contract import ModelSpec, Preprocess
from workers.digits import DIGITS, digits_cnn
from workers.engines.artifact import Artifact, ArtifactInfo
from workers.engines.base import Pixels, score_crops
from workers.host.cpu import isa_class
from workers.image import resize
from workers.image.resize import decode_into
from workers.model.names import RECIPE

pytestmark = pytest.mark.int8

FP = "0123abcd"
FOLDER = f"_stint/bundles/{FP}"
SPEC = ModelSpec(arch="workers.digits:digits_cnn", weights="w.safetensors", args={"num_classes": 10})
CALIBRATION = CalibrationSample(seed=0, size=64, rows=(RowRef(uri="s3://b/a.parquet", row_group=1, row=7),), bad_rows=2)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


FP32, INT8 = "torch-float/fp32", f"torch-int8/{isa_class()}"


def write(store: MemoryStore, artifacts: Artifacts | None = None, spec: ModelSpec = SPEC) -> Manifest:
    artifacts = artifacts or digits_artifacts()
    unseen = digits().held_out
    judged: list[tuple[Artifact, AccuracyReport | None]] = [(artifacts.fp32, None)]
    if artifacts.int8 is not None:
        report = compare(*engines(artifacts), unseen.pixels_NHWC[:64], unseen.labels[:64])
        judged.insert(0, (artifacts.int8, report))
    return write_bundle(
        store,
        FP,
        spec=spec,
        model=digits_model(),
        artifacts=judged,
        calibration=CALIBRATION,
        golden_images=[png(crop) for crop in unseen.pixels_NHWC[:12]],
    )


def info_of(manifest: Manifest, name: str) -> ArtifactInfo:
    stored = manifest.artifact(name)
    assert stored is not None
    return stored.info


def keys(store: MemoryStore) -> set[str]:
    return {info.key for info in store.list(FOLDER)}


def test_bundle_is_read_back_as_it_was_written(store: MemoryStore) -> None:
    written = write(store)
    found = read_manifest(store, FP)
    assert found == written
    assert found is not None
    assert found.preprocess == DIGITS
    assert found.labels == tuple("0123456789")
    assert (found.outputs, found.task, found.calibration) == (10, "classify", CALIBRATION)
    assert found.recipe == RECIPE
    assert found.spec["args"] == {"num_classes": 10}
    assert found.accuracy is not None
    assert found.accuracy.rows == 64
    assert [a.info.name for a in found.artifacts] == [INT8, FP32]
    assert [a.accuracy is None for a in found.artifacts] == [False, True]
    assert Manifest.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 1}, "it has schema 1, this code reads 2"),
        ({"outputs": "10"}, "bundle manifest.outputs is '10', where int was expected"),
        ({"golden": None}, "bundle manifest.golden is None, where StoredObject was expected"),
        ({"labels": ["zero", 1]}, r"bundle manifest.labels\[1\] is 1, where str was expected"),
        ({"mood": "good"}, "unexpected keyword argument 'mood'"),
    ],
)
def test_a_manifest_that_is_damaged_or_of_another_version_tells_which_value_is_wrong(
    store: MemoryStore, change: dict[str, object], message: str
) -> None:
    raw = json.loads(write(store).to_json())
    with pytest.raises(ValueError, match=f"^not a bundle manifest: .*{message}"):
        Manifest.from_json(json.dumps({**raw, **change}).encode())
    raw["artifacts"][0]["info"]["layout"]["pad_px"] = [1]
    with pytest.raises(ValueError, match=r"artifacts\[0\].info.layout.pad_px is \[1\], where"):
        Manifest.from_json(json.dumps(raw).encode())


def test_every_file_is_named_by_its_content_but_the_manifest(store: MemoryStore) -> None:
    manifest = write(store)
    stored = [a.stored.file_name for a in manifest.artifacts] + [manifest.golden.file_name]
    assert keys(store) == {f"{FOLDER}/{name}" for name in [*stored, "manifest.json"]}


def test_no_bundle_is_none(store: MemoryStore) -> None:
    assert read_manifest(store, FP) is None


@pytest.mark.parametrize("name", [INT8, FP32])
def test_loaded_engine_scores_as_the_artifact_did_and_passes_its_golden_batch(store: MemoryStore, name: str) -> None:
    manifest = write(store)
    engine = load_engine(store, manifest, name)
    check_golden(engine, info_of(manifest, name), manifest, store, 4)
    before = dict(zip((FP32, INT8), engines(digits_artifacts()), strict=True))[name]
    crops_NHWC = digits().held_out.pixels_NHWC[:8]
    np.testing.assert_array_equal(score_crops(engine, crops_NHWC, 8), score_crops(before, crops_NHWC, 8))


def test_first_of_two_writers_wins_and_the_second_uses_its_manifest(store: MemoryStore) -> None:
    first = write(store)
    made = digits_artifacts().int8
    assert made is not None
    other = quantize(digits_model(), digits().training.pixels_NHWC[64:80], made.info.isa or "")
    second = write(store, other)
    assert second == first
    assert read_manifest(store, FP) == first
    assert other.int8 is not None
    engine = load_engine(store, second, INT8)
    expected = engines(digits_artifacts())[1]
    crops_NHWC = digits().held_out.pixels_NHWC[:8]
    np.testing.assert_array_equal(score_crops(engine, crops_NHWC, 8), score_crops(expected, crops_NHWC, 8))


def test_golden_batch_holds_encoded_images_and_the_logits_of_each_artifact(store: MemoryStore) -> None:
    manifest = write(store)
    tensors = safetensors.numpy.load(store.get(f"{FOLDER}/{manifest.golden.file_name}"))
    assert set(tensors) == {f"image_{row}" for row in range(8)} | {f"logits_{FP32}", f"logits_{INT8}"}
    assert tensors["image_0"].tobytes() == png(digits().held_out.pixels_NHWC[0])
    assert tensors[f"logits_{INT8}"].shape == (8, 10)


def test_bundle_in_fp32_has_no_int8_and_says_so(store: MemoryStore) -> None:
    manifest = write(store, only_float(digits_model()))
    check_golden(load_engine(store, manifest, FP32), info_of(manifest, FP32), manifest, store, 4)
    with pytest.raises(BundleRefused, match=f"holds {FP32}, not {INT8}") as caught:
        load_engine(store, manifest, INT8)
    assert caught.value.code == "no_artifact"


# ------------------------------------------------------------------------------------------------- refusals


def test_refusals_survive_pickling_with_their_code() -> None:
    refused = pickle.loads(pickle.dumps(BundleRefused("why", code="wrong_isa")))
    assert (str(refused), refused.code) == ("why", "wrong_isa")


@pytest.mark.parametrize("damage", ["tampered", "cut short"])
def test_damaged_artifact_is_refused(store: MemoryStore, damage: str) -> None:
    manifest = write(store)
    stored = next(a.stored for a in manifest.artifacts if a.info.precision == "int8")
    data = store.get(f"{FOLDER}/{stored.file_name}")
    bad = data[:-1] if damage == "cut short" else data[:5000] + bytes([data[5000] ^ 1]) + data[5001:]
    broken = MemoryStore()
    for info in store.list(FOLDER):
        broken.create(info.key, bad if info.key.endswith(stored.file_name) else store.get(info.key))
    with pytest.raises(BundleRefused, match="is damaged") as caught:
        load_engine(broken, manifest, INT8)
    assert caught.value.code == "corrupt"


def test_network_with_other_weights_fails_the_golden_batch(store: MemoryStore) -> None:
    manifest = write(store)
    torch.manual_seed(5)
    network = digits_cnn()
    network.load_state_dict(digits_model().module.state_dict())
    with torch.no_grad():
        network[-1].weight[3].mul_(1.5)  # type: ignore[index]
    tampered = only_float(loaded(network, DIGITS, outputs=10))
    changed = MemoryStore()
    engine = load_engine(changed, write(changed, tampered), FP32)
    with pytest.raises(BundleRefused, match="computes other values here") as caught:
        check_golden(engine, info_of(manifest, FP32), manifest, store, 4)
    assert caught.value.code == "golden_mismatch"


@pytest.mark.parametrize("name", [INT8, FP32])
def test_decoder_that_sees_other_pixels_fails_the_golden_batch(
    store: MemoryStore, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write(store)

    def upside_down(data: bytes, how: Preprocess, out_HWC: Pixels) -> None:
        decode_into(data, how, out_HWC)
        out_HWC[:] = out_HWC[::-1].copy()

    monkeypatch.setattr(resize, "decode_into", upside_down)
    with pytest.raises(BundleRefused) as caught:
        check_golden(load_engine(store, manifest, name), info_of(manifest, name), manifest, store, 4)
    assert caught.value.code == "golden_mismatch"


def test_bundle_without_golden_images_is_refused(store: MemoryStore) -> None:
    with pytest.raises(ValueError, match="golden"):
        write_bundle(
            store,
            FP,
            spec=SPEC,
            model=digits_model(),
            artifacts=[(digits_artifacts().fp32, None)],
            calibration=None,
            golden_images=[],
        )
    assert not keys(store)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"not json",
        b'{"schema": 99}',
        b'{"schema": 1}',
        b'{"schema": 1, "accuracy": "good"}',
        b"[]",
        b"[" * 10**5,
    ],
    ids=range(7),
)
def test_manifest_of_another_kind_is_an_error_and_not_an_absence(store: MemoryStore, data: bytes) -> None:
    store.create(f"{FOLDER}/manifest.json", data)
    with pytest.raises(BundleRefused, match="not a bundle manifest") as refused:
        read_manifest(store, FP)
    assert "Another version of Stint wrote it, or it is damaged" in str(refused.value)
    assert str(refused.value).endswith(f"remove the folder {store.url}/{FOLDER}/")


def test_manifest_and_gate_are_read_without_torch() -> None:
    code = (
        "import sys, workers.bundle.bundle, workers.bundle.gate, workers.model.names; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
