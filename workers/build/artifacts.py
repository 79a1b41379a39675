"""The artifacts of a new bundle: each engine's made in its own way, each judged by the gate, and what came of it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from workers.build.sample import Sample, split_rows
from workers.bundle import gate
from workers.bundle.accuracy import AccuracyReport, compare_logits
from workers.bundle.gate import Judged
from workers.contract import BundleRequest
from workers.engines.artifact import Artifact, open_artifact
from workers.engines.base import Pixels, score_crops
from workers.engines.choice import NEEDS, WantedArtifact, installed_to_make, wanted_engines
from workers.model.load import LoadedModel
from workers.quantize.quantizer import QuantizeError, Quantizer, float_artifact


@dataclass
class BundleContents:
    """What a bundle is to hold, and what not."""

    calibrated_on: slice
    """Rows of the sample."""
    fp32: Artifact
    passed: list[tuple[Artifact, AccuracyReport | None]] = field(default_factory=list)
    """In the order in which they were wanted."""
    judged: list[Judged] = field(default_factory=list)
    """Whether they passed or not."""
    failures: list[str] = field(default_factory=list)
    """Artifacts that could not be made, each with the reason."""
    notes: list[str] = field(default_factory=list)
    """For the manifest: what is not in the bundle, and why."""

    @property
    def artifacts(self) -> list[tuple[Artifact, AccuracyReport | None]]:
        """What the bundle gets, the preferred one first."""
        names = [artifact.info.name for artifact, _ in self.passed]
        return self.passed if self.fp32.info.name in names else [*self.passed, (self.fp32, None)]

    @property
    def versions(self) -> dict[str, str]:
        """Of the libraries that the artifacts were made with."""
        engines = {artifact.info.engine for artifact, _ in self.passed}
        libraries = {"torch", "torchvision", *(module for engine in engines for module in NEEDS[engine].to_make)}
        return {name: importlib.metadata.version(name) for name in sorted(libraries)}


def make_artifacts(model: LoadedModel, sample: Sample, request: BundleRequest, isa: str) -> BundleContents:
    """Make what the spec wants on a host of class `isa`, and the fp32 network by which it is judged.

    An artifact that cannot be made is a failure among others. Raises ModelError where that is true of all of them.
    """
    spec = request.model
    # Floats have nothing to calibrate: all rows serve to compare.
    calibrating, comparing = slice(0), slice(min(len(sample), request.gate.rows))
    if spec.precision == "int8":
        calibrating, comparing = split_rows(len(sample), spec.calibration.rows, request.gate.rows)
    fp32 = float_artifact(model)
    contents = BundleContents(calibrated_on=calibrating, fp32=fp32)
    if spec.precision == "fp32" and sample.reference_NHWC is sample.crops_NHWC:
        contents.passed.append((fp32, None))  # nothing in it is an approximation
        return contents
    judge = Judge(fp32, sample, calibrating, comparing, request)
    builder = ArtifactBuilder(model, sample.crops_NHWC[calibrating], judge.accepts, request, fp32)
    errors: list[Exception] = []
    for wanted in _wanted(request, isa, contents):
        try:
            artifact = builder.build(wanted)
            report = judge.report(artifact)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (each library has its own; one that fails leaves the others)
            errors.append(error)
            contents.failures.append(f"{wanted.name} could not be made: {error}")
            continue
        name, decision = artifact.info.name, judge.decide(report)
        contents.judged.append(Judged(name=name, report=report, float_layers=artifact.info.float_layers))
        if decision.passed:
            contents.passed.append((artifact, report))
        else:
            contents.notes.append(f"{name} is refused by the gate: {decision.reason}")
    if errors and not contents.judged:
        raise errors[0] if len(errors) == 1 else QuantizeError("\n".join(contents.failures)) from errors[0]
    contents.notes += [*contents.failures, *builder.notes]
    return contents


def _wanted(request: BundleRequest, isa: str, contents: BundleContents) -> list[WantedArtifact]:
    """What to make. After a maker was lost nothing that `auto` can do without: a library might have taken it down, or
    more memory than there was."""
    spec = request.model
    wanted = wanted_engines(spec.precision, spec.engine, isa, installed_to_make())
    safe = [one for one in wanted if not NEEDS[one.engine].to_make]
    if not (request.without_extras and spec.engine == "auto" and safe):
        return list(wanted)
    contents.failures += [
        f"{one.name} is left out, because a maker of this bundle was lost; model.engine: {one.engine} makes it alone"
        for one in wanted
        if one not in safe
    ]
    return safe


class Judge:
    """Compares artifacts with the fp32 network on the same rows."""

    def __init__(
        self, fp32: Artifact, sample: Sample, calibrating: slice, comparing: slice, request: BundleRequest
    ) -> None:
        self._request = request
        self._crops_NHWC = sample.crops_NHWC[comparing]
        self._labels = None if sample.labels is None else sample.labels[comparing]
        self._reference_NK = score_crops(open_artifact(fp32), sample.reference_NHWC[comparing], request.batch)
        self._rows: dict[str, Any] = {
            "calibration_rows": len(sample.crops_NHWC[calibrating]),
            "calibration_bad_rows": sample.bad_rows,
            "shared_rows": len(sample) if calibrating == comparing else 0,
        }
        self._last: tuple[Artifact, AccuracyReport] | None = None

    def report(self, artifact: Artifact) -> AccuracyReport:
        if self._last is not None and self._last[0] is artifact:
            return self._last[1]  # what a search for float layers has just accepted is not scored again
        engine = open_artifact(artifact)
        logits_NK = score_crops(engine, self._crops_NHWC, self._request.batch)
        report = compare_logits(self._reference_NK, logits_NK, self._labels, task=self._request.model.task)
        report = replace(report, **self._rows)
        self._last = artifact, report
        return report

    def decide(self, report: AccuracyReport) -> gate.GateDecision:
        return gate.decide(report, self._request.gate, self._request.model.task)

    def accepts(self, artifact: Artifact) -> bool:
        return self.decide(self.report(artifact)).passed


class ArtifactBuilder:
    """Each engine's way to an artifact. Those of torch-int8 share one calibration."""

    def __init__(
        self,
        model: LoadedModel,
        crops_NHWC: Pixels,
        accepts: Callable[[Artifact], bool],
        request: BundleRequest,
        fp32: Artifact,
    ) -> None:
        """`accepts` is the gate: layers are left float until it agrees, as many as the request allows."""
        self._model, self._crops_NHWC, self._accepts, self._request = model, crops_NHWC, accepts, request
        self._fp32 = fp32
        self._torch: Quantizer | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self._torch is None else self._torch.notes

    def build(self, wanted: WantedArtifact) -> Artifact:
        """Raises QuantizeError, and what a library of the engine does."""
        model, crops_NHWC, isa = self._model, self._crops_NHWC, wanted.isa or ""
        match wanted.engine:
            case "torch-float":
                return self._fp32 if wanted.precision == "fp32" else float_artifact(model, wanted.precision)
            case "torch-int8":
                self._torch = self._torch or Quantizer(model, crops_NHWC)
                most_float = self._request.model.float_layers
                return self._torch.artifact(isa, accept=self._accepts, most_float=most_float)
            case "openvino":
                from workers.quantize.with_openvino import quantize_openvino

                return quantize_openvino(model, crops_NHWC, isa)
            case "onnxruntime":
                from workers.quantize.with_onnx import quantize_onnx

                return quantize_onnx(model, crops_NHWC, isa)
            case "torch-pt2e":
                from workers.quantize.with_pt2e import quantize_pt2e

                return quantize_pt2e(model, crops_NHWC, isa, self._request.batch)
        raise QuantizeError(f"model.engine: there is no engine {wanted.engine!r}")
