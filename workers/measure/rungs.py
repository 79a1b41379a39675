"""What `stint bench` and the processes that measure for it say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from workers.contract import ModelSpec, WorkerSpec

EAGER, CHANNELS_LAST, INT8_DEFAULT, INT8_FUSED, ARTIFACT = VARIANTS = (
    "eager",
    "channels-last",
    "int8-default",
    "int8-fused",
    "artifact",
)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What to measure, and on which cores."""

    kind: str
    """One of VARIANTS."""
    cpus: tuple[int, ...]
    """To be pinned to; () for a process that runs wherever the kernel puts it."""
    threads: int | None
    """None: as many as torch takes by itself."""
    worker: WorkerSpec
    """What a worker of the job is told: where the bundle is, and which of its artifacts may be run."""
    model: ModelSpec
    images: str
    """Parquet file with a column `image` of encoded images that decode."""


@dataclass(frozen=True, kw_only=True)
class RandomWeights:
    """Write weights that mean nothing for a network of torchvision's, the same ones every time; answered by its path.

    Speed does not depend on what they say.
    """

    arch: str
    """As torchvision names it."""
    file: str


@dataclass(frozen=True, kw_only=True)
class Loaded:
    threads: int
    """As torch reports them."""
    what: str
    """What is run, in a few words."""


@dataclass(frozen=True, kw_only=True)
class NotPossible:
    """The network has no such variant."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class AskBatch:
    """Measure with this batch for so long."""

    batch: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BatchLap:
    images: int
    seconds: float
