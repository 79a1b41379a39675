"""Decisions, as pure functions of plain values. No cluster, no clock, no store.

`attempts` and `failures` below count one shard's, or one pool's, since the run began, unless said otherwise.
"""

from __future__ import annotations

import enum
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from typing import Literal

from jobs.spec import Limits
from workers.outcomes import Failure, FailureCode, FailureKind
from workers.retries import THROTTLED_MAX_S

SHARDS_A_WORKER = 2
"""One that predicts and one that is read ahead."""
ISOLATED_RETRIES = 2
"""Times that a shard may lose the worker that scores it in isolation, of whose processes it can kill only others."""
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
PLACED_LIMIT_S = 900.0
"""From a worker having its node to its being ready: import, bundle, golden batch take seconds."""
LISTING_FAILURES = 10
"""Times in a row that looking for what other runs committed may fail."""
START_FAILURES = 5
"""Workers that may fail to start in a row, for one cause, before the run gives up."""
START_PAUSE_S = 2.0
START_PAUSE_MAX_S = 30.0
MISSED = timedelta(hours=3)
"""A run this little after the deadline is a late one, to be hurried, rather than an early one of the next day."""


class Budget(enum.StrEnum):
    """What a failed attempt at a shard is charged to."""

    NONE = "none"
    """Taken away with notice: nobody's fault, however often."""
    INFRA = "infra"
    TASK = "task"
    DATA = "data"
    CRASH = "crash"
    """It may be the shard that killed its worker."""


def budget_of(failure: Failure) -> Budget:
    """By kind; of what is nobody's error the code tells more. (That of an isolated attempt comes with its kind.)"""
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
    free: int = 0

    def after(self, failure: Failure, *, isolated: bool = False) -> Attempts:
        match budget_of(failure):
            case Budget.NONE:
                return replace(self, free=self.free + 1)
            case Budget.INFRA:
                return replace(self, infra=self.infra + 1)
            case Budget.TASK:
                return replace(self, task=self.task + 1)
            case Budget.DATA:
                return replace(self, data=self.data + 1)
            case Budget.CRASH:
                isolated_crashes = self.isolated_crashes + isolated
                return replace(self, crashes=self.crashes + 1, isolated_crashes=isolated_crashes)


class Step(enum.Enum):
    RETRY = "retry"
    SET_ASIDE = "set aside"
    """The others go on without it; the run ends with code 1."""
    STOP = "stop"


def next_step(attempts: Attempts, failure: Failure, limits: Limits) -> Step:
    """After a failure that `attempts` already counts: another attempt, or what it comes to."""
    match budget_of(failure):
        case Budget.NONE:
            spent = False
        case Budget.INFRA:
            spent = attempts.infra > limits.infra_retries
        case Budget.TASK:
            spent = attempts.task > limits.task_retries or failure.code == FailureCode.DENIED
        case Budget.DATA:
            return Step.SET_ASIDE if attempts.data > limits.task_retries else Step.RETRY
        case Budget.CRASH:
            spent = attempts.isolated_crashes > ISOLATED_RETRIES
    return Step.STOP if spent else Step.RETRY


class Manner(enum.Enum):
    """How a shard is given to a worker."""

    BESIDE = "beside"
    """Together with others, one of which is read ahead."""
    ALONE = "alone"
    """A suspect: with nothing beside it, so that the next crash convicts it and a commit acquits it."""
    ISOLATED = "isolated"
    """Alone, and in processes that may die of it."""


def manner(attempts: Attempts, limits: Limits) -> Manner:
    if attempts.crashes > limits.crash_retries:
        return Manner.ISOLATED
    return Manner.ALONE if attempts.crashes else Manner.BESIDE


def pause_s(attempts: Attempts, failure: Failure, jitter: float) -> float:
    """Before the next attempt, after a failure that `attempts` counts; `jitter` is a random number in [0, 1).

    A storage fault that outlasted the store's own retries is likely to last: 20 retries span a quarter of an hour. A
    lost worker says nothing about the next.
    """
    if budget_of(failure) is not Budget.INFRA or failure.code == FailureCode.NODE_LOST:
        return 0.0
    longest = min(FAULT_PAUSE_MAX_S, FAULT_PAUSE_S * 2.0 ** min(attempts.infra - 1, 10))
    return longest * (1 + jitter) / 2


def may_go(worker: int, failed_on: Collection[int], ready: Collection[int], *, starting: bool, waited_s: float) -> bool:
    """Whether a shard that failed on some workers goes to this one: not while another may have it.

    `ready` are the workers that take shards; for one that is `starting` only a while is waited.
    """
    if worker not in failed_on:
        return True
    others = any(other not in failed_on for other in ready)
    return not others and not (starting and waited_s < ELSEWHERE_S)


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


def pool_target(missing: int, *, least: int, most: int) -> int:
    """Workers that `missing` shards can use: one each, within the spec's bounds, none when nothing is left."""
    return 0 if missing == 0 else max(least, min(most, missing))


def room(in_flight: int, pending: int, workers: int) -> int:
    """How many more shards a worker should hold.

    A second shard is read ahead only while every worker is sure to get one: an idle worker at the end of a plan could
    otherwise not take what a busy one already holds.
    """
    if in_flight == 0:
        return 1
    return SHARDS_A_WORKER - in_flight if pending >= workers else 0


def deadline(finish_by: str, zone: tzinfo, now: datetime) -> datetime:
    """The next time that the clock of `zone` shows `finish_by` (HH:MM), or the last one, if it has just been missed."""
    hour, minute = map(int, finish_by.split(":"))
    local = now.astimezone(zone)
    today = local.replace(hour=hour, minute=minute, second=0, microsecond=0)
    days = (today + timedelta(days=ahead) for ahead in (-1, 0, 1))
    return next(at for at in days if at > local - MISSED)


def bad_rows_exceeded(rows_bad: int, rows_total: int, budget: float) -> bool:
    return rows_bad > budget * rows_total


@dataclass(frozen=True)
class StartStep:
    """What to do about workers that do not start."""

    give_up: bool
    pause_s: float


def start_step(failure: Failure, in_a_row: int, ready: int, *, others_to_try: bool = False) -> StartStep:
    """After the `in_a_row`-th start failure with `ready` workers up; `others_to_try` are groups of other nodes.

    Cores that another run holds come free when it ends, so those are waited for; and a node that was taken away with
    notice will be followed by another. One that is unfit, or kills what starts on it, does not matter while others
    serve. An error of ours will go on repeating.
    """
    pause_s = min(START_PAUSE_MAX_S, START_PAUSE_S * 2 ** min(in_a_row - 1, 10))
    if failure.kind is not FailureKind.INFRA:
        return StartStep(give_up=True, pause_s=0.0)
    served = ready > 0 or others_to_try or failure.code in (FailureCode.NO_CORES, FailureCode.PREEMPTED)
    hopeless = not served and in_a_row >= START_FAILURES
    return StartStep(give_up=hopeless, pause_s=pause_s)
