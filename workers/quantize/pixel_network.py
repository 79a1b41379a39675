"""A float network that takes the pixels an engine is given, for the runtimes that quantize such a network themselves.

Where the first convolution can take the normalisation (workers.quantize.pixel_input) it does, so that uint8 pixels are its
INT8 input as they are; else the network begins with the normalisation in float.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.ao.quantization.fx.tracer import QuantizationTracer

from workers.contract import Preprocess
from workers.engines.base import InputLayout, Pixels, new_buffer
from workers.engines.torch_float import NormalizedInput
from workers.quantize.pixel_input import find_first_conv, fold


@dataclass(frozen=True, kw_only=True)
class PixelNetwork:
    """Not yet quantized."""

    module: nn.Module
    """Takes uint8 pixels NHWC of the layout, returns float logits N by K."""
    layout: InputLayout
    input_mode: str
    """`uint8` or `normalized`, as in ArtifactInfo."""


class PlainInput(nn.Module):
    """uint8 pixels NHWC → the same values in float NCHW, channels last in memory → the network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        logits_NK: torch.Tensor = self.network(pixels_NHWC.permute(0, 3, 1, 2).to(torch.float32))
        return logits_NK


def pixel_network(network: nn.Module, preprocess: Preprocess) -> PixelNetwork:
    """Fold the normalisation into a copy of the network where its structure allows; else put it in front."""
    first_conv = _first_conv(network)
    if first_conv is None:
        module: nn.Module = NormalizedInput(network, preprocess)
        return PixelNetwork(
            module=module.eval(), layout=InputLayout(crop_px=preprocess.crop_px), input_mode="normalized"
        )
    folded = fold(network, first_conv, preprocess)
    return PixelNetwork(module=PlainInput(folded.network).eval(), layout=folded.layout, input_mode="uint8")


def calibration_pixels(crops_NHWC: Pixels, layout: InputLayout, batch: int) -> Iterator[Pixels]:
    """The crops in full buffers of one size: `batch` rows, or all where those are fewer. A rest is left out."""
    batch = min(batch, len(crops_NHWC))
    for start in range(0, len(crops_NHWC) - batch + 1, batch):
        buffer = new_buffer(layout, batch)
        buffer.interior_NHWC[:] = crops_NHWC[start : start + batch]
        yield buffer.full_NHWC


def check_crops(crops_NHWC: Pixels, preprocess: Preprocess) -> None:
    """Raise ValueError unless the crops are what calibration takes."""
    expected = (preprocess.crop_px, preprocess.crop_px, 3)
    if crops_NHWC.dtype != np.uint8 or crops_NHWC.shape[1:] != expected or not len(crops_NHWC):
        raise ValueError(f"calibration needs uint8 crops of N by {expected}, got {crops_NHWC.dtype} {crops_NHWC.shape}")


def _first_conv(network: nn.Module) -> str | None:
    try:
        graph = QuantizationTracer([], []).trace(network)
    except Exception:  # noqa: BLE001 - tracing runs the model's own code, which may raise anything
        return None
    return find_first_conv(graph, network)
