"""What crosses between driver and workers: frozen stdlib dataclasses, a few hundred bytes each.

Sections of the spec that workers need are declared here, once: `jobs.spec` checks them and they travel as they are.
Pixels never cross. A worker reads its shard from storage itself, decodes, predicts, encodes and commits;
what returns to the driver is a ShardResult or a Failure. This module imports neither torch nor Ray, so that
the driver (the head node) needs neither to plan.

Shape suffixes used throughout the project: N batch, H height, W width, C channels, K classes, D embedding size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import Ge, Interval
from typing_extensions import TypedDict

from workers.counted import counted

AS_OF = re.compile(r"\{as_of(?::([^{}]*))?\}")
"""Stands in templates of URIs for the day, as 2026-03-01; or `{as_of:%Y/%m/%d}`, by the codes of jobs.spec.days."""
MOST_DAYS = 3660
"""A mistyped year should not list folders for an hour."""
AtLeast1 = Annotated[int, Ge(1)]
Share = Annotated[float, Interval(ge=0, le=1)]
USUAL_FORMATS = ("jpeg", "png", "gif", "webp", "bmp", "tiff", "avif")
"""What is decoded unless the spec says otherwise."""
ALL_FORMATS = (*USUAL_FORMATS, "jpeg2000", "heif", "jxl")
_KEYS_ARE_CHECKED = {"extra": "forbid", "use_attribute_docstrings": True}
"""How pydantic reads a section of the spec from YAML, in `jobs.spec`; the docstrings are in its JSON Schema. It is not
imported here: it takes 50 to 70 ms of CPU, annotated_types 7 to 10 ms, torch after them 1.3 s."""


def shard_key(plan: int, index: int) -> str:
    """Key of a shard's output object, below the model's root."""
    return f"plan={plan:08d}/{index:08d}.parquet"


def parse_shard_key(key: str) -> tuple[int, int] | None:
    """Plan and number of the shard whose object has this key; None for another key."""
    found = re.fullmatch(r"plan=(\d+)/(\d+)\.parquet", key)
    if found is None or shard_key(plan := int(found[1]), index := int(found[2])) != key:
        return None
    return plan, index


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

    def describe(self) -> str:
        """For a person."""
        return f"{self.uri} row group {self.row_group} rows {self.row_start}:{self.row_stop}"


FIELD_ID = b"PARQUET:field_id"
"""Metadata of a column of a table: its number, by which files name it, whatever they call it."""
NAMES_IN_FILES = b"stint.names"
"""JSON list of what files without such numbers call it; without this it is called as in the table."""
DEFAULT = b"stint.default"
"""JSON of what it is in rows of files that lack it; without this null. Bytes are hexadecimal digits, and dates, times
and decimals text."""


MOST_COPIED = 2**22
"""Predictions that a worker looks through for those of images that a table has copied: 16 bytes each. Of more, those
that were scored first are not found, and their images are scored again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOf:
    """What a worker must know of the table that a shard's files belong to."""

    url: str
    version: str
    """That the plan was made of."""
    schema: bytes
    """Arrow schema of its columns by their names then, in IPC form, with the metadata above."""
    constants: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """By URI of a file and name of a column that it does not hold: what that is in all its rows, as in DEFAULT."""
    copies: tuple[str, ...] = ()
    """Objects below the root with predictions that may be copied: `plan=00000003/00000000.parquet`."""

    def of_files(self, uris: Iterable[str]) -> TableOf:
        """What a worker must know to read these files alone."""
        return replace(self, constants={uri: self.constants[uri] for uri in uris if uri in self.constants})


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """The unit of work, retry and commit: one output object."""

    plan: int
    plan_token: str
    """Random name of the plan's claim: an object whose plan was never this one is a stray."""
    index: int
    slices: tuple[Slice, ...]
    table: TableOf | None = None

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.slices)

    @property
    def key(self) -> str:
        """Key of the output object, below the model's root."""
        return shard_key(self.plan, self.index)

    @property
    def name(self) -> str:
        return f"{self.plan:08d}/{self.index:08d}"

    def describe(self) -> str:
        """For a person: which rows this is."""
        where = " … ".join(dict.fromkeys(piece.describe() for piece in (self.slices[0], self.slices[-1])))
        return f"shard {self.name} ({counted(self.rows, 'row')}: {where})"


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

    def of(self, formats: tuple[str, ...]) -> Decoding:
        return Decoding(**{**vars(self), "formats": formats})

    def __str__(self) -> str:
        mean, std = (", ".join(f"{value:.4g}" for value in channels) for channels in (self.mean, self.std))
        scaled = ", large JPEGs made smaller while they are decoded" if self.decode == "scaled" else ""
        return (
            f"shorter side to {self.resize_px} px ({self.interpolation}){scaled}, centre crop of {self.crop_px} px, "
            f"mean [{mean}], std [{std}] of pixels in [0, 1]"
        )


