"""How many workers meet a deadline, as tables of plain values."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.scaling.sizing import CLOSING_S, MARGIN, START_DELAY_S, Outlook, RecentRate, StartDelay, workers_wanted

RATE = 10.0
HOUR_S = 3600.0
WORK = Outlook(rows_left=720_000, shards_left=7200, time_left_s=2 * HOUR_S, rate=RATE)
"""Twenty worker-hours in shards of ten seconds."""


def wanted(outlook: Outlook, before: int | None = None, *, least: int = 0, most: int = 64) -> int:
    return workers_wanted(outlook, before, least=least, most=most)


def done_s(number: int, outlook: Outlook = WORK) -> float:
    """When so many new workers would have done it all, margin included."""
    return START_DELAY_S + outlook.rows_left * (1 + MARGIN) / RATE / number + outlook.shard_s + CLOSING_S


def test_the_cheapest_number_that_meets_the_deadline_is_wanted() -> None:
    number = wanted(WORK)
    assert done_s(number) <= 2 * HOUR_S < done_s(number - 1)


def test_no_deadline_a_deadline_that_cannot_be_met_or_one_that_is_past_take_as_many_as_allowed() -> None:
    for time_left_s in (None, 600.0, START_DELAY_S, 0.0, -100.0):
        assert wanted(replace(WORK, time_left_s=time_left_s)) == 64


def test_the_bounds_of_the_spec_and_the_shards_that_are_left_bound_the_number() -> None:
    assert wanted(replace(WORK, time_left_s=None, shards_left=3)) == 3
    assert wanted(replace(WORK, time_left_s=None, shards_left=0)) == 0
    assert wanted(WORK, least=30) == 30
    assert wanted(WORK, most=5) == 5


def test_workers_that_are_ready_or_nearly_count_for_more_than_those_that_must_come_up_first() -> None:
    hour = replace(WORK, time_left_s=HOUR_S)
    assert wanted(replace(hour, ready=20, ready_rate=20 * RATE)) < wanted(hour)
    assert wanted(replace(hour, pending_s=[1.0] * 20)) < wanted(replace(hour, pending_s=[900.0] * 20))


def test_the_number_stands_while_its_margin_is_neither_spent_nor_excessive() -> None:
    ready = replace(WORK, ready=12, ready_rate=12 * RATE)
    needed = wanted(ready)
    noisy = [replace(ready, rate=RATE * f, ready_rate=12 * RATE * f) for f in (0.97, 1.0, 1.02, 0.98, 1.04)]
    numbers = [needed]
    for outlook in noisy:
        numbers.append(wanted(outlook, numbers[-1]))
    assert set(numbers) == {needed}
    assert wanted(replace(ready, rate=RATE / 2, ready_rate=6 * RATE), needed) > needed
    assert wanted(replace(ready, rate=RATE * 2, ready_rate=24 * RATE), needed) < needed


def test_before_anything_is_measured_a_few_workers_measure_and_with_little_time_all_are_asked_for() -> None:
    unknown = replace(WORK, rate=None, time_left_s=6 * HOUR_S)
    assert wanted(unknown) == 4
    assert wanted(replace(unknown, time_left_s=1800)) == 64
    assert wanted(replace(unknown, time_left_s=5 * HOUR_S, waited_s=HOUR_S)) == 64


def test_nodes_are_filled_because_their_other_cores_are_paid_for_anyway() -> None:
    on_nodes = replace(WORK, node_holds=8)
    assert wanted(WORK) == 12
    assert wanted(on_nodes) == 16
    assert wanted(replace(on_nodes, nodes_hold=[24])) == 24
    assert wanted(replace(on_nodes, nodes_hold=[8, 24])) == 16  # of a less preferred group no more than must be


def test_a_worker_that_would_come_up_when_the_others_are_about_to_end_is_not_asked_for() -> None:
    nearly = replace(WORK, rows_left=1000, shards_left=10, time_left_s=None, ready=2, ready_rate=2 * RATE)
    assert wanted(nearly) == 2  # over in 50 s
    assert wanted(replace(nearly, start_delay_s=5)) == 10
    assert wanted(replace(nearly, pending_s=[3.0, 170.0])) == 3


def test_when_workers_are_being_lost_time_to_replace_the_last_of_them_is_kept() -> None:
    hour = replace(WORK, time_left_s=HOUR_S)
    assert wanted(replace(hour, losing=True)) > wanted(hour)


def test_the_rate_counts_lost_attempts_as_time_without_rows_and_forgets_what_is_long_past() -> None:
    rate = RecentRate()
    assert rate.value is None
    rate.add(0, 10.0)
    assert rate.value is None
    rate.add(600, 10.0)
    assert rate.value == pytest.approx(30, rel=0.01)
    for _ in range(1000):
        rate.add(100, 10.0)
    assert rate.value == pytest.approx(10, rel=0.01)


def test_the_start_delay_is_the_longest_seen_lately_and_one_that_is_overdue_may_take_as_long_again() -> None:
    delay = StartDelay()
    assert delay.value_s == START_DELAY_S
    for seen_s in (200.0, *[60.0] * 7):
        delay.add(seen_s)
    assert delay.value_s == 200
    delay.add(60.0)
    assert delay.value_s == 60
    assert delay.still_s((0.0, 50.0, 60.0, 100.0)) == [60, 10, 0, 40]
