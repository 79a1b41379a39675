"""The ledger under every fault at every call, runs interleaved: nothing lost, nothing doubled. `pytest -s` shows it.

The real driver runs over a modelled store (tests/model); what is explored is said by each test, and explored wholly
unless it says "at random".
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Iterator
from time import sleep as really_sleep
from unittest import mock

import fsspec
import pytest

import jobs.ledger.ledger
import jobs.run.run
import workers.storage.lookahead
import workers.storage.retries
from jobs.run.backlog import Backlog
from jobs.run.run import Run
from tests.model.explore import Explorer
from tests.model.faults import Fault
from tests.model.pool import BAD, Slow
from tests.model.scenario import Change, Compaction, Scenario, Stage
from tests.model.search import HEADING, Bounds, Figures
from tests.model.tables import APPEND, DROP, MADE, REWRITE, compaction, of_one

A, B, C = {"a.jpg": b"a"}, {"b.jpg": b"b"}, {"c.jpg": b"c"}
BAD_FILE = {"bad.jpg": BAD}
LATE_FILE = Change("late.jpg", b"late", modified=-1)
IN_FLIGHT = frozenset({Fault.LATE, Fault.CRASH_LATE})


@pytest.fixture(scope="module", autouse=True)
def table() -> Iterator[list[Figures]]:
    """Shown at the end: what was explored."""
    figures: list[Figures] = []
    yield figures
    print("\n" + "\n".join([HEADING, *(found.line() for found in figures)]))


def explored(table: list[Figures], scenario: Scenario, bounds: Bounds) -> Figures:
    """Explore wholly, and hold it to the promise."""
    return held(table, Explorer(Stage(scenario), bounds).exhaust())


def sampled(table: list[Figures], scenario: Scenario, bounds: Bounds, executions: int, seed: int) -> Figures:
    return held(table, Explorer(Stage(scenario), bounds).sample(executions, seed))


def held(table: list[Figures], figures: Figures) -> Figures:
    table.append(figures)
    assert not figures.problems, str(figures)
    assert (figures.lost, figures.doubled) == (0, 0)
    return figures


def test_the_first_run_ever_with_every_fault_at_every_call(table: list[Figures]) -> None:
    figures = explored(table, Scenario("one run, nothing there yet", A | B, first_night=True), Bounds())
    assert set(figures.faults) == {fault.value for fault in Fault}
    assert figures.executions > 10 * figures.calls


def test_a_second_model_never_leaves_readers_between_two_with_every_fault_at_every_call(table: list[Figures]) -> None:
    figures = explored(table, Scenario("one run, a second model", A, earlier_model=True), Bounds())
    assert figures.executions > figures.calls


def test_a_late_file_comes_at_any_time_of_two_runs(table: list[Figures]) -> None:
    scenario = Scenario("two runs, a late file", A, runs=2, before=B, changes=[LATE_FILE])
    explored(table, scenario, Bounds(faults=0, preemptions=1))


@pytest.mark.parametrize("on_change", ["report", "rescore"])
def test_a_file_changes_at_any_time_of_a_run_and_another_vanishes(table: list[Figures], on_change: str) -> None:
    changes = [Change("a.jpg", b"changed"), Change("b.jpg", None)]
    scenario = Scenario(f"one run, files change: {on_change}", A | B, changes=changes, on_change=on_change)
    explored(table, scenario, Bounds(faults=0))


def test_a_file_that_is_scored_again_with_every_fault_at_every_call(table: list[Figures]) -> None:
    explored(table, Scenario("one run, asked to score again", {}, before=A | B, again="a.jpg"), Bounds())


def test_a_file_that_is_scored_again_changes_or_vanishes_at_any_time_of_the_run(table: list[Figures]) -> None:
    changes = [Change("a.jpg", None), Change("a.jpg", b"changed")]
    for name, happens in (("vanishes", changes[:1]), ("changes", changes[1:]), ("is back", changes)):
        scenario = Scenario(f"asked to score again, and it {name}", C, before=A | B, again="a.jpg", changes=happens)
        explored(table, scenario, Bounds(faults=0))


def test_two_runs_that_are_both_asked_to_score_a_file_again_with_any_preemption(table: list[Figures]) -> None:
    scenario = Scenario("two runs, asked to score again", {}, runs=2, before=A | B, again="a.jpg")
    explored(table, scenario, Bounds(faults=0, preemptions=1))


def test_two_runs_with_any_two_preemptions(table: list[Figures]) -> None:
    explored(table, Scenario("two runs", A | B, runs=2), Bounds(faults=0, preemptions=2))


def test_two_runs_on_their_first_night_with_any_preemption(table: list[Figures]) -> None:
    scenario = Scenario("two runs, nothing there yet", A | B, runs=2, first_night=True)
    explored(table, scenario, Bounds(faults=0, preemptions=1))


@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_a_run_of_an_earlier_release_and_one_of_this_begin_a_root_with_any_two_preemptions(
    table: list[Figures], which: int
) -> None:
    """Never is there a plan under two names; the run that may not go on says so, and the next brings all to an end."""
    name = f"an earlier release {'first' if which == 0 else 'second'}, nothing there yet"
    scenario = Scenario(name, A, runs=2, first_night=True, earlier=frozenset({which}))
    explored(table, scenario, Bounds(faults=0, preemptions=2))


@pytest.mark.parametrize("which", [0, 1], ids=["first", "second"])
def test_a_run_of_an_earlier_release_and_one_of_this_go_on_with_a_root_with_any_two_preemptions(
    table: list[Figures], which: int
) -> None:
    scenario = Scenario(f"an earlier release's root, {which}", A, runs=2, before=B, earlier=frozenset({which}))
    explored(table, scenario, Bounds(faults=0, preemptions=2))


@pytest.mark.parametrize("slow", list(Slow), ids=lambda slow: slow.name.lower())
def test_a_shard_that_two_workers_try_with_every_fault_at_every_call(table: list[Figures], slow: Slow) -> None:
    """Either dies before it commits or after, loses the answer, or its write comes late, before the other's or not."""
    scenario = Scenario(f"one run, two attempts, {slow.value}", A | B, slow=slow)
    doubles = mock.patch.object(Backlog, "double", autospec=True, side_effect=Backlog.double)
    scores = mock.patch.object(Run, "_score", autospec=True, side_effect=Run._score)
    with doubles as double, scores as score:
        figures = explored(table, scenario, Bounds(every_call=False))
    assert double.call_count > score.call_count / 2 > 20
    assert Fault.WORKER_LOST_LATE.value in figures.faults


