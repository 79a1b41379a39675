"""One worker: fixed cores, one model, shards in, objects out. The class that a Ray actor or a LocalPool runs.

Two calls of `score` may be under way: the second reads ahead while the first predicts, and predicts while the first
writes. Everything that computes with torch runs in one thread, because OpenMP keeps a pool of its own for every thread
that starts parallel work.
torch is imported in `start`, after the cores are leased and pinned.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from workers import logs
from workers.contract import Shard, WorkerSpec
from workers.host import cores, memory
from workers.host.preemption import Notice, heed_sigterm
from workers.outcomes import Failure, FailureKind, ShardResult, WorkerInfo

if TYPE_CHECKING:
    from workers.score.scorer import Part, Scorer
    from workers.source.shard_reader import ReadAhead

_T = TypeVar("_T")

SHARDS_AT_ONCE = 2
"""One is predicted; beside it the one before is written, or the next one is read."""


class Worker:
    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._compute = ThreadPoolExecutor(1, "compute")
        self._write = ThreadPoolExecutor(SHARDS_AT_ONCE, "write")
        self._lease: cores.Lease | None = None
        self._guard: memory.Guard | None = None
        self._memory_bytes = 0
        self._scorer: Scorer
        self._notice = Notice()
        if spec.pin:  # a process of its own, whose main thread makes the worker
            heed_sigterm(self._notice)
            logs.keep_clean()

    def start(self) -> WorkerInfo | Failure:
        """Lease cores, import torch, load the bundle and check the golden batch on this CPU.

        From then on the process is killed as soon as it takes more memory than its bound; but not in a LocalPool
        (`spec.pin` is off), where the process is somebody else's.
        """
        outcome = self._guarded(lambda: self._compute.submit(self._start).result(), "start")
        if isinstance(outcome, WorkerInfo):
            logs.ready(outcome)
        return outcome

    def score(self, shard: Shard) -> ShardResult | Failure:
        """Read, decode, predict and commit one shard."""
        return self._guarded(lambda: self._score(shard), shard.name)

    def score_isolated(self, shard: Shard, limit_s: float) -> ShardResult | Failure:
        """Score and commit a shard that kills workers, in processes that may die of it; rows that do become error rows.

        Each process has this worker's bound of memory, and `limit_s` to score all rows. The worker must hold no other
        shard: the cores are the same.
        """
        return self._guarded(lambda: self._score_isolated(shard, limit_s), shard.name)

    def leave(self, left_s: float) -> None:
        """Have everything over in so many seconds: what cannot be finished is handed back, and nothing more begun."""
        logs.leaving(left_s)
        self._notice.give(left_s)

    def stop(self) -> None:
        self._compute.shutdown(wait=True, cancel_futures=True)
        self._write.shutdown(wait=True)
        if self._guard:
            self._guard.close()
        if self._lease:
            self._lease.release()

    def _guarded(self, action: Callable[[], _T | Failure], doing: str) -> _T | Failure:
        try:
            outcome = action()
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the driver acts on)
            from workers.failures import classify

            outcome = classify(error)
        if isinstance(outcome, Failure):
            logs.failed(doing, outcome)
        else:
            logs.logger.debug("%s: done", doing)
        return outcome

    def _start(self) -> WorkerInfo:
        spec, began = self._spec, time.perf_counter()
        start_s: dict[str, float] = {}

        def lap(name: str) -> None:
            start_s[name] = time.perf_counter() - began - sum(start_s.values())

        if spec.pin:
            self._lease = cores.lease(spec.threads, held_for=spec.started_by)
            cores.apply(self._lease.plan)
        plan = self._lease.plan if self._lease else cores.unpinned(spec.threads)
        lap("lease")
        from workers.host.without_pandas import without_pandas
        from workers.score.scorer import Scorer

        if spec.pin:  # a process of its own
            without_pandas()
        self._memory_bytes = memory.bound_bytes(spec.memory_bytes, plan)
        self._scorer = Scorer.load(spec, lap, memory_bytes=self._memory_bytes)
        import torch

        if spec.pin:
            memory.check_room(self._memory_bytes)
            self._guard = memory.Guard(os.getpid(), self._memory_bytes)
        return WorkerInfo(
            host=socket.gethostname(),
            pid=os.getpid(),
            plan=plan,
            affinity=tuple(sorted(os.sched_getaffinity(0))),
            torch_threads=torch.get_num_threads(),
            isa=self._scorer.isa,
            engine=self._scorer.info.name,
            batch=self._scorer.batch,
            notes=self._scorer.notes,
            memory_bytes=self._memory_bytes,
            start_s=start_s,
        )

    def _score(self, shard: Shard) -> ShardResult:
        from workers.source.shard_reader import ReadAhead, ShardReader

        self._notice.begin()
        ahead = ReadAhead(ShardReader(shard, self._spec.input))
        try:
            part = self._notice.result_of(self._compute.submit(self._predict, shard, ahead), take_back=True)
            return self._notice.result_of(self._write.submit(self._scorer.commit, shard, part), take_back=False)
        finally:
            if not self._notice.given:  # else nobody waits for what may hang in storage: it goes with the process
                ahead.close()

    def _score_isolated(self, shard: Shard, limit_s: float) -> ShardResult | Failure:
        from workers.isolation.isolate import score_isolated

        self._notice.begin()
        # In the thread that otherwise computes: it stays for as long as the worker does, and the processes end with it.
        work = self._compute.submit(score_isolated, self._scorer.settled, shard, limit_s, self._memory_bytes)
        outcome = self._notice.result_of(work, take_back=True)
        if isinstance(outcome, Failure) and outcome.kind is FailureKind.INFRA:
            self._notice.begin()  # whoever ends this process may have ended the isolated one with it
        return outcome

    def _predict(self, shard: Shard, ahead: ReadAhead) -> Part:
        """The part that computes, in the compute thread."""
        if self._guard:
            self._guard.keep()
        began = time.monotonic()
        return self._scorer.predict(
            ahead,
            shard.rows,
            ahead.reader,
            lambda done: self._notice.between_rounds(done, shard.rows, time.monotonic() - began),
        )
