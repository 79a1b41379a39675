"""What `stint explain` says of one input row, in typed parts, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.progress.format import SPACE, moment, percent, printable, seconds, significant
from workers.contract import Slice
from workers.redaction import redacted

INDENT = 12
SLICES_SHOWN = 4
NEW_LINE = "\n"


@dataclass(frozen=True)
class Label:
    label: str
    score: float
    top: Sequence[tuple[str, float]]
    """Class and score, the best first."""

    def __str__(self) -> str:
        others = ", ".join(f"{name} ({percent(share)})" for name, share in self.top[1:])
        return f"{self.label} ({percent(self.score)})" + (f", then {others}" if others else "")


@dataclass(frozen=True)
class Vector:
    embedding: int
    """Its length."""

    def __str__(self) -> str:
        return f"a vector of {self.embedding:,} numbers"


@dataclass(frozen=True)
class NoPrediction:
    error_code: str
    error_message: str

    def __str__(self) -> str:
        return f"none: {self.error_code}: {self.error_message}"


Prediction = Label | Vector | NoPrediction | None
"""None while there is no row."""


@dataclass(frozen=True)
class PlanPart:
    number: int
    rows: int
    shards: int
    claimed_at: str | None
    done_at: str | None

    def __str__(self) -> str:
        claimed = f" claimed it at {moment(self.claimed_at)}" if self.claimed_at else " claimed it"
        done = f"done at {moment(self.done_at)}" if self.done_at else "not done"
        return f"{self.number}{claimed}, with {self.rows - 1:,} more rows in {self.shards:,} shards; {done}"


@dataclass(frozen=True)
class ShardPart:
    name: str
    rows: int
    slices: Sequence[Slice]

    def lines(self) -> Iterator[str]:
        yield f"{self.name}, {self.rows:,} rows:"
        for piece in self.slices[:SLICES_SHOWN]:
            yield f"  {piece.uri} row group {piece.row_group} rows {piece.row_start}:{piece.row_stop}"
        if len(self.slices) > SLICES_SHOWN:
            yield f"  … and {len(self.slices) - SLICES_SHOWN:,} slices more"


@dataclass(frozen=True)
class ObjectPart:
    key: str
    size: int
    sha256: str
    as_recorded: bool | None
    """None before there is a done record."""
    metadata: Mapping[str, str]

    def lines(self) -> Iterator[str]:
        recorded = {True: "as the done record says", False: "NOT what the done record says", None: "no done record yet"}
        yield self.key
        yield f"{self.size:,} bytes, sha256 {self.sha256}, {recorded[self.as_recorded]}"


@dataclass(frozen=True, kw_only=True)
class AttemptPart:
    """An attempt at the row's shard, as a run's journal has it."""

    run_id: str
    at: str
    worker: int
    host: str
    engine: str
    attempt: int
    second: bool
    isolated: bool
    failure: str | None
    message: str | None
    committed: bool
    rows_ok: int | None
    """None of an attempt that failed, as the next ones."""
    rows_bad: int | None
    rows_gone: int | None
    wall_s: float

    def __str__(self) -> str:
        kind = " a second one, begun while another worker had the shard;" if self.second else ""
        kind += " in isolation;" if self.isolated else ""
        where = f"worker {self.worker} on {self.host}" + (f", {self.engine}" if self.engine else "")
        return f"{moment(self.at)}  run {self.run_id} attempt {self.attempt}:{kind} {where}: {self._end()}"

    def _end(self) -> str:
        if self.failure is not None:
            return f"failed, {self.failure}: {str(self.message).partition(NEW_LINE)[0]}"
        counts = f"{self.rows_ok:,} rows ok, {self.rows_bad:,} bad"
        counts += f", {self.rows_gone:,} gone" if self.rows_gone else ""
        ended = "committed" if self.committed else "came second: the object was there"
        return f"{ended}, {counts}, in {seconds(self.wall_s)}"


@dataclass(frozen=True)
class AccuracyPart:
    """What the gate measured, as workers.bundle.accuracy defines it."""

    rows: int
    top1_agreement: float
    mean_cosine: float
    logit_error: float
    top1: float | None
    top1_fp32: float | None
    labelled_rows: int

    def line(self, task: str) -> str:
        if task == "embed":
            return f"at the gate: cosine to fp32 {significant(self.mean_cosine)} in the mean of {self.rows:,} rows"
        text = f"at the gate: same class as fp32 on {percent(self.top1_agreement)} of {self.rows:,} rows"
        if self.top1 is not None and self.top1_fp32 is not None:
            text += f"; right on {percent(self.top1)}, fp32 on {percent(self.top1_fp32)}"
        return text


@dataclass(frozen=True)
class ModelPart:
    arch: str
    weights: str | None
    bundle: str
    task: str
    artifact: str
    accuracy: AccuracyPart | None

    def lines(self, metadata: Mapping[str, str]) -> Iterator[str]:
        """`metadata` is the object's: what scored the row."""
        weights = f", weights {self.weights}" if self.weights else ""
        yield f"{self.arch}{weights}; bundle {self.bundle}"
        if metadata:
            named = {"precision": "", "isa": "on ", "device": "on ", "threads": "threads: ", "code": "code "}
            parts = [f"{prefix}{metadata[name]}" for name, prefix in named.items() if metadata.get(name)]
            version = f" ({metadata['engine_version']})" if metadata.get("engine_version") else ""
            yield ", ".join([f"{metadata.get('engine', 'an unknown engine')}{version}", *parts])
        if self.accuracy is not None:
            yield self.accuracy.line(self.task)


