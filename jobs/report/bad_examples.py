"""A few error rows of a run by code, found through its journal, with pictures of what can still be seen of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.compute as pc

from jobs.ledger.bad_rows import error_rows
from jobs.ledger.ledger import Ledger
from jobs.plan.job import Job
from jobs.report.figures import settled
from jobs.report.journal import JournalContent
from jobs.report.row_images import RowAt, fetch_images, thumbnail
from workers.contract import Shard, Slice
from workers.image.errors import ErrorCode
from workers.storage.lookahead import ahead

EACH = 3
"""Rows of a code."""
_READ_MOST = 48
"""Objects that are looked into: a rare code may have no example."""
_READS_AT_ONCE = 16
PICTURE_PX = 96
SEEN = (ErrorCode.TRUNCATED, ErrorCode.CORRUPT, ErrorCode.UNSUPPORTED_FORMAT, ErrorCode.BAD_SIZE)
"""Codes of images of which something may be seen; the others are not read again, least of all what killed a worker."""


def find(job: Job, journal: JournalContent, codes: Collection[str]) -> list[dict[str, Any]]:
    """Up to EACH rows of each code, as jobs.ledger.bad_rows.ErrorRow, and the `shard` of each. Raises StoreError,
    StoreDenied."""
    table = settled(journal)
    table = table.filter(pc.greater(pc.fill_null(table["rows_bad"], 0), 0)).slice(0, _READ_MOST)
    ledger, found = job.ledger, Counter[str]()
    shards = [
        _shard(ledger, plan, index)
        for plan, index in zip(table["plan"].to_pylist(), table["shard"].to_pylist(), strict=True)
    ]
    objects = ahead(lambda shard: job.store.get(f"{ledger.root}/{shard.key}"), shards, _READS_AT_ONCE, "bad rows")
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
    seen = [example for example in examples if example["code"] in SEEN]
    rows = [_place(example) for example in seen]
    pieces: list[Slice] = []
    for name in dict.fromkeys(example["shard"] for example in seen):
        plan, _, index = name.partition("/")
        pieces += _shard(job.ledger, int(plan), int(index)).slices
    images = fetch_images(job.input_spec(uris={row.uri for row in rows}), rows, pieces)
    pictures = {row: thumbnail(image.data, PICTURE_PX) for row, image in zip(rows, images, strict=True) if image.data}
    return [
        {**example, "picture": pictures.get(_place(example), "") if example["code"] in SEEN else ""}
        for example in examples
    ]


def _place(example: Mapping[str, Any]) -> RowAt:
    return RowAt(example["uri"], example["version"], example["row_group"], example["row"])


def _shard(ledger: Ledger, plan: int, index: int) -> Shard:
    (shard,) = ledger.plan(plan).shards.picked(np.array([index]))
    return shard
