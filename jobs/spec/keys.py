"""The keys of the spec, one by one: what each may be, its default, its unit and a value to write as an example."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jobs.spec.schema import JobSpec

_EXAMPLES: dict[str, object] = {
    "input.version": "{as_of}",
    "output.table.uri": "iceberg://prod/vision.predictions",
    "name": "nightly-products",
    "input.uri": "s3://bucket/images/{as_of}/",
    "input.manifest": "s3://bucket/lists/{as_of}.parquet",
    "input.image": "image",
    "input.keys": ["id"],
    "input.uri_roots": ["s3://bucket/photos/"],
    "input.days": 3,
    "input.min_new_rows": 1000,
    "input.shard_rows": 2048,
    "model.arch": "torchvision/resnet50",
    "model.weights": "DEFAULT",
    "model.args": {"num_classes": 4},
    "model.labels": ["cat", "dog"],
    "model.name": "products",
    "model.preprocess.resize": 256,
    "model.preprocess.crop": 224,
    "model.preprocess.mean": [0.485, 0.456, 0.406],
    "model.preprocess.std": [0.229, 0.224, 0.225],
    "gate.labels_column": "label",
    "output.uri": "s3://bucket/predictions/",
    "workers.groups.max": 16,
    "workers.groups.labels": {"ray.io/market-type": "spot"},
    "workers.memory": "2GiB",
    "limits.bad_rows.share": 0.01,
    "limits.bad_rows.at_least": 5,
    "limits.gone_rows.at_least": 5,
    "schedule.finish_by": "06:00",
    "schedule.timezone": "Europe/Berlin",
    "cost.per_cpu_hour": 0.034,
}
"""Of keys whose default shows nothing; of the others the default, or what their kind allows, is the example."""
_UNITS = {
    "rows": "rows", "at_least": "rows", "min_new_rows": "rows", "shard_rows": "rows", "shard_mb": "MiB",
    "resize": "pixels", "crop": "pixels", "days": "days", "nights": "runs", "topk": "classes", "min": "workers",
    "max": "workers", "cpus": "cores", "batch": "images", "memory": "MiB or GiB", "finish_by": "HH:MM",
    "per_cpu_hour": "your currency", "mean": "share of full brightness", "std": "share of full brightness",
}  # fmt: skip
"""By the last part of a key."""


@dataclass(frozen=True)
class Key:
    path: str
    """`model.calibration.rows`; of a key of a list of sections `workers.groups.max`."""
    schema: dict[str, Any]
    required: bool

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def kinds(self) -> list[dict[str, Any]]:
        """JSON Schemas of what the key may be, each of one type."""
        return branches(self.schema)

    @property
    def is_section(self) -> bool:
        return any("properties" in section_of(kind) for kind in self.kinds)

    @property
    def unit(self) -> str:
        if self.name.endswith("_retries"):
            return "times"
        if self.name.endswith("_s"):
            return "seconds"
        return _UNITS.get(self.name) or ("share" if any(map(is_share, self.kinds)) else "")

    @property
    def wanted(self) -> str:
        """In words, as `a whole number of at least 1 or auto`."""
        words = [_words(kind) for kind in self.kinds if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(words))

    @property
    def example(self) -> object:
        if self.path in _EXAMPLES:
            return _EXAMPLES[self.path]
        default = self.schema.get("default")
        if default not in (None, "", [], {}) and not isinstance(default, dict):
            return default
        return _example(self.kinds[0], self.path)

    @property
    def line(self) -> str:
        """To write into a spec."""
        return f"`{self.name}: {flow(self.example)}`"


def flow(value: object, inside: bool = False) -> str:
    """A value as a spec has it, in one line; `inside` braces or brackets."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item, True)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(item, True) for item in value) + "]"
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z/][\w./:{}+-]*|\d+[KMG]i?B", value):
        return json.dumps(value) if inside and "{" in value else value
    return json.dumps(value, ensure_ascii=False)


