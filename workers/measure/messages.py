"""What `stint compare` and the processes that make and measure for it say to each other."""

from __future__ import annotations

from dataclasses import dataclass

from workers.contract import BundleRequest, ModelSpec, ThreadPlan, WorkerSpec
from workers.engines.artifact import ArtifactInfo


@dataclass(frozen=True, kw_only=True)
class Network:
    """A network to make candidates of: in fp32, bf16 and INT8; itself first, then pruned."""

    request: BundleRequest
    """As for a bundle of it: model, gate, sample."""
    shares: tuple[float, ...]
    """Of its MACs, to be pruned."""
    plan: ThreadPlan
    folder: str
    """Where artifacts go, for the processes that measure them."""
    reference: str
    """File with what the job's own network says of each row. Written by that one, read by the others."""
    is_reference: bool
    save: str | None
    """Folder for the pruned networks, or None."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A candidate, not measured yet."""

    share: float
    """Of its MACs that were pruned; 0 for the network itself."""
    info: ArtifactInfo
    path: str
    """Of the artifact."""
    size_bytes: int
    right: int
    """Rows on which it is right, or, without labels, says what the job's own network says in fp32."""
    rows: int
    labelled: bool
    refused: str
    """Why the gate would refuse it, beside its own network in fp32; empty if it would not."""
    classes: int
    macs: int
    decode_s: float
    """CPU seconds to decode an image of the sample as the network wants it."""
    overrides: tuple[str, ...]
    """`--set` values that make a pruned network that was saved the job's model; empty for others."""


@dataclass(frozen=True, kw_only=True)
class Fell:
    """A candidate that cannot be had."""

    share: float
    precision: str
    """Empty for all of them."""
    reason: str
    code: str = ""
    """Of what was the matter, as in workers.outcomes.Failure."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Nothing more is made of the network."""


@dataclass(frozen=True, kw_only=True)
class Hold:
    """A candidate to measure, in batches of so many images."""

    info: ArtifactInfo
    path: str
    plan: ThreadPlan
    batch: int


@dataclass(frozen=True, kw_only=True)
class Held:
    """It is loaded and has run."""

    peak_bytes: int
    """Most resident memory of the process until then, Python and the engine's library included."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Measure for so long."""

    seconds: float


@dataclass(frozen=True, kw_only=True)
class Lap:
    images: int
    cpu_s: float
    """Of its one core: what others do on this machine meanwhile counts for little."""


# ----------------------------------------------------------------------------------------------------
# What `stint bench` and the processes that measure for it say to each other.

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
