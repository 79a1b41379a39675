"""The page of a run, `report.html`: the figures of its report.json, for the operator who opens it in the morning.

A section whose figures are missing (embeddings, a run that ended before it scored) says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from jobs.pages.charts import Bar, bars, histogram, over_time
from jobs.pages.page import render
from jobs.progress.format import percent, seconds
from jobs.progress.snapshot import bottleneck, cost_per_million
from jobs.report.report import Report, ending, redacted_report

SECTIONS = (
    ("outcome", "Outcome"),
    ("rows", "Rows"),
    ("throughput", "Throughput"),
    ("workers", "Workers"),
    ("stages", "Stages"),
    ("shards", "Shards"),
    ("predictions", "Predictions"),
    ("accuracy", "Accuracy"),
    ("cost", "Cost"),
    ("failures", "Failures"),
    ("run", "Run"),
)
"""Ids and titles, in the order of the page."""
IDLE_FINE, IDLE_MUCH = 0.05, 0.2
"""Shares of the paid time."""
WORKERS_OPEN = 40
"""A longer table of workers is folded."""
FAILURES_SHOWN = 20
CLASSES_SHOWN = 20
PAIRS_SHOWN = 20
MATRIX_LABELS = 12
"""Up to so many classes the confusion is a matrix."""


def report_page(report: Report) -> str:
    """A section says so where its figures are missing."""
    report = redacted_report(report)
    return render(
        "report.html.j2",
        report=report,
        sections=SECTIONS,
        ending=ending(report),
        rows=_rows(report),
        throughput=_throughput(report),
        workers=_workers(report.workers),
        stages=_stages(report.stage_s),
        shards=_shards(report),
        predictions=_predictions(report),
        accuracy=_accuracy(report),
        cost=_cost(report),
        failures=_failures(report),
    )


def _throughput(report: Report) -> dict[str, Any]:
    rows, step_s = report.throughput.get("rows") or [], report.throughput.get("step_s") or 0
    if len(rows) < 2 or step_s <= 0 or not sum(rows):
        return {"chart": Markup(""), "short": bool(rows)}
    return {
        "chart": over_time(rows, step_s, what="Rows a second over the run"),
        "step_s": step_s,
        "peak": max(rows) / step_s,
    }


def _workers(workers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row a worker, and a row a node."""
    each = sorted(map(_worker, workers), key=lambda worker: (worker["host"], worker["worker"]))
    nodes = groupby(each, lambda worker: str(worker["host"]))
    return {
        "each": each,
        "nodes": [_node(host, list(workers)) for host, workers in nodes],
        "folded": len(each) > WORKERS_OPEN,
    }


def _worker(worker: Mapping[str, Any]) -> dict[str, Any]:
    """As in the report; where its journal could not be read there is nothing of what the worker did."""
    start_s: Mapping[str, float] = worker["start_s"]
    return {
        **dict.fromkeys(("rows", "shards", "rate", "failed_attempts")),
        **worker,
        "cores": worker["plan"]["threads"],
        "cpus": _ranges(worker["affinity"]),
        "start_s": sum(start_s.values()) if start_s else None,
        "start": ", ".join(f"{stage} {seconds(took)}" for stage, took in start_s.items()),
    }


