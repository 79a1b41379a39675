"""What a run did, as numbers for `_stint/runs/<id>/report.json` and as the last lines on the terminal.

Advisory: nothing reads it back for correctness. Every figure comes from shard results and done records.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from jobs.errors import BadRowsExceeded
from jobs.progress.format import duration, first_few, money
from jobs.progress.snapshot import Snapshot, cost_per_million, reader_of
from workers.counted import counted
from workers.outcomes import NO_ROWS, Rows
from workers.redaction import redacted_values

REPORT_VERSION = 3
_ROWS_OF_PLANS = 2
"""In reports up to this version rows_ok, rows_bad and rows_gone are of the plans that the run completed."""
COMPLETED = "complete"
UNFINISHED = "unfinished"
"""Has left no report: it died, or is under way."""
_AS_IN_SNAPSHOTS = ("run_id", "job", "root", "rows_ok", "rows_bad", "rows_gone", "core_hours", "cost")
_HEADLINES = {
    COMPLETED: ("Complete", "good"),
    UNFINISHED: ("Unfinished", "warn"),
    "BadRowsExceeded": ("Too many bad rows", "bad"),
    "GateRefused": ("Model refused", "bad"),
    "Interrupted": ("Interrupted", "warn"),
    "DeliveryShort": ("Delivery not whole", "bad"),
    "NothingThere": ("No input", "bad"),
    "SpecError": ("Cannot run as written", "bad"),
}
"""Title and tone by the outcome in a report."""


class PlanState(enum.StrEnum):
    DONE = "done"
    ACCEPTED = "done, accepted with its bad rows"
    OPEN = "open"
    TOO_BAD = "open, with too many bad rows"


@dataclass(frozen=True, kw_only=True)
class PlanReport:
    plan: int
    day: str = ""
    """That it was made for, where it says."""
    state: str = PlanState.OPEN
    rows: Rows = NO_ROWS
    """Whoever scored them."""
    why: str = ""
    """It was accepted."""

    @property
    def too_bad(self) -> str:
        """How one stands that is TOO_BAD, and the way out."""
        return (
            f"{self.state}: {self.rows.describe()}; have its files replaced or taken out, or close it with "
            f"`stint accept SPEC --plan {self.plan} --why TEXT`"
        )


@dataclass
class Report:
    __pydantic_config__ = {"strict": True, "allow_inf_nan": False}  # noqa: RUF012  (for read_report)

    run_id: str = ""
    job: str = ""
    root: str = ""
    output: str = ""
    started: str = ""
    task: str = ""
    as_of: str = ""
    """The day that the run was for."""
    ended: str = ""
    outcome: str = "failed"
    """`complete`, or the name of the error that ended the run."""
    error: str = ""
    next_step: str = ""
    plans: list[int] = field(default_factory=list)
    """Those that this run completed."""
    of_plans: list[PlanReport] = field(default_factory=list)
    """Those that it worked on, completed or not."""
    data_set: Rows = NO_ROWS
    """What has become of all rows that plans of this model have claimed, when the run ended."""
    data_set_plans: int = 0
    """How many plans these are; 0 where the run did not come so far as to look."""
    accepted: dict[str, str] = field(default_factory=dict)
    """Plans of this model that were accepted with their bad rows, whenever that was, each with the reason."""
    rows_ok: int = 0
    rows_bad: int = 0
    rows_gone: int = 0
    rows_copied: int = 0
    """Of rows_ok, those of a table whose image had a prediction elsewhere in it: they were not decoded."""
    bad_by_code: dict[str, int] = field(default_factory=dict)
    """Of the rows scored here."""
    bad_samples: dict[str, str] = field(default_factory=dict)
    rows_scored_here: int = 0
    shards_scored_here: int = 0
    shards_committed_here: int = 0
    """Less than shards_scored_here when another run's attempt was first."""
    speculative_attempts: int = 0
    """Second attempts of shards that another worker was slow with; one of each two attempts was for nothing."""
    speculative_wins: int = 0
    rate: float = 0.0
    """Rows a second, from the first worker being ready to the last shard."""
    elapsed_s: float = 0.0
    core_hours: float = 0.0
    cost: float | None = None
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds by stage over all shards scored here, see workers.outcomes.ShardResult; `idle`: of ready workers without
    a shard."""
    bytes_read: int = 0
    peak_rss_bytes: int = 0
    threads_busy: float = 0.0
    """Most threads that a worker kept busy over a shard; never above the cores that it leased."""
    workers: list[dict[str, Any]] = field(default_factory=list)
    retries: int = 0
    retries_by_code: dict[str, int] = field(default_factory=dict)
    """The same by code: `preempted`, `node_lost`, `crashed`, `memory`, `stuck`, …, or `infra`, `task`, `data`."""
    failed_starts: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    """The first ones in full, see jobs.run.tally.Tally.failed."""
    failures_left_out: int = 0
    set_aside: list[str] = field(default_factory=list)
    sources: int | None = None
    """Of the input, as it was listed; None where the run did not come to that."""
    sources_before: int | None = None
    """Of those, the ones that earlier plans claim as they are."""
    table: dict[str, Any] = field(default_factory=dict)
    """Of a table: its `version`, `at` which moment, rows as in jobs.plan.table_claims.TableRows, and the same as
    `lines`."""
    passed_over: list[tuple[str, int, str]] = field(default_factory=list)
    """What lies under the input and is not taken: reason, files, one of them."""
    unreadable: dict[str, str] = field(default_factory=dict)
    overlooked: dict[str, int] = field(default_factory=dict)
    """Days before this run's that no run has looked at, each with the files that are there."""
    changed: list[str] = field(default_factory=list)
    """Sources with another content than the one scored, left as they are: input.on_change is report."""
    superseded: list[str] = field(default_factory=list)
    """Sources scored again, because their content changed or because of `again`."""
    gone: list[str] = field(default_factory=list)
    """Sources with rows that were gone when it was their turn, of the plans that this run completed."""
    output_table: str = ""
    """What became of the output table, for a person."""
    again: str = ""
    """What a person had scored again, see jobs.plan.asked."""
    profile: dict[str, Any] = field(default_factory=dict)
    """How many cores a worker got and why; from which profile of `stint tune`, if from one."""
    model: dict[str, Any] = field(default_factory=dict)
    """What its fingerprints cover, see jobs.spec.fingerprint.Identity."""
    preprocess: str = ""
    """What the network sees of an image, for a person."""
    doubt: str = ""
    """Why the fp32 network itself may be wrong, if there is a reason."""
    accuracy: dict[str, Any] = field(default_factory=dict)
    """Of the artifact that the bundle's maker preferred, see workers.bundle.accuracy.AccuracyReport, and its `name`."""
    confusion: list[tuple[str, str, int]] = field(default_factory=list)
    """On the gate's rows with labels: true label, predicted label, rows; the most frequent first. Of many classes only
    the errors."""
    disagreements: list[tuple[str, str, int]] = field(default_factory=list)
    """On the gate's rows: label of fp32, label of this model, rows; the most frequent first."""
    idle_core_hours: float = 0.0
    """Of core_hours, what ready workers were without a shard or waited for its data."""
    cost_idle: float | None = None
    cost_per_million: float | None = None
    phases: list[dict[str, Any]] = field(default_factory=list)
    """What the run was at, one after the other: `phase`, as in jobs.progress.snapshot.PHASES, `step`, `began_s`,
    `took_s`."""
    throughput: dict[str, Any] = field(default_factory=dict)
    """`step_s`, and `rows` that ended in each step since scoring began."""
    shard_times: dict[str, Any] = field(default_factory=dict)
    """`edges_s` and `shards` of a histogram of what shards took to predict; `median_s`, `p95_s`, `max_s`."""
    stragglers: list[dict[str, Any]] = field(default_factory=list)
    """Shards that took most a row: `shard`, `rows`, `wall_s`, `times_median`, `worker`, `host`."""
    classes: dict[str, int] = field(default_factory=dict)
    """Rows by predicted label, of the plans that this run completed."""
    scores: list[int] = field(default_factory=list)
    """Rows by score: equal bins from 0 to 1."""
    labelled_rows: int = 0
    """Of the plans that this run completed, rows whose true class is among the keys (gate.labels_column)."""
    right_rows: int = 0
    """Of those, the ones that are predicted so."""
    distribution_rows: int = 0
    """Rows that `classes` and `scores` count."""
    drift: dict[str, Any] = field(default_factory=dict)
    """Against previous nights, see jobs.report.drift.Drift; empty without any."""
    before: dict[str, Any] = field(default_factory=dict)
    """What the last night like this one has to tell, as `night_figures` names it; empty without any."""
    bad_examples: list[dict[str, Any]] = field(default_factory=list)
    """A few error rows by code, see jobs.ledger.bad_rows.ErrorRow, each with the name of its `shard`."""
    report_version: int = REPORT_VERSION

    @property
    def scored(self) -> Rows:
        """By this run."""
        return Rows(ok=self.rows_ok, bad=self.rows_bad, gone=self.rows_gone)

    @property
    def completed(self) -> Rows:
        """Of the plans that this run completed, whoever scored them."""
        of_plans = [left.rows for left in self.of_plans if left.plan in self.plans]
        return sum(of_plans, NO_ROWS) if of_plans else self.scored

    @property
    def rate_a_core(self) -> float:
        """Rows a second of a core, idle or not. Of a run that scored something."""
        return self.rows_scored_here / self.core_hours / 3600


