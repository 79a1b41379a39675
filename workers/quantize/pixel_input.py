"""Networks that take uint8 pixels, and the batches of crops that calibrate them.

The normalisation of pixels is folded into a network's first convolution, so that it reads uint8 as it is.
With normalised x = (p/255 − m)/s for a pixel p, W·x + b = (W/255s)·p + (b − Σ W·m/s). Zero padding of x is padding
of p by 255·m, the mean pixel. The convolution therefore loses its padding and the pixels get a frame of the mean
pixel, rounded; that rounding is the only difference from the original, at most 0.5/255s at the border.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.ao.quantization.fx.tracer import QuantizationTracer

from workers.contract import Preprocess
from workers.engines.artifact import Artifact, ArtifactInfo
from workers.engines.base import InputLayout, Pixels, new_buffer
from workers.engines.torch_float import NormalizedInput
from workers.engines.torchscript import to_archive

_BATCH = 16
_TRANSFORMER_LAYERS = (nn.LayerNorm, nn.MultiheadAttention, nn.RMSNorm)


def find_first_conv(graph: fx.Graph, network: nn.Module) -> str | None:
    """Name of the Conv2d that is the only reader of the network's input, if it can take the normalisation.

    It must be ungrouped and padded by zeros, and called once. None for any other structure.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or len(inputs[0].users) != 1:
        return None
    (node,) = inputs[0].users
    name = str(node.target)
    calls = [other for other in graph.nodes if other.op == "call_module" and str(other.target) == name]
    if calls != [node] or type(conv := network.get_submodule(name)) is not nn.Conv2d:
        return None
    plain = conv.groups == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    return name if plain and conv.in_channels == 3 else None


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
    """A network that takes the pixels an engine is given: in float, for those that quantize it, or quantized."""

    module: nn.Module
    """Takes uint8 pixels NHWC of the layout, returns float logits N by K."""
    layout: InputLayout
    input_mode: str
    """`uint8` or `normalized`, as in ArtifactInfo."""

    def archived(self, **more: Any) -> Artifact:
        """As an archive of TorchScript; `more` is what else there is to tell of it. Raises RuntimeError if it cannot be
        traced."""
        info = ArtifactInfo(layout=self.layout, input_mode=self.input_mode, **more)
        return Artifact(info=info, data=to_archive(self.module, self.layout.shape(1)))


class PlainInput(nn.Module):
    """uint8 pixels NHWC → the same values NCHW, channels last in memory, which INT8 convolutions want → the network.

    In float; or quantized with scale 1, copied as bytes: no float image ever exists.
    """

    def __init__(self, network: nn.Module, *, quantized: bool = False) -> None:
        super().__init__()
        self.network = network
        self._quantized = quantized

    def forward(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        if self._quantized:
            pixels_NCHW = torch._make_per_tensor_quantized_tensor(pixels_NHWC, 1.0, 0).permute(0, 3, 1, 2)
        else:
            pixels_NCHW = pixels_NHWC.permute(0, 3, 1, 2).to(torch.float32)
        logits_NK: torch.Tensor = self.network(pixels_NCHW)
        return logits_NK


def pixel_network(network: nn.Module, preprocess: Preprocess) -> PixelNetwork:
    """Fold the normalisation into a copy of the network where its structure allows; else put it in front."""
    try:
        first_conv = find_first_conv(QuantizationTracer([], []).trace(network), network)
    except Exception:  # noqa: BLE001 - tracing runs the model's own code, which may raise anything
        first_conv = None
    if first_conv is None:
        return normalized(network, preprocess)
    folded, layout = fold(network, first_conv, preprocess)
    return PixelNetwork(module=PlainInput(folded).eval(), layout=layout, input_mode="uint8")


def normalized(network: nn.Module, preprocess: Preprocess, dtype: torch.dtype = torch.float32) -> PixelNetwork:
    """The network in its precision, with the normalisation in front."""
    module = NormalizedInput(network, preprocess, dtype).eval()
    return PixelNetwork(module=module, layout=InputLayout(crop_px=preprocess.crop_px), input_mode="normalized")


def is_transformer(network: nn.Module) -> bool:
    """Whether softmax, LayerNorm and GELU, which lose accuracy in INT8, are to stay float in it."""
    return any(isinstance(module, _TRANSFORMER_LAYERS) for module in network.modules())


def calibration_batches(crops_NHWC: Pixels, layout: InputLayout, batch: int = _BATCH) -> Iterator[torch.Tensor]:
    """uint8 batches NHWC as an engine would be given them, frame included."""
    for start in range(0, len(crops_NHWC), batch):
        rows = crops_NHWC[start : start + batch]
        buffer = new_buffer(layout, len(rows))
        buffer.interior_NHWC[:] = rows
        yield torch.from_numpy(buffer.full_NHWC)


def full_batches(crops_NHWC: Pixels, layout: InputLayout, batch: int) -> Iterator[Pixels]:
    """The crops in full buffers of one size: `batch` rows, or all where those are fewer. A rest is left out."""
    batch = min(batch, len(crops_NHWC))
    whole_NHWC = crops_NHWC[: len(crops_NHWC) // batch * batch]
    return (pixels_NHWC.numpy() for pixels_NHWC in calibration_batches(whole_NHWC, layout, batch))
