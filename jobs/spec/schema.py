"""The job spec: every key, its type, its default and its meaning.

Sections that workers need are dataclasses of `workers.contract`, checked here; those of the driver alone are here.
`stint schema` prints the JSON Schema of `JobSpec`; `jobs.spec.load` reads one from YAML.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Literal, cast
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from jobs.spec.days import check_template
from workers.contract import (
    ALL_FORMATS,
    AS_OF,
    AtLeast1,
    GateSpec,
    InputSpec,
    ModelSpec,
    OutputSpec,
    PreprocessSpec,
    Share,
)
from workers.output import OWN_COLUMNS
from workers.redaction import credential_in, shown
from workers.source.rows import FILE_KEYS
from workers.source.uris import check_root
from workers.source.webdataset import extensions

_RESERVED_COLUMNS = OWN_COLUMNS | {"model", "plan"}
"""The last two name folders of the output, which readers of Hive partitions put in place of a column. All in lower
case: DuckDB, Spark and others take `Label` for `label`."""
_DEFAULT_IMAGE = {
    **dict.fromkeys(("parquet", "delta", "iceberg", "lance"), "image"),
    "images": "",
    "webdataset": "jpg;jpeg;png;webp;gif;bmp;tif;tiff",
}


class Section(BaseModel):
    """A part of the spec. Docstrings below fields are their descriptions in the JSON Schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _no_credentials(url: str) -> None:
    """Specs end up in reports and logs."""
    if kind := credential_in(url):
        raise ValueError(
            f"the URL carries {kind}, which would end up in logs and reports. Take it out and give credentials by the "
            "environment, as the store's library finds them (AWS_PROFILE, AZURE_STORAGE_SAS_TOKEN, a role of the node)"
        )


def _no_other_library(arch: str) -> None:
    if not re.fullmatch(r"torchvision/.*|[\w.]+:[\w.]+", arch):
        name = arch.rpartition("/")[2]
        raise ValueError(
            f"no network of torchvision: write torchvision/{name or '<name>'}, or my_nets:function, for a function in "
            "a file of your own that returns the network"
        )


def _known_format(name: str) -> None:
    if name not in ALL_FORMATS:
        suffixes = {"jpg": "jpeg", "tif": "tiff", "heic": "heif", "jp2": "jpeg2000", "j2k": "jpeg2000"}
        meant = suffixes.get(name.lower()) or next(iter(difflib.get_close_matches(name.lower(), ALL_FORMATS, 1)), "")
        raise ValueError(f"none of {', '.join(ALL_FORMATS)}" + (f"; did you mean {meant}?" if meant else ""))


def _days_as_they_can_be_written(template: str, *, hours: bool = True) -> None:
    check_template(template, hours=hours)
    # A folder that is called so is less likely than a slip.
    if wrong := re.search(r"\{[\w :%-]+\}", AS_OF.sub("", template)):
        raise ValueError(f"{wrong[0]} stands for nothing; write {{as_of}}, which is the day, as 2026-03-01")


_OF_KEYS: dict[str, dict[str, tuple[Callable[[str], None], ...]]] = {
    "input": {
        "uri": (_no_credentials, _days_as_they_can_be_written),
        "manifest": (_no_credentials, _days_as_they_can_be_written),
        "formats": (_known_format,),
        "uri_roots": (_no_credentials, check_root),
    },
    "model": {"arch": (_no_other_library,), "weights": (_no_credentials,), "labels": (_no_credentials,)},
    "output": {"uri": (_no_credentials, partial(_days_as_they_can_be_written, hours=False))},
}
"""By section, what is asked of a key by itself; where it is a list, of each text in it. Raises ValueError."""


def _faults_of_keys(section: str, given: Mapping[str, Any]) -> Iterator[str]:
    for key, checks in _OF_KEYS[section].items():
        values = given.get(key)
        for text in (v for v in (values if isinstance(values, list | tuple) else [values]) if isinstance(v, str)):
            try:
                for check in checks:
                    check(text)
            except ValueError as error:
                yield f"{section}.{key}: {shown(text)}: {error}"


