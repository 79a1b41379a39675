"""A simulated night: the real loop and its decisions on a pool of made-up nodes, in made-up time, from a fixed seed.

Nodes boot, are slow, are preempted or never come, as the night says; an autoscaler starts them for pending workers and
takes idle ones back. Nothing sleeps, so eight hours take a second or two.
"""

from __future__ import annotations

import heapq
import io
import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from jobs.pool.contract import Event, ShardEnded, WorkerGone, WorkerPlaced, WorkerReady
from jobs.progress.displays import display_for
from jobs.progress.progress import Progress
from jobs.run.loop import Loop
from jobs.run.tally import Tally
from jobs.spec.schema import Limits, Workers
from tests.support.fakes import INFO, RESULT
from workers.contract import Shard, Slice
from workers.outcomes import Failure, FailureCode, FailureKind

RATE = 40.0
"""Rows a second of a worker on a node of speed 1."""
WORKER_START_S = 5.0
AUTOSCALER_S = 5.0
IDLE_S = 60.0
"""A node without workers is taken back, and paid for, until then."""
NOISE = 0.1
"""Spread of a shard's time."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A type of node."""

    labels: Mapping[str, str] = field(default_factory=dict)
    slots: int = 8
    boot_s: tuple[float, float] = (90, 180)
    speeds: Sequence[float] = (1.0,)
    lost_per_hour: float = 0.0
    capacity: Callable[[float], int] = lambda now_s: 1000
    """Nodes that the provider can give at a time of the night."""


