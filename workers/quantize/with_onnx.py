"""Make the ONNX artifact: export the network, quantize it statically on the job's own crops.

Exported by the TorchScript exporter: the newer one (torch.export) writes shape arithmetic into graphs of dynamic batch
and pools by ReduceMean, which then stays float, and takes five to twenty times as long.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from workers.engines.artifact import Artifact, ArtifactInfo
from workers.engines.base import Pixels
from workers.engines.onnx_int8 import INPUT, OUTPUT, OnnxSession, import_onnxruntime, layers
from workers.host.cpu import ARM64, X86_NO_VNNI, X86_VNNI
from workers.model.load import LoadedModel
from workers.quantize.pixel_input import PixelNetwork, calibration_pixels, check_crops, pixel_network
from workers.quantize.quantizer import QuantizeError
from workers.quantize.quiet import quiet

OPSET = 17
"""The first with LayerNormalization as one operator."""

_CALIBRATION_BATCH = 8
_TRANSFORMER_LAYERS = (nn.LayerNorm, nn.MultiheadAttention, nn.RMSNorm)
_PRODUCTS = ["MatMul", "Gemm", "Conv"]


def quantize_onnx(model: LoadedModel, crops_NHWC: Pixels, isa: str) -> Artifact:
    """Calibrate on uint8 crops N by crop by crop by 3 and make the INT8 artifact for CPUs of class `isa`, ARM included.

    Deterministic for the same crops in the same order. Raises QuantizeError where ONNX Runtime is not installed, cannot
    take the network or would not run it in INT8; ValueError for crops of another shape.
    """
    if isa not in (X86_VNNI, X86_NO_VNNI, ARM64):
        raise QuantizeError(f"model.engine: onnxruntime has no INT8 recipe for {isa} CPUs; use precision: fp32")
    check_crops(crops_NHWC, model.preprocess)
    try:
        import_onnxruntime()
        import onnx
    except ImportError as error:
        raise QuantizeError(
            f"model.engine: onnxruntime cannot be used here ({error}); pip install 'stint[onnx]'"
        ) from error
    network = pixel_network(model.module, model.preprocess)
    try:
        data = _quantize(onnx, network, crops_NHWC, isa, model.module)
        int8_ops, float_ops = layers(OnnxSession(data, network.layout, 1).executed)
    except Exception as error:
        raise QuantizeError(
            f"model.engine: onnxruntime cannot make {model.name} INT8 ({type(error).__name__}: {error}); "
            "use engine: torch-int8, or precision: fp32"
        ) from error
    if not int8_ops:
        raise QuantizeError(f"model.engine: onnxruntime runs nothing of {model.name} in INT8; use engine: torch-int8")
    info = ArtifactInfo(
        engine="onnxruntime",
        precision="int8",
        isa=isa,
        layout=network.layout,
        input_mode=network.input_mode,
        recipe="qdq-s8s8" if isa == ARM64 else "qdq-u8s8",
        backend=None,
        quantized_ops=int8_ops,
        float_ops=float_ops,
    )
    return Artifact(info=info, data=data)


def export(network: PixelNetwork, file: str) -> None:
    """Write the float network as an ONNX file of dynamic batch."""
    example = torch.zeros(network.layout.shape(2), dtype=torch.uint8)
    fused_attention = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused kernel has no ONNX form
    try:
        with torch.no_grad():
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
    finally:
        torch.backends.mha.set_fastpath_enabled(fused_attention)


class _Batches:
    """ONNX Runtime's calibration data reader, by shape: `get_next` until None."""

    def __init__(self, batches_NHWC: Iterator[Pixels]) -> None:
        self._batches_NHWC = batches_NHWC

    def get_next(self) -> dict[str, Pixels] | None:
        pixels_NHWC = next(self._batches_NHWC, None)
        return None if pixels_NHWC is None else {INPUT: pixels_NHWC}


def _quantize(onnx: Any, network: PixelNetwork, crops_NHWC: Pixels, isa: str, module: nn.Module) -> bytes:
    """Static INT8: activations per tensor by their extremes, weights per channel and symmetric.

    Without VNNI weights have 7 bits, as in workers.quantize.fx_graph. Percentiles and entropy gave nothing over
    extremes. Logit error ÷ spread of extremes / entropy / 99.999th percentile: digits .010 / .010 / .010, ResNet-18
    .031 / .031 / .031, MobileNetV2 .184 / .184 / .185, the last two with random weights.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    # In transformers only products of weights: softmax, LayerNorm and GELU lose accuracy in INT8.
    transformer = any(isinstance(layer, _TRANSFORMER_LAYERS) for layer in module.modules())
    extra: dict[str, Any] = {}
    if transformer:
        extra |= {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
    with quiet(), tempfile.TemporaryDirectory() as folder:
        plain, simplified, quantized = (str(Path(folder) / name) for name in ("plain", "simplified", "quantized"))
        export(network, plain)
        quant_pre_process(plain, simplified, skip_symbolic_shape=True)
        whole = network.input_mode == "uint8" and isa != ARM64
        if whole:
            pixels = _float_pixels(onnx.load(simplified).graph)
            extra["TensorQuantOverrides"] = {
                pixels: [{"scale": np.array(1, np.float32), "zero_point": np.array(0, np.uint8)}]
            }
        quantize_static(
            simplified,
            quantized,
            _Batches(calibration_pixels(crops_NHWC, network.layout, _CALIBRATION_BATCH)),
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
            _read_pixels_as_they_are(model.graph, pixels)
        data: bytes = model.SerializeToString()
        return data


def _float_pixels(graph: Any) -> str:
    """Name of the tensor in which the pixels have become floats."""
    (cast,) = (node for node in graph.node if node.op_type == "Cast")
    return str(cast.output[0])


def _read_pixels_as_they_are(graph: Any, pixels: str) -> None:
    """Take out the conversion to float and back in front of the first convolution: it multiplies by 1."""
    (cast,) = (node for node in graph.node if pixels in node.output)
    (quantize,) = (node for node in graph.node if pixels in node.input)
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == quantize.output[0]:
                node.input[index] = cast.input[0]
    graph.node.remove(quantize)
    graph.node.remove(cast)