def _section(name: str, faults_of: Callable[[Any], Iterator[str]] = lambda _: iter(())) -> WrapValidator:
    """Has all faults of a section told at once: of types, of keys, and of the section, once its types are right."""

    def check(given: Any, by_types: ValidatorFunctionWrapHandler) -> Any:
        wrong: list[InitErrorDetails] = []
        faults = list(_faults_of_keys(name, given if isinstance(given, dict) else getattr(given, "__dict__", {})))
        try:
            section = by_types(given)
            faults += faults_of(section)
        except ValidationError as error:
            wrong += cast(list[InitErrorDetails], error.errors())
        for fault in faults:
            wrong.append(InitErrorDetails(type=PydanticCustomError("section", "{fault}", {"fault": fault}), input={}))
        if wrong:
            raise ValidationError.from_exception_data(name, wrong)
        return section

    return WrapValidator(check)


def _faults_of_input(given: InputSpec) -> Iterator[str]:
    if given.exclusions and not given.uris:
        yield "input.uri: all of it begins with !, which leaves files out; name what is to be scored as well"
    if not all((*given.uris, *given.exclusions)) or given.manifest == "":
        yield "input: an empty path; write . for the working directory"
    if bool(given.uris) == (given.manifest is not None):
        yield "input: exactly one of uri and manifest is wanted"
    if given.days > 1 and not given.by_date:
        yield f"input.days: {given.days} folders are wanted, but no {{as_of}} is in input.uri or manifest"
    image = _with_image(given).image
    images = extensions(image) if given.format == "webdataset" else (image,)
    if not images:
        yield f"input.image: {image!r} names no extension, as jpg;png does"
    if given.is_table and (len(given.uris) != 1 or given.exclusions or AS_OF.search(given.uris[0])):
        yield f"input.uri: with format: {given.format} it is the place of one table, without {{as_of}} and !"
    if given.is_table and given.days > 1:
        yield "input.days: a table is looked at as a whole; take it out"
    if given.version is not None and not given.is_table:
        yield f"input.version: it is for tables (delta, iceberg, lance), and the format is {given.format}"
    if given.pin and given.format == "delta":
        yield (
            "input.pin: Delta has no tags; have the table keep what it replaces for longer than a plan is open: "
            "`delta.deletedFileRetentionDuration` (a week by default), and no VACUUM that retains less"
        )
    elif given.pin and not given.is_table:
        yield f"input.pin: it is for tables (iceberg, lance), and the format is {given.format}"
    if given.format != "webdataset" and given.sample_key != "first_dot":
        yield f"input.sample_key: it is for format: webdataset, and the format is {given.format}"
    pairs = [pair for key in given.keys for pair in ({key: key} if isinstance(key, str) else key).items()]
    columns = [column for _, column in pairs]
    if given.format == "images" and (unknown := [column for column in columns if column not in FILE_KEYS]):
        yield f"input.keys: image files have no columns, so no {unknown[0]!r}; their keys are {', '.join(FILE_KEYS)}"
    if not given.formats:
        yield "input.formats: it is empty; name one, as [jpeg, png], or leave it out"
    if not all(map(all, pairs)):
        yield "input.keys: an empty name; write that of a column, or leave it out"
    names: set[str] = set()
    for name, column in pairs:
        # Readers that fold case would see one column, and not always the one that is meant.
        if (folded := name.lower()) in names or folded in _RESERVED_COLUMNS:
            why = "is named twice" if folded in names else "is a name that Stint uses in its output"
            alias = "truth" if folded == "label" else f"input_{folded}"
            yield (
                f"input.keys: {name} {why}, and upper and lower case are one to many readers; "
                f"write `keys: [{{{alias}: {column}}}]`"
            )
        names.add(folded)
    if given.format == "webdataset" and (copied := [column for column in columns if column.lower() in images]):
        yield f"input.keys: {copied[0]!r} is the image itself, which is not copied"


def _with_image(given: InputSpec) -> InputSpec:
    return replace(given, image=given.image or _DEFAULT_IMAGE[given.format])


LABEL_NAME = r"[A-Za-z0-9]([\w.-]*[A-Za-z0-9])?"
LabelKey = Annotated[str, Field(pattern=rf"^([a-z0-9.-]+/)?{LABEL_NAME}$")]
LabelValue = Annotated[str, Field(pattern=rf"^!?({LABEL_NAME}|in\({LABEL_NAME}(, *{LABEL_NAME})*\))$")]


def _in_mib(given: Any) -> Any:
    """`2 GB` or `1.5Gi` in MiB, as far as its unit has one meaning."""
    size = re.fullmatch(r"(\d+(?:\.\d+)?) *([kMGT]i?)(B?)", given, re.IGNORECASE) if isinstance(given, str) else None
    if size is None or not (size[3] or size[2].endswith("i")):
        return given
    step = 1024 if size[2].endswith("i") else 1000
    return f"{int(float(size[1]) * step ** ('KMGT'.index(size[2][0].upper()) + 1) // 2**20)}MiB"


