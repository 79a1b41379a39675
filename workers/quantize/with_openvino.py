"""Make the OpenVINO artifact: convert the network in memory, quantize it with NNCF on the job's own crops."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from workers.engines.artifact import Artifact
from workers.engines.base import LayerCounts, Pixels
from workers.engines.openvino_int8 import compiled_layers, import_openvino, pack, properties
from workers.host.cpu import X86_NO_VNNI, X86_VNNI
from workers.model.load import LoadedModel
from workers.quantize.calibration import is_transformer
from workers.quantize.pixel_input import PixelNetwork
from workers.quantize.runtime import full_batches, make_int8


def quantize_openvino(model: LoadedModel, crops_NHWC: Pixels, isa: str) -> Artifact:
    """Calibrate on uint8 crops N by crop by crop by 3 and make the INT8 artifact for CPUs of class `isa`.

    Deterministic for the same crops in the same order. Raises as workers.quantize.runtime.make_int8 does.
    """

    def quantize(network: PixelNetwork) -> tuple[bytes, LayerCounts]:
        openvino = import_openvino()
        import nncf

        shape = network.layout.shape(2)
        converted = openvino.convert_model(
            network.module,
            example_input=torch.zeros(shape, dtype=torch.uint8),
            input=[openvino.PartialShape([-1, *shape[1:]])],
        )
        batches = list(full_batches(crops_NHWC, network.layout, 1))
        quantized = _quantize(nncf, converted, batches, isa, transformer=is_transformer(model.module))
        data = _serialize(openvino, quantized)
        quantized.reshape(list(network.layout.shape(1)))
        return data, compiled_layers(openvino.Core().compile_model(quantized, "CPU", dict(properties(1))))

    return make_int8("openvino", "nncf", model, crops_NHWC, isa, (X86_VNNI, X86_NO_VNNI), quantize)


def _quantize(nncf: Any, converted: Any, batches: list[Pixels], isa: str, *, transformer: bool) -> Any:
    """Static INT8: activations per tensor by their extremes, weights per channel.

    NNCF's defaults (means of each row's extremes, fast bias correction) are further from fp32. Logit error ÷ spread of
    defaults / extremes / extremes and accurate bias correction / extremes without any bias correction: digits
    .086 / .089 / .008 / .008, ResNet-18 .049 / .038 / .029 / .027, MobileNetV2 .183 / .179 / .184 / .183, the last two
    with random weights.
    """
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # Without VNNI sums saturate in 16 bits: half the range of weights, everywhere. With it, none is given away.
    overflow = nncf.OverflowFix.DISABLE if isa == X86_VNNI else nncf.OverflowFix.ENABLE
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
