"""The page of a run, `report.html`: the figures of its report.json, for the operator who opens it in the morning.

A section whose figures are missing (an older report, embeddings, a run that ended before it scored) says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from markupsafe import Markup

from jobs.pages.charts import Bar, bars, histogram, over_time
from jobs.pages.page import render
from jobs.progress.format import percent, seconds
from jobs.progress.snapshot import bottleneck
from jobs.report.report import Report, ending
from workers.redaction import redacted_values

# ----------------------------------------------------------------------------------------------------
# What a run's page shows of the work itself: throughput, workers, stages, shards, and attempts that failed.

WORKERS_OPEN = 40
"""A longer table of workers is folded."""
FAILURES_SHOWN = 20


def throughput(report: Mapping[str, Any]) -> dict[str, Any]:
    told = report["throughput"]
    rows, step_s = told.get("rows") or [], told.get("step_s") or 0
    if len(rows) < 2 or step_s <= 0 or not sum(rows):
        return {"chart": Markup(""), "short": bool(rows)}
    return {
        "chart": over_time(rows, step_s, what="Rows a second over the run"),
        "step_s": step_s,
        "peak": max(rows) / step_s,
    }


def workers(told: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A row a worker, and a row a node."""
    each = sorted((_worker(it) for it in told), key=lambda it: (it["host"], it["worker"]))
    return {"each": each, "nodes": [_node(host, list(of)) for host, of in groupby(each, lambda it: it["host"])],
            "folded": len(each) > WORKERS_OPEN}  # fmt: skip


def _worker(it: Mapping[str, Any]) -> dict[str, Any]:
    plan = it.get("plan") or {}
    start_s: Mapping[str, float] = it.get("start_s") or {}
    return {
        "worker": it.get("worker", 0),
        "host": str(it.get("host") or ""),
        "rows": it.get("rows"),
        "shards": it.get("shards"),
        "rate": it.get("rate"),
        "failed": it.get("failed_attempts"),
        "engine": str(it.get("engine") or ""),
        "batch": it.get("batch"),
        "isa": str(it.get("isa") or ""),
        "cores": plan.get("threads"),
        "cpus": _ranges(it.get("affinity") or ()),
        "torch_threads": it.get("torch_threads"),
        "start_s": sum(start_s.values()) if start_s else None,
        "start": ", ".join(f"{stage} {seconds(took)}" for stage, took in start_s.items()),
        "notes": it.get("notes") or (),
    }


