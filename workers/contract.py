"""What crosses between driver and workers: frozen stdlib dataclasses, a few hundred bytes each.

Pixels never cross. A worker reads its shard from storage itself, decodes, predicts, encodes and commits;
what returns to the driver is a ShardResult or a Failure. This module imports neither torch nor Ray, so that
the driver (the head node) needs neither to plan.

Shape suffixes used throughout the project: N batch, H height, W width, C channels, K classes, D embedding size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

# ---------------------------------------------------------------------------------------------- the work


@dataclass(frozen=True, kw_only=True, slots=True)
class Slice:
    """Rows [row_start, row_stop) of one row group of one source, pinned to the source's version.

    An image file is a source of one row: row group 0, rows [0, 1). A tar is one row group, its samples are the rows.
    """

    uri: str
    size: int
    """Bytes of the whole source as listed when it was claimed."""
    version: str
    """What identifies the content: an object store's etag, or size and mtime of a local file."""
    row_group: int
    row_start: int
    row_stop: int
    byte_start: int = 0
    """Where in the file the slice's first row begins; only for tar files. It goes with `row_start`: a slice can be cut
    in the middle only where the tar's index says at which byte."""

    @property
    def rows(self) -> int:
        return self.row_stop - self.row_start


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """The unit of work, retry and commit: one output object."""

    plan: int
    plan_token: str
    """Random name of the plan's claim: an object whose plan was never this one is a stray."""
    index: int
    slices: tuple[Slice, ...]

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.slices)

    @property
    def key(self) -> str:
        """Key of the output object, below the model's root."""
        return f"plan={self.plan:08d}/{self.index:08d}.parquet"

    @property
    def name(self) -> str:
        return f"{self.plan:08d}/{self.index:08d}"

    def describe(self) -> str:
        """For a person: which rows this is."""
        first, last = self.slices[0], self.slices[-1]
        where = f"{first.uri} row group {first.row_group} rows {first.row_start}:{first.row_stop}"
        if len(self.slices) > 1:
            where += f" … {last.uri} row group {last.row_group} rows {last.row_start}:{last.row_stop}"
        return f"shard {self.name} ({self.rows} rows: {where})"


# ------------------------------------------------------------------------------------------ what to run


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """Reference preprocessing of torchvision's ImageClassification preset, as plain numbers."""

    resize_px: int
    """Length of the shorter side after the resize; the aspect ratio is kept."""
    crop_px: int
    """Side of the square centre crop that the network sees."""
    mean: tuple[float, float, float]
    """Per channel, for pixels scaled to [0, 1]."""
    std: tuple[float, float, float]
    interpolation: str = "bilinear"
    """`bilinear`, `bicubic` or `nearest`; the first two antialiased, as torchvision's presets are."""
    decode: str = "exact"
    """`exact`, or `scaled`: JPEGs whose shorter side is 2.8 times `resize_px` or more shrink while they are decoded."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which network, with which weights, how it is made ready. Everything here changes predictions."""

    arch: str
    """`torchvision/<name>` or `module:function`."""
    weights: str | None
    """A torchvision weights enum name, or a path or fsspec URL of a state dict (.safetensors, .pth, .pt)."""
    args: Mapping[str, object] = field(default_factory=dict)
    labels: tuple[str, ...] | str | None = None
    """Class names, `imagenet`, a path or URL of a text (one a line) or JSON list, or None for the weights' own."""
    task: str = "classify"
    """`classify` or `embed`."""
    precision: str = "int8"
    """`int8`, `bf16` or `fp32`."""
    engine: str = "auto"
    """`auto`, `torch-int8`, `torch-pt2e`, `openvino`, `onnxruntime` or `torch-float`."""
    float_layers: float = 0.25
    """Greatest share of the layers that may stay float to satisfy the gate."""
    preprocess: Mapping[str, object] = field(default_factory=dict)
    """Overrides of the weights' own preprocessing: resize, crop, mean, std, interpolation, decode."""
    calibration_rows: int = 256
    calibration_seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """When a network in INT8 or bf16 is good enough to ship."""

    min_agreement: float = 0.97
    """Share of rows on which top-1 is that of fp32."""
    min_cosine: float = 0.98
    """For embeddings: mean cosine similarity with the fp32 vectors."""
    labels_column: str | None = None
    max_top1_drop: float = 0.01
    """How much true top-1 accuracy may fall, when labels_column is given."""
    rows: int = 512
    """Rows of the job's own input to compare on, none of them used for calibration where there are enough."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How a worker finds the image in a source."""

    format: str
    """`parquet`, `webdataset` or `images`."""
    image: str
    """Image column; its Arrow type (binary, struct<bytes,path>, string URI) is read from each file. For `webdataset`
    the extensions of images, preferred first, as `jpg;png`."""
    keys: tuple[str, ...] = ()
    """Columns copied to the output. For `webdataset`: `__key__`, or the extension of a text member, as strings."""
    uri_roots: tuple[str, ...] = ()
    """Roots below which URIs found in data may point."""


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """Where predictions go, and the shape of a row."""

    url: str
    """The output's base URL: the bundle store lives below it."""
    root: str
    """Key prefix of the model's root below `url`: `model=<name>-<fp>`."""
    topk: int
    key_schema: bytes = b""
    """Arrow schema of the key columns, in IPC form, in the order of InputSpec.keys."""
    single_writer: bool = False


