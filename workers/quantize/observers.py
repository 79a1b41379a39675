"""Observers of calibration: from the values that pass to the scale and zero point of their 8 bits."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn
from torch.ao.quantization.observer import HistogramObserver, ObserverBase, PerChannelMinMaxObserver

from workers.host.cpu import X86_VNNI

_CHUNK = 1 << 15
"""Values binned at a time: both copies of a chunk stay in the L2 cache."""


class ActivationObserver(HistogramObserver):
    """torch's histogram observer: the same scale and zero point, for less time, and computed once.

    `torch.histc` takes most of calibration's time, and `torch.aminmax` of a channels-last tensor much of the rest.
    """

    def __init__(self) -> None:
        super().__init__(reduce_range=False)
        self._qparams: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        """Add the values to the histogram, but infinite ones, which INT8 clamps. Raises ValueError for NaN."""
        x = x_orig.detach()
        if x.numel() and (x.amin() == -torch.inf or x.amax() == torch.inf):
            x = x[~x.isinf()]
        if not x.numel():
            return x_orig
        low, high = torch.minimum(x.amin(), self.min_val), torch.maximum(x.amax(), self.max_val)
        if low.isnan() or high.isnan():
            raise ValueError("an activation is NaN on the rows calibrated on")
        histogram = _histogram(x, low, high, self.bins)
        if torch.isfinite(self.min_val):
            histogram = self._combine_histograms(self.histogram, self.min_val, self.max_val, histogram, low, high)
        self.histogram, self.min_val, self.max_val = histogram, low.clone(), high.clone()
        self._qparams = None
        return x_orig

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        if self._qparams is None:
            self._qparams = super().calculate_qparams()
        return self._qparams


class ClampedAtSix(ActivationObserver):
    """Observes a ReLU as if it were a ReLU6."""

    def forward(self, x_orig: torch.Tensor) -> torch.Tensor:
        return super().forward(x_orig.clamp(max=6.0))


def weight_observer(isa: str) -> functools.partial[PerChannelMinMaxObserver]:
    """Observer of weights for a class of CPU: per channel, symmetric, 8 bits, or 7 where products saturate.

    Without VNNI two products u8·s8 are added in 16 bits. With 7-bit weights 2·255·64 = 32,640 fits, so no input can
    saturate, as one beyond calibration would with torch's own answer, `reduce_range`, and nothing here would tell.
    """
    low, high = (-128, 127) if isa == X86_VNNI else (-64, 63)
    observer: functools.partial[PerChannelMinMaxObserver] = PerChannelMinMaxObserver.with_args(
        dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=low, quant_max=high
    )
    return observer


def quantized_weight(weight: torch.Tensor, isa: str) -> torch.Tensor:
    """INT8 weights, per output channel (the first axis), symmetric."""
    weight = weight.detach()
    observer = weight_observer(isa)()
    observer(weight)
    scales, zero_points = observer.calculate_qparams()
    return torch.quantize_per_channel(weight, scales.double(), zero_points.long(), 0, torch.qint8)


def scale_and_zero_point(observer: nn.Module) -> tuple[float, int]:
    assert isinstance(observer, ObserverBase)
    scale, zero_point = observer.calculate_qparams()  # type: ignore[no-untyped-call]
    return float(scale), int(zero_point)


def fake_quantized(observer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """An activation in float, with the values that 8 bits would hold."""
    return torch.fake_quantize_per_tensor_affine(x, *scale_and_zero_point(observer), 0, 255)


def _histogram(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor, bins: int) -> torch.Tensor:
    """What torch.histc counts, by its own arithmetic in float32, but three times as fast."""
    start, width = low.numpy().astype(np.float32), (high - low).numpy().astype(np.float32)
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)  # in the order of its memory, so that flattening copies nothing
    flat = x.float().reshape(-1).numpy()
    counts = np.zeros(bins + 1, dtype=np.int64)
    if width == 0:
        return torch.histc(x.float(), bins, min=float(start), max=float(start))
    for first in range(0, len(flat), _CHUNK):
        scaled = (flat[first : first + _CHUNK] - start) * np.float32(bins)
        counts += np.bincount((scaled / width).astype(np.intp), minlength=bins + 1)
    counts[bins - 1] += counts[bins]  # the greatest value belongs to the last bin
    return torch.from_numpy(counts[:bins].astype(np.float32))