def _node(host: str, workers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def total(name: str) -> float | None:
        known = [worker[name] for worker in workers if worker[name] is not None]
        return sum(known) if known else None

    return {
        "host": host,
        "workers": len(workers),
        **{name: total(name) for name in ("rows", "shards", "rate", "cores", "failed_attempts")},
        **{name: ", ".join(sorted({worker[name] for worker in workers} - {""})) for name in ("engine", "isa")},
    }


def _ranges(cpus: Sequence[int]) -> str:
    """`0-3, 8`."""
    runs = [[cpu for _, cpu in run] for _, run in groupby(enumerate(sorted(cpus)), lambda at: at[1] - at[0])]
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _stages(stage_s: Mapping[str, float]) -> dict[str, Any]:
    """Where the computing threads' time went, and what went on beside them."""
    found = bottleneck(stage_s)
    if not found.stage:
        return {"chart": Markup("")}
    waits_for = "reading" if stage_s.get("read", 0.0) >= stage_s.get("write", 0.0) else "writing"
    titles = {"wait": f"wait, mostly for {waits_for}", "idle": "idle, without a shard"}
    parts = {titles.get(stage, stage): stage_s.get(stage, 0.0) for stage in ("decode", "predict", "wait", "idle")}
    total = sum(parts.values())
    advice = found.describe()
    return {
        "chart": bars(
            [
                Bar(label=stage, value=took, text=f"{took / total:.1%}", before_text=seconds(took))
                for stage, took in parts.items()
            ],
            what="Where the workers' time went",
        ),
        "meaning": f"{advice[:1].upper()}{advice[1:]}.",
        "beside": [(stage, stage_s[stage]) for stage in ("read", "write", "throttled") if stage_s.get(stage)],
    }


def _shards(report: Report) -> dict[str, Any]:
    times = report.shard_times
    if not times:
        return {"chart": Markup(""), "stragglers": report.stragglers}
    edges, counts = times["edges_s"], times["shards"]
    chart = histogram(edges, counts, what="Shards by the time they took", unit="shards", edge=seconds)
    return {**times, "chart": chart, "stragglers": report.stragglers}


def _failures(report: Report) -> dict[str, Any]:
    by_code = [Bar(label=code, value=count, text=f"{count:,}") for code, count in report.retries_by_code.items()]
    return {
        "first": report.failures[:FAILURES_SHOWN],
        "more": len(report.failures[FAILURES_SHOWN:]) + report.failures_left_out,
        "chart": bars(by_code, what="Attempts that failed, by code") if by_code else Markup(""),
    }


def _predictions(report: Report) -> dict[str, Any]:
    """Beside those of the nights before."""
    drift = report.drift
    return {
        "classes": _classes(report.classes, drift.get("classes_before") or {}),
        "classes_in_all": len(report.classes),
        "scores": _scores(report.scores, drift.get("scores_before") or ()),
        "flags": drift.get("flags") or (),
        "nights": len(drift.get("against") or ()),
        "rows_before": drift.get("rows_before", 0),
        "measures": [
            _measure(name, drift[part], drift)
            for name, part in (("predicted classes", "classes"), ("scores", "scores"))
            if drift.get(part)
        ],
        "moved": drift.get("moved") or (),
    }


def _classes(now: Mapping[str, int], before: Mapping[str, int]) -> Markup:
    """The most frequent ones of tonight."""
    total, total_before = sum(now.values()), sum(before.values())
    top = sorted(now.items(), key=lambda pair: (-pair[1], pair[0]))[:CLASSES_SHOWN]
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


def _measure(name: str, distance: Mapping[str, float], drift: Mapping[str, Any]) -> dict[str, Any]:
    if distance["psi"] <= distance["chance"]:
        verdict, tone = "within chance", "good"
    elif distance["psi"] > drift["max_psi"] or distance["js"] > drift["max_js"]:
        verdict, tone = "beyond the threshold", "warn"
    else:
        verdict, tone = "within the thresholds", "good"
    return {**distance, "name": name, "verdict": verdict, "tone": tone}


def _accuracy(report: Report) -> dict[str, Any]:
    """Of INT8 beside fp32."""
    names = (
        "artifact", "rows", "top1_agreement", "mean_cosine", "logit_error", "logit_error_max", "nonfinite_rows", "top1",
        "top1_fp32", "labelled_rows", "calibration_rows", "calibration_bad_rows", "shared_rows",
    )  # fmt: skip
    known = {name: report.accuracy.get(name) for name in names}
    top1, top1_fp32 = known["top1"], known["top1_fp32"]
    return {
        **known,
        "known": bool(known["rows"]),
        "change": None if top1 is None or top1_fp32 is None else top1 - top1_fp32,
        "has_classes": report.task != "embed",  # of which the agreement is a number, too, with no classes behind it
        "matrix": _matrix(report.confusion),
        "confused": [pair for pair in report.confusion if pair[0] != pair[1]][:PAIRS_SHOWN],
        "disagreements": report.disagreements[:PAIRS_SHOWN],
        "disagreements_in_all": sum(rows for _, _, rows in report.disagreements),
    }


def _matrix(confusion: Sequence[tuple[str, str, int]]) -> dict[str, Any] | None:
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


def _rows(report: Report) -> dict[str, Any]:
    """Bad rows by reason, the most frequent first, each with its examples."""
    counts = report.bad_by_code
    examples: dict[str, list[dict[str, Any]]] = {}
    for example in report.bad_examples:
        examples.setdefault(example["code"], []).append(_example(example))
    codes = sorted(counts.keys() | examples.keys(), key=lambda code: (-counts.get(code, 0), code))
    total = sum(counts.values())
    return {
        "total": report.rows_ok + report.rows_bad,
        "reasons": [
            {
                "code": code,
                "rows": counts.get(code),
                "share": counts[code] / total if code in counts and total else None,
                "sample": report.bad_samples.get(code, ""),
                "examples": examples.get(code, []),
            }
            for code in codes
        ],
        "sources": [
            ("Sources that could not be read", [f"{uri}: {why}" for uri, why in report.unreadable.items()]),
            ("Sources that changed since they were scored, left as they are", report.changed),
            ("Sources scored again, because they changed", report.superseded),
        ],
    }


def _example(example: Mapping[str, Any]) -> dict[str, Any]:
    picture = str(example.get("picture") or "")
    return {
        **example,
        "place": f"row group {example['row_group']}, row {example['row']}",
        "picture": picture if picture.startswith("data:image/") else "",
    }


def _cost(report: Report) -> dict[str, Any]:
    cost, images = report.cost, report.rows_scored_here
    share = report.idle_core_hours / report.core_hours if report.core_hours else None
    return {
        "idle_share": share,
        "per_million": None if cost is None or not images else cost_per_million(cost, images),
        "meaning": "" if share is None else _meaning(share),
    }


def _meaning(idle: float) -> str:
    if idle < IDLE_FINE:
        return "Nearly all of the time that was paid for went into images."
    if idle < IDLE_MUCH:
        return "For a part of the time workers waited for data or had no shard, as they do when a run begins and ends."
    return (
        "A large part of the time that was paid for went into waiting. Fewer workers (workers.max), smaller shards "
        "(input.shard_rows) or a deadline (schedule.finish_by), by which the fleet is sized, would cost less."
    )
