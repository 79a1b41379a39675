"""PT2E: a package compiled once calls oneDNN's INT8 products, and loads where there is no compiler."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.engine_cases import broken, calibration, noise, score_elsewhere
from tests.support.networks import X86, compare, digits, digits_artifacts, digits_model, one_thread
from workers.engines import pt2e
from workers.engines.artifact import Artifact, EngineUnusable, open_artifact
from workers.engines.base import SilentFloatError, score_crops
from workers.engines.pt2e import Pt2eEngine, calls
from workers.host.cpu import ARM64, X86_VNNI, isa_class
from workers.quantize import runtime as making
from workers.quantize.quantizer import QuantizeError
from workers.quantize.runtime import make_int8

BATCH = 6

pytestmark = [
    pytest.mark.int8,
    pytest.mark.skipif(
        isa_class() == ARM64 or shutil.which("g++") is None, reason="packages are compiled for x86, by g++"
    ),
]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@functools.cache
def artifact() -> Artifact:
    return make_int8("torch-pt2e", digits_model(), calibration(), X86, BATCH)


def engine(made: Artifact) -> Pt2eEngine:
    opened = open_artifact(made)
    assert isinstance(opened, Pt2eEngine)
    return opened


def test_digits_are_as_good_in_int8_as_in_fp32() -> None:
    held_out = digits().held_out
    fp32 = open_artifact(digits_artifacts().fp32)
    report = compare(fp32, engine(artifact()), held_out.pixels_NHWC, held_out.labels)
    assert report.top1_fp32 is not None
    assert report.top1 is not None
    assert report.top1 > report.top1_fp32 - 0.01
    assert report.logit_error < (0.02 if X86 == X86_VNNI else 0.027)  # 7 bits round twice as coarsely as 8


def test_every_product_is_oned_nns_int8_with_addition_fused_and_pixels_never_become_floats() -> None:
    info, counts = artifact().info, calls(artifact().data)
    assert (info.engine, info.quantized_ops, info.float_ops, info.input_mode) == ("torch-pt2e", 7, 0, "uint8")
    assert counts["aoti_torch_cpu__qconv_pointwise_tensor"] == 4
    assert counts["aoti_torch_cpu__qconv2d_pointwise_binary_tensor"] == 2
    assert counts["aoti_torch_cpu__qlinear_pointwise_tensor"] == 1


def test_batches_of_other_sizes_are_cut_into_the_one_compiled_in() -> None:
    crops_NHWC = digits().held_out.pixels_NHWC[:16]
    runs = engine(artifact())
    assert runs.batch == BATCH
    whole = score_crops(runs, crops_NHWC, BATCH)
    for batch in (1, 16):
        np.testing.assert_array_equal(score_crops(runs, crops_NHWC, batch), whole)


def test_pixels_that_are_no_full_buffer_are_refused() -> None:
    runs = engine(artifact())
    with pytest.raises(ValueError, match="interior_NHWC"):
        runs.predict(runs.buffer(2).full_NHWC[:, 1:])


@pytest.mark.parametrize("claimed", [6, 8, 0])
def test_package_with_another_number_of_int8_products_is_refused(claimed: int) -> None:
    made = artifact()
    with pytest.raises(SilentFloatError, match="7 INT8 and 0 float"):
        engine(replace(made, info=replace(made.info, quantized_ops=claimed)))


@pytest.mark.slow
def test_package_that_computes_in_float_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without freezing, quantized weights are unpacked and multiplied in float: the trap this check is for."""
    monkeypatch.setitem(making._INDUCTOR, "freezing", False)
    with pytest.raises(QuantizeError, match="runs nothing of"):
        make_int8("torch-pt2e", digits_model(), calibration(), X86, BATCH)


def test_worker_loads_it_without_compiler_and_without_torchao(tmp_path: Path) -> None:
    crops_NHWC = digits().held_out.pixels_NHWC[:10]
    found, imported = score_elsewhere(artifact(), crops_NHWC, tmp_path, {"PATH": "", "CXX": "/nonexistent"})
    np.testing.assert_array_equal(found, score_crops(engine(artifact()), crops_NHWC, 4))
    assert not {"torchao", "torch._inductor", "torchvision", "workers.digits"} & imported


def test_cpu_without_the_instructions_compiled_for_is_told_before_the_code_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pt2e, "cpu_flags", lambda: frozenset({"sse4_2", "fma", "bmi2", "f16c"}))
    with pytest.raises(EngineUnusable, match=r"avx2.*torch-int8"):
        engine(artifact())


def test_without_a_compiler_making_one_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    with pytest.raises(QuantizeError, match="install g\\+\\+ where bundles are made"):
        make_int8("torch-pt2e", digits_model(), calibration(), X86, BATCH)


def test_network_that_cannot_be_exported_is_told_with_the_reason() -> None:
    with pytest.raises(QuantizeError, match=r"(?s)out of order.*torch-int8"):
        make_int8("torch-pt2e", broken(), noise(4), X86, BATCH)


def test_other_processors_are_sent_to_the_engine_that_has_a_recipe() -> None:
    with pytest.raises(QuantizeError, match="onnxruntime"):
        make_int8("torch-pt2e", digits_model(), calibration(), ARM64, BATCH)
    assert torch.is_grad_enabled()
