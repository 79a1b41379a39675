"""The job spec as pydantic models: every key, its type, its default and its meaning.

`stint schema` prints the JSON Schema of `JobSpec`; `jobs.spec.load` reads one from YAML.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from jobs.console import Console
from jobs.errors import COMPLETE
from jobs.spec.days import AS_OF, MOST_DAYS
from workers.redaction import credential_in
from workers.source import uris
from workers.source.webdataset import extensions

# ----------------------------------------------------------------------------------------------------
# The spec's `input` section: what to score.

RESERVED_COLUMNS = frozenset(
    [
        "source_uri",
        "source_version",
        "row_group",
        "row",
        "label",
        "score",
        "topk_label",
        "topk_score",
        "embedding",
        "error_code",
        "error_message",
        # Names of the output's folders, which readers of Hive partitions put in place of a column.
        "model",
        "plan",
    ]
)


class Section(BaseModel):
    """A part of the spec. Docstrings below fields are their descriptions in the JSON Schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def no_credentials(url: str) -> str:
    """A URL of the spec as it is. Raises ValueError where it carries a credential: specs end up in reports and logs."""
    if kind := credential_in(url):
        raise ValueError(
            f"the URL carries {kind}, which would end up in logs and reports. Take it out and give credentials by the "
            "environment, as the store's library finds them (AWS_PROFILE, AZURE_STORAGE_SAS_TOKEN, a role of the node)"
        )
    return url


DEFAULT_IMAGE = {"parquet": "image", "images": "", "webdataset": "jpg;jpeg;png;webp;gif;bmp;tif;tiff"}