def section_of(kind: dict[str, Any]) -> dict[str, Any]:
    """The section that a kind is, or that it is a list of."""
    return branches(kind["items"])[0] if "items" in kind else kind


def branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Of a JSON Schema within the spec's, with references resolved, each alternative."""
    if "$ref" in schema:
        return branches(_spec()["$defs"][schema["$ref"].rpartition("/")[2]])
    return [kind for one in schema["anyOf"] for kind in branches(one)] if "anyOf" in schema else [schema]


def key_at(loc: Sequence[int | str]) -> tuple[Key, str]:
    """The key that a place in a spec is of, or lies in, and that place as far as it has a name of its own."""
    key, where = Key("", _spec(), True), ""
    for part in loc:
        sections = [s for kind in key.kinds if "properties" in (s := section_of(kind))]
        if isinstance(part, int) and sections:
            where += f".{part}"
            continue
        section = next((s for s in sections if part in s["properties"]), None)
        if section is None:
            break
        path, where = f"{key.path}.{part}", f"{where}.{part}"
        key = Key(path.strip("."), section["properties"][part], part in section.get("required", ()))
    return key, where.strip(".")


def keys_below(key: Key) -> list[Key]:
    """Of a section, its keys; of the spec, `key_at(())`, the sections and the name."""
    return [
        Key(f"{key.path}.{name}".strip("."), schema, name in section.get("required", ()))
        for kind in key.kinds
        for section in [section_of(kind)]
        for name, schema in section.get("properties", {}).items()
    ]


def every_key(within: Key | None = None) -> Iterator[Key]:
    """Section by section, in the order of the spec."""
    for key in keys_below(within or key_at(())[0]):
        yield key
        yield from every_key(key) if key.is_section else ()


def is_share(kind: dict[str, Any]) -> bool:
    return (kind.get("type"), kind.get("minimum"), kind.get("maximum")) == ("number", 0, 1)


@cache
def _spec() -> dict[str, Any]:
    return JobSpec.model_json_schema()


def _words(kind: dict[str, Any]) -> str:
    if "const" in kind or "enum" in kind:
        return "one of " + ", ".join(kind["enum"]) if "enum" in kind else str(kind["const"])
    match kind.get("type"):
        case "integer" | "number":
            return _number_words(kind)
        case "boolean":
            return "true or false"
        case "array" if "prefixItems" in kind:
            return f"a list of {len(kind['prefixItems'])} numbers"
        case "array":
            items = branches(kind["items"])
            texts = "a list of texts, or {name: column}" if items[1:] else "a list of texts"
            return texts if items[0].get("type") == "string" else "a list of sections"
        case "object":
            return "a section"
        case _:
            return "text"


def _number_words(kind: dict[str, Any]) -> str:
    noun = "a share" if is_share(kind) else "a whole number" if kind["type"] == "integer" else "a number"
    least, above, most = kind.get("minimum"), kind.get("exclusiveMinimum"), kind.get("maximum")
    if least is not None and most is not None:
        return f"{noun} from {least:g} to {most:g}"
    bounds = [f"above {above:g}"] if above is not None else [f"of at least {least:g}"] if least is not None else []
    bounds += [f"at most {most:g}"] if most is not None else []
    return " ".join([noun, ", ".join(bounds)]).strip()


def _example(kind: dict[str, Any], path: str) -> object:
    if "enum" in kind or "const" in kind:
        return kind["enum"][0] if "enum" in kind else kind["const"]
    match kind.get("type"):
        case "integer" | "number":
            return 0.5 if is_share(kind) else max(1, kind.get("minimum", 1))
        case "boolean":
            return True
        case "array":
            return [_example(section_of(kind), path)]
        case "object" if "properties" in kind:
            key = next(iter(keys_below(Key(path, kind, False))))
            return {key.name: key.example}
        case _:
            return "text"
