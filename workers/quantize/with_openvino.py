"""Make the OpenVINO artifact: convert the network in memory, quantize it with NNCF on the job's own crops."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from workers.engines.base import Pixels
from workers.engines.openvino_int8 import import_openvino, pack
from workers.host.cpu import X86_VNNI
from workers.quantize.pixel_input import PixelNetwork, full_batches, is_transformer


def quantize_openvino(network: PixelNetwork, crops_NHWC: Pixels, isa: str, _batch: int) -> bytes:
    """See workers.quantize.runtime. Static INT8: activations per tensor by their extremes, weights per channel.

    NNCF's defaults (means of each row's extremes, fast bias correction) are further from fp32.
    """
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
