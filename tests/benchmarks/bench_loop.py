"""What a shard costs the driver: the real loop with its books, its ledger and its listings, on made-up workers.

    python -m tests.benchmarks.bench_loop --shards 1000000 --workers 10000

Workers and time are made up (shards end one at a time, out of a heap), so what is measured is the driver's own work.
What the pool itself takes is measured apart and left out; a real one pays Ray for each shard besides. The store is a
dictionary that counts requests as an object store would answer them, 1,000 keys a page.
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import io
import itertools
import pstats
import random
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan
from jobs.plan.sharding import Bounds, cut
from jobs.pool.contract import Event, ShardEnded, WorkerPlaced, WorkerReady
from jobs.progress.displays import LineDisplay, Outlet
from jobs.progress.progress import Progress
from jobs.report.journal import Journal
from jobs.run.loop import Loop
from jobs.run.tally import Tally
from jobs.spec.schema import Limits, Workers
from tests.support.fakes import INFO, RESULT, MemoryStore, opened
from workers.contract import Shard
from workers.storage.store import ObjectInfo

SHARD_ROWS = 4000
RATE = 40.0
"""Rows a second of a worker."""
NOISE = 0.1
START_S = (60.0, 180.0)
SLOTS = 8
"""Workers on a node."""
PAGE = 1000
STAGES = {"read": 1.0, "decode": 40.0, "predict": 58.0, "write": 0.5, "wait": 0.5, "throttled": 0.0}
DIGEST = "0" * 64


class PagedStore(MemoryStore):
    """Counts the requests of listings, and the time that the driver spends on them."""

    def __init__(self, shards: int) -> None:
        super().__init__()
        self.requests = 0
        self.listing_s = 0.0
        self.committed = bytearray(shards)
        """For each shard of the one plan whether it is: objects are not made."""

    def list(self, prefix: str, parts: Sequence[str] = ()) -> Iterator[ObjectInfo]:
        if "/plan=" not in prefix:
            yield from super().list(prefix, parts)
            return
        firsts = [int(part) * PAGE for part in parts] or range(0, len(self.committed), PAGE)
        began = time.thread_time()
        for first in firsts:
            self.requests += 1
            there = (n for n in range(first, min(first + PAGE, len(self.committed))) if self.committed[n])
            yield from (ObjectInfo(f"{prefix}/{number:08d}.parquet", 1, "") for number in there)
        self.listing_s += time.thread_time() - began


class HeapPool:
    """The pool's contract over made-up workers; its clock moves when `poll` waits."""

    def __init__(self, store: PagedStore) -> None:
        self.now = self.took_s = 0.0
        self.polls = 0
        self._store = store
        self._random = random.Random(1)
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Callable[[int, Shard | None], Event], int, Shard | None]] = []
        self._starting: set[int] = set()
        self._holding: dict[int, int] = {}
        self._held: dict[int, list[Shard]] = {}

    def workers(self) -> Mapping[int, int]:
        return self._holding

    def size(self) -> int:
        return len(self._starting) + len(self._holding)

    def start(self, labels: Mapping[str, str]) -> int:
        worker = next(self._order)
        at = self.now + self._random.uniform(*START_S)
        self._starting.add(worker)
        self._after(at - 10, self._placed, worker)
        self._after(at, self._ready, worker)
        return worker

    def end(self, worker: int) -> None:
        self._starting.discard(worker)
        self._holding.pop(worker, None)
        self._held.pop(worker, None)

    def assign(self, worker: int, shard: Shard, *, isolated_s: float | None = None) -> None:
        began = time.thread_time()
        self._held[worker].append(shard)
        self._holding[worker] += 1
        if self._holding[worker] == 1:
            self._begin(worker, shard)
        self.took_s += time.thread_time() - began

    def poll(self, timeout_s: float) -> Sequence[Event]:
        began = time.thread_time()
        self.polls += 1
        until = self.now + timeout_s
        events: list[Event] = []
        while not events and self._timers and self._timers[0][0] <= until:
            self.now, _, action, worker, shard = heapq.heappop(self._timers)
            if worker in self._starting or worker in self._holding:
                events.append(action(worker, shard))
        self.now = self.now if events else until
        self.took_s += time.thread_time() - began
        return events

    def close(self) -> None:
        pass

    def _placed(self, worker: int, _: Shard | None) -> Event:
        return WorkerPlaced(worker, f"node-{worker // SLOTS:05}", SLOTS)

    def _ready(self, worker: int, _: Shard | None) -> Event:
        self._starting.remove(worker)
        self._holding[worker], self._held[worker] = 0, []
        return WorkerReady(worker, INFO)

    def _begin(self, worker: int, shard: Shard) -> None:
        seconds = shard.rows / RATE * self._random.lognormvariate(0, NOISE)
        self._after(self.now + seconds, self._ended, worker, shard)

    def _ended(self, worker: int, shard: Shard | None) -> Event:
        assert shard is not None
        self._held[worker].remove(shard)
        self._holding[worker] -= 1
        first = not self._store.committed[shard.index]
        self._store.committed[shard.index] = True
        if self._held[worker]:
            self._begin(worker, self._held[worker][0])
        result = replace(
            RESULT, plan=shard.plan, index=shard.index, committed=first, rows_ok=shard.rows, rows_bad=0,
            bad_by_code={}, sha256=DIGEST, stage_s=STAGES, wall_s=100.0,
        )  # fmt: skip
        return ShardEnded(worker, shard, result)

    def _after(
        self, at: float, action: Callable[[int, Shard | None], Event], worker: int, shard: Shard | None = None
    ) -> None:
        heapq.heappush(self._timers, (at, next(self._order), action, worker, shard))


