"""The nights of a job: what each run has left in the ledger, a row a run, the newest last."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from typing import Any

from rich import box
from rich.table import Table

from jobs.pages.charts import trend
from jobs.pages.page import render
from jobs.progress.format import money, number, percent, printable, seconds, significant
from jobs.report.journal import run_ids
from jobs.report.report import COMPLETED, UNFINISHED, headline, unfinished_report
from jobs.report.runs import RunSeen, read_run
from workers.redaction import redacted
from workers.storage.lookahead import ahead
from workers.storage.store import Store

_NIGHTS_MOST = 400
"""A year of them, and some that were run again."""
_TIME = re.compile(r"^(\d{4})(\d\d)(\d\d)T")
"""Of its beginning, at the beginning of a run's id."""
LOG_WIDTH = 148
"""Columns of a table that goes to a file or a pipe: with everything in it."""


@dataclass(frozen=True, kw_only=True)
class Night:
    """One run; None for what it does not tell."""

    run_id: str
    day: str
    """That the run was for, or on which it began."""
    outcome: str
    """As in the report: `complete`, or the name of an error; `unfinished` where there is no report."""
    rows: int
    """Scored by the run, so that those of a night that took several runs add up."""
    bad_share: float | None = None
    """Of these."""
    rate: float | None = None
    elapsed_s: float | None = None
    core_hours: float | None = None
    cost: float | None = None
    cost_per_million: float | None = None
    psi_classes: float | None = None
    psi_scores: float | None = None
    max_psi: float | None = None
    runs: int = 1
    """Of that day, of which this is the last, or which these are together."""
    flags: tuple[str, ...] = ()
    """Of drift, see jobs.report.drift.Drift."""

    @property
    def headline(self) -> tuple[str, str]:
        return headline(self.outcome)

    @property
    def minutes(self) -> float | None:
        return None if self.elapsed_s is None else self.elapsed_s / 60

    @property
    def ok(self) -> bool:
        return self.outcome == COMPLETED


def nights(store: Store, root: str, most: int = _NIGHTS_MOST, *, job: str = "") -> list[Night]:
    """Of runs with the model of `root`, and of one `job` where it is named, the `most` newest ones, oldest first.

    Runs that have left neither a report nor a journal that this version reads are passed over. Raises StoreError,
    StoreDenied.
    """
    newest_first = ahead(lambda run_id: read_run(store, run_id), reversed(run_ids(store)), "nights")
    found = (_night(run) for run in newest_first if run.root == root and job in ("", run.job))
    return list(itertools.islice(found, most))[::-1]


def _night(run: RunSeen) -> Night:
    report = run.report
    if report is None:
        assert run.snapshot is not None, "it has told its root"
        report = unfinished_report(run.snapshot)
    drift = report.drift
    # One that died had workers, whether they scored anything or not.
    had_workers = bool(report.rows_scored_here) or run.report is None
    return Night(
        run_id=run.run_id,
        day=report.as_of[:10] or _TIME.sub(r"\1-\2-\3", run.run_id)[:10],
        outcome=report.outcome,
        rows=report.scored.scored,
        bad_share=report.scored.bad_share,
        rate=report.rate or None,
        elapsed_s=report.elapsed_s or None,
        core_hours=report.core_hours if had_workers else None,
        cost=report.cost if had_workers else None,
        cost_per_million=report.cost_per_million,
        psi_classes=(drift.get("classes") or {}).get("psi"),
        psi_scores=(drift.get("scores") or {}).get("psi"),
        max_psi=drift.get("max_psi"),
        flags=tuple(map(redacted, drift.get("flags") or ())),
    )


def by_day(nights: Sequence[Night]) -> list[Night]:
    """Runs of one day together, in the order of days: how the last one ended, and what all of them did."""
    days = sorted({night.day for night in nights})
    return [_together([night for night in nights if night.day == day]) for day in days]


