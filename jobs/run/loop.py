"""The run loop: missing shards in, committed shards out. It holds no state that the ledger does not have.

Everything that may go wrong comes back as an event. `policy` says what to do about it; `backlog` knows the shards,
`assignments` and `fleet` the workers. When a shard has no attempts left the run ends at once: what is committed stays,
what is under way is given up, and the next run does it.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field

from jobs.errors import Interrupted, RunFailed
from jobs.fleet import speculation
from jobs.fleet.fleet import Fleet
from jobs.ledger.accepted import acceptance
from jobs.ledger.background import Errands
from jobs.ledger.bad_rows import OverBudget, bad_rows_error
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan
from jobs.ledger.presence import Present
from jobs.pool.contract import (
    MAX_HELD_SHARDS,
    Event,
    Pool,
    ShardEnded,
    WorkerGone,
    WorkerLeaving,
    WorkerPlaced,
    WorkerReady,
)
from jobs.progress.progress import Progress, WorkersNow
from jobs.progress.snapshot import SLOWEST_SHOWN, UnderWay
from jobs.run import policy
from jobs.run.assignments import Assignments, Candidates
from jobs.run.backlog import Backlog
from jobs.run.failed_attempts import FailedAttempts
from jobs.run.policy import Manner
from jobs.run.tally import Tally
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
    pool: Pool
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
            self.progress.close()
            self.pool.close()
            raise
        now = self.clock()
        self._backlog = Backlog(missing, crashes, self.limits, begin=begin, now=now)
        self._assignments = Assignments(self.limits)
        self._failed = FailedAttempts(self._backlog, self.limits, self.ledger, self.run_id, self.tally, self.progress)
        self._judged = {plan.number: plan for plan in self.plans}
        """Plans that limits.bad_rows holds for, as far as is known."""
        self._start_after = 0.0
        self._resize_after = self._idle_after = self._overdue_after = now
        self._noted: set[str] = set()
        self._listings: Errands[Present] = Errands("listing")
        self._listing_failures, self._listed_at, self._list_after = 0, now, now + RELIST_S
        finish_at = None if self.finish_in_s is None else now + self.finish_in_s
        self._fleet = Fleet(self.workers, now=now, finish_at=finish_at, rate_before=self.rate_before)
        self._wanted, self._released = 0, frozenset[int]()

    def run(self) -> Tally:
        """Raises Interrupted, BadRowsExceeded, or RunFailed; what is committed stays, and a next run goes on."""
        with ExitStack() as closing:  # the last one first
            closing.callback(self._failed.close, RECORDS_WAIT_S)
            closing.callback(self._listings.close)
            closing.callback(self.pool.close)
            closing.callback(self.progress.close)
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
        if not events and not self._assignments.busy and self.pool.size() == len(self.pool.workers()):
            self.sleep(POLL_S)  # nothing to wait for until the pause after a failure is over
        took = self.clock() - began
        ready = len(self.pool.workers())
        self.tally.worker_seconds += ready * took
        self.tally.idle_seconds += min(ready, len(self._assignments.holding[0])) * took
        self.tally.scoring_s += took if ready else 0.0

    def _workers_now(self) -> WorkersNow:
        now, ready, busy, idle = self.clock(), self.pool.workers(), self._assignments.busy, self._assignments.holding[0]
        leaving = self._released & ready.keys()
        by_state = {
            "starting": max(0, self.pool.size() - len(ready)),
            "scoring": len(busy) - sum(worker in busy for worker in leaving),
            "idle": len(idle) - sum(worker in idle for worker in leaving),
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
            for worker, held in self._assignments.longest(SLOWEST_SHOWN)
        ]
        return by_state, slowest

    def _staff(self, now: float) -> int:
        """Ask for workers, hand out shards, let surplus workers go. Returns how many there should be."""
        if now >= self._resize_after:
            self._resize_after = now + POLL_S
            self._resize(now)
        ready = self.pool.workers()
        able = Candidates(ready, self._released, self._assignments.isolating, self.tally.host)
        number = len(ready) - sum(worker in ready for worker in self._released)
        for _ in range(MAX_HELD_SHARDS):  # to each its first, before any has a second
            self._hand_out(able, number, now)
        if self._assignments.holding[0] and now >= self._idle_after:
            self._idle_after = now + speculation.CHECK_IDLE_S
            self._use_idle(now)
        return max(self._wanted, number)

    def _resize(self, now: float) -> None:
        decision = self._fleet.decide(
            now, rows_left=self._backlog.rows_left, shards_left=len(self._backlog.left), holding=self.pool.workers()
        )
        for worker in decision.end:
            self._end(worker)
        if now >= self._start_after:
            for group in decision.start:
                self._fleet.asked(self.pool.start(self._fleet.labels(group)), group, now)
        self._wanted, self._released = decision.wanted, decision.release

    def _hand_out(self, able: Candidates, number: int, now: float) -> None:
        """Give shards to workers that have room, of `number` that stay. Where suspects wait, busy ones run empty."""
        waiting = self._backlog.waiting
        if not self._backlog.any_to_go(now):
            return
        roomy = {
            worker: held
            for held, workers in enumerate(self._assignments.holding)
            if policy.room(held, waiting, number)
            for worker in workers
            if worker in able
        }
        if not roomy:
            return
        starting = self.pool.size() > len(self.pool.workers())
        reserved = 0
        for worker in self._fleet.in_order(roomy):
            held = roomy[worker]
            if not policy.room(held, waiting, number):
                continue
            if held and self._backlog.suspects_beyond(reserved, worker, ready=able, starting=starting, now=now):
                reserved += 1
                continue
            taken = self._backlog.take(worker, held=held, ready=able, starting=starting, now=now)
            if taken is None:
                continue
            self._assign(worker, *taken, now, held=held)
            waiting -= 1
            if not waiting:
                return

    def _assign(
        self, worker: int, shard: Shard, manner: Manner, now: float, *, held: int, second: bool = False
    ) -> None:
        """`held` shards the worker has; `second` says that another has this one, too."""
        isolated_s = None
        if manner is Manner.ISOLATED:
            isolated_s = policy.isolated_after_s(self.limits.stall_s, self._s_a_row, shard.rows)
            self.progress.note(f"in isolation: {shard.describe()}, which its workers died of")
        self.pool.assign(worker, shard, isolated_s=isolated_s)
        self._assignments.assigned(worker, shard, manner, now, isolated_s=isolated_s or 0.0, second=second)
        self._fleet.assigned(worker, held, now)

    def _use_idle(self, now: float) -> None:
        """When nothing waits: second attempts of what ends last; who is not needed for that either may go."""
        ready = self.pool.workers()
        idle = {worker for worker in self._assignments.holding[0] if worker in ready and self._fleet.stays(worker)}
        if not self._backlog.waiting:
            running = self._assignments.running(now, self._fleet.s_a_row)
            running = ((shard, ends_in_s) for shard, ends_in_s in running if self._backlog.may_double(shard))
            paces = {worker: pace for worker in idle if (pace := self._fleet.s_a_row(worker)) is not None}
            for worker, shard, saves_s in list(speculation.second_attempts(running, paces)):
                self.progress.note(f"worker {worker} tries {shard.describe()} too, to end {saves_s:.0f} s sooner")
                self._backlog.double(shard)
                self._assign(worker, shard, Manner.BESIDE, now, held=0, second=True)
                self.tally.speculative_attempts += 1
                idle.remove(worker)
        left = len(self._backlog.left)
        staying = sum(self._fleet.stays(worker) for worker in ready) if idle else 0
        for worker in self._fleet.to_let_go(idle, staying, left + speculation.spares(left)):
            self._end(worker)

    def _end_overdue(self, now: float) -> None:
        if now < self._overdue_after:
            return
        asleep = now - self._overdue_after > ASLEEP_S
        self._overdue_after = now + (ASLEEP_S if asleep else OVERDUE_S)
        if asleep:
            return
        for worker, failure in list(self._assignments.overdue(now, self._s_a_row)):
            started = worker in self.tally.workers
            shards = self._assignments.shards(worker)
            self.pool.end(worker)
            self._handle(WorkerGone(worker, failure, shards, started=started))

    @property
    def _s_a_row(self) -> float | None:
        """Seconds that a worker takes for a row, by this run or an earlier one."""
        return self.tally.s_a_row or (1 / self.rate_before if self.rate_before else None)

    def _end(self, worker: int) -> None:
        held = self._assignments.shards(worker)
        self.pool.end(worker)
        self._fleet.ended(worker)
        self._assignments.gone(worker)
        for shard in held:  # whoever is ended is idle, as far as is known
            self._backlog.returned(shard)
            self._backlog.again(shard, due_at=self.clock())

    def _handle(self, event: Event) -> None:
        now = self.clock()
        match event:
            case WorkerPlaced():
                self._fleet.placed(event.worker, event.node, event.node_holds, now)
                self._assignments.placed(event.worker, now)
            case WorkerReady():
                self._fleet.ready(event.worker, now)
                self._assignments.ready(event.worker)
                self.tally.ready(event.worker, event.info)
                for note in event.info.notes:  # what workers say of themselves, once each
                    if note not in self._noted:
                        self._noted.add(note)
                        self.progress.note(note)
            case WorkerLeaving(left_s=left_s):
                within = "" if math.isinf(left_s) else f" within {left_s:.0f} s"
                self.progress.note(f"worker {event.worker} has to go{within}: Ray drains its node")
                self._leaving(event.worker, now)
            case WorkerGone(started=False):
                self._assignments.gone(event.worker)
                self._not_started(event.worker, event.failure, now)
            case WorkerGone():
                self._resize_after = now
                self._fleet.gone(event.worker, now, held=len(event.shards))
                manners = self._assignments.gone(event.worker)
                for shard in event.shards:
                    self._backlog.returned(shard)
                self._failed.worker_lost(event.worker, event.failure, event.shards, manners, now)
            case ShardEnded(shard=shard, outcome=ShardResult() as result):
                held = self._assignments.ended(event.worker, shard, now)
                attempt, alone = self._backlog.attempt(shard, second=held.second), held.manner is Manner.ISOLATED
                first = self._backlog.settle(shard.key)  # of two attempts, the other comes to nothing
                self._fleet.shard_ended(event.worker, result.rows_ok + result.rows_bad if first else 0, now)
                self.tally.ended(
                    event.worker, shard, result, attempt=attempt, first=first, second=held.second, isolated=alone
                )
                if first:
                    self._committed(result)
            case ShardEnded(shard=shard, outcome=Failure() as failure):
                manner = self._assignments.ended(event.worker, shard, now).manner
                self._fleet.shard_ended(event.worker, 0, now)
                self._backlog.returned(shard)
                if failure.code == FailureCode.PREEMPTED:
                    self._leaving(event.worker, now)
                self._failed.shard_failed(event.worker, shard, failure, manner, now)

    def _leaving(self, worker: int, now: float) -> None:
        self._fleet.leaving(worker)
        self._released |= {worker}
        self._resize_after = now  # another takes its place

    def _committed(self, result: ShardResult) -> None:
        self.progress.shard_ended(result.rows_ok + result.rows_bad)
        self.tally.done.note_due(result.plan)
        plan, reasons, budget = self._judged.get(result.plan), self.tally.reasons[result.plan], self.limits.bad_rows
        if plan is None or not budget.exceeded(reasons.by_code.total(), plan.rows):
            return
        if acceptance(self.ledger.store, self.ledger.root, plan):
            del self._judged[plan.number]
            return
        self.tally.over.append(OverBudget(plan, reasons))
        raise bad_rows_error(self.tally.over, str(budget))

    def _not_started(self, worker: int, failure: Failure, now: float) -> None:
        self._resize_after = now
        self._fleet.gone(worker, now, held=0)
        self._failed.not_started(worker, failure)
        pause_s = policy.start_pause_s(
            failure, self._fleet.start_failures, len(self.pool.workers()), others_to_try=self._fleet.others_to_try()
        )
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
                self.tally.add_elsewhere(*self._backlog.drop_present(outcome))
                continue
            self._listing_failures += 1
            if self._listing_failures >= policy.LISTING_FAILURES:
                raise RunFailed(
                    f"the output could not be listed {self._listing_failures} times in a row: {outcome}",
                    "check the store, then run the same command: committed shards stay",
                ) from outcome
            self.progress.note(f"could not look for what other runs have committed, trying again: {outcome}")
