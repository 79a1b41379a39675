"""What a run's page shows of the model: its predictions beside those of the nights before, and INT8 beside fp32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from jobs.pages.charts import Bar, bars, histogram
from jobs.progress.readable import percent

CLASSES_SHOWN = 20
PAIRS_SHOWN = 20
MATRIX_LABELS = 12
"""Up to so many classes the confusion is a matrix."""

Pairs = Sequence[tuple[str, str, int]]


def predictions(report: Mapping[str, Any]) -> dict[str, Any]:
    drift: Mapping[str, Any] = report["drift"]
    classes: Mapping[str, int] = report["classes"]
    before: Mapping[str, int] = drift.get("classes_before") or {}
    return {
        "classes": _classes(classes, before),
        "classes_in_all": len(classes),
        "scores": _scores(report["scores"], drift.get("scores_before") or ()),
        "flags": drift.get("flags") or (),
        "nights": len(drift.get("against") or ()),
        "rows_before": drift.get("rows_before", 0),
        "measures": [
            _measure(name, drift[part], drift)
            for name, part in (("predicted classes", "classes"), ("scores", "scores"))
            if drift.get(part)
        ],
        "moved": [
            {name: it.get(name) for name in ("label", "share", "share_before")} for it in drift.get("moved") or ()
        ],
    }


def _classes(now: Mapping[str, int], before: Mapping[str, int]) -> Markup:
    """The most frequent ones of tonight."""
    total, total_before = sum(now.values()), sum(before.values())
    top = sorted(now.items(), key=lambda it: (-it[1], it[0]))[:CLASSES_SHOWN]
    if not total:
        return Markup("")
    return bars(
        [
            Bar(
                label=label,
                value=rows / total,
                text=percent(rows / total),
                before=before.get(label, 0) / total_before if total_before else None,
                before_text=f"before {percent(before.get(label, 0) / total_before)}" if total_before else f"{rows:,}",
            )
            for label, rows in top
        ],
        what="Predicted classes as shares of all predictions",
    )


def _scores(now: Sequence[int], before: Sequence[int]) -> Markup:
    if not sum(now):
        return Markup("")
    compared = before if len(before) == len(now) and sum(before) > 0 else ()
    return histogram(
        [at / len(now) for at in range(len(now) + 1)],
        now,
        compared,
        what="Predictions by score",
        unit="share of predictions, by score" if compared else "predictions, by score",
        edge=lambda value: f"{value:.3g}",
    )


def _measure(name: str, told: Mapping[str, float], drift: Mapping[str, Any]) -> dict[str, Any]:
    psi, js, chance = (told.get(part, 0.0) for part in ("psi", "js", "chance"))
    beyond = psi > drift.get("max_psi", 0.0) or js > drift.get("max_js", 0.0)
    if psi <= chance:
        verdict, tone = "within chance", "good"
    elif beyond:
        verdict, tone = "beyond the threshold", "warn"
    else:
        verdict, tone = "within the thresholds", "good"
    return {"name": name, "psi": psi, "js": js, "chance": chance, "verdict": verdict, "tone": tone}


def accuracy(report: Mapping[str, Any]) -> dict[str, Any]:
    told: Mapping[str, Any] = report["accuracy"]
    top1, top1_fp32 = told.get("top1"), told.get("top1_fp32")
    confusion: Pairs = report["confusion"]
    names = (
        "artifact", "rows", "top1_agreement", "mean_cosine", "logit_error", "logit_error_max", "nonfinite_rows", "top1",
        "top1_fp32", "labelled_rows", "calibration_rows", "calibration_bad_rows", "shared_rows",
    )  # fmt: skip
    return {
        **{name: told.get(name) for name in names},
        "known": bool(told.get("rows")),
        "change": None if top1 is None or top1_fp32 is None else top1 - top1_fp32,
        "has_classes": report["task"] != "embed",  # of which the agreement is a number, too, with no classes behind it
        "matrix": _matrix(confusion),
        "confused": [pair for pair in confusion if pair[0] != pair[1]][:PAIRS_SHOWN],
        "disagreements": report["disagreements"][:PAIRS_SHOWN],
        "disagreements_in_all": sum(rows for _, _, rows in report["disagreements"]),
    }


def _matrix(confusion: Pairs) -> dict[str, Any] | None:
    """Rows by true label, each cell with its share of the true label's rows; None of too many labels, or of errors
    alone."""
    labels = sorted({label for pair in confusion for label in pair[:2]}, key=lambda label: (len(label), label))
    if not 0 < len(labels) <= MATRIX_LABELS or not any(true == said for true, said, _ in confusion):
        return None
    counts = {(true, said): rows for true, said, rows in confusion}
    lines = []
    for true in labels:
        total = sum(counts.get((true, said), 0) for said in labels)
        cells = [{"rows": (rows := counts.get((true, said), 0)), "right": true == said, "share": rows / max(1, total)}
                 for said in labels]  # fmt: skip
        lines.append({"label": true, "total": total, "cells": cells})
    return {"labels": labels, "lines": lines}