class Input(Section):
    uri: str | tuple[str, ...] = ()
    """File, folder or fsspec URL, or a list of them: `data/`, `s3://bucket/images/{as_of}/`, `gs://…`, `abfs://…`."""
    manifest: str | None = None
    """In place of `uri`: a Parquet or text list of files, for inputs too large to list. `{as_of}` is replaced."""
    format: Literal["parquet", "images", "webdataset"] = "parquet"
    """`parquet`: files with an image column. `images`: image files, one row each. `webdataset`: tar files."""
    image: Annotated[str, Field(validate_default=True)] = ""
    """Column with the image: binary, large_binary, struct<bytes, path> or a string URI; default `image`. For
    `webdataset` file extensions in order of preference, separated by `;`. Not used for `images`."""
    keys: tuple[str, ...] = ()
    """Columns copied to the output beside each prediction; for `webdataset` `__key__` and extensions, as `cls`."""
    uri_roots: tuple[str, ...] = ()
    """Where URIs found in data may point. Empty: only below `input.uri` itself. `https://host/path/` only if it
    stands here; a name leads to public addresses, `10.0.0.7` or `images.ns.svc` into the own network."""
    days: Annotated[int, Field(ge=1, le=MOST_DAYS)] = 1
    """Folders of `{as_of}` that a run looks at, the last being --as-of: late files and missed nights are caught up."""
    on_change: Literal["report", "rescore"] = "report"
    """What to do with a file that was scored and has another content now: keep its predictions and say so every
    night, or score it again under a new plan that supersedes the old rows."""
    shard_rows: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows a shard; `auto`: at most 4096, less when the workers could not share the input evenly."""
    shard_mb: Annotated[int, Field(ge=1)] = 256
    """Encoded bytes a shard, in MiB, at most; a single row group may exceed it."""

    @property
    def uris(self) -> tuple[str, ...]:
        """Templates of files and folders to list; none for a manifest."""
        return (self.uri,) if isinstance(self.uri, str) else self.uri

    @property
    def by_date(self) -> bool:
        return any(AS_OF in template for template in (*self.uris, self.manifest or ""))

    @field_validator("uri", "manifest", "uri_roots")
    @classmethod
    def _urls_are_public(cls, given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for url in (given,) if isinstance(given, str) else given or ():
            no_credentials(url)
        return given

    @field_validator("uri_roots")
    @classmethod
    def _roots_can_be_followed(cls, roots: tuple[str, ...]) -> tuple[str, ...]:
        for root in roots:
            uris.check_root(root)
        return roots

    @field_validator("image")
    @classmethod
    def _image_has_a_default(cls, image: str, info: ValidationInfo) -> str:
        return image or DEFAULT_IMAGE[info.data.get("format", "parquet")]

    @field_validator("keys")
    @classmethod
    def _keys_are_free(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if taken := RESERVED_COLUMNS & set(keys):
            raise ValueError(
                f"{', '.join(sorted(taken))} is a name that Stint uses in its output; rename the input column"
            )
        if len(set(keys)) != len(keys):
            raise ValueError("a key is named twice")
        return keys

    @model_validator(mode="after")
    def _keys_can_be_had(self) -> Input:
        if self.format == "images" and self.keys:
            raise ValueError("input.keys: image files have no columns; source_uri tells rows apart")
        images = extensions(self.image) if self.format == "webdataset" else (self.image,)
        if taken := [key for key in self.keys if (key.lower() if self.format == "webdataset" else key) in images]:
            raise ValueError(f"input.keys: {taken[0]!r} is the image itself, which is not copied")
        if not images:
            raise ValueError(f"input.image: {self.image!r} names no extension, as jpg;png does")
        return self

    @model_validator(mode="after")
    def _input_is_named_once(self) -> Input:
        if not all(self.uris) or self.manifest == "":
            raise ValueError("input: an empty path; write . for the working directory")
        if bool(self.uris) == (self.manifest is not None):
            raise ValueError("input: exactly one of uri and manifest is wanted")
        if self.days > 1 and not self.by_date:
            raise ValueError(f"input.days: {self.days} folders are wanted, but no {AS_OF} is in input.uri or manifest")
        return self


LABEL_NAME = r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?"
LabelKey = Annotated[str, Field(pattern=rf"^([a-z0-9.-]+/)?{LABEL_NAME}$")]
LabelValue = Annotated[str, Field(pattern=rf"^!?({LABEL_NAME}|in\({LABEL_NAME}(, *{LABEL_NAME})*\))$")]


Memory = Annotated[str, Field(pattern=r"^[1-9]\d*(MiB|GiB)$")]


class PreprocessOverrides(Section):
    resize: Annotated[int, Field(ge=1)] | None = None
    """Pixels of the shorter side after the resize."""
    crop: Annotated[int, Field(ge=1)] | None = None
    """Side of the centre crop in pixels: what the network sees."""
    mean: tuple[float, float, float] | None = None
    """Per channel, for pixels in [0, 1]."""
    std: tuple[float, float, float] | None = None
    """Per channel, for pixels in [0, 1]."""
    interpolation: Literal["bilinear", "bicubic", "nearest"] | None = None
    """Of the resize; bilinear and bicubic are antialiased."""
    decode: Literal["exact", "scaled"] | None = None
    """`exact`, or `scaled`: large JPEGs are made smaller while they are decoded, which is faster and not quite the same
    picture. The gate compares with fp32 on exactly decoded ones."""


class Calibration(Section):
    rows: Annotated[int, Field(ge=1)] = 256
    """Rows of the job's own input that set the INT8 ranges."""
    seed: int = 0
    """Which rows: the same seed on the same input takes the same ones."""


