"""Who holds which shard since when, who has room for more, and who is overdue. Time comes in as a number.

Workers are kept by how many shards they hold, and those that hold some by how long: what is asked at every step of the
loop is then a look at a few of them, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice

from jobs.fleet.speculation import Running, left_s
from jobs.pool.contract import SHARDS_A_WORKER
from jobs.run import policy
from jobs.run.policy import Manner
from jobs.spec.schema import Limits
from workers.contract import Shard
from workers.outcomes import Failure, FailureCode, FailureKind


@dataclass
class Held:
    """An attempt that is under way."""

    shard: Shard
    manner: Manner
    since: float
    """Since when nothing that was given before it is under way."""
    isolated_s: float = 0.0
    second: bool = False
    """Another worker had the shard already."""


class Watch:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held: dict[int, list[Held]] = {}
        """By ready worker, in the order in which they were given."""
        self._by_number: list[set[int]] = [set() for _ in range(SHARDS_A_WORKER)]
        """Workers that hold none, one, and so on up to those with no room; without those that take no more."""
        self._busy: dict[int, None] = {}
        """Workers that hold something: the one that has been longest with what it was given first comes first."""
        self._placed_at: dict[int, float] = {}
        """Of workers that are not ready."""

    # ------------------------------------------------------------------------------------------ events

    def placed(self, worker: int, now: float) -> None:
        """A pool may hear of it late, when the worker is ready already."""
        if worker not in self._held:
            self._placed_at[worker] = now

    def ready(self, worker: int) -> None:
        self._held[worker] = []
        self._by_number[0].add(worker)
        self._placed_at.pop(worker, None)

    def assigned(
        self, worker: int, shard: Shard, manner: Manner, now: float, *, isolated_s: float = 0.0, second: bool = False
    ) -> None:
        held = self._held[worker]
        self._unfile(worker)
        held.append(Held(shard, manner, now, isolated_s, second))
        self._file(worker)
        self._busy.setdefault(worker)

    def ended(self, worker: int, shard: Shard, now: float) -> Held:
        """An attempt is over; how it was made."""
        held = self._held[worker]
        index = next(i for i, it in enumerate(held) if it.shard.key == shard.key)
        self._unfile(worker)
        it = held.pop(index)
        self._file(worker)
        if index == 0:
            del self._busy[worker]
            if held:
                held[0].since = now
                self._busy[worker] = None
        return it

    def gone(self, worker: int) -> dict[str, Manner]:
        """Forget a worker; how it held its shards, by key."""
        self._placed_at.pop(worker, None)
        self._busy.pop(worker, None)
        if worker in self._held:
            self._unfile(worker)
        return {it.shard.key: it.manner for it in self._held.pop(worker, [])}

    def _file(self, worker: int) -> None:
        held = self._held[worker]
        if len(held) < len(self._by_number) and all(it.manner is Manner.BESIDE for it in held):
            self._by_number[len(held)].add(worker)

    def _unfile(self, worker: int) -> None:
        number = len(self._held[worker])
        if number < len(self._by_number):
            self._by_number[number].discard(worker)

    # --------------------------------------------------------------------------------------- questions

    def shards(self, worker: int) -> tuple[Shard, ...]:
        return tuple(it.shard for it in self._held.get(worker, []))

    def quiet(self) -> bool:
        """Whether nothing is under way anywhere."""
        return not self._busy

    @property
    def holding(self) -> Sequence[AbstractSet[int]]:
        """Ready workers that take more shards, by how many they hold; it changes with every event."""
        return self._by_number

    @property
    def busy(self) -> Collection[int]:
        """Ready workers that hold something."""
        return self._busy.keys()

    def longest(self, number: int) -> Iterator[tuple[int, Held]]:
        """Workers that have been longest with what they are at, each with that."""
        for worker in islice(self._busy, number):
            yield worker, self._held[worker][0]

    def isolates(self, worker: int) -> bool:
        return any(it.manner is Manner.ISOLATED for it in self._held.get(worker, []))

    def running(self, now: float, s_a_row: Callable[[int], float | None]) -> Iterator[Running]:
        """First attempts that were made beside others, of workers of which is known how long a row takes them."""
        for worker in self._busy:
            pace = s_a_row(worker)
            if pace is None:
                continue
            ends_in_s = 0.0
            for number, it in enumerate(self._held[worker]):
                ends_in_s += left_s(it.shard.rows, pace, 0.0 if number else now - it.since)
                if it.manner is Manner.BESIDE and not it.second:
                    yield Running(worker, it.shard, ends_in_s)

    def overdue(self, now: float, s_a_row: float | None) -> Iterator[tuple[int, Failure]]:
        """Workers to be ended, and why; `s_a_row` is what a row has taken on average in this run."""
        for worker, placed_at in self._placed_at.items():
            if now - placed_at > policy.PLACED_LIMIT_S:
                yield worker, _stuck(f"worker {worker} has had its node for {now - placed_at:.0f} s and is not ready")
        least_s = policy.stall_after_s(self._limits.stall_s, s_a_row, rows=0)
        for worker in self._busy:
            held = self._held[worker]
            oldest = held[0]  # what was given first is worked on first, or is at least being read
            if now - oldest.since <= (least_s or 0.0):
                return  # nor are those that follow
            if oldest.manner is Manner.ISOLATED:
                limit_s: float | None = policy.ISOLATED_TIMES * oldest.isolated_s
            else:
                rows = sum(it.shard.rows for it in held)
                limit_s = policy.stall_after_s(self._limits.stall_s, s_a_row, rows)
            if limit_s is not None and now - oldest.since > limit_s:
                yield (
                    worker,
                    _stuck(
                        f"worker {worker} has been with {oldest.shard.describe()} for {now - oldest.since:.0f} s, "
                        f"longer than {limit_s:.0f} s (limits.stall_s)"
                    ),
                )


def _stuck(message: str) -> Failure:
    return Failure(kind=FailureKind.INFRA, code=FailureCode.STUCK, message=message)


# ----------------------------------------------------------------------------------------------------
# The workers that take shards at this moment, with their hosts: asked about a few, and never written out.


@dataclass(frozen=True, eq=False)
class Takers(Mapping[int, str]):
    ready: Mapping[int, int]
    """Of the pool."""
    released: Collection[int]
    """Ready ones that get no more."""
    host: Callable[[int], str]
    busy_for_long: Callable[[int], bool]
    """One that isolates may do so for hours, too long for others to be waited for."""

    @property
    def number(self) -> int:
        """Of those that are ready and not released."""
        return len(self.ready) - sum(worker in self.ready for worker in self.released)

    def may_have(self, worker: int) -> bool:
        """It is ready and not released."""
        return worker in self.ready and worker not in self.released

    def __getitem__(self, worker: int) -> str:
        if not self.may_have(worker) or self.busy_for_long(worker):
            raise KeyError(worker)
        return self.host(worker)

    def __iter__(self) -> Iterator[int]:
        return (worker for worker in self.ready if self.may_have(worker) and not self.busy_for_long(worker))

    def __len__(self) -> int:
        return sum(1 for _ in self)
