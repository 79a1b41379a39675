"""Static INT8 on CPU: runs an archive of a quantized network, after checking that it really is one."""

from __future__ import annotations

import torch
from torch import nn

from workers.engines.base import Engine, InputLayout, LayerCounts, Logits, Pixels
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


def graph_layers(module: torch.jit.ScriptModule) -> LayerCounts:
    """The layers of a frozen graph. Attention's products of two activations are no layers where they stay float."""
    counts = operators(module)
    return LayerCounts(
        int8=sum(n for kind, n in counts.items() if kind.startswith(("quantized::conv", "quantized::linear"))),
        floats=sum(counts[kind] for kind in _FLOAT_LAYERS),
    )


class TorchInt8Engine(Engine):
    """Runs an INT8 archive. Quickest in batches of the size that it is given first.

    Each packed weight keeps the oneDNN primitive of its first call, and makes one anew for every call in another shape:
    a sixteenth of MobileNetV2's time (`python -m tests.benchmarks.bench_engines --first-batch`).

    Raises SilentFloatError unless the graph holds exactly the layers `expected`.
    """

    def __init__(self, archive: bytes, layout: InputLayout, expected: LayerCounts, *, backend: str) -> None:
        super().__init__(layout)
        self._module = from_archive(archive, quantized_engine=backend)
        graph_layers(self._module).check(expected, "the archive's graph holds", fewer_floats=False)

    def _run(self, pixels_NHWC: Pixels) -> Logits:
        with torch.inference_mode():
            logits_NK: torch.Tensor = self._module(torch.from_numpy(pixels_NHWC))
        return logits_NK.numpy()
