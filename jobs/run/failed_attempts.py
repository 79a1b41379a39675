"""What the loop does about failures: counts them, tells them, and ends the run with everything in hand.

Nothing is forgotten: each failure is told when it happens and goes into the tally; a crash is recorded in the store.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from jobs.errors import RunFailed
from jobs.ledger.background import Errands
from jobs.ledger.crashes import CrashLog
from jobs.progress.progress import Progress
from jobs.run import policy
from jobs.run.backlog import Backlog, Retry
from jobs.run.policy import Attempts, Budget, Manner, Step
from jobs.run.tally import Tally
from jobs.spec.schema import Limits
from workers.contract import Shard
from workers.outcomes import Failure, FailureCode

RECORDS_AT_ONCE = 8
"""A node that runs out of memory may cost every worker on it two shards."""


@dataclass
class Casualties:
    """The failures of one run."""

    backlog: Backlog
    limits: Limits
    crashes: CrashLog
    tally: Tally
    progress: Progress
    _last_start: str = field(default="", init=False)
    _crashed_aside: int = field(default=0, init=False)
    _records: Errands[None] = field(default_factory=lambda: Errands("crashes", RECORDS_AT_ONCE), init=False)

    def worker_lost(
        self, worker: int, failure: Failure, shards: Sequence[Shard], manners: Mapping[str, Manner], now: float
    ) -> None:
        """A ready worker is gone; each shard that it held counts. Raises RunFailed."""
        self.progress.note(f"worker {worker}: {failure.message}")
        held = [
            (shard, policy.suspected(failure, self.backlog.attempts(shard)))
            for shard in shards
            if shard.key in self.backlog.left
        ]
        # All are recorded before any ends the run, so that the next run knows the same suspects.
        retries = [
            self._counted(worker, shard, of_it, manners.get(shard.key, Manner.BESIDE), now) for shard, of_it in held
        ]
        for retry, (_, of_it) in zip(retries, held, strict=True):
            self._follow_up(retry, of_it, now)

    def shard_failed(self, worker: int, shard: Shard, failure: Failure, manner: Manner, now: float) -> None:
        """An attempt failed and its worker lives. Raises RunFailed."""
        if shard.key not in self.backlog.left:
            return
        self._follow_up(self._counted(worker, shard, failure, manner, now), failure, now)

    def not_started(self, worker: int, failure: Failure) -> None:
        """A worker that was asked for is gone before it was ready; told once for one cause in a row."""
        if failure.message != self._last_start:
            self.progress.note(f"a worker did not start, trying again: {failure.message}")
        self._last_start = failure.message
        self.tally.failed(worker, None, failure, at=_now(), budget="start")

    def tell_unrecorded(self, wait_s: float = 0.0) -> None:
        """Crashes that only this run knows of."""
        for outcome in self._records.ended(wait_s):
            if outcome is not None:
                self.progress.note(f"a crash could not be recorded for later runs: {outcome}")

    def close(self, wait_s: float) -> None:
        """Wait so long for crashes that are still being recorded."""
        self.tell_unrecorded(wait_s)
        self._records.close()

    # ------------------------------------------------------------------------------------------- parts

    def _record(self, worker: int, shard: Shard, failure: Failure) -> None:
        info, at = self.tally.workers.get(worker), _now()
        self._records.send(lambda: self.crashes.record(shard, failure, info, at=at))

    def _counted(self, worker: int, shard: Shard, failure: Failure, manner: Manner, now: float) -> Retry:
        if policy.budget_of(failure) is Budget.CRASH:
            self._record(worker, shard, failure)
        isolated, host = manner is Manner.ISOLATED, self.tally.host(worker)
        retry = self.backlog.failed(shard, worker, failure, host=host, isolated=isolated, now=now)
        self.tally.failed(
            worker, shard, failure, at=_now(), budget=policy.budget_of(failure).value, attempt=len(retry.history),
            isolated=isolated,
        )  # fmt: skip
        return retry

    def _follow_up(self, retry: Retry, failure: Failure, now: float) -> None:
        shard, attempts = retry.shard, retry.attempts
        if self.backlog.under_way(shard):
            self.progress.note(f"another attempt goes on at {shard.describe()}: {failure.message}")
            return
        worked = bool(self.tally.shards)
        match policy.next_step(attempts, failure, self.limits, self._crashed_aside, worked=worked):
            case Step.RETRY:
                pause_s = policy.pause_s(attempts, failure, random.random())  # noqa: S311  (jitter)
                later = f" in {pause_s:.0f} s" if pause_s >= 1 else ""
                alone = policy.manner(attempts, self.limits)
                how = "" if alone is Manner.BESIDE else f", {alone.value} (crash {attempts.crashes})"
                self.progress.note(f"again{later}{how}: {shard.describe()}: {failure.message}")
                self.backlog.again(shard, due_at=now + pause_s)
            case Step.SET_ASIDE:
                if policy.budget_of(failure) is Budget.CRASH:
                    self._crashed_aside += 1
                    failure = replace(failure, message=f"{died(attempts)}: {failure.message}")
                self.progress.note(f"set aside: {shard.describe()}: {failure.message}")
                self.tally.set_aside.append((shard, failure))
                self.backlog.settle(shard.key)
            case Step.STOP:
                raise spent_error(retry, failure, self.limits)


def spent_error(retry: Retry, failure: Failure, limits: Limits) -> RunFailed:
    """The end of a run whose shard has spent a budget: which one, the rows, where it was tried, what it died of."""
    shard, times = retry.shard, len(retry.history)
    match policy.budget_of(failure):
        case Budget.CRASH:
            spent = f"{died(retry.attempts)}, and {policy.CRASHED_ASIDE} others are set aside for that already"
            todo = "look at the nodes' memory (workers.memory) and at the rows named above, then run the same command"
        case Budget.INFRA:
            spent = f"limits.infra_retries allows {limits.infra_retries}"
            todo = "check the store and the nodes, then run the same command: committed shards stay"
        case _ if failure.code == FailureCode.DENIED:
            spent = "the store refuses, and will again"
            todo = "mend the permissions, then run the same command: committed shards stay"
        case _:
            spent = f"limits.task_retries allows {limits.task_retries}"
            todo = "mend the cause, then run the same command: committed shards stay"
    workers = ", ".join(map(str, sorted(retry.failed_on)))
    lines = [f"{shard.describe()} failed {times} time(s), on worker(s) {workers}; {spent}: {failure.message}"]
    others = [line for line in dict.fromkeys(retry.history) if not line.endswith(f": {failure.message}")]
    lines += [f"before: {line}" for line in others]
    return RunFailed("\n".join([*lines, failure.traceback]).rstrip(), todo)


def died(attempts: Attempts) -> str:
    """Of a shard that is given up."""
    return (
        f"its worker died {attempts.crashes} times, {attempts.isolated_crashes} of them in isolation, "
        f"where it is tried {policy.ISOLATED_RETRIES + 1} times a run"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