def _together(runs: Sequence[Night]) -> Night:
    """Each row counts in the run that scored it; the rate is that of the run that scored most."""
    if len(runs) == 1:
        return runs[0]
    rows = sum(run.rows for run in runs)
    cost = _sum(run.cost for run in runs)
    bad = sum((run.bad_share or 0.0) * run.rows for run in runs)
    tells = next((run for run in reversed(runs) if run.psi_classes is not None or run.psi_scores is not None), runs[-1])
    return replace(
        runs[-1],
        rows=rows,
        bad_share=bad / rows if rows else None,
        rate=max(runs, key=lambda run: run.rows).rate,
        elapsed_s=_sum(run.elapsed_s for run in runs),
        core_hours=_sum(run.core_hours for run in runs),
        cost=cost,
        cost_per_million=cost / rows * 1e6 if cost is not None and rows else None,
        psi_classes=tells.psi_classes,
        psi_scores=tells.psi_scores,
        max_psi=tells.max_psi,
        flags=tells.flags,
        runs=sum(run.runs for run in runs),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def nights_table(nights: Sequence[Night], width: int) -> Table:
    """For a terminal of so many columns: a narrow one gets fewer figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False)
    columns = [(title, write) for title, from_width, write in _COLUMNS if width >= from_width]
    for title, _ in columns:
        justify: Any = "left" if title in _TEXTS else "right"
        table.add_column(title, justify=justify, no_wrap=title != "outcome", overflow="fold")
    for night in nights:
        style = None if night.ok else "yellow" if night.outcome == UNFINISHED else "red"
        table.add_row(*(write(night) for _, write in columns), style=style)
    return table


_TEXTS = ("night", "outcome", "", "run")
_COLUMNS: tuple[tuple[str, int, Callable[[Night], str]], ...] = (
    ("night", 0, lambda night: printable(night.day)),
    ("outcome", 0, lambda night: printable(night.headline[0])),
    ("rows", 0, lambda night: number(night.rows)),
    ("bad", 0, lambda night: percent(night.bad_share, 2)),
    ("rows/s", 96, lambda night: significant(night.rate)),
    ("took", 0, lambda night: seconds(night.elapsed_s)),
    ("core-hours", 116, lambda night: money(night.core_hours)),
    ("cost", 116, lambda night: money(night.cost)),
    ("a million", 0, lambda night: money(night.cost_per_million)),
    ("PSI\nclasses", 0, lambda night: number(night.psi_classes, 3)),
    ("PSI\nscores", 96, lambda night: number(night.psi_scores, 3)),
    ("", 0, lambda night: "DRIFT" if night.flags else ""),
    ("run", LOG_WIDTH, lambda night: printable(night.run_id)),
)
"""Title, the least width of a terminal that has room for it, and what stands there."""


def history_page(job: str, root: str, output: str, nights: Sequence[Night]) -> str:
    """How rows, rate, cost and predictions went from night to night; the newest of the `nights` is the last. In trends
    the runs of one day are one night."""
    days = by_day(nights)
    trends = [*_trends(days)] if len(days) > 1 else []
    return render(
        "history.html.j2", job=job, root=root, output=output, nights=nights[::-1], days=days[::-1], trends=trends
    )


_TRENDS: tuple[tuple[str, str, Callable[[float], str], dict[str, str]], ...] = (
    ("Rows", "rows", "{:,.0f}".format, {"": "rows"}),
    ("Rate", "rows a second", significant, {"": "rate"}),
    ("Cost of a million", "in the currency of cost.per_cpu_hour", money, {"": "cost_per_million"}),
    (
        "Bad rows",
        "share of all rows; each line is ten times the one below",
        partial(percent, digits=2),
        {"": "bad_share"},
    ),
    ("Drift", "population stability index", "{:.3g}".format, {"classes": "psi_classes", "scores": "psi_scores"}),
    ("Duration", "minutes", "{:,.3g}".format, {"": "minutes"}),
)
"""Title, unit, how a figure is written, and the fields of a Night by the names of the lines."""


def _trends(nights: Sequence[Night]) -> Iterator[tuple[str, str]]:
    """Charts with their titles; none of what no night tells."""
    max_psi = next((night.max_psi for night in reversed(nights) if night.max_psi is not None), None)
    allowed = "" if max_psi is None else f"drift.max_psi, {max_psi:g}"
    days = [night.day for night in nights]
    places = _places(days)
    for title, unit, write, fields in _TRENDS:
        lines = {name: [getattr(night, field) for night in nights] for name, field in fields.items()}
        if any(value is not None for line in lines.values() for value in line):
            its: Any = {"places": places, "decades": title == "Bad rows"}
            if title == "Drift":
                its |= {"threshold": max_psi, "threshold_text": allowed}
            yield title, trend(lines, days, what=f"{title} by night", unit=unit, write=write, **its)


def _places(days: Sequence[str]) -> list[float] | None:
    """Where each day stands on an axis of days, in the middle of its column; None where one is no date."""
    try:
        dates = [date.fromisoformat(day) for day in days]
    except ValueError:
        return None
    columns = (dates[-1] - dates[0]).days + 1
    return [((on - dates[0]).days + 0.5) / columns for on in dates]