@dataclass(frozen=True, kw_only=True)
class ThreadPlan:
    """The cores one worker holds."""

    threads: int
    """Intra-op threads of torch; also the number of decode threads. One a physical core."""
    cpus: tuple[int, ...]
    """Logical CPUs that the process is pinned to (one a physical core), or () where it must not pin."""
    slots: tuple[int, ...]
    """The leases held: physical cores by first sibling where pinned, ordinals where not."""
    budget: int
    """Physical cores this node lets us use in all."""
    threads_per_core: int


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """Everything a worker needs to score any shard of the job."""

    bundle: str
    """Fingerprint of the bundle, below `<output.url>/_stint/bundles/`."""
    fingerprint: str
    """Fingerprint of the model's root: written into every output object."""
    input: InputSpec
    output: OutputSpec
    threads: int
    """Physical cores a worker takes."""
    batch: int | None
    """Images a forward pass; None: what a tuning of such a host found best, else workers.bundle.profiles' rule."""
    task: str = "classify"
    precision: str = "int8"
    engine: str = "auto"
    """`auto`, an engine, or the name of one artifact."""
    artifacts: tuple[str, ...] = ()
    """Names of the artifacts that this run's gate lets pass; (): all that the bundle holds."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    memory_bytes: int | None = None
    """Most resident memory of the worker's process; None: its cores' share of the node's."""
    pin: bool = True
    """Take core leases and set affinity. Off in a LocalPool, which lives in somebody else's process."""
    code_version: str = ""


# ---------------------------------------------------------------------------------------- the bundle


@dataclass(frozen=True, kw_only=True)
class SampleSlice:
    """Rows to sample: `take` of them, spread evenly over the slice."""

    rows: Slice
    take: int


@dataclass(frozen=True, kw_only=True)
class BundleRequest:
    """Everything a worker needs to make the bundle, or to check the one that is there."""

    fingerprint: str
    model: ModelSpec
    gate: GateSpec
    input: InputSpec
    sample: tuple[SampleSlice, ...]
    output: OutputSpec
    batch: int
    threads: int = 1
    worker_threads: int = 1
    """Physical cores that a worker of the job takes."""
    memory_bytes: int | None = None
    """Most resident memory of a worker's process, as in WorkerSpec. The maker may take its cores' share of the node."""
    without_extras: bool = False
    """A maker was lost, perhaps by a library, or for want of memory: leave out artifacts of extras that `auto` adds."""
    pin: bool = True

    def with_threads(self, threads: int) -> BundleRequest:
        return replace(self, threads=threads)
