"""Shards that kill their workers, workers that die for other reasons, and everything else that may happen to a shard:
what the loop makes of it, in made-up time."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from jobs.errors import Interrupted, RunFailed
from jobs.ledger.ledger import Ledger, parse_crash_key
from jobs.ledger.plans import Plan
from jobs.progress.snapshot import Price
from jobs.report.report import Report, summary
from jobs.run import loop as loop_module
from jobs.run import policy
from jobs.spec.schema import Limits
from tests.jobs.run.test_loop import ROOT, setup
from tests.support.fakes import MemoryStore
from tests.support.fates import (
    COMMIT,
    CRASH,
    DATA,
    HANG,
    MEMORY,
    NODE,
    PREEMPTED,
    STORAGE,
    TASK,
    Fate,
    Fated,
    Given,
    fated,
)
from workers.outcomes import FailureCode
from workers.storage.errors import StoreError

POISON = 3


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "POLL_S", 5.0)
    _begin_at(monkeypatch, 0)


def _begin_at(monkeypatch: pytest.MonkeyPatch, shard: int) -> None:
    """Runs begin at a random shard, and in these tests at this one."""
    monkeypatch.setattr(loop_module, "random", SimpleNamespace(randrange=lambda shards: shard % shards))


def poison(death: Fate = CRASH, isolated: Fate = COMMIT) -> Callable[[Given], Fate]:
    """One shard kills whoever scores it, but for what happens to it in isolation."""

    def fate(given: Given) -> Fate:
        if given.shard.index != POISON:
            return COMMIT
        return death if given.isolated_s is None else isolated

    return fate


def records(ledger: Ledger) -> list[dict[str, Any]]:
    folder = ledger.store.list(f"{ROOT}/_stint/crashes")
    return [json.loads(ledger.store.get(info.key)) for info in folder]


# ------------------------------------------------------------------------------------------- poison


@pytest.mark.parametrize("death", [CRASH, MEMORY], ids=["crash", "memory"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_shard_that_kills_its_workers_is_scored_in_isolation_and_everything_else_as_usual(
    workers: int, death: Fate
) -> None:
    ledger, plan = setup()
    run = fated(ledger, plan, poison(death), workers=workers)
    run.loop.run()
    assert not ledger.missing(plan)
    attempts = run.attempts_at(POISON)
    assert [given.isolated_s is not None for given in attempts] == [False, False, False, True]  # crash_retries: 2
    assert [given.beside for given in attempts[1:]] == [0, 0, 0]  # a suspect has a worker that holds nothing
    assert not [given for given in run.pool.given if given.isolated_s is not None and given.shard.index != POISON]


def test_nothing_is_given_to_a_worker_beside_a_suspect() -> None:
    ledger, plan = setup(40)
    run = fated(ledger, plan, poison(), workers=2)
    run.loop.run()
    first, *suspect = run.attempts_at(POISON)
    assert [given.beside for given in suspect] == [0, 0, 0]
    assert not run.pool.joined & set(suspect)
    assert run.pool.joined - {first}  # others are read ahead


def test_a_shard_that_was_merely_held_beside_the_poison_is_acquitted_when_it_commits() -> None:
    ledger, plan = setup()
    run = fated(ledger, plan, poison(), workers=1)
    run.loop.run()
    counts = ledger.crashes({plan.number})
    beside = {key: n for key, n in counts.items() if key != plan.shards[POISON].key}
    assert counts[plan.shards[POISON].key] == 3
    assert list(beside.values()) == [1]  # it was read ahead once, and never convicted


def test_a_poison_shard_is_dealt_with_first_and_not_after_all_the_others() -> None:
    ledger, plan = setup(200)
    run = fated(ledger, plan, poison(), workers=2)
    run.loop.run()
    places = [place for place, given in enumerate(run.pool.given) if given.shard.index == POISON]
    assert places[-1] - places[0] < 20


def test_workers_that_all_die_of_everything_end_the_run_soon_and_say_why() -> None:
    """As with a library that does not suit the machines: no pass over all input."""
    ledger, plan = setup(500)
    hopeless = FailureCode.CRASHED
    kind = TASK.__class__(kind=TASK.kind, code=hopeless, message="8 of its rows, each scored alone, SIGILL")
    run = fated(ledger, plan, lambda given: CRASH if given.isolated_s is None else kind, workers=4)
    with pytest.raises(RunFailed, match=r"(?s)limits\.task_retries allows 3: 8 of its rows.*before: worker .*crashed"):
        run.loop.run()
    assert len(run.pool.given) < 120


# ------------------------------------------------------------------------------------------- durable


def test_crashes_are_recorded_once_each_with_who_died_of_what() -> None:
    ledger, plan = setup()
    run = fated(ledger, plan, poison(), workers=3, run_id="20260301T000000Z-abc")
    run.loop.run()
    mine = [record for record in records(ledger) if record["shard"] == plan.shards[POISON].name]
    assert len(mine) == 3
    assert {record["host"] for record in mine} == {f"host-{given.worker}" for given in run.attempts_at(POISON)[:3]}
    for record in mine:
        assert (record["code"], record["reason"], record["run_id"]) == (
            "crashed",
            CRASH.message,
            "20260301T000000Z-abc",
        )
        assert record["pid"] > 1000
        assert record["at"].endswith("+00:00")


def test_a_run_that_was_killed_leaves_its_count_to_the_next() -> None:
    ledger, plan = setup()
    seen = Counter[str]()

    def fate(given: Given) -> Fate:
        seen.update(["poison"] if given.shard.index == POISON else [])
        return poison()(given)

    first = fated(ledger, plan, fate, interrupted=lambda: seen["poison"] >= 2)
    with pytest.raises(Interrupted):
        first.loop.run()
    assert len(first.attempts_at(POISON)) == 2
    second = fated(ledger, plan, poison())
    second.loop.run()
    assert [(given.isolated_s is not None, given.beside) for given in second.attempts_at(POISON)] == [
        (False, 0),
        (True, 0),
    ]
    assert not ledger.missing(plan)


def test_a_storage_fault_while_a_crash_is_recorded_does_not_end_the_run_which_goes_on_counting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ledger, plan = setup()
    create = ledger.store.create

    def failing(key: str, data: bytes) -> bool:
        if "/crashes/" in key:
            raise StoreError("503 SlowDown")
        return create(key, data)

    monkeypatch.setattr(ledger.store, "create", failing)
    run = fated(ledger, plan, poison())
    run.loop.run()
    assert not ledger.missing(plan)
    assert len(run.attempts_at(POISON)) == 4
    assert "could not be recorded for later runs: 503 SlowDown" in run.told.getvalue()


def test_only_keys_of_crash_records_count_as_such() -> None:
    key = f"_stint/crashes/00000007/00000012-{'0' * 32}.json"
    assert parse_crash_key(key) == (7, 12)
    assert [parse_crash_key(other) for other in (key + "x", key.replace("json", "txt"), "notes.txt", key[1:])] == [
        None
    ] * 4


# ----------------------------------------------------------------------------------------- isolation


def test_a_shard_whose_isolated_attempts_lose_their_workers_too_does_not_hold_up_the_night() -> None:
    ledger, plan = setup()
    run = fated(ledger, plan, poison(CRASH, isolated=MEMORY))
    ((shard, failure),) = run.loop.run().set_aside
    assert shard == plan.shards[POISON]
    assert "its worker died 6 times, 3 of them in isolation" in failure.message
    assert "over its bound" in failure.message
    assert [shard.index for shard in ledger.missing(plan)] == [POISON]
    following = fated(ledger, plan, poison(CRASH, isolated=MEMORY))
    following.loop.run()
    assert len(following.attempts_at(POISON)) == 3


def test_more_and_more_shards_that_crash_even_in_isolation_end_the_run_with_everything_in_hand() -> None:
    ledger, plan = setup(100)
    run = fated(ledger, plan, lambda given: CRASH if given.isolated_s is None else MEMORY)
    told = (
        r"(?s)shard 00000001/\d+ \(10 rows: a row group \d+ rows 0:10\) failed 6 times, on workers .*"
        r"its worker died 6 times, 3 of them in isolation.*and 3 others are set aside for that already: over its.*"
        r"before: worker \d+: crashed: the process died"
    )
    with pytest.raises(RunFailed, match=told):
        run.loop.run()
    assert len(run.pool.given) < 80


def test_a_shard_that_cannot_even_be_read_in_isolation_is_set_aside_and_the_rest_is_scored() -> None:
    ledger, plan = setup()
    tally = fated(ledger, plan, poison(CRASH, isolated=DATA)).loop.run()
    assert [shard.index for shard, _ in tally.set_aside] == [POISON]
    assert [shard.index for shard in ledger.missing(plan)] == [POISON]


def test_isolated_attempts_get_the_limit_of_a_stall() -> None:
    ledger, plan = setup()
    run = fated(ledger, plan, poison(), limits=Limits(stall_s=77))
    run.loop.run()
    assert [given.isolated_s for given in run.attempts_at(POISON)][-1] == 77


# -------------------------------------------------------------------------------------------- stalls


def test_a_worker_that_hangs_is_ended_once_others_have_shown_how_long_it_should_take() -> None:
    ledger, plan = setup()
    run = fated(ledger, plan, poison(HANG))
    tally = run.loop.run()
    assert not ledger.missing(plan)
    assert len(run.attempts_at(POISON)) == 4
    assert {record["code"] for record in records(ledger)} == {"stuck"}
    assert tally.failures["stuck"] >= 3
    assert "longer than 1800 s (limits.stall_s)" in run.told.getvalue()
    assert run.pool.now < 3 * 1900


def test_without_any_shard_to_compare_with_a_hang_is_ended_only_by_the_specs_own_limit() -> None:
    ledger, plan = setup(1)
    hangs_once = iter([HANG])
    patient = fated(ledger, plan, lambda _: HANG, interrupted=lambda: patient.pool.now > 2e4)
    with pytest.raises(Interrupted):
        patient.loop.run()
    told = fated(ledger, plan, lambda _: next(hangs_once, COMMIT), limits=Limits(stall_s=60))
    told.loop.run()
    assert told.pool.now < 120


def test_an_isolated_attempt_that_never_ends_is_ended_too() -> None:
    ledger, plan = setup()
    run = fated(ledger, plan, poison(CRASH, isolated=HANG), limits=Limits(stall_s=5))
    ((shard, failure),) = run.loop.run().set_aside
    assert shard.index == POISON
    assert "in isolation" in failure.message


def test_a_worker_that_has_its_node_and_is_never_ready_is_replaced() -> None:
    ledger, plan = setup()
    run = fated(ledger, plan, lambda _: COMMIT, starts=lambda number: HANG if number == 0 else COMMIT, workers=1)
    tally = run.loop.run()
    assert not ledger.missing(plan)
    assert tally.failed_starts == 1
    assert policy.PLACED_LIMIT_S < run.pool.now < 2 * policy.PLACED_LIMIT_S


# ------------------------------------------------------------------------------------ other failures


def test_preemptions_cost_nothing_however_many_there_are() -> None:
    ledger, plan = setup()
    left = {"n": 200}

    def fate(_: Given) -> Fate:
        left["n"] -= 1
        return PREEMPTED if left["n"] > 0 else COMMIT

    limits = Limits(infra_retries=0, task_retries=0, crash_retries=0)
    tally = fated(ledger, plan, fate, limits=limits).loop.run()
    assert not ledger.missing(plan)
    assert tally.failures["preempted"] > 150
    assert records(ledger) == []


def test_lost_nodes_convict_nobody_and_their_budget_ends_the_run() -> None:
    ledger, plan = setup()
    run = fated(ledger, plan, poison(NODE), limits=Limits(infra_retries=1))
    with pytest.raises(RunFailed, match=r"failed 2 times.*limits\.infra_retries allows 1: the node is gone"):
        run.loop.run()
    assert records(ledger) == []
    assert all(given.isolated_s is None for given in run.pool.given)


def test_a_shard_that_takes_node_after_node_along_is_isolated_before_it_has_cost_many() -> None:
    """As an image whose memory ends a pod as a whole."""
    ledger, plan = setup()
    run = fated(ledger, plan, poison(NODE))
    run.loop.run()
    assert not ledger.missing(plan)
    attempts = run.attempts_at(POISON)
    assert [given.isolated_s is not None for given in attempts] == [False] * 5 + [True]
    assert [given.beside for given in attempts[3:]] == [0, 0, 0]
    assert ledger.crashes({plan.number})[plan.shards[POISON].key] == 3


def test_a_broken_host_does_not_spend_a_shards_budget_with_all_of_its_workers() -> None:
    """Whoever fails at once is idle first, and there are more of them on the host than a shard has retries."""
    ledger, plan = setup(40)
    run = fated(ledger, plan, lambda given: TASK if given.worker < 6 else COMMIT, workers=8)
    run.pool.host_of = lambda worker: f"host-{worker // 6}"
    run.loop.run()
    assert not ledger.missing(plan)


def test_a_shard_does_not_wait_for_a_worker_that_is_busy_isolating_another() -> None:
    ledger, plan = setup(2)
    for _ in range(3):
        ledger.record_crash(plan.shards[0], CRASH, None, run_id="", at="")  # type: ignore[arg-type]
    fails_once = iter([STORAGE])

    def fate(given: Given) -> Fate:
        if given.shard.index == 1:
            return next(fails_once, COMMIT)
        return COMMIT if run.pool.now > 5000 else HANG

    run = fated(ledger, plan, fate, workers=2)
    run.loop.interrupted = lambda: not ledger.missing(plan) or run.pool.now > 1000
    with pytest.raises(Interrupted):
        run.loop.run()
    assert [shard.index for shard in ledger.missing(plan)] == [0]


def test_a_failing_shard_goes_to_other_workers_and_to_the_same_one_only_where_there_is_no_other() -> None:
    ledger, plan = setup(40)
    run = fated(ledger, plan, poison(TASK), workers=4)
    with pytest.raises(RunFailed, match=r"(?s)on workers 0, 1, 2, 3; .*Traceback: line 7"):
        run.loop.run()
    assert sorted(given.worker for given in run.attempts_at(POISON)) == [0, 1, 2, 3]
    alone = fated(ledger, plan, poison(TASK), workers=1)
    with pytest.raises(RunFailed, match=r"on worker 0; limits\.task_retries allows 3"):
        alone.loop.run()


def test_an_error_in_every_shard_ends_the_run_after_a_few_attempts_and_not_after_a_pass_over_all() -> None:
    ledger, plan = setup(500)
    run = fated(ledger, plan, lambda _: TASK, workers=4)
    with pytest.raises(RunFailed):
        run.loop.run()
    assert len(run.pool.given) < 60


def test_a_storm_of_storage_faults_is_waited_out() -> None:
    """Twenty retries in a second would be spent long before it is over."""
    ledger, plan = setup(30)
    run = fated(ledger, plan, lambda _: STORAGE if run.pool.now < 600 else COMMIT, workers=4)
    tally = run.loop.run()
    assert not ledger.missing(plan)
    assert 600 < run.pool.now < 900
    assert tally.failures["infra"] < 30 * 21


def test_a_fault_while_listing_is_tried_again_and_ten_in_a_row_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, plan = setup(60)
    listing, faults = ledger.present, iter(range(5))

    def present(asked: Plan) -> set[str]:
        if next(faults, None) is not None:
            raise StoreError("503")
        return listing(asked)

    run = fated(ledger, plan, lambda _: COMMIT)
    monkeypatch.setattr(ledger, "present", present)
    run.loop.run()
    assert run.told.getvalue().count("trying again: 503") == 5

    other, plan = setup(60)
    run = fated(other, plan, lambda _: HANG)
    monkeypatch.setattr(other, "present", lambda _: (_ for _ in ()).throw(StoreError("503")))
    with pytest.raises(RunFailed, match="could not be listed 10 times in a row: 503"):
        run.loop.run()


# -------------------------------------------------------------------------------------------- report


def test_the_report_tells_every_failure_and_the_last_lines_their_number_by_kind() -> None:
    ledger, plan = setup()
    fates = iter([TASK, STORAGE])

    def fate(given: Given) -> Fate:
        return next(fates, COMMIT) if given.shard.index == 11 else poison()(given)

    run = fated(ledger, plan, fate, starts=lambda number: STORAGE if number == 1 else COMMIT)
    tally = run.loop.run()
    report = Report(run_id="r", job="j", root=ROOT, output="o", started="", plans=[1], **tally.figures(Price()))
    assert report.retries == sum(report.retries_by_code.values()) == len(report.failures) - 1
    assert (report.failed_starts, report.failures_left_out) == (1, 0)
    assert {f["code"] or f["kind"] for f in report.failures} == {"crashed", "task", "infra"}
    (bug,) = [f for f in report.failures if f["kind"] == "task"]
    assert (bug["shard"], bug["budget"], bug["attempt"]) == ("00000001/00000011", "task", 1)
    assert "a row group 11 rows 0:10" in bug["rows"]
    assert bug["traceback"] == "Traceback: line 7"
    json.dumps(report.failures)
    assert "1 task, 1 infra" in summary(report).replace("1 infra, 1 task", "1 task, 1 infra")
    assert "workers that did not start: 1" in summary(report)


def test_a_night_full_of_failures_does_not_make_a_report_without_end() -> None:
    ledger, plan = setup(60)
    left = {"n": 400}

    def fate(_: Given) -> Fate:
        left["n"] -= 1
        return PREEMPTED if left["n"] > 0 else COMMIT

    tally = fated(ledger, plan, fate).loop.run()
    assert len(tally.failures_kept) == 200
    assert tally.figures(Price())["failures_left_out"] == tally.failures.total() - 200 > 100


# ---------------------------------------------------------------------------------- whatever happens

FATES = st.sampled_from([COMMIT, COMMIT, COMMIT, CRASH, MEMORY, NODE, PREEMPTED, STORAGE, TASK, DATA, HANG])


@settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis_given(st.data())
def test_whatever_happens_every_shard_is_committed_or_set_aside_or_the_run_ends_with_a_budget_named(
    data: st.DataObject,
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop_module, "POLL_S", 60.0)
        _begin_at(patched, data.draw(st.integers(0, 5), "the first shard"))
        ledger, plan = setup(data.draw(st.integers(1, 6), "shards"))
        curse = data.draw(st.dictionaries(st.integers(0, 5), FATES, max_size=2), "shards that always end so")
        mishaps = data.draw(st.lists(FATES, max_size=40), "what happens to the first attempts at others")
        starts = data.draw(st.lists(st.sampled_from([COMMIT, NODE, HANG]), max_size=6), "the first starts")
        limits = Limits(crash_retries=data.draw(st.integers(0, 2)), infra_retries=data.draw(st.integers(0, 20)))
        following = iter(mishaps)

        def fate(given: Given) -> Fate:
            cursed = curse.get(given.shard.index, COMMIT)
            if cursed is PREEMPTED or (given.isolated_s is not None and data.draw(st.booleans(), "isolation helps")):
                cursed = COMMIT  # a shard that is preempted for ever would go on for ever
            return cursed if cursed != COMMIT else next(following, COMMIT)

        run = fated(
            ledger,
            plan,
            fate,
            starts=lambda number: starts[number] if number < len(starts) else COMMIT,
            workers=data.draw(st.integers(1, 3), "workers"),
            limits=limits.model_copy(update={"stall_s": 1000.0}),
        )
        run.loop.interrupted = lambda: _too_long(run)
        try:
            tally = run.loop.run()
        except RunFailed as error:
            assert re.search("_retries allows|in isolation|no worker can start", str(error))  # noqa: PT017
        else:
            aside = {shard.index for shard, _ in tally.set_aside}
            assert {shard.index for shard in ledger.missing(plan)} == aside
        kept = [failure for failure in run.loop.tally.failures_kept if failure["shard"]]
        assert run.loop.tally.failures == Counter(failure["code"] or failure["kind"] for failure in kept)


def _too_long(run: Fated) -> bool:
    assert run.pool.now < 3e6, "it goes on for ever"
    return False


@settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis_given(stops=st.lists(st.integers(1, 15), max_size=4), retries=st.integers(0, 3), workers=st.integers(1, 3))
def test_runs_that_are_killed_at_any_time_count_the_crashes_of_a_shard_together(
    stops: list[int], retries: int, workers: int
) -> None:
    ledger, plan = setup(6)
    died: list[Given] = []

    def fate(given: Given) -> Fate:
        doomed = poison()(given)
        died.extend([given] if doomed is CRASH else [])
        return doomed

    for stop in [*stops, None]:
        run = fated(ledger, plan, fate, workers=workers, limits=Limits(crash_retries=retries))
        if stop is not None:
            run.loop.interrupted = lambda run=run, stop=stop: len(run.pool.given) >= stop
            try:
                run.loop.run()
            except Interrupted:
                continue
        run.loop.run()
    assert not ledger.missing(plan)
    counts = ledger.crashes({plan.number})
    assert counts.get(plan.shards[POISON].key) == len(died) == retries + 1


def test_a_store_without_crashes_has_none_to_tell() -> None:
    assert Ledger(MemoryStore(), ROOT).crashes({1}) == {}


def test_a_driver_that_was_held_up_for_hours_does_not_take_its_workers_for_stuck() -> None:
    """Stopped, or on a machine that was moved: their outcomes wait, some of them are yet to come in."""
    ledger, plan = setup(30)
    run, held_up_s, polls = fated(ledger, plan, lambda _: COMMIT), 0.0, iter(range(1000))
    run.loop.clock = lambda: run.pool.now + held_up_s
    poll = run.pool.poll

    def held_up(timeout_s: float) -> Any:
        nonlocal held_up_s
        if next(polls) == 10:
            held_up_s = 20_000.0
            return []
        return poll(timeout_s)

    run.pool.poll = held_up  # type: ignore[method-assign]
    tally = run.loop.run()
    assert held_up_s
    assert tally.failures.total() == 0


def test_a_run_that_cannot_read_what_crashed_before_leaves_nothing_running() -> None:
    ledger, plan = setup()
    closed: list[str] = []
    pool = SimpleNamespace(close=lambda: closed.append("pool"))

    def unread(_: object) -> dict[str, int]:
        raise StoreError("503")

    ledger.crashes = unread  # type: ignore[method-assign]
    with pytest.raises(StoreError):
        fated(ledger, plan, lambda _: COMMIT, pool=pool)
    assert closed == ["pool"]


def test_a_hang_is_known_by_the_rate_of_an_earlier_run_too() -> None:
    ledger, plan = setup(1)
    hangs_once = iter([HANG])
    run = fated(ledger, plan, lambda _: next(hangs_once, COMMIT), rate_before=10.0)
    run.loop.run()
    assert policy.STALL_LEAST_S < run.pool.now < policy.STALL_LEAST_S + 60
