"""One rung of `stint bench`: a process that holds one variant of the network and measures it whenever it is told to.

Everything below the bundle's own artifact is written here as a user would write it by torch's own tutorials: it is what
the engine is compared with, and nothing of the product runs it. Variants take uint8 pixels like the engine does, so
that making floats of them counts where floats are made.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from workers.contract import Preprocess, WorkerSpec
from workers.host.child import to_parent
from workers.host.cores import THREAD_VARIABLES, thread_environment
from workers.measure.messages import (
    ARTIFACT,
    EAGER,
    INT8_DEFAULT,
    INT8_FUSED,
    AskBatch,
    BatchLap,
    Loaded,
    NotPossible,
    RandomWeights,
    Variant,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from workers.bundle.manifest import Manifest
    from workers.engines.base import Logits, Pixels
    from workers.storage.store import Store

    Predict = Callable[[Pixels], Logits]

IMAGES = 64
"""Different photographs that a process goes round in."""
WARM_UP = 2
"""Batches of a new size that are not measured: kernels are made for it."""


def main() -> None:
    """`python -m workers.measure.bench_measure FD PARENT`: a Variant in, Loaded or NotPossible out; then a BatchLap
    for every AskBatch."""
    pipe = to_parent()
    asked: Variant | RandomWeights = pipe.recv()
    try:
        if isinstance(asked, RandomWeights):
            pipe.send(write_weights(asked))
            return
        _take_cores(asked)
        rung = _Rung(asked)
    except Exception as error:  # noqa: BLE001  (torch's quantization raises anything for a network that it cannot take)
        first_line = (str(error).splitlines() or [""])[0]
        pipe.send(NotPossible(reason=f"{type(error).__name__}: {first_line}"))
        return
    pipe.send(rung.loaded)
    while True:
        try:
            ask: AskBatch = pipe.recv()
        except EOFError:
            return
        pipe.send(rung.measure(ask))


def _take_cores(variant: Variant) -> None:
    """Before torch is imported: OpenMP reads both when its pool is made."""
    if variant.cpus:
        os.sched_setaffinity(0, variant.cpus)
    for name in THREAD_VARIABLES:
        os.environ.pop(name, None)
    if variant.threads is not None:
        os.environ.update(thread_environment(variant.threads))
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"


def write_weights(asked: RandomWeights) -> str:
    """As asked; its path."""
    import torch
    from safetensors.torch import save_file

    from workers.model.torchvision_import import import_torchvision

    torch.manual_seed(0)
    network = import_torchvision().models.get_model(asked.arch, weights=None)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, asked.file)
    return asked.file


class _Rung:
    """The network loaded, and pixels to give it."""

    def __init__(self, variant: Variant) -> None:
        import torch

        from workers.engines.torchscript import deprecations_silenced

        if variant.threads is not None:
            torch.set_num_threads(variant.threads)
        make, how = _makers(variant)
        self._crops_NHWC = _crops(variant.images, how)
        with deprecations_silenced(), torch.no_grad():
            self._predict, self._buffer, what = make(self._crops_NHWC)
        self._batches: dict[int, Pixels] = {}
        self.loaded = Loaded(threads=torch.get_num_threads(), what=what)

    def measure(self, ask: AskBatch) -> BatchLap:
        pixels_NHWC = self._batches.get(ask.batch)
        if pixels_NHWC is None:
            pixels_NHWC = self._batches[ask.batch] = self._filled(ask.batch)
            for _ in range(WARM_UP):
                self._predict(pixels_NHWC)
        images = 0
        began = time.perf_counter()
        while (took_s := time.perf_counter() - began) < ask.seconds:
            self._predict(pixels_NHWC)
            images += ask.batch
        return BatchLap(images=images, seconds=took_s)

    def _filled(self, batch: int) -> Pixels:
        import numpy as np

        full_NHWC, interior_NHWC = self._buffer(batch)
        interior_NHWC[:] = self._crops_NHWC[np.arange(batch) % len(self._crops_NHWC)]
        return full_NHWC


_Made = tuple["Predict", Callable[[int], tuple["Pixels", "Pixels"]], str]
"""What predicts, what makes an empty batch of its pixels (all, and those without the frame), and a few words."""


def _makers(variant: Variant) -> tuple[Callable[[Pixels], _Made], Preprocess]:
    """What makes the variant from pixels N by crop by crop by 3, and how images are made ready for it."""
    from workers.bundle.bundle import read_manifest
    from workers.storage.store import open_store

    worker = variant.worker
    store = open_store(worker.output.uri, single_writer=worker.output.single_writer)
    manifest = read_manifest(store, worker.bundle)
    if manifest is None:
        raise ValueError(f"no bundle {worker.bundle} in {worker.output.uri}")
    if variant.kind == ARTIFACT:
        return lambda _: _artifact(worker, store, manifest), manifest.preprocess
    return lambda crops_NHWC: _float_or_int8(variant, manifest.preprocess, crops_NHWC), manifest.preprocess


def _crops(images: str, how: Preprocess) -> Pixels:
    import numpy as np
    import pyarrow.parquet as pq

    from workers.image.resize import decode_into

    column = pq.ParquetFile(Path(images)).read_row_group(0, columns=["image"]).column(0)
    cells = [cell.as_py() for cell in column[:IMAGES]]
    crops_NHWC = np.empty((len(cells), how.crop_px, how.crop_px, 3), np.uint8)
    for cell, crop_HWC in zip(cells, crops_NHWC, strict=True):
        decode_into(cell, how, crop_HWC)
    return crops_NHWC


def _artifact(worker: WorkerSpec, store: Store, manifest: Manifest) -> _Made:
    """The engine as workers run it: loaded for each size of batch, since it is quickest at the first one it meets."""
    from workers.image.resize import decode_into
    from workers.score.loading import load_best

    loaded = load_best(store, manifest, worker, decode_into)
    engines = {loaded.batch: loaded.engine}

    def buffer(batch: int) -> tuple[Pixels, Pixels]:
        if batch not in engines:
            engines[batch] = load_best(store, manifest, replace(worker, batch=batch), decode_into).engine
        made = engines[batch].buffer(batch)
        return made.full_NHWC, made.interior_NHWC

    def predict(pixels_NHWC: Pixels) -> Logits:
        return engines[len(pixels_NHWC)].predict(pixels_NHWC)

    return predict, buffer, loaded.info.name


def _float_or_int8(variant: Variant, how: Preprocess, crops_NHWC: Pixels) -> _Made:
    import numpy as np
    import torch

    from workers.model.load import load_model
    from workers.storage.filesystems import read_url

    # torch.hub keeps what it has downloaded, and weights from URLs are read again: once a variant.
    network = load_model(variant.model, read_url).module
    mean = torch.tensor(how.mean).view(1, 3, 1, 1)
    std = torch.tensor(how.std).view(1, 3, 1, 1)
    channels_last = variant.kind != EAGER

    def normalised(pixels_NHWC: Pixels) -> torch.Tensor:
        pixels_NCHW = torch.from_numpy(pixels_NHWC).permute(0, 3, 1, 2)
        # As decoders and datasets hand tensors on; a permuted NHWC tensor is one in channels_last.
        pixels_NCHW = pixels_NCHW if channels_last else pixels_NCHW.contiguous()
        return pixels_NCHW.float().div_(255).sub_(mean).div_(std)

    if channels_last:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if variant.kind in (INT8_DEFAULT, INT8_FUSED):
        network = _quantized(network, normalised(crops_NHWC[:16]), fused=variant.kind == INT8_FUSED)

    def predict(pixels_NHWC: Pixels) -> Logits:
        with torch.inference_mode():
            logits_NK: torch.Tensor = network(normalised(pixels_NHWC))
        logits: Logits = logits_NK.numpy()
        return logits

    def buffer(batch: int) -> tuple[Pixels, Pixels]:
        pixels_NHWC = np.empty((batch, *crops_NHWC.shape[1:]), np.uint8)
        return pixels_NHWC, pixels_NHWC

    return predict, buffer, variant.kind


def _quantized(network: nn.Module, example_NCHW: torch.Tensor, *, fused: bool) -> nn.Module:
    """Static INT8 as in torch's tutorial of FX graph mode quantization; with `fused`, by oneDNN's own configuration.

    https://pytorch.org/tutorials/prototype/fx_graph_mode_ptq_static.html
    """
    import torch
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


if __name__ == "__main__":
    main()
