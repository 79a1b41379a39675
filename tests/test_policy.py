"""Decisions as tables of plain values."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from jobs.policy import Attempts, Step, bad_rows_exceeded, deadline, next_step, pool_target, room, start_step
from workers.outcomes import Failure, FailureKind

INFRA = Failure(kind=FailureKind.INFRA, message="lost")
TASK = Failure(kind=FailureKind.TASK, message="bug")


def test_the_two_budgets_are_apart() -> None:
    attempts = Attempts()
    for failure in (INFRA, TASK, INFRA):
        attempts = attempts.after(failure)
    assert attempts == Attempts(infra=2, task=1)


@pytest.mark.parametrize(
    ("attempts", "step"),
    [
        (Attempts(task=3), Step.RETRY),
        (Attempts(task=4), Step.STOP),
        (Attempts(infra=20), Step.RETRY),
        (Attempts(infra=21), Step.STOP),
    ],
)
def test_a_shard_is_tried_again_until_a_budget_is_spent(attempts: Attempts, step: Step) -> None:
    assert next_step(attempts, task_retries=3, infra_retries=20) is step


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


def test_the_bad_row_budget_is_a_share_of_all_rows() -> None:
    assert not bad_rows_exceeded(10, 1000, 0.01)
    assert bad_rows_exceeded(11, 1000, 0.01)
    assert bad_rows_exceeded(1, 1000, 0.0)


def _failure(code: str) -> Failure:
    return Failure(kind=FailureKind.INFRA, message="", code=code)


def test_cores_that_others_hold_are_waited_for_without_end() -> None:
    step = start_step(_failure("no_cores"), in_a_row=1000, ready=0)
    assert not step.give_up
    assert step.pause_s == 30


@pytest.mark.parametrize("code", ["wrong_isa", ""])
def test_a_node_on_which_nothing_starts_matters_only_when_no_other_serves(code: str) -> None:
    assert not start_step(_failure(code), in_a_row=100, ready=1).give_up
    assert start_step(_failure(code), in_a_row=5, ready=0).give_up
    assert not start_step(_failure(code), in_a_row=5, ready=0, others_to_try=True).give_up


def test_an_error_of_ours_at_start_ends_the_run_at_once() -> None:
    assert start_step(TASK, in_a_row=1, ready=3).give_up
