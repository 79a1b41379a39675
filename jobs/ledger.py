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
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.claims import dead_versions
from jobs.errors import RunFailed
from jobs.plans import Content, Plan, decode_plan, disputed, encode_plan, to_bytes
from jobs.sources import Source
from workers.contract import Shard, Slice
from workers.store import Store
from workers.writing import ObjectFacts, describe_row, key_names, object_facts, shown_keys

READS_AT_ONCE = 16
BAD_ROW_COLUMNS = ["source_uri", "source_version", "row_group", "row", "error_code", "error_message"]
DAMAGED = (pa.ArrowException, OSError, KeyError)
"""What reading the bytes of a damaged Parquet file, or of one without our metadata, raises."""

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
        self._plans: dict[int, Plan] = {}

    # ------------------------------------------------------------------------------------------- plans

    def plans(self) -> list[Plan]:
        """Every plan, by number. One listing, and a read of each that is not known yet."""
        numbers = self._numbers("_stint/plans")
        with ThreadPoolExecutor(READS_AT_ONCE, "plan") as pool:
            return list(pool.map(self.plan, numbers))

    def claim(self, content: Callable[[Sequence[Plan]], Content | None]) -> Plan | None:
        """Create the next plan with what `content` makes of the plans so far; None when that is nothing.

        Another run may be first with the number: then its plan is read, and `content` is asked again.
        """
        while True:
            plans = self.plans()
            made = content(plans)
            if made is None:
                return None
            number = plans[-1].number + 1 if plans else 1
            data = encode_plan(made, uuid.uuid4().hex)
            if self.store.create(self._plan_key(number), data):
                return decode_plan(number, data)

    def plan(self, number: int) -> Plan:
        """Read once: a plan never changes. Raises NotFound, RunFailed when it is damaged."""
        if number not in self._plans:
            key = self._plan_key(number)
            try:
                self._plans[number] = decode_plan(number, self.store.get(key))
            except DAMAGED as error:
                raise RunFailed(
                    f"{self.store.url}/{key} is damaged: {error}",
                    "restore the object from a copy: it says which rows are claimed",
                ) from error
        return self._plans[number]

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

    def lost(self, plans: Sequence[Plan], done: Collection[int], present: Collection[Source]) -> set[Slice]:
        """Slices of plans that have no rows, because their source was gone when it was their turn.

        Only of URIs that are among `present`: what became of other files costs nothing. Slices that an open plan has
        yet to score count when their source is not as claimed among `present`. A slice that a later plan claims again
        is that plan's.
        """
        there = {source.identity for source in present}
        names = {source.uri for source in present}
        closed = [plan.number for plan in plans if plan.number in done]
        with ThreadPoolExecutor(READS_AT_ONCE, "done") as pool:
            with_gaps = dict(zip(closed, pool.map(self._keys_with_gaps, closed), strict=True))
        lost: set[Slice] = set()
        for plan in plans:
            if any((piece.uri, piece.version) in plan.claimed for piece in lost):
                lost.difference_update(piece for shard in plan.shards for piece in shard.slices)
            if plan.number in done:
                keys = with_gaps[plan.number]
                shards = [s for s in plan.shards if s.key in keys and _any_of(s, names)] if keys else []
            else:
                changed = {uri for uri, version in plan.claimed if uri in names and (uri, version) not in there}
                if not changed:
                    continue
                stale = [shard for shard in plan.shards if _any_of(shard, changed)]
                written = self.present(plan)
                shards = [shard for shard in stale if shard.key in written]
                unwritten = (piece for shard in stale if shard.key not in written for piece in shard.slices)
                lost.update(piece for piece in unwritten if (piece.uri, piece.version) not in there)
            for shard, facts in zip(shards, self.facts(shards), strict=True):
                lost.update(shard.slices[i] for i in facts.gone)
        return lost

    def bad_rows(self, plan: Plan, dead: Collection[tuple[str, str]] = ()) -> BadRows:
        """Why rows of a complete plan have no prediction, read from its objects; `dead` (uri, version) do not count."""

        def read(shard: Shard) -> tuple[dict[str, int], dict[str, str]]:
            data = pa.BufferReader(self.store.get(f"{self.root}/{shard.key}"))
            names = key_names(pq.read_schema(data))
            table = pq.read_table(data, columns=BAD_ROW_COLUMNS + names)
            bad = table.filter(pc.is_valid(table["error_code"]))
            counts: Counter[str] = Counter()
            samples: dict[str, str] = {}
            for number, row in enumerate(bad.select(BAD_ROW_COLUMNS).to_pylist()):
                code = row["error_code"]
                if (row["source_uri"], row["source_version"]) in dead:
                    continue
                counts[code] += 1
                if code not in samples:
                    keys = shown_keys(bad.select(names), number)
                    where = describe_row(row["source_uri"], row["row_group"], row["row"], keys)
                    samples[code] = f"{where}: {row['error_message']}"
            return counts, samples

        found = BadRows()
        with ThreadPoolExecutor(READS_AT_ONCE, "bad rows") as pool:
            for counts, samples in pool.map(read, plan.shards):
                found.add(counts, samples)
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
        self.store.create(self._done_key(plan.number), to_bytes(table, {"plan": str(plan.number), "token": plan.token}))

    def read_done(self, number: int) -> list[DoneShard]:
        """Raises NotFound, RunFailed when the record is damaged."""
        rows = self._done_table(number, DONE_SCHEMA.names).to_pylist()
        return [DoneShard(**{**row, "gone": tuple(row["gone"])}) for row in rows]

    def superseded(self, plans: Sequence[Plan], done: Collection[int]) -> set[tuple[str, str]]:
        """(uri, version) pairs whose rows are out of date once `plans` are done.

        Those among `done` have a record, which tells what was gone; the others count as if nothing were.
        """
        claims = disputed(plans)
        numbers = sorted({number for number, _, _ in claims} & set(done))
        with ThreadPoolExecutor(READS_AT_ONCE, "done") as pool:
            records = zip(numbers, pool.map(lambda n: self._done_table(n, ["gone"])["gone"], numbers), strict=True)
        gaps = {(number, uri) for number, gone in records for uri in pc.list_flatten(gone).to_pylist()}
        return dead_versions((uri, version, (number, uri) not in gaps) for number, uri, version in claims)

    def _keys_with_gaps(self, number: int) -> set[str]:
        """Objects of a done plan that list slices as gone."""
        table = self._done_table(number, ["key", "rows_gone"])
        return set(table.filter(pc.greater(table["rows_gone"], 0))["key"].to_pylist())

    def _done_table(self, number: int, columns: list[str]) -> pa.Table:
        key = self._done_key(number)
        data = pa.BufferReader(self.store.get(key))
        try:
            return pq.read_table(data, columns=columns, page_checksum_verification=True)
        except DAMAGED as error:
            raise RunFailed(
                f"{self.store.url}/{key} is damaged: {error}",
                "restore it from a copy, or remove it and run the job: it is made again from the objects of the plan",
            ) from error

    # ---------------------------------------------------------------------------------------- keys

    def _plan_key(self, number: int) -> str:
        return f"{self.root}/_stint/plans/{number:08d}.parquet"

    def _done_key(self, number: int) -> str:
        return f"{self.root}/_stint/done/{number:08d}.parquet"

    def _numbers(self, folder: str) -> list[int]:
        prefix = f"{self.root}/{folder}"
        return sorted(int(info.key.rpartition("/")[2].removesuffix(".parquet")) for info in self.store.list(prefix))


def _any_of(shard: Shard, uris: Collection[str]) -> bool:
    return any(piece.uri in uris for piece in shard.slices)


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
