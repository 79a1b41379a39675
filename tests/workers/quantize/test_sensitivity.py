"""The order in which layers stay float: it measures what INT8 does to the logits, and the culprit comes first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.networks import CALIBRATION_ROWS, digits, digits_model, judged_here, one_thread, settled
from workers.contract import Preprocess
from workers.digits import DIGITS
from workers.engines.torchscript import deprecations_silenced
from workers.host.cpu import X86_NO_VNNI, X86_VNNI, isa_class
from workers.model.torchvision_import import import_torchvision
from workers.quantize.float_layers import LogitErrors, by_sensitivity
from workers.quantize.fx_graph import GraphCalibration
from workers.quantize.quantizer import float_artifact

pytestmark = pytest.mark.int8

HOW = Preprocess(resize_px=64, crop_px=64, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread(), deprecations_silenced():
        yield


def pictures(rows: int, side: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (rows, side // 8, side // 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=1).repeat(8, axis=2))


def test_error_of_a_source_is_its_square_at_the_logits() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(20, 30), torch.randn(10, 20)
    small, large = torch.randn(20) * 0.01, torch.randn(10) * 0.1
    errors = LogitErrors()

    def forward(x: torch.Tensor) -> torch.Tensor:
        y = errors.source("first", x @ first.T, small.expand(1, 20))
        return errors.source("second", y @ second.T, large.expand(1, 10))

    images = 64
    errors.run(forward, (torch.randn(1, 30) for _ in range(images)))
    found = {name: square / images / 4 for name, square in errors.squares.items()}
    assert found["first"] == pytest.approx(float((second @ small).square().sum()), rel=0.25)
    assert found["second"] == pytest.approx(float(large.square().sum()), rel=0.25)


def test_network_without_gradients_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="grad"):
        LogitErrors().run(lambda x: x.detach(), [torch.zeros(1, 3)])


@pytest.mark.parametrize("isa", judged_here(X86_VNNI, X86_NO_VNNI))
def test_order_is_that_of_the_errors_of_one_int8_layer_after_the_other(isa: str) -> None:
    calibration = GraphCalibration(digits_model().module, DIGITS, digits().training.pixels_NHWC[:CALIBRATION_ROWS])
    pixels_NHWC = digits().training.pixels_NHWC[:8]
    names = list(calibration.layers)
    found = calibration.errors(pixels_NHWC, isa)

    def logits(float_layers: list[str]) -> torch.Tensor:
        network = calibration.quantized(isa, float_layers)
        frame = network.layout.pad_px[0]
        padded = np.pad(pixels_NHWC, ((0, 0), (frame, frame), (frame, frame), (0, 0)), constant_values=0)
        padded[:] = network.layout.pad_pixel
        padded[:, frame : frame + 32, frame : frame + 32] = pixels_NHWC
        with torch.no_grad():
            return network.module(torch.from_numpy(padded))

    exact = logits(names)
    measured = [float((logits([n for n in names if n != name]) - exact).square().sum()) for name in names]
    estimated = [found[name] for name in names]
    ranks = [np.argsort(np.argsort(values)) for values in (measured, estimated)]
    assert np.corrcoef(*ranks)[0, 1] > 0.6
    assert names[int(np.argmax(measured))] in by_sensitivity(found)[:2]


class _Depthwise(nn.Module):
    """Pointwise, depthwise, pointwise with activation functions that keep no factor, around a residual addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24), nn.SiLU())
        self.blocks = nn.ModuleList(self._block() for _ in range(3))
        self.fc = nn.Linear(24, 10)

    @staticmethod
    def _block() -> nn.Sequential:
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(24, 48, 1, bias=False), nn.BatchNorm2d(48), nn.SiLU()),
            nn.Sequential(nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False), nn.BatchNorm2d(48), nn.SiLU()),
            nn.Sequential(nn.Conv2d(48, 24, 1, bias=False), nn.BatchNorm2d(24)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def _outliers(network: nn.Module, norm: str, reader: str) -> None:
    """A few channels 300 times as large, and the weights that read them as much smaller."""
    scaled, reading = network.get_submodule(norm), network.get_submodule(reader)
    with torch.no_grad():
        scaled.weight[:2] *= 300  # type: ignore[index, operator]
        scaled.bias[:2] = 300.0  # type: ignore[index, operator]
        reading.weight[:, :2] /= 300  # type: ignore[index, operator]


@pytest.mark.parametrize("ruined", [0, 2])
def test_depthwise_layer_with_outliers_comes_first_with_the_layer_that_reads_it(ruined: int) -> None:
    torch.manual_seed(0)
    network = settled(_Depthwise(), 64)
    _outliers(network, f"blocks.{ruined}.1.1", f"blocks.{ruined}.2.0")
    crops_NHWC = pictures(16, 64)
    errors = GraphCalibration(network, HOW, crops_NHWC).errors(crops_NHWC[:8], isa_class())
    assert set(by_sensitivity(errors)[:2]) == {f"blocks.{ruined}.1.0", f"blocks.{ruined}.2.0"}


def test_squeeze_and_excitation_with_outliers_comes_first_in_mobilenet_v3() -> None:
    torch.manual_seed(0)
    network = settled(import_torchvision().models.mobilenet_v3_small(weights=None), 64)
    _outliers(network, "features.4.block.1.1", "features.4.block.3.0")
    crops_NHWC = pictures(16, 64)
    errors = GraphCalibration(network, HOW, crops_NHWC).errors(crops_NHWC[:8], isa_class())
    assert set(by_sensitivity(errors)[:2]) == {"features.4.block.1.0", "features.4.block.3.0"}


def test_measuring_changes_nothing_that_is_made_afterwards() -> None:
    calibration = GraphCalibration(digits_model().module, DIGITS, digits().training.pixels_NHWC[:CALIBRATION_ROWS])
    pixels = torch.zeros((2, 34, 34, 3), dtype=torch.uint8) + 90
    with torch.no_grad():
        before = calibration.quantized(isa_class()).module(pixels)
        errors = calibration.errors(digits().training.pixels_NHWC[:2], isa_class())
        assert errors == calibration.errors(digits().training.pixels_NHWC[:2], isa_class())
        assert torch.equal(before, calibration.quantized(isa_class()).module(pixels))
    assert float_artifact(digits_model()).info.float_layers == ()
