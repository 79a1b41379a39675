"""A few error rows of a run by code, found through its journal, with pictures of what can still be seen of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.compute as pc

from jobs.error_rows import error_rows
from jobs.figures import settled
from jobs.job import Job
from jobs.journal import Told
from jobs.ledger import Ledger
from jobs.thumbnails import RowAt, fetch, thumbnail
from workers.ahead import ahead
from workers.bad_images import ErrorCode
from workers.contract import Shard, Slice

EACH = 3
"""Rows of a code."""
READ_MOST = 48
"""Objects that are looked into: a rare code may have no example."""
READS_AT_ONCE = 16
PICTURE_PX = 96


def find(job: Job, told: Told, codes: Collection[str]) -> list[dict[str, Any]]:
    """Up to EACH rows of each code, as jobs.error_rows.ErrorRow, and the `shard` of each. Raises StoreError,
    StoreDenied."""
    table = settled(told)
    table = table.filter(pc.greater(pc.fill_null(table["rows_bad"], 0), 0)).slice(0, READ_MOST)
    ledger, found = job.ledger, Counter[str]()
    shards = [
        _shard(ledger, plan, index)
        for plan, index in zip(table["plan"].to_pylist(), table["shard"].to_pylist(), strict=True)
    ]
    objects = ahead(lambda shard: job.store.get(f"{ledger.root}/{shard.key}"), shards, READS_AT_ONCE, "bad rows")
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
    rows = [RowAt(e["uri"], e["version"], e["row_group"], e["row"]) for e in examples]
    given = job.input_spec(uris={row.uri for row in rows})
    pieces: list[Slice] = []
    for name in dict.fromkeys(e["shard"] for e in examples):
        plan, _, index = name.partition("/")
        pieces += _shard(job.ledger, int(plan), int(index)).slices
    pictures = [
        # What has killed a worker is not decoded here.
        thumbnail(it.data, PICTURE_PX) if it.data and example["code"] != ErrorCode.CRASHED_WORKER else ""
        for example, it in zip(examples, fetch(given, rows, pieces), strict=True)
    ]
    return [{**example, "picture": picture} for example, picture in zip(examples, pictures, strict=True)]


def _shard(ledger: Ledger, plan: int, index: int) -> Shard:
    (shard,) = ledger.plan(plan).shards.picked(np.array([index]))
    return shard
