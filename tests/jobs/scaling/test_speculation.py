"""Second attempts: when they pay, and that whatever becomes of the two, the shard is there once and counted once."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from jobs.pool.contract import Event, ShardEnded
from jobs.progress.snapshot import Price
from jobs.report.report import Report, summary
from jobs.run import loop as loop_module
from jobs.run import policy
from jobs.run.backlog import Backlog
from jobs.run.policy import Budget
from jobs.scaling.speculation import left_s, pays, second_attempts, spares
from jobs.spec.schema import Limits
from tests.jobs.run.test_loop import ROOT, setup
from tests.support.fates import COMMIT, CRASH, HANG, NODE, PREEMPTED, SHARD_S, STORAGE, TASK, Fate, Fated, Given, fated
from workers.contract import Shard, Slice
from workers.outcomes import Failure, ShardResult

LATE = 11
"""The shard whose first attempt does not end for long."""
OTHER = 10
SOONER_S, LATER_S = 0.4 * SHARD_S, 1.6 * SHARD_S
"""The first attempt ends so long after the second has begun: before it, or after it."""


def shard(index: int, rows: int) -> Shard:
    part = Slice(uri="a", size=1, version="1", row_group=0, row_start=0, row_stop=rows)
    return Shard(plan=1, plan_token="t", index=index, slices=(part,))


# --------------------------------------------------------------------------------------------- pure


def test_an_attempt_is_expected_to_take_what_its_worker_usually_takes_and_a_late_one_as_long_again() -> None:
    assert [left_s(100, 0.5, elapsed_s) for elapsed_s in (0, 20, 50, 80, 200)] == [50, 30, 0, 30, 150]


@pytest.mark.parametrize(
    ("first_ends_in_s", "second_takes_s", "worth"),
    [
        (100, 100, False),
        (149, 100, False),
        (150, 100, True),
        (1000, 100, True),
        (4, 1, False),  # a few seconds
        (6, 1, True),
        (0, 0, False),
    ],
)
def test_a_second_attempt_must_end_well_before_the_first(
    first_ends_in_s: float, second_takes_s: float, worth: bool
) -> None:
    assert pays(first_ends_in_s, second_takes_s) is worth


def test_what_ends_last_goes_to_the_fastest_idle_worker() -> None:
    small, large, soon = shard(1, 100), shard(2, 400), shard(3, 100)
    running = [(soon, 20.0), (small, 900.0), (large, 1000.0)]
    assert [*second_attempts(running, {4: 1.0, 5: 0.5, 6: 1.0})] == [(5, large, 800.0), (4, small, 800.0)]
    assert [*second_attempts(running, {4: 1.0})] == [(4, large, 600.0)]
    assert [*second_attempts(running, {4: 10.0})] == []  # itself too slow
    assert [*second_attempts(running, {})] == [*second_attempts([], {4: 1.0})] == []


def test_one_idle_worker_is_kept_for_every_so_many_shards_that_are_under_way() -> None:
    assert [spares(left) for left in (0, 1, 50, 51, 1000)] == [0, 1, 1, 2, 20]


# ------------------------------------------------------------------------------------- in the loop


@pytest.fixture(autouse=True)
def _begin_at_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "random", SimpleNamespace(randrange=lambda shards: 0))


def late(first: Fate, second: Fate, *, by_s: float, limits: Limits | None = None) -> Fated:
    """A run in which the first attempt at one shard ends so long after the second has begun."""
    ledger, plan = setup(12)
    ends_at_s: list[float] = []

    def fate(given: Given) -> Fate:
        if given.shard.index != LATE:
            return COMMIT
        attempts = run.attempts_at(LATE)
        if attempts[0] is not given:
            return second if attempts[1] is given else COMMIT
        if len(attempts) > 1 and not ends_at_s:
            ends_at_s.append(run.pool.now + by_s)
        if not ends_at_s or run.pool.now < ends_at_s[0]:
            run.pool.put_off(given)
            return HANG
        return first

    run = fated(ledger, plan, fate, limits=limits)
    return run


def committed_once(run: Fated) -> None:
    tally, ledger = run.loop.tally, run.loop.ledger
    assert not ledger.missing(ledger.plan(1))
    assert (tally.shards, tally.rows_ok) == (12, 120)
    assert (tally.shards_done, tally.rows_done) == (12, 120)


def test_a_shard_that_is_late_is_tried_by_an_idle_worker_whose_result_ends_the_run() -> None:
    run = late(COMMIT, COMMIT, by_s=LATER_S)
    tally = run.loop.run()
    committed_once(run)
    assert run.pool.now < 15 * SHARD_S
    assert (tally.speculative_attempts, tally.speculative_wins, tally.failures.total()) == (1, 1, 0)
    first, second = run.attempts_at(LATE)
    assert first.worker != second.worker
    assert "tries shard 00000001/00000011" in run.told.getvalue()
    report = Report(run_id="r", job="j", root=ROOT, output="o", started="", plans=[1], **tally.figures(Price()))
    assert (report.shards_scored_here, report.speculative_attempts, report.speculative_wins) == (12, 1, 1)
    assert "second attempts of slow shards: 1, 1 of which ended first" in summary(report)


def test_a_first_attempt_that_ends_first_after_all_makes_the_second_one_waste_and_not_an_error() -> None:
    for outcome in (COMMIT, TASK, CRASH):
        run = late(COMMIT, outcome, by_s=SOONER_S)
        tally = run.loop.run()
        committed_once(run)
        assert (tally.speculative_attempts, tally.speculative_wins, tally.failures.total()) == (1, 0, 0)


@pytest.mark.parametrize("loser", [COMMIT, TASK, STORAGE, PREEMPTED, CRASH])
def test_what_becomes_of_the_slower_attempt_is_neither_a_second_result_nor_a_failure(loser: Fate) -> None:
    run = late(loser, COMMIT, by_s=LATER_S, limits=Limits(task_retries=0, infra_retries=0))
    usual = run.pool.fate

    def fate(given: Given) -> Fate:
        if given.shard.index == OTHER and run.attempts_at(OTHER)[0] is given and run.pool.now < 20 * SHARD_S:
            run.pool.put_off(given)  # there is more to do than the late shard, so that both outcomes come in
            return HANG
        return usual(given)

    run.pool.fate = fate
    tally = run.loop.run()
    committed_once(run)
    assert tally.failures.total() == 0
    assert tally.speculative_attempts == tally.speculative_wins == 2


@pytest.mark.parametrize("first", [TASK, STORAGE, PREEMPTED, CRASH], ids=["task", "storage", "preempted", "crash"])
def test_a_shard_whose_first_attempt_fails_while_the_second_goes_on_is_not_queued_a_third_time(first: Fate) -> None:
    run = late(first, COMMIT, by_s=SOONER_S, limits=Limits(task_retries=0, infra_retries=0))
    tally = run.loop.run()
    committed_once(run)
    assert len(run.attempts_at(LATE)) == 2
    assert (tally.failures.total(), tally.speculative_wins) == (1, 1)


@pytest.mark.parametrize("failure", [TASK, STORAGE], ids=["task", "storage"])
def test_a_second_attempt_that_fails_is_the_only_one_so_that_a_broken_node_does_not_spend_the_budget(
    failure: Failure,
) -> None:
    """An idle worker on a node without room, or without credentials, would fail once a second."""
    run = late(PREEMPTED, COMMIT, by_s=50 * SHARD_S, limits=Limits(task_retries=1, infra_retries=1))
    usual = run.pool.fate

    def fate(given: Given) -> Fate:
        attempts = run.attempts_at(LATE)
        beside = given.shard.index == LATE and attempts[0] is not given and run.pool.now < 40 * SHARD_S
        return failure if beside else usual(given)

    run.pool.fate = fate
    tally = run.loop.run()
    committed_once(run)
    assert tally.speculative_attempts == 1
    assert (tally.failures["preempted"], tally.failures.total()) == (1, 2)


@pytest.mark.parametrize(("failure", "another"), [(PREEMPTED, True), (NODE, True), (STORAGE, False), (TASK, False)])
def test_only_a_second_attempt_that_was_taken_away_is_followed_by_another(failure: Failure, another: bool) -> None:
    backlog = Backlog([shard(0, 10)], {}, Limits(), now=0.0)
    ready = {1: "here", 2: "there"}
    given = backlog.take(1, held=0, ready=ready, starting=False, now=0.0)
    assert given is not None
    begun = given[0]
    assert backlog.may_double(begun)
    backlog.double(begun)
    assert not backlog.may_double(begun)
    backlog.returned(begun)
    backlog.failed(begun, 2, failure, policy.budget_of(failure), host="there", isolated=False, now=1.0)
    assert backlog.may_double(begun) is another
    backlog.returned(begun)
    backlog.failed(begun, 1, PREEMPTED, Budget.NONE, host="here", isolated=False, now=2.0)
    backlog.again(begun, due_at=2.0)
    assert backlog.take(2, held=0, ready=ready, starting=False, now=3.0) == given
    assert backlog.may_double(begun)  # it has begun anew


def test_a_shard_that_was_committed_here_counts_as_such_whichever_attempt_is_heard_of_first() -> None:
    run = late(COMMIT, COMMIT, by_s=LATER_S)
    usual = run.pool.poll

    def poll(timeout_s: float) -> list[Event]:
        """Of two attempts that end together, the one that found the other's object comes first."""
        events = list(usual(timeout_s))
        for event in events:
            if isinstance(event, ShardEnded) and event.shard.index == LATE and isinstance(event.outcome, ShardResult):
                (other,) = [g.worker for g in run.attempts_at(LATE) if g.worker != event.worker]
                loser = ShardEnded(other, event.shard, replace(event.outcome, committed=False))
                return [loser, *events]
        return events

    run.pool.poll = poll  # type: ignore[method-assign]
    tally = run.loop.run()
    committed_once(run)
    assert (tally.shards, tally.committed) == (12, 12)