def night_figures(report: Report) -> dict[str, Any]:
    """Figures of a run that scored something, by which it is compared with another: of the rows that it scored."""
    rows = report.rows_scored_here
    engines = sorted({str(worker.get("engine", "")) for worker in report.workers} - {""})
    return {
        "run_id": report.run_id,
        "day": report.as_of or report.started[:10],
        "rows": rows,
        "bad_share": report.scored.bad_share,
        "rate": report.rate,
        "cost_per_million": report.cost_per_million,
        "psi": (report.drift.get("classes") or {}).get("psi"),
        "engine": ", ".join(engines),
        "nodes": len({worker.get("host") for worker in report.workers}) or None,
    }


def unfinished_report(last: Snapshot) -> Report:
    """Of a run that has left no report, by the last snapshot of its journal: it died, or is under way."""
    rows = last.rows_ok + last.rows_bad
    return Report(
        **{name: getattr(last, name) for name in _AS_IN_SNAPSHOTS},
        outcome=UNFINISHED,
        error=f"no report: it was last heard of at {last.at}",
        next_step="if it is not under way any more, run the job: it does what is missing",
        rows_scored_here=rows,
        bad_by_code=dict(last.bad_by_code),
        rate=round(rows / last.elapsed_s, 2) if last.elapsed_s else 0.0,
        elapsed_s=round(last.elapsed_s, 2),
        cost_per_million=None if last.cost is None or not rows else cost_per_million(last.cost, rows),
        stage_s={stage: round(seconds, 3) for stage, seconds in last.stage_s.items()},
        retries=sum(last.failures_by_code.values()),
        retries_by_code=dict(last.failures_by_code),
    )


