"""Workers of a modelled run: they read and commit as the real ones do, inside of the run's coroutine."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from jobs.plan.job import Job
from jobs.pool.contract import BundleMade, Event, ShardEnded, WorkerGone, WorkerReady
from jobs.progress.snapshot import Snapshot
from tests.model.earlier import EarlierJob
from tests.model.faults import WorkerLost
from tests.model.scheduler import World
from tests.support.fakes import INFO, RESULT
from workers.bundle.manifest import Manifest, StoredObject
from workers.contract import BundleRequest, Preprocess, Shard, WorkerSpec
from workers.failures import classify
from workers.image.errors import BadImage, ErrorCode
from workers.outcomes import BundleOutcome, Failure, FailureCode, FailureKind, ShardResult, WorkerInfo
from workers.output import Scored, encode, object_facts
from workers.score.copies import image_hash
from workers.source.shard_reader import ShardReader
from workers.storage.store import open_store

SCORE_S = 1.0
"""What an attempt takes, where time matters: between a slow worker and others."""
NAPS = 20
"""Waits for nothing after which a slow worker goes on by itself: the shard may be one that is not tried twice."""
IDLE_S = 2.0
"""How long a wait for nothing takes: a driver that is held up, so that pauses after failures end in a few steps."""
BAD = b"bad"
"""The content of a file that is no image."""
_facts = cache(object_facts)  # pure, and much of an execution's time


class ModelWorker:
    """Reads and commits as the real one does; only the network between is left out."""

    def __init__(self, world: World, spec: WorkerSpec) -> None:
        self._world, self._spec = world, spec

    def start(self) -> WorkerInfo | Failure:
        self._store = open_store(self._spec.output.uri)
        return INFO

    def score(self, shard: Shard) -> ShardResult | Failure:
        actor = self._world.current
        actor.by_worker = True
        try:
            return self._score(shard)
        except Exception as error:  # noqa: BLE001  (as workers.actor does)
            return classify(error)
        finally:
            actor.by_worker = False

    def _score(self, shard: Shard) -> ShardResult:
        reader = ShardReader(shard, self._spec.input)
        blocks = list(reader.blocks())
        read = [(block.slice_index, row) for block in blocks for row in block.rows]
        gone = tuple(sorted(reader.gone))
        bad = tuple(n for n, image in enumerate(image for block in blocks for image in block.images) if image == BAD)
        made, hashes = _encoded, ()
        if shard.table is not None:  # which has no hash that a cache could go by
            made, hashes = _encoded.__wrapped__, tuple(image_hash(image) for b in blocks for image in b.images)
        data = made(shard, tuple(read), gone, bad, self._world.token().hex, hashes)
        key = f"{self._spec.root}/{shard.key}"
        committed = self._store.create(key, data)
        facts = _facts(data if committed else self._store.get(key))
        return ShardResult(
            **{
                **vars(RESULT),
                "plan": shard.plan,
                "index": shard.index,
                "committed": committed,
                "rows_ok": facts.rows_ok,
                "rows_bad": facts.rows_bad,
                "bad_by_code": {"corrupt": facts.rows_bad} if facts.rows_bad else {},
                "rows_gone": sum(shard.slices[i].rows for i in facts.gone),
                "sha256": facts.sha256,
                "object_bytes": facts.size,
            }
        )


@cache
def _encoded(
    shard: Shard,
    read: tuple[tuple[int, int], ...],
    gone: tuple[int, ...],
    bad: tuple[int, ...],
    token: str,
    hashes: tuple[bytes | None, ...] = (),
) -> bytes:
    """The object of a shard of which these rows, as (slice, row), were read, the `bad` ones without a prediction."""
    rows = len(read)
    scored = Scored(
        label_NK=np.zeros((rows, 1), np.int32),
        score_NK=np.ones((rows, 1), np.float32),
        slice_index=[index for index, _ in read],
        row=[row for _, row in read],
        errors={number: BadImage(ErrorCode.CORRUPT, "no image") for number in bad},
        hashes=list(hashes),
    )
    metadata = {"plan_token": shard.plan_token, "token": token}
    return encode(
        shard, scored, task="classify", labels=None, keys=[], outputs=1, named=True, gone=gone, metadata=metadata
    )


class Slow(enum.Enum):
    """A first worker that does nothing until another has been given its shard too; then both attempts end at once."""

    FIRST = "the slow one commits first"
    SECOND = "the slow one commits second"


class ModelPool:
    """The pool's contract, one shard at a time, inside of the run's coroutine."""

    def __init__(self, world: World, spec: WorkerSpec, slow: Slow | None = None) -> None:
        self._world, self._spec, self._slow = world, spec, slow
        self._workers: dict[int, ModelWorker] = {}
        self._held: dict[int, list[Shard]] = {}
        self._events: list[Event] = []
        self._next = 0
        self._naps = 0

    def workers(self) -> dict[int, int]:
        return {worker: len(shards) for worker, shards in self._held.items()}

    def size(self) -> int:
        return len(self._workers)

    def start(self, labels: Mapping[str, str]) -> int:
        number, self._next = self._next, self._next + 1
        self._workers[number] = ModelWorker(self._world, self._spec)
        return number

    def end(self, worker: int) -> None:
        self._workers.pop(worker, None)
        self._held.pop(worker, None)

    def assign(self, worker: int, shard: Shard, *, isolated_s: float | None = None) -> None:
        self._held[worker].append(shard)

    def poll(self, timeout_s: float) -> Sequence[Event]:
        if new := [number for number in self._workers if number not in self._held]:
            return [self._ready(number) for number in new]
        if both := self._tried_twice():
            self._world.current.now_s += SCORE_S
            return [self._scored(number, shard) for number, shard in both]
        asleep = {0} if self._slow and len(self._held) > 1 and self._naps < NAPS else set()
        for number, shards in self._held.items():
            if shards and number not in asleep:
                self._world.current.now_s += SCORE_S if self._slow else 0.0
                return [self._scored(number, shards[0])]
        self._naps += 1
        self._world.current.now_s += max(timeout_s, IDLE_S)
        return []

    def _ready(self, number: int) -> Event:
        info = self._workers[number].start()
        assert isinstance(info, WorkerInfo)
        self._held[number] = []
        return WorkerReady(number, info)

    def _tried_twice(self) -> list[tuple[int, Shard]]:
        """The two attempts at a shard, in the order in which they are to end."""
        held = [(number, shard) for number, shards in self._held.items() for shard in shards]
        for worker, shard in held:
            both = [(number, it) for number, it in held if it == shard and worker == 0]
            if len(both) > 1:
                return both if self._slow is Slow.FIRST else both[::-1]
        return []

    def _scored(self, number: int, shard: Shard) -> Event:
        try:
            outcome = self._workers[number].score(shard)
        except WorkerLost:
            self.end(number)
            gone = Failure(kind=FailureKind.INFRA, code=FailureCode.CRASHED, message="its process died")
            return WorkerGone(number, gone)
        self._held[number].remove(shard)
        return ShardEnded(number, shard, outcome)

    def close(self) -> None:
        self._workers.clear()
        self._held.clear()


class ModelMakers:
    """The pool's contract for one maker, whose bundle is a manifest, created as a real one creates it."""

    def __init__(self, world: World, job: Job, request: BundleRequest) -> None:
        self._world, self._job, self._request = world, job, request
        self._events: list[Event] = []

    def workers(self) -> dict[int, int]:
        return {}

    def size(self) -> int:
        return len(self._events)

    def start(self, labels: Mapping[str, str]) -> int:
        fingerprint = self._request.fingerprint
        manifest = Manifest(
            fingerprint=fingerprint, spec={}, task="classify", outputs=1, labels=None,
            preprocess=Preprocess(resize_px=1, crop_px=1, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
            artifacts=(), recipe="model", versions={}, cpu_model="", calibration=None,
            golden=StoredObject(sha256="", size=0, suffix=""), notes=(self._world.token().hex,),
        )  # fmt: skip
        if isinstance(self._job, EarlierJob):
            manifest = replace(manifest, schema=2)
        try:
            created = self._job.store.create(f"_stint/bundles/{fingerprint}/manifest.json", manifest.to_json())
        except Exception as error:  # noqa: BLE001  (as workers.maker does)
            self._events = [WorkerGone(0, classify(error))]
            return 0
        if not created:
            self._job.manifest()  # what is used is what is there, if this release reads it
        outcome = BundleOutcome(fingerprint=fingerprint, passed=True, created=created, table="", report={}, seconds=0.0)
        self._events = [BundleMade(0, outcome)]
        return 0

    def end(self, worker: int) -> None:
        self._events = []

    def assign(self, worker: int, shard: Shard, *, isolated_s: float | None = None) -> None:
        raise AssertionError("makers take no shards")

    def doing(self) -> str:
        return ""

    def poll(self, timeout_s: float) -> Sequence[Event]:
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self._events = []


class ModelCluster:
    """One machine for as many workers as the spec allows."""

    every_s = 5.0

    def __init__(self, world: World, job: Job, slow: Slow | None = None) -> None:
        self._world, self._job, self._slow = world, job, slow

    def most_workers(self, threads: int) -> int | None:
        return self._job.spec.workers.max

    def workers_there(self, threads: int) -> int:
        return self._job.spec.workers.max

    def most_threads(self) -> int | None:
        return None

    def gpus(self) -> int:
        return 0

    def pool(self, spec: WorkerSpec | BundleRequest) -> ModelPool | ModelMakers:
        if isinstance(spec, BundleRequest):
            return ModelMakers(self._world, self._job, spec)
        return ModelPool(self._world, spec, self._slow)

    def describe(self) -> str:
        return "a model"

    def show(self, snapshot: Snapshot) -> None:
        """Nobody monitors it."""

    def close(self) -> None:
        pass
