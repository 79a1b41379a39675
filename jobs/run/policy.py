"""Decisions, as pure functions of plain values. No cluster, no clock, no store.

`attempts` below count those at one shard, or of one maker of bundles, since the run began, unless said otherwise.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from typing import Literal

from jobs.pool.contract import MAX_HELD_SHARDS
from jobs.spec.schema import Limits
from workers.outcomes import Failure, FailureCode, FailureKind
from workers.storage.retries import THROTTLED_MAX_S

ISOLATED_RETRIES = 2
"""Times that a shard may lose the worker that scores it in isolation, of whose processes it can kill only others."""
CRASHED_ASIDE = 3
"""Shards that may be set aside because that is spent too; with one more the run ends, for then it is the nodes."""
REFUSED_ASIDE = 10
"""Shards of a plan that are refused one after the other, before it is clear that its others will be too."""
NODE_LOSSES = 2
"""Nodes that may vanish under a shard before it is suspected: memory that a row takes may cost a pod as a whole."""
FAULT_PAUSE_S = 1.0
FAULT_PAUSE_MAX_S = 60.0
ELSEWHERE_S = 60.0
"""How long a shard waits for a worker that is starting, rather than go where it failed."""
STALL_LEAST_S = 2 * THROTTLED_MAX_S
"""A worker that the store throttles is slow and not stuck: its reading and its writing may each wait for so long."""
STALL_TIMES = 20.0
"""How much slower than usual is stuck."""
ISOLATED_LEAST_S = 600.0
"""Without the time spent waiting for storage."""
ISOLATED_S_A_ROW = 1.0
"""Of a network of which nothing has been measured."""
ISOLATED_TIMES = 200.0
"""How much longer an isolated attempt may take than all its rows in one go: each row that kills costs that time about
twice while it is searched for."""
PLACED_LIMIT_S = STALL_LEAST_S
"""From a worker having its node to its being ready: seconds, where the store does not throttle."""
LISTING_FAILURES = 10
"""Times in a row that looking for what other runs committed may fail."""
START_FAILURES = 5
"""Workers that may fail to start in a row, for one cause, before the run gives up."""
START_PAUSE_S = 2.0
START_PAUSE_MAX_S = 30.0
MAKER_CRASHES = 2
"""Times that a bundle's maker is asked for again after one crashed: from the first time on, the images of the sample
cannot be what kills it."""
MAKER_LEAST_S = 3600.0
"""From a maker having its node to the bundle; minutes are usual, weights that have to be fetched first included."""
MAKER_S_A_ROW = 10.0
"""For each image of the sample: a large network on one core takes some seconds, in float, and several times."""
MISSED = timedelta(hours=3)
"""A run this little after the deadline is a late one, to be hurried, rather than an early one of the next day."""


class Budget(enum.StrEnum):
    """Which limit of retries a failed attempt counts against."""

    NONE = "none"
    """Taken away with notice: it may happen any number of times."""
    INFRA = "infra"
    TASK = "task"
    DATA = "data"
    CRASH = "crash"
    """It may be the shard that killed its worker."""


def budget_of(failure: Failure) -> Budget:
    """By kind; for what is nobody's error the code tells more. (A failure of an isolated attempt comes with its kind.)

    Decisions below take the budget beside the failure: it is asked for once, when the failure is counted.
    """
    if failure.kind is FailureKind.INFRA:
        match failure.code:
            case FailureCode.PREEMPTED:
                return Budget.NONE
            case FailureCode.CRASHED | FailureCode.MEMORY | FailureCode.STUCK:
                return Budget.CRASH
    return Budget(failure.kind.value)


@dataclass(frozen=True)
class Attempts:
    """How often a shard failed, by budget."""

    infra: int = 0
    task: int = 0
    data: int = 0
    crashes: int = 0
    """Counted over all runs, isolated attempts included."""
    isolated_crashes: int = 0
    """In this run."""
    nodes_lost: int = 0

    @property
    def by_itself(self) -> int:
        """Those in which neither the worker nor its node was taken away."""
        return self.infra - self.nodes_lost + self.task + self.data + self.crashes

    def after(self, failure: Failure, budget: Budget, *, isolated: bool = False) -> Attempts:
        """With one failure more. What is taken away with notice counts nowhere."""
        infra, crash = budget is Budget.INFRA, budget is Budget.CRASH
        return Attempts(
            infra=self.infra + infra,
            task=self.task + (budget is Budget.TASK),
            data=self.data + (budget is Budget.DATA),
            crashes=self.crashes + crash,
            isolated_crashes=self.isolated_crashes + (crash and isolated),
            nodes_lost=self.nodes_lost + (infra and failure.code == FailureCode.NODE_LOST),
        )


def suspected(failure: Failure, before: Attempts) -> Failure:
    """What a failure is to a shard with those attempts: one under which node after node vanishes may be the reason."""
    if failure.code != FailureCode.NODE_LOST or before.nodes_lost < NODE_LOSSES:
        return failure
    message = f"{failure.message}, after {NODE_LOSSES} others that had the same shard"
    return replace(failure, code=FailureCode.CRASHED, message=message)


class ShardStep(enum.Enum):
    """What a failed attempt at a shard comes to."""

    RETRY = "retry"
    SET_ASIDE = "set aside"
    """The others go on without it; the run ends with code 1, or with 2 where its rows are refused."""
    STOP = "stop"


def shard_step(
    attempts: Attempts,
    failure: Failure,
    budget: Budget,
    limits: Limits,
    crashed_aside: int = 0,
    *,
    worked: bool = False,
) -> ShardStep:
    """After a failure that `attempts` already counts: another attempt, or what it comes to.

    `crashed_aside` shards were set aside before because they kept crashing. One such shard does not hold up a night.
    Where other shards have been scored in this run (`worked`), a refusal may be one node's, that has no credentials.
    """
    spent = {
        Budget.NONE: False,
        Budget.INFRA: attempts.infra > limits.infra_retries,
        Budget.TASK: attempts.task > limits.task_retries
        or failure.code == FailureCode.REFUSED
        or (failure.code == FailureCode.DENIED and not worked),
        Budget.DATA: attempts.data > limits.task_retries,
        Budget.CRASH: attempts.isolated_crashes > ISOLATED_RETRIES,
    }
    if not spent[budget]:
        return ShardStep.RETRY
    others_go_on = (
        budget is Budget.DATA
        or failure.code == FailureCode.REFUSED
        or (budget is Budget.CRASH and crashed_aside < CRASHED_ASIDE)
    )
    return ShardStep.SET_ASIDE if others_go_on else ShardStep.STOP


class MakerStep(enum.Enum):
    """What a failure of the bundle's maker comes to, for a person."""

    WAIT = "waiting to make the bundle"
    """Ask again: nobody's fault."""
    AGAIN = "making the bundle again"
    WITHOUT_EXTRAS = "making the bundle again, without the engines that auto adds"
    """Again, and from now on without libraries that `model.engine: auto` can do without."""
    GIVE_UP = "give up"


