"""Let the output table hold what readers see: the rows of done plans of the model that is followed, each once.

`jobs.reader` stays the reference. The table goes from one edition (`jobs.tables.editions`) to the next in a single
commit, whoever else writes to it; a run that dies before that commit leaves it to the next one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import RunFailed, SpecError
from jobs.ledger.current import followed_root
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import BOOK, Plan
from jobs.ledger.superseded import OutOfDate, counted_plans
from jobs.ledger.table_files import without
from jobs.tables.editions import Edition, Editions
from jobs.tables.target import Change, Copy, OutputTable, Portion, RowFile, Seen, TableMoved
from workers.contract import Slice
from workers.counted import counted
from workers.output import OutputObject
from workers.storage.lookahead import ahead
from workers.storage.store import Store

_TRIES = 20
"""Times that others may change the table between our look at it and our commit."""
MOST_FILES = 100_000
"""Objects that one commit adds, unless a plan has more: where a table is brought up to years of nights."""
_AT = "__at"
_COPIES = "_stint/table"
"""Rows of objects of which readers do not see all, under names that no glob for predictions finds. Polars 2.1 takes the
part of a Delta table's file from its folders."""


@dataclass(frozen=True)
class Synced:
    """How the table came to hold what readers see."""

    root: str
    plans: int
    """Whose rows it shows."""
    rows: int = 0
    """Added."""
    changed: int = 0
    """Plans of which rows were taken out."""

    def describe(self, where: str) -> str:
        added = [f"{counted(self.rows, 'row')} added"] if self.rows else []
        out = [f"rows of {counted(self.changed, 'plan')} taken out"] if self.changed else []
        news = ", ".join([*added, *out]) or "nothing new"
        return f"table {where}: {news}; it shows {counted(self.plans, 'plan')} of {self.root}"


def sync(store: Store, table: OutputTable, where: str, known: Ledger | None = None) -> Synced | None:
    """Let the table hold what readers see now; None while there is nothing for them to see.

    `where` is for a person; `known` is a ledger of the output that has read plans already.

    Raises RunFailed where others keep changing it, SpecError for a table that is not this output's or cannot be
    written, StoreError, StoreDenied.
    """
    rows = changed = tries = 0
    while True:
        held = held_edition(store, table, where)  # before the ledger, which is not older then than what it holds
        editions, root = Editions(store), followed_root(store)
        if root is None:
            return None
        ledger = known if known is not None and known.root == root else Ledger(store, root)
        wanted, all_of_it = _next_edition(ledger, held)
        if wanted == held:
            return Synced(root, len(held.done), rows, changed)
        moves, copy = Moves.between(ledger, held, wanted), partial(_copy, store)
        if (schema := moves.schema()) is None:
            return None
        change = moves.change(copy)
        if held.root not in ("", root):
            change = replace(change, dropped=[_part(held.root, plan) for plan in sorted(held.done)])
        try:
            if (number := editions.record(wanted) or 0) == 0:
                raise TableMoved
            table.commit(number, schema, change, copy)
        except TableMoved as moved:
            tries += 1
            if tries == _TRIES:
                raise RunFailed(
                    f"output.table: {where} was changed by others {_TRIES} times between a look at it and a commit; "
                    "predictions are safe, and readers of the table see what it held before",
                    "run `stint table sync SPEC` when they are done, or leave it to the next run",
                ) from moved
            continue
        rows += sum(file.rows for file in change.added)
        changed += len(change.dropped) + len(change.trimmed)
        if all_of_it:
            return Synced(root, len(wanted.done), rows, changed)


def held_edition(store: Store, table: OutputTable, where: str) -> Edition:
    """What the table holds now. Raises SpecError for a table of another output, and as `OutputTable.read`."""
    number = table.read()
    held = Editions(store).get(number) if number else Edition()
    if held is None:
        raise SpecError(
            f"output.table: {where} holds predictions of another output (edition {number})",
            "a table belongs to one output: name another output.table.uri, or move this one away "
            "(a Delta table: `_delta_log/`), and it is made anew",
        )
    return held


def _next_edition(ledger: Ledger, held: Edition) -> tuple[Edition, bool]:
    """All that is done, or as much of it as one commit adds to the same root; and whether it is all."""
    done = ledger.done_numbers()
    if held.root not in ("", ledger.root):
        return Edition(ledger.root, frozenset(done)), True
    some, objects = set(held.done), 0
    for number in sorted(done - held.done):
        objects += len(ledger.plan(number).shards)
        if objects > MOST_FILES and len(some) > len(held.done):
            break
        some.add(number)
    return Edition(ledger.root, frozenset(some)), some == done


def _part(root: str, plan: int) -> Portion:
    return Portion(root.removeprefix("model="), plan)