class Model(Section):
    arch: str
    """`torchvision/<name>` (any classification model) or `module:function` that returns an nn.Module."""
    weights: str | None = None
    """A torchvision weights enum (`DEFAULT`, `IMAGENET1K_V2`), or a path or URL of a .safetensors, .pth or .pt file."""
    args: Annotated[dict[str, Any], Field(default_factory=dict)]
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
    float_layers: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Where the gate refuses an INT8 network: the greatest share of its layers that may stay float to pass."""
    preprocess: PreprocessOverrides = PreprocessOverrides()
    """Overrides of the preprocessing that the weights come with."""
    calibration: Calibration = Calibration()
    """The sample that sets the INT8 ranges."""

    @model_validator(mode="before")
    @classmethod
    def _float_engines_have_a_precision(cls, given: Any) -> Any:
        """What runs in float only is not asked for INT8 by a default."""
        if not isinstance(given, dict) or "precision" in given:
            return given
        if given.get("device") == "cuda":
            return {**given, "precision": "bf16"}
        return {**given, "precision": "fp32"} if given.get("engine") == "torch-float" else given

    @model_validator(mode="after")
    def _engine_runs_the_precision(self) -> Model:
        if self.device == "cuda" and (self.precision == "int8" or self.engine not in ("auto", "torch-float")):
            asked = "precision: int8" if self.precision == "int8" else f"engine: {self.engine}"
            raise ValueError(
                f"model.device: cuda runs the float engine, in bf16 or fp32, not {asked}: INT8 is for CPUs, whose "
                "instructions the artifacts are made for; leave model.precision and model.engine out"
            )
        if self.precision == "int8" and self.engine == "torch-float":
            raise ValueError("model.engine: torch-float runs bf16 and fp32, not precision: int8; write one of them")
        if self.precision != "int8" and self.engine not in ("auto", "torch-float"):
            raise ValueError(
                f"model.engine: {self.engine} runs int8, not precision: {self.precision}; leave model.engine out"
            )
        return self

    @field_validator("weights", "labels")
    @classmethod
    def _urls_are_public(cls, given: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        return no_credentials(given) if isinstance(given, str) else given

    @field_validator("arch")
    @classmethod
    def _arch_is_named(cls, arch: str) -> str:
        if arch.startswith("torchvision/") or re.fullmatch(r"[\w.]+:[\w.]+", arch):
            return arch
        raise ValueError(f"{arch!r}: write torchvision/<name> (did you mean torchvision/{arch}?) or module:function")


class Gate(Section):
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.97
    """Least share of rows on which the network in INT8 or bf16 names the same class as in fp32."""
    min_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.98
    """For `task: embed`: least mean cosine similarity with fp32 vectors."""
    labels_column: str | None = None
    """Input column with the true class, an index or a label: true top-1 accuracy is then measured too."""
    max_top1_drop: Annotated[float, Field(ge=0, le=1)] = 0.01
    """With labels_column: how much true top-1 may fall from that of fp32."""
    rows: Annotated[int, Field(ge=1)] = 512
    """Rows to compare on, beside those that calibrate."""


class Output(Section):
    uri: str
    """Folder or URL of predictions and ledger, best one for all nights. `{as_of}` is replaced."""
    topk: Annotated[int, Field(ge=1)] = 5
    """Classes a row."""
    single_writer: bool = False
    """Promise that no two runs ever overlap: allows stores without atomic create-if-absent."""

    @field_validator("uri")
    @classmethod
    def _url_is_public(cls, given: str) -> str:
        return no_credentials(given)


class Group(Section):
    labels: dict[LabelKey, LabelValue]
    """Ray node labels that a node must have, as `{ray.io/market-type: spot}` or `{stint/cpu: c7i}`; `!x` and
    `in(x, y)` work too."""
    max: Annotated[int, Field(ge=1)] | None = None
    """Workers at most in this group."""
    patience_s: Annotated[float, Field(gt=0)] = 600
    """How long a worker may wait for a node here, boot and image pull included; then the next group is asked, and
    this one again after a while."""

    @field_validator("labels")
    @classmethod
    def _labels_tell_a_group(cls, labels: dict[str, str]) -> dict[str, str]:
        if not labels:
            raise ValueError("workers.groups: a group is told by its labels, as {ray.io/market-type: spot}")
        return labels


class Workers(Section):
    min: Annotated[int, Field(ge=0)] = 0
    """Workers kept while there is work."""
    max: Annotated[int, Field(ge=1)] = 64
    """Workers at most; as many as that without schedule.finish_by, with it as few as meet the deadline."""
    groups: tuple[Group, ...] = ()
    """Kinds of nodes, the preferred one first, as spot before on-demand. Empty: any node will do. When a preferred kind
    is to be had again, its workers come up beside those that they replace, even beyond `max`. A machine of its own,
    without a cluster, has no labels and ignores them."""
    cpus: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Physical cores a worker; `auto`: what `stint tune` found best on such nodes, else one."""
    batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Images a forward pass; `auto`: what `stint tune` found best on such a node, else 16, or fewer where memory is
    short for such images."""
    memory: Memory | Literal["auto"] = "auto"
    """Most memory that a worker's process may take, as `2GiB` or `1500MiB`; one that takes more is ended. `auto`: its
    cores' share of what its node has."""

    @property
    def memory_bytes(self) -> int | None:
        """The bound in bytes; None for a worker's share of its node."""
        if self.memory == "auto":
            return None
        return int(self.memory[:-3]) * (2**30 if self.memory.endswith("GiB") else 2**20)

    @model_validator(mode="after")
    def _min_below_max(self) -> Workers:
        if self.min > self.max:
            raise ValueError(f"workers.min {self.min} is above workers.max {self.max}")
        return self


