"""Nights of any shape, made up by Hypothesis: runs begin, go on, fail, die and begin again; files come and change."""

from __future__ import annotations

from contextlib import ExitStack
from functools import cache

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from jobs.errors import StintError
from tests.model.faults import Fault, faults_of
from tests.model.oracle import judge
from tests.model.scenario import Change, Scenario, Stage
from tests.model.scheduler import Actor
from workers.storage.errors import StoreError

RUNS_AT_ONCE = 3
FILES = st.sampled_from(["a.jpg", "b.jpg", "c.jpg", "late.jpg"])
WHICH = st.integers(0, RUNS_AT_ONCE - 1)


@cache
def made_ready() -> Stage:
    """Once for all nights, which begin alike."""
    return Stage(Scenario("nights", {"b.jpg": b"b"}, before={"a.jpg": b"a"}, on_change="rescore", shard_rows=2))


class Nights(RuleBasedStateMachine):
    """The rules are what the world does to runs; what the runs do is the real code."""

    def __init__(self) -> None:
        super().__init__()
        self.stage = made_ready()
        self._open = ExitStack()
        self._open.enter_context(self.stage.played())
        self.world = self.stage.new_world()

    def _running(self, which: int) -> Actor:
        running = self.world.running()
        return running[which % len(running)]

    @precondition(lambda self: len(self.world.running()) < RUNS_AT_ONCE)
    @rule()
    def start_run(self) -> None:
        self.world.start(f"run {len(self.world.actors)}", self.stage.body())

    @precondition(lambda self: self.world.running())
    @rule(which=WHICH, calls=st.integers(1, 12))
    def step(self, which: int, calls: int) -> None:
        actor = self._running(which)
        while calls and not actor.ended:
            self.world.step(actor)
            calls -= 1

    @precondition(lambda self: self.world.running())
    @rule(which=WHICH, kind=st.integers(0, len(Fault) - 1))
    def fault(self, which: int, kind: int) -> None:
        actor = self._running(which)
        assert actor.pending is not None
        faults = faults_of(write=actor.pending.write, by_worker=actor.by_worker)
        self.world.step(actor, faults[kind % len(faults)])

    @precondition(lambda self: self.world.running())
    @rule(which=WHICH)
    def crash(self, which: int) -> None:
        self.world.step(self._running(which), Fault.CRASH_BEFORE)

    @precondition(lambda self: self.world.running())
    @rule()
    def restart(self) -> None:
        """Everything dies at once, and one run begins again."""
        for actor in self.world.running():
            self.world.step(actor, Fault.CRASH_BEFORE)
        self.start_run()

    @precondition(lambda self: self.world.in_flight)
    @rule(which=st.integers(0, 9))
    def write_arrives(self, which: int) -> None:
        self.world.arrive(which % len(self.world.in_flight))

    @rule(file=FILES, data=st.sampled_from([b"1", b"2"]))
    def deliver_or_change_file(self, file: str, data: bytes) -> None:
        Change(file, data).apply(self.world)

    @rule(file=FILES)
    def delete_file(self, file: str) -> None:
        Change(file, None).apply(self.world)

    @invariant()
    def nothing_that_is_visible_ever_changes(self) -> None:
        assert self.world.bucket.history == []

    @invariant()
    def runs_end_in_errors_that_say_what_to_do(self) -> None:
        for actor in self.world.actors:
            if isinstance(actor.error, Exception):
                assert isinstance(actor.error, StintError | StoreError), actor.error

    def teardown(self) -> None:
        """Whatever has happened: one run without faults, and everything is there once."""
        try:
            Change("always.jpg", b"there").apply(self.world)  # no input at all is an error of its own
            for actor in self.world.running():
                self.world.step(actor, Fault.CRASH_BEFORE)
            while self.world.in_flight:
                self.world.arrive()
            last = self.world.start("last", self.stage.body())
            while not last.ended:
                self.world.step(last)
            assert last.outcome == "complete", last.error
            found = judge(self.stage, quiet=True)
            assert (found.problems, found.lost, found.doubled) == ((), 0, 0)
        finally:
            self.world.abandon()
            self._open.close()


def run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Nights,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )


def test_whatever_happens_in_the_nights_one_quiet_run_leaves_every_row_there_once() -> None:
    run_machine(examples=60, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_whatever_happens_in_many_nights_one_quiet_run_leaves_every_row_there_once() -> None:
    run_machine(examples=700, steps=60)
