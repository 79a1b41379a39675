"""A spec from a YAML file, with `--set` overrides; errors name the key, the nearest valid one and the way out."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from jobs.errors import SpecError
from jobs.spec.keys import key_at, keys_below
from jobs.spec.meaning import meant
from jobs.spec.schema import JobSpec
from jobs.spec.written import Written, read_yaml


def load_spec(path: str, overrides: list[str]) -> JobSpec:
    """Read a YAML spec and apply `a.b=value` overrides. Raises SpecError."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise SpecError(f"no spec at {path}") from error
    except OSError as error:
        raise SpecError(f"cannot read the spec {path}: {error.strerror}") from error
    raw = read_yaml(data, path)
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
        return JobSpec.model_validate(meant(raw, JobSpec.model_json_schema()))
    except ValidationError as error:
        # A key that may be of several kinds has an error for each of them: one sentence is enough.
        raise SpecError(f"{source}: " + "; ".join(dict.fromkeys(_explain(e) for e in error.errors()))) from error


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise SpecError(f"--set {override}: write --set section.key=value, as --set workers.max=8")
    *sections, key = path.split(".")
    here = raw
    for section in sections:
        if here.setdefault(section, {}) == Written(None, ""):
            here[section] = {}
        here = here[section]
        if not isinstance(here, dict):
            raise SpecError(f"--set {override}: {section} is a value, not a section")
    here[key] = read_yaml(value, f"--set {override}: {value!r}")


def _explain(error: Any) -> str:
    """One validation error for a person: where, what is wanted, what to write, and the nearest valid key for a typo."""
    loc, given = error["loc"], error["input"]
    key, where = key_at(loc)
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        valid = [other.name for other in keys_below(key)]
        near = difflib.get_close_matches(str(loc[-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid here: {', '.join(valid)}"
        return f"unknown key {f'{where}.{loc[-1]}'.strip('.')!r}: {hint}"
    if error["type"] == "missing" and where == ".".join(map(str, loc)):
        return f"{where!r} is missing; write {key.line}"
    if error["type"] in ("value_error", "section"):
        message = error["msg"].removeprefix("Value error, ")
        # A check of a whole section names its key itself.
        return message if isinstance(given, dict) else f"{where}: {message}"
    if error["type"] == "string_pattern_mismatch":
        return f"{where}: {given!r} is not understood; write {key.line}"
    names = [name for kind in key.kinds for name in kind.get("enum", ())]
    near = difflib.get_close_matches(given.lower(), names, n=1) if isinstance(given, str) else []
    line = f"`{key.name}: {near[0]}`" if near else key.line
    return f"{where}: {key.wanted} is wanted, got {given!r}; write {line}"
