"""What the processes that measure are asked, and what they answer: the one protocol of tune, compare and bench.

A process is given one Load and answers what it runs, in a few words. Then it answers each Score: by Measured, or, where
batches are only to be made ready, by the most resident memory so far, Python and the engine's library included.
Whatever goes wrong is answered by a `workers.outcomes.Failure`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from workers.contract import BundleRequest, ThreadPlan, WorkerSpec
from workers.engines.artifact import ArtifactInfo

EAGER, CHANNELS_LAST, INT8_DEFAULT = "eager", "channels-last", "int8-default"
INT8_FUSED, BUNDLE = "int8-fused", "bundle"
"""Kinds of LoadVariant: the network as torch runs it in fp32 and in INT8, and the bundle's own artifact."""


@dataclass(frozen=True, kw_only=True)
class LoadWorker:
    """A worker's own loop, decoding included, over a sample of the input."""

    plan: ThreadPlan
    spec: WorkerSpec
    sample: str
    """Path of the file that workers.measure.sample_file wrote."""
    first: int
    """Where in the sample to begin: the workers of a candidate are not to decode the same image at the same time."""


@dataclass(frozen=True, kw_only=True)
class LoadArtifact:
    """The network alone, from a file, on random pixels."""

    plan: ThreadPlan
    info: ArtifactInfo
    path: str


@dataclass(frozen=True, kw_only=True)
class LoadVariant:
    """The network alone, in one of the ways in which a person may run it, on photographs that are decoded already."""

    plan: ThreadPlan | None
    """None: wherever the kernel puts the process, with as many threads as torch takes by itself."""
    kind: str
    """EAGER, CHANNELS_LAST, INT8_DEFAULT, INT8_FUSED or BUNDLE."""
    worker: WorkerSpec
    """As a worker of the job has it: the model, where the bundle is, and which of its artifacts may be run."""
    images: str
    """Parquet file with a column `image` of encoded images that decode."""


Load: TypeAlias = LoadWorker | LoadArtifact | LoadVariant
"""What to measure, and on which cores."""


@dataclass(frozen=True)
class Score:
    """Score in batches of this size, one at least; or make them ready, which is not measured."""

    batch: int
    until: float | None = None
    """By time.monotonic, which all processes of a machine share; None to make ready."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one process did in one Score."""

    rows: int
    wall_s: float
    cpu_s: float
    """Of the whole process: on a core of its own, what others do on the machine meanwhile counts for little."""
    stage_s: Mapping[str, float]
    """Of a worker's loop: seconds by stage, `decode` and `predict`; empty for a network alone."""
    peak_bytes: int
    """Most resident memory; of a worker's loop since batches were last made ready, which counts."""
    resident_bytes: int
    """Now."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What the job's own network in fp32 says: the others are compared with it."""

    classes: Mapping[str, int]
    """By row of the sample."""
    outputs: int
    labels: tuple[str, ...] | None
    labelled: bool
    """Whether the sample has true classes, by which all are judged then."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to make candidates of: in fp32, bf16 and INT8; itself first, then pruned.

    Given in place of a Load. Answered by a Reference for the job's own network, by its candidates as they come, and by
    None at the end.
    """

    name: str
    """For a person."""
    request: BundleRequest
    """As for a bundle of it: model, gate, sample."""
    shares: tuple[float, ...]
    """Of its MACs, to be pruned."""
    plan: ThreadPlan
    folder: str
    """Where artifacts go, for the processes that measure them."""
    reference: Reference | None
    """None for the job's own network."""
    save: Path | None
    """Folder for the pruned networks, or None."""


@dataclass(frozen=True, kw_only=True)
class CandidateFigures:
    """What is known of a candidate before its speed is."""

    network: str
    """For a person: `resnet50`, `resnet50 −25 %`."""  # noqa: RUF001
    precision: str
    artifact: str
    """As in a bundle: `torch-int8/x86-vnni`."""
    right: int
    """Rows on which it is right, or, without labels, says what the job's own network says in fp32."""
    rows: int
    refused: str = ""
    """Why the gate would refuse it, beside its own network in fp32; empty if it would not."""
    size_bytes: int
    macs: int
    decode_s: float
    """CPU seconds to decode an image of the sample as the network wants it."""
    overrides: tuple[str, ...] | None
    """`--set` values that make it the job's model; empty where it is that already; None of one pruned and not saved."""
    own: bool = False
    """The job's own network, as it is."""

    @property
    def name(self) -> str:
        return f"{self.network} {self.precision}"


MadeCandidate: TypeAlias = tuple[CandidateFigures, LoadArtifact]
"""A candidate of a Network, not measured yet."""


@dataclass(frozen=True, kw_only=True)
class Unusable:
    """A candidate that cannot be had, or cannot run here, and why."""

    name: str = ""
    """For a person, where whoever asked does not know it."""
    reason: str
