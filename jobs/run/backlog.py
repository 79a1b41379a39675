"""Shards that are not committed yet: which wait for a worker and in which manner, and how often each has failed.

Time comes in as a number; nothing here waits. What has failed goes before what is new, so that an error that repeats is
known after a few attempts rather than after a pass over all input, and a suspect is convicted or acquitted soon. Of
what is new the largest goes first, so that at the end of a run small shards even out who is ready when (R. L. Graham,
Bounds on multiprocessing timing anomalies, 1969).
"""

from __future__ import annotations

import heapq
from array import array
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from operator import attrgetter

import numpy as np

from jobs.ledger.plans import picked
from jobs.ledger.presence import plan_of
from jobs.run import policy
from jobs.run.policy import Attempts, Budget, Manner
from jobs.spec.schema import Limits
from workers.contract import Shard
from workers.outcomes import Failure

_order = attrgetter("order")


@dataclass(eq=False)
class Retry:
    """A shard that failed, or that an earlier run left with crashes."""

    shard: Shard
    order: int
    """Which of them failed first."""
    attempts: Attempts = field(default_factory=Attempts)
    failed_on: set[int] = field(default_factory=set)
    failed_hosts: set[str] = field(default_factory=set)
    history: list[str] = field(default_factory=list)
    """A line for each failure in this run, for a person."""
    failure: Failure = field(init=False)
    """The last one in this run."""
    budget: Budget = field(init=False)
    """What that one was charged to."""
    failed_at: float = 0.0
    waiting: bool = False


