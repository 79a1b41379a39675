"""INT8 by runtimes that quantize a float network themselves: OpenVINO (by NNCF), ONNX Runtime, and PT2E.

Each does it statically, on the job's own crops. torch.ao's FX quantization, which engine torch-int8 uses, is deprecated
upstream; PT2E (what torch.export sees, quantized by torchao) is its successor.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import fx

from workers.engines.artifact import ENGINES, Artifact, ArtifactInfo, unchecked
from workers.engines.base import Pixels
from workers.engines.onnx_int8 import INPUT, OUTPUT, import_onnxruntime
from workers.engines.openvino_int8 import import_openvino, pack
from workers.engines.pt2e import BATCH_ENTRY
from workers.host.cpu import ARM64, X86_NO_VNNI, X86_VNNI
from workers.model.load import LoadedModel
from workers.quantize.islands import attention_unfused
from workers.quantize.pixel_input import PixelNetwork, full_batches, is_transformer, pixel_network
from workers.quantize.quantizer import QuantizeError

_MadeBy = Callable[[PixelNetwork, Pixels, str, int], bytes]
"""Of the float network, crops to calibrate on, the class of CPU, and the batch where it is compiled in."""

OPSET = 17
"""The first with LayerNormalization as one operator."""

_CALIBRATION_BATCH = 8
_PRODUCTS = ["MatMul", "Gemm", "Conv"]

_INDUCTOR = {
    # Without freezing the code would dequantize and compute in float.
    "freezing": True,
    # Whatever x86 server loads it: see workers.engines.pt2e.
    "cpp.march": "x86-64-v3",
    "cpp.simdlen": 256,
    "cpp.dynamic_threads": True,
}


def _by_nncf(network: PixelNetwork, crops_NHWC: Pixels, isa: str, _batch: int) -> bytes:
    """Activations by their extremes, weights per channel: NNCF's defaults (means of each row's extremes, fast
    bias correction) are further from fp32."""
    openvino = import_openvino()
    import nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    shape = network.layout.shape(2)
    converted = openvino.convert_model(
        network.module,
        example_input=torch.zeros(shape, dtype=torch.uint8),
        input=[openvino.PartialShape([-1, *shape[1:]])],
    )
    batches = list(full_batches(crops_NHWC, network.layout, 1))
    # Without VNNI sums saturate in 16 bits: half the range of weights, everywhere. With it, none is given away.
    overflow = nncf.OverflowFix.DISABLE if isa == X86_VNNI else nncf.OverflowFix.ENABLE
    quantized = nncf.quantize(
        converted,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER if is_transformer(network.module) else None,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            overflow_fix=overflow,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            disable_bias_correction=True,
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.xml"
        openvino.save_model(quantized, graph, compress_to_fp16=False)
        return pack(graph.read_bytes(), graph.with_suffix(".bin").read_bytes())


def export(network: PixelNetwork, file: str) -> None:
    """Write the float network as an ONNX file of dynamic batch."""
    example = torch.zeros(network.layout.shape(2), dtype=torch.uint8)
    with attention_unfused(), torch.no_grad():  # the fused kernel has no ONNX form
        torch.onnx.export(
            network.module,
            (example,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )


def _by_onnxruntime(network: PixelNetwork, crops_NHWC: Pixels, isa: str, _batch: int) -> bytes:
    """Activations per tensor by their extremes, weights per channel and symmetric, of 7 bits without VNNI."""
    import_onnxruntime()
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    extra: dict[str, Any] = {}
    transformer = is_transformer(network.module)
    if transformer:  # only products of weights: softmax, LayerNorm and GELU lose accuracy in INT8
        extra |= {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
    with tempfile.TemporaryDirectory() as folder:
        plain, simplified, quantized = (str(Path(folder) / name) for name in ("plain", "simplified", "quantized"))
        export(network, plain)
        quant_pre_process(plain, simplified, skip_symbolic_shape=True)
        whole = network.input_mode == "uint8" and isa != ARM64
        if whole:
            (cast,) = (node for node in onnx.load(simplified).graph.node if node.op_type == "Cast")
            pixels = str(cast.output[0])  # the tensor in which they have become floats
            extra["TensorQuantOverrides"] = {
                pixels: [{"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}]
            }
        batches = ({INPUT: batch} for batch in full_batches(crops_NHWC, network.layout, _CALIBRATION_BATCH))
        quantize_static(
            simplified,
            quantized,
            SimpleNamespace(get_next=partial(next, batches, None)),  # a calibration data reader
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_PRODUCTS if transformer else None,
            per_channel=True,
            reduce_range=isa == X86_NO_VNNI,  # of weights only
            activation_type=QuantType.QInt8 if isa == ARM64 else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options=extra,
        )
        model = onnx.load(quantized)
        if whole:
            _onnx_reads_pixels_as_they_are(model.graph, pixels)
        data: bytes = model.SerializeToString()
        return data


def _onnx_reads_pixels_as_they_are(graph: Any, pixels: str) -> None:
    """Take out the conversion to float and back in front of the first convolution: it multiplies by 1."""
    (cast,) = (node for node in graph.node if pixels in node.output)
    (quantize,) = (node for node in graph.node if pixels in node.input)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == quantize.output[0]:
                node.input[index] = cast.input[0]
    graph.node.remove(quantize)
    graph.node.remove(cast)


def _by_pt2e(network: PixelNetwork, crops_NHWC: Pixels, isa: str, batch: int) -> bytes:
    """Activations per tensor by histogram, weights per channel and symmetric, of 7 bits without VNNI; compiled ahead of
    time, which takes for ResNet-50 half a minute. Raises QuantizeError without a C++ compiler."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise QuantizeError(
            f"model.engine: torch-pt2e compiles its artifact, and there is no C++ compiler {compiler!r} here; "
            "install g++ where bundles are made (workers need none), or use engine: torch-int8"
        )
    from torch._inductor import aoti_compile_and_package
    from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    config = x86.get_default_x86_inductor_quantization_config()
    low, high = (-128, 127) if isa == X86_VNNI else (-64, 63)
    # The default's least scale is 2^-12, above that of weights that hold the normalisation: they would keep 4 bits.
    observer = PerChannelMinMaxObserver.with_args(eps=float(np.finfo(np.float32).eps))
    weight = replace(config.weight, quant_min=low, quant_max=high, observer_or_fake_quant_ctr=observer)
    example = (torch.zeros(network.layout.shape(batch), dtype=torch.uint8),)
    exported = torch.export.export(network.module, example, strict=True).module()
    observed = prepare_pt2e(exported, x86.X86InductorQuantizer().set_global(replace(config, weight=weight)))
    rows = max(len(crops_NHWC), batch)  # the exported network takes full batches only: too few crops are repeated
    enough_NHWC = crops_NHWC[np.arange(rows) % len(crops_NHWC)]
    for pixels_NHWC in full_batches(enough_NHWC, network.layout, batch):
        observed(torch.from_numpy(pixels_NHWC))
    converted: fx.GraphModule = convert_pt2e(observed)
    if network.input_mode == "uint8":
        _pt2e_reads_pixels_as_they_are(converted)
    program = torch.export.export(converted, example, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        configs = {**_INDUCTOR, "aot_inductor.metadata": {BATCH_ENTRY: str(batch)}}
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
        return path.read_bytes()


def _pt2e_reads_pixels_as_they_are(network: fx.GraphModule) -> None:
    """Take out the conversion to float and back in front of the first convolution, which then reads scale 1."""
    quantize = torch.ops.quantized_decomposed.quantize_per_tensor.default
    dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default
    first = next(node for node in network.graph.nodes if node.target is quantize)
    to_float = first.args[0]
    assert isinstance(to_float, fx.Node)
    first.replace_all_uses_with(to_float.args[0])
    for node in network.graph.nodes:
        if node.target is dequantize and node.args[0] is to_float.args[0]:
            node.args = (node.args[0], 1.0, 0, *node.args[3:])
    network.graph.eliminate_dead_code()
    network.recompile()


_X86 = (X86_VNNI, X86_NO_VNNI)
RUNTIMES: Mapping[str, tuple[_MadeBy, Mapping[str, str]]] = {
    "openvino": (_by_nncf, dict.fromkeys(_X86, "nncf")),
    "onnxruntime": (_by_onnxruntime, {**dict.fromkeys(_X86, "qdq-u8s8"), ARM64: "qdq-s8s8"}),
    "torch-pt2e": (_by_pt2e, dict.fromkeys(_X86, "pt2e")),
}
"""By engine what makes the bytes of its artifact by the runtime's own libraries, and the name of its recipe for each
class of CPU that it has one for."""


def make_int8(engine: str, model: LoadedModel, crops_NHWC: Pixels, isa: str, batch: int) -> Artifact:
    """Calibrate on uint8 crops N by crop by crop by 3 and make an engine's INT8 artifact for CPUs of class `isa`.

    Deterministic for the same crops in the same order.
    Raises QuantizeError where there is no recipe for the class, a library is not installed or cannot take the network,
    or nothing would run in INT8.
    """
    made_by, recipes = RUNTIMES[engine]
    if isa not in recipes:
        instead = "precision: fp32" if engine == "onnxruntime" else "engine: onnxruntime"
        raise QuantizeError(f"model.engine: {engine} has no INT8 recipe for {isa} CPUs; use {instead}")
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
            data = made_by(network, crops_NHWC, isa, batch)
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
