"""INT8 by OpenVINO: runs a model quantized by workers.quantize.runtime, after checking what it compiled to.

An artifact is an uncompressed zip of `model.xml` (the graph) and `model.bin` (its weights); both are read from memory.
"""

from __future__ import annotations

import importlib
import io
import sys
import zipfile
from typing import Any

import numpy as np

from workers.engines.artifact import ArtifactInfo
from workers.engines.base import Engine, LayerCounts, Logits, Pixels

GRAPH, WEIGHTS = "model.xml", "model.bin"

_INT8 = ("i8", "u8")
_CONVOLUTIONS = ("Convolution", "Deconvolution", "FullyConnected")
_PRODUCTS = (*_CONVOLUTIONS, "MatMul")


def import_openvino() -> Any:
    """The openvino module, imported so that it sends nothing and writes nothing into the home folder.

    `import openvino` by itself reports the import to Intel, and keeps an id in ~/intel, unless a consent file there
    says no. It and NNCF do without where their telemetry package cannot be imported, which is what is arranged here,
    for this process only. Raises ImportError.
    """
    if "openvino" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    return importlib.import_module("openvino")


def pack(graph: bytes, weights: bytes) -> bytes:
    """The two files of an OpenVINO model as one blob; equal input gives equal bytes."""
    blob = io.BytesIO()
    with zipfile.ZipFile(blob, "w", zipfile.ZIP_STORED) as container:
        for name, content in ((GRAPH, graph), (WEIGHTS, weights)):
            container.writestr(zipfile.ZipInfo(name), content)
    return blob.getvalue()


class OpenVinoEngine(Engine):
    """Runs an OpenVINO artifact at one batch size at a time: another one is compiled when it comes.

    Fixed shapes were 2 % faster than a dynamic batch (ResNet-50, batch 16) and compile in 0.15 s.
    """

    def __init__(self, data: bytes, info: ArtifactInfo, threads: int = 1, _device: str = "cpu") -> None:
        super().__init__(info.layout)
        self._properties = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # Cores are pinned by workers.host.cores; OpenVINO would count from the node's first core in every worker.
            "ENABLE_CPU_PINNING": False,
            # What is not INT8. OpenVINO's own choice is bf16 where the CPU has it, and other logits on another node.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._core = import_openvino().Core()
        with zipfile.ZipFile(io.BytesIO(data)) as container:
            # The weights stay referenced by the model, which does not copy them.
            self._graph, self._weights = container.read(GRAPH), container.read(WEIGHTS)
        self._batch = 1
        self._request = self._compile(1)

    def _run(self, pixels_NHWC: Pixels) -> Logits:
        if len(pixels_NHWC) != self._batch:
            expected = self.layers
            self._request, self._batch = self._compile(len(pixels_NHWC)), len(pixels_NHWC)
            self.check(expected)
        # Shared input: the runtime reads the pixels where they are. The output is its own memory, so it is copied.
        outputs = self._request.infer([np.ascontiguousarray(pixels_NHWC)], share_inputs=True)
        logits_NK: Logits = np.array(outputs[0], dtype=np.float32)
        return logits_NK

    def _compile(self, batch: int) -> Any:
        model = self._core.read_model(self._graph, self._weights)
        model.reshape(list(self.layout.shape(batch)))
        compiled = self._core.compile_model(model, "CPU", self._properties)
        self.layers = _layers(compiled)
        return compiled.create_infer_request()


def _layers(compiled: Any) -> LayerCounts:
    """The layers of a compiled model.

    Read from the execution graph, which says of each node in which precision it is computed. Attention's products of
    two activations count where they are INT8; in float they are no layer.
    """
    int8 = floats = 0
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        kind, precision = str(info["layerType"].value), str(info["runtimePrecision"].value)
        int8 += kind in _PRODUCTS and precision in _INT8
        floats += kind in _CONVOLUTIONS and precision not in _INT8
    return LayerCounts(int8, floats)
