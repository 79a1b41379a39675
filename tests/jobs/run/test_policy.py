"""Decisions as tables of plain values."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from jobs.run.policy import (
    Attempts,
    Budget,
    Manner,
    ShardStep,
    budget_of,
    deadline,
    isolated_after_s,
    manner,
    may_go,
    pause_s,
    room,
    shard_step,
    stall_after_s,
    start_pause_s,
    suspected,
)
from jobs.scaling.sizing import pool_target
from jobs.spec.schema import Limits
from workers.outcomes import Failure, FailureCode, FailureKind
from workers.storage.retries import THROTTLED_MAX_S

INFRA = Failure(kind=FailureKind.INFRA, message="lost")
TASK = Failure(kind=FailureKind.TASK, message="bug")
DATA = Failure(kind=FailureKind.DATA, message="no such column")
DENIED = Failure(kind=FailureKind.TASK, code=FailureCode.DENIED, message="403")


def charged(failure: Failure) -> tuple[Failure, Budget]:
    return failure, budget_of(failure)


def infra(code: str) -> Failure:
    return Failure(kind=FailureKind.INFRA, message="", code=code)


@pytest.mark.parametrize(
    ("failure", "budget"),
    [
        (INFRA, Budget.INFRA),
        (infra(FailureCode.NODE_LOST), Budget.INFRA),
        (TASK, Budget.TASK),
        (DENIED, Budget.TASK),
        (DATA, Budget.DATA),
        (infra(FailureCode.CRASHED), Budget.CRASH),
        (infra(FailureCode.MEMORY), Budget.CRASH),
        (infra(FailureCode.STUCK), Budget.CRASH),
        (infra(FailureCode.PREEMPTED), Budget.NONE),
    ],
)
def test_every_failure_is_charged_to_one_budget(failure: Failure, budget: Budget) -> None:
    assert budget_of(failure) is budget


def test_the_budgets_are_apart() -> None:
    attempts = Attempts()
    crashed, preempted = infra(FailureCode.CRASHED), infra(FailureCode.PREEMPTED)
    for failure in (INFRA, TASK, INFRA, DATA, crashed, preempted):
        attempts = attempts.after(*charged(failure))
    attempts = attempts.after(*charged(crashed), isolated=True)
    assert attempts == Attempts(infra=2, task=1, data=1, crashes=2, isolated_crashes=1)


@pytest.mark.parametrize(
    ("attempts", "failure", "step"),
    [
        (Attempts(task=3), TASK, ShardStep.RETRY),
        (Attempts(task=4), TASK, ShardStep.STOP),
        (Attempts(task=1), DENIED, ShardStep.STOP),
        (Attempts(infra=20), INFRA, ShardStep.RETRY),
        (Attempts(infra=21), INFRA, ShardStep.STOP),
        (Attempts(data=3), DATA, ShardStep.RETRY),
        (Attempts(data=4), DATA, ShardStep.SET_ASIDE),
        (Attempts(crashes=1000), infra(FailureCode.CRASHED), ShardStep.RETRY),
        (Attempts(crashes=9, isolated_crashes=2), infra(FailureCode.MEMORY), ShardStep.RETRY),
        (Attempts(crashes=9, isolated_crashes=3), infra(FailureCode.MEMORY), ShardStep.SET_ASIDE),
        (Attempts(infra=20), infra(FailureCode.PREEMPTED), ShardStep.RETRY),
        (Attempts(infra=20, task=3), TASK, ShardStep.RETRY),
    ],
)
def test_a_shard_is_tried_again_until_a_budget_is_spent(attempts: Attempts, failure: Failure, step: ShardStep) -> None:
    assert shard_step(attempts, *charged(failure), Limits(task_retries=3, infra_retries=20)) is step


def test_a_refusal_ends_the_run_at_once_unless_others_were_scored_and_one_node_may_lack_credentials() -> None:
    limits = Limits(task_retries=3)
    assert shard_step(Attempts(task=1), *charged(DENIED), limits, worked=False) is ShardStep.STOP
    assert shard_step(Attempts(task=3), *charged(DENIED), limits, worked=True) is ShardStep.RETRY
    assert shard_step(Attempts(task=4), *charged(DENIED), limits, worked=True) is ShardStep.STOP


def test_a_shard_of_refused_rows_is_set_aside_at_once_whatever_else_was_scored() -> None:
    refused = Failure(kind=FailureKind.TASK, code=FailureCode.REFUSED, message="")
    for worked in (False, True):
        assert shard_step(Attempts(task=1), *charged(refused), Limits(), worked=worked) is ShardStep.SET_ASIDE


@pytest.mark.parametrize(
    ("crashes", "how"),
    [(0, Manner.BESIDE), (1, Manner.ALONE), (2, Manner.ALONE), (3, Manner.ISOLATED), (4, Manner.ISOLATED)],
)
def test_a_shard_whose_worker_died_is_scored_alone_and_then_in_isolation(crashes: int, how: Manner) -> None:
    assert manner(Attempts(crashes=crashes), Limits(crash_retries=2)) is how
    assert manner(Attempts(crashes=1), Limits(crash_retries=0)) is Manner.ISOLATED


def test_after_storage_faults_the_pauses_double_up_to_a_minute_and_after_lost_workers_there_are_none() -> None:
    shortest = [pause_s(Attempts(infra=n), *charged(INFRA), jitter=0.0) for n in (1, 2, 3, 7, 20)]
    assert shortest == [0.5, 1.0, 2.0, 30.0, 30.0]
    assert pause_s(Attempts(infra=20), *charged(INFRA), jitter=1.0) == 60.0
    for free in (infra(FailureCode.NODE_LOST), infra(FailureCode.CRASHED), TASK, infra(FailureCode.PREEMPTED)):
        assert pause_s(Attempts(infra=5), *charged(free), jitter=1.0) == 0.0


def test_a_storm_that_a_shards_whole_budget_meets_may_last_a_quarter_of_an_hour() -> None:
    assert sum(pause_s(Attempts(infra=n), *charged(INFRA), jitter=0.5) for n in range(1, 21)) > 600


@pytest.mark.parametrize(
    ("failed_on", "ready", "starting", "waited_s", "goes"),
    [
        (set(), {1: "a"}, False, 0, True),
        ({2}, {1: "a", 2: "b"}, False, 0, True),
        ({1}, {1: "a", 2: "b"}, False, 1e9, False),  # worker 2 gets it
        ({1}, {1: "a", 2: "a"}, False, 1e9, False),
        ({2}, {1: "a", 2: "a"}, False, 0, True),  # there is no other host
        ({2}, {1: "a", 2: "a"}, True, 0, True),  # and none is waited for
        ({2}, {1: "a", 2: "a", 3: "b"}, False, 1e9, False),  # there is
        ({1}, {1: "a"}, False, 0, True),  # there is no other worker
        ({1}, {1: "a"}, True, 59, False),  # there soon is
        ({1}, {1: "a"}, True, 61, True),
        ({1, 2}, {1: "a", 2: "b"}, False, 0, True),  # all have tried
    ],
)
def test_a_shard_goes_to_a_host_and_a_worker_that_it_has_not_failed_on(
    failed_on: set[int], ready: dict[int, str], starting: bool, waited_s: float, goes: bool
) -> None:
    hosts = {ready[worker] for worker in failed_on}
    assert may_go(1, failed_on, hosts, ready, starting=starting, waited_s=waited_s) is goes


def test_a_shard_under_which_node_after_node_vanishes_is_suspected() -> None:
    attempts, codes = Attempts(), []
    for _ in range(5):
        failure = suspected(infra(FailureCode.NODE_LOST), attempts)
        attempts = attempts.after(*charged(failure))
        codes.append(failure.code)
    assert codes == ["node_lost"] * 2 + ["crashed"] * 3
    assert (attempts.infra, attempts.crashes) == (2, 3)
    assert suspected(INFRA, attempts) is INFRA


def test_a_few_shards_that_crash_for_ever_are_set_aside_and_with_one_more_the_run_ends() -> None:
    spent, crash = Attempts(isolated_crashes=3), infra(FailureCode.CRASHED)
    steps = [shard_step(spent, *charged(crash), Limits(), aside) for aside in range(5)]
    assert steps == [ShardStep.SET_ASIDE] * 3 + [ShardStep.STOP] * 2


def test_a_worker_is_stuck_after_many_times_what_its_shards_should_take_or_what_the_spec_says() -> None:
    assert stall_after_s("auto", None, rows=4000) is None
    assert stall_after_s("auto", 0.01, rows=100) == 1800 == 2 * THROTTLED_MAX_S
    assert stall_after_s("auto", 0.01, rows=10_000) == 2000
    assert stall_after_s(5.0, None, rows=8000) == 5


def test_rows_in_isolation_always_have_a_limit() -> None:
    assert isolated_after_s("auto", None, rows=10) == 600
    assert isolated_after_s("auto", None, rows=4000) == 4000
    assert isolated_after_s("auto", 0.01, rows=8000) == 1600
    assert isolated_after_s(5.0, None, rows=8000) == 5


@pytest.mark.parametrize(("missing", "target"), [(0, 0), (1, 2), (5, 5), (500, 64)])
def test_the_pool_follows_the_shards_that_are_left(missing: int, target: int) -> None:
    assert pool_target(missing, least=2, most=64) == target


def test_a_second_shard_is_read_ahead_only_while_every_worker_is_sure_of_one() -> None:
    assert room(in_flight=0, pending=1, workers=4) == 1
    assert room(in_flight=1, pending=4, workers=4) == 1
    assert room(in_flight=1, pending=3, workers=4) == 0
    assert room(in_flight=2, pending=99, workers=4) == 0


def test_the_deadline_is_the_next_time_the_zones_clock_shows_it() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    evening, morning = datetime(2026, 3, 1, 20, 0, tzinfo=UTC), datetime(2026, 3, 1, 4, 0, tzinfo=UTC)
    assert deadline("06:00", berlin, evening) == datetime(2026, 3, 2, 5, 0, tzinfo=UTC)
    assert deadline("06:00", berlin, morning) == datetime(2026, 3, 1, 5, 0, tzinfo=UTC)


def test_a_run_soon_after_the_deadline_is_late_and_not_early_for_the_next_day() -> None:
    seven, ten = (datetime(2026, 3, 1, hour, 0, tzinfo=UTC) for hour in (7, 10))
    assert deadline("06:00", UTC, seven) == datetime(2026, 3, 1, 6, 0, tzinfo=UTC)
    assert deadline("06:00", UTC, ten) == datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
    assert deadline("23:30", UTC, datetime(2026, 3, 1, 0, 10, tzinfo=UTC)) == datetime(2026, 2, 28, 23, 30, tzinfo=UTC)


@pytest.mark.parametrize("code", [FailureCode.NO_CORES, FailureCode.PREEMPTED])
def test_cores_that_others_hold_and_nodes_that_are_taken_away_are_waited_for_without_end(code: str) -> None:
    assert start_pause_s(infra(code), in_a_row=1000, ready=0) == 30


@pytest.mark.parametrize("code", ["wrong_isa", ""])
def test_a_node_on_which_nothing_starts_matters_only_when_no_other_serves(code: str) -> None:
    assert start_pause_s(infra(code), in_a_row=100, ready=1) is not None
    assert start_pause_s(infra(code), in_a_row=5, ready=0) is None
    assert start_pause_s(infra(code), in_a_row=5, ready=0, others_to_try=True) is not None


def test_an_error_of_ours_at_start_ends_the_run_at_once_unless_other_workers_have_started() -> None:
    assert start_pause_s(TASK, in_a_row=1, ready=0, others_to_try=True) is None
    assert start_pause_s(TASK, in_a_row=9, ready=3) is not None
