"""What a run tells a monitoring system: the name, labels and meaning of each metric, and its values by a snapshot.

Labels are few and from closed lists: no run, worker, host or shard. The job's label is `stint_job`, because `job` is
the one that Prometheus gives to what it scrapes. Nothing here knows Ray; jobs.pool.ray_metrics publishes.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jobs.progress.snapshot import WORKER_STATES, Snapshot
from workers.image.errors import ErrorCode
from workers.outcomes import FailureCode, FailureKind

JOB = "stint_job"
"""The label that every metric has."""
OTHER = "other"
"""The label's value for what is in none of these lists."""
METRIC_STAGES = ("read", "decode", "predict", "write", "wait", "throttled", "idle")
REASONS = tuple(str(code) for code in ErrorCode)
CODES = tuple(str(code) for code in (*FailureCode, *FailureKind) if code)


class MetricKind(enum.StrEnum):
    COUNTER = "counter"
    """Only goes up; a new driver begins at zero."""
    GAUGE = "gauge"
    """As it is now; gone with the driver."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    name: str
    """As Ray is given it."""
    kind: MetricKind
    meaning: str
    values: Callable[[Snapshot], Mapping[str, float]]
    """By value of `label`. What is not known is left out."""
    label: str = ""
    """Beside JOB. Empty for none: then the one value is that of the empty text."""

    @property
    def exported(self) -> str:
        """As Prometheus has it: Ray puts its name in front, OpenTelemetry marks counters."""
        return f"ray_{self.name}" + ("_total" if self.kind is MetricKind.COUNTER else "")

    @property
    def labels(self) -> tuple[str, ...]:
        return (JOB, self.label) if self.label else (JOB,)


def _one(value: float | None) -> Mapping[str, float]:
    return {} if value is None else {"": float(value)}


def _listed(values: Mapping[str, float], names: tuple[str, ...]) -> Mapping[str, float]:
    """Every name with its value or 0, and the sum of all others."""
    others = sum(value for name, value in values.items() if name not in names)
    return {**{name: float(values.get(name, 0.0)) for name in names}, OTHER: float(others)}


def _rows(at: Snapshot) -> Mapping[str, float]:
    return {"ok": at.rows_ok, "bad": at.rows_bad, "gone": at.rows_gone, "elsewhere": at.rows_elsewhere}


def _eta(at: Snapshot) -> Mapping[str, float]:
    return {} if at.eta_s is None else dict(zip(("best", "worst"), at.eta_s, strict=True))


METRICS = (
    Metric(
        name="stint_run_active",
        kind=MetricKind.GAUGE,
        meaning="1 while a run scores, 0 at its end",
        values=lambda at: _one(not at.ended),
    ),
    Metric(
        name="stint_rows",
        kind=MetricKind.COUNTER,
        meaning="rows done, by outcome: ok, bad, gone, or elsewhere (there before, or committed by another run)",
        label="outcome",
        values=_rows,
    ),
    Metric(
        name="stint_bad_rows",
        kind=MetricKind.COUNTER,
        meaning="rows without a prediction, by reason: the error codes of the output",
        label="reason",
        values=lambda at: _listed(at.bad_by_code, REASONS),
    ),
    Metric(
        name="stint_plan_rows",
        kind=MetricKind.GAUGE,
        meaning="rows of all plans that the run works on",
        values=lambda at: _one(at.rows_total),
    ),
    Metric(
        name="stint_plan_rows_done",
        kind=MetricKind.GAUGE,
        meaning="of those, the ones that are done, whoever did them",
        values=lambda at: _one(at.rows_done),
    ),
    Metric(
        name="stint_shards",
        kind=MetricKind.GAUGE,
        meaning="shards of all plans that the run works on",
        values=lambda at: _one(at.shards_total),
    ),
    Metric(
        name="stint_shards_done",
        kind=MetricKind.GAUGE,
        meaning="of those, the ones that are done",
        values=lambda at: _one(at.shards_done),
    ),
    Metric(
        name="stint_rows_per_second",
        kind=MetricKind.GAUGE,
        meaning="rows a second over the last two minutes",
        values=lambda at: _one(at.rate),
    ),
    Metric(
        name="stint_eta_seconds",
        kind=MetricKind.GAUGE,
        meaning="seconds to the end, if all goes well (best) and if not (worst); absent before anything has ended",
        label="bound",
        values=_eta,
    ),
    Metric(
        name="stint_deadline_seconds",
        kind=MetricKind.GAUGE,
        meaning="seconds to schedule.finish_by, negative after it; absent without one",
        values=lambda at: _one(at.deadline_in_s),
    ),
    Metric(
        name="stint_late_seconds",
        kind=MetricKind.GAUGE,
        meaning="how much the likely end is after the deadline, negative: to spare; absent without deadline or rate",
        values=lambda at: _one(at.late_s),
    ),
    Metric(
        name="stint_workers",
        kind=MetricKind.GAUGE,
        meaning="workers, by state: starting (or waiting for a node), scoring, idle, leaving",
        label="state",
        values=lambda at: {state: float(at.workers.get(state, 0)) for state in WORKER_STATES},
    ),
    Metric(
        name="stint_workers_wanted",
        kind=MetricKind.GAUGE,
        meaning="workers that there should be",
        values=lambda at: _one(at.workers_wanted),
    ),
    Metric(
        name="stint_stage_seconds",
        kind=MetricKind.COUNTER,
        meaning="seconds of workers, by stage: decode, predict, wait and idle add up, the others go on beside them",
        label="stage",
        values=lambda at: _listed(at.stage_s, METRIC_STAGES),
    ),
    Metric(
        name="stint_core_hours",
        kind=MetricKind.COUNTER,
        meaning="hours of physical cores that ready workers held",
        values=lambda at: _one(at.core_hours),
    ),
    Metric(
        name="stint_cost",
        kind=MetricKind.COUNTER,
        meaning="what these cost, in the currency of cost.per_cpu_hour; absent without a price",
        values=lambda at: _one(at.cost),
    ),
    Metric(
        name="stint_failed_attempts",
        kind=MetricKind.COUNTER,
        meaning="attempts at shards that failed, by code of the failure, or its kind where it has none",
        label="code",
        values=lambda at: _listed(at.failures_by_code, CODES),
    ),
)
