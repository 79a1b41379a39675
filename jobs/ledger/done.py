"""Done records: the objects of a complete plan, with rows and checksum of each; and what is known of them before.

What results say of objects is noted, for the run that finishes the plan: it need not be the one that did the work.

    _stint/noted/00000007/<random>.stint    some lines of plan 7's done record to be, created once

Without notes that run would have to read every object of the runs before it: of 20,000 shards 34 s where a request
takes 20 ms, 72 s where it takes 50 ms, and whatever moving their bytes takes; from notes 0.5 s
(`python -m tests.benchmarks.bench_notes`). A plan may have a million. Notes are advisory: what a killed run has not
noted is read.
"""

from __future__ import annotations

import re
import uuid
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.ledger.background import Errands
from jobs.ledger.plans import BOOK, BOOKS, Ints, Plan, to_bytes
from jobs.ledger.presence import Bits
from workers.contract import Shard, shard_key
from workers.outcomes import Rows, ShardResult
from workers.output import ObjectFacts
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.lookahead import ahead
from workers.storage.store import Store

_FOLDER = "_stint/noted"
NOTE_KEY = re.compile(rf"{_FOLDER}/(\d{{8}})/[0-9a-f]{{32}}{BOOKS}")
NOTE_EVERY = 10_000
"""Objects of a plan: a note is about a megabyte then."""
NOTE_LEAST = 1_000
"""Fewer than these are read as quickly as notes."""
_WAIT_S = 2.0
"""At the end of a run, which may have to end soon."""

_SCORED = ("ok", "bad", "gone")
_COUNTS = (*(f"rows_{what}" for what in _SCORED), "size")
DONE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        *((name, pa.int64()) for name in _COUNTS),
        ("sha256", pa.string()),
        ("gone", pa.list_(pa.string())),
    ]
)


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
    gone = [shard.slices[i] for i in facts.gone]
    counts, uris = (facts.rows_ok, facts.rows_bad, sum(piece.rows for piece in gone)), {piece.uri for piece in gone}
    return DoneShard(shard.key, *counts, facts.size, facts.sha256, tuple(sorted(uris)))


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

    @property
    def with_gaps(self) -> DoneRecord:
        """Those that lack rows which were gone."""
        return DoneRecord(self.table.filter(pc.greater(self.table["rows_gone"], 0)))

    @property
    def gone(self) -> list[str]:
        """URIs of files with rows that were gone when they were to be scored."""
        return sorted(set(pc.list_flatten(self.table["gone"]).to_pylist()))

    @property
    def rows(self) -> Rows:
        """Of all objects."""
        return Rows(**{what: pc.sum(self.table[f"rows_{what}"]).as_py() or 0 for what in _SCORED})


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

    def take_new(self, least: int) -> DoneRecord | None:
        """Objects that were added by themselves and not taken yet, if they are so many."""
        if len(self._new) < least:
            return None
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
        counted = sum(table[f"rows_{what}"].to_numpy() for what in _SCORED)
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

    def unknown(self, shards: int) -> Bits:
        """Of which of so many shards nothing is known."""
        self._grow(shards)
        unknown: Bits = ~self._facts["known"][:shards]
        unknown[list(self._doubtful)] = True
        return unknown

    def may_be_bad(self, shards: int) -> Bits:
        """Of which of so many shards nothing is known, or that rows are bad."""
        return self.unknown(shards) | (self._facts["rows_bad"][:shards] > 0)

    def rows(self, plan: Plan, present: Bits) -> Rows:
        """What became of the rows of the plan, `present` being its shards that have an object."""
        unknown = self.unknown(len(present))
        known = self._facts[: len(present)][~unknown]
        counted = Rows(**{what: int(known[f"rows_{what}"].sum()) for what in _SCORED})
        uncounted, missing = (int(plan.slices.rows[which].sum()) for which in (present & unknown, ~present & unknown))
        return counted + Rows(uncounted=uncounted, missing=missing)

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

    def note_due(self, plan: int) -> None:
        """Called after each result: whoever keeps notes, too, may write one."""

    def __missing__(self, plan: int) -> PlanObjects:
        return self.setdefault(plan, PlanObjects(plan))

    def add(self, shard: Shard, result: ShardResult) -> None:
        """Only of an object without gone rows: a result does not name the files that are gone, the object does."""
        counts = result.rows_ok, result.rows_bad, 0
        self[shard.plan].add(shard.index, DoneShard(shard.key, *counts, result.object_bytes, result.sha256))


class Noting(KnownObjects):
    """The objects of plans as results describe them, noted every so often in a thread of its own."""

    def __init__(self, store: Store, root: str, plans: Sequence[Plan], say: Callable[[str], None]) -> None:
        super().__init__()
        self._store, self._root, self._say = store, root, say
        self._tokens = {plan.number: plan.token for plan in plans}
        self._writes: Errands[bool] = Errands("noting")

    def note_due(self, plan: int) -> None:
        """What has been added of the plan since the last time, once it is enough. Does not wait."""
        self._note(plan, NOTE_EVERY)

    def close(self) -> None:
        """Note the rest. Raises nothing: a run that ends with an error ends with that one."""
        for plan in self._tokens:
            self._note(plan, NOTE_LEAST)
        self._report_failures(_WAIT_S)
        self._writes.close()

    def _note(self, plan: int, least: int) -> None:
        if (new := self[plan].take_new(least)) is None:
            return
        metadata = {"token": self._tokens[plan]}
        key = f"{self._root}/{_FOLDER}/{plan:08d}/{uuid.uuid4().hex}{BOOK}"
        self._writes.send(lambda: self._store.create(key, to_bytes([new.table], DONE_SCHEMA, metadata)))
        self._report_failures(0.0)

    def _report_failures(self, wait_s: float) -> None:
        for outcome in self._writes.ended(wait_s):
            if isinstance(outcome, StoreError | StoreDenied):
                self._say(f"could not note what is done, so those objects will be read at the end: {outcome}")


def recall(store: Store, root: str, plan: Plan, into: PlanObjects) -> None:
    """Add what runs have noted of a plan's objects. A note that is damaged, or of another claim, says nothing.

    Where notes, or a note and a result, contradict each other about an object, it stays unknown.
    """

    def read(key: str) -> pa.Table | None:
        try:
            table = pq.read_table(pa.BufferReader(store.get(key)), page_checksum_verification=True)
        except (pa.ArrowException, OSError, NotFound):  # removed meanwhile: the plan is done, another run was first
            return None
        ours = (table.schema.metadata or {}).get(b"stint.token") == plan.token.encode()
        return table if ours and table.schema.equals(DONE_SCHEMA) else None

    keys = [info.key for info in store.list(f"{root}/{_FOLDER}/{plan.number:08d}")]
    for table in ahead(read, keys, "noted"):
        if table is not None:
            into.add_noted(DoneRecord(table), plan.slices.rows)
