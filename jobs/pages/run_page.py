"""The page of a run, `report.html`: the figures of its report.json, for the operator who opens it in the morning.

A section whose figures are missing (an older report, embeddings, a run that ended before it scored) says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from jobs.pages.page import render
from jobs.pages.report_model import accuracy, predictions
from jobs.pages.report_work import failures, shards, stages, throughput, workers
from jobs.report.endings import ending
from jobs.report.report import Report
from workers.redaction import redacted_values

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