@dataclass(frozen=True, kw_only=True)
class Decoding(Preprocess):
    """Preprocessing as one job does it. Bundles, which any job may use, keep what they share alone."""

    formats: tuple[str, ...]
    """What images may be: the spec's `input.formats`."""


class PreprocessSpec(TypedDict, total=False):
    """The spec's `model.preprocess`: what it changes in the preprocessing that the weights come with."""

    __pydantic_config__ = _KEYS_ARE_CHECKED  # type: ignore[misc]

    resize: AtLeast1 | None
    """Pixels of the shorter side after the resize."""
    crop: AtLeast1 | None
    """Side of the centre crop in pixels: what the network sees."""
    mean: tuple[float, float, float] | None
    """Per channel, for pixels in [0, 1]."""
    std: tuple[float, float, float] | None
    """Per channel, for pixels in [0, 1]."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None
    """Of the resize; bilinear and bicubic are antialiased."""
    decode: Literal["exact", "scaled"] | None
    """`exact`, or `scaled`: large JPEGs are made smaller while they are decoded, which is faster and not quite the same
    picture. The gate compares with fp32 on exactly decoded ones."""


@dataclass(frozen=True, kw_only=True)
class CalibrationSpec:
    """The spec's `model.calibration`."""

    __pydantic_config__ = _KEYS_ARE_CHECKED

    rows: AtLeast1 = 256
    """Rows of the job's own input that set the INT8 ranges."""
    seed: int = 0
    """Which rows: the same seed on the same input takes the same ones."""


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The spec's `model`: which network, with which weights, how it is made ready."""

    __pydantic_config__ = _KEYS_ARE_CHECKED

    arch: str
    """`torchvision/<name>` (any classification model) or `module:function` that returns an nn.Module."""
    weights: str | None = None
    """A torchvision weights enum (`DEFAULT`, `IMAGENET1K_V2`), or a path or URL of a .safetensors, .pth or .pt file."""
    args: Mapping[str, object] = field(default_factory=dict)
    """Keyword arguments of the architecture, as `{num_classes: 4}`."""
    labels: str | tuple[str, ...] | None = None
    """Class names: `imagenet`, a list, or a path or URL (text lines or a JSON list). Default: the weights' own."""
    task: Literal["classify", "embed"] = "classify"
    """`classify`: top-k classes. `embed`: the features before the last linear layer."""
    precision: Literal["int8", "bf16", "fp32"] = "int8"
    """`int8`: static quantization. `bf16`: float of half the width. Both are gated against fp32, the same path in
    float."""
    engine: Literal["auto", "torch-int8", "torch-pt2e", "openvino", "onnxruntime", "torch-float"] = "auto"
    """What runs the network. `auto`: for int8 each worker takes the best that its CPU and the installed extras run."""
    device: Literal["cpu", "cuda"] = "cpu"
    """`cuda`: the float engine, in bf16, on workers that take a GPU each."""
    float_layers: Share = 0.25
    """Where the gate refuses an INT8 network: the greatest share of its layers that may stay float to pass."""
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)
    """Overrides of the preprocessing that the weights come with."""
    calibration: CalibrationSpec = CalibrationSpec()
    """The sample that sets the INT8 ranges."""
    name: str | None = None
    """Of the folder with the predictions, `model=<name>-<fingerprint>`. Default: that of the architecture. A folder
    that is there already keeps its name."""


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """The spec's `gate`: when a network in INT8 or bf16 is good enough to ship."""

    __pydantic_config__ = _KEYS_ARE_CHECKED

    min_agreement: Share = 0.97
    """Least share of rows on which the network in INT8 or bf16 names the same class as in fp32."""
    min_cosine: Annotated[float, Interval(ge=-1, le=1)] = 0.98
    """For `task: embed`: least mean cosine similarity with fp32 vectors."""
    labels_column: str | None = None
    """Input column with the true class, an index or a label: true top-1 accuracy is then measured too, and over all
    rows of a run if it is among `input.keys`, by whatever name. Rows where it is empty or below 0 have no label. For
    `images` `folder`, where the folders are named after classes."""
    max_top1_drop: Share = 0.01
    """With labels_column: how much true top-1 may fall from that of fp32."""
    min_top1: Share | None = None
    """With labels_column: least true top-1 that a network must have, also one in fp32."""
    rows: AtLeast1 = 512
    """Rows to compare on, beside those that calibrate."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The spec's `input`."""

    # For a worker the driver fills in `keys` (the labels too, where the gate wants them) and `uri_roots` (absolute, and
    # never empty where URIs in data may be followed). The docstrings here are users' too: `stint schema` shows them.
    __pydantic_config__ = _KEYS_ARE_CHECKED

    uri: str | tuple[str, ...] = ()
    """File, folder or fsspec URL, or a list of them: `data/`, `s3://bucket/images/{as_of}/`, `gs://…`, `abfs://…`.
    `{as_of:%Y/%m/%d}` writes the day otherwise; `*`, `?`, `[…]` and `**` are wildcards; in a list `!…` leaves out."""
    manifest: str | None = None
    """In place of `uri`: a Parquet or text list of files, for inputs too large to list. `{as_of}` is replaced."""
    format: Literal["parquet", "images", "webdataset", "delta", "iceberg", "lance"] = "parquet"
    """`parquet`: files with an image column. `images`: image files, one row each. `webdataset`: tar files. `delta`,
    `iceberg`, `lance`: the table at `uri`, of which only live rows are scored."""
    version: str | None = None
    """Of a table: the one to score, as a number, the id of a snapshot, a tag; or `{as_of}`, the last one before the end
    of that day in `schedule.timezone`. Default: the newest."""
    pin: bool = False
    """Of a table in `lance`, or in `iceberg` by a catalog: tag the version of a plan until that is done, so that no
    clean-up takes its files away."""
    image: str = ""
    """Column with the image: bytes of any kind, struct<bytes, path>, or a URI as text; `sample.image` is a field of a
    struct. Default: `image`. For `webdataset` file extensions in order of preference, separated by `;`. Not used for
    `images`."""
    image_encoding: Literal["auto", "base64"] = "auto"
    """What texts in the image column are. `auto`: URIs, also `data:` ones. `base64`: images in base64."""
    keys: tuple[str | dict[str, str], ...] = ()
    """Columns copied to the output beside each prediction, `{truth: label}` under a name of its own: also fields of
    structs (`sample.label`) and folders of Hive (`day` of `day=2026-03-01/`, as text). For `webdataset` `__key__` and
    extensions, as `cls`; for `images` `path`, `folder` and `name` of the file."""
    sample_key: Literal["first_dot", "last_dot"] = "first_dot"
    """For `webdataset`, where the names of members part: `a.seg.png` is `seg.png` of sample `a`, as WebDataset has it,
    or with `last_dot` `png` of sample `a.seg`, for names as `cam_2024.05.01_0001.jpg`. Another value, another root."""
    formats: tuple[str, ...] = USUAL_FORMATS
    """What images may be, told by their first bytes; others are error rows (`unsupported_format`). Beside these
    `jpeg2000`, and with the extras of those names `heif` (HEIC too) and `jxl` (JPEG XL)."""
    uri_roots: tuple[str, ...] = ()
    """Where URIs found in data may point. Empty: only below `input.uri` itself. `https://host/path/` only if it
    stands here; a name leads to public addresses, `10.0.0.7` or `images.ns.svc` into the own network."""
    days: Annotated[int, Interval(ge=1, le=MOST_DAYS)] = 1
    """Days whose folders (`{as_of}`) a run looks at, the last being --as-of. Late files and missed nights of earlier
    days are scored only with more than 1."""
    on_change: Literal["report", "rescore"] = "report"
    """What to do with a file that was scored and has another content now: keep its predictions and say so every
    night, or score it again under a new plan that supersedes the old rows."""
    min_new_rows: Annotated[int, Interval(ge=0)] = 0
    """Rows that a day brings at least, whichever run claims them (a backfill into one output: all its days together).
    With fewer the run does what there is and ends with code 1, because the delivery is missing or not whole."""
    shard_rows: AtLeast1 | Literal["auto"] = "auto"
    """Rows a shard; `auto`: at most 4096, less when the workers could not share the input evenly."""
    shard_mb: AtLeast1 = 256
    """Encoded bytes a shard, in MiB, at most; a single row group may exceed it."""

    @property
    def copied(self) -> dict[str, str]:
        """By the name of a key, in the output's order, the input column that it is copied from."""
        pairs = [({key: key} if isinstance(key, str) else key).items() for key in self.keys]
        return {name: column for pair in pairs for name, column in pair}

    @property
    def uris(self) -> tuple[str, ...]:
        """Templates of files and folders to list; none for a manifest."""
        return tuple(uri for uri in self._given if not uri.startswith("!"))

    @property
    def exclusions(self) -> tuple[str, ...]:
        """Templates of what is left out of it."""
        return tuple(uri[1:] for uri in self._given if uri.startswith("!"))

    @property
    def _given(self) -> tuple[str, ...]:
        return (self.uri,) if isinstance(self.uri, str) else self.uri

    @property
    def by_date(self) -> bool:
        return any(AS_OF.search(template) for template in (*self.uris, self.manifest or "", self.version or ""))

    @property
    def is_table(self) -> bool:
        return self.format in ("delta", "iceberg", "lance")


