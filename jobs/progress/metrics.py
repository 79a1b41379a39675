"""What a run tells a monitoring system: the name, labels and meaning of each metric, and its values by a snapshot.

Labels are few and from closed lists: no run, worker, host or shard. The job's label is `stint_job`, because `job` is
the one that Prometheus gives to what it scrapes. Nothing here knows Ray; jobs.pool.ray_cluster publishes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jobs.progress.snapshot import PHASES, WORKER_STATES, Snapshot
from workers.image.errors import ErrorCode
from workers.outcomes import FailureCode, FailureKind

JOB = "stint_job"
OTHER = "other"
"""The label's value for what is in none of these lists."""
METRIC_STAGES = ("read", "decode", "predict", "write", "wait", "throttled", "idle")
REASONS = tuple(str(code) for code in ErrorCode)
CODES = tuple(str(code) for code in (*FailureCode, *FailureKind) if code)
COUNTER = "counter"
"""Only goes up; a new driver begins at zero."""
GAUGE = "gauge"
"""As it is now; gone with the driver."""


@dataclass(frozen=True)
class Metric:
    name: str
    """As Ray is given it, which puts its own in front; OpenTelemetry ends those of counters in `_total`."""
    kind: str
    meaning: str
    value: Callable[[Snapshot], float | Mapping[str, float] | None]
    """None where it is not known; of a metric with a label by that label's value."""
    label: str = ""
    """Beside JOB; empty for none."""

    @property
    def labels(self) -> tuple[str, ...]:
        return (JOB, self.label) if self.label else (JOB,)

    def values(self, snapshot: Snapshot) -> Mapping[str, float]:
        """By value of `label`; without one the only value is that of the empty text. What is not known is left out."""
        value = self.value(snapshot)
        if isinstance(value, Mapping):
            return {name: float(number) for name, number in value.items()}
        return {} if value is None else {"": float(value)}


def _listed(values: Mapping[str, float], names: tuple[str, ...]) -> Mapping[str, float]:
    """Every name with its value or 0, and the sum of all others."""
    others = sum(value for name, value in values.items() if name not in names)
    return {**{name: values.get(name, 0.0) for name in names}, OTHER: others}


METRICS = (
    Metric("stint_run_active", GAUGE, "1 while a run is under way, 0 at its end", lambda at: not at.ended),
    Metric(
        "stint_phase", GAUGE, "1 for what the run is at: listing, ray, bundle, workers, scoring or finishing",
        lambda at: {phase: at.phase == phase and not at.ended for phase in PHASES}, "phase",
    ),
    Metric(
        "stint_rows", COUNTER,
        "rows done, by outcome: ok, bad, gone, or elsewhere (there before, or committed by another run)",
        lambda at: {"ok": at.rows_ok, "bad": at.rows_bad, "gone": at.rows_gone, "elsewhere": at.rows_elsewhere},
        "outcome",
    ),
    Metric(
        "stint_bad_rows", COUNTER, "rows without a prediction, by reason: the error codes of the output",
        lambda at: _listed(at.bad_by_code, REASONS), "reason",
    ),
    Metric("stint_plan_rows", GAUGE, "rows of all plans that the run works on", lambda at: at.rows_total),
    Metric(
        "stint_plan_rows_done", GAUGE, "of those, the ones that are done, whoever did them",
        lambda at: at.rows_done,
    ),
    Metric("stint_shards", GAUGE, "shards of all plans that the run works on", lambda at: at.shards_total),
    Metric("stint_shards_done", GAUGE, "of those, the ones that are done", lambda at: at.shards_done),
    Metric("stint_rows_per_second", GAUGE, "rows a second over the last two minutes", lambda at: at.rate),
    Metric(
        "stint_eta_seconds", GAUGE,
        "seconds to the end, if all goes well (best) and if not (worst); absent before anything has ended",
        lambda at: {} if at.eta_s is None else dict(zip(("best", "worst"), at.eta_s, strict=True)), "bound",
    ),
    Metric(
        "stint_deadline_seconds", GAUGE, "seconds to schedule.finish_by, negative after it; absent without one",
        lambda at: at.deadline_in_s,
    ),
    Metric(
        "stint_late_seconds", GAUGE,
        "how much the likely end is after the deadline, negative: to spare; absent without deadline or rate",
        lambda at: at.late_s,
    ),
    Metric(
        "stint_workers", GAUGE, "workers, by state: starting (or waiting for a node), scoring, idle, leaving",
        lambda at: {state: at.workers.get(state, 0) for state in WORKER_STATES}, "state",
    ),
    Metric("stint_workers_wanted", GAUGE, "workers that there should be", lambda at: at.workers_wanted),
    Metric(
        "stint_stage_seconds", COUNTER,
        "seconds of workers, by stage: decode, predict, wait and idle add up, the others go on beside them",
        lambda at: _listed(at.stage_s, METRIC_STAGES), "stage",
    ),
    Metric("stint_core_hours", COUNTER, "hours of physical cores that ready workers held", lambda at: at.core_hours),
    Metric(
        "stint_cost", COUNTER, "what these cost, in the currency of cost.per_cpu_hour; absent without a price",
        lambda at: at.cost,
    ),
    Metric(
        "stint_failed_attempts", COUNTER,
        "attempts at shards that failed, by code of the failure, or its kind where it has none",
        lambda at: _listed(at.failures_by_code, CODES), "code",
    ),
)  # fmt: skip
