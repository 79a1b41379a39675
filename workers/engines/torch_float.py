"""Float reference: uint8 pixels normalised as the weights' authors did, then the network in fp32."""

from __future__ import annotations

import torch
from torch import nn

from workers.contract import Preprocess
from workers.engines.base import Buffer, InputLayout, Logits, Pixels, check_pixels, new_buffer
from workers.engines.torchscript import from_archive, to_archive


class NormalizedInput(nn.Module):
    """uint8 pixels NHWC → (pixel/255 − mean) ÷ std in float NCHW, channels last in memory → the network."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.network = network
        mean = torch.tensor(preprocess.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(preprocess.std, dtype=torch.float64).view(1, 3, 1, 1)
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        floats_NCHW = pixels_NHWC.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
        logits_NK: torch.Tensor = self.network(floats_NCHW)
        return logits_NK


def float_archive(network: nn.Module, preprocess: Preprocess) -> bytes:
    """The fp32 network with its normalisation, as an archive for TorchFloatEngine. Leaves `network` as it is,
    but for the memory format of its weights."""
    # torch.jit.optimize_for_inference was measured too: no faster on top of freezing (ResNet-50, batch 16).
    wrapped = NormalizedInput(network.to(memory_format=torch.channels_last), preprocess).eval()  # type: ignore[call-overload]
    return to_archive(wrapped, InputLayout(crop_px=preprocess.crop_px).shape(1))


class TorchFloatEngine:
    """Runs an archive made by `float_archive`."""

    precision = "fp32"

    def __init__(self, archive: bytes, layout: InputLayout) -> None:
        self.layout = layout
        self._module = from_archive(archive)

    def buffer(self, batch: int) -> Buffer:
        return new_buffer(self.layout, batch)

    def predict(self, pixels_NHWC: Pixels) -> Logits:
        """float32 logits N × K of a full buffer. Raises ValueError for pixels of another shape or type."""
        check_pixels(pixels_NHWC, self.layout)
        with torch.inference_mode():
            logits_NK: torch.Tensor = self._module(torch.from_numpy(pixels_NHWC))
        return logits_NK.numpy()
