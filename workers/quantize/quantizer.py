"""Make the artifacts of a bundle: the network in fp32, and in static INT8 by the recipe that suits it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from workers.engines.artifact import Artifact, ArtifactInfo, open_artifact
from workers.engines.base import Engine, InputLayout, LayerCounts, Pixels, score_crops
from workers.engines.torch_float import float_archive, normalized
from workers.engines.torch_int8 import graph_layers
from workers.engines.torchscript import deprecations_silenced, from_archive, to_archive
from workers.host.cpu import X86_NO_VNNI, X86_VNNI
from workers.model.load import LoadedModel
from workers.model.names import ModelError
from workers.quantize.calibration import CalibratedNetwork, QuantizedNetwork, check_crops, is_transformer
from workers.quantize.float_layers import SENSITIVITY_IMAGES, by_sensitivity, fewest, most_layers
from workers.quantize.fx_graph import GraphCalibration
from workers.quantize.islands import IslandCalibration

_TRACE_CHECK_ROWS = 3
"""Another batch than the one traced with, so that a batch size frozen into the trace is found."""
_TRACE_TOLERANCE = 0.05
"""Of the logits' standard deviation: far above what folding does to rounding, far below another network."""


class QuantizeError(ModelError):
    """The network cannot be made INT8, or cannot be serialised."""


class Quantizer:
    """Makes a network's INT8 artifacts, one for each class of CPU, from one calibration.

    Calibrates on uint8 crops N by crop by crop by 3. Deterministic for the same crops in the same order. Changes
    torch.backends.quantized.engine. Raises ValueError for crops of another shape.
    """

    def __init__(self, model: LoadedModel, crops_NHWC: Pixels) -> None:
        check_crops(crops_NHWC, model.preprocess)
        self._model = model
        self._crops_NHWC = crops_NHWC
        given = (model.module, model.preprocess, crops_NHWC)
        self._recipes: list[tuple[str, Callable[[], CalibratedNetwork]]] = [
            ("linear products", partial(IslandCalibration, *given, convolutions=False))
            if is_transformer(model.module)
            else ("whole graph", partial(GraphCalibration, *given)),
            ("all products", partial(IslandCalibration, *given, convolutions=True)),
        ]
        self._calibration: CalibratedNetwork | None = None
        self._failures: list[str] = []

    @property
    def notes(self) -> tuple[str, ...]:
        """Why a preferred recipe was not taken, or no layer left float, for the report. Complete once all are made."""
        return tuple(self._failures)

    def artifact(
        self, isa: str, *, accept: Callable[[Artifact], bool] | None = None, most_float: float = 0.0
    ) -> Artifact:
        """The network in INT8 for CPUs of class `isa`.

        Should `accept` refuse it, its most sensitive layers stay float: as few as make `accept` agree, at most the
        share `most_float` of them; they are the artifact's `float_layers`. If `accept` agrees to none of these, the
        last of them is returned, with the most layers in float, for the caller to judge once more and report; and where
        the network lets no gradient through, which orders them, the artifact with none.
        Raises QuantizeError when no recipe fits the network or the class of CPU.
        """
        if isa not in (X86_VNNI, X86_NO_VNNI):
            raise QuantizeError(
                f"model.precision: there is no INT8 recipe for {isa} CPUs; use precision: fp32, or x86 nodes"
            )
        artifact, calibration = self._all_int8(isa)
        if accept is None or accept(artifact):
            return artifact
        most = most_layers(len(calibration.layers), most_float)
        if not most:
            return artifact
        tried: dict[tuple[str, ...], Artifact] = {}

        def accepted(float_layers: tuple[str, ...]) -> bool:
            tried[float_layers] = self._some_float(calibration, isa, float_layers, artifact.info)
            return accept(tried[float_layers])

        try:
            with deprecations_silenced():
                errors = calibration.errors(self._crops_NHWC[:SENSITIVITY_IMAGES], isa)
        except Exception as error:  # noqa: BLE001 - the model's own code, which may forbid or break gradients
            self._failures.append(
                "no layer was left float to satisfy the gate, because INT8's error could not be told apart by layers: "
                f"{type(error).__name__}: {error}"
            )
            return artifact
        return tried[fewest(by_sensitivity(errors), most, accepted)]

    def _all_int8(self, isa: str) -> tuple[Artifact, CalibratedNetwork]:
        """By the first recipe that does it, which is kept with its calibration."""
        while self._recipes:
            name, recipe = self._recipes[0]
            try:
                with deprecations_silenced():
                    self._calibration = self._calibration or recipe()
                    quantized = self._calibration.quantized(isa)
                expected = LayerCounts(sum(self._calibration.layers.values()), 0)
                return self._artifact(quantized, isa, expected, self._calibration.others_float), self._calibration
            except Exception as error:  # noqa: BLE001 - tracing runs the model's own code, which may raise anything
                self._failures.append(f"{name}: {type(error).__name__}: {error}")
            self._calibration = None
            del self._recipes[0]
        raise QuantizeError(
            f"model.precision: {self._model.name} cannot be made INT8; use precision: fp32. Tried:\n  "
            + "\n  ".join(self._failures)
        )

    def _some_float(
        self, calibration: CalibratedNetwork, isa: str, float_layers: tuple[str, ...], whole: ArtifactInfo
    ) -> Artifact:
        """Raises QuantizeError unless exactly the calls of these layers are float beyond those of the `whole`."""
        calls = sum(calibration.layers[name] for name in float_layers)
        expected = LayerCounts(whole.quantized_ops - calls, whole.float_ops + calls)
        try:
            with deprecations_silenced():
                quantized = calibration.quantized(isa, float_layers)
            return self._artifact(quantized, isa, expected, float_layers=float_layers)
        except Exception as error:
            raise QuantizeError(
                f"model.float_layers: {self._model.name} cannot be made INT8 with {', '.join(float_layers)} in float "
                f"({type(error).__name__}: {error}); set it to 0, or use precision: fp32"
            ) from error

    def _artifact(
        self,
        quantized: QuantizedNetwork,
        isa: str,
        expected: LayerCounts,
        any_floats: bool = False,
        float_layers: tuple[str, ...] = (),
    ) -> Artifact:
        archive = to_archive(quantized.module, quantized.layout.shape(1))
        found = graph_layers(from_archive(archive, quantized.backend))
        if found.int8 != expected.int8 or not (any_floats or found.floats == expected.floats):
            raise RuntimeError(
                f"of its convolutions and linear products {found.int8} became INT8 ({expected.int8} expected) and "
                f"{found.floats} stayed float ({'any number' if any_floats else expected.floats} expected)"
            )
        info = ArtifactInfo(
            engine="torch-int8",
            precision="int8",
            isa=isa,
            layout=quantized.layout,
            input_mode=quantized.input_mode,
            recipe=quantized.recipe,
            backend=quantized.backend,
            quantized_ops=found.int8,
            float_ops=found.floats,
            float_layers=float_layers,
        )
        artifact = Artifact(info=info, data=archive)
        _check_trace(open_artifact(artifact), quantized.module, self._crops_NHWC[:_TRACE_CHECK_ROWS])
        return artifact


