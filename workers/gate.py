"""Is the INT8 model good enough to ship? A pure decision over the accuracy report, and a table that shows it."""

from __future__ import annotations

from dataclasses import dataclass

from workers.accuracy import AccuracyReport
from workers.contract import GateSpec


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the gate."""

    name: str
    found: str
    threshold: str
    """Empty for a figure that is shown but decides nothing."""
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    passed: bool
    checks: tuple[Check, ...]
    reason: str
    """One line: what failed, and by how much; or that nothing did."""


def decide(report: AccuracyReport, gate: GateSpec, task: str) -> Verdict:
    """Hold the report against the thresholds. `task` is `classify` or `embed`.

    Classes are judged by top-1 agreement, and by true accuracy where labels were given; embeddings by mean cosine.
    NaN or infinity in any row refuses, as does a labels_column that gave no labels.
    """
    checks = [_check("rows with NaN or infinity", str(report.nonfinite_rows), "0", report.nonfinite_rows == 0)]
    if task == "embed":
        passed = report.mean_cosine >= gate.min_cosine
        checks.append(_check("mean cosine similarity", _number(report.mean_cosine), f">= {gate.min_cosine:g}", passed))
    else:
        passed = report.top1_agreement >= gate.min_agreement
        found = _percent(report.top1_agreement)
        checks.append(_check("top-1 agreement", found, f">= {gate.min_agreement:.2%}", passed))
        if gate.labels_column is not None:
            checks.append(_true_accuracy(report, gate))
    failed = [check for check in checks if not check.passed]
    reason = "; ".join(f"{c.name} {c.found}, wanted {c.threshold}" for c in failed)
    return Verdict(passed=not failed, checks=tuple(checks), reason=reason or "every threshold is met")


def table(report: AccuracyReport, gate: GateSpec, task: str) -> str:
    """The decision for a person: every figure, its threshold and whether it passed, in plain text."""
    verdict = decide(report, gate, task)
    lines = [("", "found", "threshold", "")]
    lines += [(c.name, c.found, c.threshold, "pass" if c.passed else "REFUSED") for c in verdict.checks]
    if task != "embed":
        if report.top1_fp32 is not None and report.top1_int8 is not None:
            lines.append(("true top-1, fp32", _percent(report.top1_fp32), "", ""))
            lines.append(("true top-1, int8", _percent(report.top1_int8), "", ""))
        lines.append(("mean cosine similarity", _number(report.mean_cosine), "", ""))
    lines.append(("mean error / fp32 spread", _number(report.logit_error), "", ""))
    lines.append(("greatest error / fp32 spread", _number(report.logit_error_max), "", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    rows = [
        f"  {name:<{widths[0]}}  {found:>{widths[1]}}  {threshold:<{widths[2]}}  {verdict_word}".rstrip()
        for name, found, threshold, verdict_word in lines
    ]
    compared = f"INT8 against fp32 on {report.rows} rows, calibrated on {report.calibration_rows} others"
    if report.shared_rows:
        compared = (
            f"INT8 against fp32 on {report.rows} rows, {report.shared_rows} of them among the "
            f"{report.calibration_rows} calibrated on"
        )
    if report.calibration_bad_rows:
        compared += f"; {report.calibration_bad_rows} rows could not be decoded and were passed over"
    outcome = "passed" if verdict.passed else f"REFUSED: {verdict.reason}"
    return "\n".join([compared, *rows, f"gate {outcome}", *_advice(verdict)])


def _true_accuracy(report: AccuracyReport, gate: GateSpec) -> Check:
    name, threshold = "fall of true top-1", f"<= {gate.max_top1_drop:.2%}"
    if report.top1_fp32 is None or report.top1_int8 is None:
        return _check(name, f"no labels in {gate.labels_column}", threshold, passed=False)
    drop = report.top1_fp32 - report.top1_int8
    # A rounding error of the subtraction must not refuse a fall that is exactly the threshold.
    return _check(name, _percent(drop), threshold, drop <= gate.max_top1_drop + 1e-9)


def _advice(verdict: Verdict) -> list[str]:
    if verdict.passed:
        return []
    return [
        "what to do: calibrate on more, or more typical, images (model.calibration.rows), check that the preprocessing",
        "is what the weights were trained with, loosen the gate on purpose, or score with model.precision: fp32",
    ]


def _check(name: str, found: str, threshold: str, passed: bool) -> Check:
    return Check(name=name, found=found, threshold=threshold, passed=passed)


def _percent(share: float) -> str:
    return f"{share:.2%}"


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.1e}"
