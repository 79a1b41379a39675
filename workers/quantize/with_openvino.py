"""Make the OpenVINO artifact: convert the network in memory, quantize it with NNCF on the job's own crops."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workers.engines.artifact import Artifact, ArtifactInfo
from workers.engines.base import Pixels
from workers.engines.openvino_int8 import import_openvino, layers, pack, properties
from workers.host.cpu import X86_NO_VNNI, X86_VNNI
from workers.model.load import LoadedModel
from workers.quantize.pixel_input import PixelNetwork, calibration_pixels, check_crops, pixel_network
from workers.quantize.quantizer import QuantizeError
from workers.quantize.quiet import quiet

_TRANSFORMER_LAYERS = (nn.LayerNorm, nn.MultiheadAttention, nn.RMSNorm)


def quantize_openvino(model: LoadedModel, crops_NHWC: Pixels, isa: str) -> Artifact:
    """Calibrate on uint8 crops N by crop by crop by 3 and make the INT8 artifact for CPUs of class `isa`.

    Deterministic for the same crops in the same order. Raises QuantizeError where OpenVINO or NNCF is not installed,
    cannot take the network or would not run it in INT8; ValueError for crops of another shape.
    """
    if isa not in (X86_VNNI, X86_NO_VNNI):
        raise QuantizeError(f"model.engine: openvino has no INT8 recipe for {isa} CPUs; use engine: onnxruntime")
    check_crops(crops_NHWC, model.preprocess)
    try:
        openvino = import_openvino()
        with quiet():
            import nncf
    except ImportError as error:
        raise QuantizeError(
            f"model.engine: openvino cannot be used here ({error}); pip install 'stint[openvino]'"
        ) from error
    network = pixel_network(model.module, model.preprocess)
    try:
        converted = _convert(openvino, network)
        quantized = _quantize(nncf, converted, network, crops_NHWC, isa, model.module)
        data = _serialize(openvino, quantized)
        quantized.reshape(list(network.layout.shape(1)))
        int8_ops, float_ops = layers(openvino.Core().compile_model(quantized, "CPU", dict(properties(1))))
    except Exception as error:
        raise QuantizeError(
            f"model.engine: openvino cannot make {model.name} INT8 ({type(error).__name__}: {error}); "
            "use engine: torch-int8, or precision: fp32"
        ) from error
    if not int8_ops:
        raise QuantizeError(f"model.engine: openvino runs nothing of {model.name} in INT8; use engine: torch-int8")
    info = ArtifactInfo(
        engine="openvino",
        precision="int8",
        isa=isa,
        layout=network.layout,
        input_mode=network.input_mode,
        recipe="nncf",
        backend=None,
        quantized_ops=int8_ops,
        float_ops=float_ops,
    )
    return Artifact(info=info, data=data)


def _convert(openvino: Any, network: PixelNetwork) -> Any:
    """The float network as an OpenVINO model of dynamic batch."""
    shape = network.layout.shape(2)
    example = torch.zeros(shape, dtype=torch.uint8)
    with torch.no_grad(), quiet():
        return openvino.convert_model(
            network.module, example_input=example, input=[openvino.PartialShape([-1, *shape[1:]])]
        )


def _quantize(nncf: Any, converted: Any, network: PixelNetwork, crops_NHWC: Pixels, isa: str, module: nn.Module) -> Any:
    """Static INT8: activations per tensor by their extremes, weights per channel.

    NNCF's defaults (means of each row's extremes, fast bias correction) are further from fp32. Logit error ÷ spread of
    defaults / extremes / extremes and accurate bias correction / extremes without any bias correction: digits
    .086 / .089 / .008 / .008, ResNet-18 .049 / .038 / .029 / .027, MobileNetV2 .183 / .179 / .184 / .183, the last two
    with random weights.
    """
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    transformer = any(isinstance(layer, _TRANSFORMER_LAYERS) for layer in module.modules())
    # Without VNNI sums saturate in 16 bits: half the range of weights, everywhere. With it, none is given away.
    overflow = nncf.OverflowFix.DISABLE if isa == X86_VNNI else nncf.OverflowFix.ENABLE
    batches = list(calibration_pixels(crops_NHWC, network.layout, 1))
    with quiet():
        return nncf.quantize(
            converted,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if transformer else None,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                overflow_fix=overflow,
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                disable_bias_correction=True,
            ),
        )


def _serialize(openvino: Any, model: Any) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        graph = Path(folder) / "model.xml"
        openvino.save_model(model, graph, compress_to_fp16=False)
        return pack(graph.read_bytes(), graph.with_suffix(".bin").read_bytes())
