"""ONNX Runtime: the operators that are executed are INT8, on x86 and as ARM gets them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.support.engine_cases import broken, calibration, home, noise, score_elsewhere, small_transformer
from tests.support.networks import X86, compare, digits, digits_artifacts, digits_model, judged_here, one_thread
from workers.digits import DIGITS
from workers.engines.artifact import Artifact, open_artifact
from workers.engines.base import SilentFloatError, score_crops
from workers.engines.onnx_int8 import OnnxEngine
from workers.host.cpu import ARM64, X86_NO_VNNI, X86_VNNI
from workers.quantize.pixel_input import pixel_network
from workers.quantize.quantizer import QuantizeError, float_artifact
from workers.quantize.runtime import OPSET, export, make_int8, quiet

pytestmark = pytest.mark.int8


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@functools.cache
def artifact(isa: str = X86_VNNI) -> Artifact:
    return make_int8("onnxruntime", digits_model(), calibration(), isa, 1)


def engine(made: Artifact) -> OnnxEngine:
    opened = open_artifact(made)
    assert isinstance(opened, OnnxEngine)
    return opened


@pytest.mark.parametrize("isa", judged_here(X86_VNNI, X86_NO_VNNI, ARM64))
def test_digits_are_as_good_in_int8_as_in_fp32(isa: str) -> None:
    held_out = digits().held_out
    fp32 = open_artifact(digits_artifacts().fp32)
    report = compare(fp32, engine(artifact(isa)), held_out.pixels_NHWC, held_out.labels)
    assert report.top1_fp32 is not None
    assert report.top1 is not None
    assert report.top1 > report.top1_fp32 - 0.01
    assert report.logit_error < 0.04


def test_every_layer_of_the_digits_network_runs_in_int8_and_the_pixels_never_become_floats() -> None:
    info, executed = artifact().info, engine(artifact()).executed
    assert (info.engine, info.quantized_ops, info.float_ops, info.input_mode) == ("onnxruntime", 7, 0, "uint8")
    assert (executed["QLinearConv"], executed["QLinearAdd"], executed["QGemm"]) == (6, 2, 1)
    assert executed["Cast"] == executed["QuantizeLinear"] == 0


def test_the_same_crops_give_the_same_logits_at_any_batch() -> None:
    crops_NHWC = digits().held_out.pixels_NHWC[:12]
    again = make_int8("onnxruntime", digits_model(), calibration(), X86_VNNI, 1)
    first = score_crops(engine(artifact()), crops_NHWC, 12)
    np.testing.assert_array_equal(score_crops(engine(again), crops_NHWC, 12), first)
    np.testing.assert_array_equal(score_crops(engine(artifact()), crops_NHWC, 5), first)


def test_pixels_that_are_no_full_buffer_are_refused() -> None:
    runs = engine(artifact())
    with pytest.raises(ValueError, match="uint8"):
        runs.predict(runs.buffer(2).full_NHWC.astype(np.float32))


def test_as_arm_gets_it_every_layer_runs_in_int8_too() -> None:
    info, executed = artifact(ARM64).info, engine(artifact(ARM64)).executed
    assert (info.recipe, info.quantized_ops, info.float_ops) == ("qdq-s8s8", 7, 0)
    assert (executed["QLinearConv"], executed["QLinearAdd"], executed["QGemm"]) == (6, 2, 1)


@pytest.mark.parametrize("claimed", [6, 8, 0])
def test_model_with_another_number_of_int8_products_is_refused(claimed: int) -> None:
    made = artifact()
    with pytest.raises(SilentFloatError, match="7 INT8 and 0 float"):
        engine(replace(made, info=replace(made.info, quantized_ops=claimed)))


def test_float_model_passed_off_as_int8_is_refused(tmp_path: Path) -> None:
    network = pixel_network(digits_model().module, DIGITS)
    with quiet():
        export(network, str(tmp_path / "float.onnx"))
    data = (tmp_path / "float.onnx").read_bytes()
    with pytest.raises(SilentFloatError, match="0 INT8 and 7 float"):
        engine(Artifact(info=artifact().info, data=data))


def test_each_class_of_cpu_gets_the_signs_and_bits_that_it_multiplies_right() -> None:
    found = {isa: _types(artifact(isa)) for isa in (X86_VNNI, X86_NO_VNNI, ARM64)}
    assert found[X86_VNNI][0] == found[X86_NO_VNNI][0] == {np.dtype(np.uint8)}
    assert found[ARM64][0] == {np.dtype(np.int8)}
    assert found[X86_VNNI][1] == found[ARM64][1] == 127
    assert found[X86_NO_VNNI][1] == 64


def _types(made: Artifact) -> tuple[set[np.dtype[np.generic]], int]:
    """Of activations their types, of weights the greatest one."""
    model = onnx.load_from_string(made.data)
    assert {found.version for found in model.opset_import if not found.domain} == {OPSET}
    constants = {held.name: numpy_helper.to_array(held) for held in model.graph.initializer}
    activations = {constants[node.input[2]].dtype for node in model.graph.node if node.op_type == "QuantizeLinear"}
    weights = [
        values
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
        and (values := constants.get(node.input[0])) is not None
        and values.dtype == np.int8
    ]
    return activations, max(int(np.abs(values.astype(int)).max()) for values in weights)


def test_worker_sends_nothing_writes_nothing_home_and_needs_no_torchvision(tmp_path: Path) -> None:
    crops_NHWC = digits().held_out.pixels_NHWC[:10]
    environ = {**home(tmp_path / "home"), "ORT_DISABLE_TELEMETRY": ""}
    found, imported = score_elsewhere(artifact(), crops_NHWC, tmp_path, environ)
    np.testing.assert_array_equal(found, score_crops(engine(artifact()), crops_NHWC, 4))
    assert list((tmp_path / "home").rglob("*")) == []
    assert "onnxruntime" in imported
    assert not {"onnx", "onnxruntime.quantization", "torchvision", "workers.digits"} & imported


def test_vision_transformer_has_its_products_of_weights_in_int8() -> None:
    made = make_int8("onnxruntime", small_transformer(), noise(24), X86, 1)
    assert made.info.quantized_ops >= 10
    assert compare(open_artifact(float_artifact(small_transformer())), engine(made), noise(24)).logit_error < 0.1


def test_network_that_cannot_be_exported_is_told_with_the_reason() -> None:
    with pytest.raises(QuantizeError, match=r"(?s)out of order.*torch-int8"):
        make_int8("onnxruntime", broken(), noise(4), X86_VNNI, 1)
