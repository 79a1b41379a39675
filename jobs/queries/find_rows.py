"""How a person names a row of the input: by its keys, by its place, or by the URI of an image file."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from jobs.errors import RunFailed, SpecError
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan
from jobs.plan.job import absolute
from jobs.report.row_images import RowAt
from workers.contract import InputSpec, Shard, Slice, parse_shard_key
from workers.output import SOURCE_FIELDS
from workers.storage.filesystems import open_filesystem

SOURCE = "source_uri"
_PLACE = re.compile(r"(?P<uri>.+)#(?P<row_group>\d{1,9})/(?P<row>\d{1,18})", re.DOTALL)


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


def place_of(uri: str, row_group: int, row: int, format: str) -> str:
    """As `ByPlace` is written, for rows of an input of this format."""
    return uri if format == "images" else f"{uri}#{row_group}/{row}"


def parse(text: str, given: InputSpec) -> ByKeys | ByPlace:
    """Raises SpecError for what names no row of this input."""
    found = _PLACE.fullmatch(text)
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


# ----------------------------------------------------------------------------------------------------
# Rows found again: by their place, through the plans that claim them; by their keys, in the objects.

FILE = "__filename"
"""Arrow's name for the file that a row is read from."""


@dataclass(frozen=True)
class Found:
    """A row in one version of its source, and the shard that it belongs to."""

    plan: Plan
    shard: Shard
    at: RowAt


def shards_of(plan: Plan, uris: Collection[str]) -> Iterator[Shard]:
    """Shards of the plan that read any of these sources."""
    named = pc.is_in(plan.sources["uri"], value_set=pa.array(uris, pa.string())).combine_chunks()
    return plan.shards_of(named.to_numpy(zero_copy_only=False))


def pieces_of(plans: Iterable[Plan], rows: Iterable[RowAt]) -> list[Slice]:
    """Every slice of the sources that the rows are of."""
    sources = {(row.uri, row.version) for row in rows}
    uris = {uri for uri, _ in sources}
    slices = (piece for plan in plans for shard in shards_of(plan, uris) for piece in shard.slices)
    return [piece for piece in slices if (piece.uri, piece.version) in sources]


def by_place(plans: Iterable[Plan], uri: str, row_group: int, row: int) -> list[Found]:
    """The row in every version that a plan claims, in the order of plans.

    Twice in the same version where its source was gone at first and has been claimed again.
    """
    return [
        Found(plan, shard, RowAt(uri, piece.version, row_group, row))
        for plan in plans
        for shard in shards_of(plan, [uri])
        for piece in shard.slices
        if (piece.uri, piece.row_group) == (uri, row_group) and piece.row_start <= row < piece.row_stop
    ]


def by_keys(ledger: Ledger, plans: Sequence[Plan], values: Mapping[str, str], most: int) -> list[Found]:
    """At most `most` rows with these values in key columns, or as `source_uri`, of all plans and versions.

    Reads these columns of the objects, and of those only what may hold the values by Parquet's own statistics. Raises
    SpecError for a value that the column cannot hold; RunFailed for damaged objects; StoreError, StoreDenied.
    """
    of_number = {plan.number: plan for plan in plans}
    paths, fs = [], None
    for plan in plans:
        for key in ledger.present(plan):
            fs, path = open_filesystem(f"{ledger.store.url}/{ledger.root}/{key}", library_retries=True)
            paths.append(path)
    if not paths:
        return []
    try:
        objects = pads.dataset(paths, filesystem=fs, format="parquet")
        names = [field.name for field in SOURCE_FIELDS]
        batches = objects.scanner(columns=[*names, FILE], filter=_condition(objects.schema, values)).to_batches()
        rows = list(islice((row for batch in batches for row in batch.to_pylist()), most))
    except (pa.ArrowException, OSError) as error:
        raise RunFailed(
            f"predictions cannot be read: {error}", "`stint verify` names objects that are damaged"
        ) from error
    found = []
    for *place, path in (row.values() for row in rows):
        number, index = parse_shard_key("/".join(path.split("/")[-2:])) or (0, 0)
        found.append(Found(of_number[number], of_number[number].shards[index], RowAt(*place)))
    return sorted(found, key=lambda row: (row.plan.number, row.shard.index, row.at))


def _condition(schema: pa.Schema, values: Mapping[str, str]) -> pads.Expression:
    condition = pads.scalar(True)
    for name, text in values.items():
        kind = schema.field(name).type
        try:
            value = pa.scalar(text).cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SpecError(f"{name}={text}: {error}", f"{name} is a column of {kind}") from error
        condition &= pads.field(name) == value
    return condition
