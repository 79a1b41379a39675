"""The ledger: a log of plans and write-once shards, below one model root. The only state there is.

    _stint/plans/00000001.parquet    sources claimed + shard boundaries + token, created once
    plan=00000001/00000000.parquet   predictions of one shard, created once
    _stint/done/00000001.parquet     every object of the plan with rows and checksum, created when all exist

Planning is serialised by `create` of the next number; nothing else needs order, a lock or a clock. Any run may help to
finish any plan that has no done record.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.planning import Cut
from jobs.sources import Opened, Source
from workers.contract import Shard, Slice
from workers.store import Store
from workers.writing import ObjectFacts, object_facts

CLAIMED_ONLY = -1
"""Shard number of a source that is claimed and has no rows."""
READS_AT_ONCE = 16

PLAN_SCHEMA = pa.schema(
    [
        ("shard", pa.int32()),
        ("uri", pa.string()),
        ("size", pa.int64()),
        ("version", pa.string()),
        ("row_group", pa.int32()),
        ("row_start", pa.int64()),
        ("row_stop", pa.int64()),
    ]
)
DONE_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("rows_ok", pa.int64()),
        ("rows_bad", pa.int64()),
        ("rows_gone", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class Plan:
    """A numbered, immutable claim on input."""

    number: int
    token: str
    shards: tuple[Shard, ...]
    claimed: frozenset[tuple[str, str]]
    """(uri, version) of every source claimed, also those without rows."""
    keys: pa.Schema | None
    """Types of the key columns as they were when the plan was made."""

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True)
class DoneShard:
    """A line of a done record: one output object."""

    key: str
    rows_ok: int
    rows_bad: int
    rows_gone: int
    size: int
    sha256: str


@dataclass
class BadRows:
    """Error rows by code, with one row of each for a person."""

    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[str, str] = field(default_factory=dict)

    def add(self, counts: Mapping[str, int], samples: Mapping[str, str]) -> None:
        self.counts.update(counts)
        self.samples = {**samples, **self.samples}


class Ledger:
    """Plans and done records of one model root. Only `create`, `get` and `list` of the store are used."""

    def __init__(self, store: Store, root: str) -> None:
        self.store = store
        self.root = root

    # ------------------------------------------------------------------------------------------- plans

    def plans(self) -> list[Plan]:
        """Every plan, by number."""
        numbers = self._numbers("_stint/plans")
        with ThreadPoolExecutor(READS_AT_ONCE, "plan") as pool:
            return list(pool.map(self._read_plan, numbers))

    def claim(
        self, opened: Sequence[Opened], keys: pa.Schema | None, cut: Callable[[Sequence[Opened]], Cut]
    ) -> Plan | None:
        """Claim the sources that no plan claims yet, as the next plan; None when there is nothing to claim.

        Another run may claim first: then its plan is read, subtracted, and the rest is claimed under the next number.
        """
        while True:
            plans = self.plans()
            left = set(unclaimed((o.source for o in opened), plans))
            fresh = [o for o in opened if o.source in left]
            if not fresh:
                return None
            number = plans[-1].number + 1 if plans else 1
            data = encode_plan(cut(fresh), keys, uuid.uuid4().hex)
            if self.store.create(self._plan_key(number), data):
                return decode_plan(number, data)

    def _read_plan(self, number: int) -> Plan:
        return decode_plan(number, self.store.get(self._plan_key(number)))

    # ------------------------------------------------------------------------------------------ shards

    def missing(self, plan: Plan) -> list[Shard]:
        """Shards of the plan that have no object yet, by one listing."""
        present = self.present(plan)
        return [shard for shard in plan.shards if shard.key not in present]

    def present(self, plan: Plan) -> set[str]:
        """Keys, below the root, of the objects in the plan's folder."""
        return {
            info.key.removeprefix(f"{self.root}/") for info in self.store.list(f"{self.root}/plan={plan.number:08d}")
        }

    def facts(self, shards: Iterable[Shard]) -> list[ObjectFacts]:
        """What the shards' objects say of themselves, read in full. Raises NotOurs, NotFound."""
        with ThreadPoolExecutor(READS_AT_ONCE, "facts") as pool:
            return list(pool.map(lambda shard: object_facts(self.store.get(f"{self.root}/{shard.key}")), shards))

    def bad_rows(self, plan: Plan) -> BadRows:
        """Why rows of a complete plan have no prediction, read from its objects."""

        def read(shard: Shard) -> list[dict[str, Any]]:
            data = pa.BufferReader(self.store.get(f"{self.root}/{shard.key}"))
            table = pq.read_table(data, columns=["source_uri", "row_group", "row", "error_code", "error_message"])
            rows: list[dict[str, Any]] = table.filter(pc.is_valid(table["error_code"])).to_pylist()
            return rows

        found = BadRows()
        with ThreadPoolExecutor(READS_AT_ONCE, "bad rows") as pool:
            for rows in pool.map(read, plan.shards):
                for r in rows:
                    where = f"{r['source_uri']} row group {r['row_group']} row {r['row']}: {r['error_message']}"
                    found.add({r["error_code"]: 1}, {r["error_code"]: where})
        return found

    # ------------------------------------------------------------------------------------------- done

    def done_numbers(self) -> set[int]:
        return set(self._numbers("_stint/done"))

    def finish(self, plan: Plan, known: dict[str, DoneShard]) -> list[DoneShard]:
        """Every object of a complete plan, from `known` or read back, in shard order. Nothing is written."""
        unknown = [shard for shard in plan.shards if shard.key not in known]
        read = {shard.key: done_shard(shard, facts) for shard, facts in zip(unknown, self.facts(unknown), strict=True)}
        return [known.get(shard.key) or read[shard.key] for shard in plan.shards]

    def record_done(self, plan: Plan, objects: Sequence[DoneShard]) -> None:
        """Create the done record. It is the snapshot for strict readers; the first one stands."""
        table = pa.Table.from_pylist([vars(o) for o in objects], schema=DONE_SCHEMA)
        self.store.create(
            self._done_key(plan.number), _to_bytes(table, {"plan": str(plan.number), "token": plan.token})
        )

    def read_done(self, number: int) -> list[DoneShard]:
        table = pq.read_table(pa.BufferReader(self.store.get(self._done_key(number))), page_checksum_verification=True)
        return [DoneShard(**row) for row in table.to_pylist()]

    # ---------------------------------------------------------------------------------------- keys

    def _plan_key(self, number: int) -> str:
        return f"{self.root}/_stint/plans/{number:08d}.parquet"

    def _done_key(self, number: int) -> str:
        return f"{self.root}/_stint/done/{number:08d}.parquet"

    def _numbers(self, folder: str) -> list[int]:
        prefix = f"{self.root}/{folder}"
        return sorted(int(info.key.rpartition("/")[2].removesuffix(".parquet")) for info in self.store.list(prefix))


