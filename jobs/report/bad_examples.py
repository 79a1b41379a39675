"""A few error rows of a run by code, found through its journal, with pictures of what can still be seen of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow.compute as pc

from jobs.ledger.bad_rows import error_rows
from jobs.plan.job import Job
from jobs.report.figures import settled
from jobs.report.journal import JournalContent
from jobs.report.thumbnails import PARTLY_SEEN, thumbnail
from workers.source.single_rows import RowAt, fetch_images
from workers.storage.lookahead import ahead

EACH = 3
"""Rows of a code."""
_READ_MOST = 48
"""Objects that are looked into: a rare code may have no example."""
PICTURE_PX = 96


def find(job: Job, journal: JournalContent, codes: Collection[str]) -> list[dict[str, Any]]:
    """Up to EACH rows of each code, as jobs.ledger.bad_rows.ErrorRow, and the `shard` of each. Raises StoreError,
    StoreDenied."""
    table = settled(journal)
    table = table.filter(pc.greater(pc.fill_null(table["rows_bad"], 0), 0)).slice(0, _READ_MOST)
    ledger, found = job.ledger, Counter[str]()
    places = zip(table["plan"].to_pylist(), table["shard"].to_pylist(), strict=True)
    shards = [ledger.plan(plan).shards[index] for plan, index in places]
    objects = ahead(lambda shard: job.store.get(f"{ledger.root}/{shard.key}"), shards, "bad rows")
    examples: list[dict[str, Any]] = []
    for shard, data in zip(shards, objects, strict=False):
        for row in error_rows(data):
            if found[row.code] < EACH:
                found[row.code] += 1
                examples.append({**asdict(row), "shard": shard.name})
        if all(found[code] >= EACH for code in codes):
            break
    return sorted(examples, key=lambda row: row["code"])


def with_pictures(job: Job, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same with `picture`, a data URI, or empty where nothing is to be seen. Raises StoreError, StoreDenied."""
    places = {
        number: RowAt(example["uri"], example["version"], example["row_group"], example["row"])
        for number, example in enumerate(examples)
        if example["code"] in PARTLY_SEEN  # the others are not read again, least of all what killed a worker
    }
    named = [map(int, name.split("/")) for name in {examples[number]["shard"] for number in places}]
    shards = [job.ledger.plan(plan).shards[index] for plan, index in named]
    given = job.input_spec(uris={row.uri for row in places.values()})
    images = zip(places, fetch_images(given, list(places.values()), shards), strict=True)
    pictures = {
        number: thumbnail(image, PICTURE_PX, given.formats) for number, image in images if isinstance(image, bytes)
    }
    return [{**example, "picture": pictures.get(number, "")} for number, example in enumerate(examples)]
