"""A spec as it is written: YAML in which a key stands once, and of a value without quotes also the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from jobs.errors import SpecError

_TEXT = "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class Written:
    """What YAML reads as something else than text, as `22:30` (1350), `yes` (true) or `2026`."""

    value: Any
    text: str


def read_yaml(data: bytes | str, source: str) -> Any:
    """Mappings, lists and text, with a Written for each other value. UTF-8, or UTF-16 that begins with its mark.

    Raises SpecError, also for keys that stand twice in one mapping.
    """
    try:
        loader = yaml.SafeLoader(data)
        twice: list[str] = []
        node = loader.get_single_node()
        raw = None if node is None else _raw(loader, node, "", twice)
    except yaml.reader.ReaderError as error:
        raise SpecError(f"{source} is not text in UTF-8", "save it as UTF-8, without special characters") from error
    except yaml.MarkedYAMLError as error:
        mark, problem = error.problem_mark, error.problem or error.context
        where = f" in line {mark.line + 1}" if mark is not None else ""
        hint = "; put a value that begins with a special character into quotes" if "tag" in f"{problem}" else ""
        raise SpecError(f"{source} is not YAML{where}: {problem}{hint}") from error
    except RecursionError as error:
        raise SpecError(f"{source} is nested too deeply") from error
    if twice:
        raise SpecError(f"{source}: {'; '.join(twice)}", "keep one of them")
    return raw


def plain(given: Any) -> Any:
    """As YAML reads it."""
    if isinstance(given, Written):
        return given.value
    if isinstance(given, dict):
        return {plain(key): plain(value) for key, value in given.items()}
    return [plain(value) for value in given] if isinstance(given, list) else given


def _raw(loader: yaml.SafeLoader, node: yaml.Node, path: str, twice: list[str]) -> Any:
    """`twice` takes in the keys that stand twice, with the lines."""
    if node.tag not in loader.yaml_constructors:  # `!!python/…`: a spec is data
        loader.construct_undefined(node)
    if isinstance(node, yaml.SequenceNode):
        return [_raw(loader, item, f"{path}{number}.", twice) for number, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, yaml.Node] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (first := seen.setdefault(key.value, key)) is not key:
                lines = [one.start_mark.line + 1 for one in (first, key)]
                twice.append(f"{path}{key.value} stands twice, in lines {lines[0]} and {lines[1]}")
        loader.flatten_mapping(node)  # `<<: *other`: what it takes over comes first
        return {_key(loader, key): _raw(loader, value, f"{path}{key.value}.", twice) for key, value in node.value}
    if node.tag == _TEXT:
        return node.value
    try:
        return Written(loader.construct_object(node, deep=True), node.value)
    except ValueError:  # a date that is in no calendar
        return str(node.value)


def _key(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    if not isinstance(node, yaml.ScalarNode):
        raise yaml.constructor.ConstructorError(problem="a key is a list or a section", problem_mark=node.start_mark)
    return _raw(loader, node, "", [])
