"""A spec from a YAML file, with `--set` overrides; errors name the key, the nearest valid one and the way out."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from jobs.errors import SpecError
from jobs.spec.schema import JobSpec


def load_spec(path: str, overrides: list[str]) -> JobSpec:
    """Read a YAML spec and apply `a.b=value` overrides. Raises SpecError."""
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
    return parse_spec(raw, path)


def parse_spec(raw: dict[str, Any], source: str = "spec") -> JobSpec:
    """Check a spec that is already a mapping. Raises SpecError that names each wrong key.

    Relative paths stay relative to the working directory, which Ray ships to every node.
    """
    try:
        return JobSpec.model_validate(raw)
    except ValidationError as error:
        raise SpecError(f"{source}: " + "; ".join(_explain(e) for e in error.errors())) from error


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
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        valid = _valid_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(valid)}"
        return f"unknown key {where!r}: {hint}"
    if error["type"] == "missing":
        return f"{where!r} is missing"
    if error["type"] in ("model_type", "dataclass_type", "dict_type"):
        return f"{where}: a section is wanted, with `key: value` in it, got {error['input']!r}"
    message = error["msg"].removeprefix("Value error, ")
    # A check of a whole section names its key itself.
    return message if isinstance(error["input"], dict) else f"{where}: {message}, got {error['input']!r}"


def _valid_keys(path: tuple[int | str, ...]) -> list[str]:
    """Of the section there. A number in the path is a place in a list of sections."""
    schema = JobSpec.model_json_schema()
    section = schema
    for part in path:
        section = section["items"] if isinstance(part, int) else section["properties"][part]
        section = next((form for form in section.get("anyOf", ()) if "$ref" in form), section)
        if "$ref" in section:
            section = schema["$defs"][section["$ref"].rpartition("/")[2]]
    return list(section["properties"])