class Forgetful(MemoryStore):
    """Takes the parts of the journal, and keeps none."""

    def create(self, key: str, data: bytes) -> bool:
        return True


def planned(shards: int) -> tuple[Ledger, Plan, PagedStore]:
    """A plan over Parquet files of a thousand row groups, each a shard."""
    store = PagedStore(shards)
    ledger = Ledger(store, "model=net-0123456789abcdef")
    files = [opened(f"s3://bucket/images/{n:06d}.parquet", *[SHARD_ROWS] * 1000) for n in range(-(-shards // 1000))]
    content = cut(files, Bounds(SHARD_ROWS, SHARD_ROWS, 2**40))
    plan = ledger.claim(lambda _: content)
    assert plan is not None
    return ledger, plan, store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1_000_000, help="in thousands")
    parser.add_argument("--workers", type=int, default=10_000)
    parser.add_argument("--deadline-h", type=float, help="size the fleet for it, rather than take all workers")
    parser.add_argument("--profile", action="store_true", help="where the time goes; it makes everything slower")
    arguments = parser.parse_args()
    ledger, plan, store = planned(arguments.shards)
    missing = ledger.missing(plan)
    before_mib, store.requests = _peak_mib(), 0
    shards = len(missing)
    pool = HeapPool(store)
    profile = cProfile.Profile() if arguments.profile else None
    journal = Journal(Forgetful(), "bench", print)
    tally = Tally(journal=journal)
    began = time.process_time()
    loop = Loop(
        ledger=ledger,
        pool=pool,
        plans=[plan],
        missing=missing,
        limits=Limits(),
        workers=Workers(max=arguments.workers),
        tally=tally,
        progress=Progress(
            plan.rows,
            shards,
            counts=tally,
            watchers=[journal],
            display=LineDisplay(Outlet(io.StringIO())),
            clock=lambda: pool.now,
        ),
        interrupted=lambda: False,
        run_id="bench",
        finish_in_s=arguments.deadline_h and arguments.deadline_h * 3600,
        rate_before=RATE,
        clock=lambda: pool.now,
        sleep=lambda seconds: None,
    )
    ready_s = time.process_time() - began
    if profile:
        profile.enable()
    loop.run()
    if profile:
        profile.disable()
    journal.close()
    cpu_s = time.process_time() - began - ready_s - pool.took_s
    assert tally.shards == shards
    print(f"{shards:,} shards, {arguments.workers:,} workers, {pool.polls:,} steps of the loop")
    took = f"{cpu_s:.1f} s, of which listings {store.listing_s:.1f} s"
    print(f"{shards / cpu_s:,.0f} shards per second of CPU: {took}")
    print(f"besides: the books at the start {ready_s:.1f} s, the made-up workers {pool.took_s:.1f} s")
    print(f"a night of {pool.now / 3600:.1f} h; requests for listings: {store.requests:,}")
    print(f"second attempts: {tally.speculative_attempts}, of which first: {tally.speculative_wins}")
    print(f"peak memory {_peak_mib():,.0f} MiB, of which {before_mib:,.0f} MiB before the loop, for plan and shards")
    if profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
