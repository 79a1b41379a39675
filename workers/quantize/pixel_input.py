"""Fold the normalisation of pixels into a network's first convolution, so that it reads uint8 as it is.

With normalised x = (p/255 − m)/s for a pixel p, W·x + b = (W/255s)·p + (b − Σ W·m/s). Zero padding of x is padding
of p by 255·m, the mean pixel. The convolution therefore loses its padding and the pixels get a frame of the mean
pixel, rounded; that rounding is the only difference from the original, at most 0.5/255s at the border.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.ao.quantization.fx.tracer import QuantizationTracer

from workers.contract import Preprocess
from workers.engines.base import InputLayout
from workers.engines.torch_float import NormalizedInput


def find_first_conv(graph: fx.Graph, network: nn.Module) -> str | None:
    """Name of the Conv2d that is the only reader of the network's input, if it can take the normalisation.

    It must be ungrouped and padded by zeros, and called once. None for any other structure.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or len(inputs[0].users) != 1:
        return None
    (node,) = inputs[0].users
    if node.op != "call_module":
        return None
    name = str(node.target)
    conv = network.get_submodule(name)
    calls = [other for other in graph.nodes if other.op == "call_module" and other.target == node.target]
    if type(conv) is not nn.Conv2d or len(calls) != 1:
        return None
    if conv.in_channels != 3 or conv.groups != 1 or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    return name


def fold(network: nn.Module, conv_name: str, preprocess: Preprocess) -> tuple[nn.Module, InputLayout]:
    """A copy of `network` with the normalisation folded into the convolution named, and the layout of its pixels.

    It takes float NCHW of pixel values 0 … 255, frame included.
    """
    network = copy.deepcopy(network)
    conv = network.get_submodule(conv_name)
    assert isinstance(conv, nn.Conv2d)
    assert not isinstance(conv.padding, str)
    red, green, blue = (min(255, max(0, round(255 * m))) for m in preprocess.mean)
    pad_px = (int(conv.padding[0]), int(conv.padding[1]))
    layout = InputLayout(crop_px=preprocess.crop_px, pad_px=pad_px, pad_pixel=(red, green, blue))
    mean = torch.tensor(preprocess.mean, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(preprocess.std, dtype=torch.float64).view(1, 3, 1, 1)
    weight = conv.weight.detach().double().contiguous()
    bias = 0.0 if conv.bias is None else conv.bias.detach().double()
    conv.weight = nn.Parameter((weight / (255 * std)).float(), requires_grad=False)
    conv.bias = nn.Parameter((bias - (weight * (mean / std)).sum(dim=(1, 2, 3))).float(), requires_grad=False)
    conv.padding = (0, 0)
    return network, layout


@dataclass(frozen=True, kw_only=True)
class PixelNetwork:
    """A float network that takes the pixels an engine is given, for the runtimes that quantize such a network."""

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
        layout = InputLayout(crop_px=preprocess.crop_px)
        return PixelNetwork(module=module.eval(), layout=layout, input_mode="normalized")
    folded, layout = fold(network, first_conv, preprocess)
    return PixelNetwork(module=PlainInput(folded).eval(), layout=layout, input_mode="uint8")


def _first_conv(network: nn.Module) -> str | None:
    try:
        graph = QuantizationTracer([], []).trace(network)
    except Exception:  # noqa: BLE001 - tracing runs the model's own code, which may raise anything
        return None
    return find_first_conv(graph, network)
