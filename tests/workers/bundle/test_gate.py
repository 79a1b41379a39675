"""The accuracy gate: which figure refuses, and the table that says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from workers.bundle.accuracy import AccuracyReport
from workers.bundle.gate import ARTIFACTS_ABREAST, Judged, decide, doubt, format_table
from workers.contract import GateSpec
from workers.engines.artifact import ArtifactInfo
from workers.engines.base import InputLayout

GOOD = AccuracyReport(
    rows=512,
    top1_agreement=0.98,
    logit_error=0.02,
    logit_error_max=0.2,
    mean_cosine=0.999,
    nonfinite_rows=0,
    top1_fp32=0.80,
    top1=0.795,
    labelled_rows=512,
    calibration_rows=256,
)
LABELLED = GateSpec(labels_column="label")


@pytest.mark.parametrize(
    ("changes", "gate", "task", "refused_for"),
    [
        ({}, LABELLED, "classify", None),
        ({}, GateSpec(), "embed", None),
        ({"top1_agreement": 0.97}, LABELLED, "classify", None),
        ({"top1_agreement": 0.9699}, LABELLED, "classify", "top-1 agreement"),
        ({"top1_agreement": 0.1}, LABELLED, "embed", None),
        ({"top1": 0.79}, LABELLED, "classify", None),
        ({"top1": 0.7899}, LABELLED, "classify", "fall of true top-1"),
        ({"top1": 0.1}, GateSpec(), "classify", None),
        ({"top1_fp32": None, "top1": None}, LABELLED, "classify", "no labels in label"),
        ({}, replace(LABELLED, min_top1=0.795), "classify", None),
        ({}, replace(LABELLED, min_top1=0.796), "classify", "true top-1 79.50%, wanted >= 79.60%"),
        ({"top1_fp32": 0.0, "top1": 0.0}, LABELLED, "classify", None),
        ({"mean_cosine": 0.9799}, GateSpec(), "embed", "mean cosine"),
        ({"mean_cosine": 0.1}, GateSpec(), "classify", None),
        ({"nonfinite_rows": 1}, GateSpec(), "classify", "NaN or infinity 1"),
        ({"nonfinite_rows": 1}, GateSpec(), "embed", "NaN or infinity 1"),
        ({"mean_cosine": float("nan")}, GateSpec(), "embed", "mean cosine"),
        ({"top1_agreement": float("nan")}, GateSpec(), "classify", "top-1 agreement"),
    ],
)
def test_gate_refuses_for_the_figures_that_matter_to_the_task(
    changes: dict[str, float], gate: GateSpec, task: str, refused_for: str | None
) -> None:
    verdict = decide(replace(GOOD, **changes), gate, task)  # type: ignore[arg-type]
    assert verdict.passed == (refused_for is None)
    assert refused_for is None or refused_for in verdict.reason


def test_int8_that_is_better_than_fp32_passes() -> None:
    assert decide(replace(GOOD, top1=0.9), LABELLED, "classify").passed


def judged(report: AccuracyReport = GOOD, name: str = "torch-int8/x86-vnni", **more: Any) -> Judged:
    engine, _, isa = name.partition("/")
    layout = InputLayout(crop_px=8)
    info = ArtifactInfo(
        engine=engine, precision="int8", isa=isa, layout=layout, input_mode="uint8", recipe="graph", **more
    )
    return Judged(info=info, report=report)


def test_table_shows_every_figure_its_threshold_and_what_to_do() -> None:
    report = replace(GOOD, top1_agreement=0.5, calibration_bad_rows=3)
    shown = format_table([judged(report)], LABELLED, "classify")
    assert shown.splitlines()[0] == (
        "compared with fp32 on 512 rows, calibrated on 256 others; 3 rows could not be decoded and were passed over"
    )
    (agreement,) = [line for line in shown.splitlines() if line.startswith("  top-1 agreement")]
    assert agreement.split() == ["top-1", "agreement", "50.00%", "REFUSED", ">=", "97.00%"]
    assert "true top-1, fp32" in shown
    assert "80.00%" in shown
    assert "torch-int8/x86-vnni REFUSED: top-1 agreement 50.00%, wanted >= 97.00%\ngate REFUSED\nwhat to do:" in shown
    assert "model.precision: bf16 or fp32" in shown


def test_where_fp32_itself_is_refused_nobody_is_sent_to_calibrate() -> None:
    itself = judged(name="torch-float/fp32")
    itself = replace(itself, info=replace(itself.info, precision="fp32", isa=None))
    shown = format_table([itself], replace(LABELLED, min_top1=0.9), "classify")
    assert "gate REFUSED\nwhat to do: fp32 itself is refused" in shown
    assert "calibrate on more" not in shown


@pytest.mark.parametrize(
    ("top1_fp32", "rows", "classes", "doubted"),
    [
        (0.1, 500, 10, True),
        (0.0, 500, 10, True),
        (0.12, 500, 10, True),  # by chance one in six guesses so well
        (0.2, 500, 10, False),
        (0.8, 500, 2, False),
        (0.0, 12, 1000, True),
        (0.5, 3, 2, False),  # nobody can tell
        (None, 0, 10, False),
    ],
)
def test_fp32_that_is_no_better_than_guessing_is_doubted(
    top1_fp32: float | None, rows: int, classes: int, doubted: bool
) -> None:
    report = replace(GOOD, top1_fp32=top1_fp32, labelled_rows=rows)
    assert ("guessing among" in doubt(report, classes)) == doubted


def test_table_of_a_passed_gate_gives_no_advice() -> None:
    shown = format_table([judged()], GateSpec(), "classify")
    assert shown.endswith("gate passed")
    assert "REFUSED" not in shown
    assert "what to do" not in shown


def test_table_owns_up_to_rows_used_twice() -> None:
    shown = format_table([judged(replace(GOOD, rows=40, calibration_rows=40, shared_rows=40))], GateSpec(), "classify")
    assert shown.startswith("compared with fp32 on 40 rows, 40 of them among the 40 calibrated on")


def test_table_of_what_was_not_calibrated_says_nothing_of_calibration() -> None:
    assert "calibrated" not in format_table([judged(replace(GOOD, calibration_rows=0))], GateSpec(), "classify")


def test_table_shows_an_error_without_bound_in_a_few_characters() -> None:
    shown = format_table([judged(replace(GOOD, logit_error=1.7976931348623157e308))], GateSpec(), "classify")
    assert max(len(line) for line in shown.splitlines()) < 121


def test_each_artifact_has_a_column_and_one_that_passes_is_enough() -> None:
    names = [f"torch-int8/x86-{n}" for n in range(5)]
    bad = replace(GOOD, top1_agreement=0.9)
    shown = format_table([judged(bad if name.endswith("3") else GOOD, name) for name in names], GateSpec(), "classify")
    heads = [line.split() for line in shown.splitlines() if line.split()[-1] == "wanted"]
    assert heads == [[*names[:ARTIFACTS_ABREAST], "wanted"], [*names[ARTIFACTS_ABREAST:], "wanted"]]
    assert max(len(line) for line in shown.splitlines()) < 121
    assert "torch-int8/x86-3 REFUSED: top-1 agreement 90.00%, wanted >= 97.00%" in shown
    assert shown.endswith("gate passed by 4 of 5")


def test_table_names_layers_left_float_and_what_could_not_be_made() -> None:
    left = tuple(f"features.{n}" for n in range(9))
    shown = format_table(
        [judged(float_layers=left)], GateSpec(), "classify", ["openvino/x86-vnni could not be made: why"]
    )
    assert "left float in torch-int8/x86-vnni: 9 layers: features.0, features.1, " in shown
    assert "features.5, and 3 more\n" in shown
    assert "openvino/x86-vnni could not be made: why\ngate passed" in shown