def _hh_mm(given: Any) -> Any:
    """`6:00` and `06:00:00` are 06:00."""
    time = re.fullmatch(r"(\d\d?):(\d\d)(:00)?", given) if isinstance(given, str) else None
    return given if time is None else f"{int(time[1]):02}:{time[2]}"


Memory = Annotated[str, Field(pattern=r"^[1-9]\d*(MiB|GiB)$"), BeforeValidator(_in_mib)]


def _precision_of_float_engines(given: Any) -> Any:
    """INT8 is no default for what runs in float only."""
    if not isinstance(given, dict) or "precision" in given:
        return given
    if given.get("device") == "cuda":
        return {**given, "precision": "bf16"}
    return {**given, "precision": "fp32"} if given.get("engine") == "torch-float" else given


def _faults_of_model(given: ModelSpec) -> Iterator[str]:
    floats = given.engine in ("auto", "torch-float")
    if given.device == "cuda" and (given.precision == "int8" or not floats):
        asked = "precision: int8" if given.precision == "int8" else f"engine: {given.engine}"
        yield (
            f"model.device: cuda runs the float engine, in bf16 or fp32, not {asked}: INT8 is for CPUs, whose "
            "instructions the artifacts are made for; leave model.precision and model.engine out"
        )
    elif given.precision == "int8" and given.engine == "torch-float":
        yield "model.engine: torch-float runs bf16 and fp32, not precision: int8; write one of them"
    elif given.precision != "int8" and not floats:
        yield f"model.engine: {given.engine} runs int8, not precision: {given.precision}; leave model.engine out"
    yield from _faults_of_preprocess(given.preprocess)


def _faults_of_preprocess(given: PreprocessSpec) -> Iterator[str]:
    for key in ("mean", "std"):
        values: tuple[float, ...] = given.get(key) or ()  # type: ignore[assignment]
        if any(abs(value) > _MOST_NORMAL for value in values):
            yield (
                f"model.preprocess.{key}: {list(values)} is for pixels from 0 to 255, and Stint's are from 0 to 1: "
                "divide each by 255"
            )
        elif key == "std" and values and min(values) <= 0:
            yield f"model.preprocess.std: each must be above 0, got {list(values)}"
    resize, crop = given.get("resize"), given.get("crop")
    for key, side in (("resize", resize), ("crop", crop)):
        if side is not None and side > _MOST_SIDE_PX:
            yield f"model.preprocess.{key}: {side} is more than {_MOST_SIDE_PX} pixels; a batch would take many GiB"
    if resize is not None and crop is not None and resize < crop:
        yield f"model.preprocess: resize {resize} is smaller than crop {crop}; write `resize: {crop}`"


def _without_nulls(given: ModelSpec) -> ModelSpec:
    """Keys of `preprocess` that are null change nothing."""
    overrides = {key: value for key, value in given.preprocess.items() if value is not None}
    return replace(given, preprocess=cast(PreprocessSpec, overrides))


_MOST_NORMAL = 2.0
"""No channel of pixels from 0 to 1 has a mean or deviation above 1; in the scale of 255 hardly one is below this."""
_MOST_SIDE_PX = 8192
"""Far above what networks see; a photograph whose shorter side is that takes 256 MiB."""

Input = Annotated[InputSpec, _section("input", _faults_of_input), AfterValidator(_with_image)]
Model = Annotated[
    ModelSpec,
    BeforeValidator(_precision_of_float_engines),
    _section("model", _faults_of_model),
    AfterValidator(_without_nulls),
]


def _faults_of_output(output: OutputSpec) -> Iterator[str]:
    if (table := output.table) is None or not (uri := table.uri):
        return
    if kind := credential_in(uri):
        yield f"output.table.uri: the URL carries {kind}, which would end up in logs and reports: take it out"
    if table.format == "delta":
        yield f"output.table.uri: {shown(uri)}: a Delta table is at output.uri, above its files: take it out"
    elif AS_OF.search(output.uri):
        yield "output.table.uri: with {as_of} in output.uri each night is an output with its own table: take it out"
    elif AS_OF.search(uri):
        yield f"output.table.uri: {uri}: one table holds all nights: write it without {{as_of}}"


Output = Annotated[OutputSpec, _section("output", _faults_of_output)]


