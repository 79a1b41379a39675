"""The keys one by one: what is said of each is true of the models, and docs/SPEC.md says it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from jobs.spec.keys import Key, every_key, flow, key_at
from jobs.spec.load import parse_spec
from tests.jobs.spec.spec_page import PAGE, spec_page

_ALONE = {"input.uri", "input.manifest"}
"""Of these one stands for itself."""


def test_the_page_of_the_spec_is_what_the_models_say() -> None:
    assert PAGE.read_text() == spec_page() + "\n", "make spec-page writes it anew"


@pytest.mark.parametrize("key", list(every_key()), ids=lambda key: key.path)
def test_the_example_of_every_key_is_valid_and_written_as_yaml(key: Key) -> None:
    line = key.line.strip("`")
    assert yaml.safe_load(line) == {key.name: key.example}
    assert line.endswith(flow(key.example))
    spec: dict[str, Any] = {"name": "x", "input": {"uri": "in"}, "model": {"arch": "a:b"}, "output": {"uri": "out"}}
    if key.path in _ALONE:
        spec["input"] = {}
    if key.path == "input.days":
        spec["input"] = {"uri": "in/{as_of}"}
    if key.path == "input.version":
        spec["input"] = {"uri": "in", "format": "delta"}
    if key.path == "output.table.uri":
        spec["output"]["table"] = {"format": "iceberg"}
    if key.path == "gate.min_top1":
        spec["gate"] = {"labels_column": "label"}
    if key.path.startswith("workers.groups."):
        spec["workers"] = {"groups": [{"labels": {"a": "b"}, key.name: key.example}]}
    else:
        here, (*sections, name) = spec, key.path.split(".")
        for section in sections:
            here = here.setdefault(section, {})
        if name == "at_least":
            here["share"] = 0.01
        here[name] = key.example
    parse_spec(spec)


@pytest.mark.parametrize("key", list(every_key()), ids=lambda key: key.path)
def test_the_example_of_a_key_says_what_it_is_for(key: Key) -> None:
    assert "text" not in key.line
    assert ".0`" not in key.line
    if key.name.startswith("min_"):
        assert key.example != 0, "that is as if it were not there"


def test_a_place_in_a_spec_is_named_as_far_as_it_has_names() -> None:
    key, where = key_at(("workers", "groups", 0, "labels", "a b", "[key]"))
    assert (key.path, where) == ("workers.groups.labels", "workers.groups.0.labels")
    key, where = key_at(("workers", "cpus", "literal['auto']"))
    assert (key.path, key.unit, where) == ("workers.cpus", "cores", "workers.cpus")