class _Hides(NamedTuple):
    """Rows that readers do not see, or do no longer see."""

    claims: frozenset[tuple[int, str, str]]
    """(plan, uri, version)"""
    uris: frozenset[str]
    """Of files of a table, of which some rows are concerned."""

    @classmethod
    def beyond(cls, one: OutOfDate, other: OutOfDate) -> _Hides:
        """What is hidden by the one and not by the other."""
        uris = (
            u
            for u, file in one.deleted.items()
            if u not in other.deleted or len(without(file.deleted, other.deleted[u].deleted))
        )
        return cls(one.claims - other.claims, frozenset(uris))

    def of(self, plan: Plan) -> set[tuple[str, str]]:
        """(uri, version) of sources of the plan that are concerned."""
        found = {claim[1:] for claim in self.claims if claim[0] == plan.number}
        if plan.table is not None and self.uris:
            found |= {source for source in plan.claimed if source[0] in self.uris}
        return found


@dataclass(frozen=True)
class Moves:
    """From the edition that a table holds to the one that it is to hold, of the root `ledger.root`."""

    ledger: Ledger
    before: Mapping[int, Plan]
    """Whose rows it shows; none where it shows another root."""
    after: Mapping[int, Plan]
    hidden_before: OutOfDate
    hidden_after: OutOfDate

    @classmethod
    def between(cls, ledger: Ledger, held: Edition, wanted: Edition) -> Moves:
        plans, before = ledger.plans(), held.done if held.root == wanted.root else frozenset[int]()
        counted_before, counted_after = (
            {plan.number: plan for plan in counted_plans(plans, done)} for done in (before, wanted.done)
        )
        return cls(
            ledger,
            counted_before,
            counted_after,
            ledger.superseded(plans, before),
            ledger.superseded(plans, wanted.done),
        )

    def schema(self) -> pa.Schema | None:
        """Of objects, which all of a root have the same columns; None without any."""
        plan = next((plan for plan in self.after.values() if len(plan.shards)), None)
        return self._object(plan.shards[0].key).schema.remove_metadata() if plan else None

    def change(self, copy: Copy) -> Change:
        """What the table is to do. Rows of objects that it is to show in part are written by `copy`."""
        more, freed = (
            _Hides.beyond(self.hidden_after, self.hidden_before),
            _Hides.beyond(self.hidden_before, self.hidden_after),
        )
        added, dropped, trimmed = list[RowFile](), list[Portion](), dict[Portion, Seen]()
        for number, plan in self.after.items():
            part, hidden = _part(self.ledger.root, number), more.of(plan)
            if number not in self.before:  # what it has may have gone before, come back and gone again
                ever = _Hides.beyond(self.hidden_after, OutOfDate()).of(plan)
                added += self._files(plan, doubtful=ever, copy=copy)
                continue
            if hidden and self.hidden_after.of_plan(number) >= plan.claimed:
                dropped.append(part)
            elif hidden:
                trimmed[part] = partial(self.hidden_after.seen, number)
            if seen_again := freed.of(plan):
                added += self._files(plan, doubtful=seen_again, only=True, copy=copy)
        return Change(added, dropped, trimmed)

    def _files(
        self, plan: Plan, *, doubtful: set[tuple[str, str]], only: bool = False, copy: Copy
    ) -> Iterator[RowFile]:
        """Objects of the plan, or `only` those with rows of sources that are `doubtful`: of these, rows that are seen
        and were not."""
        hidden, dead = self.hidden_after, self.hidden_after.of_plan(plan.number)

        def in_doubt(piece: Slice) -> bool:
            return only or (piece.uri, piece.version) in dead or hidden.live_rows(piece) < piece.rows

        shards = plan.shards_reading(doubtful) if doubtful else ()
        read = {shard.key for shard in shards if any(map(in_doubt, shard.slices))}
        url, part = f"{self.ledger.store.url}/{self.ledger.root}", _part(self.ledger.root, plan.number)

        def shown(whole: RowFile) -> RowFile | None:
            rows = self._object(whole.uri.removeprefix(f"{url}/")).table()
            seen = self._newly_seen(plan.number, rows)
            return whole if len(seen) == len(rows) else copy(part, seen) if len(seen) else None

        looked_at = list[RowFile]()
        for line in self.ledger.read_done(plan.number):
            if rows := line.rows_ok + line.rows_bad:
                file = RowFile(f"{url}/{line.key}", part, rows, line.size)
                if line.key in read:
                    looked_at.append(file)
                elif not only:
                    yield file
        yield from filter(None, ahead(shown, looked_at, "table"))

    def _newly_seen(self, plan: int, rows: pa.Table) -> pa.Table:
        numbered = rows.append_column(_AT, pa.array(np.arange(len(rows))))
        seen = self.hidden_after.seen(plan, numbered)
        if plan in self.before:
            seen = seen.filter(pc.invert(pc.is_in(seen[_AT], value_set=self.hidden_before.seen(plan, numbered)[_AT])))
        return seen.drop_columns(_AT)

    def _object(self, key: str) -> OutputObject:
        return OutputObject(self.ledger.store.get(f"{self.ledger.root}/{key}"))


def _copy(store: Store, part: Portion, rows: pa.Table) -> RowFile:
    """Written under a name of its content, so that another try writes the same file."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", write_page_checksum=True)
    data = bytes(sink.getvalue())
    folder = f"{_COPIES}/model={part.model}/plan={part.plan:08d}"
    key = f"{folder}/{hashlib.sha256(data).hexdigest()}{BOOK}"
    store.create(key, data)
    return RowFile(f"{store.url}/{key}", part, len(rows), len(data))
