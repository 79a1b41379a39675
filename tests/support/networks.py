"""Networks and images for the tests of models: handwritten digits, with weights that are kept (tests/weights)."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import nn

from tests.weights import stored
from workers.bundle.accuracy import AccuracyReport, compare_logits
from workers.contract import BundleRequest, GateSpec, InputSpec, ModelSpec, OutputSpec, Preprocess, SampleSlice
from workers.digits import DIGITS, digits_cnn
from workers.engines.artifact import Artifact, open_artifact
from workers.engines.base import Engine, Pixels, score_crops
from workers.host.cpu import X86_NO_VNNI, X86_VNNI, isa_class
from workers.model.load import LoadedModel
from workers.model.torchvision_import import import_torchvision
from workers.quantize.quantizer import Quantizer, float_artifact

X86 = X86_NO_VNNI if isa_class() == X86_NO_VNNI else X86_VNNI
"""The class of x86 CPUs whose artifacts may be judged here: without VNNI, sums of those with 8 bits saturate."""
CALIBRATION_ROWS = 64
TRAINING_ROWS = 1200


@dataclass(frozen=True, kw_only=True)
class Artifacts:
    """What a bundle would hold of a network."""

    int8: Artifact | None
    fp32: Artifact
    notes: tuple[str, ...] = ()
    """Why a preferred recipe was not taken."""


def quantize(model: LoadedModel, crops_NHWC: Pixels, isa: str) -> Artifacts:
    """Both artifacts for CPUs of class `isa`. Raises as Quantizer does."""
    quantizer, fp32 = Quantizer(model, crops_NHWC), float_artifact(model)
    return Artifacts(int8=quantizer.artifact(isa), fp32=fp32, notes=quantizer.notes)


def only_float(model: LoadedModel) -> Artifacts:
    """Artifacts of a job with precision: fp32."""
    return Artifacts(int8=None, fp32=float_artifact(model))


def judged_here(*classes: str) -> list[Any]:
    """Classes of CPU as parameters; those that this CPU's instructions compute wrongly are skipped."""
    wrong = "sums of 8-bit products saturate on this CPU, or under the limit that is set for it"
    return [
        pytest.param(isa, marks=pytest.mark.skipif(isa != X86_NO_VNNI and isa_class() == X86_NO_VNNI, reason=wrong))
        for isa in classes
    ]


@dataclass(frozen=True)
class Digits:
    pixels_NHWC: Pixels
    labels: npt.NDArray[np.int64]

    @property
    def training(self) -> Digits:
        return Digits(self.pixels_NHWC[:TRAINING_ROWS], self.labels[:TRAINING_ROWS])

    @property
    def held_out(self) -> Digits:
        return Digits(self.pixels_NHWC[TRAINING_ROWS:], self.labels[TRAINING_ROWS:])


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def digits() -> Digits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    grey = (bunch.images[order] * (255 / 16)).astype(np.uint8)
    large = grey.repeat(4, axis=1).repeat(4, axis=2)
    pixels_NHWC = np.ascontiguousarray(np.repeat(large[..., None], 3, axis=3))
    return Digits(pixels_NHWC, bunch.target[order].astype(np.int64))


@functools.cache
def digits_model() -> LoadedModel:
    """Right about 99 % of the held-out digits. Do not change it: every test shares it."""
    return loaded(with_weights(digits_cnn(), "digits"), DIGITS, outputs=10, labels=tuple("0123456789"))


def digits_transformer() -> nn.Module:
    """A vision transformer of two layers, with random weights; those of tests/weights are trained on the digits."""
    return import_torchvision().models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10
    )


def with_weights(network: nn.Module, name: str) -> nn.Module:
    """Load the weights of a name in tests/weights."""
    network.load_state_dict({key: torch.from_numpy(value) for key, value in stored(name).items()})
    return network


@functools.cache
def digits_artifacts() -> Artifacts:
    with one_thread():
        return quantize(digits_model(), digits().training.pixels_NHWC[:CALIBRATION_ROWS], isa_class())


def engines(artifacts: Artifacts) -> tuple[Engine, Engine]:
    """The fp32 and the INT8 engine."""
    assert artifacts.int8 is not None
    return open_artifact(artifacts.fp32), open_artifact(artifacts.int8)


def compare(
    fp32: Engine,
    judged: Engine,
    pixels_NHWC: Pixels,
    labels: npt.NDArray[np.int64] | None = None,
    batch: int = 16,
    **counts: int,
) -> AccuracyReport:
    """Score the same uint8 crops with both engines and compare; `counts` are further fields of the report."""
    reference_NK, judged_NK = (score_crops(engine, pixels_NHWC, batch) for engine in (fp32, judged))
    return replace(compare_logits(reference_NK, judged_NK, labels), **counts)  # type: ignore[arg-type]


def loaded(
    network: nn.Module, preprocess: Preprocess, outputs: int, labels: tuple[str, ...] | None = None
) -> LoadedModel:
    return LoadedModel(
        name="tests:network",
        module=network.eval().requires_grad_(False),
        preprocess=preprocess,
        labels=labels,
        outputs=outputs,
    )


def sample_request(slices: Sequence[SampleSlice], how: InputSpec, labels_column: str | None = None) -> BundleRequest:
    """For a bundle that is made of these rows."""
    return BundleRequest(
        fingerprint="",
        model=ModelSpec(arch="tests:network"),
        gate=GateSpec(labels_column=labels_column),
        input=how,
        sample=tuple(slices),
        output=OutputSpec(uri=""),
        batch=4,
    )


def png(pixels_HWC: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels_HWC).save(file, format="PNG")
    return file.getvalue()


def settled(network: nn.Module, side_px: int) -> nn.Module:
    """Give batch normalisation the statistics of noise, so that a random network's activations keep their scale."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(4, 3, side_px, side_px))
    return network.eval()
