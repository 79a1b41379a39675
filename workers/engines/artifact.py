"""An artifact: one serialised network of a bundle, and what must be known to run it."""

from __future__ import annotations

from dataclasses import dataclass

from workers.engines.base import Engine, InputLayout, LayerCounts, SilentFloatError
from workers.model.names import ModelError


class EngineUnusable(RuntimeError):
    """An artifact that cannot be opened here: its library is missing, or refuses it."""


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo:
    """What the manifest says of an artifact. Plain values, JSON-able."""

    engine: str
    """Which one runs it: `torch-int8`, `torch-pt2e`, `openvino`, `onnxruntime` or `torch-float`."""
    precision: str
    """`int8`, `bf16` or `fp32`."""
    isa: str | None
    """Class of CPU it is valid for (see workers.host.cpu); None where the values do not depend on it."""
    layout: InputLayout
    input_mode: str
    """`uint8` where the first convolution reads pixels as they are, `normalized` where they become floats first."""
    recipe: str
    """`float`, `graph` or `islands`: how the network was made."""
    backend: str | None
    """torch.backends.quantized.engine that INT8 weights are packed for."""
    quantized_ops: int = 0
    """INT8 convolutions and linear products in its graph: exactly these must be there."""
    float_ops: int = 0
    """Float convolutions and linear products in its graph: exactly these must be there, too."""
    float_layers: tuple[str, ...] = ()
    """Layers by name that would have become INT8, and stay float because the gate refused them."""

    @property
    def name(self) -> str:
        """Unique in a bundle: `torch-int8/x86-vnni`, `torch-float/fp32`."""
        return artifact_name(self.engine, self.precision, self.isa)

    @property
    def layers(self) -> LayerCounts:
        return LayerCounts(self.quantized_ops, self.float_ops)


def artifact_name(engine: str, precision: str, isa: str | None) -> str:
    parts = (engine, precision if engine == "torch-float" else "", isa or "")
    return "/".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    info: ArtifactInfo
    data: bytes


def open_artifact(artifact: Artifact, threads: int = 1, device: str = "cpu") -> Engine:
    """The engine that runs an artifact, on `threads` threads where it has threads of its own.

    torch's engines use as many as torch is set to. `device` is for float artifacts. Raises EngineUnusable when a
    library that it needs is missing or refuses the artifact, SilentFloatError for an INT8 one whose graph is not as
    stated, NoGpu where `device` is a GPU that is not there.
    """
    info = artifact.info
    try:
        return _open(artifact, threads, device)
    except (EngineUnusable, SilentFloatError, ModelError, MemoryError):
        raise
    except ImportError as error:  # which says what to install
        raise EngineUnusable(f"{info.name} cannot run here: {error}") from error
    except Exception as error:
        # Each library has its own kinds of errors; to us they mean the same, that this artifact is of no use here.
        raise EngineUnusable(f"{info.name} cannot be opened here: {type(error).__name__}: {error}") from error


def _open(artifact: Artifact, threads: int, device: str) -> Engine:
    # Each imported where it is opened: a worker loads the one engine it runs, and a manifest is read without torch.
    info, data = artifact.info, artifact.data
    match info.engine:
        case "torch-float":
            from workers.engines.torch_float import TorchFloatEngine

            return TorchFloatEngine(data, info.layout, precision=info.precision, device=device)
        case "torch-int8":
            from workers.engines.torch_int8 import TorchInt8Engine

            assert info.backend is not None, "an archive of packed weights names their backend"
            return TorchInt8Engine(data, info.layout, info.layers, backend=info.backend)
        case "openvino":
            from workers.engines.openvino_int8 import OpenVinoEngine

            return OpenVinoEngine(data, info.layout, info.layers, threads=threads)
        case "onnxruntime":
            from workers.engines.onnx_int8 import OnnxEngine

            return OnnxEngine(data, info.layout, info.layers, threads=threads)
        case "torch-pt2e":
            from workers.engines.pt2e import Pt2eEngine

            return Pt2eEngine(data, info.layout, info.layers)
    raise EngineUnusable(f"{info.name} is of an engine that this version does not know: bring the worker up to date")
