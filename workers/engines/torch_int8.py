"""Static INT8 on CPU: runs an archive of a quantized network, after checking that it really is one."""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn

from workers.engines.base import (
    Buffer,
    InputLayout,
    Logits,
    Pixels,
    SilentFloatError,
    check_pixels,
    new_buffer,
)
from workers.engines.torchscript import from_archive, operators

_FLOAT_LAYERS = ("aten::_convolution", "aten::conv2d", "aten::linear", "aten::addmm")


class QuantizedInput(nn.Module):
    """uint8 pixels NHWC → quantized tensor NCHW of scale 1, copied as bytes → a network that takes one.

    For networks whose first convolution has the normalisation folded in: no float image ever exists.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        # A permuted NHWC tensor is a channels-last NCHW tensor, which is what the INT8 convolutions want.
        pixels_NCHW = torch._make_per_tensor_quantized_tensor(pixels_NHWC, 1.0, 0).permute(0, 3, 1, 2)
        logits_NK: torch.Tensor = self.network(pixels_NCHW)
        return logits_NK


def quantized_layers(counts: Counter[str]) -> int:
    """How many INT8 convolutions and matrix products a graph holds."""
    return sum(n for kind, n in counts.items() if kind.startswith(("quantized::conv", "quantized::linear")))


def float_layers(counts: Counter[str]) -> int:
    """How many convolutions and linear layers a graph computes in float. Attention's products are not counted."""
    return sum(counts[kind] for kind in _FLOAT_LAYERS)


class TorchInt8Engine:
    """Runs an INT8 archive. Quickest in batches of the size that it is given first.

    Each packed weight keeps the oneDNN primitive of its first call, and makes one anew for every call in another shape:
    a sixteenth of MobileNetV2's time (`python -m tests.benchmarks.bench_engines --first-batch`).

    Raises SilentFloatError unless the graph holds exactly the stated number of quantized convolutions and linears, and
    of float ones.
    """

    precision = "int8"

    def __init__(
        self, archive: bytes, layout: InputLayout, *, backend: str, quantized_ops: int, float_ops: int = 0
    ) -> None:
        self.layout = layout
        self._module = from_archive(archive, quantized_engine=backend)
        counts = operators(self._module)
        found = (quantized_layers(counts), float_layers(counts))
        if found != (quantized_ops, float_ops) or not quantized_ops:
            raise SilentFloatError(
                f"an INT8 archive of {quantized_ops} quantized and {float_ops} float layers was expected, "
                f"but {found[0]} quantized and {found[1]} float ones are in its graph"
            )

    def buffer(self, batch: int) -> Buffer:
        return new_buffer(self.layout, batch)

    def predict(self, pixels_NHWC: Pixels) -> Logits:
        """float32 logits N × K of a full buffer. Raises ValueError for pixels of another shape or type."""
        check_pixels(pixels_NHWC, self.layout)
        with torch.inference_mode():
            logits_NK: torch.Tensor = self._module(torch.from_numpy(pixels_NHWC))
        return logits_NK.numpy()