def test_a_plan_is_accepted_with_every_fault_at_every_call(table: list[Figures]) -> None:
    figures = explored(table, Scenario("accepted, then one run", A, before=BAD_FILE, accept=True), Bounds())
    assert figures.executions > 10 * figures.calls


def test_who_accepts_leaves_no_readers_between_two_models_with_every_fault_at_every_call(table: list[Figures]) -> None:
    scenario = Scenario("accepted, of a second model", {}, before=BAD_FILE, accept=True, earlier_model=True)
    explored(table, scenario, Bounds())


def test_two_accept_a_plan_with_any_preemption_and_a_write_in_flight(table: list[Figures]) -> None:
    bounds = Bounds(faults=1, preemptions=1, every_call=False, only=IN_FLIGHT)
    explored(table, Scenario("accepted twice", {}, runs=2, before=BAD_FILE, accept=True), bounds)


def test_the_output_table_of_a_run_that_dies_or_hears_nothing_at_any_call(table: list[Figures]) -> None:
    """Between the two logs: the done record, the edition, the commit to the table."""
    bounds = Bounds(every_call=False, only=IN_FLIGHT | {Fault.CRASH_BEFORE, Fault.LOST_ACK})
    explored(table, Scenario("one run, a table", A, before=B, output_table=True), bounds)


def test_the_output_table_of_a_file_that_is_scored_again_with_any_preemption(table: list[Figures]) -> None:
    scenario = Scenario("two runs, a table, again", {}, runs=2, before=A | B, again="a.jpg", output_table=True)
    explored(table, scenario, Bounds(faults=0, preemptions=1))


def test_a_table_is_appended_to_compacted_and_cleaned_at_any_time_of_a_run(table: list[Figures]) -> None:
    scenario = Scenario("one run, a table, appended and compacted", MADE, changes=[APPEND, compaction()], table=True)
    explored(table, scenario, Bounds(faults=0))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(REWRITE, id="rewritten"),
        pytest.param(DROP, id="deleted from", marks=pytest.mark.slow),
        pytest.param(of_one(), id="compacted", marks=pytest.mark.slow),
    ],
)
def test_a_table_changes_at_any_time_of_two_runs(table: list[Figures], change: Change) -> None:
    scenario = Scenario("two runs, a table changes", {}, before=MADE, runs=2, changes=[change], table=True)
    explored(table, scenario, Bounds(faults=0, preemptions=1))


def test_a_table_is_compacted_while_a_run_dies_at_any_call(table: list[Figures]) -> None:
    scenario = Scenario("one run that dies, a table compacted", MADE, changes=[of_one()], table=True)
    explored(table, scenario, Bounds(only=frozenset({Fault.CRASH_BEFORE}), every_call=False))