class Backlog:
    """Shards that are not committed yet. Each is under way, or waits: as a retry, or because it is new."""

    def __init__(
        self, missing: Sequence[Shard], crashes: Mapping[str, int], limits: Limits, *, begin: int = 0, now: float
    ) -> None:
        """`crashes` are those of earlier runs, by the key of the shard. Of `missing` this one comes first, then those
        that follow, and in the end those before it."""
        self.left: dict[str, int] = {}
        """Rows of each shard, by key."""
        self._limits = limits
        self.plans: Counter[int] = Counter()
        """Of which shards are left, and how many."""
        self._under_way: dict[str, int] = {}
        """Attempts at shards that are left, by key."""
        self._doubled: dict[str, int] = {}
        """Shards with a second attempt, and how often they had failed by themselves when it began."""
        self._retries: dict[str, Retry] = {}
        self._orders = count()
        self._later: list[tuple[float, int, Retry]] = []
        """Retries that wait for their time, as a heap; those whose time has come wait in the order of `Retry.order`."""
        self._suspects: list[Retry] = []
        self._others: list[Retry] = []
        classes: defaultdict[int, array[int]] = defaultdict(lambda: array("q"))
        order = np.roll(np.arange(len(missing)), -begin)
        for place, shard in zip(order.tolist(), picked(missing, order), strict=True):
            rows = shard.rows
            self.left[shard.key] = rows
            self.plans[shard.plan] += 1
            if shard.key in crashes:
                retry = self._retry(shard)
                retry.attempts = Attempts(crashes=crashes[shard.key])
                retry.failed_at, retry.waiting = now, True
                insort(self._due(retry), retry, key=_order)
            else:
                classes[size_class(rows)].append(place)
        self._begun = Counter(self.plans)
        self.rows_left = sum(self.left.values())
        largest_first = [np.array(classes[size]) for size in sorted(classes, reverse=True)]
        self._fresh = picked(missing, np.concatenate(largest_first)) if largest_first else iter(())
        """Shards that nobody has had, made into objects when it is about to be their turn."""
        self._next_fresh = next(self._fresh, None)

    @property
    def waiting(self) -> int:
        """Shards that no worker has, those included that must wait a while."""
        return len(self.left) - len(self._under_way)

    @property
    def any_again(self) -> bool:
        """Whether any shard that was tried before may go now, were it to the right worker."""
        return bool(self._suspects or self._others)

    def any_to_go(self, now: float) -> bool:
        """Whether any shard may go now, were it to the right worker."""
        while self._later and self._later[0][0] <= now:
            retry = heapq.heappop(self._later)[2]
            if retry.waiting:
                insort(self._due(retry), retry, key=_order)
        return self.any_again or self._next_fresh is not None

    def take(
        self, worker: int, *, held: int, ready: Mapping[int, str], starting: bool, now: float
    ) -> tuple[Shard, Manner] | None:
        """The next shard for a worker that holds `held`; only one that goes beside others when it holds any.

        `ready` are all workers that take shards, with their hosts; `starting` tells whether others are on their way.
        """
        if not self.any_to_go(now):
            return None
        for retry in iter(self._others) if held else heapq.merge(self._suspects, self._others, key=_order):
            if _may_have(retry, worker, ready, starting, now):
                retry.waiting = False
                self._due(retry).remove(retry)
                return self._given(retry.shard, policy.manner(retry.attempts, self._limits))
        shard = self._next_fresh
        if shard is None:
            return None
        self._next_fresh = self._left_fresh()
        return self._given(shard, Manner.BESIDE)

    def _left_fresh(self) -> Shard | None:
        """The next one that no other run has committed meanwhile."""
        return next((shard for shard in self._fresh if shard.key in self.left), None)

    def suspects_beyond(
        self, reserved: int, worker: int, *, ready: Mapping[int, str], starting: bool, now: float
    ) -> bool:
        """Whether this worker, if it held nothing, could take more than so many suspects now."""
        if len(self._suspects) <= reserved:
            return False
        suspects = (retry for retry in self._suspects if _may_have(retry, worker, ready, starting, now))
        return next(islice(suspects, reserved, None), None) is not None

    def double(self, shard: Shard) -> None:
        """A second worker tries it too."""
        self._under_way[shard.key] += 1
        self._doubled[shard.key] = self.attempts(shard).by_itself

    def may_double(self, shard: Shard) -> bool:
        """Whether one worker has it, none has died of it, and none has failed with it beside another."""
        if self._under_way.get(shard.key) != 1:
            return False
        attempts = self.attempts(shard)
        return not attempts.crashes and self._doubled.get(shard.key, attempts.by_itself) == attempts.by_itself

    def _given(self, shard: Shard, manner: Manner) -> tuple[Shard, Manner]:
        self._under_way[shard.key] = 1
        self._doubled.pop(shard.key, None)
        return shard, manner

    def returned(self, shard: Shard) -> None:
        """An attempt is over, however it ended. What follows is said next: `settle`, `again`, or both for another."""
        attempts = self._under_way.pop(shard.key, 0)
        if attempts > 1:
            self._under_way[shard.key] = attempts - 1

    def under_way(self, shard: Shard) -> bool:
        return shard.key in self._under_way

    def settle(self, key: str) -> bool:
        """The shard is committed or set aside; False if it was so before."""
        rows = self.left.pop(key, None)
        if rows is None:
            return False
        self.rows_left -= rows
        plan = plan_of(key)
        self.plans[plan] -= 1
        if not self.plans[plan]:
            del self.plans[plan]
        for by_key in (self._under_way, self._doubled, self._retries):
            by_key.pop(key, None)
        return True

    def attempts(self, shard: Shard) -> Attempts:
        retry = self._retries.get(shard.key)
        return retry.attempts if retry else Attempts()

    def attempt(self, shard: Shard) -> int:
        """Which attempt in this run, from 1, the present one at a shard that is left is; the first of two at once."""
        retry = self._retries.get(shard.key)
        return 1 + (len(retry.history) if retry else 0)

    def failed(
        self, shard: Shard, worker: int, failure: Failure, budget: Budget, *, host: str, isolated: bool, now: float
    ) -> Retry:
        """Count a failure of a shard that is left; an empty `host` is not known. The caller decides what follows."""
        retry = self._retry(shard)
        retry.failure, retry.budget = failure, budget
        retry.attempts = retry.attempts.after(failure, budget, isolated=isolated)
        retry.failed_on.add(worker)
        retry.failed_hosts |= {host} - {""}
        retry.failed_at = now
        retry.history.append(f"worker {worker}: {failure.code or failure.kind.value}: {failure.message}")
        return retry

    def again(self, shard: Shard, *, due_at: float) -> None:
        """Let a shard wait for a worker once more, not before `due_at`, if it is left and no attempt goes on."""
        if shard.key not in self.left or shard.key in self._under_way:
            return
        retry = self._retry(shard)
        retry.waiting = True
        heapq.heappush(self._later, (due_at, retry.order, retry))

    def drop(self, keys: Collection[str]) -> tuple[int, int]:
        """Settle those of the shards that wait, as another run has committed them or nobody wants them; the ones with a
        worker go on. `keys` may be as many as there are shards, so they are to answer `in` at once.

        How many they are, and their rows.
        """
        fewer, more = sorted((self.left.keys(), keys), key=len)
        found = [key for key in fewer if key in more and key not in self._under_way]
        rows_before = self.rows_left
        for key in found:
            if retry := self._retries.get(key):
                retry.waiting = False
            self.settle(key)
        if self._next_fresh and self._next_fresh.key not in self.left:
            self._next_fresh = self._left_fresh()
        for due in (self._suspects, self._others):
            due[:] = [retry for retry in due if retry.waiting]
        return len(found), rows_before - self.rows_left

    def give_up(self, plan: int) -> tuple[int, int]:
        return self.drop({key for key in self.left if plan_of(key) == plan})

    def ended(self, plan: int) -> int:
        """Shards of the plan that are not left any more."""
        return self._begun[plan] - self.plans[plan]

    def _retry(self, shard: Shard) -> Retry:
        if shard.key not in self._retries:
            self._retries[shard.key] = Retry(shard, next(self._orders))
        return self._retries[shard.key]

    def _due(self, retry: Retry) -> list[Retry]:
        return self._others if policy.manner(retry.attempts, self._limits) is Manner.BESIDE else self._suspects


def _may_have(retry: Retry, worker: int, ready: Mapping[int, str], starting: bool, now: float) -> bool:
    waited_s = now - retry.failed_at
    return policy.may_go(worker, retry.failed_on, retry.failed_hosts, ready, starting=starting, waited_s=waited_s)


def size_class(rows: int) -> int:
    """Shards of one class, within a factor of two, go in the order in which the run has them."""
    return rows.bit_length()
