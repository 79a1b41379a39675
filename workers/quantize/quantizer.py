"""Make the artifacts of a bundle: the network in fp32, and in static INT8 by the recipe that suits it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from torch import nn

from workers.engines.artifact import Artifact, open_artifact, unchecked
from workers.engines.base import Engine, LayerCounts, Pixels
from workers.engines.torch_float import DTYPES
from workers.engines.torchscript import deprecations_silenced
from workers.model.load import LoadedModel
from workers.model.names import ModelError
from workers.quantize.float_layers import SENSITIVITY_IMAGES, by_sensitivity, fewest, most_layers
from workers.quantize.fx_graph import GraphCalibration
from workers.quantize.islands import IslandCalibration
from workers.quantize.pixel_input import calibration_batches, is_transformer, normalized

_TRACE_CHECK_ROWS = 3
"""Another batch than the one traced with, so that a batch size frozen into the trace is found."""
_TRACE_TOLERANCE = 0.05
"""Of the logits' standard deviation: far above what folding does to rounding, far below another network."""
_Calibration = GraphCalibration | IslandCalibration


class QuantizeError(ModelError):
    """The network cannot be made INT8, or cannot be serialised."""


class Quantizer:
    """Makes a network's INT8 artifacts, one for each class of CPU, from one calibration.

    Calibrates on uint8 crops N by crop by crop by 3. Deterministic for the same crops in the same order. Changes
    torch.backends.quantized.engine.
    """

    def __init__(self, model: LoadedModel, crops_NHWC: Pixels) -> None:
        self.model, self.crops_NHWC = model, crops_NHWC
        given = (model.module, model.preprocess, crops_NHWC)
        self._recipes: list[tuple[str, Callable[[], _Calibration]]] = [
            ("linear products", cache(partial(IslandCalibration, *given, convolutions=False)))
            if is_transformer(model.module)
            else ("whole graph", cache(partial(GraphCalibration, *given))),
            ("all products", cache(partial(IslandCalibration, *given, convolutions=True))),
        ]
        """The first is the one in use: it is calibrated when it is called first."""
        self.notes: tuple[str, ...] = ()
        """Why a preferred recipe was not taken, or no layer left float, for the report. Complete once all are made."""

    @deprecations_silenced()
    def artifact(
        self, isa: str, *, accept: Callable[[Artifact], bool] | None = None, most_float: float = 0.0
    ) -> Artifact:
        """The network in INT8 for CPUs of class `isa`.

        Should `accept` refuse it, its most sensitive layers stay float: as few as make `accept` agree, at most the
        share `most_float` of them; they are the artifact's `float_layers`. If `accept` agrees to none of these, the
        last of them is returned, with the most layers in float, for the caller to judge once more and report; and where
        the network lets no gradient through, which orders them, the artifact with none.
        `isa` is one of x86. Raises QuantizeError when no recipe fits the network.
        """
        artifact, calibration = self._all_int8(isa)
        most = most_layers(len(calibration.layers), most_float)
        if accept is None or not most or accept(artifact):
            return artifact
        tried: dict[tuple[str, ...], Artifact] = {}

        def accepted(float_layers: tuple[str, ...]) -> bool:
            try:
                tried[float_layers] = self._artifact(calibration, isa, float_layers, artifact.info.float_ops)
            except Exception as error:
                raise QuantizeError(
                    f"model.float_layers: {self.model.name} cannot be made INT8 with {', '.join(float_layers)} in "
                    f"float ({type(error).__name__}: {error}); set it to 0, or use precision: fp32"
                ) from error
            return accept(tried[float_layers])

        try:
            errors = calibration.errors(self.crops_NHWC[:SENSITIVITY_IMAGES], isa)
        except Exception as error:  # noqa: BLE001 - the model's own code, which may forbid or break gradients
            self.notes += (
                "no layer was left float to satisfy the gate, because INT8's error could not be told apart by layers: "
                f"{type(error).__name__}: {error}",
            )
            return artifact
        return tried[fewest(by_sensitivity(errors), most, accepted)]

    def _all_int8(self, isa: str) -> tuple[Artifact, _Calibration]:
        """By the first recipe that does it."""
        while self._recipes:
            name, recipe = self._recipes[0]
            try:
                calibration = recipe()
                return self._artifact(calibration, isa), calibration
            except Exception as error:  # noqa: BLE001 - tracing runs the model's own code, which may raise anything
                self.notes += (f"{name}: {type(error).__name__}: {error}",)
            del self._recipes[0]
        raise QuantizeError(
            f"model.precision: {self.model.name} cannot be made INT8; use precision: fp32. Tried:\n  "
            + "\n  ".join(self.notes)
        )

    def _artifact(
        self, calibration: _Calibration, isa: str, float_layers: tuple[str, ...] = (), others_float: int | None = None
    ) -> Artifact:
        """Raises SilentFloatError unless exactly the calls of these layers are float beyond `others_float` others.

        None stands for 0, or for any number where the recipe leaves others float.
        """
        quantized = calibration.quantized(isa, float_layers)
        artifact = quantized.archived(
            engine="torch-int8",
            precision="int8",
            isa=isa,
            recipe=calibration.recipe,
            backend=calibration.backend,
            float_layers=float_layers,
        )
        engine = unchecked(artifact)
        calls = sum(calibration.layers[name] for name in float_layers)
        int8, floats = engine.layers
        if others_float is None:
            others_float = floats if calibration.others_float else 0
        engine.check(LayerCounts(sum(calibration.layers.values()) - calls, others_float + calls))
        _check_trace(engine, quantized.module, self.crops_NHWC[:_TRACE_CHECK_ROWS])
        return replace(artifact, info=replace(artifact.info, quantized_ops=int8, float_ops=floats))


@deprecations_silenced()
def float_artifact(model: LoadedModel, precision: str = "fp32") -> Artifact:
    """The network in float alone, `fp32` or `bf16`. Raises QuantizeError if it cannot be traced."""
    try:
        # Of the model its weights' memory format alone is changed.
        dtype = DTYPES[precision]
        network = model.module if precision == "fp32" else copy.deepcopy(model.module).to(dtype)
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pixels = normalized(network, model.preprocess, dtype)
        artifact = pixels.archived(engine="torch-float", precision=precision, isa=None, recipe="float")
        noise = np.random.default_rng(0).integers(0, 256, pixels.layout.shape(_TRACE_CHECK_ROWS), dtype=np.uint8)
        _check_trace(open_artifact(artifact), pixels.module, noise)
    except Exception as error:
        raise QuantizeError(
            f"model.arch: {model.name} cannot be traced into an archive ({type(error).__name__}: {error}); its forward "
            "must not branch on the values or the number of images"
        ) from error
    return artifact


def _check_trace(engine: Engine, module: nn.Module, crops_NHWC: Pixels) -> None:
    """Raise RuntimeError if the reloaded archive is not the network it was made from."""
    (pixels_NHWC,) = calibration_batches(crops_NHWC, engine.layout)
    with torch.no_grad():
        expected_NK = module(pixels_NHWC).numpy()
    found_NK = engine.predict(pixels_NHWC.numpy())
    if found_NK.shape != expected_NK.shape:
        raise RuntimeError(f"the archive returns {found_NK.shape} where the network returns {expected_NK.shape}")
    difference = float(np.abs(found_NK - expected_NK).mean())
    if not difference <= _TRACE_TOLERANCE * float(expected_NK.std()) + 1e-5:
        raise RuntimeError(f"the archive's logits differ from the network's by {difference:.3g} on average")
