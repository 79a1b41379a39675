"""The books on shards: what is left, what waits for a worker and in which manner, how often each has failed.

Time comes in as a number; nothing here waits. What has failed goes before what is new, so that an error that repeats is
known after a few attempts rather than after a pass over all input, and a suspect is convicted or acquitted soon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from jobs import policy
from jobs.policy import Attempts, Manner
from jobs.spec import Limits
from workers.contract import Shard
from workers.outcomes import Failure


@dataclass
class Retry:
    """A shard that failed, or that an earlier run left with crashes."""

    shard: Shard
    attempts: Attempts
    failed_on: set[int] = field(default_factory=set)
    """Workers that had it."""
    failed_hosts: set[str] = field(default_factory=set)
    history: list[str] = field(default_factory=list)
    """A line for each failure, for a person."""
    failed_at: float = 0.0
    due_at: float = 0.0
    waiting: bool = False


@dataclass(frozen=True)
class Assignment:
    shard: Shard
    manner: Manner


class Backlog:
    """Shards that are not committed yet."""

    def __init__(self, missing: Sequence[Shard], crashes: Mapping[str, int], limits: Limits, *, now: float) -> None:
        """`crashes` are those of earlier runs, by the key of the shard."""
        self.left = {shard.key: shard for shard in missing}
        self.rows_left = sum(shard.rows for shard in missing)
        self._limits = limits
        self._fresh = deque(shard for shard in missing if shard.key not in crashes)
        self._retries: dict[str, Retry] = {}
        """By key, in the order of their first failure."""
        for shard in missing:
            if shard.key in crashes:
                attempts = Attempts(crashes=crashes[shard.key])
                self._retries[shard.key] = Retry(shard, attempts, failed_at=now, due_at=now, waiting=True)

    # --------------------------------------------------------------------------------------- hand out

    @property
    def waiting(self) -> int:
        """Shards that no worker has, those included that must wait a while."""
        return len(self._fresh) + sum(retry.waiting for retry in self._retries.values())

    def take(
        self, worker: int, *, held: int, ready: Mapping[int, str], starting: bool, now: float
    ) -> Assignment | None:
        """The next shard for a worker that holds `held`; only one that goes beside others when it holds any.

        `ready` are all workers that take shards, with their hosts; `starting` tells whether others are on their way.
        """
        for retry in self._retries.values():
            manner = policy.manner(retry.attempts, self._limits)
            if manner is not Manner.BESIDE and held:
                continue
            if self._may_have(retry, worker, ready, starting, now):
                retry.waiting = False
                return Assignment(retry.shard, manner)
        return Assignment(self._fresh.popleft(), Manner.BESIDE) if self._fresh else None

    def suspects_beyond(
        self, reserved: int, worker: int, *, ready: Mapping[int, str], starting: bool, now: float
    ) -> bool:
        """Whether this worker, if it held nothing, could take more than so many suspects now."""
        suspects = (
            retry
            for retry in self._retries.values()
            if self._may_have(retry, worker, ready, starting, now)
            and policy.manner(retry.attempts, self._limits) is not Manner.BESIDE
        )
        return next(islice(suspects, reserved, None), None) is not None

    def _may_have(self, retry: Retry, worker: int, ready: Mapping[int, str], starting: bool, now: float) -> bool:
        if not retry.waiting or now < retry.due_at:
            return False
        waited_s = now - retry.failed_at
        return policy.may_go(worker, retry.failed_on, retry.failed_hosts, ready, starting=starting, waited_s=waited_s)

    # --------------------------------------------------------------------------------------- outcomes

    def settle(self, key: str) -> bool:
        """The shard is nobody's business any more; False if it was not before either."""
        shard = self.left.pop(key, None)
        if shard is None:
            return False
        self.rows_left -= shard.rows
        self._retries.pop(key, None)
        return True

    def attempts(self, shard: Shard) -> Attempts:
        """So far."""
        retry = self._retries.get(shard.key)
        return retry.attempts if retry else Attempts()

    def failed(self, shard: Shard, worker: int, failure: Failure, *, host: str, isolated: bool, now: float) -> Retry:
        """Count a failure of a shard that is left; an empty `host` is not known. The caller decides what follows."""
        retry = self._retries.setdefault(shard.key, Retry(shard, Attempts()))
        retry.attempts = retry.attempts.after(failure, isolated=isolated)
        retry.failed_on.add(worker)
        retry.failed_hosts |= {host} - {""}
        retry.failed_at = now
        retry.history.append(f"worker {worker}: {failure.code or failure.kind.value}: {failure.message}")
        return retry

    def again(self, shard: Shard, *, due_at: float) -> None:
        """Let a shard wait for a worker once more, if it is still left, not before `due_at`."""
        if shard.key not in self.left:
            return
        retry = self._retries.setdefault(shard.key, Retry(shard, Attempts()))
        retry.due_at, retry.waiting = due_at, True

    def drop_present(self, present: Collection[str]) -> list[Shard]:
        """Settle the waiting shards whose objects another run has committed, by key; those with a worker go on."""
        retried = [r.shard for r in self._retries.values() if r.waiting and r.shard.key in present]
        fresh = [shard for shard in self._fresh if shard.key in present]
        self._fresh = deque(shard for shard in self._fresh if shard.key not in present)
        for shard in (*retried, *fresh):
            self.settle(shard.key)
        return [*retried, *fresh]
