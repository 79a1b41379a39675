"""Failures of one run: counts them, reports them, and ends the run with everything in hand.

Nothing is forgotten: each failure is noted when it happens and goes into the tally; a crash is recorded in the store.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from jobs.errors import RunFailed, SpecError
from jobs.ledger.background import Errands
from jobs.ledger.ledger import Ledger
from jobs.progress.format import duration
from jobs.progress.progress import Progress
from jobs.run import policy
from jobs.run.backlog import Backlog, Retry
from jobs.run.fleet import HeldShard
from jobs.run.policy import Attempts, Budget, Manner, ShardStep
from jobs.run.tally import Tally
from jobs.spec.schema import Limits
from workers.counted import counted
from workers.outcomes import Failure, FailureCode

RECORDS_AT_ONCE = 8
"""A node that runs out of memory may cost every worker on it two shards."""


@dataclass
class FailedAttempts:
    backlog: Backlog
    limits: Limits
    ledger: Ledger
    run_id: str
    tally: Tally
    progress: Progress
    _last_start: str = field(default="", init=False)
    _crashed_aside: int = field(default=0, init=False)
    _refused_of: Counter[int] = field(default_factory=Counter, init=False)
    """By plan, shards that were set aside because their rows are refused."""
    _records: Errands[None] = field(default_factory=lambda: Errands("crashes", RECORDS_AT_ONCE), init=False)

    def worker_lost(self, worker: int, failure: Failure, shards: Sequence[HeldShard], now: float) -> None:
        """A ready worker is gone; each shard that it held counts. Raises RunFailed, SpecError."""
        self.progress.note(f"worker {worker}: {failure.message}")
        # All are counted, and crashes recorded, before any ends the run: the next run then knows the same suspects.
        retries = []
        for held in shards:
            if held.shard.key in self.backlog.left:
                suspected = policy.suspected(failure, self.backlog.attempts(held.shard))
                retries.append(self._count(worker, held, suspected, now))
        for retry in retries:
            self._follow_up(retry, now)

    def shard_failed(self, worker: int, held: HeldShard, failure: Failure, now: float) -> None:
        """An attempt failed and its worker lives. Raises RunFailed, SpecError."""
        if held.shard.key in self.backlog.left:
            self._follow_up(self._count(worker, held, failure, now), now)

    def not_started(self, worker: int, failure: Failure) -> None:
        """A worker that was asked for is gone before it was ready; noted once for one cause in a row."""
        cores = failure.code == FailureCode.NO_CORES  # which of them are free changes all the time
        cause = failure.code if cores else failure.message
        if cause != self._last_start:
            trying = f"a worker did not start, trying again: {failure.message}"
            self.progress.note(describe_no_cores(failure, self.limits) if cores else trying)
        self._last_start = cause
        self.tally.failed(worker, None, failure, at=_now(), budget="start")

    def note_unrecorded(self, wait_s: float = 0.0) -> None:
        """Crashes that only this run knows of."""
        for outcome in self._records.ended(wait_s):
            if outcome is not None:
                self.progress.note(f"a crash could not be recorded for later runs: {outcome}")

    def close(self, wait_s: float) -> None:
        """Wait so long for crashes that are still being recorded."""
        self.note_unrecorded(wait_s)
        self._records.close()

    def _count(self, worker: int, held: HeldShard, failure: Failure, now: float) -> Retry:
        shard, budget, at = held.shard, policy.budget_of(failure), _now()
        if budget is Budget.CRASH:
            info = self.tally.workers.get(worker)
            self._records.send(lambda: self.ledger.record_crash(shard, failure, info, run_id=self.run_id, at=at))
        host = self.tally.host(worker)
        retry = self.backlog.failed(shard, worker, failure, budget, host=host, isolated=held.isolated, now=now)
        self.tally.failed(worker, held, failure, at=at, budget=budget.value, attempt=len(retry.history))
        return retry

    def _follow_up(self, retry: Retry, now: float) -> None:
        shard, attempts, failure, budget = retry.shard, retry.attempts, retry.failure, retry.budget
        if self.backlog.under_way(shard):
            self.progress.note(f"another attempt goes on at {shard.describe()}: {failure.message}")
            return
        worked = bool(self.tally.shards)
        match policy.shard_step(attempts, failure, budget, self.limits, self._crashed_aside, worked=worked):
            case ShardStep.RETRY:
                pause_s = policy.pause_s(attempts, failure, budget, random.random())  # noqa: S311  (jitter)
                later = f" in {pause_s:.0f} s" if pause_s >= 1 else ""
                alone = policy.manner(attempts, self.limits)
                how = "" if alone is Manner.BESIDE else f", {alone.value} (crash {attempts.crashes})"
                self.progress.note(f"again{later}{how}: {shard.describe()}: {failure.message}")
                self.backlog.again(shard, due_at=now + pause_s)
            case ShardStep.SET_ASIDE:
                if budget is Budget.CRASH:
                    self._crashed_aside += 1
                    failure = replace(failure, message=f"{died(attempts)}: {failure.message}")
                self.progress.note(f"set aside: {shard.describe()}: {failure.message}")
                self.tally.set_aside.append((shard, failure))
                self.backlog.settle(shard.key)
                if failure.code in (FailureCode.REFUSED, FailureCode.DENIED):
                    self._refused(shard.plan)
            case ShardStep.STOP:
                raise given_up_error(retry, self.limits)

    def _refused(self, plan: int) -> None:
        """Of a plan of which nothing but refused shards has ended, the others need not be read and named one by one."""
        self._refused_of[plan] += 1
        if policy.REFUSED_ASIDE <= self._refused_of[plan] == self.backlog.ended(plan):
            self.progress.dropped(*self.backlog.give_up(plan))
            self.progress.note(f"plan {plan}: its shards are refused: what it still lacks is left unscored")


def describe_no_cores(failure: Failure, limits: Limits) -> str:
    """Of a worker that found none: who has them, how long they are waited for, and what helps."""
    return (
        f"waiting for cores, for {duration(limits.wait_for_cores_s)} at most (limits.wait_for_cores_s): "
        f"{failure.message}; they come free when that ends"
    )


def no_cores_error(failure: Failure, limits: Limits) -> SpecError:
    return SpecError(
        f"no cores came free in {duration(limits.wait_for_cores_s)} (limits.wait_for_cores_s): {failure.message}",
        "end what holds them, or wait for it, and run the same command; or let both have some: with fewer workers.max",
    )


def given_up_error(retry: Retry, limits: Limits) -> RunFailed:
    """A shard has no attempts left, and the run ends: by which limit, its rows, where it was tried, why it failed."""
    shard, failure, times = retry.shard, retry.failure, len(retry.history)
    spent, todo = f"limits.task_retries allows {limits.task_retries}", "mend the cause"
    if retry.budget is Budget.CRASH:
        spent = f"{died(retry.attempts)}, and {policy.CRASHED_ASIDE} others are set aside for that already"
        todo = "look at the nodes' memory (workers.memory) and at the rows named above"
    elif retry.budget is Budget.INFRA:
        spent, todo = f"limits.infra_retries allows {limits.infra_retries}", "check the store and the nodes"
    elif failure.code == FailureCode.DENIED:
        spent, todo = "the store refuses, and will again", "mend the permissions"
    workers = ("worker " if len(retry.failed_on) == 1 else "workers ") + ", ".join(map(str, sorted(retry.failed_on)))
    lines = [f"{shard.describe()} failed {counted(times, 'time')}, on {workers}; {spent}: {failure.message}"]
    others = [line for line in dict.fromkeys(retry.history) if not line.endswith(f": {failure.message}")]
    lines += [f"before: {line}" for line in others]
    then = f"{todo}, then run the same command: committed shards stay"
    return RunFailed("\n".join([*lines, failure.traceback]).rstrip(), then)


def died(attempts: Attempts) -> str:
    """For a person: how often the workers of a shard that is given up died."""
    return (
        f"its worker died {attempts.crashes} times, {attempts.isolated_crashes} of them in isolation, "
        f"where it is tried {policy.ISOLATED_RETRIES + 1} times a run"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
