"""Done records: the objects of a complete plan, with rows and checksum of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from workers.contract import Shard
from workers.output import ObjectFacts

DONE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("rows_ok", pa.int64()),
        ("rows_bad", pa.int64()),
        ("rows_gone", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("gone", pa.list_(pa.string())),
    ]
)
COUNTS = ("rows_ok", "rows_bad", "rows_gone", "size")


@dataclass(frozen=True)
class DoneShard:
    """A line of a done record: one output object."""

    key: str
    rows_ok: int
    rows_bad: int
    rows_gone: int
    size: int
    sha256: str
    gone: tuple[str, ...] = ()
    """URIs of files with rows that were gone when it was their turn."""


def done_shard(shard: Shard, facts: ObjectFacts) -> DoneShard:
    return DoneShard(
        key=shard.key,
        rows_ok=facts.rows_ok,
        rows_bad=facts.rows_bad,
        rows_gone=sum(shard.slices[i].rows for i in facts.gone),
        size=facts.size,
        sha256=facts.sha256,
        gone=tuple(sorted({shard.slices[i].uri for i in facts.gone})),
    )


@dataclass(frozen=True, eq=False)
class DoneRecord:
    """Objects of a plan. Of a complete one: every object, in the order of shards."""

    table: pa.Table
    """As DONE_SCHEMA."""

    @classmethod
    def of(cls, objects: Iterable[DoneShard]) -> DoneRecord:
        return cls(pa.Table.from_pylist([vars(o) for o in objects], schema=DONE_SCHEMA))

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[DoneShard]:
        for batch in self.table.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                yield DoneShard(**{**row, "gone": tuple(row["gone"])})

    def __getitem__(self, at: int) -> DoneShard:
        return next(iter(DoneRecord(self.table.slice(at, 1))))

    def keys(self) -> Iterator[str]:
        for chunk in self.table["key"].chunks:
            yield from chunk.to_pylist()

    @cached_property
    def rows_ok(self) -> int:
        return self._sum("rows_ok")

    @cached_property
    def rows_bad(self) -> int:
        return self._sum("rows_bad")

    @cached_property
    def rows_gone(self) -> int:
        return self._sum("rows_gone")

    def _sum(self, column: str) -> int:
        return int(pc.sum(self.table[column]).as_py() or 0)
