"""The journal of a run: how it stood, and every attempt at a shard that ended, written while it runs.

    _stint/runs/<run id>/spec.json                  the spec, first of all
    _stint/journals/<run id>/00000001.stint         attempts that ended since the part before, and a snapshot
    _stint/runs/<run id>/report.json, report.html   when it is over

A part is created once. The parts are what `stint status` reads, also of a run that died, and what a report is made of.
Advisory: whether a row is scored, only the plan's objects say, and a run that cannot write its journal goes on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.ledger.background import Errands
from jobs.ledger.plans import BOOK, BOOKS, to_bytes
from jobs.progress.snapshot import Snapshot
from workers.contract import Shard
from workers.outcomes import Failure, ShardResult, WorkerInfo
from workers.redaction import redacted, redacted_values
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.lookahead import ahead
from workers.storage.store import Store

FOLDER = "_stint/journals"
"""Not below `_stint/runs`, so that a year of nights is listed without its hundred thousand parts."""
_PARTS = re.compile(rf"{FOLDER}/[^/]+/\d{{8,}}{BOOKS}")
PART_EVERY_S = 2.0
"""At first; a part that long after the one before."""
PART_EVERY_MOST_S = 60.0
"""After a while, so that a night of eight hours makes some five hundred parts."""
_PART_GROWS = 1.1
_WAIT_S = 1.0
"""At the end of a run, for parts that are still being written."""
BUSY_STAGES = ("read", "decode", "predict", "write", "wait", "throttled")
_OF_RESULT = ("committed", "rows_ok", "rows_bad", "rows_gone", "wall_s", "bytes_read")

ATTEMPTS = pa.schema(
    [
        ("at", pa.timestamp("ms", "UTC")),  # when the driver heard of its end
        ("plan", pa.int32()),
        ("shard", pa.int64()),  # index in the plan
        ("worker", pa.int32()),
        ("host", pa.string()),
        ("engine", pa.string()),  # artifact, as torch-int8/x86-vnni
        ("attempt", pa.int32()),  # of the shard in this run, from 1
        ("second", pa.bool_()),  # begun while another worker had the shard
        ("isolated", pa.bool_()),
        ("failure", pa.string()),  # null when it succeeded; else the failure's code, or its kind
        ("message", pa.string()),
        ("first", pa.bool_()),  # this attempt settled the shard in this run; counts are to be summed over these
        ("committed", pa.bool_()),  # its object is the one at the key
        ("rows_ok", pa.int32()),
        ("rows_bad", pa.int32()),
        ("rows_gone", pa.int32()),
        ("wall_s", pa.float32()),  # of predicting, see workers.outcomes.ShardResult
        *((f"{stage}_s", pa.float32()) for stage in BUSY_STAGES),
        ("bytes_read", pa.int64()),
    ]
)


@dataclass
class Journal:
    """Written by the run that is under way; `note_…` cost no store call."""

    store: Store
    run_id: str
    say: Callable[[str], None]
    _rows: list[dict[str, Any]] = field(default_factory=list, init=False)
    """Since the last part, as ATTEMPTS."""
    _workers: list[dict[str, Any]] = field(default_factory=list, init=False)
    """That became ready since the last part."""
    _part: int = field(default=0, init=False)
    _writes: Errands[None] = field(default_factory=lambda: Errands("journal"), init=False)
    every_s: float = field(default=PART_EVERY_S, init=False)
    _warned: bool = field(default=False, init=False)

    def note_attempt(
        self, shard: Shard, outcome: ShardResult | Failure, *, worker: int, host: str, engine: str, attempt: int,
        first: bool = False, second: bool = False, isolated: bool = False,
    ) -> None:  # fmt: skip
        """An attempt at a shard that ended just now; the rest as in ATTEMPTS."""
        row = {
            "at": datetime.now(UTC), "plan": shard.plan, "shard": shard.index, "worker": worker, "host": host,
            "engine": engine, "attempt": attempt, "second": second, "isolated": isolated, "first": first,
        }  # fmt: skip
        if isinstance(outcome, Failure):
            row |= {"failure": outcome.code or outcome.kind.value, "message": redacted(outcome.message)}
        else:
            row |= {name: getattr(outcome, name) for name in _OF_RESULT}
            row |= {f"{stage}_s": outcome.stage_s.get(stage, 0.0) for stage in BUSY_STAGES}
        self._rows.append(row)

    def note_worker(self, worker: int, info: WorkerInfo) -> None:
        self._workers.append({"worker": worker, **asdict(info)})

    def show(self, snapshot: Snapshot) -> None:
        """Write a part with what has ended since the last one, in a thread of its own."""
        self._collect(0.0)
        self._part += 1
        rows, self._rows = self._rows, []
        workers, self._workers = self._workers, []
        self._writes.send(partial(self._create, self._part, rows, workers, snapshot))
        self.every_s = min(PART_EVERY_MOST_S, self.every_s * _PART_GROWS)

    def close(self) -> None:
        """Waits a little for what is being written. Raises nothing."""
        self._collect(_WAIT_S)
        self._writes.close()

    def _create(self, part: int, rows: list[dict[str, Any]], workers: list[dict[str, Any]], snapshot: Snapshot) -> None:
        metadata = {"snapshot": snapshot.to_json(), "workers": json.dumps(redacted_values(workers))}
        data = to_bytes([pa.Table.from_pylist(rows, ATTEMPTS)], ATTEMPTS, metadata)
        self.store.create(f"{FOLDER}/{self.run_id}/{part:08d}{BOOK}", data)

    def _collect(self, wait_s: float) -> None:
        for outcome in self._writes.ended(wait_s):
            if isinstance(outcome, StoreError | StoreDenied) and not self._warned:
                self._warned = True
                self.say(f"the run's journal could not be written (predictions are not affected): {outcome}")


def run_ids(store: Store) -> list[str]:
    """Of every run that left something, oldest first: ids begin with their time."""
    return sorted({info.key.split("/")[2] for info in store.list("_stint/runs") if info.key.count("/") >= 3})


@dataclass(frozen=True)
class JournalContent:
    """What a part of a journal holds, or all of them together."""

    attempts: pa.Table
    """Every attempt in the order in which they ended; columns as in ATTEMPTS."""
    workers: list[dict[str, Any]]
    """Those that were ready at some time: `worker`, and the fields of workers.outcomes.WorkerInfo."""
    snapshot: Snapshot | None


def read_journal(store: Store, run_id: str, columns: Sequence[str] | None = None) -> JournalContent:
    """The journal of a run, `columns` of its attempts; parts that are damaged, or of another version, are passed over.

    Raises StoreError, StoreDenied.
    """
    schema = ATTEMPTS if columns is None else pa.schema([ATTEMPTS.field(name) for name in columns])
    read = ahead(partial(_read_part, store, schema.names), _part_keys(store, run_id), "journal")
    parts = [part for part in read if part is not None]
    return JournalContent(
        attempts=pa.concat_tables([schema.empty_table(), *(part.attempts for part in parts)]),
        workers=[worker for part in parts for worker in part.workers],
        snapshot=parts[-1].snapshot if parts else None,
    )


def last_snapshot(store: Store, run_id: str) -> Snapshot | None:
    """How a run stood when it last wrote; None where it has not, or not as this version reads."""
    parts = (_read_part(store, (), key) for key in reversed(_part_keys(store, run_id)))
    return next((part.snapshot for part in parts if part is not None), None)


def _read_part(store: Store, columns: Sequence[str], key: str) -> JournalContent | None:
    """None for one that is damaged, or of another version. Raises StoreError, StoreDenied."""
    try:
        file = pq.ParquetFile(pa.BufferReader(store.get(key)), page_checksum_verification=True)
        metadata = file.schema_arrow.metadata or {}
        if not file.schema_arrow.remove_metadata().equals(ATTEMPTS):
            return None
        table = file.read(list(columns)).replace_schema_metadata(None)
        snapshot = Snapshot.from_json(metadata[b"stint.snapshot"])
        return JournalContent(table, json.loads(metadata[b"stint.workers"]), snapshot)
    except (pa.ArrowException, OSError, ValueError, KeyError, NotFound):
        return None


def _part_keys(store: Store, run_id: str) -> list[str]:
    return sorted(info.key for info in store.list(f"{FOLDER}/{run_id}") if _PARTS.fullmatch(info.key))
