"""The manifest of a bundle: everything a worker must know of a model, as JSON. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from workers.bundle import records
from workers.bundle.accuracy import AccuracyReport
from workers.contract import Preprocess
from workers.engines.artifact import ArtifactInfo

_SCHEMA = 3
_EARLIER = 2
"""The same, but written by a release that knows earlier names of the ledger only, and that reads no other number."""


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
    """By which it passed the gate; None for the fp32 network that the others are compared with, and for one in a bundle
    of its own where there were no labels."""


@dataclass(frozen=True, kw_only=True)
class RowRef:
    """A row of the input, as a person would look it up."""

    uri: str
    row_group: int
    row: int


@dataclass(frozen=True, kw_only=True)
class CalibrationSample:
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
    """The ModelSpec, without what the bundle does not depend on; the sample's size and seed lie flat in it."""
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
    calibration: CalibrationSample | None
    golden: StoredObject
    """Encoded images with the logits of each artifact."""
    notes: tuple[str, ...] = ()
    """What is not in the bundle, and why."""
    schema: int = _SCHEMA

    @property
    def accuracy(self) -> AccuracyReport | None:
        """Of the artifact that the maker's own CPU prefers; None where nothing was to be compared."""
        return next((a.accuracy for a in self.artifacts if a.accuracy is not None), None)

    @property
    def earlier(self) -> bool:
        """Whether a release made it that knows earlier names of the ledger only; then others of it may be at work."""
        return self.schema == _EARLIER

    def artifact(self, name: str) -> StoredArtifact | None:
        """By its name, as `torch-int8/x86-vnni` or `torch-float/fp32`."""
        return next((a for a in self.artifacts if a.info.name == name), None)

    def to_json(self) -> bytes:
        """The same bytes for the same manifest. Raises TypeError for a spec that is not plain values."""
        return records.to_json(self)

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Raises ValueError for JSON that is no manifest, or one of another schema."""
        return records.from_json(cls, data, (_EARLIER, _SCHEMA), "bundle manifest")
