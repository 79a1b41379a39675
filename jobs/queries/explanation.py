"""All there is to tell of one input row, as plain values, and as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.progress.format import SPACE, moment, percent, printable, seconds, significant
from workers.redaction import redacted

INDENT = 12
SLICES_SHOWN = 4
NEW_LINE = "\n"


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
    prediction: Mapping[str, Any] | None
    """`label`, `score` and `top` (class and score), or `embedding` (its length), or `error_code` and `error_message`;
    None while there is no row."""
    seen: bool
    """By whoever reads strictly, without naming a model."""
    standing: str
    """Why."""
    source: str
    """What became of the file since."""
    plan: Mapping[str, Any]
    """`number`, `rows`, `shards`, `claimed_at`, `done_at`."""
    shard: Mapping[str, Any]
    """`name`, `rows`, `slices`."""
    object: Mapping[str, Any] | None
    """`key`, `size`, `sha256`, `as_recorded` (None before there is a done record), `metadata`."""
    attempts: Sequence[Mapping[str, Any]]
    """As jobs.queries.trace."""
    crashes: Sequence[Mapping[str, Any]]
    model: Mapping[str, Any]
    """`arch`, `weights`, `bundle`, `task`, `artifact`, and the gate's `accuracy` of it (workers.bundle.accuracy)."""
    others: Sequence[Mapping[str, Any]]
    """The row in other versions of its file, newest first: `plan`, `version`, `place`, `prediction`, `standing`."""


def told(it: Explanation) -> str:
    """Lines for a terminal: what data brought in cannot command it."""
    keys = "  ".join(f"{name}={value}" for name, value in it.keys.items())
    lines = [f"{keys}  ({it.place})" if keys else it.place, ""]
    for name, values in _parts(it):
        for number, value in enumerate(values):
            lines.append(f"{'' if number else name:<{INDENT}}{value}")
    return "\n".join(printable(redacted(line.replace(SPACE, " "))) for line in lines)


def _parts(it: Explanation) -> Iterator[tuple[str, list[str]]]:
    yield "prediction", [prediction_told(it.prediction)]
    yield "readers", [f"{'see it' if it.seen else 'do not see it'}: {it.standing}"]
    yield "source", [it.source]
    yield "plan", [_plan(it.plan)]
    yield "shard", list(_shard(it.shard))
    yield "attempts", [_attempt(attempt) for attempt in it.attempts] or ["no journal of a run tells of one"]
    if it.crashes:
        yield "crashes", [_crash(crash) for crash in it.crashes]
    if it.object is not None:
        yield "object", list(_object(it.object))
    yield "model", list(_model(it.model, {} if it.object is None else it.object["metadata"]))
    if it.others:
        yield "elsewhere", [_other(other) for other in it.others]


def prediction_told(prediction: Mapping[str, Any] | None) -> str:
    if prediction is None:
        return "none"
    if prediction.get("error_code"):
        return f"none: {prediction['error_code']}: {prediction['error_message']}"
    if "embedding" in prediction:
        return f"a vector of {prediction['embedding']:,} numbers"
    top = [f"{name} ({percent(share)})" for name, share in prediction["top"][1:]]
    return f"{prediction['label']} ({percent(prediction['score'])})" + (f", then {', '.join(top)}" if top else "")


def _plan(plan: Mapping[str, Any]) -> str:
    claimed = f" claimed it at {moment(plan['claimed_at'])}" if plan["claimed_at"] else " claimed it"
    done = f"done at {moment(plan['done_at'])}" if plan["done_at"] else "not done"
    return f"{plan['number']}{claimed}, with {plan['rows'] - 1:,} more rows in {plan['shards']:,} shards; {done}"


def _shard(shard: Mapping[str, Any]) -> Iterator[str]:
    yield f"{shard['name']}, {shard['rows']:,} rows:"
    for piece in shard["slices"][:SLICES_SHOWN]:
        yield f"  {piece['uri']} row group {piece['row_group']} rows {piece['row_start']}:{piece['row_stop']}"
    if len(shard["slices"]) > SLICES_SHOWN:
        yield f"  … and {len(shard['slices']) - SLICES_SHOWN:,} slices more"


def _attempt(attempt: Mapping[str, Any]) -> str:
    kind = " a second one, begun while another worker had the shard;" if attempt["second"] else ""
    kind += " in isolation;" if attempt["isolated"] else ""
    where = f"worker {attempt['worker']} on {attempt['host']}" + (f", {attempt['engine']}" if attempt["engine"] else "")
    return (
        f"{moment(attempt['at'])}  run {attempt['run_id']} attempt {attempt['attempt']}:{kind} {where}: {_end(attempt)}"
    )


def _end(attempt: Mapping[str, Any]) -> str:
    if attempt["failure"] is not None:
        return f"failed, {attempt['failure']}: {str(attempt['message']).partition(NEW_LINE)[0]}"
    counts = f"{attempt['rows_ok']:,} rows ok, {attempt['rows_bad']:,} bad"
    counts += f", {attempt['rows_gone']:,} gone" if attempt["rows_gone"] else ""
    ended = "committed" if attempt["committed"] else "came second: the object was there"
    return f"{ended}, {counts}, in {seconds(attempt['wall_s'])}"


def _crash(crash: Mapping[str, Any]) -> str:
    return (
        f"{moment(str(crash.get('at', '')))}  run {crash.get('run_id', '')}, {crash.get('host', '')}: "
        f"{crash.get('code', '')}: {crash.get('reason', '')}"
    )


def _object(found: Mapping[str, Any]) -> Iterator[str]:
    recorded = {True: "as the done record says", False: "NOT what the done record says", None: "no done record yet"}
    yield found["key"]
    yield f"{found['size']:,} bytes, sha256 {found['sha256']}, {recorded[found['as_recorded']]}"


def _model(model: Mapping[str, Any], made: Mapping[str, str]) -> Iterator[str]:
    weights = f", weights {model['weights']}" if model["weights"] else ""
    yield f"{model['arch']}{weights}; bundle {model['bundle']}"
    if made:
        told = {"precision": "", "isa": "on ", "device": "on ", "threads": "threads: ", "code": "code "}
        parts = [f"{prefix}{made[name]}" for name, prefix in told.items() if made.get(name)]
        version = f" ({made['engine_version']})" if made.get("engine_version") else ""
        yield ", ".join([f"{made.get('engine', 'an unknown engine')}{version}", *parts])
    if (accuracy := model["accuracy"]) is not None:
        yield _accuracy(accuracy, embeds=model["task"] == "embed")


def _accuracy(found: Mapping[str, Any], *, embeds: bool) -> str:
    if embeds:
        return f"at the gate: cosine to fp32 {significant(found['mean_cosine'])} in the mean of {found['rows']:,} rows"
    text = f"at the gate: same class as fp32 on {percent(found['top1_agreement'])} of {found['rows']:,} rows"
    if found["top1"] is not None:
        text += f"; right on {percent(found['top1'])}, fp32 on {percent(found['top1_fp32'])}"
    return text


def _other(other: Mapping[str, Any]) -> str:
    return (
        f"plan {other['plan']}, version {other['version']}, {other['place']}: {prediction_told(other['prediction'])} "
        f"({other['standing']})"
    )
