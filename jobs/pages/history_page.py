"""The page of a job's nights: how rows, rate, cost and predictions went from night to night."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jobs.pages.charts import Line, trend
from jobs.pages.history import Night
from jobs.pages.page import render
from jobs.progress.readable import money, significant
from jobs.report.endings import tone_of

SECTIONS = (("trends", "Trends"), ("nights", "Nights"))
"""Ids and titles."""


def history_page(job: str, root: str, output: str, of: Sequence[Night]) -> str:
    """`of` are nights, the newest last."""
    last = next((night for night in reversed(of) if night.ok), None)
    return render(
        "history.html.j2",
        job=job,
        root=root,
        output=output,
        nights=[(night, tone_of(night.outcome)) for night in reversed(of)],
        complete=sum(night.ok for night in of),
        flagged=sum(bool(night.flags) for night in of),
        last=last,
        trends=_trends(of) if len(of) > 1 else [],
    )


def _trends(of: Sequence[Night]) -> list[dict[str, Any]]:
    """Charts with their titles; of what no night tells, a line that says so."""
    max_psi = next((night.max_psi for night in reversed(of) if night.max_psi is not None), None)

    def one(
        title: str, unit: str, write: Callable[[float], str], *lines: Line, threshold: float | None = None
    ) -> dict[str, Any]:  # fmt: skip
        known = any(value is not None for line in lines for value in line.values)
        return {
            "title": title,
            "chart": trend(
                lines,
                [night.day for night in of],
                what=f"{title} by night",
                unit=unit,
                write=write,
                threshold=threshold,
                threshold_text="" if threshold is None else f"drift.max_psi, {threshold:g}",
            )
            if known
            else "",
        }  # fmt: skip

    def line(name: str, attribute: str) -> Line:
        return Line(name=name, values=[getattr(night, attribute) for night in of])

    return [
        one("Rows", "rows", "{:,.0f}".format, line("", "rows")),
        one("Rate", "rows a second", significant, line("", "rate")),
        one("Cost of a million", "in the currency of cost.per_cpu_hour", money, line("", "cost_per_million")),
        one("Bad rows", "percent of all rows", lambda share: f"{share * 100:.3g}%", line("", "bad_share")),
        one("Drift", "population stability index", lambda psi: f"{psi:.3g}", line("classes", "psi_classes"),
            line("scores", "psi_scores"), threshold=max_psi),
        one("Duration", "minutes", lambda minutes: f"{minutes:,.3g}",
            Line(name="", values=[None if it.elapsed_s is None else it.elapsed_s / 60 for it in of])),
    ]  # fmt: skip
