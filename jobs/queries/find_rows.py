"""How a person names a row of the input: by its keys, by its place, or by the URI of an image file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jobs.errors import SpecError
from jobs.plan.job import absolute
from workers.contract import InputSpec

SOURCE = "source_uri"
PLACE = re.compile(r"(?P<uri>.+)#(?P<row_group>\d{1,9})/(?P<row>\d{1,18})", re.DOTALL)


@dataclass(frozen=True)
class ByKeys:
    """`id=7`, `id=7,day=2026-03-01`, `source_uri=s3://…`: values as they were written."""

    values: Mapping[str, str]


@dataclass(frozen=True)
class ByPlace:
    """`URI#ROWGROUP/ROW`, as URI row group ROWGROUP row ROW is told everywhere; or the URI of an image file."""

    uri: str
    row_group: int
    row: int


def place_told(uri: str, row_group: int, row: int, format: str) -> str:
    """As `ByPlace` is written, for rows of an input of this format."""
    return uri if format == "images" else f"{uri}#{row_group}/{row}"


def parse(text: str, given: InputSpec) -> ByKeys | ByPlace:
    """Raises SpecError for what names no row of this input."""
    found = PLACE.fullmatch(text)
    if found is not None:
        return ByPlace(absolute(found["uri"]), int(found["row_group"]), int(found["row"]))
    names = (*given.keys, SOURCE)
    name, equals, _ = text.partition("=")
    if equals and name in names:
        return ByKeys(_values(text, names))
    if given.format == "images":
        return ByPlace(absolute(text), 0, 0)
    if equals and "/" not in name:
        raise SpecError(f"{name!r} is no key column: there are {', '.join(names)}", _ways(names))
    raise SpecError(f"{text!r} names no row", _ways(names))


def _values(text: str, names: Sequence[str]) -> dict[str, str]:
    """A value goes up to the next `,NAME=` of a key column, so it may hold commas and equals signs."""
    alternatives = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    values: dict[str, str] = {}
    for part in re.split(rf",(?=(?:{alternatives})=)", text):
        name, _, value = part.partition("=")
        if name in values:
            raise SpecError(f"{text!r} gives {name} twice", "give each key column once")
        values[name] = absolute(value) if name == SOURCE else value
    return values


def _ways(names: Sequence[str]) -> str:
    return f"name it as {names[0]}=VALUE, or as URI#ROWGROUP/ROW"
