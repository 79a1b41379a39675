"""The rungs of `stint bench` below the bundle's own artifact, and that one: how each variant of a network is loaded.

Float and INT8 networks are written here as a user would write them by torch's own tutorials: they are what the engine
is compared with, and nothing of the product runs them. They take uint8 pixels like the engine does, so that making
floats of them counts where floats are made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

from workers.bundle.bundle import open_bundle
from workers.contract import Preprocess
from workers.engines.base import Buffer, Logits, Pixels
from workers.engines.torchscript import deprecations_silenced
from workers.image.resize import decode_into
from workers.measure.messages import BUNDLE, EAGER, INT8_DEFAULT, INT8_FUSED, LoadVariant
from workers.model.load import load_model
from workers.score.loading import load_best

ForwardPass: TypeAlias = tuple[Callable[[Pixels], Logits], Buffer]
"""What predicts the pixels of a full buffer, and such a buffer."""

DISTINCT_IMAGES = 64
"""Different photographs that a process goes round in."""
CALIBRATION_IMAGES = 16


def open_variant(load: LoadVariant) -> tuple[Callable[[int], ForwardPass], Pixels, str]:
    """The network by size of its batch, pixels N × crop × crop × 3, and a few words. Raises what torch's quantization
    does, which may be anything, for a network that it cannot take."""
    worker = load.worker
    store, manifest = open_bundle(worker.output, worker.bundle)
    how = manifest.preprocess.of(worker.input.formats)
    cells = pq.ParquetFile(Path(load.images)).read_row_group(0, columns=["image"]).column(0)[:DISTINCT_IMAGES]
    crops_NHWC = np.empty((len(cells), how.crop_px, how.crop_px, 3), np.uint8)
    for cell, crop_HWC in zip(cells.to_pylist(), crops_NHWC, strict=True):
        decode_into(cell, how, crop_HWC)
    if load.kind != BUNDLE:
        with deprecations_silenced(), torch.no_grad():
            predict = _float_or_int8(load, how, crops_NHWC)

        def plain(batch: int) -> ForwardPass:
            pixels_NHWC = np.empty((batch, *crops_NHWC.shape[1:]), np.uint8)
            return predict, Buffer(full_NHWC=pixels_NHWC, interior_NHWC=pixels_NHWC)

        return plain, crops_NHWC, load.kind
    first = load_best(store, manifest, worker)

    def bundled(batch: int) -> ForwardPass:
        """The engine as workers run it: loaded for each size of batch, since it is quickest at the first one."""
        loaded = first
        if batch != first.batch:
            loaded = load_best(store, manifest, replace(worker, batch=batch))
        return loaded.engine.predict, loaded.engine.buffer(batch)

    return bundled, crops_NHWC, first.info.name


def _float_or_int8(load: LoadVariant, how: Preprocess, crops_NHWC: Pixels) -> Callable[[Pixels], Logits]:
    # torch.hub keeps what it has downloaded, and weights from URLs are read again: once a variant.
    network = load_model(load.worker.model).module
    mean = torch.tensor(how.mean).view(1, 3, 1, 1)
    std = torch.tensor(how.std).view(1, 3, 1, 1)
    channels_last = load.kind != EAGER

    def normalised(pixels_NHWC: Pixels) -> torch.Tensor:
        pixels_NCHW = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)
        # As decoders and datasets hand tensors on; a permuted NHWC tensor is one in channels_last.
        pixels_NCHW = pixels_NCHW if channels_last else pixels_NCHW.contiguous()
        return pixels_NCHW.float().div_(255).sub_(mean).div_(std)

    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if load.kind in (INT8_DEFAULT, INT8_FUSED):
        example_NCHW = normalised(crops_NHWC[:CALIBRATION_IMAGES])
        network = _quantized(network, example_NCHW, fused=load.kind == INT8_FUSED)

    def predict(pixels_NHWC: Pixels) -> Logits:
        with torch.inference_mode():
            logits_NK: torch.Tensor = network(normalised(pixels_NHWC))
        logits: Logits = logits_NK.numpy()
        return logits

    return predict


def _quantized(network: nn.Module, example_NCHW: torch.Tensor, *, fused: bool) -> nn.Module:
    """Static INT8 as in torch's tutorial of FX graph mode quantization; with `fused`, by oneDNN's own configuration.

    https://pytorch.org/tutorials/prototype/fx_graph_mode_ptq_static.html
    """
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.backend_config import get_onednn_backend_config
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    if fused:
        torch.backends.quantized.engine = "onednn"
    config = get_onednn_backend_config() if fused else None
    mapping = get_default_qconfig_mapping(torch.backends.quantized.engine)
    observed = prepare_fx(network, mapping, (example_NCHW[:1],), backend_config=config)
    observed(example_NCHW)
    converted: nn.Module = convert_fx(observed, backend_config=config)
    return converted


def write_weights(arch: str, file: str) -> None:
    """Weights that mean nothing, the same ones every time, for a network by torchvision's name: speed does not depend
    on what they say."""
    from safetensors.torch import save_file

    from workers.model.torchvision_import import import_torchvision

    torch.manual_seed(0)
    network = import_torchvision().models.get_model(arch, weights=None)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, file)


if __name__ == "__main__":
    write_weights(*sys.argv[1:])
