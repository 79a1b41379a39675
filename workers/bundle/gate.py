"""Is a network good enough to ship? A pure decision over its accuracy report, and a table that shows all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from workers.bundle.accuracy import AccuracyReport
from workers.contract import GateSpec
from workers.counted import counted
from workers.engines.artifact import ArtifactInfo


@dataclass(frozen=True)
class Check:
    """One line of the gate."""

    name: str
    found: str
    threshold: str = ""
    """Empty for a figure that is shown but decides nothing."""
    passed: bool = True


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    passed: bool
    checks: tuple[Check, ...]
    reason: str
    """One line: what failed, and by how much; or that nothing did."""


def decide(report: AccuracyReport, gate: GateSpec, task: str) -> GateDecision:
    """Hold the report against the thresholds. `task` is `classify` or `embed`.

    Classes are judged by top-1 agreement, and by true accuracy where labels were given; embeddings by mean cosine.
    NaN or infinity in any row refuses, as does a labels_column that gave no labels.
    """
    checks = [Check("rows with NaN or infinity", str(report.nonfinite_rows), "0", report.nonfinite_rows == 0)]
    least_cosine: float | None = gate.min_cosine
    if task == "classify":
        least_cosine = None
        checks.append(_at_least(gate.min_agreement, "top-1 agreement", report.top1_agreement, _percent))
        if gate.labels_column is not None:
            checks.append(_true_accuracy(report, gate))
        if report.labelled_rows or gate.min_top1 is not None:
            checks.append(Check("true top-1, fp32", _percent(report.top1_fp32)))
            checks.append(_at_least(gate.min_top1, "true top-1", report.top1, _percent))
    checks.append(_at_least(least_cosine, "mean cosine similarity", report.mean_cosine, _number))
    checks.append(Check("mean error / fp32 spread", _number(report.logit_error)))
    checks.append(Check("greatest error / fp32 spread", _number(report.logit_error_max)))
    failed = [check for check in checks if not check.passed]
    reason = "; ".join(f"{c.name} {c.found}, wanted {c.threshold}" for c in failed)
    return GateDecision(passed=not failed, checks=tuple(checks), reason=reason or "every threshold is met")


def doubt(report: AccuracyReport, classes: int) -> str:
    """Why fp32 itself may be wrong: of its labelled rows it is right on no more than guessing among `classes` would be,
    give or take two standard deviations. Empty where it is better, or the rows are too few to tell."""
    if report.top1_fp32 is None:
        return ""
    chance, rows = 1 / classes, report.labelled_rows
    by_luck = chance + 2 * math.sqrt(chance * (1 - chance) / rows)
    if report.top1_fp32 > by_luck or by_luck >= 1:
        return ""
    return (
        f"fp32 itself is right on {report.top1_fp32:.2%} of {rows} labelled rows, and guessing among {classes} classes "
        f"on {chance:.2%}. Are the labels in the order of the network's classes, counted from 0? Is the preprocessing "
        "that of its training? gate.min_top1 refuses such a network"
    )


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An artifact with its report."""

    info: ArtifactInfo
    report: AccuracyReport


_ADVICE = (
    "what to do: calibrate on more, or more typical, images (model.calibration.rows), let more layers stay float",
    "(model.float_layers), check that the preprocessing is what the weights were trained with, loosen the gate on",
    "purpose, or score with model.precision: bf16 or fp32",
)
_ADVICE_ON_FP32 = (
    "what to do: fp32 itself is refused, so neither calibration nor another precision helps. Check that labels are in",
    "the order of the network's classes, that the preprocessing is what the weights were trained with",
    "(model.preprocess), and the weights; or loosen the gate on purpose",
)
ARTIFACTS_ABREAST = 3
"""Artifacts side by side in the table: as many as fit a line."""
_FLOAT_LAYERS_NAMED = 6


def format_table(judged: Sequence[Judged], gate: GateSpec, task: str, notes: Sequence[str] = ()) -> str:
    """The decisions for a person: every figure, its threshold and whether it passed, an artifact a column.

    `notes` tell of artifacts that are not among them, a line each. At least one artifact is needed.
    """
    decisions = {one.info.name: decide(one.report, gate, task) for one in judged}
    passed = sum(decision.passed for decision in decisions.values())
    blocks = [judged[at : at + ARTIFACTS_ABREAST] for at in range(0, len(judged), ARTIFACTS_ABREAST)]
    lines = [_compared(judged[0].report), *(line for block in blocks for line in _block(block, decisions))]
    for info in (one.info for one in judged if one.info.float_layers):
        names, count = ", ".join(info.float_layers[:_FLOAT_LAYERS_NAMED]), len(info.float_layers)
        more = f", and {count - _FLOAT_LAYERS_NAMED} more" if count > _FLOAT_LAYERS_NAMED else ""
        lines.append(f"left float in {info.name}: {counted(count, 'layer')}: {names}{more}")
    lines += [f"{name} REFUSED: {decision.reason}" for name, decision in decisions.items() if not decision.passed]
    lines += notes
    if not passed:
        itself = all(one.info.precision == "fp32" for one in judged)
        return "\n".join([*lines, "gate REFUSED", *(_ADVICE_ON_FP32 if itself else _ADVICE)])
    return "\n".join([*lines, "gate passed" if passed == len(judged) else f"gate passed by {passed} of {len(judged)}"])


def _block(judged: Sequence[Judged], decisions: dict[str, GateDecision]) -> list[str]:
    rows = [("", *(one.info.name for one in judged), "wanted")]
    for same in zip(*(decisions[one.info.name].checks for one in judged), strict=True):
        found = (check.found if check.passed else f"{check.found} REFUSED" for check in same)
        rows.append((same[0].name, *found, same[0].threshold))
    widths = [max(len(row[column]) for row in rows) for column in range(len(judged) + 2)]
    aligned = ["<", *[">"] * len(judged), "<"]
    cells = ([f"{cell:{side}{width}}" for cell, side, width in zip(row, aligned, widths, strict=True)] for row in rows)
    return [f"  {'  '.join(row)}".rstrip() for row in cells]


def _compared(report: AccuracyReport) -> str:
    compared = f"compared with fp32 on {counted(report.rows, 'row')}"
    if report.shared_rows:
        compared += f", {report.shared_rows} of them among the {report.calibration_rows} calibrated on"
    elif report.calibration_rows:
        compared += f", calibrated on {report.calibration_rows} others"
    if report.calibration_bad_rows:
        compared += f"; {counted(report.calibration_bad_rows, 'row')} could not be decoded and were passed over"
    return compared


def _at_least(least: float | None, name: str, found: float | None, shown: Callable[[float | None], str]) -> Check:
    if least is None:
        return Check(name, shown(found))
    return Check(name, shown(found), f">= {shown(least)}", found is not None and found >= least)


def _true_accuracy(report: AccuracyReport, gate: GateSpec) -> Check:
    name, threshold = "fall of true top-1", f"<= {gate.max_top1_drop:.2%}"
    if report.top1_fp32 is None or report.top1 is None:
        return Check(name, f"no labels in {gate.labels_column}", threshold, passed=False)
    drop = report.top1_fp32 - report.top1
    # A rounding error of the subtraction must not refuse a fall that is exactly the threshold.
    return Check(name, _percent(drop), threshold, drop <= gate.max_top1_drop + 1e-9)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.2%}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.5g}"
