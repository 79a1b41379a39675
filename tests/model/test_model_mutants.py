"""The model check has teeth: every mistake put into the code on purpose is found by it, and told by `verify`."""

from __future__ import annotations

import re
from unittest import mock

import pytest

import jobs.plan.job
from tests.model.explore import Explorer
from tests.model.mutants import MUTANTS, Mutant, creating, overwrite
from tests.model.scenario import Scenario, Stage
from tests.model.search import Figures
from workers.storage.errors import StoreDenied

MOST = 400
"""Executions until a mistake must be found."""


def explored(mutant: Mutant, *, mistaken: bool, most: int) -> Figures:
    stage = Stage(mutant.scenario)
    explorer = Explorer(stage, mutant.bounds, immutable=mutant.immutable)
    if not mistaken:
        return explorer.exhaust(most=most)
    with mutant.mistake(stage), mock.patch.object(jobs.plan.job, "probe"):  # the probe would refuse the worst of them
        return explorer.exhaust(until=mutant.told, most=most)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mistake_is_found_and_told_and_without_it_the_same_exploration_finds_nothing(mutant: Mutant) -> None:
    found = explored(mutant, mistaken=True, most=MOST)
    print(f"\n{mutant.name}: found by execution {found.executions}\n{found}")
    assert any(re.search(mutant.told, problem) for problem in found.problems)
    without = explored(mutant, mistaken=False, most=found.executions)
    assert not without.problems, str(without)


def test_a_store_that_overwrites_is_refused_before_anything_is_claimed() -> None:
    stage = Stage(Scenario("one run", {"a.jpg": b"a"}))
    with creating(overwrite)(stage), stage.played():
        world = stage.new_world()
        run = world.start("A", stage.body())
        while not run.ended:
            world.step(run)
    assert isinstance(run.error, jobs.plan.job.SpecError)
    assert isinstance(run.error.__cause__, StoreDenied)
    assert not any("/plans/" in path for path in world.bucket.objects)