def _node(host: str, on_it: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def total(name: str) -> float | None:
        known = [it[name] for it in on_it if it[name] is not None]
        return sum(known) if known else None

    def kinds(name: str) -> str:
        return ", ".join(sorted({it[name] for it in on_it} - {""}))

    return {
        "host": host,
        "workers": len(on_it),
        **{name: total(name) for name in ("rows", "shards", "rate", "cores", "failed")},
        **{name: kinds(name) for name in ("engine", "isa")},
    }


def _ranges(cpus: Sequence[int]) -> str:
    """`0-3, 8`."""
    runs = [[cpu for _, cpu in run] for _, run in groupby(enumerate(sorted(cpus)), lambda it: it[1] - it[0])]
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def stages(stage_s: Mapping[str, float]) -> dict[str, Any]:
    """Where the computing threads' time went, and what went on beside them."""
    found = bottleneck(stage_s)
    if not found.stage:
        return {"chart": Markup("")}
    waits_for = "reading" if stage_s.get("read", 0.0) >= stage_s.get("write", 0.0) else "writing"
    parts = {
        "decode": stage_s.get("decode", 0.0),
        "predict": stage_s.get("predict", 0.0),
        f"wait, mostly for {waits_for}": stage_s.get("wait", 0.0),
        "idle, without a shard": stage_s.get("idle", 0.0),
    }
    total = sum(parts.values())
    told = found.told()
    return {
        "chart": bars(
            [
                Bar(label=stage, value=took, text=f"{took / total:.1%}", before_text=seconds(took))
                for stage, took in parts.items()
            ],
            what="Where the workers' time went",
        ),
        "meaning": told[:1].upper() + told[1:] + ".",
        "beside": [(stage, stage_s[stage]) for stage in ("read", "write", "throttled") if stage_s.get(stage)],
    }


def shards(report: Mapping[str, Any]) -> dict[str, Any]:
    told = report["shard_times"]
    edges, counts = told.get("edges_s") or [], told.get("shards") or []
    chart = Markup("")
    if counts and len(edges) == len(counts) + 1:
        chart = histogram(edges, counts, what="Shards by the time they took", unit="shards", edge=seconds)
    return {
        "chart": chart,
        **{name: told.get(name) for name in ("median_s", "p95_s", "max_s")},
        "stragglers": [
            {name: it.get(name) for name in ("shard", "rows", "wall_s", "times_median", "worker", "host")}
            for it in report["stragglers"]
        ],
    }


def failures(report: Mapping[str, Any]) -> dict[str, Any]:
    names = ("at", "worker", "host", "kind", "code", "budget", "message", "traceback", "shard", "rows", "attempt")
    first = [{name: it.get(name, "") for name in names} for it in report["failures"]]
    by_code = report["retries_by_code"]
    return {
        "first": first[:FAILURES_SHOWN],
        "more": len(first[FAILURES_SHOWN:]) + report["failures_left_out"],
        "chart": bars(
            [Bar(label=code or "other", value=count, text=f"{count:,}") for code, count in by_code.items()],
            what="Attempts that failed, by code",
        )
        if by_code
        else Markup(""),
    }


# ----------------------------------------------------------------------------------------------------
# What a run's page shows of the model: its predictions beside those of the nights before, and INT8 beside fp32.

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


def report_page(report: Mapping[str, Any]) -> str:
    """The page of a report.json of any version."""
    known = filled(report)
    return render(
        "report.html.j2",
        report=known,
        sections=SECTIONS,
        ending=ending(known),
        rows=_rows(known),
        throughput=throughput(known),
        workers=workers(known["workers"]),
        stages=stages(known["stage_s"]),
        shards=shards(known),
        predictions=predictions(known),
        accuracy=accuracy(known),
        cost=_cost(known),
        failures=failures(known),
    )


def filled(report: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of a Report, redacted; what this one lacks, or has of another kind, by its default."""
    told: Any = redacted_values(dict(report))
    known = asdict(Report(run_id="", job="", root="", output="", started=""))
    return known | {name: told[name] for name, default in known.items() if name in told and _fits(told[name], default)}


def _fits(found: object, default: object) -> bool:
    if default is None or isinstance(default, int | float):
        return found is None if default is None and found is None else isinstance(found, int | float)
    return isinstance(found, type(default))


def _rows(report: Mapping[str, Any]) -> dict[str, Any]:
    """Bad rows by reason, the most frequent first, each with its examples."""
    counts: Mapping[str, int] = report["bad_by_code"]
    examples: dict[str, list[dict[str, Any]]] = {}
    for it in report["bad_examples"]:
        examples.setdefault(str(it.get("code", "")), []).append(_example(it))
    codes = sorted(counts.keys() | examples.keys(), key=lambda code: (-counts.get(code, 0), code))
    total = sum(counts.values())
    return {
        "total": report["rows_ok"] + report["rows_bad"],
        "reasons": [
            {
                "code": code,
                "rows": counts.get(code),
                "share": counts[code] / total if code in counts and total else None,
                "sample": report["bad_samples"].get(code, ""),
                "examples": examples.get(code, []),
            }
            for code in codes
        ],
        "sources": [
            ("Sources that could not be read", [f"{uri}: {why}" for uri, why in report["unreadable"].items()]),
            ("Sources that changed since they were scored, left as they are", report["changed"]),
            ("Sources scored again, because they changed", report["superseded"]),
        ],
    }


def _example(it: Mapping[str, Any]) -> dict[str, Any]:
    picture = str(it.get("picture") or "")
    keys = it.get("keys")
    return {
        "message": str(it.get("message") or ""),
        "uri": str(it.get("uri") or ""),
        "place": f"row group {it.get('row_group', 0)}, row {it.get('row', 0)}",
        "keys": keys if isinstance(keys, Mapping) else {},
        "picture": picture if picture.startswith("data:image/") else "",
    }


def _cost(report: Mapping[str, Any]) -> dict[str, Any]:
    hours, idle = report["core_hours"], report["idle_core_hours"]
    share = idle / hours if hours else None
    return {
        "idle_share": share,
        "per_million": per_million(report),
        "meaning": "" if share is None or report["report_version"] < 2 else _meaning(share),
    }


def per_million(report: Mapping[str, Any]) -> float | None:
    """What a million images cost, also of reports that do not say."""
    told, cost, rows = (report.get(name) for name in ("cost_per_million", "cost", "rows_scored_here"))
    if isinstance(told, int | float):
        return told if math.isfinite(told) else None
    return cost / rows * 1e6 if isinstance(cost, int | float) and isinstance(rows, int) and rows else None


def _meaning(idle: float) -> str:
    if idle < IDLE_FINE:
        return "Nearly all of the time that was paid for went into images."
    if idle < IDLE_MUCH:
        return "For a part of the time workers waited for data or had no shard, as they do when a run begins and ends."
    return (
        "A large part of the time that was paid for went into waiting. Fewer workers (workers.max), smaller shards "
        "(input.shard_rows) or a deadline (schedule.finish_by), by which the fleet is sized, would cost less."
    )
