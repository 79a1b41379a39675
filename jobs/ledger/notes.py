"""Notes of what results say of objects, for the run that finishes a plan: it need not be the one that did the work.

    _stint/noted/00000007/<random>.parquet    some lines of plan 7's done record to be, created once

Without them that run would have to read every object of the runs before it, because a done record has the rows and the
digest of each: of 20,000 shards 34 s where a request takes 20 ms, 72 s where it takes 50 ms, and whatever moving their
bytes takes; from notes 0.5 s (`python -m tests.benchmarks.bench_notes`). A plan may have a million. Notes are advisory:
what a killed run has not noted is read.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.ledger.background import Errands
from jobs.ledger.done import DONE_SCHEMA, DoneRecord, KnownObjects, PlanObjects
from jobs.ledger.plans import Plan, to_bytes
from workers.storage.errors import StoreDenied, StoreError
from workers.storage.lookahead import ahead
from workers.storage.store import Store

_FOLDER = "_stint/noted"
NOTE_KEY = re.compile(rf"{_FOLDER}/(\d{{8}})/[0-9a-f]{{32}}\.parquet")
NOTE_EVERY = 10_000
"""Objects of a plan: a note is about a megabyte then."""
NOTE_LEAST = 1_000
"""Fewer than these are read as quickly as notes."""
_READS_AT_ONCE = 16
_WAIT_S = 2.0
"""At the end of a run, which may have to end soon."""


class Noting(KnownObjects):
    """The objects of plans as results describe them, noted every so often in a thread of its own."""

    def __init__(self, store: Store, root: str, plans: Sequence[Plan], say: Callable[[str], None]) -> None:
        super().__init__()
        self._store, self._root, self._say = store, root, say
        self._tokens = {plan.number: plan.token for plan in plans}
        self._writes: Errands[bool] = Errands("noting")

    def note_due(self, plan: int) -> None:
        """Note what has been added of the plan since the last time, once it is enough. Does not wait."""
        if self[plan].new >= NOTE_EVERY:
            self._note(plan)
            self._report_failures(0.0)

    def close(self) -> None:
        """Note the rest. Raises nothing: a run that ends with an error ends with that one."""
        for plan in self._tokens:
            if self[plan].new >= NOTE_LEAST:
                self._note(plan)
        self._report_failures(_WAIT_S)
        self._writes.close()

    def _note(self, plan: int) -> None:
        table, metadata = self[plan].take_new().table, {"token": self._tokens[plan]}
        key = f"{self._root}/{_FOLDER}/{plan:08d}/{uuid.uuid4().hex}.parquet"
        self._writes.send(lambda: self._store.create(key, to_bytes([table], DONE_SCHEMA, metadata)))

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
        except (pa.ArrowException, OSError):
            return None
        ours = (table.schema.metadata or {}).get(b"stint.token") == plan.token.encode()
        return table if ours and table.schema.equals(DONE_SCHEMA) else None

    keys = [info.key for info in store.list(f"{root}/{_FOLDER}/{plan.number:08d}")]
    for table in ahead(read, keys, _READS_AT_ONCE, "noted"):
        if table is not None:
            into.add_noted(DoneRecord(table), plan.slices.rows)
