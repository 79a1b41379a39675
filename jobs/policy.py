"""Decisions, as pure functions of plain values. No cluster, no clock, no store.

`attempts` and `failures` below count one shard's, or one pool's, since the run began.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo

from workers.outcomes import Failure, FailureCode, FailureKind

SHARDS_A_WORKER = 2
"""One that predicts and one that is read ahead."""
START_FAILURES = 5
"""Workers that may fail to start in a row, for one cause, before the run gives up."""
START_PAUSE_S = 2.0
START_PAUSE_MAX_S = 30.0
MISSED = timedelta(hours=3)
"""A run this little after the deadline is a late one, to be hurried, rather than an early one of the next day."""


@dataclass(frozen=True)
class Attempts:
    """How often a shard failed, by budget."""

    infra: int = 0
    task: int = 0

    def after(self, failure: Failure) -> Attempts:
        if failure.kind is FailureKind.INFRA:
            return replace(self, infra=self.infra + 1)
        return replace(self, task=self.task + 1)


class Step(enum.Enum):
    RETRY = "retry"
    STOP = "stop"


def next_step(attempts: Attempts, *, task_retries: int, infra_retries: int) -> Step:
    """After a failure that `attempts` already counts: another attempt, or the end of the run."""
    spent = attempts.task > task_retries or attempts.infra > infra_retries
    return Step.STOP if spent else Step.RETRY


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

    Cores that another run holds come free when it ends, so those are waited for. A node that is unfit, or kills what
    starts on it, does not matter while others serve. An error of ours will go on repeating.
    """
    pause_s = min(START_PAUSE_MAX_S, START_PAUSE_S * 2 ** min(in_a_row - 1, 10))
    if failure.kind is not FailureKind.INFRA:
        return StartStep(give_up=True, pause_s=0.0)
    served = ready > 0 or others_to_try or failure.code == FailureCode.NO_CORES
    hopeless = not served and in_a_row >= START_FAILURES
    return StartStep(give_up=hopeless, pause_s=pause_s)
