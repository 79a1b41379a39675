"""How artifacts are made by runtimes that quantize a float network themselves: OpenVINO, ONNX Runtime and PT2E."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import torch

from workers.engines.artifact import Artifact, ArtifactInfo
from workers.engines.base import InputLayout, LayerCounts, Pixels
from workers.engines.choice import NEEDS
from workers.model.load import LoadedModel
from workers.quantize.calibration import calibration_batches, check_crops
from workers.quantize.pixel_input import PixelNetwork, pixel_network
from workers.quantize.quantizer import QuantizeError


def make_int8(
    engine: str,
    recipe: str,
    model: LoadedModel,
    crops_NHWC: Pixels,
    isa: str,
    isas: Collection[str],
    quantize: Callable[[PixelNetwork], tuple[bytes, LayerCounts]],
) -> Artifact:
    """Make the INT8 artifact of an engine that has recipes for the classes of CPU in `isas`.

    `quantize` does it by the runtime's own libraries: the artifact's bytes, and the layers that it executes.
    Raises QuantizeError where the class is another, a library is not installed or cannot take the network, or nothing
    would run in INT8; ValueError for crops that are not uint8 N by crop by crop by 3.
    """
    if isa not in isas:
        instead = "precision: fp32" if engine == "onnxruntime" else "engine: onnxruntime"
        raise QuantizeError(f"model.engine: {engine} has no INT8 recipe for {isa} CPUs; use {instead}")
    check_crops(crops_NHWC, model.preprocess)
    network = pixel_network(model.module, model.preprocess)
    try:
        with quiet(), torch.no_grad():
            data, layers = quantize(network)
    except QuantizeError:
        raise
    except ImportError as error:
        raise QuantizeError(
            f"model.engine: {engine} cannot be used here ({error}); pip install 'stint[{NEEDS[engine].extra}]'"
        ) from error
    except Exception as error:  # libraries have errors of their own, and an export runs the model's own code
        raise QuantizeError(
            f"model.engine: {engine} cannot make {model.name} INT8 ({type(error).__name__}: {error}); "
            "use engine: torch-int8, or precision: fp32"
        ) from error
    if not layers.int8:
        raise QuantizeError(f"model.engine: {engine} runs nothing of {model.name} in INT8; use engine: torch-int8")
    info = ArtifactInfo(
        engine=engine,
        precision="int8",
        isa=isa,
        layout=network.layout,
        input_mode=network.input_mode,
        recipe=recipe,
        backend=None,
        quantized_ops=layers.int8,
        float_ops=layers.floats,
    )
    return Artifact(info=info, data=data)


def full_batches(crops_NHWC: Pixels, layout: InputLayout, batch: int) -> Iterator[Pixels]:
    """The crops in full buffers of one size: `batch` rows, or all where those are fewer. A rest is left out."""
    batch = min(batch, len(crops_NHWC))
    whole_NHWC = crops_NHWC[: len(crops_NHWC) // batch * batch]
    return (pixels_NHWC.numpy() for pixels_NHWC in calibration_batches(whole_NHWC, layout, batch))


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
