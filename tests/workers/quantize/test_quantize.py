"""Quantization: INT8 close to fp32 where calibration is good, refused where it is not, by every recipe."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.networks import (
    CALIBRATION_ROWS,
    Artifacts,
    compare,
    digits,
    digits_artifacts,
    digits_model,
    digits_transformer,
    engines,
    judged_here,
    loaded,
    one_thread,
    only_float,
    quantize,
    settled,
    with_weights,
)
from workers.bundle.accuracy import AccuracyReport, compare_logits
from workers.bundle.gate import decide
from workers.contract import GateSpec, Preprocess
from workers.digits import DIGITS
from workers.engines.artifact import open_artifact
from workers.engines.base import Buffer, InputLayout, Logits, Pixels, new_buffer, score_crops
from workers.engines.torchscript import deprecations_silenced, from_archive, operators
from workers.host.cpu import X86_NO_VNNI, X86_VNNI, isa_class
from workers.model.torchvision_import import import_torchvision
from workers.quantize.fx_graph import GraphCalibration
from workers.quantize.quantizer import (
    QuantizeError,
    Quantizer,
    float_artifact,
)

pytestmark = pytest.mark.int8

GATE = GateSpec(labels_column="label")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


def noise(rows: int, side: int, seed: int = 0) -> Pixels:
    """Coarse colour noise: images with edges and areas, unlike white noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (rows, side // 8, side // 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=1).repeat(8, axis=2))


def how(side: int) -> Preprocess:
    return Preprocess(resize_px=side, crop_px=side, mean=(0.5, 0.4, 0.6), std=(0.25, 0.2, 0.3))


def error_of(artifacts: Artifacts, side: int) -> AccuracyReport:
    fp32, int8 = engines(artifacts)
    return compare(fp32, int8, noise(16, side, seed=1))


# --------------------------------------------------------------------------------------------------- digits


@pytest.mark.parametrize("isa", judged_here(X86_VNNI, X86_NO_VNNI))
def test_int8_digits_pass_the_gate_on_true_labels(isa: str) -> None:
    calibration = digits().training.pixels_NHWC[:CALIBRATION_ROWS]
    artifacts = digits_artifacts() if isa == isa_class() else quantize(digits_model(), calibration, isa)
    fp32, int8 = engines(artifacts)
    unseen = digits().held_out
    report = compare(fp32, int8, unseen.pixels_NHWC, unseen.labels)
    verdict = decide(report, GATE, "classify")
    assert verdict.passed, verdict.reason
    assert report.top1_fp32 is not None
    assert report.top1_fp32 > 0.97
    assert report.labelled_rows == len(unseen.labels)


@pytest.mark.parametrize("rows", [CALIBRATION_ROWS, 1])
def test_calibration_on_images_of_one_grey_is_refused_by_the_gate(rows: int) -> None:
    # Near the mean pixel, so that next to nothing of a real image's range is seen. Plain black would do no harm here:
    # to this network it is what most of every digit looks like.
    grey = np.full((rows, 32, 32, 3), 60, dtype=np.uint8)
    fp32, int8 = engines(quantize(digits_model(), grey, isa_class()))
    unseen = digits().held_out
    verdict = decide(compare(fp32, int8, unseen.pixels_NHWC, unseen.labels), GATE, "classify")
    assert not verdict.passed
    assert "top-1 agreement" in verdict.reason


def test_quantizing_twice_gives_the_same_network_and_leaves_the_model_alone() -> None:
    model = digits_model()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    again = quantize(model, digits().training.pixels_NHWC[:CALIBRATION_ROWS], isa_class())
    assert again.int8 is not None
    pixels_NHWC = digits().held_out.pixels_NHWC[:16]
    first, second = engines(digits_artifacts())[1], open_artifact(again.int8)
    np.testing.assert_array_equal(score_crops(first, pixels_NHWC, 8), score_crops(second, pixels_NHWC, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_fp32_alone_needs_no_calibration() -> None:
    artifacts = only_float(digits_model())
    assert artifacts.int8 is None
    assert artifacts.fp32.info.isa is None


# ------------------------------------------------------------------------------------------------- recipes


class _Relu6Network(nn.Module):
    """Activations that the clamp at 6 changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16)
        self.relu6a, self.relu6b = nn.ReLU6(inplace=True), nn.ReLU6(inplace=True)
        self.fc = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu6a(self.bn1(self.conv1(x)))
        x = self.relu6b(self.bn2(self.conv2(x)))
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def test_relu6_is_absorbed_into_the_output_range_of_its_convolution() -> None:
    torch.manual_seed(0)
    network = settled(_Relu6Network(), 32)
    with torch.no_grad():
        network.bn1.weight.fill_(5.0)  # type: ignore[union-attr, operator]
        network.bn2.weight.fill_(5.0)  # type: ignore[union-attr, operator]
    artifacts = quantize(loaded(network, how(32), 8), noise(32, 32), isa_class())
    assert artifacts.int8 is not None
    counts = operators(from_archive(artifacts.int8.data, "onednn"))
    assert counts["quantized::conv2d_relu"] == 2
    assert not [kind for kind in counts if "hardtanh" in kind or "clamp" in kind or "relu6" in kind]
    assert error_of(artifacts, 32).logit_error < 0.05


def logits_in_int8(calibration: GraphCalibration, float_layers: Collection[str], pixels_NHWC: Pixels) -> Logits:
    with deprecations_silenced():
        quantized = calibration.quantized(isa_class(), float_layers)
        buffer = new_buffer(quantized.layout, len(pixels_NHWC))
        buffer.interior_NHWC[:] = pixels_NHWC
        with torch.no_grad():
            logits: Logits = quantized.module(torch.from_numpy(buffer.full_NHWC)).numpy()
    return logits


@pytest.mark.parametrize(
    "float_layers", [("conv1",), ("conv2",), ("fc",), ("conv1", "conv2"), ("conv2", "fc"), ("conv1", "conv2", "fc")]
)
def test_layers_left_float_keep_relu6_the_uint8_input_and_the_values_of_fp32(float_layers: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    network = settled(_Relu6Network(), 32)
    with torch.no_grad():
        network.bn1.weight.fill_(5.0)  # type: ignore[union-attr, operator]
        network.bn2.weight.fill_(5.0)  # type: ignore[union-attr, operator]
    with deprecations_silenced():
        calibration = GraphCalibration(network, how(32), noise(32, 32))
        assert calibration.quantized(isa_class(), float_layers).input_mode == "uint8"
    pixels_NHWC = noise(8, 32, seed=1)
    expected = score_crops(open_artifact(float_artifact(loaded(network, how(32), 8))), pixels_NHWC, 8)
    found = logits_in_int8(calibration, float_layers, pixels_NHWC)
    everything = len(float_layers) == 3
    assert np.abs(found - expected).mean() < (0.005 if everything else 0.05) * expected.std()


class _OwnWeights(nn.Module):
    """Calls functions with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(16, 16, 3, 3) / 12)
        self.head = nn.ParameterDict({"weight": torch.randn(8, 16) / 4})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # With fewer arguments FX cannot pack the weight, and the network is quantized layer by layer.
        x = nn.functional.conv2d(self.conv(x).relu(), self.weight, None, [1, 1], [1, 1], [1, 1], 1).relu()
        logits: torch.Tensor = nn.functional.linear(x.mean((2, 3)), self.head["weight"])
        return logits


@pytest.mark.parametrize("isa", [X86_VNNI, X86_NO_VNNI])
def test_functions_called_with_weights_become_int8_or_stay_float_by_name(isa: str) -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(loaded(_OwnWeights(), how(32), 8), noise(32, 32))
    whole = quantizer.artifact(isa)
    assert (whole.info.recipe, whole.info.quantized_ops, whole.info.float_ops) == ("graph", 3, 0)
    most = quantizer.artifact(isa, accept=lambda _: False, most_float=0.99)
    assert set(most.info.float_layers) < {"conv", "weight", "head"}
    assert (most.info.quantized_ops, most.info.float_ops) == (1, 2)


def test_one_calibration_makes_for_each_class_of_cpu_what_its_own_would() -> None:
    crops_NHWC = digits().training.pixels_NHWC[:CALIBRATION_ROWS]
    both = Quantizer(digits_model(), crops_NHWC)
    pixels_NHWC = digits().held_out.pixels_NHWC[:16]
    found = {}
    for isa in (X86_NO_VNNI, X86_VNNI, X86_NO_VNNI):
        shared = open_artifact(both.artifact(isa))
        alone = open_artifact(Quantizer(digits_model(), crops_NHWC).artifact(isa))
        found[isa] = score_crops(shared, pixels_NHWC, 8)
        np.testing.assert_array_equal(found[isa], score_crops(alone, pixels_NHWC, 8))
    assert not np.array_equal(found[X86_VNNI], found[X86_NO_VNNI])


def test_factors_of_squeeze_and_excitation_are_written_out_before_they_multiply() -> None:
    torch.manual_seed(0)
    network = settled(import_torchvision().models.mobilenet_v3_small(weights=None), 64)
    artifact = Quantizer(loaded(network, how(64), 1000), noise(8, 64)).artifact(isa_class())
    counts = operators(from_archive(artifact.data, "onednn"))
    assert counts["quantized::mul"] == counts["aten::expand_as"] == 9
    assert counts["quantized::hardswish"] == 19
    assert counts["aten::dequantize"] == 1  # the logits: everything before them is INT8


class _Branches(nn.Module):
    """A small branch, a pooled large one and a concatenation of a concatenation, as in Inception V3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.small = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(3, stride=1, padding=1)
        self.fc = nn.Linear(24, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        small = self.small(x) * 1.0
        inner = torch.cat([small, self.pool(x)], 1)
        logits: torch.Tensor = self.fc(torch.cat([small, inner], 1).mean((2, 3)))
        return logits


def test_branches_that_meet_in_a_concatenation_share_their_scale() -> None:
    torch.manual_seed(0)
    network = _Branches()
    with torch.no_grad():
        network.small.weight.mul_(0.02)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="All inputs of this cat operator must share")
        artifacts = quantize(loaded(network, how(32), 8), noise(32, 32), isa_class())
    assert artifacts.int8 is not None
    assert artifacts.int8.info.recipe == "graph"
    assert error_of(artifacts, 32).logit_error < 0.05


def test_transformer_has_every_linear_product_in_int8_and_the_rest_in_float() -> None:
    torch.manual_seed(0)
    network = import_torchvision().models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=8
    )
    nn.init.normal_(network.heads.head.weight, std=0.1)
    artifacts = quantize(loaded(network, how(32), 8), noise(32, 32), isa_class())
    assert artifacts.int8 is not None
    info = artifacts.int8.info
    assert (info.recipe, info.quantized_ops, info.float_ops) == ("islands", 2 * 4 + 1, 1)
    assert artifacts.notes == ()
    assert error_of(artifacts, 32).logit_error < 0.05
    engine = open_artifact(artifacts.int8)
    np.testing.assert_allclose(
        score_crops(engine, noise(6, 32), 1), score_crops(engine, noise(6, 32), 6), atol=0.05, rtol=0
    )


def test_trained_transformer_is_as_accurate_in_int8_as_in_fp32() -> None:
    seen, unseen = digits().training, digits().held_out
    model = loaded(with_weights(digits_transformer(), "transformer"), DIGITS, 10)
    int8 = Quantizer(model, seen.pixels_NHWC[:CALIBRATION_ROWS]).artifact(isa_class())
    fp32 = open_artifact(float_artifact(model))
    report = compare(fp32, open_artifact(int8), unseen.pixels_NHWC, unseen.labels)
    verdict = decide(report, GATE, "classify")
    assert verdict.passed, verdict.reason
    assert report.top1_fp32 is not None
    assert report.top1_fp32 > 0.85


class _Untraceable(nn.Module):
    """Branches on a value: no symbolic trace. The branch is the same for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.fc = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).relu()
        if float(x.min()) < -1:
            x = x + 1
        logits: torch.Tensor = self.fc(x.mean((2, 3)))
        return logits


def test_network_that_cannot_be_traced_as_a_graph_is_quantized_layer_by_layer() -> None:
    torch.manual_seed(0)
    artifacts = quantize(loaded(_Untraceable(), how(32), 8), noise(32, 32), isa_class())
    assert artifacts.int8 is not None
    assert (artifacts.int8.info.recipe, artifacts.int8.info.quantized_ops) == ("islands", 2)
    assert artifacts.notes[0].startswith("whole graph: ")
    assert error_of(artifacts, 32).logit_error < 0.05


class _FrozenBatch(nn.Module):
    """Counts its images in Python, which a trace takes for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = [self.fc(x[row, :, :2, :2].reshape(12)) for row in range(int(x.shape[0]))]
        return torch.stack(rows)


def test_network_whose_trace_depends_on_the_batch_is_refused() -> None:
    with pytest.raises(QuantizeError, match="must not branch"):
        quantize(loaded(_FrozenBatch(), how(32), 8), noise(4, 32), isa_class())


def test_network_with_nothing_to_quantize_is_refused_with_a_way_out() -> None:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(QuantizeError, match="precision: fp32"):
        quantize(loaded(network, how(32), 3), noise(4, 32), isa_class())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("alexnet", "graph"),
        ("convnext_tiny", "islands"),
        ("densenet121", "graph"),
        ("efficientnet_b0", "graph"),
        ("googlenet", "graph"),
        ("maxvit_t", "islands"),
        ("mnasnet0_5", "graph"),
        ("mobilenet_v2", "graph"),
        ("mobilenet_v3_small", "graph"),
        ("regnet_y_400mf", "graph"),
        ("resnext50_32x4d", "graph"),
        ("shufflenet_v2_x0_5", "graph"),
        ("squeezenet1_1", "graph"),
        ("swin_t", "islands"),
        ("swin_v2_t", "islands"),
        ("vgg11_bn", "graph"),
        ("vit_b_32", "islands"),
    ],
)
def test_one_of_each_torchvision_family_becomes_int8(name: str, recipe: str) -> None:
    torch.manual_seed(0)
    args = {"init_weights": False} if name == "googlenet" else {}
    network = settled(import_torchvision().models.get_model(name, weights=None, **args), 224)
    artifacts = quantize(loaded(network, how(224), 1000), noise(8, 224), isa_class())
    assert artifacts.int8 is not None
    assert artifacts.int8.info.recipe == recipe
    assert artifacts.notes == ()


# ------------------------------------------------------------------------------------------------- compare


class _Fixed:
    """Answers row after row of a table."""

    precision = "fp32"
    layout = InputLayout(crop_px=1)

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = rows

    def buffer(self, batch: int) -> Buffer:
        return new_buffer(self.layout, batch)

    def predict(self, pixels_NHWC: Pixels) -> Logits:
        return np.array([self.rows[pixel] for pixel in pixels_NHWC[:, 0, 0, 0]], dtype=np.float32)


def test_compare_counts_agreement_error_and_true_accuracy() -> None:
    nan = float("nan")
    fp32 = _Fixed([[2, 0], [0, 2], [2, 0], [2, 0]])
    int8 = _Fixed([[2, 0], [2, 0], [2, 0], [nan, 0]])
    pixels_NHWC = np.arange(4, dtype=np.uint8).reshape(4, 1, 1, 1).repeat(3, axis=3)
    report = compare(fp32, int8, pixels_NHWC, np.array([0, 1, -1, 1]), batch=3, calibration_rows=7)
    assert report.top1_agreement == 0.5
    assert report.nonfinite_rows == 1
    assert report.logit_error == pytest.approx(4 / 6)  # two of six logits off by 2, spread 1
    assert report.logit_error_max == pytest.approx(2)
    assert report.mean_cosine == pytest.approx(2 / 3)
    assert report.top1_fp32 == pytest.approx(2 / 3)
    assert report.top1 == pytest.approx(1 / 3)
    assert (report.labelled_rows, report.calibration_rows) == (3, 7)


def test_compare_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="no rows"):
        compare_logits(np.zeros((0, 2), dtype=np.float32), np.zeros((0, 2), dtype=np.float32))


def test_digits_preprocessing_matches_the_pixels() -> None:
    pixels = digits().training.pixels_NHWC / 255
    assert pixels.mean() == pytest.approx(DIGITS.mean[0], abs=0.02)
    assert pixels.std() == pytest.approx(DIGITS.std[0], abs=0.04)
