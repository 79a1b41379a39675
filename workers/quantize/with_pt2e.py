"""Make the PT2E artifact: quantize what torch.export sees with torchao, and compile it ahead of time.

torch.ao's FX quantization, which engine torch-int8 uses, is deprecated upstream; this is its successor.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import fx

from workers.engines.base import Pixels
from workers.engines.pt2e import BATCH_ENTRY
from workers.host.cpu import X86_VNNI
from workers.quantize.pixel_input import PixelNetwork, full_batches
from workers.quantize.quantizer import QuantizeError

_INDUCTOR = {
    # Without freezing the code would dequantize and compute in float.
    "freezing": True,
    # Whatever x86 server loads it: see workers.engines.pt2e.
    "cpp.march": "x86-64-v3",
    "cpp.simdlen": 256,
    "cpp.dynamic_threads": True,
}


def quantize_pt2e(network: PixelNetwork, crops_NHWC: Pixels, isa: str, batch: int) -> bytes:
    """See workers.quantize.runtime. Takes a C++ compiler and, for ResNet-50, half a minute.

    Static INT8: activations per tensor by histogram, weights per channel and symmetric, 7 bits without VNNI. Raises
    QuantizeError without a compiler.
    """
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
        _read_pixels_as_they_are(converted)
    program = torch.export.export(converted, example, strict=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        configs = {**_INDUCTOR, "aot_inductor.metadata": {BATCH_ENTRY: str(batch)}}
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
        return path.read_bytes()


def _read_pixels_as_they_are(network: fx.GraphModule) -> None:
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