@dataclass(frozen=True, kw_only=True)
class Night:
    rows: int = 0
    shard_rows: int = 4000
    shards: Sequence[int] = ()
    """Rows of each shard in the order of the plan, where they differ."""
    hours: float | None = None
    """Until the deadline."""
    kinds: Sequence[Kind] = (Kind(),)
    workers: Workers = field(default_factory=lambda: Workers(max=256))
    rate_before: float | None = None
    neighbours: int = 0
    """Workers of another run, on a node that is up from the start."""
    slow: Mapping[int, float] = field(default_factory=dict)
    """Speed of some nodes, by which of them was started first."""
    seed: int = 1

    @property
    def sizes(self) -> Sequence[int]:
        return self.shards or [self.shard_rows] * -(-self.rows // self.shard_rows)

    @property
    def ideal_node_hours(self) -> float:
        """All work on perfectly packed nodes that start and end at no cost."""
        return self.rows / RATE / self.kinds[0].slots / 3600


@dataclass(frozen=True, kw_only=True)
class Morning:
    """What came of it."""

    took_h: float
    node_hours: float
    node_hours_of: Sequence[float]
    """By kind."""
    peak: int
    """Workers ready at once."""
    nodes: int
    lost: int
    tail_s: float
    """From when a worker was first out of work to the end."""
    tally: Tally

    def __str__(self) -> str:
        return (
            f"{self.took_h:.2f} h, {self.node_hours:.1f} node-hours on {self.nodes} nodes, "
            f"{self.peak} workers at most, {self.lost} nodes preempted"
        )


@dataclass(eq=False)
class _Node:
    name: str
    kind: int
    launched_at: float
    speed: float
    up: bool = False
    idle_since: float = 0.0
    workers: set[int] = field(default_factory=set)


@dataclass(eq=False)
class _Worker:
    labels: Mapping[str, str]
    node: _Node | None = None
    ready: bool = False
    shards: list[Shard] = field(default_factory=list)


class NightPool:
    """The pool's contract over made-up nodes. Its clock moves when `poll` waits."""

    def __init__(self, night: Night) -> None:
        self.now = 0.0
        self.peak = self.lost = self.launched = 0
        self.node_seconds = [0.0] * len(night.kinds)
        self.idle_at: float | None = None
        """When a worker that had worked was first left without a shard."""
        self._night = night
        self._random = random.Random(night.seed)
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._workers: dict[int, _Worker] = {}
        self._holding: dict[int, int] = {}
        """Ready workers, with the number of shards that each holds."""
        self._committed: set[int] = set()
        self._rested: set[int] = set()
        """Workers that have ended their last shard."""
        self._nodes: set[_Node] = set()
        self._events: list[Event] = []
        if night.neighbours:
            others = set(range(-night.neighbours, 0))
            self._nodes.add(_Node("shared", 0, self.now, 1.0, up=True, workers=others))
        self._autoscale()

    # ---------------------------------------------------------------------------------- the contract

    def workers(self) -> Mapping[int, int]:
        return self._holding

    def size(self) -> int:
        return len(self._workers)

    def start(self, labels: Mapping[str, str]) -> int:
        number = next(self._order)
        self._workers[number] = _Worker(labels)
        self._after(0.0, self._schedule)
        return number

    def end(self, worker: int) -> None:
        self._forget(worker)

    def assign(self, worker: int, shard: Shard, *, isolated_s: float | None = None) -> None:
        it = self._workers[worker]
        it.shards.append(shard)
        self._holding[worker] += 1
        self._rested.discard(worker)
        if len(it.shards) == 1:
            self._begin(worker)

    def poll(self, timeout_s: float) -> Sequence[Event]:
        if self._rested and self.idle_at is None:
            self.idle_at = self.now
        until = self.now + timeout_s
        while not self._events and self._timers and self._timers[0][0] <= until:
            self.now, _, action = heapq.heappop(self._timers)
            action()
        if not self._events:
            self.now = until
        self.peak = max(self.peak, len(self._holding))
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        for node in list(self._nodes):
            self.node_seconds[node.kind] += self.now + IDLE_S - node.launched_at

    # ----------------------------------------------------------------------------------------- shards

    def _begin(self, number: int) -> None:
        worker = self._workers[number]
        assert worker.node is not None
        shard = worker.shards[0]
        noise = math.exp(self._random.gauss(0, NOISE))
        self._after(shard.rows / (RATE * worker.node.speed) * noise, lambda: self._finish(number, shard))

    def _finish(self, number: int, shard: Shard) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        worker.shards.remove(shard)
        self._holding[number] -= 1
        first = shard.index not in self._committed
        self._committed.add(shard.index)
        result = replace(RESULT, index=shard.index, committed=first, rows_ok=shard.rows, rows_bad=0, bad_by_code={})
        self._events.append(ShardEnded(number, shard, result))
        if worker.shards:
            self._begin(number)
        else:
            self._rested.add(number)

    # ------------------------------------------------------------------------------------------ nodes

    def _schedule(self) -> None:
        """Give pending workers a place on nodes that are up, as Ray does."""
        for number, worker in self._workers.items():
            if worker.node is None:
                fits = [n for n in self._nodes if n.up and self._fits(worker, n.kind) and self._free(n)]
                if fits:
                    node = min(fits, key=lambda n: (self._free(n), n.name))
                    worker.node = node
                    node.workers.add(number)
                    self._events.append(WorkerPlaced(number, node.name, self._night.kinds[node.kind].slots))
                    self._after(WORKER_START_S, lambda number=number: self._ready(number))

    def _ready(self, number: int) -> None:
        if number in self._workers:
            self._workers[number].ready = True
            self._holding[number] = 0
            self._events.append(WorkerReady(number, INFO))

    def _autoscale(self) -> None:
        """Start nodes for what is pending, beyond what is booting."""
        self._after(AUTOSCALER_S, self._autoscale)
        coming = {index: sum(self._free(n) for n in self._nodes if n.kind == index) for index in self._kinds}
        for worker in self._workers.values():
            if worker.node is not None:
                continue
            for index in self._kinds:
                if not self._fits(worker, index):
                    continue
                if not coming[index] and self._count(index) < self._night.kinds[index].capacity(self.now):
                    self._launch(index)
                    coming[index] += self._night.kinds[index].slots
                if coming[index]:
                    coming[index] -= 1
                    break

    def _launch(self, index: int) -> None:
        kind = self._night.kinds[index]
        speed = self._night.slow.get(self.launched, self._random.choice(kind.speeds))
        node = _Node(f"node-{self.launched:03}", index, self.now, speed)
        self.launched += 1
        self._nodes.add(node)
        self._after(self._random.uniform(*kind.boot_s), lambda: self._boot(node))
        if kind.lost_per_hour:
            self._after(self._random.expovariate(kind.lost_per_hour) * 3600, lambda: self._lose(node))

    def _boot(self, node: _Node) -> None:
        if node in self._nodes:
            node.up = True
            self._schedule()
            self._watch_idle(node)

    def _lose(self, node: _Node) -> None:
        if node not in self._nodes:
            return
        self.lost += 1
        self._remove(node)
        preempted = Failure(kind=FailureKind.INFRA, message="node lost", code=FailureCode.NODE_LOST)
        for number in list(node.workers):
            self._events.append(WorkerGone(number, preempted))
            self._forget(number)

    def _remove(self, node: _Node) -> None:
        self._nodes.remove(node)
        self.node_seconds[node.kind] += self.now - node.launched_at

    def _watch_idle(self, node: _Node) -> None:
        """Take the node back when it has been without workers for IDLE_S."""
        since = self.now

        def check() -> None:
            if node in self._nodes and not node.workers and node.idle_since == since:
                self._remove(node)

        if not node.workers:
            node.idle_since = since
            self._after(IDLE_S, check)

    def _forget(self, number: int) -> None:
        worker = self._workers.pop(number)
        self._holding.pop(number, None)
        self._rested.discard(number)
        if worker.node is not None:
            worker.node.workers.discard(number)
            if worker.node in self._nodes:
                self._schedule()
                self._watch_idle(worker.node)

    @property
    def _kinds(self) -> range:
        return range(len(self._night.kinds))

    def _fits(self, worker: _Worker, kind: int) -> bool:
        return worker.labels.items() <= self._night.kinds[kind].labels.items()

    def _free(self, node: _Node) -> int:
        return self._night.kinds[node.kind].slots - len(node.workers)

    def _count(self, kind: int) -> int:
        return sum(node.kind == kind for node in self._nodes)

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay_s, next(self._order), action))


