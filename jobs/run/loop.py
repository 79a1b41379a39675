"""The run loop: missing shards in, committed shards out. It holds no state that the ledger does not have.

Everything that may go wrong comes back as an event. `policy` says what to do about it; `backlog` knows the shards,
`fleet` the workers. When a shard has no attempts left the run ends at once: what is committed stays,
what is under way is given up, and the next run does it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field

from jobs.errors import Interrupted, RunFailed
from jobs.ledger.accepted import acceptance
from jobs.ledger.background import Errands
from jobs.ledger.bad_rows import OverBudget
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan
from jobs.ledger.presence import Present
from jobs.pool import contract
from jobs.progress.progress import Progress, WorkersNow
from jobs.progress.snapshot import SLOWEST_SHOWN, UnderWay
from jobs.run import policy
from jobs.run.backlog import Backlog
from jobs.run.failed_attempts import FailedAttempts, no_cores_error
from jobs.run.fleet import Fleet, HeldShard
from jobs.run.policy import Manner
from jobs.run.tally import Tally
from jobs.scaling import speculation
from jobs.spec.schema import Limits, Workers
from workers.contract import Shard
from workers.outcomes import Failure, FailureCode, ShardResult
from workers.storage.errors import StoreDenied, StoreError

POLL_S = 0.2
OVERDUE_S = 5.0
"""How often the loop checks for workers that are stuck."""
ASLEEP_S = 60.0
"""A driver that was held up for so long (stopped, moved to another machine) handles first what has happened since."""
RELIST_S = 5.0
RELIST_SHARE = 0.05
"""Time spent on listing what other runs have committed, as a share of all."""
RECORDS_WAIT_S = 10.0
"""At the end of a run, for crashes that are still being recorded."""


@dataclass
class Loop:
    """Runs the missing shards of `plans` on `pool` until none is left, or until one has no attempts left."""

    ledger: Ledger
    pool: contract.Pool
    plans: Sequence[Plan]
    missing: InitVar[Sequence[Shard]]
    """They need not be objects before it is their turn."""
    limits: Limits
    workers: Workers
    progress: Progress
    interrupted: Callable[[], bool]
    run_id: str
    """Under which crashes are recorded."""
    finish_in_s: float | None = None
    """How far away the deadline is that the fleet is sized for, where there is one."""
    rate_before: float | None = None
    """Rows a second of a worker in an earlier run."""
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    tally: Tally = field(default_factory=Tally)

    def __post_init__(self, missing: Sequence[Shard]) -> None:
        # Runs that overlap start at different places, so that they share the work rather than race for each shard. The
        # backlog keeps this order among shards of about one size.
        begin = random.randrange(len(missing)) if missing else 0  # noqa: S311
        try:
            crashes = self.ledger.crashes(plan.number for plan in self.plans) if missing else {}
        except BaseException:
            self.pool.close()
            raise
        now = self.clock()
        self._backlog = Backlog(missing, crashes, self.limits, begin=begin, now=now)
        self._failed = FailedAttempts(self._backlog, self.limits, self.ledger, self.run_id, self.tally, self.progress)
        self._judged = {plan.number: plan for plan in self.plans}
        """Plans that limits.bad_rows holds for, as far as is known."""
        self._start_after = 0.0
        self.progress.no_cores_since = None
        self._resize_after = self._idle_after = self._overdue_after = now
        self._noted: set[str] = set()
        self._listings: Errands[Present] = Errands("listing")
        self._listing_failures, self._listed_at, self._list_after = 0, now, now + RELIST_S
        finish_at = None if self.finish_in_s is None else now + self.finish_in_s
        self._fleet = Fleet(self.workers, now=now, finish_at=finish_at, rate_before=self.rate_before)

    def run(self) -> Tally:
        """Raises Interrupted, SpecError or RunFailed; what is committed stays, a next run goes on."""
        with ExitStack() as closing:  # the last one first
            closing.callback(self._failed.close, RECORDS_WAIT_S)
            closing.callback(self._listings.close)
            closing.callback(self.pool.close)
            while self._backlog.left:
                self._step()
        return self.tally

    def _step(self) -> None:
        if self.interrupted():
            raise Interrupted("interrupted; everything committed so far stays", "run the same command to go on")
        began = self.clock()
        self._drop_done_elsewhere(began)
        self._failed.note_unrecorded()
        wanted = self._staff(began)
        events = self.pool.poll(POLL_S)
        for event in events:
            self._handle(event)
        self._end_overdue(self.clock())  # only now, when it is known what has ended
        self.progress.tick(len(self.pool.workers()), wanted, self._workers_now)
        if not events and not self._fleet.busy and self.pool.size() == len(self.pool.workers()):
            self.sleep(POLL_S)  # nothing to wait for until the pause after a failure is over
        took = self.clock() - began
        ready = len(self.pool.workers())
        self.tally.worker_seconds += ready * took
        self.tally.idle_seconds += min(ready, len(self._fleet.holding[0])) * took
        self.tally.scoring_s += took if ready else 0.0

    def _workers_now(self) -> WorkersNow:
        now, ready, busy = self.clock(), self.pool.workers(), self._fleet.busy
        leaving = [worker for worker in self._fleet.released if worker in ready]
        by_state = {
            "starting": max(0, self.pool.size() - len(ready)),
            "scoring": len(busy) - sum(worker in busy for worker in leaving),
            "idle": len(self._fleet.holding[0]),
            "leaving": len(leaving),
        }
        pace = self.tally.s_a_row
        slowest = [
            UnderWay(
                shard=held.shard.name,
                worker=worker,
                host=self.tally.host(worker),
                rows=held.shard.rows,
                age_s=now - held.since,
                expected_s=None if pace is None else pace * held.shard.rows,
            )
            for worker, held in self._fleet.longest(SLOWEST_SHOWN)
        ]
        return by_state, slowest

    def _staff(self, now: float) -> int:
        """Ask for workers, hand out shards, let surplus workers go. Returns how many there should be."""
        if now >= self._resize_after:
            self._resize_after = now + POLL_S
            left = self._backlog.left
            start, end = self._fleet.decide(now, rows_left=self._backlog.rows_left, shards_left=len(left))
            for worker in end:
                self._end(worker)
            for group in start if now >= self._start_after else ():
                self._fleet.asked(self.pool.start(group.spec.labels), group, now)
        ready = self.pool.workers()
        number = len(ready) - sum(worker in ready for worker in self._fleet.released)
        for held in range(contract.MAX_HELD_SHARDS):  # to each its first, before any has a second
            self._hand_out(held, ready, number + self._fleet.coming_up, now)
        if self._fleet.holding[0] and now >= self._idle_after:
            self._idle_after = now + speculation.CHECK_IDLE_S
            self._use_idle(ready, number, now)
        return max(self._fleet.wanted or 0, number)

    def _hand_out(self, held: int, ready: Collection[int], number: int, now: float) -> None:
        """Give a shard to each worker that holds so many, of `number` that stay or are about to be ready. Where
        suspects wait, busy ones run empty."""
        waiting = self._backlog.waiting
        if not policy.room(held, waiting, number) or not self._backlog.any_to_go(now):
            return
        able, starting, reserved = self._fleet.able, self.pool.size() > len(ready), 0
        if self._backlog.any_again:  # a shard must not wait for a worker whose loss is not yet told
            able = {worker: host for worker, host in able.items() if worker in ready}
        for worker in self._fleet.fullest_first(held):
            if worker not in ready:
                continue
            if held and self._backlog.suspects_beyond(reserved, worker, ready=able, starting=starting, now=now):
                reserved += 1
                continue
            taken = self._backlog.take(worker, held=held, ready=able, starting=starting, now=now)
            if taken is None:
                continue
            self._assign(worker, *taken, now)
            waiting -= 1
            if not waiting or not policy.room(held, waiting, number):
                return

    def _assign(self, worker: int, shard: Shard, manner: Manner, now: float, *, second: bool = False) -> None:
        """`second` says that another worker has the shard, too."""
        isolated_s = None
        if manner is Manner.ISOLATED:
            isolated_s = policy.isolated_after_s(self.limits.stall_s, self._s_a_row, shard.rows)
            self.progress.note(f"in isolation: {shard.describe()}, which its workers died of")
        self.pool.assign(worker, shard, isolated_s=isolated_s)
        self._fleet.assigned(worker, HeldShard(shard, manner, now, isolated_s or 0.0, second))

    def _use_idle(self, ready: Collection[int], number: int, now: float) -> None:
        """When nothing waits: second attempts of what ends last; who is not needed for that either may go."""
        idle = {worker for worker in self._fleet.holding[0] if worker in ready}
        if not self._backlog.waiting:
            running = (attempt for attempt in self._fleet.running(now) if self._backlog.may_double(attempt[0]))
            paces = {worker: pace for worker in idle if (pace := self._fleet.s_a_row(worker)) is not None}
            for worker, shard, saves_s in list(speculation.second_attempts(running, paces)):
                self.progress.note(f"worker {worker} tries {shard.describe()} too, to end {saves_s:.0f} s sooner")
                self._backlog.double(shard)
                self._assign(worker, shard, Manner.BESIDE, now, second=True)
                self.tally.speculative_attempts += 1
                idle.remove(worker)
        left = len(self._backlog.left)
        for worker in self._fleet.to_let_go(idle, number, left + speculation.spares(left)):
            self._end(worker)

    def _end_overdue(self, now: float) -> None:
        if now < self._overdue_after:
            return
        asleep = now - self._overdue_after > ASLEEP_S
        self._overdue_after = now + (ASLEEP_S if asleep else OVERDUE_S)
        if asleep:
            return
        for worker, failure in list(self._fleet.overdue(now, self.limits.stall_s, self._s_a_row)):
            self.pool.end(worker)
            self._handle(contract.WorkerGone(worker, failure))

    @property
    def _s_a_row(self) -> float | None:
        """Seconds that a worker takes for a row, by this run or an earlier one."""
        return self.tally.s_a_row or (1 / self.rate_before if self.rate_before else None)

    def _end(self, worker: int) -> None:
        self.pool.end(worker)
        self._fleet.ended(worker)  # it holds nothing

    def _handle(self, event: contract.Event) -> None:
        now = self.clock()
        match event:
            case contract.WorkerPlaced():
                self._fleet.placed(event.worker, event.node, event.node_holds, now)
            case contract.WorkerReady():
                self.progress.no_cores_since = None
                self._fleet.ready(event.worker, now, event.info.host)
                self.tally.ready(event.worker, event.info)
                for note in event.info.notes:  # what workers say of themselves, once each
                    if note not in self._noted:
                        self._noted.add(note)
                        self.progress.note(note)
            case contract.WorkerLeaving(left_s=left_s):
                within = "" if math.isinf(left_s) else f" within {left_s:.0f} s"
                self.progress.note(f"worker {event.worker} has to go{within}: Ray drains its node")
                self._fleet.leaving(event.worker)
                self._resize_after = now  # another takes its place
            case contract.WorkerGone():
                self._resize_after = now
                started, shards = self._fleet.gone(event.worker, now)
                if not started:
                    self._not_started(event.worker, event.failure, now)
                    return
                for held in shards:
                    self._backlog.returned(held.shard)
                self._failed.worker_lost(event.worker, event.failure, shards, now)
            case contract.ShardEnded(shard=shard, outcome=ShardResult() as result):
                attempt = self._backlog.attempt(shard)
                first = self._backlog.settle(shard.key)  # of two attempts, the other comes to nothing
                rows = result.rows_ok + result.rows_bad if first else 0
                held = self._fleet.shard_ended(event.worker, shard, rows, now)
                self.tally.ended(event.worker, held, result, attempt=attempt + held.second, first=first)
                if first:
                    self._committed(result)
            case contract.ShardEnded(shard=shard, outcome=Failure() as failure):
                held = self._fleet.shard_ended(event.worker, shard, 0, now)
                self._backlog.returned(shard)
                if failure.code == FailureCode.PREEMPTED:
                    self._fleet.leaving(event.worker)
                    self._resize_after = now
                self._failed.shard_failed(event.worker, held, failure, now)

    def _committed(self, result: ShardResult) -> None:
        self.progress.shard_ended(result.rows_ok + result.rows_bad)
        self.tally.done.note_due(result.plan)
        plan, reasons, budget = self._judged.get(result.plan), self.tally.reasons[result.plan], self.limits.bad_rows
        if plan is None or not budget.exceeded(reasons.by_code.total(), plan.rows):
            return
        del self._judged[plan.number]
        if acceptance(self.ledger.store, self.ledger.root, plan):
            return
        self.tally.over.append(over := OverBudget(plan, reasons))
        self.progress.dropped(*self._backlog.give_up(plan.number))
        self.progress.note(f"{over.describe()}: what it still lacks is left unscored")

    def _not_started(self, worker: int, failure: Failure, now: float) -> None:
        self._failed.not_started(worker, failure)
        pause_s = policy.start_pause_s(
            failure, self._fleet.failures.count, len(self.pool.workers()), others_to_try=self._fleet.others_to_try()
        )
        if failure.code == FailureCode.NO_CORES and not self.pool.workers():
            if self.progress.no_cores_since is None:
                self.progress.no_cores_since = now
            if now - self.progress.no_cores_since > self.limits.wait_for_cores_s:
                raise no_cores_error(failure, self.limits)
        if pause_s is None:
            raise RunFailed(
                f"no worker can start: {failure.message}\n{failure.traceback}".rstrip(),
                "mend the cause, then run the same command",
            )
        self._start_after = now + pause_s

    def _drop_done_elsewhere(self, now: float) -> None:
        """Drop what the last listing has found, and list again when it is time. Raises StoreDenied, RunFailed."""
        if not self._listings.under_way and now >= self._list_after:
            plans = [plan for plan in self.plans if plan.number in self._backlog.plans]
            self._listings.send(lambda: self.ledger.present(*plans))
            self._listed_at = now
        for outcome in self._listings.ended():
            self._list_after = now + max(RELIST_S, (now - self._listed_at) / RELIST_SHARE)
            if isinstance(outcome, StoreDenied):
                raise outcome
            if not isinstance(outcome, StoreError):
                self._listing_failures = 0
                shards, rows = self._backlog.drop(outcome)
                self.tally.add_elsewhere(shards, rows)
                if shards and self.progress.no_cores_since is not None:
                    self.progress.no_cores_since = now  # whoever holds the cores does this run's work
                continue
            self._listing_failures += 1
            if self._listing_failures >= policy.LISTING_FAILURES:
                raise RunFailed(
                    f"the output could not be listed {self._listing_failures} times in a row: {outcome}",
                    "check the store, then run the same command: committed shards stay",
                ) from outcome
            self.progress.note(f"could not look for what other runs have committed, trying again: {outcome}")