def maker_step(attempts: Attempts, failure: Failure, budget: Budget) -> MakerStep:
    """After a failure that `attempts`, those of the maker in this run, already counts.

    A node that was taken away, or has no room now, is followed by another. One that will never do, and an error of
    ours, will go on repeating.
    """
    if failure.code in (FailureCode.NO_CORES, FailureCode.PREEMPTED):
        return MakerStep.WAIT
    if budget is Budget.CRASH:
        spent = attempts.crashes > MAKER_CRASHES
        step = MakerStep.WITHOUT_EXTRAS
    else:
        spent = failure.kind is not FailureKind.INFRA or failure.code not in (FailureCode.OTHER, FailureCode.NODE_LOST)
        step = MakerStep.AGAIN
    return MakerStep.GIVE_UP if spent or attempts.infra + attempts.crashes > START_FAILURES else step


def maker_limit_s(rows: int) -> float:
    """Seconds from a maker having its node to the bundle, of a sample of so many rows; beyond, it is stuck."""
    return MAKER_LEAST_S + MAKER_S_A_ROW * rows


class Manner(enum.Enum):
    """How a shard is given to a worker."""

    BESIDE = "beside"
    """Together with others, one of which is read ahead."""
    ALONE = "alone"
    """With nothing beside it: a worker died of it or of another shard, and the next attempt shows which."""
    ISOLATED = "isolated"
    """Alone, and in processes that may die of it."""


def manner(attempts: Attempts, limits: Limits) -> Manner:
    if attempts.crashes > limits.crash_retries:
        return Manner.ISOLATED
    return Manner.ALONE if attempts.crashes else Manner.BESIDE


