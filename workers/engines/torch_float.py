"""Float networks: uint8 pixels normalised as the weights' authors did, then the network in fp32 or bf16.

fp32 is the reference that every other network is judged by. On a GPU the same archive runs with its weights there:
pixels go over from page-locked memory as uint8, a quarter of what floats would be, and only logits come back.
"""

from __future__ import annotations

import torch
from torch import nn

from workers.contract import Preprocess
from workers.engines.artifact import ArtifactInfo
from workers.engines.base import Buffer, Engine, Logits, Pixels, new_buffer
from workers.engines.torchscript import from_archive
from workers.model.names import ModelError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""By precision."""


class NormalizedInput(nn.Module):
    """uint8 pixels NHWC → (pixel/255 − mean) ÷ std in float NCHW, channels last in memory → the network → float32.

    Normalised in float32 whatever the network computes in: to round once is the least that bf16 can lose.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, network: nn.Module, preprocess: Preprocess, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = network
        self._dtype = dtype
        mean = torch.tensor(preprocess.mean, dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor(preprocess.std, dtype=torch.float64).view(1, 3, 1, 1)
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, pixels_NHWC: torch.Tensor) -> torch.Tensor:
        floats_NCHW = pixels_NHWC.permute(0, 3, 1, 2).to(torch.float32) * self.scale + self.shift
        logits_NK: torch.Tensor = self.network(floats_NCHW.to(self._dtype))
        return logits_NK.to(torch.float32)


class TorchFloatEngine(Engine):
    """Runs an archive of a NormalizedInput on a device of torch's, `cpu` or `cuda`.

    Raises ModelError where there is no such device.
    """

    def __init__(self, archive: bytes, info: ArtifactInfo, _threads: int = 1, device: str = "cpu") -> None:
        super().__init__(info.layout)
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            built = torch.version.cuda is not None
            why = "torch finds no GPU or no driver for it" if built else "this torch is built for CPUs only"
            raise ModelError(
                f"model.device: cuda, but {why}: run workers on GPU nodes whose image has the CUDA build of torch "
                f"{torch.__version__.partition('+')[0]}, or set model.device: cpu"
            )
        if self._device.type == "cuda" and info.precision == "fp32":
            torch.backends.cudnn.allow_tf32 = False  # 10 bits of mantissa instead of 23 is not what was asked for
        self._module = from_archive(archive, device=device)

    def buffer(self, batch: int) -> Buffer:
        if self._device.type == "cpu":
            return super().buffer(batch)
        # Page-locked, so that the GPU fetches the pixels by itself.
        pixels_NHWC = torch.empty(self.layout.shape(batch), dtype=torch.uint8, pin_memory=True)
        return new_buffer(self.layout, batch, pixels_NHWC.numpy())

    def _run(self, pixels_NHWC: Pixels) -> Logits:
        with torch.inference_mode():
            there_NHWC = torch.from_numpy(pixels_NHWC).to(self._device, non_blocking=True)
            logits_NK: torch.Tensor = self._module(there_NHWC)
        return logits_NK.cpu().numpy()  # waits for the GPU, so the buffer may be written again
