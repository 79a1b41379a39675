"""TorchScript archives: how a network travels from the process that made it to the workers, and runs there in INT8.

An archive is traced, frozen and self-contained: a worker loads it without the architecture's code, without
torchvision and without quantizing again. It is read by torch's own C++ reader, not by Python's pickle.
"""

from __future__ import annotations

import io
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from workers.engines.artifact import ArtifactInfo
from workers.engines.base import Engine, LayerCounts, Logits, Pixels

_TRACE_BATCH = 2
"""Not 1, which broadcasting and squeezing treat as a special case."""
_FLOAT_LAYERS = ("aten::_convolution", "aten::conv2d", "aten::linear", "aten::addmm")


@contextmanager
def deprecations_silenced() -> Iterator[None]:
    """Silence upstream's notices that torch.ao, TorchScript and quantized tensors are to be replaced.

    The versions in use are pinned and both live behind the engine interface, so the notices say nothing new.
    """
    with warnings.catch_warnings():
        for category, module in ((DeprecationWarning, r"torch\.(jit|ao)\b"), (UserWarning, r"torch\.ao\b")):
            warnings.filterwarnings("ignore", category=category, module=module)
        for message in (
            r"`torch\.jit\.\w+` is deprecated",
            r"torch\.ao\.quantization is deprecated",
            r"torch\.quantize_per_tensor, torch\.quantize_per_channel and other quantized tensor creation",
            r"Default qconfig of oneDNN backend with reduce_range of false",  # the recipe sees to it, by ISA class
            r"must run observer before calling calculate_qparams",  # layers that no row reaches, such as aux heads
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def to_archive(module: nn.Module, input_shape: tuple[int, int, int, int]) -> bytes:
    """Trace, freeze and serialise a network in eval mode that takes uint8 pixels NHWC.

    `input_shape` gives H, W and C; its batch is ignored, and the archive runs at any batch size.
    Raises RuntimeError if the network cannot be traced.
    """
    example = torch.zeros((_TRACE_BATCH, *input_shape[1:]), dtype=torch.uint8)
    with torch.no_grad(), deprecations_silenced(), warnings.catch_warnings():
        # Shape checks of vision transformers become constants of the trace; the shape of an archive is fixed.
        warnings.filterwarnings("ignore", category=torch.jit._trace.TracerWarning)
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        frozen = torch.jit.freeze(traced)
        buffer = io.BytesIO()
        torch.jit.save(frozen, buffer)
    return buffer.getvalue()


def from_archive(archive: bytes, quantized_engine: str | None = None, device: str = "cpu") -> torch.jit.ScriptModule:
    """Load an archive to a device. An INT8 one names the backend of its weights, which is set process-wide."""
    if quantized_engine is not None:
        # Read while the weights are unpacked, and again at every call: one process runs one INT8 backend.
        torch.backends.quantized.engine = quantized_engine
    with deprecations_silenced():
        module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(archive), map_location=device)  # type: ignore[no-untyped-call]
    graph: Any = module.graph
    # Networks that make tensors as they run (masks of Swin's attention) have where they were traced written into their
    # graph as constants; `map_location` moves weights only.
    for node in graph.findAllNodes("prim::Constant") if device != "cpu" else ():
        if str(node.output().type()) == "Device":
            node.s_("value", device)
    return module


def operators(module: torch.jit.ScriptModule) -> Counter[str]:
    """How often each operator occurs in the frozen graph, e.g. `quantized::conv2d_relu` 33."""
    return Counter(node.kind() for node in module.inlined_graph.nodes())


class TorchInt8Engine(Engine):
    """Runs an INT8 archive. Quickest in batches of the size that it is given first.

    Each packed weight keeps the oneDNN primitive of its first call, and makes one anew for every call in another shape:
    a sixteenth of MobileNetV2's time (`python -m tests.benchmarks.bench_engines --first-batch`).
    """

    fewer_floats = False

    def __init__(self, archive: bytes, info: ArtifactInfo, _threads: int = 1, _device: str = "cpu") -> None:
        super().__init__(info.layout)
        self._module = from_archive(archive, quantized_engine=info.backend)
        counts = operators(self._module)
        # Attention's products of two activations are no layers where they stay float.
        self.layers = LayerCounts(
            int8=sum(n for kind, n in counts.items() if kind.startswith(("quantized::conv", "quantized::linear"))),
            floats=sum(counts[kind] for kind in _FLOAT_LAYERS),
        )

    def _run(self, pixels_NHWC: Pixels) -> Logits:
        with torch.inference_mode():
            logits_NK: torch.Tensor = self._module(torch.from_numpy(pixels_NHWC))
        return logits_NK.numpy()