@dataclass(frozen=True, kw_only=True)
class OutputTableSpec:
    """A table with exactly the rows of plans that are done, of the model that readers follow, for any engine that reads
    its format; brought up at the end of each run."""

    __pydantic_config__ = _KEYS_ARE_CHECKED

    format: Literal["delta", "iceberg", "lance"]
    """Delta and Iceberg name the objects where they are; Lance gets a copy of their rows."""
    uri: str = ""
    """Where the table is: a folder, or for Iceberg `iceberg://<catalog>/<namespace>.<table>`. Default: `_iceberg`, or
    `_predictions.lance`, in `output.uri`. A Delta table is always `output.uri` itself."""


@dataclass(frozen=True, kw_only=True)
class OutputSpec:
    """The spec's `output`."""

    # For a worker the driver makes `uri` absolute, that of its own day; bundles lie below it.
    __pydantic_config__ = _KEYS_ARE_CHECKED

    uri: str
    """Folder or URL of predictions and ledger, best one for all nights. `{as_of}` is replaced."""
    topk: AtLeast1 = 5
    """Classes a row."""
    single_writer: bool = False
    """Promise that no two runs ever overlap: allows stores without atomic create-if-absent."""
    table: OutputTableSpec | None = None
    """A table of the predictions beside them."""


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
    """Fingerprint of the bundle, below `<output.uri>/_stint/bundles/`."""
    fingerprint: str
    """Fingerprint of the model's root: written into every output object."""
    root: str
    """Key prefix of the model's root below `output.uri`: `model=<name>-<fp>`."""
    model: ModelSpec
    input: InputSpec
    output: OutputSpec
    key_schema: bytes = b""
    """Arrow schema of the key columns, in IPC form, in the order of `input.keys`, by their names there."""
    named: bool = True
    """Whether a prediction names its classes (`topk_name`)."""
    labels_key: str = ""
    """The key column that holds the true class, if one does."""
    threads: int
    """Physical cores a worker takes."""
    batch: int | None
    """Images a forward pass; None: what a tuning of such a host found best, else workers.bundle.profiles' rule."""
    engine: str = "auto"
    """In place of `model.engine`: `auto`, an engine, or the name of one artifact."""
    artifacts: tuple[str, ...] = ()
    """Names of the artifacts that this run's gate lets pass; (): all that the bundle holds."""
    memory_bytes: int | None = None
    """Most resident memory of the worker's process; None: its cores' share of the node's."""
    most_refused: float = 1.0
    """Share of a shard's rows that may be refused for a reason that lies in the spec; with more it is not committed."""
    accepted: tuple[int, ...] = ()
    """Plans that a person has accepted with their bad rows: of their shards all rows may be refused."""
    pin: bool = True
    """Take core leases and set affinity. Off in a LocalPool, whose process is not its own."""
    started_by: str = ""
    """The command, for whoever waits for the cores."""
    code_version: str = ""


@dataclass(frozen=True, kw_only=True)
class SampleSlice:
    """Rows to sample: `take` of them, spread evenly over the slice."""

    rows: Slice
    take: int
    table: TableOf | None = None


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
    started_by: str = ""
    """As in WorkerSpec."""
    pin: bool = True