def simulate(night: Night) -> Morning:
    """Run the night's shards to the end. The loop's own constants of time are the caller's to set."""
    pool = NightPool(night)
    shards = [_shard(index, rows) for index, rows in enumerate(night.sizes)]
    plan: Any = SimpleNamespace(number=1, rows=sum(night.sizes))
    ledger: Any = SimpleNamespace(
        present=lambda plan: set(), crashes=lambda plans: {}, record_crash=lambda *_, **__: None
    )
    tally = Tally()
    loop = Loop(
        ledger=ledger,
        pool=pool,
        plans=[plan],
        missing=shards,
        limits=Limits(),
        workers=night.workers,
        progress=Progress(
            plan.rows, len(shards), counts=tally, display=display_for(io.StringIO()), clock=lambda: pool.now
        ),
        tally=tally,
        interrupted=lambda: False,
        run_id="night",
        finish_in_s=None if night.hours is None else night.hours * 3600,
        rate_before=night.rate_before,
        clock=lambda: pool.now,
        sleep=lambda seconds: None,
    )
    loop.run()
    return Morning(
        took_h=pool.now / 3600,
        node_hours=sum(pool.node_seconds) / 3600,
        node_hours_of=[seconds / 3600 for seconds in pool.node_seconds],
        peak=pool.peak,
        nodes=pool.launched,
        lost=pool.lost,
        tail_s=0.0 if pool.idle_at is None else pool.now - pool.idle_at,
        tally=tally,
    )


def _shard(index: int, rows: int) -> Shard:
    part = Slice(uri=f"{index}.parquet", size=1, version="1", row_group=0, row_start=0, row_stop=rows)
    return Shard(plan=1, plan_token="t", index=index, slices=(part,))
