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

from workers.contract import Preprocess
from workers.engines.base import InputLayout


@dataclass(frozen=True, kw_only=True)
class Folded:
    """A network of which the first convolution takes raw pixels."""

    network: nn.Module
    """Takes float NCHW of pixel values 0 … 255, frame included."""
    layout: InputLayout
    conv: str
    """Name of the convolution folded into."""


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


def fold(network: nn.Module, conv_name: str, preprocess: Preprocess) -> Folded:
    """A copy of `network` with the normalisation folded into the convolution named."""
    network = copy.deepcopy(network)
    conv = network.get_submodule(conv_name)
    assert isinstance(conv, nn.Conv2d)
    assert not isinstance(conv.padding, str)
    pad_px = (int(conv.padding[0]), int(conv.padding[1]))
    network.set_submodule(conv_name, _folded_conv(conv, preprocess))
    red, green, blue = (min(255, max(0, round(255 * m))) for m in preprocess.mean)
    layout = InputLayout(crop_px=preprocess.crop_px, pad_px=pad_px, pad_pixel=(red, green, blue))
    return Folded(network=network, layout=layout, conv=conv_name)


def _folded_conv(conv: nn.Conv2d, preprocess: Preprocess) -> nn.Conv2d:
    mean = torch.tensor(preprocess.mean, dtype=torch.float64).view(1, 3, 1, 1)
    std = torch.tensor(preprocess.std, dtype=torch.float64).view(1, 3, 1, 1)
    kernel_size = (conv.kernel_size[0], conv.kernel_size[1])
    stride = (conv.stride[0], conv.stride[1])
    dilation = (conv.dilation[0], conv.dilation[1])
    folded = nn.Conv2d(3, conv.out_channels, kernel_size, stride, padding=0, dilation=dilation, bias=True)
    weight = conv.weight.detach().double()
    bias = 0.0 if conv.bias is None else conv.bias.detach().double()
    assert folded.bias is not None
    with torch.no_grad():
        folded.weight.copy_(weight / (255 * std))
        folded.bias.copy_(bias - (weight * (mean / std)).sum(dim=(1, 2, 3)))
    return folded.eval()
