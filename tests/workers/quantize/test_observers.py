"""Observers: the same scales as torch's own, sooner."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch.ao.quantization.observer import HistogramObserver

from workers.host.cpu import X86_NO_VNNI, X86_VNNI
from workers.quantize.observers import ActivationObserver, ClampedAtSix, quantized_weight

pytestmark = pytest.mark.int8


def batches(kind: str) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(4, 24, 14, 14, generator=generator) * (1 + n % 3) for n in range(5)]
    match kind:
        case "channels last":
            return [x.to(memory_format=torch.channels_last) for x in found]
        case "after ReLU":
            return [x.relu() for x in found]
        case "long tails":
            return [x**5 for x in found]
        case "tokens":
            return [x.flatten(2).transpose(1, 2) for x in found]
        case "constant, then not":
            return [torch.full((3, 5), 2.0), *found]
        case "constant":
            return [torch.full((3, 5), -1.5)] * 2
        case "empty":
            return [torch.zeros(0, 3), found[0]]
        case "infinite":
            found[1][0, 0, 0, 0], found[1][0, 0, 0, 1] = torch.inf, -torch.inf
    return found


@pytest.mark.parametrize(
    "kind",
    [
        "plain",
        "channels last",
        "after ReLU",
        "long tails",
        "tokens",
        "constant, then not",
        "constant",
        "empty",
        "infinite",
    ],
)
def test_scale_is_exactly_that_of_torchs_histogram_observer(kind: str) -> None:
    ours, theirs = ActivationObserver(), HistogramObserver(reduce_range=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an infinite input
        for batch in batches(kind):
            assert ours(batch) is batch
            theirs(batch)
        assert torch.equal(ours.histogram, theirs.histogram)
        assert ours.calculate_qparams() == theirs.calculate_qparams()
        ours(torch.full((2, 2), 30.0)), theirs(torch.full((2, 2), 30.0))
        assert ours.calculate_qparams() == theirs.calculate_qparams()  # not what was computed before


def test_activation_that_is_nan_is_an_error() -> None:
    with pytest.raises(ValueError, match="NaN"):
        ActivationObserver()(torch.tensor([1.0, float("nan")]))


def test_values_beyond_six_do_not_widen_the_range_of_a_relu6() -> None:
    observer = ClampedAtSix()
    observer(torch.linspace(0, 60, 1000))
    scale, zero_point = observer.calculate_qparams()
    assert float(scale) * (255 - int(zero_point)) <= 6.001


@pytest.mark.parametrize(("isa", "most"), [(X86_VNNI, 127), (X86_NO_VNNI, 63)])
def test_weights_use_eight_bits_with_vnni_and_seven_without(isa: str, most: int) -> None:
    weight = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    assert int(quantized_weight(weight, isa).int_repr().abs().max()) in (most, most + 1)
