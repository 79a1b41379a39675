"""The page of a run, `report.html`: the figures of its report.json, for the operator who opens it in the morning.

A section whose figures are missing (embeddings, a run that ended before it scored) says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any

from jobs.input.passed_over import passed_over_kinds
from jobs.pages.charts import Bar, bars, histogram, over_time
from jobs.pages.page import render
from jobs.progress.format import NONE, money, number, percent, phase_in_words, seconds, significant
from jobs.progress.snapshot import ADVICE_LEAST_S, bottleneck
from jobs.report.report import Report, accounts, ending, headline, night_figures, redacted_report

CLASSES_SHOWN = 20
_PHASE_LEAST_S = 0.05
MATRIX_LABELS = 12
"""Up to so many classes the confusion is a matrix."""


def report_page(report: Report) -> str:
    report = redacted_report(report)
    drift, accuracy = (defaultdict[str, Any](lambda: None, part) for part in (report.drift, report.accuracy))
    stages, counts = _stages(report.stage_s), accounts(report)
    sections = {
        "outcome": True,
        "rows": counts or report.bad_by_code or report.bad_examples or report.unreadable or report.overlooked
        or report.passed_over or report.table
        or report.changed or report.superseded,
        "throughput": report.throughput.get("rows"),
        "workers": report.workers,
        "stages": stages,
        "shards": report.shard_times or report.stragglers,
        "predictions": report.classes or sum(report.scores) or report.drift,
        "accuracy": accuracy["rows"] or report.labelled_rows or report.doubt or report.preprocess,
        "cost": report.core_hours,
        "failures": report.retries or report.failed_starts or report.failures or report.set_aside,
        "time": report.phases,
        "run": True,
    }  # fmt: skip
    return render(
        "report.html.j2",
        report=report,
        drift=drift,
        sections=[name for name, there in sections.items() if there],
        since=_since(report),
        phases=_phases(report.phases),
        advised=report.elapsed_s >= ADVICE_LEAST_S,
        headline=headline(report.outcome),
        ending=ending(report),
        accounts=counts,
        passed_over=passed_over_kinds(report.passed_over),
        over_time=over_time,
        histogram=histogram,
        seconds=seconds,
        ranges=_ranges,
        stages=stages,
        bottleneck=bottleneck(report.stage_s, report.elapsed_s)[1],
        failed=[Bar(label=code, value=count, text=f"{count:,}") for code, count in report.retries_by_code.items()],
        bars=bars,
        classes=_classes(report.classes, drift["classes_before"] or {}),
        scores=_scores(report.scores, drift["scores_before"] or ()),
        accuracy=accuracy,
        matrix=_matrix(report.confusion),
        confusion={(true, said): rows for true, said, rows in report.confusion},
    )


def _since(report: Report) -> list[tuple[str, str, str, str]]:
    """What is compared with the last night like this one: its name, then, now, and the change; empty without such a
    night."""
    now = night_figures(report)
    return [
        (what, write(before), write(after), _change(before, after))
        for what, name, write in _COMPARED
        for before, after in [(report.before.get(name), now.get(name))]
        if report.before and (before, after) != (None, None)
    ]


_COMPARED: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("Rows scored", "rows", number),
    ("Bad rows", "bad_share", partial(percent, digits=2)),
    ("Rows a second", "rate", significant),
    ("Cost of a million", "cost_per_million", money),
    ("Drift of classes, PSI", "psi", partial(number, digits=3)),
    ("Engine", "engine", lambda name: name or NONE),
    ("Nodes", "nodes", number),
)
"""Title, name in jobs.report.report.night_figures, and how it is written."""


def _change(before: Any, after: Any) -> str:
    """Of figures by how much, of names whether."""
    if before == after:
        return "the same"
    if isinstance(before, str) or isinstance(after, str):
        return "changed"
    if before is None or after is None:
        return NONE
    return f"{(after - before) / before:+.0%}".replace("-", "\N{MINUS SIGN}") if before else "new"


def _phases(phases: Sequence[Mapping[str, Any]]) -> list[Bar]:
    """Phases and their steps, those that took no time left out."""
    return [
        Bar(label=phase_in_words(at["phase"], at["step"]), value=at["took_s"], text=seconds(at["took_s"]))
        for at in phases
        if at["took_s"] >= _PHASE_LEAST_S
    ]


def _ranges(cpus: Sequence[int]) -> str:
    """`0-3, 8`."""
    runs = [[cpu for _, cpu in run] for _, run in groupby(enumerate(sorted(cpus)), lambda at: at[1] - at[0])]
    return ", ".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _stages(stage_s: Mapping[str, float]) -> list[Bar]:
    """Where the computing threads' time went; empty where none was spent."""
    waits_for = "reading" if stage_s.get("read", 0.0) >= stage_s.get("write", 0.0) else "writing"
    titles = {"wait": f"wait, mostly for {waits_for}", "idle": "idle, without a shard"}
    parts = {titles.get(stage, stage): stage_s.get(stage, 0.0) for stage in ("decode", "predict", "wait", "idle")}
    total = sum(parts.values())
    return [
        Bar(label=stage, value=took, text=f"{took / total:.1%}", before_text=seconds(took))
        for stage, took in parts.items()
        if total > 0
    ]


def _classes(now: Mapping[str, int], before: Mapping[str, int]) -> list[Bar]:
    """The most frequent ones of tonight."""
    total, total_before = sum(now.values()), sum(before.values())
    return [
        Bar(
            label=label,
            value=rows / total,
            text=percent(rows / total),
            before=before.get(label, 0) / total_before if total_before else None,
            before_text=f"before {percent(before.get(label, 0) / total_before)}" if total_before else f"{rows:,}",
        )
        for label, rows in sorted(now.items(), key=lambda pair: (-pair[1], pair[0]))[:CLASSES_SHOWN]
    ]


def _scores(now: Sequence[int], before: Sequence[int]) -> str:
    if not sum(now):
        return ""
    compared = before if len(before) == len(now) and sum(before) > 0 else ()
    return histogram(
        [at / len(now) for at in range(len(now) + 1)],
        now,
        compared,
        what="Predictions by score",
        unit="share of predictions, by score" if compared else "predictions, by score",
        edge=lambda value: f"{value:.3g}",
    )


def _matrix(confusion: Sequence[tuple[str, str, int]]) -> list[str]:
    """The labels of its rows and columns; none where there are too many, or errors alone."""
    labels = sorted({label for pair in confusion for label in pair[:2]}, key=lambda label: (len(label), label))
    return labels if len(labels) <= MATRIX_LABELS and any(true == said for true, said, _ in confusion) else []
