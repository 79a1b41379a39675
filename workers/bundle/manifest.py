"""The manifest of a bundle: everything a worker must know of a model, as JSON. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workers.bundle.accuracy import AccuracyReport
from workers.contract import Preprocess
from workers.engines.artifact import ArtifactInfo
from workers.engines.base import InputLayout

SCHEMA = 2
"""1 had at most one INT8 artifact, with the one report of the manifest. Bundles of that schema are still read."""


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """A file of the bundle, named by its content."""

    sha256: str
    size: int
    suffix: str

    @property
    def file_name(self) -> str:
        return f"{self.sha256}.{self.suffix}"


@dataclass(frozen=True, kw_only=True)
class StoredArtifact:
    info: ArtifactInfo
    stored: StoredObject
    accuracy: AccuracyReport | None = None
    """By which it passed the gate; None for the fp32 network, which is what the others are compared with."""


@dataclass(frozen=True, kw_only=True)
class RowRef:
    """A row of the input, as a person would look it up."""

    uri: str
    row_group: int
    row: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the INT8 networks were calibrated on."""

    seed: int
    size: int
    """Rows asked for."""
    rows: tuple[RowRef, ...]
    """Rows used."""
    bad_rows: int = 0
    """Rows picked that could not be decoded."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    fingerprint: str
    spec: Mapping[str, Any]
    """The ModelSpec, as given."""
    task: str
    outputs: int
    """K classes, or D features of an embedding."""
    labels: tuple[str, ...] | None
    preprocess: Preprocess
    artifacts: tuple[StoredArtifact, ...]
    """The one that the maker's own CPU prefers first, the fp32 one last."""
    recipe: str
    versions: Mapping[str, str]
    cpu_model: str
    """The processor that made it."""
    calibration: Calibration | None
    golden: StoredObject
    """Encoded images with the logits of each artifact."""
    notes: tuple[str, ...] = ()
    """What is not in the bundle, and why."""
    schema: int = SCHEMA

    @property
    def accuracy(self) -> AccuracyReport | None:
        """Of the artifact that the maker's own CPU prefers; None where nothing was to be compared."""
        return next((a.accuracy for a in self.artifacts if a.accuracy is not None), None)

    def artifact(self, name: str) -> StoredArtifact | None:
        """By its name, as `torch-int8/x86-vnni` or `torch-float/fp32`."""
        return next((a for a in self.artifacts if a.info.name == name), None)

    def golden_key(self, info: ArtifactInfo) -> str:
        """Under which the golden batch has the logits of an artifact."""
        return f"logits_{info.name if self.schema > 1 else info.precision}"


def to_json(manifest: Manifest) -> bytes:
    """Readable JSON, the same bytes for the same manifest. Raises TypeError for a spec that is not plain values."""
    return json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def from_json(data: bytes) -> Manifest:
    """Raises ValueError for JSON that is no manifest, or one of a later schema."""
    try:
        raw: dict[str, Any] = json.loads(data)
        if raw["schema"] == 1:
            raw = _of_schema_1(raw)
        elif raw["schema"] != SCHEMA:
            raise ValueError(f"the bundle's manifest has schema {raw['schema']}, this code reads {SCHEMA} and 1")
        calibration = raw["calibration"]
        return Manifest(
            **{
                **raw,
                "labels": None if raw["labels"] is None else tuple(raw["labels"]),
                "preprocess": _preprocess(raw["preprocess"]),
                "artifacts": tuple(_artifact(a) for a in raw["artifacts"]),
                "calibration": None if calibration is None else _calibration(calibration),
                "golden": StoredObject(**raw["golden"]),
                "notes": tuple(raw["notes"]),
            }
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a bundle manifest: {type(error).__name__}: {error}") from error


def _of_schema_1(raw: dict[str, Any]) -> dict[str, Any]:
    """The same in today's form: an artifact had a `kind`, `fp32` or `int8`, and torch was the only engine."""
    accuracy = raw.pop("accuracy")
    if accuracy is not None:
        accuracy["top1"] = accuracy.pop("top1_int8")
    artifacts = []
    for artifact in raw["artifacts"]:
        info = dict(artifact["info"])
        kind = info.pop("kind")
        info |= {"precision": kind, "engine": "torch-float" if kind == "fp32" else "torch-int8", "float_layers": []}
        artifacts.append({**artifact, "info": info, "accuracy": accuracy if kind == "int8" else None})
    return {**raw, "artifacts": artifacts[::-1]}


def _preprocess(raw: dict[str, Any]) -> Preprocess:
    return Preprocess(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})


def _artifact(raw: dict[str, Any]) -> StoredArtifact:
    layout = raw["info"]["layout"]
    layout = InputLayout(**{**layout, "pad_px": tuple(layout["pad_px"]), "pad_pixel": tuple(layout["pad_pixel"])})
    info = {**raw["info"], "layout": layout, "float_layers": tuple(raw["info"]["float_layers"])}
    info.pop("threads", None)  # of artifacts compiled for a number of threads, of which there never was one
    accuracy = raw["accuracy"]
    return StoredArtifact(
        info=ArtifactInfo(**info),
        stored=StoredObject(**raw["stored"]),
        accuracy=None if accuracy is None else _accuracy(accuracy),
    )


def _accuracy(raw: dict[str, Any]) -> AccuracyReport:
    pairs = {name: tuple(map(tuple, raw.get(name, ()))) for name in ("confusion", "disagreements")}
    return AccuracyReport(**{**raw, **pairs})


def _calibration(raw: dict[str, Any]) -> Calibration:
    return Calibration(**{**raw, "rows": tuple(RowRef(**row) for row in raw["rows"])})