def test_a_shard_whose_two_attempts_both_fail_waits_again_and_each_failure_counts() -> None:
    run = late(TASK, STORAGE, by_s=SOONER_S)
    tally = run.loop.run()
    committed_once(run)
    assert len(run.attempts_at(LATE)) == 3
    assert dict(tally.failures) == {"task": 1, "infra": 1}


def test_a_shard_that_kills_both_workers_has_crashed_twice_and_is_tried_alone_from_then_on() -> None:
    run = late(CRASH, CRASH, by_s=SOONER_S)
    tally = run.loop.run()
    committed_once(run)
    counts = run.loop.ledger.crashes({1})
    assert counts[run.attempts_at(LATE)[0].shard.key] == 2
    assert tally.failures["crashed"] == 2
    third = run.attempts_at(LATE)[2]
    assert (third.beside, third.isolated_s) == (0, None)


def test_suspects_get_no_second_attempt() -> None:
    ledger, plan = setup(12)
    ledger.record_crash(plan.shards[LATE], CRASH, None, run_id="", at="")

    def fate(given: Given) -> Fate:
        if given.shard.index == LATE and run.pool.now < 50 * SHARD_S:
            run.pool.put_off(given)
            return HANG
        return COMMIT

    run = fated(ledger, plan, fate)
    assert run.loop.run().speculative_attempts == 0
    assert len(run.attempts_at(LATE)) == 1


def test_two_attempts_that_hang_are_both_ended_and_the_shard_goes_on_elsewhere() -> None:
    ledger, plan = setup(12)

    def fate(given: Given) -> Fate:
        return HANG if given.shard.index == LATE and len(run.attempts_at(LATE)) < 3 else COMMIT

    run = fated(ledger, plan, fate)
    tally = run.loop.run()
    committed_once(run)
    assert tally.failures["stuck"] == 2
    assert run.pool.now < 2 * policy.STALL_LEAST_S


def test_shards_of_equal_workers_are_tried_once_each() -> None:
    ledger, plan = setup(40)
    run = fated(ledger, plan, lambda _: COMMIT, workers=4)
    assert run.loop.run().speculative_attempts == 0
    assert len(run.pool.given) == 40
