"""An artifact: one serialised network of a bundle, and what must be known to run it."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass

from workers.engines.base import Engine, InputLayout, LayerCounts, SilentFloatError
from workers.model.names import ModelError


class EngineUnusable(RuntimeError):
    """An artifact that cannot be opened here: its library is missing, or refuses it."""


@dataclass(frozen=True)
class EngineKind:
    """What is known of an engine before it is imported."""

    opened_by: str
    """Its class. Imported where an artifact is opened: a worker loads the one engine that it runs, and a manifest is
    read without torch."""
    suffix: str
    """Of its artifacts' files."""
    library: str = "torch"
    """The Python module that runs it."""
    extra: str = ""
    """Of this project, which brings what goes beyond the base installation."""
    to_make: tuple[str, ...] = ()
    """Python modules beyond the base installation that make its artifacts."""


ENGINES = {
    "torch-int8": EngineKind("workers.engines.torchscript:TorchInt8Engine", "torchscript"),
    "torch-float": EngineKind("workers.engines.torch_float:TorchFloatEngine", "torchscript"),
    "torch-pt2e": EngineKind("workers.engines.pt2e:Pt2eEngine", "pt2", extra="pt2e", to_make=("torchao",)),
    "openvino": EngineKind(
        "workers.engines.openvino_int8:OpenVinoEngine",
        "openvino",
        library="openvino",
        extra="openvino",
        to_make=("openvino", "nncf"),
    ),
    "onnxruntime": EngineKind(
        "workers.engines.onnx_int8:OnnxEngine",
        "onnx",
        library="onnxruntime",
        extra="onnx",
        to_make=("onnxruntime", "onnx"),
    ),
}
"""By name."""


@dataclass(frozen=True, kw_only=True)
class WantedArtifact:
    """What makes an artifact one of its own in a bundle."""

    engine: str
    """Which one runs it: `torch-int8`, `torch-pt2e`, `openvino`, `onnxruntime` or `torch-float`."""
    precision: str
    """`int8`, `bf16` or `fp32`."""
    isa: str | None
    """Class of CPU it is valid for (see workers.host.cpu); None where the values do not depend on it."""

    @property
    def name(self) -> str:
        """Unique in a bundle: `torch-int8/x86-vnni`, `torch-float/fp32`."""
        parts = (self.engine, self.precision if self.engine == "torch-float" else "", self.isa or "")
        return "/".join(part for part in parts if part)


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo(WantedArtifact):
    """What the manifest says of an artifact. Plain values, JSON-able."""

    layout: InputLayout
    input_mode: str
    """`uint8` where the first convolution reads pixels as they are, `normalized` where they become floats first."""
    recipe: str
    """`float`, `graph` or `islands`: how the network was made."""
    backend: str | None = None
    """torch.backends.quantized.engine that INT8 weights are packed for."""
    quantized_ops: int = 0
    """INT8 convolutions and linear products in its graph: exactly these must be there."""
    float_ops: int = 0
    """Float convolutions and linear products in its graph: exactly these must be there, too."""
    float_layers: tuple[str, ...] = ()
    """Layers by name that would have become INT8, and stay float because the gate refused them."""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    info: ArtifactInfo
    data: bytes


def open_artifact(artifact: Artifact, threads: int = 1, device: str = "cpu") -> Engine:
    """The engine that runs an artifact, on `threads` threads where it has threads of its own.

    torch's engines use as many as torch is set to. `device` is for float artifacts. Raises EngineUnusable when a
    library that it needs is missing or refuses the artifact, SilentFloatError for an INT8 one whose graph is not as
    stated, ModelError where `device` is a GPU that is not there.
    """
    info = artifact.info
    if info.engine not in ENGINES:
        raise EngineUnusable(
            f"{info.name} is of an engine that this version does not know: bring the worker up to date"
        )
    try:
        opened = unchecked(artifact, threads, device)
        if info.precision == "int8":
            opened.check(LayerCounts(info.quantized_ops, info.float_ops))
        return opened
    except (EngineUnusable, SilentFloatError, ModelError, MemoryError):
        raise
    except ImportError as error:
        extra = ENGINES[info.engine].extra
        raise EngineUnusable(f"{info.name} cannot run here ({error}); pip install 'stint[{extra}]'") from error
    except Exception as error:
        # Each library has its own kinds of errors; to us they mean the same, that this artifact is of no use here.
        raise EngineUnusable(f"{info.name} cannot be opened here: {type(error).__name__}: {error}") from error


def unchecked(artifact: Artifact, threads: int = 1, device: str = "cpu") -> Engine:
    """As open_artifact, whatever layers it executes. Raises what the engine's library does."""
    engine: Engine = pkgutil.resolve_name(ENGINES[artifact.info.engine].opened_by)(
        artifact.data, artifact.info, threads, device
    )
    return engine