class Limits(Section):
    bad_rows: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of rows that may be error rows before the run stops with exit code 3."""
    task_retries: Annotated[int, Field(ge=0)] = 3
    """Times a shard is tried again after an error of our code, the model's, or its data."""
    infra_retries: Annotated[int, Field(ge=0)] = 20
    """Times a shard is tried again after a storage fault or a lost node (its third lost node counts as a crash)."""
    crash_retries: Annotated[int, Field(ge=0)] = 2
    """Times a shard is tried again after its worker crashed, counted over all runs; then it is scored in an isolated
    process, which finds the rows that kill it and makes them error rows (`crashed_worker`)."""
    stall_s: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Seconds after which a worker that still scores the same shard is held to be stuck and ended; in isolation, what
    scoring all its rows may take. `auto`: half an hour, or 20 times what such a shard has taken if that is longer, once
    any has ended."""


class Schedule(Section):
    finish_by: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] | None = None
    """Wall clock time, HH:MM, by which the night must be done: the fewest workers that manage are used. Within three
    hours after it a run counts as late, later it is meant for the next day."""
    timezone: str = "UTC"
    """Zone of finish_by and of today's date as `{as_of}`."""

    @field_validator("timezone")
    @classmethod
    def _zone_exists(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (KeyError, ValueError) as error:
            raise ValueError(f"no time zone {name!r}; write one of the IANA names, as Europe/Berlin") from error
        return name


class Cost(Section):
    per_cpu_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one logical CPU for one hour, in your currency: runs then tell what they cost."""


class Drift(Section):
    nights: Annotated[int, Field(ge=0)] = 7
    """Runs before this one that its predictions are compared with, taken together; 0: none."""
    max_psi: Annotated[float, Field(gt=0)] = 0.2
    """Population stability index of predicted classes, or of scores, above which a night is flagged."""
    max_js: Annotated[float, Field(gt=0, le=1)] = 0.1
    """The same for the Jensen-Shannon divergence, base 2."""


def _plain_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", name):
        raise ValueError(f"{name!r}: use lower case letters, digits and hyphens (it becomes part of cluster names)")
    return name


class JobSpec(Section):
    """A job: what to score, with which model, to where."""

    name: Annotated[str, BeforeValidator(_plain_name)]
    """Name of the job: lower case letters, digits, hyphens."""
    input: Input
    """What to score."""
    model: Model
    """With which network."""
    gate: Gate = Gate()
    """When the INT8 or bf16 model is good enough."""
    output: Output
    """Where predictions go."""
    workers: Workers = Workers()
    """How many, how wide."""
    limits: Limits = Limits()
    """Budgets for errors."""
    schedule: Schedule = Schedule()
    """When the night must be done."""
    cost: Cost = Cost()
    """Prices."""
    drift: Drift = Drift()
    """When predictions differ from those of the nights before so much that a person should look."""

    @model_validator(mode="after")
    def _nights_share_an_output(self) -> JobSpec:
        if self.input.days > 1 and AS_OF in self.output.uri:
            raise ValueError(
                f"input.days: with {AS_OF} in output.uri every night has a ledger of its own, and would score the "
                "earlier days again; write all nights to one output"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_of_classes(self) -> JobSpec:
        if self.model.task == "embed" and self.gate.labels_column is not None:
            raise ValueError("gate.labels_column: embeddings have no classes; task: embed is judged by gate.min_cosine")
        return self


def command(_: argparse.Namespace, console: Console) -> int:
    """`stint schema`."""
    console.show(json.dumps(JobSpec.model_json_schema(), indent=2))
    return COMPLETE
