"""The job spec: YAML checked by pydantic, overridden by `--set`, with `{as_of}` filled in.

Unknown keys are refused with the nearest valid one. `stint schema` prints the JSON Schema of `JobSpec`.
"""

from __future__ import annotations

import difflib
import re
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from jobs.errors import SpecError

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
    ]
)


class Section(BaseModel):
    """A part of the spec. Docstrings below fields are their descriptions in the JSON Schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Input(Section):
    uri: str
    """File, folder or fsspec URL: `data/`, `s3://bucket/images/`, `gs://…`, `abfs://…`. `{as_of}` is replaced."""
    format: Literal["parquet", "images"] = "parquet"
    """`parquet`: files with an image column. `images`: a folder of image files, one row each."""
    image: str = "image"
    """Column with the image: binary, large_binary, struct<bytes, path> or a string URI. Not used for `images`."""
    keys: tuple[str, ...] = ()
    """Columns copied to the output beside each prediction."""
    uri_roots: tuple[str, ...] = ()
    """Where URIs found in data may point. Empty: only below `input.uri` itself."""
    shard_rows: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Rows a shard; `auto`: at most 4096, less when the workers could not share the input evenly."""
    shard_mb: Annotated[int, Field(ge=1)] = 256
    """Encoded bytes a shard, in MiB, at most; a single row group may exceed it."""

    @field_validator("keys")
    @classmethod
    def _keys_are_free(cls, keys: tuple[str, ...]) -> tuple[str, ...]:
        if taken := RESERVED_COLUMNS & set(keys):
            raise ValueError(f"{', '.join(sorted(taken))} is a column that Stint writes; rename the input column")
        if len(set(keys)) != len(keys):
            raise ValueError("a key is named twice")
        return keys

    @model_validator(mode="after")
    def _keys_can_be_had(self) -> Input:
        if self.format == "images" and self.keys:
            raise ValueError("input.keys: image files have no columns; source_uri tells rows apart")
        if self.image in self.keys:
            raise ValueError(f"input.keys: {self.image!r} is the image itself, which is not copied")
        return self


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
    args: dict[str, Any] = {}
    """Keyword arguments of the architecture, as `{num_classes: 4}`."""
    labels: str | tuple[str, ...] | None = None
    """Class names: `imagenet`, a list, or a path or URL (text lines or a JSON list). Default: the weights' own."""
    task: Literal["classify", "embed"] = "classify"
    """`classify`: top-k classes. `embed`: the features before the last linear layer."""
    precision: Literal["int8", "fp32"] = "int8"
    """`int8`: static quantization, gated against fp32. `fp32`: the same path in float."""
    preprocess: PreprocessOverrides = PreprocessOverrides()
    """Overrides of the preprocessing that the weights come with."""
    calibration: Calibration = Calibration()
    """The sample that sets the INT8 ranges."""

    @field_validator("arch")
    @classmethod
    def _arch_is_named(cls, arch: str) -> str:
        if arch.startswith("torchvision/") or re.fullmatch(r"[\w.]+:[\w.]+", arch):
            return arch
        raise ValueError(f"{arch!r}: write torchvision/<name> (did you mean torchvision/{arch}?) or module:function")


class Gate(Section):
    min_agreement: Annotated[float, Field(ge=0, le=1)] = 0.97
    """Least share of rows on which INT8 and fp32 name the same class."""
    min_cosine: Annotated[float, Field(ge=-1, le=1)] = 0.98
    """For `task: embed`: least mean cosine similarity of INT8 and fp32 vectors."""
    labels_column: str | None = None
    """Input column with the true class, an index or a label: true top-1 accuracy is then measured too."""
    max_top1_drop: Annotated[float, Field(ge=0, le=1)] = 0.01
    """With labels_column: how much true top-1 may fall from fp32 to INT8."""
    rows: Annotated[int, Field(ge=1)] = 512
    """Rows to compare on, beside those that calibrate."""


