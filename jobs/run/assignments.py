"""Who holds which shard since when, who has room for more, and who is overdue. Time comes in as a number.

Workers are kept by how many shards they hold, and those that hold some by how long: what is asked at every step of the
loop is then a look at a few of them, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

from jobs.fleet.speculation import left_s
from jobs.pool.contract import MAX_HELD_SHARDS
from jobs.run import policy
from jobs.run.policy import Manner
from jobs.spec.schema import Limits
from workers.contract import Shard
from workers.outcomes import Failure


@dataclass
class HeldShard:
    """A shard that a worker holds."""

    shard: Shard
    manner: Manner
    since: float
    """Since when nothing that was given before it is under way."""
    isolated_s: float = 0.0
    second: bool = False
    """Another worker had the shard already."""


class Assignments:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held: dict[int, list[HeldShard]] = {}
        """By ready worker, in the order in which they were given."""
        self.holding: list[set[int]] = [set() for _ in range(MAX_HELD_SHARDS)]
        """Ready workers that take more shards, by how many they hold: none, one, and so on."""
        self.busy: dict[int, None] = {}
        """Workers that hold something: the one that has been longest with what it was given first comes first."""
        self._placed_at: dict[int, float] = {}
        """Of workers that are not ready."""
        self.isolating: set[int] = set()
        """Workers that score a shard in isolation, which may take hours."""

    def placed(self, worker: int, now: float) -> None:
        """A pool may hear of it late, when the worker is ready already."""
        if worker not in self._held:
            self._placed_at[worker] = now

    def ready(self, worker: int) -> None:
        self._held[worker] = []
        self.holding[0].add(worker)
        self._placed_at.pop(worker, None)

    def assigned(
        self, worker: int, shard: Shard, manner: Manner, now: float, *, isolated_s: float = 0.0, second: bool = False
    ) -> None:
        self._held[worker].append(HeldShard(shard, manner, now, isolated_s, second))
        if manner is Manner.ISOLATED:
            self.isolating.add(worker)
        self._file(worker)
        self.busy.setdefault(worker)

    def ended(self, worker: int, shard: Shard, now: float) -> HeldShard:
        """An attempt is over; how the shard was held."""
        held = self._held[worker]
        index = next(i for i, other in enumerate(held) if other.shard.key == shard.key)
        ended = held.pop(index)
        self.isolating.discard(worker)
        self._file(worker)
        if index == 0:
            del self.busy[worker]
            if held:
                held[0].since = now
                self.busy[worker] = None
        return ended

    def gone(self, worker: int) -> dict[str, Manner]:
        """Forget a worker; how it held its shards, by key."""
        self._placed_at.pop(worker, None)
        self.busy.pop(worker, None)
        self.isolating.discard(worker)
        for workers in self.holding:
            workers.discard(worker)
        return {held.shard.key: held.manner for held in self._held.pop(worker, [])}

    def _file(self, worker: int) -> None:
        held = self._held[worker]
        room = all(each.manner is Manner.BESIDE for each in held)
        for number, workers in enumerate(self.holding):
            if room and number == len(held):
                workers.add(worker)
            else:
                workers.discard(worker)

    def shards(self, worker: int) -> tuple[Shard, ...]:
        return tuple(held.shard for held in self._held.get(worker, []))

    def longest(self, number: int) -> Iterator[tuple[int, HeldShard]]:
        """Workers that have been longest with what they are at, each with that."""
        for worker in islice(self.busy, number):
            yield worker, self._held[worker][0]

    def running(self, now: float, s_a_row: Callable[[int], float | None]) -> Iterator[tuple[Shard, float]]:
        """First attempts that were made beside others, each with the seconds in which it is expected to end; of workers
        of which is known how long a row takes them."""
        for worker in self.busy:
            pace = s_a_row(worker)
            if pace is None:
                continue
            ends_in_s = 0.0
            for number, held in enumerate(self._held[worker]):
                ends_in_s += left_s(held.shard.rows, pace, 0.0 if number else now - held.since)
                if held.manner is Manner.BESIDE and not held.second:
                    yield held.shard, ends_in_s

    def overdue(self, now: float, s_a_row: float | None) -> Iterator[tuple[int, Failure]]:
        """Workers to be ended, and why; `s_a_row` is what a row has taken on average in this run."""
        for worker, placed_at in self._placed_at.items():
            if now - placed_at > policy.PLACED_LIMIT_S:
                message = f"worker {worker} has had its node for {now - placed_at:.0f} s and is not ready"
                yield worker, policy.stuck(message)
        least_s = policy.stall_after_s(self._limits.stall_s, s_a_row, rows=0)
        for worker in self.busy:
            held = self._held[worker]
            oldest = held[0]  # what was given first is worked on first, or is at least being read
            if now - oldest.since <= (least_s or 0.0):
                return  # nor are those that follow
            if oldest.manner is Manner.ISOLATED:
                limit_s: float | None = policy.ISOLATED_TIMES * oldest.isolated_s
            else:
                rows = sum(each.shard.rows for each in held)
                limit_s = policy.stall_after_s(self._limits.stall_s, s_a_row, rows)
            if limit_s is not None and now - oldest.since > limit_s:
                message = (
                    f"worker {worker} has been with {oldest.shard.describe()} for {now - oldest.since:.0f} s, "
                    f"longer than {limit_s:.0f} s (limits.stall_s)"
                )
                yield worker, policy.stuck(message)


@dataclass(frozen=True, eq=False)
class Candidates(Mapping[int, str]):
    """Workers that may get a shard now, with their hosts: asked about a few, and never written out."""

    ready: Mapping[int, int]
    """As the pool has them."""
    released: AbstractSet[int]
    """They get no more."""
    isolating: AbstractSet[int]
    """They will be busy for too long to be waited for."""
    host: Callable[[int], str]

    def __contains__(self, worker: object) -> bool:
        return worker in self.ready and worker not in self.released and worker not in self.isolating

    def __getitem__(self, worker: int) -> str:
        if worker not in self:
            raise KeyError(worker)
        return self.host(worker)

    def __iter__(self) -> Iterator[int]:
        return filter(self.__contains__, self.ready)

    def __len__(self) -> int:
        return sum(1 for _ in self)
