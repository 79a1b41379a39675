"""OpenVINO: INT8 that is really INT8, from the job's own crops, with nothing sent and nothing written."""

from __future__ import annotations

import functools
import io
import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from tests.support.engine_cases import broken, calibration, home, noise, score_elsewhere, small_transformer
from tests.support.networks import X86, compare, digits, digits_artifacts, digits_model, judged_here, one_thread
from workers.digits import DIGITS
from workers.engines.artifact import Artifact, open_artifact
from workers.engines.base import SilentFloatError, score_crops
from workers.engines.openvino_int8 import OpenVinoEngine, import_openvino, pack
from workers.host.cpu import ARM64, X86_NO_VNNI, X86_VNNI, isa_class
from workers.quantize.pixel_input import pixel_network
from workers.quantize.quantizer import QuantizeError, float_artifact
from workers.quantize.runtime import make_int8, quiet

pytestmark = pytest.mark.int8


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@functools.cache
def artifact(isa: str = X86_VNNI) -> Artifact:
    return make_int8("openvino", digits_model(), calibration(), isa, 1)


def engine(made: Artifact) -> OpenVinoEngine:
    opened = open_artifact(made)
    assert isinstance(opened, OpenVinoEngine)
    return opened


@pytest.mark.parametrize("isa", judged_here(X86_VNNI, X86_NO_VNNI))
def test_digits_are_as_good_in_int8_as_in_fp32(isa: str) -> None:
    held_out = digits().held_out
    fp32 = open_artifact(digits_artifacts().fp32)
    report = compare(fp32, engine(artifact(isa)), held_out.pixels_NHWC, held_out.labels)
    assert report.top1_fp32 is not None
    assert report.top1 is not None
    assert report.top1 > report.top1_fp32 - 0.01
    assert report.logit_error < 0.04


def test_every_layer_of_the_digits_network_runs_in_int8_from_uint8_pixels() -> None:
    info = artifact().info
    assert (info.engine, info.quantized_ops, info.float_ops) == ("openvino", 7, 0)
    assert (info.input_mode, info.layout.pad_px) == ("uint8", (1, 1))


def test_the_same_crops_give_the_same_logits_at_any_batch() -> None:
    crops_NHWC = digits().held_out.pixels_NHWC[:12]
    again = make_int8("openvino", digits_model(), calibration(), X86_VNNI, 1)
    first = score_crops(engine(artifact()), crops_NHWC, 12)
    np.testing.assert_array_equal(score_crops(engine(again), crops_NHWC, 12), first)
    np.testing.assert_array_equal(score_crops(engine(artifact()), crops_NHWC, 5), first)


def test_pixels_that_are_no_full_buffer_are_refused() -> None:
    runs = engine(artifact())
    with pytest.raises(ValueError, match="interior_NHWC"):
        runs.predict(runs.buffer(2).full_NHWC[:, 1:])


@pytest.mark.parametrize("claimed", [6, 8, 0])
def test_model_with_another_number_of_int8_layers_is_refused(claimed: int) -> None:
    made = artifact()
    with pytest.raises(SilentFloatError, match="7 INT8 and 0 float"):
        engine(replace(made, info=replace(made.info, quantized_ops=claimed)))


def test_float_model_passed_off_as_int8_is_refused(tmp_path: Path) -> None:
    openvino = import_openvino()
    network = pixel_network(digits_model().module, DIGITS)
    example = torch.zeros(network.layout.shape(2), dtype=torch.uint8)
    with quiet():
        model = openvino.convert_model(network.module, example_input=example)
    openvino.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    data = pack((tmp_path / "model.xml").read_bytes(), (tmp_path / "model.bin").read_bytes())
    with pytest.raises(SilentFloatError, match="0 INT8 and 7 float"):
        engine(Artifact(info=artifact().info, data=data))


def test_without_vnni_weights_have_seven_bits() -> None:
    assert _greatest_weight(artifact(X86_VNNI)) > 100
    assert _greatest_weight(artifact(X86_NO_VNNI)) <= 64


@pytest.mark.skipif(isa_class() != X86_VNNI, reason="needs a CPU that can be forced down to a lower class")
def test_it_heeds_the_limit_of_onednn_under_which_the_lower_class_is_right(tmp_path: Path) -> None:
    crops_NHWC = digits().held_out.pixels_NHWC[:32]
    limit = {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert isa_class(environ={**os.environ, **limit}) == X86_NO_VNNI
    changed = {}
    for isa in (X86_VNNI, X86_NO_VNNI):
        here = score_crops(engine(artifact(isa)), crops_NHWC, 4)
        lower, _ = score_elsewhere(artifact(isa), crops_NHWC, tmp_path, limit)
        changed[isa] = np.abs(lower - here).mean() / here.std()
    assert changed[X86_NO_VNNI] < 0.001
    assert changed[X86_VNNI] > 0.1


def _greatest_weight(made: Artifact) -> int:
    with zipfile.ZipFile(io.BytesIO(made.data)) as container:
        graph, weights = ElementTree.fromstring(container.read("model.xml")), container.read("model.bin")
    greatest = [
        np.abs(np.frombuffer(weights, np.int8, int(held.attrib["size"]), int(held.attrib["offset"])).astype(int)).max()
        for layer in graph.iter("layer")
        for held in layer.findall("data")
        if layer.attrib["type"] == "Const" and held.attrib.get("element_type") == "i8"
    ]
    return int(max(greatest))


def test_it_stays_within_a_workers_cores_and_out_of_bf16() -> None:
    compiled = engine(artifact())._request.get_compiled_model()
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 1
    assert compiled.get_property("NUM_STREAMS") == 1
    assert compiled.get_property("ENABLE_CPU_PINNING") is False
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_worker_sends_nothing_writes_nothing_home_and_needs_no_torchvision(tmp_path: Path) -> None:
    crops_NHWC = digits().held_out.pixels_NHWC[:10]
    found, imported = score_elsewhere(artifact(), crops_NHWC, tmp_path, home(tmp_path / "home"))
    np.testing.assert_array_equal(found, score_crops(engine(artifact()), crops_NHWC, 4))
    assert list((tmp_path / "home").rglob("*")) == []
    assert "openvino" in imported
    assert not {"openvino_telemetry", "nncf", "torchvision", "workers.digits"} & imported


def test_vision_transformer_has_its_products_in_int8() -> None:
    made = make_int8("openvino", small_transformer(), noise(24), X86, 1)
    assert made.info.float_ops == 0
    assert made.info.quantized_ops >= 10
    assert compare(open_artifact(float_artifact(small_transformer())), engine(made), noise(24)).logit_error < 0.1


def test_network_that_cannot_be_converted_is_told_with_the_reason() -> None:
    with pytest.raises(QuantizeError, match=r"(?s)out of order.*torch-int8"):
        make_int8("openvino", broken(), noise(4), X86_VNNI, 1)


def test_other_processors_are_sent_to_the_engine_that_has_a_recipe() -> None:
    with pytest.raises(QuantizeError, match="onnxruntime"):
        make_int8("openvino", digits_model(), calibration(), ARM64, 1)