def test_three_runs_at_random(table: list[Figures]) -> None:
    scenario = Scenario("three runs, 3 faults, at random", A | B | C, runs=3, changes=[LATE_FILE], shard_rows=2)
    sampled(table, scenario, Bounds(faults=3, preemptions=99), 150, seed=4)


def test_an_execution_repeats_itself_bit_for_bit_whatever_the_time_of_day() -> None:
    stage = Stage(Scenario("two runs", A, runs=2))

    def execution() -> dict[str, bytes]:
        world = stage.new_world()
        for name in "AB":
            world.start(name, stage.body())
        while running := world.running():
            for actor in running:
                world.step(actor)
        return dict(world.bucket.objects)

    with stage.played():
        before = execution()
        really_sleep(0.01)
        again = execution()
    assert again == before
    runs = {key.split("/")[3] for key in before if "/_stint/runs/" in key}
    assert len(runs) == 2, "at one time of day, and yet not of one name"


def test_what_is_taken_over_from_a_process_is_given_back() -> None:
    def taken() -> list[object]:
        names = [time.sleep, time.monotonic, uuid.uuid4, random.random, random.uniform]
        names += [workers.storage.lookahead.ThreadPoolExecutor, workers.storage.retries.sleep, jobs.run.run.datetime]
        return [*names, jobs.run.run.Loop, fsspec.get_filesystem_class("s3"), dict(os.environ)]

    before = taken()
    with Stage(Scenario("one run", A)).played():
        assert not any(now == then for now, then in zip(taken(), before, strict=True))
    assert taken() == before


# --------------------------------------------------------------------------------------- the whole of it


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_later_run_with_every_fault_at_every_call(table: list[Figures]) -> None:
    explored(table, Scenario("one run, a second night", A | C, before=B), Bounds())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_runs_whose_workers_try_shards_twice_with_any_preemption_and_any_fault(table: list[Figures]) -> None:
    scenario = Scenario("two runs, two attempts, any fault", A | B, runs=2, slow=Slow.SECOND)
    explored(table, scenario, Bounds(faults=1, preemptions=1, every_call=False))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("which", ["in flight", "told", "other"])
def test_two_runs_with_any_two_preemptions_and_any_fault(table: list[Figures], which: str) -> None:
    """Any fault in three parts, for as many processes."""
    late = {fault for fault in Fault if fault.late}
    told = {Fault.CONFLICT_409, Fault.PRECONDITION_412, Fault.TIMEOUT, Fault.OUTAGE}
    retried = {Fault.SLOW_DOWN_503}  # as after a timeout before the write; at every call of one run it is tried, too
    only = frozenset({"in flight": late, "told": told, "other": {*Fault} - late - told - retried}[which])
    bounds = Bounds(faults=1, preemptions=2, every_call=False, only=only)
    explored(table, Scenario(f"two runs, any fault: {which}", A, runs=2), bounds)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_one_run_with_any_two_faults(table: list[Figures]) -> None:
    explored(table, Scenario("one run, two faults", A), Bounds(faults=2, every_call=False))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_table_is_appended_to_and_compacted_with_any_fault(table: list[Figures]) -> None:
    scenario = Scenario("one run, a table, any fault", {}, before=MADE, changes=[APPEND, compaction()], table=True)
    explored(table, scenario, Bounds(every_call=False))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_late_file_with_any_fault(table: list[Figures]) -> None:
    scenario = Scenario("one run, a late file, any fault", A, before=B, changes=[LATE_FILE])
    explored(table, scenario, Bounds(every_call=False))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_changed_file_that_is_scored_again_with_any_fault(table: list[Figures]) -> None:
    scenario = Scenario(
        "one run, a changed file, any fault", {}, before=A, changes=[Change("a.jpg", b"changed")], on_change="rescore"
    )
    explored(table, scenario, Bounds(every_call=False))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_three_runs_with_any_two_preemptions(table: list[Figures]) -> None:
    explored(table, Scenario("three runs", A, runs=3), Bounds(faults=0, preemptions=2))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(3))
def test_three_runs_at_random_at_length(table: list[Figures], seed: int) -> None:
    changes = [LATE_FILE, Change("a.jpg", b"changed"), Change("b.jpg", None), Change("b.jpg", b"b")]
    scenario = Scenario(
        f"three runs, 6 faults, at random, seed {seed}", A | B | C, runs=3, before=B, changes=changes,
        shard_rows=2, on_change="rescore",
    )  # fmt: skip
    sampled(table, scenario, Bounds(faults=6, preemptions=99), 700, seed)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_output_table_of_two_runs_with_any_preemption_and_a_compaction(table: list[Figures]) -> None:
    scenario = Scenario("two runs, a table, compacted", A, runs=2, before=B, output_table=True, changes=[Compaction()])
    explored(table, scenario, Bounds(faults=0, preemptions=1))
