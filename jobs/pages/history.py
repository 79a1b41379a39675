"""The nights of a job: what each run has left in the ledger, a row a run, the newest last."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from jobs.pages.charts import Line, trend
from jobs.pages.page import render
from jobs.pages.run_page import per_million
from jobs.progress.format import money, number, percent, printable, seconds, significant
from jobs.progress.snapshot import Snapshot
from jobs.report.journal import run_ids
from jobs.report.report import COMPLETE, UNFINISHED, title_of, tone_of
from jobs.report.runs import RunSeen, read_run
from workers.redaction import redacted
from workers.storage.lookahead import ahead
from workers.storage.store import Store

NIGHTS_MOST = 400
"""A year of them, and some that were run again."""
READS_AT_ONCE = 16
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
    """Of the plans that the run completed; of one that completed none, those that it scored."""
    bad_share: float | None = None
    rate: float | None = None
    """Rows a second."""
    elapsed_s: float | None = None
    core_hours: float | None = None
    cost: float | None = None
    cost_per_million: float | None = None
    psi_classes: float | None = None
    psi_scores: float | None = None
    max_psi: float | None = None
    flags: tuple[str, ...] = ()
    """Of drift, see jobs.report.drift.Drift."""

    @property
    def title(self) -> str:
        return title_of(self.outcome)

    @property
    def ok(self) -> bool:
        return self.outcome == COMPLETE


def nights(store: Store, root: str, most: int = NIGHTS_MOST) -> list[Night]:
    """Of runs with the model of `root`, the `most` newest ones, oldest first.

    Runs that have left neither a report nor a journal that this version reads are passed over. Raises StoreError,
    StoreDenied.
    """
    newest_first = ahead(lambda run_id: read_run(store, run_id), reversed(run_ids(store)), READS_AT_ONCE, "nights")
    found = (night for run in newest_first if run.root == root and (night := _night(run)) is not None)
    return list(itertools.islice(found, most))[::-1]


def _night(run: RunSeen) -> Night | None:
    if run.report is not None:
        return _of_report(run.run_id, run.report)
    return None if run.snapshot is None else _of_snapshot(run.snapshot)


def _of_report(run_id: str, report: Mapping[str, Any]) -> Night:
    def figure(name: str, of: Mapping[str, Any] = report) -> float | None:
        value = of.get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    drift = _mapping(report.get("drift"))
    bad = figure("rows_bad") or 0.0
    rows = (figure("rows_ok") or 0.0) + bad
    if not rows:  # it completed nothing
        rows, bad = figure("rows_scored_here") or 0.0, float(sum(_mapping(report.get("bad_by_code")).values()))
    scored = bool(figure("rows_scored_here"))
    return Night(
        run_id=run_id,
        day=str(report.get("as_of") or "")[:10] or day_of(run_id),
        outcome=str(report.get("outcome", "")),
        rows=round(rows),
        bad_share=bad / rows if rows else None,
        rate=figure("rate") if scored else None,
        elapsed_s=figure("elapsed_s"),
        core_hours=figure("core_hours") if scored else None,
        cost=figure("cost") if scored else None,
        cost_per_million=per_million(report),
        psi_classes=figure("psi", _mapping(drift.get("classes"))),
        psi_scores=figure("psi", _mapping(drift.get("scores"))),
        max_psi=figure("max_psi", drift),
        flags=tuple(redacted(str(flag)) for flag in drift.get("flags") or ()),
    )


def _of_snapshot(last: Snapshot) -> Night:
    """Of a run that has left no report: it died, or is under way."""
    rows = last.rows_ok + last.rows_bad
    return Night(
        run_id=last.run_id,
        day=day_of(last.run_id),
        outcome=UNFINISHED,
        rows=rows,
        bad_share=last.rows_bad / rows if rows else None,
        rate=rows / last.elapsed_s if rows and last.elapsed_s else None,
        elapsed_s=last.elapsed_s,
        core_hours=last.core_hours,
        cost=last.cost,
        cost_per_million=None if last.cost is None or not rows else last.cost / rows * 1e6,
    )


def day_of(run_id: str) -> str:
    """On which a run began: ids begin with their time."""
    return f"{run_id[:4]}-{run_id[4:6]}-{run_id[6:8]}" if run_id[:8].isdigit() else run_id[:10]


def table(of: list[Night], width: int) -> Table:
    """For a terminal of so many columns: a narrow one gets fewer figures."""
    columns = [column for column in COLUMNS if width >= column.from_width]
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False)
    for column in columns:
        made.add_column(
            column.title, justify="right" if column.right else "left", no_wrap=column.title != OUTCOME, overflow="fold"
        )
    for night in of:
        style = None if night.ok else "yellow" if night.outcome == UNFINISHED else "red"
        made.add_row(*(column.write(night) for column in columns), style=style)
    return made


@dataclass(frozen=True)
class Column:
    title: str
    write: Callable[[Night], str]
    from_width: int = 0
    """Of the terminal; there is no room for it in a narrower one."""
    right: bool = True


OUTCOME = "outcome"
COLUMNS = (
    Column("night", lambda it: printable(it.day), right=False),
    Column(OUTCOME, lambda it: printable(it.title), right=False),
    Column("rows", lambda it: number(it.rows)),
    Column("bad", lambda it: percent(it.bad_share, 2)),
    Column("rows/s", lambda it: significant(it.rate), 96),
    Column("took", lambda it: seconds(it.elapsed_s)),
    Column("core-hours", lambda it: money(it.core_hours), 116),
    Column("cost", lambda it: money(it.cost), 116),
    Column("a million", lambda it: money(it.cost_per_million)),
    Column("PSI\nclasses", lambda it: number(it.psi_classes, 3)),
    Column("PSI\nscores", lambda it: number(it.psi_scores, 3), 96),
    Column("", lambda it: "DRIFT" if it.flags else "", right=False),
    Column("run", lambda it: printable(it.run_id), LOG_WIDTH, right=False),
)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# ----------------------------------------------------------------------------------------------------
# The page of a job's nights: how rows, rate, cost and predictions went from night to night.

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
