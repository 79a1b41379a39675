"""Workers as threads of this process: the pool's contract without Ray, for tests and for a debugger.

Cores are neither leased nor pinned, because the process may be anybody's; one worker is the honest default.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from queue import SimpleQueue
from typing import Any, TypeVar

from jobs.pool import contract
from jobs.progress.snapshot import Snapshot
from workers.actor import Worker
from workers.contract import BundleRequest, Shard, WorkerSpec
from workers.host import cpu as gpus
from workers.host.cores import read_topology
from workers.maker import Maker
from workers.outcomes import BundleOutcome, Failure, FailureKind, WorkerInfo

_T = TypeVar("_T")


class LocalPool:
    """Runs `factory()` workers, each with what workers.actor.Worker offers, and on threads of its own."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self._factory = factory
        self._numbers = count()
        self._events: SimpleQueue[contract.Event] = SimpleQueue()
        self._workers: dict[int, tuple[Any, ThreadPoolExecutor]] = {}
        self._ready: dict[int, list[Shard]] = {}

    def workers(self) -> Collection[int]:
        return self._ready.keys()

    def size(self) -> int:
        return len(self._workers)

    def start(self, labels: Mapping[str, str]) -> int:  # noqa: ARG002  (this process has no labels)
        worker, actor = next(self._numbers), self._factory()
        threads = ThreadPoolExecutor(contract.MAX_HELD_SHARDS, f"worker-{worker}")
        self._workers[worker] = actor, threads
        future = threads.submit(actor.start)
        if isinstance(actor, Maker):
            self._events.put(contract.WorkerPlaced(worker, "this process", 1))  # from now on it may take too long
        future.add_done_callback(lambda f: self._events.put(_started(worker, _outcome(f))))
        return worker

    def end(self, worker: int) -> None:
        self._retire(worker, wait=self._ready.get(worker) == [])

    def assign(self, worker: int, shard: Shard, *, isolated_s: float | None = None) -> None:
        self._ready[worker].append(shard)
        actor, threads = self._workers[worker]
        if isolated_s is None:
            future = threads.submit(actor.score, shard)
        else:
            future = threads.submit(actor.score_isolated, shard, isolated_s)
        future.add_done_callback(lambda f: self._events.put(contract.ShardEnded(worker, shard, _outcome(f))))

    def doing(self) -> str:
        return next((maker.doing() for maker, _ in self._workers.values()), "")

    def poll(self, timeout_s: float) -> Sequence[contract.Event]:
        return [event for event in contract.drain(self._events, timeout_s) if self._take(event)]

    def close(self) -> None:
        for worker in list(self._workers):
            self._retire(worker, wait=True)

    def _take(self, event: contract.Event) -> bool:
        """Note what an event changes here; whether it is handed out."""
        if event.worker not in self._workers:
            return False  # what a worker that was ended had under way
        if isinstance(event, contract.WorkerGone | contract.BundleMade):
            self._retire(event.worker, wait=True)
        elif isinstance(event, contract.WorkerReady):
            self._ready[event.worker] = []
        elif isinstance(event, contract.ShardEnded):
            self._ready[event.worker].remove(event.shard)
        return True

    def _retire(self, worker: int, *, wait: bool) -> None:
        self._ready.pop(worker, None)
        actor, threads = self._workers.pop(worker)
        threads.shutdown(wait=False)
        if wait:
            actor.stop()
        else:  # it starts, or scores, and may be stuck: a thread cannot be ended
            threading.Thread(target=actor.stop, daemon=True).start()


def _outcome(future: Future[_T]) -> _T | Failure:
    error = future.exception()
    return Failure(kind=FailureKind.TASK, message=repr(error)) if error else future.result()


def _started(worker: int, outcome: WorkerInfo | BundleOutcome | Failure) -> contract.Event:
    if isinstance(outcome, Failure):
        return contract.WorkerGone(worker, outcome)
    if isinstance(outcome, BundleOutcome):
        return contract.BundleMade(worker, outcome)
    return contract.WorkerReady(worker, outcome)


class _Maker(Maker):
    """As a worker of a LocalPool, which makes the bundle when it starts, and holds nothing."""

    start = Maker.make

    def stop(self) -> None: ...


class LocalCluster:
    """This process as the place where workers run."""

    every_s = math.inf

    def __init__(self) -> None:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # its deprecation notices would end up in the progress

    def most_workers(self, threads: int) -> int | None:  # noqa: ARG002  (the cluster's contract)
        return 1

    def workers_there(self, threads: int) -> int:  # noqa: ARG002
        return 1

    def most_threads(self) -> int | None:
        return read_topology().budget

    def gpus(self) -> int:
        return gpus.gpu_count()

    def pool(self, spec: WorkerSpec | BundleRequest) -> contract.Pool:
        if isinstance(spec, BundleRequest):
            return LocalPool(lambda: _Maker(replace(spec, pin=False)))
        return LocalPool(lambda: Worker(replace(spec, pin=False)))

    def describe(self) -> str:
        return f"this process (one worker; the machine grants {read_topology().budget} cores)"

    def show(self, snapshot: Snapshot) -> None:
        """Nothing: whoever runs it looks at it, and no cluster is there to be monitored."""

    def close(self) -> None: ...
