"""How a run stands at one moment, as plain values: what the live view, job logs, metrics and the journal show."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter

SLOWEST_SHOWN = 5
ADVICE_LEAST_S = 300.0
"""A run that has scored for less is mostly its beginning and its end: workers that come up, and the last shards."""
PHASES = ("listing", "ray", "bundle", "workers", "scoring", "finishing")
"""Of a run, in their order: it lists the input and the ledger, connects to Ray, sees to the bundle, waits for the first
worker, scores, and writes done records and the report."""
WORKER_STATES = ("starting", "scoring", "idle", "leaving")


@dataclass(frozen=True, kw_only=True)
class UnderWay:
    shard: str
    """`<plan>/<index>`, as in the output key."""
    worker: int
    host: str
    rows: int
    age_s: float
    """Since the worker has had nothing older to do."""
    expected_s: float | None = None
    """What so many rows have taken on average in this run; None before anything has ended."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Counts are since the run began; rows and shards are of all plans that it works on."""

    run_id: str
    job: str
    root: str
    """Of the model, as `model=<name>-<fp>`."""
    at: str
    elapsed_s: float
    """Since the run began to score."""
    phase: str = "scoring"
    """One of PHASES."""
    step: str = ""
    """Of the phase, where it has any, in words."""
    phase_s: float = 0.0
    """Since the phase, or its step, began."""
    no_cores_s: float | None = None
    """How long it has waited for cores that others hold; None while it does not."""
    rows_total: int
    rows_ok: int
    rows_bad: int
    rows_gone: int
    rows_elsewhere: int
    """Rows of shards that were there at the beginning, or that other runs have committed meanwhile."""
    shards_total: int
    shards_done: int
    bad_by_code: Mapping[str, int] = field(default_factory=dict)
    rate: float = 0.0
    """Rows a second over the last two minutes."""
    eta_s: tuple[float, float] | None = None
    """Seconds to the end: if all goes well, and if it does not. None while nothing has ended."""
    late_s: float | None = None
    """How much the likely end is after the deadline; negative: to spare. None without a deadline or a rate."""
    deadline_in_s: float | None = None
    workers_wanted: int = 0
    workers: Mapping[str, int] = field(default_factory=dict)
    """By state, see WORKER_STATES."""
    slowest: tuple[UnderWay, ...] = ()
    """Shards that have been under way longest."""
    stage_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds of all workers by stage, as in `workers.outcomes.ShardResult`, and `idle`: ready and without a shard."""
    core_hours: float = 0.0
    cost: float | None = None
    """So far; None where the spec has no price."""
    failures_by_code: Mapping[str, int] = field(default_factory=dict)
    """Attempts at shards that failed."""
    ended: bool = False

    @property
    def rows_done(self) -> int:
        return self.rows_ok + self.rows_bad + self.rows_gone + self.rows_elsewhere

    @property
    def share_done(self) -> float:
        return self.rows_done / self.rows_total if self.rows_total else 1.0

    @property
    def workers_ready(self) -> int:
        return sum(number for state, number in self.workers.items() if state != "starting")

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Snapshot:
        """Raises ValueError for what is no snapshot. Fields of a later version are passed over."""
        snapshot: Snapshot = reader_of(Snapshot).validate_json(text)
        return snapshot


@cache
def reader_of(kind: type) -> TypeAdapter[Any]:
    """Of JSON. Made once for each kind: that takes 6 ms, and `status` reads the snapshots of hundreds of runs."""
    from pydantic import TypeAdapter  # a run only writes

    return TypeAdapter(kind)


_REMEDY = {
    "decode": "decoding is the work here; larger JPEGs decode faster with model.preprocess.decode: scaled",
    "predict": "the network is the work here, as it should be",
    "read": "workers wait for storage; more shards a worker read at once, or storage nearer by",
    "write": "workers wait for the store to take predictions",
    "idle": "workers have no shard: fewer workers, or smaller shards",
}


def bottleneck(stage_s: Mapping[str, float], scored_s: float) -> tuple[str, str]:
    """Which stage the workers' time goes to: its name; what it is, and what would help in a run that has scored for
    long enough to tell. Empty before anything has ended.

    Decoding and predicting take turns in the computing thread; reading and writing go on beside them, so they cost
    time only while that thread waits. `wait` is that time, and counts for the busier one of the two; `idle` is time
    without any shard.
    """
    decode, predict, wait = (stage_s.get(stage, 0.0) for stage in ("decode", "predict", "wait"))
    idle = stage_s.get("idle", 0.0)
    waits_for = "read" if stage_s.get("read", 0.0) >= stage_s.get("write", 0.0) else "write"
    shares = {"decode": decode, "predict": predict, waits_for: wait, "idle": idle}
    total = sum(shares.values())
    if total <= 0:
        return "", ""
    stage = max(shares, key=lambda name: shares[name])
    remedy = f": {_REMEDY[stage]}" if scored_s >= ADVICE_LEAST_S else ""
    return stage, f"{stage} ({shares[stage] / total:.0%} of the workers' time){remedy}"


@dataclass(frozen=True)
class Price:
    threads: int = 1
    """Physical cores of a worker."""
    per_cpu_hour: float | None = None
    """Of one logical CPU; None where the spec does not say."""

    def core_hours(self, worker_s: float) -> float:
        """Physical ones, of so many seconds of a worker."""
        return worker_s * self.threads / 3600

    def cost(self, worker_s: float, threads_per_core: int) -> float | None:
        """In the price's currency; a worker is charged every logical CPU of its cores."""
        if self.per_cpu_hour is None:
            return None
        return self.core_hours(worker_s) * threads_per_core * self.per_cpu_hour


def cost_per_million(cost: float, images: float) -> float:
    """What a million images cost where so many `images` cost that much."""
    return cost / images * 1e6
