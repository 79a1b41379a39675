"""What `stint explain` says of one input row, in typed parts, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.progress.format import SPACE, first_few, moment, percent, printable, seconds, significant
from jobs.report.drift import class_name
from workers.bundle.manifest import Manifest
from workers.contract import Slice
from workers.counted import counted
from workers.redaction import redacted

INDENT = 12


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


def prediction_of(row: Mapping[str, Any], manifest: Manifest | None) -> Prediction:
    """What a row of an output object says, as far as its columns are there. Class names are the manifest's."""
    if row["error_code"] is not None:
        return NoPrediction(row["error_code"], row["error_message"])
    if "embedding" in row:
        return Vector(len(row["embedding"]))
    if "label" not in row:
        return None
    labels = manifest.labels if manifest else None
    top = zip(row["topk_label"], row["topk_score"], strict=True)
    return Label(row["label"], row["score"], [(class_name(labels, k), score) for k, score in top])


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
        others = f"{counted(self.rows - 1, 'more row')} in {counted(self.shards, 'shard')}"
        return f"{self.number}{claimed}, with {others}; {done}"


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


@dataclass(frozen=True)
class ModelPart:
    arch: str
    weights: str | None
    bundle: str
    task: str
    artifact: str
    accuracy: Mapping[str, Any] | None
    """What the gate measured: some figures of workers.bundle.accuracy.AccuracyReport."""
    preprocess: str | None
    """What the network sees of an image, for a person."""

    def lines(self, metadata: Mapping[str, str]) -> Iterator[str]:
        """`metadata` is the object's: what scored the row."""
        weights = f", weights {self.weights}" if self.weights else ""
        yield f"{self.arch}{weights}; bundle {self.bundle}"
        if metadata:
            named = {"precision": "", "isa": "on ", "device": "on ", "threads": "threads: ", "code": "code "}
            parts = [f"{prefix}{metadata[name]}" for name, prefix in named.items() if metadata.get(name)]
            version = f" ({metadata['engine_version']})" if metadata.get("engine_version") else ""
            yield ", ".join([f"{metadata.get('engine', 'an unknown engine')}{version}", *parts])
        if self.preprocess is not None:
            yield f"preprocessing: {self.preprocess}"
        if (gate := self.accuracy) is None:
            return
        rows = counted(gate["rows"], "row")
        if self.task == "embed":
            yield f"at the gate: cosine to fp32 {significant(gate['mean_cosine'])} in the mean of {rows}"
            return
        right = (
            "" if gate["top1"] is None else f"; right on {percent(gate['top1'])}, fp32 on {percent(gate['top1_fp32'])}"
        )
        yield f"at the gate: same class as fp32 on {percent(gate['top1_agreement'])} of {rows}{right}"


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
    shard: Mapping[str, Any]
    """Its `name`, its `rows`, and its `slices` as workers.contract.Slice."""
    object: ObjectPart | None
    attempts: Sequence[Mapping[str, Any]]
    """At the row's shard, as jobs.report.journal has them, each with its `run_id`; oldest first."""
    crashes: Sequence[Mapping[str, Any]]
    """As Ledger.record_crash records them, oldest first."""
    model: ModelPart
    others: Sequence[OtherVersion]
    """Newest first."""

    def describe(self) -> str:
        """Lines for a terminal: what data brought in cannot command it."""
        keys = "  ".join(f"{name}={value}" for name, value in self.keys.items())
        lines = [f"{keys}  ({self.place})" if keys else self.place, ""]
        parts: dict[str, Sequence[Any]] = {
            "prediction": [self.prediction or "none"],
            "readers": [f"{'see it' if self.seen else 'do not see it'}: {self.standing}"],
            "source": [self.source],
            "plan": [self.plan],
            "shard": [*_shard(**self.shard)],
            "attempts": [*map(_attempt, self.attempts)] or ["no run's journal has one"],
            "crashes": [*map(_crash, self.crashes)],
            "object": [*self.object.lines()] if self.object else [],
            "model": [*self.model.lines(self.object.metadata if self.object else {})],
            "elsewhere": self.others,
        }
        for name, values in parts.items():
            lines += [f"{'' if number else name:<{INDENT}}{value}" for number, value in enumerate(values)]
        return "\n".join(printable(redacted(line.replace(SPACE, " "))) for line in lines)


def _shard(name: str, rows: int, slices: Sequence[Slice]) -> Iterator[str]:
    yield f"{name}, {counted(rows, 'row')}:"
    yield from first_few([f"  {piece.describe()}" for piece in slices], "slices")


def _attempt(its: Mapping[str, Any]) -> str:
    kind = " a second one, begun while another worker had the shard;" if its["second"] else ""
    kind += " in isolation;" if its["isolated"] else ""
    where = f"worker {its['worker']} on {its['host']}" + (f", {its['engine']}" if its["engine"] else "")
    if its["failure"] is not None:
        first_line, *_ = f"{its['message']}".splitlines() or [""]
        end = f"failed, {its['failure']}: {first_line}"
    else:
        end = "committed" if its["committed"] else "came second: the object was there"
        end += f", {counted(its['rows_ok'], 'row')} ok, {its['rows_bad']:,} bad"
        end += f", {its['rows_gone']:,} gone" if its["rows_gone"] else ""
        end += f", in {seconds(its['wall_s'])}"
    return f"{moment(its['at'])}  run {its['run_id']} attempt {its['attempt']}:{kind} {where}: {end}"


def _crash(its: Mapping[str, Any]) -> str:
    at, run_id, host, code, reason = (its.get(name, "") for name in ("at", "run_id", "host", "code", "reason"))
    return f"{moment(str(at))}  run {run_id}, {host}: {code}: {reason}"
