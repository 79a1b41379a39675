"""A pool in made-up time whose workers do to each shard what a test says: commit it, fail, die of it, never end."""

from __future__ import annotations

import heapq
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan
from jobs.pool.contract import Event, ShardEnded, WorkerGone, WorkerPlaced, WorkerReady
from jobs.progress.displays import display_for
from jobs.progress.progress import Progress
from jobs.run.loop import Loop
from jobs.run.tally import Tally
from jobs.spec.schema import Limits, Workers
from tests.support.fakes import INFO, RESULT, object_of
from workers.contract import Shard
from workers.outcomes import Failure, FailureCode, FailureKind

SHARD_S = 10.0
COMMIT, HANG = "commit", "hang"

CRASH = Failure(kind=FailureKind.INFRA, code=FailureCode.CRASHED, message="the process died")
MEMORY = Failure(kind=FailureKind.INFRA, code=FailureCode.MEMORY, message="over its bound")
NODE = Failure(kind=FailureKind.INFRA, code=FailureCode.NODE_LOST, message="the node is gone")
PREEMPTED = Failure(kind=FailureKind.INFRA, code=FailureCode.PREEMPTED, message="taken away")
DEATHS = (CRASH, NODE, PREEMPTED)
"""What takes the worker along."""
STORAGE = Failure(kind=FailureKind.INFRA, message="503")
TASK = Failure(kind=FailureKind.TASK, message="ZeroDivisionError", traceback="Traceback: line 7")
DATA = Failure(kind=FailureKind.DATA, message="page checksum")

Fate = str | Failure


@dataclass(frozen=True)
class Given:
    """One attempt, as the pool was asked for it."""

    worker: int
    shard: Shard
    isolated_s: float | None
    beside: int
    """Shards that the worker held already."""


@dataclass(eq=False)
class _Worker:
    ready: bool = False
    held: list[Given] = field(default_factory=list)


class FatePool:
    """The pool's contract; `fate` is asked when it is an attempt's turn, `starts` when a worker comes up."""

    def __init__(
        self, ledger: Ledger, fate: Callable[[Given], Fate], starts: Callable[[int], Fate] = lambda _: COMMIT
    ) -> None:
        self.now = 0.0
        self.given: list[Given] = []
        self.joined: set[Given] = set()
        """Attempts beside which another shard was given to their worker."""
        self.host_of: Callable[[int], str] = "host-{}".format
        self._ledger, self.fate, self._starts = ledger, fate, starts
        self._numbers = itertools.count()
        self._workers: dict[int, _Worker] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._events: list[Event] = []

    def workers(self) -> dict[int, int]:
        return {number: len(worker.held) for number, worker in self._workers.items() if worker.ready}

    def size(self) -> int:
        return len(self._workers)

    def start(self, labels: Mapping[str, str]) -> int:
        number = next(self._numbers)
        self._workers[number] = _Worker()
        self._after(0.0, lambda: self._place(number))
        self._after(1.0, lambda: self._come_up(number))
        return number

    def end(self, worker: int) -> None:
        del self._workers[worker]

    def assign(self, worker: int, shard: Shard, *, isolated_s: float | None = None) -> None:
        it = self._workers[worker]
        given = Given(worker, shard, isolated_s, len(it.held))
        assert not any(other.isolated_s is not None for other in it.held), "isolated means alone"
        self.joined.update(it.held)
        it.held.append(given)
        self.given.append(given)
        if len(it.held) == 1:
            self._after(SHARD_S, lambda: self._turn(worker, given))

    def poll(self, timeout_s: float) -> Sequence[Event]:
        until = self.now + timeout_s
        while not self._events and self._timers and self._timers[0][0] <= until:
            self.now, _, action = heapq.heappop(self._timers)
            action()
        if not self._events:
            self.now = until
        events, self._events = self._events, []
        return [event for event in events if event.worker in self._workers or isinstance(event, WorkerGone)]

    def close(self) -> None:
        self._workers.clear()

    def put_off(self, given: Given) -> None:
        """Ask for the fate of an attempt that hangs again, a second later."""
        self._after(1.0, lambda: self._turn(given.worker, given))

    def _place(self, number: int) -> None:
        if number in self._workers:
            self._events.append(WorkerPlaced(number, f"node-{number}", 1))

    def _come_up(self, number: int) -> None:
        worker = self._workers.get(number)
        fate = self._starts(number)
        if worker is None or fate == HANG:
            return
        if isinstance(fate, Failure):
            del self._workers[number]
            self._events.append(WorkerGone(number, fate))
        else:
            worker.ready = True
            self._events.append(WorkerReady(number, replace(INFO, host=self.host_of(number), pid=1000 + number)))

    def _turn(self, number: int, given: Given) -> None:
        worker = self._workers.get(number)
        if worker is None:
            return
        fate = self.fate(given)
        if fate == HANG:
            return
        if fate in DEATHS or fate is MEMORY:
            assert isinstance(fate, Failure)
            del self._workers[number]
            self._events.append(WorkerGone(number, fate))
            return
        worker.held.remove(given)
        outcome: Any = fate
        if fate == COMMIT:
            shard = given.shard
            self._ledger.store.create(f"{self._ledger.root}/{shard.key}", object_of(shard))
            facts = {"plan": shard.plan, "index": shard.index, "rows_ok": shard.rows}
            outcome = replace(RESULT, **facts, rows_bad=0, bad_by_code={}, wall_s=SHARD_S)
        self._events.append(ShardEnded(number, given.shard, outcome))
        if worker.held:
            following = worker.held[0]
            self._after(SHARD_S, lambda: self._turn(number, following))

    def _after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (self.now + delay_s, next(self._order), action))


class AtOnce(Executor):
    """Has done everything by the time that it is asked for the outcome."""

    def __init__(self, *_: object) -> None:
        pass

    def submit(self, action: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(action(*arguments, **options))
        except Exception as error:  # noqa: BLE001  (a future keeps it for whoever asks)
            future.set_exception(error)
        return future


@dataclass
class Fated:
    """A loop over a FatePool, and what it told."""

    loop: Loop
    pool: FatePool
    told: io.StringIO

    def attempts_at(self, index: int) -> list[Given]:
        return [given for given in self.pool.given if given.shard.index == index]


def fated(
    ledger: Ledger,
    plan: Plan,
    fate: Callable[[Given], Fate],
    *,
    starts: Callable[[int], Fate] = lambda _: COMMIT,
    workers: int = 3,
    limits: Limits | None = None,
    run_id: str = "run",
    **changes: Any,
) -> Fated:
    pool, log, tally = FatePool(ledger, fate, starts), io.StringIO(), Tally()
    settings: dict[str, Any] = {
        "ledger": ledger,
        "pool": pool,
        "plans": [plan],
        "missing": ledger.missing(plan),
        "limits": limits or Limits(),
        "workers": Workers(max=workers),
        "progress": Progress(
            plan.rows, len(plan.shards), counts=tally, display=display_for(log), clock=lambda: pool.now
        ),
        "tally": tally,
        "interrupted": lambda: False,
        "run_id": run_id,
        "clock": lambda: pool.now,
        "sleep": lambda seconds: None,
    }
    with mock.patch("jobs.ledger.background.ThreadPoolExecutor", AtOnce):  # what is asked of the store takes no time
        return Fated(Loop(**{**settings, **changes}), pool, log)
