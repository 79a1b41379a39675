"""An artifact: one serialised network of a bundle, and what must be known to run it."""

from __future__ import annotations

from dataclasses import dataclass

from workers.engines.base import Engine, InputLayout


@dataclass(frozen=True, kw_only=True)
class ArtifactInfo:
    """What the manifest says of an artifact. Plain values, JSON-able."""

    engine: str
    """Which one runs it: `torch-int8`, `torch-pt2e`, `openvino`, `onnxruntime` or `torch-float`."""
    precision: str
    """`int8`, `bf16` or `fp32`."""
    isa: str | None
    """Class of CPU it is valid for (see workers.cpu); None where the values do not depend on it."""
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
    """Float convolutions and linear products in its graph: no more may be there."""
    float_layers: tuple[str, ...] = ()
    """Layers by name that would have become INT8, and stay float because the gate refused them."""
    threads: int | None = None
    """Threads that it was compiled for; None: any number."""

    @property
    def name(self) -> str:
        """Unique in a bundle: `torch-int8/x86-vnni`, `torch-float/fp32`."""
        parts = (self.engine, self.precision if self.engine == "torch-float" else None, self.isa)
        return "/".join(part for part in parts if part) + (f"/{self.threads}" if self.threads else "")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    info: ArtifactInfo
    data: bytes


def open_artifact(artifact: Artifact) -> Engine:
    """The engine that runs an artifact. Raises SilentFloatError for an INT8 one whose graph is not as stated."""
    info = artifact.info
    # Imported here: a worker loads the one engine it runs, and the manifest can be read without torch.
    if info.engine == "torch-float":
        from workers.engines.torch_float import TorchFloatEngine

        return TorchFloatEngine(artifact.data, info.layout)
    from workers.engines.torch_int8 import TorchInt8Engine

    assert info.backend is not None
    return TorchInt8Engine(
        artifact.data,
        info.layout,
        backend=info.backend,
        quantized_ops=info.quantized_ops,
        float_ops=info.float_ops,
    )