def done_shard(shard: Shard, facts: ObjectFacts) -> DoneShard:
    return DoneShard(
        key=shard.key,
        rows_ok=facts.rows_ok,
        rows_bad=facts.rows_bad,
        rows_gone=sum(shard.slices[i].rows for i in facts.gone),
        size=facts.size,
        sha256=facts.sha256,
    )


# -------------------------------------------------------------------------------------- plan files


def encode_plan(cut: Cut, keys: pa.Schema | None, token: str) -> bytes:
    """One row a slice, and one for each source without rows."""
    rows = [
        (index, s.uri, s.size, s.version, s.row_group, s.row_start, s.row_stop)
        for index, slices in enumerate(cut.shards)
        for s in slices
    ]
    rows += [(CLAIMED_ONLY, s.uri, s.size, s.version, 0, 0, 0) for s in cut.empty]
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), PLAN_SCHEMA, strict=True)]
    metadata = {"token": token}
    if keys is not None:
        metadata["keys"] = keys.serialize().to_pybytes().hex()
    return _to_bytes(pa.Table.from_arrays(columns, schema=PLAN_SCHEMA), metadata)


def decode_plan(number: int, data: bytes) -> Plan:
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    metadata = table.schema.metadata
    token = metadata[b"stint.token"].decode()
    slices: dict[int, list[Slice]] = {}
    claimed: set[tuple[str, str]] = set()
    columns = [table.column(name).to_pylist() for name in PLAN_SCHEMA.names]
    for shard, uri, size, version, row_group, row_start, row_stop in zip(*columns, strict=True):
        claimed.add((uri, version))
        if shard != CLAIMED_ONLY:
            piece = Slice(
                uri=uri, size=size, version=version, row_group=row_group, row_start=row_start, row_stop=row_stop
            )
            slices.setdefault(shard, []).append(piece)
    keys = metadata.get(b"stint.keys")
    return Plan(
        number=number,
        token=token,
        shards=tuple(
            Shard(plan=number, plan_token=token, index=index, slices=tuple(slices[index])) for index in sorted(slices)
        ),
        claimed=frozenset(claimed),
        keys=pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(keys.decode()))) if keys else None,
    )


def _to_bytes(table: pa.Table, metadata: dict[str, str]) -> bytes:
    sink = pa.BufferOutputStream()
    schema = table.schema.with_metadata({f"stint.{name}": value for name, value in metadata.items()})
    pq.write_table(table.cast(schema), sink, compression="zstd", write_page_checksum=True)
    return bytes(sink.getvalue())


def unclaimed(sources: Iterable[Source], plans: Iterable[Plan]) -> list[Source]:
    """The sources that no plan claims in their present version."""
    claimed = frozenset[tuple[str, str]]().union(*(plan.claimed for plan in plans))
    return [source for source in sources if source.identity not in claimed]
