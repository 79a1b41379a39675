"""What every way of making INT8 networks has in common: rows pass once, then any number of networks are made."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from workers.contract import Preprocess
from workers.engines.base import InputLayout, Pixels, new_buffer

_BATCH = 16
_TRANSFORMER_LAYERS = (nn.LayerNorm, nn.MultiheadAttention, nn.RMSNorm)


@dataclass(frozen=True, kw_only=True)
class QuantizedNetwork:
    """A quantized network, not yet serialised."""

    module: nn.Module
    """Takes uint8 pixels NHWC, returns float logits N by K."""
    layout: InputLayout
    recipe: str
    """How it was quantized: `graph` or `islands`."""
    input_mode: str
    """`uint8` where the first convolution reads pixels as they are, `normalized` where they become floats first."""
    backend: str
    """Value of torch.backends.quantized.engine that its weights are packed for."""


class CalibratedNetwork(Protocol):
    """A float network of which the ranges are known."""

    @property
    def layers(self) -> Mapping[str, int]:
        """Its layers that can be INT8, in the order of the network, by name, and how often each is called."""
        ...

    @property
    def others_float(self) -> bool:
        """Whether the network calls convolutions or linear products that are no such layer, and stay float."""
        ...

    def quantized(self, isa: str, float_layers: Collection[str] = ()) -> QuantizedNetwork:
        """The network in INT8 for a class of CPU, but for the layers named. Deterministic; changes nothing here."""
        ...

    def errors(self, crops_NHWC: Pixels, isa: str) -> dict[str, float]:
        """How much of the logits' error each layer's rounding causes on these crops. See
        workers.quantize.float_layers."""
        ...


def is_transformer(network: nn.Module) -> bool:
    """Whether softmax, LayerNorm and GELU, which lose accuracy in INT8, are to stay float in it."""
    return any(isinstance(module, _TRANSFORMER_LAYERS) for module in network.modules())


def check_crops(crops_NHWC: Pixels, preprocess: Preprocess) -> None:
    """Raise ValueError unless the crops are what calibration takes."""
    expected = (preprocess.crop_px, preprocess.crop_px, 3)
    if crops_NHWC.dtype != np.uint8 or crops_NHWC.shape[1:] != expected or not len(crops_NHWC):
        raise ValueError(f"calibration needs uint8 crops of N by {expected}, got {crops_NHWC.dtype} {crops_NHWC.shape}")


def calibration_batches(crops_NHWC: Pixels, layout: InputLayout, batch: int = _BATCH) -> Iterator[torch.Tensor]:
    """uint8 batches NHWC as an engine would be given them, frame included."""
    for start in range(0, len(crops_NHWC), batch):
        rows = crops_NHWC[start : start + batch]
        buffer = new_buffer(layout, len(rows))
        buffer.interior_NHWC[:] = rows
        yield torch.from_numpy(buffer.full_NHWC)