class Output(Section):
    uri: str
    """Folder or URL of predictions and ledger. `{as_of}` is replaced."""
    topk: Annotated[int, Field(ge=1)] = 5
    """Classes a row."""
    single_writer: bool = False
    """Promise that no two runs ever overlap: allows stores without atomic create-if-absent."""


class Workers(Section):
    min: Annotated[int, Field(ge=0)] = 0
    """Workers kept while there is work."""
    max: Annotated[int, Field(ge=1)] = 64
    """Workers at most."""
    cpus: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Physical cores a worker; `auto`: one."""
    batch: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Images a forward pass; `auto`: 16."""

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
    """Times a shard is tried again after a lost worker or a storage fault."""


class Schedule(Section):
    finish_by: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$")] | None = None
    """Wall clock time, HH:MM, by which the night must be done: progress says when it will be late."""
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
    """When the INT8 model is good enough."""
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

    @model_validator(mode="after")
    def _labels_are_of_classes(self) -> JobSpec:
        if self.model.task == "embed" and self.gate.labels_column is not None:
            raise ValueError("gate.labels_column: embeddings have no classes; task: embed is judged by gate.min_cosine")
        return self


# ------------------------------------------------------------------------------------------- loading


def load_spec(path: str, overrides: list[str], as_of: date | None = None) -> JobSpec:
    """Read a YAML spec, apply `a.b=value` overrides, fill `{as_of}` in. Raises SpecError."""
    file = Path(path)
    try:
        text = file.read_text()
    except (FileNotFoundError, IsADirectoryError) as error:
        known = sorted(str(p) for p in Path("conf").glob("*.yaml")) if Path("conf").is_dir() else []
        hint = f" (there is {', '.join(known)})" if known else ""
        raise SpecError(f"no spec at {path}{hint}") from error
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{path} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise SpecError(f"{path} holds no spec: a mapping with name, input, model and output is wanted")
    for override in overrides:
        _override(raw, override)
    return parse_spec(raw, path, as_of)


def parse_spec(raw: dict[str, Any], source: str = "spec", as_of: date | None = None) -> JobSpec:
    """Check a spec that is already a mapping. Raises SpecError that names each wrong key."""
    try:
        spec = JobSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(f"{source}: " + "; ".join(_explain(e) for e in error.errors())) from error
    day = (as_of or datetime.now(ZoneInfo(spec.schedule.timezone)).date()).isoformat()
    # Relative weights, labels and data stay relative to the working directory, which Ray ships to every node.
    return spec.model_copy(
        update={
            "input": spec.input.model_copy(update={"uri": spec.input.uri.replace("{as_of}", day)}),
            "output": spec.output.model_copy(update={"uri": spec.output.uri.replace("{as_of}", day)}),
        }
    )


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise SpecError(f"--set {override}: write --set section.key=value, as --set workers.max=8")
    *sections, key = path.split(".")
    here = raw
    for section in sections:
        here = here.setdefault(section, {})
        if not isinstance(here, dict):
            raise SpecError(f"--set {override}: {section} is a value, not a section")
    try:
        here[key] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SpecError(f"--set {override}: {value!r} is not a YAML value: {error}") from error


def _explain(error: Any) -> str:
    """One validation error for a person: where, what, and the nearest valid key for a typo."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        valid = list(_section_at(error["loc"][:-1]).model_fields)
        near = difflib.get_close_matches(str(error["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(valid)}"
        return f"unknown key {where!r}: {hint}"
    if error["type"] == "missing":
        return f"{where!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    # A check of a whole section names its key itself.
    return message if isinstance(error["input"], dict) else f"{where}: {message}, got {error['input']!r}"


def _section_at(path: tuple[int | str, ...]) -> type[BaseModel]:
    section: type[BaseModel] = JobSpec
    for part in path:
        annotation = section.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
    return section
