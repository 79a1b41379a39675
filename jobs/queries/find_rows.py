"""How a person names a row of the input, and where it is found again: by its keys in the objects, by its place (or the
URI of an image file) through the plans that claim it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from jobs.errors import RunFailed, SpecError
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan, claims_of
from jobs.ledger.superseded import OutOfDate
from jobs.plan.job import absolute
from jobs.reader import FILE, Predictions, place_of
from workers.contract import InputSpec, Shard
from workers.output import SOURCE_FIELDS
from workers.source.single_rows import Place, RowAt

SOURCE = "source_uri"


def parse(text: str, given: InputSpec) -> Place | dict[str, str]:
    """A place, or values of key columns as they were written: `id=7`, `id=7,day=2026-03-01`, `source_uri=s3://…`.

    Raises SpecError for what names no row of this input.
    """
    names = (*given.copied, SOURCE)
    name, equals, _ = text.partition("=")
    place = Place.read(text, given)
    if equals and name in names and (place is None or place.uri == text):  # no file is named like that
        return _values(text, names)
    if place is not None:
        return place._replace(uri=absolute(place.uri))
    raise SpecError(
        f"{text!r} names no row: key columns are {', '.join(names)}",
        f"name it as {names[0]}=VALUE, or as URI#ROWGROUP/ROW",
    )


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


class Found(NamedTuple):
    """A row in one version of its source, and the shard that it belongs to."""

    plan: Plan
    shard: Shard
    at: RowAt


def shards_of(plan: Plan, uris: Collection[str]) -> Iterator[Shard]:
    """Shards of the plan that read any of these sources."""
    named = pc.is_in(plan.sources["uri"], value_set=pa.array(uris, pa.string())).combine_chunks()
    return plan.shards_of(named.to_numpy(zero_copy_only=False))


def by_place(plans: Iterable[Plan], place: Place) -> list[Found]:
    """The row in every version that a plan claims, in the order of plans.

    Twice in the same version where its source was gone at first, or was to be scored again.
    """
    uri, row_group, row = place
    return [
        Found(plan, shard, RowAt(uri, piece.version, row_group, row))
        for plan in plans
        for shard in shards_of(plan, [uri])
        for piece in shard.slices
        if (piece.uri, piece.row_group) == (uri, row_group) and piece.row_start <= row < piece.row_stop
    ]


def by_file_name(plans: Sequence[Plan], place: Place) -> list[Found]:
    """The row in every source whose URI ends with what is given: a file's name, or the end of its path."""
    uris = pc.unique(claims_of(plans)["uri"])
    named = uris.filter(pc.ends_with(uris, f"/{place.uri}")).to_pylist()
    return [found for uri in named for found in by_place(plans, place._replace(uri=uri))]


def by_keys(ledger: Ledger, plans: Sequence[Plan], values: Mapping[str, str], most: int) -> list[Found]:
    """At most `most` rows with these values in key columns, or as `source_uri`, of all plans and versions.

    Reads these columns of the objects, and of those only what may hold the values by Parquet's own statistics. Raises
    SpecError for a value that the column cannot hold; RunFailed for damaged objects; StoreError, StoreDenied.
    """
    of_number = {plan.number: plan for plan in plans}
    keys = (key for plan in plans for key in ledger.present(plan))
    files = tuple(f"{ledger.store.url}/{ledger.root}/{key}" for key in keys)
    if not files:
        return []
    try:
        objects = Predictions(ledger.root, files, OutOfDate()).dataset
        names = [field.name for field in SOURCE_FIELDS]
        batches = objects.scanner(columns=[*names, FILE], filter=_condition(objects.schema, values)).to_batches()
        rows = list(islice((row for batch in batches for row in batch.to_pylist()), most))
    except (pa.ArrowException, OSError) as error:
        raise RunFailed(
            f"predictions cannot be read: {error}", "`stint verify` names objects that are damaged"
        ) from error
    found = []
    for *place, path in (row.values() for row in rows):
        number, index = place_of(path)
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