def read_report(values: object) -> Report:
    """A report.json: fields that it lacks, or has of another kind than this version, have their defaults.

    Raises ValueError for what is no JSON object.
    """
    if not isinstance(values, dict):
        raise ValueError("a report is a JSON object")
    if values.get("report_version", 1) in range(1, _ROWS_OF_PLANS + 1):
        values = {**values, **_rows_scored(values)}
    try:
        return _parsed(values)
    except ValueError as error:  # pydantic's
        odd = {found["loc"][0] for found in error.errors()}  # type: ignore[attr-defined]
        return _parsed({name: value for name, value in values.items() if name not in odd})


def _rows_scored(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of an early report, which has them under other names."""
    scored, by_code = values.get("rows_scored_here"), values.get("bad_by_code")
    bad = sum(by_code.values()) if isinstance(by_code, dict) else 0
    return {"rows_ok": scored - bad if isinstance(scored, int) else 0, "rows_bad": bad}


def redacted_report(report: Report) -> Report:
    """The same without credentials in its texts."""
    return read_report(redacted_values(asdict(report)))


def _parsed(values: Mapping[str, Any]) -> Report:
    """Raises pydantic's ValidationError."""
    # A file name need not be UTF-8.
    text = json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")
    report: Report = reader_of(Report).validate_json(text)
    return report


def accounts(report: Report) -> list[tuple[str, Rows]]:
    """Every count of rows that a report has, each with its name: what the run scored, its plans, the data set."""
    found = [("scored by this run", report.scored)] if report.scored.total else []
    for left in report.of_plans:
        day = f" ({left.day})" if left.day else ""
        found.append((f"plan {left.plan}{day}, {left.state}{f': {left.why}' if left.why else ''}", left.rows))
    if report.data_set_plans:
        found.append((f"data set, {counted(report.data_set_plans, 'plan')}", report.data_set))
    return found


def gone_lines(report: Report) -> list[str]:
    """Of rows that were gone: one line, or none. Reports of earlier releases name no files."""
    gone, files = report.completed.gone, ", ".join(first_few(report.gone, "of them"))
    said = f"gone: {counted(gone, 'row')} whose source vanished or changed after it was claimed"
    return [f"{said}: {files}" if files else said] if gone else []


def summary(report: Report) -> str:
    """What the run did; of one that did not complete, beside its error."""
    complete, lines = report.outcome == COMPLETED, list[str]()
    if complete and not report.plans:
        nothing = f"complete: nothing new to score in {report.job} ({report.output}){looked_at(report)}"
        return "\n".join(filter(None, [nothing, report.output_table]))
    if complete:
        lines.append(
            f"complete: {replace(report.completed, gone=0).describe()}, "
            f"{'plan' if len(report.plans) == 1 else 'plans'} {', '.join(map(str, sorted(report.plans)))}, "
            f"in {duration(report.elapsed_s)}"
        )
    if report.rows_scored_here:
        done = f"{counted(report.rows_scored_here, 'row')} at {report.rate:,.0f} rows/s"
        took = "" if complete else f", in {duration(report.elapsed_s)}"
        lines.append(f"scored here: {done}, {report.core_hours:.4f} core-hours{took}")
        if report.cost is not None:
            a_million = money(cost_per_million(report.cost, report.rows_scored_here))
            lines[-1] += f", cost {money(report.cost)} ({a_million} a million)"
    lines += report.table.get("lines", ())
    counts = accounts(report)
    differ = len({rows for _, rows in counts}) > 1 or any(left.why for left in report.of_plans)
    # Else the headline says it; and reports of earlier releases count nothing but what was scored.
    if differ if complete else report.data_set_plans:
        lines += [f"{name}: {rows.describe()}" for name, rows in counts]
    bad = "bad rows" if report.scored.bad == report.completed.bad else "bad rows of this run"
    for code, n in report.bad_by_code.items():
        if report.outcome == BadRowsExceeded.__name__:  # has a table of them
            break
        sample = report.bad_samples.get(code)
        lines.append(f"{bad}: {n:,} {code}" + (f", e.g. {sample}" if sample else ""))
    lines += gone_lines(report)
    if report.retries or report.failed_starts:
        by_code = ", ".join(f"{n:,} {code}" for code, n in report.retries_by_code.items())
        lines.append(f"attempts that failed: {report.retries:,}" + (f" ({by_code})" if by_code else ""))
        if report.failed_starts:
            lines[-1] += f"; workers that did not start: {report.failed_starts:,}"
    if report.speculative_attempts:
        first = f"{report.speculative_wins:,} of which ended first"
        lines.append(f"second attempts of slow shards: {report.speculative_attempts:,}, {first}")
    if report.labelled_rows:
        right = f"{report.right_rows / report.labelled_rows:.2%} of {counted(report.labelled_rows, 'row')} with a label"
        lines.append(f"true accuracy of {'this plan' if len(report.plans) == 1 else 'these plans'}: {right}")
        if (gate := report.accuracy).get("top1") is not None:
            lines[-1] += f"; on the gate's rows {gate['top1']:.2%}, fp32 {gate['top1_fp32']:.2%}"
    lines += [f"DRIFT: {flag}" for flag in report.drift.get("flags", ())]
    lines += [f"predictions: {report.output}/{report.root}/"] if complete or report.data_set_plans else []
    lines += [report.output_table] if report.output_table else []
    lines.append(f"report: {report.output}/_stint/runs/{report.run_id}/report.html")
    return "\n".join(lines)


def looked_at(report: Report) -> str:
    """What a run with nothing to score has looked at; empty where it is not known."""
    if report.sources is None:
        return ""
    there = counted(report.sources, "source")
    return f": {there} there, {report.sources_before:,} claimed by earlier plans"


def headline(outcome: str) -> tuple[str, str]:
    """Title of a report's outcome, and its tone: `good`, `warn` or `bad`."""
    return _HEADLINES.get(outcome, ("Failed", "bad"))


def ending(report: Report) -> tuple[str, str]:
    """What happened, in a sentence for a person, and the rest of an error's message; that is mostly empty."""
    if report.outcome != COMPLETED:
        happened, _, details = report.error.strip().partition("\n")
        return happened or f"The run ended with {report.outcome or 'an error'}; there is no message.", details
    if not report.plans:
        return f"There was nothing new to score{looked_at(report)}.", ""
    rows, here = report.completed.scored, report.rows_scored_here
    by_this_run = f"; {here:,} of them were scored by this run" if 0 < here < rows else ""
    took = duration(report.elapsed_s)
    return f"{counted(rows, 'row')} with a prediction or a reason why not{by_this_run}, in {took}.", ""
