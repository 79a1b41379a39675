"""The artifacts of a new bundle: each engine's made in its own way, each judged by the gate, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from workers.build.sample import Sample, check_labelled, split_rows
from workers.bundle import gate
from workers.bundle.accuracy import AccuracyReport, compare_logits
from workers.bundle.gate import Judged
from workers.contract import BundleRequest
from workers.engines.artifact import ENGINES, Artifact, WantedArtifact, open_artifact
from workers.engines.base import Engine, Logits, score_crops
from workers.engines.choice import installed_to_make, wanted_engines
from workers.model.load import LoadedModel
from workers.quantize.quantizer import QuantizeError, Quantizer, float_artifact
from workers.quantize.runtime import make_int8


@dataclass
class BundleContents:
    """What a bundle is to hold, and what not."""

    calibrated_on: slice
    """Rows of the sample."""
    artifacts: list[tuple[Artifact, AccuracyReport | None]] = field(default_factory=list)
    """Those that passed, in the order in which they were wanted, and at last the network in fp32; none if none did."""
    judged: list[Judged] = field(default_factory=list)
    """Whether they passed or not."""
    failures: list[str] = field(default_factory=list)
    """Artifacts that could not be made, each with the reason."""
    notes: list[str] = field(default_factory=list)
    """For the manifest: what is not in the bundle, and why."""


def make_artifacts(
    model: LoadedModel, sample: Sample, request: BundleRequest, isa: str, at: Callable[[str], None] = lambda _: None
) -> BundleContents:
    """Make what the spec wants on a host of class `isa`, and the fp32 network by which it is judged; `at` is told each
    step.

    An artifact that cannot be made is a failure among others. Raises ModelError where that is true of all of them.
    """
    spec = request.model
    # Floats have nothing to calibrate: all rows serve to compare.
    calibrating, comparing = slice(0), slice(min(len(sample), request.gate.rows))
    if spec.precision == "int8":
        calibrating, comparing = split_rows(len(sample), spec.calibration.rows, request.gate.rows)
    fp32 = float_artifact(model)
    contents = BundleContents(calibrated_on=calibrating)
    if spec.precision == "fp32" and sample.reference_NHWC is sample.crops_NHWC and sample.labels is None:
        contents.artifacts.append((fp32, None))  # nothing in it is an approximation, nor is known to be wrong
        return contents
    at("calibrating")
    quantizer = Quantizer(model, sample.crops_NHWC[calibrating])
    rows = {
        "calibration_rows": len(sample.rows[calibrating]),
        "shared_rows": len(sample) if calibrating == comparing else 0,
    }
    at("gate: fp32 on the rows to compare")
    judge = Judge(open_artifact(fp32), sample, comparing, request, **rows)
    if not judge.decide(judge.of_itself).passed:  # then no other artifact can pass, however long it is looked for
        contents.judged.append(Judged(info=fp32.info, report=judge.of_itself))
        return contents
    errors: list[Exception] = []
    for wanted in _wanted(request, isa, contents):
        at(f"making {wanted.name}")
        try:
            artifact = build_artifact(wanted, quantizer, fp32, request, judge.accepts)
            at(f"gate: {wanted.name} against fp32")
            report = judge.report(artifact)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  (each library has its own; one that fails leaves the others)
            errors.append(error)
            contents.failures.append(f"{wanted.name} could not be made: {error}")
            continue
        contents.judged.append(Judged(info=artifact.info, report=report))
        decision = judge.decide(report)
        if decision.passed:
            contents.artifacts.append((artifact, report))
        else:
            contents.notes.append(f"{artifact.info.name} is refused by the gate: {decision.reason}")
    if errors and not contents.judged:
        raise errors[0] if len(errors) == 1 else QuantizeError("\n".join(contents.failures)) from errors[0]
    if contents.artifacts and spec.precision != "fp32":
        contents.artifacts.append((fp32, None))
    contents.notes += [*contents.failures, *quantizer.notes]
    return contents


def _wanted(request: BundleRequest, isa: str, contents: BundleContents) -> list[WantedArtifact]:
    """What to make. After a maker was lost nothing that `auto` can do without: a library might have taken it down, or
    more memory than there was."""
    spec = request.model
    wanted = wanted_engines(spec.precision, spec.engine, isa, installed_to_make())
    safe = [one for one in wanted if not ENGINES[one.engine].to_make]
    if not (request.without_extras and spec.engine == "auto" and safe):
        return list(wanted)
    contents.failures += [
        f"{one.name} is left out, because a maker of this bundle was lost; model.engine: {one.engine} makes it alone"
        for one in wanted
        if one not in safe
    ]
    return safe


class Judge:
    """Compares networks with the fp32 one on the same rows."""

    def __init__(self, fp32: Engine, sample: Sample, comparing: slice, request: BundleRequest, **rows: int) -> None:
        """`rows` are calibration_rows and shared_rows, as in AccuracyReport. Raises ModelError without any label."""
        self._request = request
        self._crops_NHWC = sample.crops_NHWC[comparing]
        self._labels = None if sample.labels is None else sample.labels[comparing]
        check_labelled(self._labels, request.gate.labels_column)
        self._reference_NK = score_crops(fp32, sample.reference_NHWC[comparing], request.batch)
        self._rows: dict[str, Any] = {"calibration_bad_rows": sample.bad_rows, **rows}
        self.of_itself = self._compared(self._reference_NK)
        """What there is to say of fp32: true accuracy, rows with NaN."""
        # What a search for float layers has just accepted is not scored again.
        self.report = lru_cache(1)(lambda artifact: self.measured(open_artifact(artifact)))

    def measured(self, engine: Engine) -> AccuracyReport:
        return self._compared(score_crops(engine, self._crops_NHWC, self._request.batch))

    def _compared(self, logits_NK: Logits) -> AccuracyReport:
        report = compare_logits(self._reference_NK, logits_NK, self._labels, task=self._request.model.task)
        return replace(report, **self._rows)

    def decide(self, report: AccuracyReport) -> gate.GateDecision:
        return gate.decide(report, self._request.gate, self._request.model.task)

    def accepts(self, artifact: Artifact) -> bool:
        return self.decide(self.report(artifact)).passed


def build_artifact(
    wanted: WantedArtifact,
    quantizer: Quantizer,
    fp32: Artifact,
    request: BundleRequest,
    accepts: Callable[[Artifact], bool],
) -> Artifact:
    """Each engine's way to an artifact; those of torch-int8 share the calibration of the `quantizer`.

    `accepts` is the gate: layers are left float until it agrees, as many as the request allows. Raises QuantizeError,
    and what a library of the engine does.
    """
    if wanted.engine == "torch-float":
        return fp32 if wanted.precision == "fp32" else float_artifact(quantizer.model, wanted.precision)
    isa = wanted.isa or ""
    if wanted.engine == "torch-int8":
        return quantizer.artifact(isa, accept=accepts, most_float=request.model.float_layers)
    return make_int8(wanted.engine, quantizer.model, quantizer.crops_NHWC, isa, request.batch)
