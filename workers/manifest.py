"""The manifest of a bundle: everything a worker must know of a model, as JSON. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workers.accuracy import AccuracyReport
from workers.artifacts import ArtifactInfo
from workers.contract import Preprocess
from workers.engines.base import InputLayout

SCHEMA = 1


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


@dataclass(frozen=True, kw_only=True)
class RowRef:
    """A row of the input, as a person would look it up."""

    uri: str
    row_group: int
    row: int


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What the INT8 network was calibrated on."""

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
    recipe: str
    versions: Mapping[str, str]
    cpu_model: str
    """The processor that made it."""
    calibration: Calibration | None
    accuracy: AccuracyReport | None
    """None for a job in fp32, which has nothing to compare."""
    golden: StoredObject
    """Encoded images with the logits of each precision."""
    notes: tuple[str, ...] = ()
    schema: int = SCHEMA

    def artifact(self, precision: str) -> StoredArtifact | None:
        return next((a for a in self.artifacts if a.info.precision == precision), None)


def to_json(manifest: Manifest) -> bytes:
    """Readable JSON, the same bytes for the same manifest. Raises TypeError for a spec that is not plain values."""
    return json.dumps(asdict(manifest), indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def from_json(data: bytes) -> Manifest:
    """Raises ValueError for JSON that is no manifest, or one of a later schema."""
    try:
        raw: dict[str, Any] = json.loads(data)
        if raw["schema"] != SCHEMA:
            raise ValueError(f"the bundle's manifest has schema {raw['schema']}, this code reads {SCHEMA}")
        calibration, accuracy = raw["calibration"], raw["accuracy"]
        return Manifest(
            **{
                **raw,
                "labels": None if raw["labels"] is None else tuple(raw["labels"]),
                "preprocess": _preprocess(raw["preprocess"]),
                "artifacts": tuple(_artifact(a) for a in raw["artifacts"]),
                "calibration": None if calibration is None else _calibration(calibration),
                "accuracy": None if accuracy is None else AccuracyReport(**accuracy),
                "golden": StoredObject(**raw["golden"]),
                "notes": tuple(raw["notes"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a bundle manifest: {type(error).__name__}: {error}") from error


def _preprocess(raw: dict[str, Any]) -> Preprocess:
    return Preprocess(**{**raw, "mean": tuple(raw["mean"]), "std": tuple(raw["std"])})


def _artifact(raw: dict[str, Any]) -> StoredArtifact:
    layout = raw["info"]["layout"]
    layout = InputLayout(**{**layout, "pad_px": tuple(layout["pad_px"]), "pad_pixel": tuple(layout["pad_pixel"])})
    info = {**raw["info"], "layout": layout, "float_layers": tuple(raw["info"]["float_layers"])}
    return StoredArtifact(info=ArtifactInfo(**info), stored=StoredObject(**raw["stored"]))


def _calibration(raw: dict[str, Any]) -> Calibration:
    return Calibration(**{**raw, "rows": tuple(RowRef(**row) for row in raw["rows"])})
