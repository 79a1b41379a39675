"""What a run's page shows of the work itself: throughput, workers, stages, shards, and attempts that failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from jobs.pages.charts import Bar, bars, histogram, over_time
from jobs.progress.readable import seconds
from jobs.progress.snapshot import bottleneck

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
