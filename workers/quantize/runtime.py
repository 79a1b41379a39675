"""How artifacts are made by runtimes that quantize a float network themselves: OpenVINO, ONNX Runtime and PT2E."""

from __future__ import annotations

import contextlib
import io
import logging
import pkgutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from workers.engines.artifact import ENGINES, Artifact, ArtifactInfo, unchecked
from workers.engines.base import Pixels
from workers.host.cpu import ARM64, X86_NO_VNNI, X86_VNNI
from workers.model.load import LoadedModel
from workers.quantize.pixel_input import check_crops, pixel_network
from workers.quantize.quantizer import QuantizeError

_X86 = (X86_VNNI, X86_NO_VNNI)
_RUNTIMES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "openvino": ("workers.quantize.with_openvino:quantize_openvino", dict.fromkeys(_X86, "nncf")),
    "onnxruntime": (
        "workers.quantize.with_onnx:quantize_onnx",
        {**dict.fromkeys(_X86, "qdq-u8s8"), ARM64: "qdq-s8s8"},
    ),
    "torch-pt2e": ("workers.quantize.with_pt2e:quantize_pt2e", dict.fromkeys(_X86, "pt2e")),
}
"""By engine what makes the bytes of its artifact by the runtime's own libraries, and the name of its recipe for each
class of CPU that it has one for."""


def make_int8(engine: str, model: LoadedModel, crops_NHWC: Pixels, isa: str, batch: int) -> Artifact:
    """Calibrate on uint8 crops N by crop by crop by 3 and make an engine's INT8 artifact for CPUs of class `isa`.

    `batch` is compiled in where the engine has none but fixed ones. Deterministic for the same crops in the same order.
    Raises QuantizeError where there is no recipe for the class, a library is not installed or cannot take the network,
    or nothing would run in INT8; ValueError for crops of another shape.
    """
    made_by, recipes = _RUNTIMES[engine]
    if isa not in recipes:
        instead = "precision: fp32" if engine == "onnxruntime" else "engine: onnxruntime"
        raise QuantizeError(f"model.engine: {engine} has no INT8 recipe for {isa} CPUs; use {instead}")
    check_crops(crops_NHWC, model.preprocess)
    network = pixel_network(model.module, model.preprocess)
    info = ArtifactInfo(
        engine=engine,
        precision="int8",
        isa=isa,
        layout=network.layout,
        input_mode=network.input_mode,
        recipe=recipes[isa],
    )
    try:
        with quiet(), torch.no_grad():
            data = pkgutil.resolve_name(made_by)(network, crops_NHWC, isa, batch)
            layers = unchecked(Artifact(info=info, data=data)).layers
    except QuantizeError:
        raise
    except ImportError as error:
        raise QuantizeError(
            f"model.engine: {engine} cannot be used here ({error}); pip install 'stint[{ENGINES[engine].extra}]'"
        ) from error
    except Exception as error:  # libraries have errors of their own, and an export runs the model's own code
        raise QuantizeError(
            f"model.engine: {engine} cannot make {model.name} INT8 ({type(error).__name__}: {error}); "
            "use engine: torch-int8, or precision: fp32"
        ) from error
    if not layers.int8:
        raise QuantizeError(f"model.engine: {engine} runs nothing of {model.name} in INT8; use engine: torch-int8")
    return Artifact(info=replace(info, quantized_ops=layers.int8, float_ops=layers.floats), data=data)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what is printed, warned or logged below an error: progress bars and notices that nobody can act on.

    Logging is as before at the end: OpenVINO's converter leaves the root logger at ERROR, which would swallow our
    warnings.
    """
    before, root = logging.root.manager.disable, logging.getLogger()
    level, filters, handlers = root.level, list(root.filters), list(root.handlers)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
            root.setLevel(level)
            root.filters[:], root.handlers[:] = filters, handlers