@dataclass(frozen=True)
class OtherVersion:
    """The row in another version of its file."""

    plan: int
    version: str
    place: str
    prediction: Prediction
    standing: str

    def __str__(self) -> str:
        return f"plan {self.plan}, version {self.version}, {self.place}: {self.prediction or 'none'} ({self.standing})"


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """JSON-able. Times are UTC, ISO 8601; None is what is not there, or not known."""

    place: str
    """As `stint explain` takes it."""
    source_uri: str
    source_version: str
    row_group: int
    row: int
    keys: Mapping[str, str]
    prediction: Prediction
    seen: bool
    """Whether strict readers that name no model see it."""
    standing: str
    """Why."""
    source: str
    """What became of the file since."""
    plan: PlanPart
    shard: ShardPart
    object: ObjectPart | None
    attempts: Sequence[AttemptPart]
    """Oldest first."""
    crashes: Sequence[Mapping[str, Any]]
    """As Ledger.record_crash records them, oldest first."""
    model: ModelPart
    others: Sequence[OtherVersion]
    """Newest first."""

    def describe(self) -> str:
        """Lines for a terminal: what data brought in cannot command it."""
        keys = "  ".join(f"{name}={value}" for name, value in self.keys.items())
        lines = [f"{keys}  ({self.place})" if keys else self.place, ""]
        for name, values in self._parts():
            for number, value in enumerate(values):
                lines.append(f"{'' if number else name:<{INDENT}}{value}")
        return "\n".join(printable(redacted(line.replace(SPACE, " "))) for line in lines)

    def _parts(self) -> Iterator[tuple[str, Sequence[Any]]]:
        yield "prediction", [self.prediction or "none"]
        yield "readers", [f"{'see it' if self.seen else 'do not see it'}: {self.standing}"]
        yield "source", [self.source]
        yield "plan", [self.plan]
        yield "shard", list(self.shard.lines())
        yield "attempts", list[Any](self.attempts) or ["no run's journal has one"]
        if self.crashes:
            yield "crashes", [_crash(crash) for crash in self.crashes]
        if self.object is not None:
            yield "object", list(self.object.lines())
        yield "model", list(self.model.lines({} if self.object is None else self.object.metadata))
        if self.others:
            yield "elsewhere", self.others


def _crash(crash: Mapping[str, Any]) -> str:
    return (
        f"{moment(str(crash.get('at', '')))}  run {crash.get('run_id', '')}, {crash.get('host', '')}: "
        f"{crash.get('code', '')}: {crash.get('reason', '')}"
    )
