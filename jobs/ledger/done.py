"""Done records: the objects of a complete plan, with rows and checksum of each."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.ledger.slices import Ints
from workers.contract import Shard, shard_key
from workers.outcomes import ShardResult
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
_COUNTS = ("rows_ok", "rows_bad", "rows_gone", "size")


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
    """URIs of files with rows that were gone when they were to be scored."""


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

    def total(self, column: str) -> int:
        """Of a column of counts, as `rows_ok`."""
        return int(pc.sum(self.table[column]).as_py() or 0)


_FACT = np.dtype([("known", np.bool_), *((name, np.int64) for name in _COUNTS), ("sha256", "S64")])
_KEY_OF_PLAN = r"^plan={plan:08d}/(?P<index>\d{{8,}})\.parquet$"


class PlanObjects:
    """What is known of the objects of one plan, by the number of the shard: a million take a tenth of a gigabyte."""

    def __init__(self, plan: int) -> None:
        self.plan = plan
        self._facts = np.zeros(0, _FACT)
        self._gone: dict[int, tuple[str, ...]] = {}
        """URIs of files with rows that are gone; few have any."""
        self._doubtful: set[int] = set()
        """Shards with two accounts that differ: what holds is what the object says."""
        self._new = array("q")
        """Shards that were added by themselves since they were last taken."""

    def add(self, index: int, o: DoneShard) -> None:
        self._grow(index + 1)
        self._doubtful.discard(index)
        self._facts[index] = (True, o.rows_ok, o.rows_bad, o.rows_gone, o.size, o.sha256.encode())
        if o.gone:
            self._gone[index] = o.gone
        self._new.append(index)

    @property
    def new(self) -> int:
        """Objects that were added by themselves and not taken yet."""
        return len(self._new)

    def take_new(self) -> DoneRecord:
        taken, self._new = np.array(self._new), array("q")
        return self.record(taken)

    def add_noted(self, record: DoneRecord, rows: Ints) -> None:
        """What runs have noted; `rows` are those that each shard of the plan has.

        Lines of no shard of this plan, and such as cannot be true of it, are passed over. A shard of which something
        else is known already is unknown from then on.
        """
        table = record.table
        named = pc.struct_field(pc.extract_regex(table["key"], _KEY_OF_PLAN.format(plan=self.plan)), "index")
        table = table.append_column("index", named.cast(pa.int64())).filter(pc.is_valid(named))
        table = table.filter(pc.less(table["index"], len(rows)))
        counted = sum(table[name].to_numpy() for name in ("rows_ok", "rows_bad", "rows_gone"))
        table = table.filter(pa.array(counted == rows[table["index"].to_numpy()]))
        index = table["index"].to_numpy()
        self._grow(len(rows))
        facts = np.zeros(len(index), _FACT)
        facts["known"] = True
        for name in _COUNTS:
            facts[name] = table[name].to_numpy()
        facts["sha256"] = table["sha256"].to_pylist()
        before = self._facts[index]
        self._doubtful.update(index[before["known"] & (before != facts)].tolist())
        self._facts[index] = facts
        with_gaps = table.filter(pc.greater(table["rows_gone"], 0))
        gone = with_gaps["gone"].to_pylist()
        self._gone.update((i, tuple(uris)) for i, uris in zip(with_gaps["index"].to_pylist(), gone, strict=True))

    def _grow(self, least: int) -> None:
        """Make room for so many shards, if there is none yet."""
        if (there := len(self._facts)) < least:
            self._facts = np.concatenate([self._facts, np.zeros(max(least - there, there), _FACT)])

    def unknown(self, shards: int) -> Ints:
        """Numbers of those of so many shards of which nothing is known."""
        self._grow(shards)
        known = self._facts["known"][:shards].copy()
        known[list(self._doubtful)] = False
        return np.flatnonzero(~known)

    def record(self, numbers: Ints) -> DoneRecord:
        """What is known of the shards with these numbers, in their order."""
        chosen = self._facts[numbers]
        columns = {
            "key": pa.array((shard_key(self.plan, index) for index in numbers.tolist()), pa.string()),
            **{name: pa.array(chosen[name]) for name in _COUNTS},
            "sha256": pa.array(chosen["sha256"]).cast(pa.string()),
            "gone": pa.array((self._gone.get(index, ()) for index in numbers.tolist()), pa.list_(pa.string())),
        }
        return DoneRecord(pa.table(columns, schema=DONE_SCHEMA))


class KnownObjects(dict[int, PlanObjects]):
    """The objects of every plan, as far as results name them."""

    def __missing__(self, plan: int) -> PlanObjects:
        return self.setdefault(plan, PlanObjects(plan))

    def add(self, shard: Shard, result: ShardResult) -> None:
        """Only of an object without gone rows: a result does not name the files that are gone, the object does."""
        counts = result.rows_ok, result.rows_bad, 0
        self[shard.plan].add(shard.index, DoneShard(shard.key, *counts, result.object_bytes, result.sha256))