def pause_s(attempts: Attempts, failure: Failure, budget: Budget, jitter: float) -> float:
    """Before the next attempt, after a failure that `attempts` counts; `jitter` is a random number in [0, 1).

    A storage fault that outlasted the store's own retries is likely to last: 20 retries span a quarter of an hour. A
    lost worker says nothing about the next.
    """
    if budget is not Budget.INFRA or failure.code == FailureCode.NODE_LOST:
        return 0.0
    longest = min(FAULT_PAUSE_MAX_S, FAULT_PAUSE_S * 2.0 ** min(attempts.infra - 1, 10))
    return longest * (1 + jitter) / 2


def may_go(
    worker: int,
    failed_on: Collection[int],
    failed_hosts: Collection[str],
    ready: Mapping[int, str],
    *,
    starting: bool,
    waited_s: float,
) -> bool:
    """Whether a shard that failed on some workers goes to this one: best to another host, else to another worker.

    The several workers of a broken node are the first to be idle, and would otherwise use up all of a shard's retries.
    `ready` are the workers that take shards, with their hosts; for one that is `starting` only a while is waited.
    """

    def tried(other: int) -> int:
        return 2 if other in failed_on else int(ready[other] in failed_hosts)

    here = tried(worker)
    if not here:
        return True
    if any(tried(other) < here for other in ready):
        return False
    return here == 1 or not (starting and waited_s < ELSEWHERE_S)


def stuck(message: str) -> Failure:
    return Failure(kind=FailureKind.INFRA, code=FailureCode.STUCK, message=message)


def stall_after_s(setting: float | Literal["auto"], s_a_row: float | None, rows: int) -> float | None:
    """Seconds after which a worker that holds so many rows is stuck; None: nobody can say.

    `setting` is the spec's limits.stall_s, `s_a_row` what a row has taken on average in this run.
    """
    if setting != "auto":
        return setting
    return None if s_a_row is None else max(STALL_LEAST_S, STALL_TIMES * s_a_row * rows)


def isolated_after_s(setting: float | Literal["auto"], s_a_row: float | None, rows: int) -> float:
    """Seconds that rows of a shard of so many may take in isolation before their process is ended."""
    if setting != "auto":
        return setting
    usual_s = ISOLATED_S_A_ROW if s_a_row is None else STALL_TIMES * s_a_row
    return max(ISOLATED_LEAST_S, usual_s * rows)


def room(in_flight: int, pending: int, workers: int) -> int:
    """How many more shards a worker should hold.

    A second shard is read ahead only while every worker is sure to get one: an idle worker at the end of a plan could
    otherwise not take what a busy one already holds.
    """
    if in_flight == 0:
        return 1
    return MAX_HELD_SHARDS - in_flight if pending >= workers else 0


def deadline(finish_by: str, zone: tzinfo, now: datetime) -> datetime:
    """The next time that the clock of `zone` shows `finish_by` (HH:MM), or the last one, if it has just been missed."""
    hour, minute = map(int, finish_by.split(":"))
    local = now.astimezone(zone)
    today = local.replace(hour=hour, minute=minute, second=0, microsecond=0)
    days = (today + timedelta(days=ahead) for ahead in (-1, 0, 1))
    return next(at for at in days if at > local - MISSED)


def start_pause_s(failure: Failure, in_a_row: int, ready: int, *, others_to_try: bool = False) -> float | None:
    """Seconds until workers are asked for again, after the `in_a_row`-th that did not start; None: the run gives up.

    `ready` workers are up; `others_to_try` are groups of other nodes. Cores that another run holds come free when it
    ends, so those are waited for; and a node that was taken away with notice will be followed by another. One that is
    unfit, or kills what starts on it, does not matter while others serve. What looks like an error of ours will go on
    repeating, unless others have started: then it is the node's, as with a disk that is full.
    """
    if failure.kind is not FailureKind.INFRA:
        give_up = ready == 0
    else:
        served = ready > 0 or others_to_try or failure.code in (FailureCode.NO_CORES, FailureCode.PREEMPTED)
        give_up = not served and in_a_row >= START_FAILURES
    return None if give_up else min(START_PAUSE_MAX_S, START_PAUSE_S * 2 ** min(in_a_row - 1, 10))
