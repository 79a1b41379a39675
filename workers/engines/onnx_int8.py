"""INT8 by ONNX Runtime: runs a model of workers.quantize.runtime, after checking which operators it executes.

An artifact is a plain ONNX file. It is the engine for ARM: there both factors are signed, for the dot-product kernels
that ONNX Runtime has for that (microsoft/onnxruntime pull requests 9902, s8s8 by SDOT, and 9772, symmetric
convolutions). They add in 32 bits, so all 8 bits are in use. On x86 activations are unsigned, because the instruction
multiplies u8 by s8.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from workers.engines.artifact import ArtifactInfo
from workers.engines.base import Engine, LayerCounts, Logits, Pixels

INPUT, OUTPUT = "pixels", "logits"

_INT8 = ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm")
_FLOAT = ("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")
_ERRORS_ONLY = 3


def import_onnxruntime() -> Any:
    """The onnxruntime module, imported so that it sends nothing and writes nothing into the home folder.

    Its official builds report to Microsoft, on Linux too, and keep an id in ~/.cache/Microsoft, unless
    ORT_DISABLE_TELEMETRY is set before the library is loaded (Privacy.md of 1.31). Raises ImportError.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    return importlib.import_module("onnxruntime")


class OnnxEngine(Engine):
    """Runs an ONNX artifact at any batch size."""

    def __init__(self, data: bytes, info: ArtifactInfo, threads: int = 1, _device: str = "cpu") -> None:
        super().__init__(info.layout)
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # ARM's default. Without it x86 leaves more than half of an s8s8 model's convolutions in float, without a word.
        options.add_session_config_entry("session.qdqisint8allowed", "1")
        # Idle threads would spin on the cores that decode the next images: with two threads and a pause of 50 ms after
        # each batch of 16, ResNet-18 took 0.09 s of CPU a batch, and 0.13 s with spinning.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        with tempfile.TemporaryDirectory() as folder:
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder) / "profile")
            self._session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            self._run(self.buffer(1).full_NHWC)
            profile = self._session.end_profiling()
            events = json.loads(Path(profile).read_text(encoding="utf-8"))
        self.executed = Counter(str(event["args"]["op_name"]) for event in events if "op_name" in event.get("args", {}))
        """Kernels by operator: what ran for one row, not what the file says. Products of attention count, too."""
        int8, floats = (sum(self.executed[kind] for kind in kinds) for kinds in (_INT8, _FLOAT))
        self.layers = LayerCounts(int8, floats)

    def _run(self, pixels_NHWC: Pixels) -> Logits:
        logits_NK: Logits = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(pixels_NHWC)})[0]
        return logits_NK
