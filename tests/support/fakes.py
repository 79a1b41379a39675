"""Doubles for tests of the driver: a worker that commits real objects without torch, and made-up input."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jobs.input.footers import Opened
from jobs.ledger.plans import Source
from workers.contract import Shard, ThreadPlan
from workers.outcomes import Failure, ShardResult, WorkerInfo
from workers.output import Scored, encode, object_facts
from workers.source.rows import RowGroup
from workers.storage.errors import NotFound
from workers.storage.store import ObjectInfo, Store


class MemoryStore:
    """A store in a dictionary, with the same contract."""

    def __init__(self, url: str = "memory://store") -> None:
        self.url = url
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def create(self, key: str, data: bytes) -> bool:
        with self._lock:
            return self._objects.setdefault(key, data) is data

    def get(self, key: str) -> bytes:
        try:
            return self._objects[key]
        except KeyError:
            raise NotFound(f"{self.url}/{key}") from None

    def list(self, prefix: str, parts: Sequence[str] = ()) -> Iterator[ObjectInfo]:
        folder = prefix.rstrip("/") + "/" if prefix else ""
        for key in sorted(self._objects):
            if key.startswith(folder):
                yield ObjectInfo(key, len(self._objects[key]), str(hash(self._objects[key])))


INFO = WorkerInfo(
    host="here",
    pid=1,
    plan=ThreadPlan(threads=1, cpus=(), slots=(), budget=1, threads_per_core=1),
    affinity=(0,),
    torch_threads=1,
    isa="x86-vnni",
    engine="torch-int8/x86-vnni",
    batch=16,
    memory_bytes=2**30,
    start_s={},
)


def opened(name: str, *groups: int, version: str = "v1") -> Opened:
    """A Parquet source with row groups of so many rows."""
    return Opened(
        Source(name, 100, version), tuple(RowGroup(rows, 10 * rows, n) for n, rows in enumerate(groups)), None
    )


def object_of(shard: Shard, *, token: str = "t", bad: tuple[int, ...] = ()) -> bytes:
    """What a worker would write for the shard, with class 0 everywhere."""
    from workers.image.errors import BadImage, ErrorCode

    rows = shard.rows
    scored = Scored(label_NK=np.zeros((rows, 1), np.int32), score_NK=np.ones((rows, 1), np.float32))
    for index, s in enumerate(shard.slices):
        scored.slice_index += [index] * s.rows
        scored.row += range(s.row_start, s.row_stop)
    scored.hashes = [None] * rows
    scored.errors = {row: BadImage(ErrorCode.EMPTY, "no bytes") for row in bad}
    metadata = {"plan_token": shard.plan_token, "token": token}
    return encode(
        shard, scored, task="classify", labels=None, keys=[], outputs=1, named=True, gone=[], metadata=metadata
    )


RESULT = ShardResult(
    plan=1, index=0, committed=True, rows_ok=95, rows_bad=5, bad_by_code={"truncated": 5}, bad_samples={}, rows_gone=0,
    sha256="", object_bytes=1, bytes_read=1, stage_s={}, wall_s=1, cpu_s=1, threads_busy=1, torch_threads=1,
    peak_rss_bytes=1,
)  # fmt: skip


class FakeWorker:
    """Commits each shard; `behave` may return a Failure, or do anything else, first."""

    def __init__(
        self,
        store: Store,
        root: str,
        behave: Callable[[Shard], Failure | None] | None = None,
        bad: tuple[int, ...] = (),
    ) -> None:
        self._store, self._root, self._behave, self._bad = store, root, behave, bad
        self.scored: list[str] = []
        self.isolated: list[str] = []
        """Of those, the ones that were scored in isolation."""
        self._lock = threading.Lock()

    def start(self) -> WorkerInfo | Failure:
        return INFO

    def score(self, shard: Shard) -> ShardResult | Failure:
        if self._behave and (failure := self._behave(shard)):
            return failure
        return self._commit(shard)

    def _commit(self, shard: Shard) -> ShardResult:
        data = object_of(shard, token=str(id(self)), bad=self._bad)
        key = f"{self._root}/{shard.key}"
        committed = self._store.create(key, data)
        facts = object_facts(self._store.get(key))
        with self._lock:
            self.scored.append(shard.key)
        return ShardResult(
            plan=shard.plan,
            index=shard.index,
            committed=committed,
            rows_ok=facts.rows_ok,
            rows_bad=facts.rows_bad,
            bad_by_code={"empty": facts.rows_bad} if facts.rows_bad else {},
            bad_samples={"empty": "row 0"} if facts.rows_bad else {},
            rows_gone=0,
            sha256=facts.sha256,
            object_bytes=facts.size,
            bytes_read=0,
            stage_s={},
            wall_s=0.1,
            cpu_s=0.1,
            threads_busy=1.0,
            torch_threads=1,
            peak_rss_bytes=0,
        )

    def score_isolated(self, shard: Shard, limit_s: float) -> ShardResult | Failure:
        """Scores the shard whatever `behave` would do to it."""
        self.isolated.append(shard.key)
        return self._commit(shard)

    def stop(self) -> None:
        pass