class Group(Section):
    labels: dict[LabelKey, LabelValue]
    """Ray node labels that a node must have, as `{ray.io/market-type: spot}` or `{stint/cpu: c7i}`; `!x` and
    `in(x, y)` work too."""
    max: AtLeast1 | None = None
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
    max: AtLeast1 = 64
    """Workers at most; as many as that without schedule.finish_by, with it as few as meet the deadline."""
    groups: tuple[Group, ...] = ()
    """Kinds of nodes, the preferred one first, as spot before on-demand. Empty: any node will do. When a preferred kind
    is to be had again, its workers come up beside those that they replace, even beyond `max`. A machine of its own,
    without a cluster, has no labels and ignores them."""
    cpus: AtLeast1 | Literal["auto"] = "auto"
    """Physical cores a worker; `auto`: what `stint tune` found best on such nodes, else one."""
    batch: AtLeast1 | Literal["auto"] = "auto"
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


class RowBudget(Section):
    share: Share
    """Of the rows of a plan, at most."""
    at_least: AtLeast1 = 1
    """Fewer rows than these are never too many."""

    @model_serializer
    def _as_given(self) -> object:
        """As a share alone where that says it: so specs that were saved before look the same."""
        return self.share if self.at_least == 1 else dict(self)

    def exceeded(self, rows: int, total: int) -> bool:
        """Whether so many rows, of so many in all, are too many."""
        return rows >= self.at_least and rows > self.share * total

    def __str__(self) -> str:
        return f"{self.share:.2%}" + (f", and up to {self.at_least - 1:,} rows" if self.at_least > 1 else "")


def _as_budget(given: Any) -> Any:
    """A number is the share."""
    if isinstance(given, dict | RowBudget):
        return given
    try:
        return RowBudget(share=given)
    except ValidationError as error:  # of a key that nobody has written
        raise PydanticCustomError("budget", "a share is wanted") from error


BudgetOfRows = Annotated[RowBudget, BeforeValidator(_as_budget, json_schema_input_type=Share | RowBudget)]


class Limits(Section):
    bad_rows: BudgetOfRows = RowBudget(share=0.01)
    """Rows of a plan that may be error rows before the run ends with exit code 3: a share as 0.01, or a share and how
    many rows it takes, as {share: 0.01, at_least: 5}."""
    gone_rows: BudgetOfRows = RowBudget(share=0.5)
    """In the same form, rows of a plan whose source vanished or changed before it was their turn, and which no later
    plan has claimed again: with more of them the run ends with exit code 1. Half by default: that some files move while
    a night runs is ordinary, and they are claimed again when they are back; this is for a folder that went as a
    whole."""
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
    wait_for_cores_s: Annotated[float, Field(gt=0)] = 3600
    """Seconds that a run without any worker waits for cores that other commands hold, before it ends with code 2."""


class Schedule(Section):
    finish_by: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d$"), BeforeValidator(_hh_mm)] | None = None
    """Wall clock time, HH:MM, by which the night must be done: the fewest workers that manage are used. Within three
    hours after it a run counts as late, later it is meant for the next day."""
    timezone: str = "UTC"
    """Zone of finish_by and of today's date as `{as_of}`."""
    on_new_model: Literal["ask", "score"] = "ask"
    """When a run of one day (--as-of, as every `stint submit` is) would be the first with another model than before,
    because the spec, the code, the weights or a library changed. `ask`: it stops with exit code 2, tells what changed,
    what it would cost, and the two ways on. `score`: it says so and goes on. A run without --as-of always does."""

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


class DriftSpec(Section):
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

    name: Annotated[str, AfterValidator(_plain_name)]
    """Name of the job: lower case letters, digits, hyphens."""
    input: Input
    """What to score."""
    model: Model
    """With which network."""
    gate: GateSpec = GateSpec()
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
    drift: DriftSpec = DriftSpec()
    """When predictions differ from those of the nights before so much that a person should look."""

    @model_validator(mode="after")
    def _nights_share_an_output(self) -> JobSpec:
        if self.input.days > 1 and AS_OF.search(self.output.uri):
            raise ValueError(
                "input.days: with {as_of} in output.uri every night has a ledger of its own, and would score the "
                "earlier days again; write all nights to one output"
            )
        return self

    @model_validator(mode="after")
    def _labels_are_of_classes(self) -> JobSpec:
        if self.model.task == "embed" and self.gate.labels_column is not None:
            raise ValueError("gate.labels_column: embeddings have no classes; task: embed is judged by gate.min_cosine")
        if self.gate.min_top1 is not None and self.gate.labels_column is None:
            raise ValueError("gate.min_top1: true top-1 needs gate.labels_column, a column with the true class")
        return self