def float_artifact(model: LoadedModel, precision: str = "fp32") -> Artifact:
    """The network in float alone, `fp32` or `bf16`. Raises QuantizeError if it cannot be traced."""
    layout = InputLayout(crop_px=model.preprocess.crop_px)
    info = ArtifactInfo(
        engine="torch-float",
        precision=precision,
        isa=None,
        layout=layout,
        input_mode="normalized",
        recipe="float",
        backend=None,
    )
    try:
        artifact = Artifact(info=info, data=float_archive(model.module, model.preprocess, precision))
        noise = np.random.default_rng(0).integers(0, 256, layout.shape(_TRACE_CHECK_ROWS), dtype=np.uint8)
        _check_trace(open_artifact(artifact), normalized(model.module, model.preprocess, precision), noise)
    except Exception as error:
        raise QuantizeError(
            f"model.arch: {model.name} cannot be traced into an archive ({type(error).__name__}: {error}); its forward "
            "must not branch on the values or the number of images"
        ) from error
    return artifact


def _check_trace(engine: Engine, module: nn.Module, crops_NHWC: Pixels) -> None:
    """Raise RuntimeError if the reloaded archive is not the network it was made from."""
    buffer = engine.buffer(len(crops_NHWC))
    buffer.interior_NHWC[:] = crops_NHWC
    with torch.no_grad(), deprecations_silenced():
        expected_NK = module(torch.from_numpy(buffer.full_NHWC)).numpy()
    found_NK = score_crops(engine, crops_NHWC, len(crops_NHWC))
    if found_NK.shape != expected_NK.shape:
        raise RuntimeError(f"the archive returns {found_NK.shape} where the network returns {expected_NK.shape}")
    difference = float(np.abs(found_NK - expected_NK).mean())
    if not difference <= _TRACE_TOLERANCE * float(expected_NK.std()) + 1e-5:
        raise RuntimeError(f"the archive's logits differ from the network's by {difference:.3g} on average")
