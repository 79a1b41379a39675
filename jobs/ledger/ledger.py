"""The ledger: a log of plans and write-once shards, below one model root. The only state there is.

    _stint/plans/00000001.stint      sources claimed + shard boundaries + token, created once
    plan=00000001/00000000.parquet   predictions of one shard, created once
    _stint/done/00000001.stint       every object of the plan with rows and checksum, created when all exist
    _stint/accepted/00000001.json    the plan may be done with more bad rows than the spec allows, created once
    _stint/crashes/00000001/00000000-<random>.json    a worker died while it held the shard, created once each time

Planning is serialised by `create` of the next number; nothing else needs order, a lock or a clock. Any run may help to
finish any plan that has no done record.

In roots that an earlier release has begun, plans and done records end in `.parquet`, all of them, for ever: a number
that could be had under two names would be no lock (see ARCHITECTURE.md).

The crashes of a shard are counted by the number of these objects. Correctness does not depend on them: they decide how
a shard is scored.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import RunFailed
from jobs.ledger.bad_rows import Reasons, by_source, error_rows
from jobs.ledger.done import DONE_SCHEMA, NOTE_LEAST, DoneRecord, PlanObjects, done_shard, recall
from jobs.ledger.plans import (
    BOOK,
    BOOKS,
    Content,
    NotAPlan,
    Plan,
    Shards,
    Source,
    decode_plan,
    encode_plan,
    identities,
    in_columns,
    to_bytes,
)
from jobs.ledger.presence import Bits, PlanListing, Present
from jobs.ledger.superseded import Claim, OutOfDate, counted_plans, dead_claims, disputed, less_rows, of_tables
from workers.contract import Shard, Slice, parse_shard_key, shard_key
from workers.outcomes import Failure, Rows, WorkerInfo
from workers.output import ObjectFacts, object_facts
from workers.redaction import redacted
from workers.storage.lookahead import ahead
from workers.storage.store import Store

_T = TypeVar("_T")

CRASHES_FOLDER = "_stint/crashes"
_CRASH_KEY = re.compile(rf"{CRASHES_FOLDER}/(\d{{8}})/(\d{{8}})-[0-9a-f]{{32}}\.json")
_NUMBERED = re.compile(r"(\d{8})(\..*)")
_DAMAGED = (pa.ArrowException, OSError, KeyError, NotAPlan)
"""What reading the bytes of a damaged Parquet file, or of one without our metadata, raises."""


class Ledger:
    """Plans and done records of one model root. Only `create`, `get` and `list` of the store are used."""

    def __init__(self, store: Store, root: str) -> None:
        self.store = store
        self.root = root
        self._plans: dict[int, Plan] = {}
        self._listings: dict[int, PlanListing] = {}
        self._rows: dict[int, Rows] = {}
        """Of done plans, as far as their records have been read."""
        self._bad: dict[str, dict[tuple[str, str], Reasons]] = {}
        """Why rows of objects have no prediction, by their keys and sources, as far as they have been read."""
        self._book = ""
        """How plans and done records end here, once it is known."""

    # ------------------------------------------------------------------------------------------- plans

    def plans(self) -> list[Plan]:
        """Every plan, by number. One listing, and a read of each that is not known yet."""
        numbers = self._numbers("plans")
        return list(ahead(self.plan, numbers, "plan"))

    def claim(
        self, content: Callable[[Sequence[Plan]], Content | None], book: Callable[[], str] = lambda: BOOK
    ) -> Plan | None:
        """Create the next plan with what `content` makes of the plans so far; None when that is nothing.

        Another run may be first with the number: then its plan is read, and `content` is asked again. `book` tells how
        the first plan of a root is to end: the same, whichever run asks.
        """
        while True:
            plans = self.plans()
            claim = content(plans)
            if claim is None:
                return None
            number = plans[-1].number + 1 if plans else 1
            self._book = self._book if plans else book()
            data, (key, _) = encode_plan(claim, uuid.uuid4().hex), self.keys_of(number)
            if self.store.create(f"{self.root}/{key}", data):
                return decode_plan(number, data)

    def plan(self, number: int) -> Plan:
        """Read once: a plan never changes. Raises NotFound, RunFailed when it is damaged."""
        if number not in self._plans:
            way_out = "restore the object from a copy: it says which rows are claimed"
            self._plans[number] = self._read(self.keys_of(number)[0], partial(decode_plan, number), way_out)
        return self._plans[number]

    # ------------------------------------------------------------------------------------------ shards

    def missing(self, *plans: Plan) -> Shards:
        """Shards of the plans that have no object yet, by one listing of each plan."""
        present = self.present(*plans)
        return Shards([(plan, np.flatnonzero(~present.bits[plan.number])) for plan in plans])

    def present(self, *plans: Plan) -> Present:
        """Objects of the plans, by one listing of each, which leaves out what earlier ones have shown to be whole."""
        return Present({plan.number: self._listing(plan).present() for plan in plans})

    def whole(self, plan: Plan) -> bool:
        """Whether nothing of the plan is missing."""
        return self._listing(plan).whole()

    def rows(self, plan: Plan, known: PlanObjects) -> Rows:
        """What became of the rows of an open plan, by what is `known` and what was last listed. Nothing is read."""
        return known.rows(plan, self._listing(plan).bits)

    def _listing(self, plan: Plan) -> PlanListing:
        return self._listings.setdefault(plan.number, PlanListing(self.store, self.root, plan.number, len(plan.shards)))

    def facts(self, shards: Iterable[Shard]) -> Iterator[ObjectFacts]:
        """What the shards' objects say of themselves, read in full. Raises NotOurs, NotFound."""

        return ahead(lambda shard: object_facts(self.store.get(f"{self.root}/{shard.key}")), shards, "facts")

    def lost(self, plans: Sequence[Plan], done: Collection[int], present: Collection[Source]) -> set[Slice]:
        """Slices of plans that have no rows, because their source was gone when they were to be scored.

        Only of URIs that are among `present`: what became of other files costs nothing. Slices that an open plan has
        yet to score count when their source is not as claimed among `present`. Rows that a later plan claims again
        are that plan's, and so are all of a source that it claims afresh.
        """
        closed = [plan.number for plan in plans if plan.number in done]
        with_gaps = dict(zip(closed, ahead(self._with_gaps, closed, "done"), strict=True))
        relevant = [plan for plan in plans if plan.number not in done or with_gaps[plan.number]]
        versions = dict(zip(relevant, _versions_now(relevant, present), strict=True))
        lost: set[Slice] = set()
        for plan in plans:
            if plan.afresh:
                lost = {piece for piece in lost if (piece.uri, piece.version) not in plan.afresh}
            again = {(piece.uri, piece.version) for piece in lost}
            if again:
                claimed_again = plan.shards_reading(again)
                lost = less_rows(lost, [piece for shard in claimed_again for piece in shard.slices])
            if (now := versions.get(plan)) is None:
                continue
            if plan.number in done:
                gaps = set(with_gaps[plan.number])
                shards = [shard for shard in plan.shards_of(_marked(pc.is_valid(now))) if shard.index in gaps]
            else:
                stale = list(plan.shards_of(_marked(pc.not_equal(now, plan.sources["version"]))))
                if not stale:
                    continue
                written = self.present(plan)
                shards = [shard for shard in stale if shard.key in written]
                unwritten = (piece for shard in stale if shard.key not in written for piece in shard.slices)
                there = pc.equal(now, plan.sources["version"])
                absent = set(identities(plan.sources.filter(pc.invert(pc.fill_null(there, False)))))
                lost.update(piece for piece in unwritten if (piece.uri, piece.version) in absent)
            for shard, facts in zip(shards, self.facts(shards), strict=True):
                lost.update(shard.slices[i] for i in facts.gone)
        return lost

    def bad_rows(
        self, plan: Plan, shards: Iterable[Shard], plans: Sequence[Plan], done: Collection[int]
    ) -> dict[tuple[str, str], Reasons]:
        """Why rows of these shards of the plan have no prediction, by the (uri, version) of their source.

        Read from their objects, which must be there, once. Rows that readers would not see of the plan do not count,
        because one of `plans` that is `done` has newer ones: of another version, or of the same one, scored again.
        """
        dead = self.superseded(plans, done, [plan.number])

        def read(shard: Shard) -> dict[tuple[str, str], Reasons]:
            if shard.key not in self._bad:
                self._bad[shard.key] = by_source(error_rows(self.store.get(f"{self.root}/{shard.key}")))
            return self._bad[shard.key]

        found: defaultdict[tuple[str, str], Reasons] = defaultdict(Reasons)
        for of_shard in ahead(read, shards, "bad rows"):
            for source, reasons in of_shard.items():
                if (plan.number, *source) not in dead.claims:
                    found[source].add(reasons.by_code, reasons.samples)
        return dict(found)

    def failed(self, plans: Sequence[Plan], done: Collection[int], present: Collection[Source]) -> set[tuple[str, str]]:
        """(uri, version) of sources with bad rows in an open plan, which are not among `present` in this version.

        Nobody has seen these rows yet. Of a URI that is twice among `present` the first one counts. Of a plan that is
        not whole, of which hardly anything is noted, only files are looked at that are among `present` in another
        version: this run reads the others when it has made it whole.
        """
        open_plans = [plan for plan in plans if plan.number not in done]
        failed: set[tuple[str, str]] = set()
        for plan, now in zip(open_plans, _versions_now(open_plans, present), strict=True):
            stale = _marked(pc.not_equal(now, plan.sources["version"]), unknown=True)
            if not stale.any():
                continue
            written, known = self._written(plan)
            many = not written.all() and (written & known.unknown(len(written))).sum() >= NOTE_LEAST
            looked_at = stale & ~_marked(pc.is_null(now)) if many else stale
            may_be = known.may_be_bad(len(written)) & written
            reading = [shard for shard in plan.shards_of(looked_at) if may_be[shard.index]]
            bad = self.bad_rows(plan, reading, plans, done) if reading else {}
            failed.update(bad.keys() & set(identities(plan.sources.filter(pa.array(stale)))) if bad else ())
        return failed

    def may_be_bad(self, plan: Plan, shards: Iterable[Shard]) -> Iterator[Shard]:
        """Those of an open plan's shards that are written, less those of which is noted that no row is bad."""
        written, known = self._written(plan)
        may_be = known.may_be_bad(len(written)) & written
        return (shard for shard in shards if may_be[shard.index])

    def _written(self, plan: Plan) -> tuple[Bits, PlanObjects]:
        """Which objects of an open plan are there, and what is noted of them."""
        written, known = self.present(plan).bits[plan.number], PlanObjects(plan.number)
        if written.sum() >= NOTE_LEAST:
            recall(self.store, self.root, plan, known)
        return written, known

    # ---------------------------------------------------------------------------------------- crashes

    def crashes(self, plans: Iterable[int]) -> dict[str, int]:
        """Crashes of all runs by the key of the shard, with a listing for each plan. Raises StoreError, StoreDenied."""
        listed = (info.key for plan in sorted(plans) for info in self.store.list(self._crashes_of(plan)))
        found = (parse_crash_key(key.removeprefix(f"{self.root}/")) for key in listed)
        return dict(Counter(shard_key(*place) for place in found if place))

    def record_crash(self, shard: Shard, failure: Failure, worker: WorkerInfo | None, *, run_id: str, at: str) -> None:
        """Count one more. Raises StoreError, StoreDenied."""
        crash = {
            "shard": shard.name,
            "code": failure.code,
            "reason": redacted(failure.message),
            "host": worker.host if worker else "",
            "pid": worker.pid if worker else None,
            "run_id": run_id,
            "at": at,
        }
        key = f"{self._crashes_of(shard.plan)}/{shard.index:08d}-{uuid.uuid4().hex}.json"
        self.store.create(key, json.dumps(crash, indent=2).encode())

    # ------------------------------------------------------------------------------------------- done

    def done_numbers(self) -> set[int]:
        return set(self._numbers("done"))

    def finish(self, plan: Plan, known: PlanObjects | None = None) -> DoneRecord:
        """Every object of a complete plan, in the order of shards: from `known`, from what runs have noted, or read.

        Nothing is written.
        """
        known = known or PlanObjects(plan.number)
        if known.unknown(len(plan.shards)).sum() >= NOTE_LEAST:
            recall(self.store, self.root, plan, known)
        unknown = np.flatnonzero(known.unknown(len(plan.shards)))
        read = zip(plan.shards.picked(unknown), self.facts(plan.shards.picked(unknown)), strict=True)
        for shard, facts in read:
            known.add(shard.index, done_shard(shard, facts))
        return known.record(np.arange(len(plan.shards)))

    def record_done(self, plan: Plan, objects: DoneRecord) -> None:
        """Create the done record. It is the snapshot for strict readers; the first one stands."""
        data = to_bytes([objects.table], DONE_SCHEMA, {"plan": str(plan.number), "token": plan.token})
        self.store.create(f"{self.root}/{self.keys_of(plan.number)[1]}", data)

    def read_done(self, number: int) -> DoneRecord:
        """Raises NotFound, RunFailed when the record is damaged."""
        return DoneRecord(self._done_table(number, DONE_SCHEMA.names))

    def done_rows(self, numbers: Collection[int]) -> Rows:
        """What became of the rows of these done plans. Reads the records that no call has read before; raises as
        `read_done`."""
        unread = [number for number in numbers if number not in self._rows]
        for _ in ahead(self._with_gaps, unread, "done"):
            pass
        return sum((self._rows[number] for number in numbers), Rows())

    def done_keys(self, numbers: Iterable[int]) -> Iterator[str]:
        """Of every object that these done records name, in their order. Raises as `read_done`."""
        for table in ahead(lambda n: self._done_table(n, ["key"]), numbers, "done"):
            yield from table["key"].to_pylist()

    def superseded(self, plans: Sequence[Plan], done: Collection[int], counted: Collection[int] = ()) -> OutOfDate:
        """Rows that are out of date: those of `done` plans, of which `plans` are all.

        Their records tell what was gone. Plans that are `counted` too, as if they were done, found everything, and wait
        for none that is open.
        """
        claims = disputed(plans)
        afresh = {(plan.number, *source) for plan in plans for source in plan.afresh}
        numbers = sorted({number for number, _, _ in claims} & set(done))
        records = ahead(lambda n: self._done_table(n, ["gone"])["gone"], numbers, "done")
        gaps = {
            (number, uri)
            for number, gone in zip(numbers, records, strict=True)
            for uri in pc.list_flatten(gone).to_pylist()
        }
        known = {*done, *counted}
        dead = dead_claims(
            Claim(
                *claim, claim in afresh or claim[0] in counted, claim[:2] not in gaps if claim[0] in known else None
            )
            for claim in claims
        )  # fmt: skip
        of_table = of_tables(counted_plans(plans, known))
        return replace(of_table, claims=of_table.claims | dead)

    def _with_gaps(self, number: int) -> list[int]:
        """Shards of a done plan whose objects list slices as gone."""
        table = self._done_table(number, ["key", "rows_ok", "rows_bad", "rows_gone"])
        self._rows[number] = DoneRecord(table).rows
        keys = table.filter(pc.greater(table["rows_gone"], 0))["key"].to_pylist()
        return [found[1] for found in map(parse_shard_key, keys) if found]

    def _done_table(self, number: int, columns: list[str]) -> pa.Table:
        way_out = "restore it from a copy, or remove it and run the job: it is made again from the objects of the plan"

        def decode(data: bytes) -> pa.Table:
            return pq.read_table(pa.BufferReader(data), columns=columns, page_checksum_verification=True)

        return self._read(self.keys_of(number)[1], decode, way_out)

    def _read(self, key: str, decode: Callable[[bytes], _T], way_out: str) -> _T:
        """Of an object below the root. Raises RunFailed for one that is damaged, NotFound."""
        data = self.store.get(f"{self.root}/{key}")
        try:
            return decode(data)
        except _DAMAGED as error:
            raise RunFailed(f"{self.store.url}/{self.root}/{key} is damaged: {error}", way_out) from error

    # ---------------------------------------------------------------------------------------- keys

    def keys_of(self, plan: int) -> tuple[str, str]:
        """Of a plan and its done record, below the root."""
        if not self._book:
            self._numbers("plans")
        name = f"{plan:08d}{self._book or BOOK}"
        return f"_stint/plans/{name}", f"_stint/done/{name}"

    def _crashes_of(self, plan: int) -> str:
        return f"{self.root}/{CRASHES_FOLDER}/{plan:08d}"

    def _numbers(self, kind: str) -> list[int]:
        """Of the plans, or done records, that are there. Raises RunFailed for names that are not of one root; what has
        no number, as what a desktop leaves, is none of them."""
        folder = f"{self.root}/_stint/{kind}"
        found = (_NUMBERED.fullmatch(info.key.rpartition("/")[2]) for info in self.store.list(folder))
        names = [name for name in found if name]
        books = ({self._book: f"those in {self._book}"} if self._book else {}) | {name[2]: name[0] for name in names}
        if len(books) > 1 or not all(re.fullmatch(BOOKS, book) for book in books):
            raise RunFailed(
                f"{self.store.url}/{folder}/: names are to end alike, there are {' and '.join(sorted(books.values()))}",
                "remove what does not belong there. If a run of an earlier release began this root at the same time, "
                "that is its plan: it claims only files without rows",
            )
        self._book = next(iter(books), "")
        return sorted(int(name[1]) for name in names)


def _versions_now(plans: Sequence[Plan], present: Collection[Source]) -> Iterator[pa.ChunkedArray]:
    """For each plan, of the URI of each of its sources the version among `present`, the first there; null for none."""
    if not plans:
        return
    here = in_columns(present)
    uris = pa.concat_tables([plan.sources.select(["uri"]) for plan in plans])["uri"]
    found, begin = here["version"].take(pc.index_in(uris, value_set=here["uri"])), 0
    for plan in plans:
        yield found.slice(begin, len(plan.sources))
        begin += len(plan.sources)


def _marked(where: pa.ChunkedArray, *, unknown: bool = False) -> Bits:
    """Where it is true; `unknown` tells what null counts as."""
    marks: Bits = pc.fill_null(where, unknown).to_numpy()
    return marks


def parse_crash_key(key: str) -> tuple[int, int] | None:
    """Plan and shard index of a crash's key below the root; None for another key."""
    found = _CRASH_KEY.fullmatch(key)
    return (int(found[1]), int(found[2])) if found else None
