"""Make the ONNX artifact: export the network, quantize it statically on the job's own crops."""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from workers.engines.base import Pixels
from workers.engines.onnx_int8 import INPUT, OUTPUT, import_onnxruntime
from workers.host.cpu import ARM64, X86_NO_VNNI
from workers.quantize.pixel_input import PixelNetwork, full_batches, is_transformer
from workers.quantize.products import attention_unfused

OPSET = 17
"""The first with LayerNormalization as one operator."""

_CALIBRATION_BATCH = 8
_PRODUCTS = ["MatMul", "Gemm", "Conv"]


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


def quantize_onnx(network: PixelNetwork, crops_NHWC: Pixels, isa: str, _batch: int) -> bytes:
    """See workers.quantize.runtime. Static INT8: activations per tensor by their extremes, weights per channel and
    symmetric.

    Without VNNI weights have 7 bits, as in workers.quantize.fx_graph.
    """
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
            _read_pixels_as_they_are(model.graph, pixels)
        data: bytes = model.SerializeToString()
        return data


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
