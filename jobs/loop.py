"""The run loop: missing shards in, committed shards out. It holds no state that the ledger does not have.

Everything that may go wrong comes back as an event; `policy` says what to do about it.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jobs import policy
from jobs.errors import BadRowsExceeded, Interrupted, RunFailed
from jobs.fleet import Fleet, GroupTerms, Terms
from jobs.ledger import BadRows, Ledger
from jobs.plans import Plan
from jobs.pool import Event, Pool, ShardEnded, WorkerGone, WorkerPlaced, WorkerReady
from jobs.progress import Progress
from jobs.spec import Limits, Workers
from workers.contract import Shard
from workers.outcomes import Failure, FailureCode, FailureKind, ShardResult, WorkerInfo

POLL_S = 0.2
RELIST_S = 5.0
RELIST_SHARE = 0.05
"""Time spent on listing what other runs have committed, as a share of all."""


@dataclass
class Tally:
    """What this run did, for its report."""

    results: list[ShardResult] = field(default_factory=list)
    workers: dict[int, WorkerInfo] = field(default_factory=dict)
    set_aside: list[tuple[Shard, Failure]] = field(default_factory=list)
    """Shards whose input cannot be read; the others go on without them."""
    failures: int = 0
    worker_seconds: float = 0.0
    scoring_s: float = 0.0
    """From the first worker being ready to the end of the loop."""

    @property
    def rate(self) -> float:
        """Rows a second while there were workers."""
        return sum(r.rows_ok + r.rows_bad for r in self.results) / self.scoring_s if self.scoring_s else 0.0


@dataclass
class Loop:
    """Runs the missing shards of `plans` on `pool` until none is left, or until a budget is spent."""

    ledger: Ledger
    pool: Pool
    plans: Sequence[Plan]
    missing: Sequence[Shard]
    limits: Limits
    workers: Workers
    progress: Progress
    interrupted: Callable[[], bool]
    finish_in_s: float | None = None
    """How far away the deadline is that the fleet is sized for, where there is one."""
    rate_before: float | None = None
    """Rows a second of a worker in an earlier run."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self) -> None:
        # Runs that overlap start at different places, so that they share the work rather than race for each shard.
        start = random.randrange(len(self.missing)) if self.missing else 0  # noqa: S311
        self._queue = deque([*self.missing[start:], *self.missing[:start]])
        self._left = {shard.key: shard for shard in self.missing}
        self._rows_left = sum(shard.rows for shard in self.missing)
        self._rows_total = sum(plan.rows for plan in self.plans)
        self._attempts: dict[str, policy.Attempts] = {}
        self._start_after = 0.0
        self._relist_after = self.clock() + RELIST_S
        now = self.clock()
        finish_at = None if self.finish_in_s is None else now + self.finish_in_s
        self._fleet = Fleet(terms_of(self.workers), now=now, finish_at=finish_at, rate_before=self.rate_before)

    def run(self) -> Tally:
        """Raises Interrupted, BadRowsExceeded, or RunFailed; what is committed stays, and a next run goes on."""
        try:
            while self._left:
                self._step()
            return self.tally
        finally:
            self.progress.close()
            self.pool.close()

    def _step(self) -> None:
        if self.interrupted():
            raise Interrupted("interrupted; everything committed so far stays", "run the same command to go on")
        began = self.clock()
        self._relist()
        wanted = self._staff(began)
        for event in self.pool.poll(POLL_S):
            self._handle(event)
        self.progress.tick(len(self.pool.workers()), wanted)
        if self.pool.size() == 0:
            self.sleep(POLL_S)  # nothing to wait for until the pause after a failed start is over
        took = self.clock() - began
        ready = len(self.pool.workers())
        self.tally.worker_seconds += ready * took
        self.tally.scoring_s += took if ready else 0.0

    def _staff(self, now: float) -> int:
        """Ask for workers, hand out shards, let surplus workers go. Returns how many there should be."""
        decision = self._fleet.decide(
            now, rows_left=self._rows_left, shards_left=len(self._left), holding=self.pool.workers()
        )
        for worker in decision.end:
            self._end(worker)
        if now >= self._start_after:
            for group in decision.start:
                self._fleet.asked(self.pool.start(self._fleet.labels(group)), group, now)
        working = {w: held for w, held in self.pool.workers().items() if w not in decision.release}
        for worker in self._fleet.in_order(working):
            for held in range(
                working[worker], working[worker] + policy.room(working[worker], len(self._queue), len(working))
            ):
                if self._queue:
                    self.pool.assign(worker, self._queue.popleft())
                    self._fleet.assigned(worker, held, now)
        for worker in self._fleet.idle(self.pool.workers(), len(self._left)):
            self._end(worker)
        return max(decision.wanted, len(working))

    def _end(self, worker: int) -> None:
        self.pool.end(worker)
        self._fleet.ended(worker)

    # ------------------------------------------------------------------------------------------ events

    def _handle(self, event: Event) -> None:
        now = self.clock()
        match event:
            case WorkerPlaced():
                self._fleet.placed(event.worker, event.node, event.node_holds, now)
            case WorkerReady():
                self._fleet.ready(event.worker, now)
                self.tally.workers[event.worker] = event.info
            case WorkerGone(started=False):
                self._not_started(event.worker, event.failure, now)
            case WorkerGone():
                self._fleet.gone(event.worker, now, held=len(event.shards))
                self.progress.note(f"worker {event.worker}: {event.failure.message}")
                for shard in event.shards:
                    self._failed(shard, event.failure)
            case ShardEnded(shard=shard, outcome=ShardResult() as result):
                self._fleet.shard_ended(event.worker, result.rows_ok + result.rows_bad, now)
                self._committed(shard, result)
            case ShardEnded(shard=shard, outcome=Failure() as failure):
                self._fleet.shard_ended(event.worker, 0, now)
                self._failed(shard, failure)

    def _settled(self, key: str) -> bool:
        """The shard is nobody's business any more; False if it was not before either."""
        shard = self._left.pop(key, None)
        self._rows_left -= shard.rows if shard else 0
        return shard is not None

    def _committed(self, shard: Shard, result: ShardResult) -> None:
        if not self._settled(shard.key):
            return  # the listing has told already
        self.tally.results.append(result)
        self.progress.shard_ended(result)
        if policy.bad_rows_exceeded(self.progress.rows_bad, self._rows_total, self.limits.bad_rows):
            reasons = BadRows()
            for ended in self.tally.results:
                reasons.add(ended.bad_by_code, ended.bad_samples)
            raise bad_rows_error(self.progress.rows_bad, self._rows_total, self.limits.bad_rows, reasons)

    def _failed(self, shard: Shard, failure: Failure) -> None:
        if shard.key not in self._left:
            return
        self.tally.failures += 1
        attempts = self._attempts.get(shard.key, policy.Attempts()).after(failure)
        self._attempts[shard.key] = attempts
        step = policy.next_step(
            attempts, task_retries=self.limits.task_retries, infra_retries=self.limits.infra_retries
        )
        if step is policy.Step.RETRY and failure.code != FailureCode.DENIED:
            self.progress.note(f"again: {shard.describe()}: {failure.message}")
            self._queue.append(shard)
        elif failure.kind is FailureKind.DATA:
            self.progress.note(f"set aside: {shard.describe()}: {failure.message}")
            self.tally.set_aside.append((shard, failure))
            self._settled(shard.key)
        else:
            raise RunFailed(
                f"{shard.describe()} failed {attempts.task + attempts.infra} times: {failure.message}\n"
                f"{failure.traceback}".rstrip(),
                "mend the cause, then run the same command: committed shards stay",
            )

    def _not_started(self, worker: int, failure: Failure, now: float) -> None:
        before = self._fleet.start_failures
        self._fleet.gone(worker, now, held=0)
        in_a_row = self._fleet.start_failures
        step = policy.start_step(failure, in_a_row, len(self.pool.workers()), others_to_try=self._fleet.others_to_try())
        if step.give_up:
            raise RunFailed(
                f"no worker can start: {failure.message}\n{failure.traceback}".rstrip(),
                "mend the cause, then run the same command",
            )
        self._start_after = now + step.pause_s
        if (before, in_a_row) == (0, 1):
            self.progress.note(f"a worker did not start, trying again: {failure.message}")

    # ---------------------------------------------------------------------------------------- other runs

    def _relist(self) -> None:
        """Drop what other runs have committed meanwhile."""
        began = self.clock()
        if began < self._relist_after:
            return
        open_plans = {shard.plan for shard in self._left.values()}
        present = {key for plan in self.plans if plan.number in open_plans for key in self.ledger.present(plan)}
        waiting = {shard.key for shard in self._queue}
        elsewhere = [shard for key, shard in self._left.items() if key in present and key in waiting]
        for shard in elsewhere:
            self._settled(shard.key)
        self._queue = deque(shard for shard in self._queue if shard.key in self._left)
        self.progress.shards_elsewhere(len(elsewhere), sum(shard.rows for shard in elsewhere))
        took = self.clock() - began
        self._relist_after = self.clock() + max(RELIST_S, took / RELIST_SHARE)


def terms_of(workers: Workers) -> Terms:
    """What the spec's section says, for the fleet. Without groups there is one, of any node."""
    groups = [GroupTerms(labels=g.labels, most=g.max, patience_s=g.patience_s) for g in workers.groups]
    return Terms(least=workers.min, most=workers.max, groups=groups or [GroupTerms()])


def bad_rows_error(rows_bad: int, rows_total: int, budget: float, reasons: BadRows) -> BadRowsExceeded:
    """The end of a run whose input is too bad, with a table of reasons and a sample row of each."""
    lines = [f"{rows_bad:,} of {rows_total:,} rows are bad; limits.bad_rows allows {budget:.2%}"]
    lines += [f"  {n:>8,}  {code:<20} e.g. {reasons.samples[code]}" for code, n in reasons.counts.most_common()]
    return BadRowsExceeded(
        "\n".join(lines),
        "look at the rows named above; if they are to be expected, raise limits.bad_rows and run again",
    )
