"""The end of a run: largest shards first, smaller shards at the end of the plan, second attempts of what is late.

`pytest tests/jobs/run/test_tail.py -s` prints how long the tail is with and without each, in made-up time: from when a
worker is first out of work to the end of the run.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import pytest

from jobs.plan.sharding import Bounds, cut
from jobs.run import loop
from jobs.scaling import speculation
from jobs.spec.schema import Workers
from tests.support.fakes import opened
from tests.support.night import RATE, Kind, Morning, Night, simulate

WORKERS = 32
SHARD_ROWS = 4000
SHARD_S = SHARD_ROWS / RATE
ROWS = SHARD_ROWS * WORKERS * 10
TENTH = {5: 0.1}
"""One node is ten times slower than the others."""
GROUPS = [100] * (ROWS // 100)
"""Row groups so small that shards can be cut as planned."""


@pytest.fixture(autouse=True)
def _no_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "RELIST_S", 1e9)
    monkeypatch.setattr(loop, "POLL_S", 1.0)
    monkeypatch.setattr(loop, "random", SimpleNamespace(randrange=lambda shards: 0))  # where the run begins


def sizes(*, tapered: bool) -> list[int]:
    """Rows of the shards that the planner cuts, with and without smaller ones at the end."""
    bounds = Bounds(SHARD_ROWS, SHARD_ROWS, 2**40)
    finer = replace(bounds, workers=WORKERS, last_rows=200)
    return list(map(int, cut([opened("a", *GROUPS)], finer if tapered else bounds).shards.rows))


def mixed() -> list[int]:
    """Shards as files leave them that are not cut any further: most small, and a few large ones last."""
    large = [8000] * (WORKERS // 4)
    return [1000] * ((ROWS - sum(large)) // 1000) + large


def night(shards: list[int], **changes: object) -> Night:
    kinds = [Kind(slots=1, boot_s=(90, 91))]
    return replace(Night(shards=shards, kinds=kinds, workers=Workers(max=WORKERS)), **changes)  # type: ignore[arg-type]


def told(name: str, made: Night, *, largest_first: bool = True, second_attempts: bool = True) -> Morning:
    with ExitStack() as without:
        if not largest_first:
            without.enter_context(mock.patch("jobs.run.backlog.size_class", return_value=0))
        if not second_attempts:
            without.enter_context(mock.patch.object(speculation, "WORTH_TIMES", 1e9))
        morning = simulate(made)
    tally = morning.tally
    seconds = f"{tally.speculative_attempts} second attempts, {tally.speculative_wins} of them first"
    print(f"{name:<62} tail {morning.tail_s:6.0f} s, run {morning.took_h * 3600:6.0f} s; {seconds}")
    assert tally.rows_ok == sum(made.sizes)
    assert tally.shards == len(made.sizes)
    return morning


@pytest.fixture(scope="module", autouse=True)
def _heading() -> None:
    print(f"\n{WORKERS} workers, a shard of {SHARD_ROWS} rows takes {SHARD_S:.0f} s, and the slow one ten times that")


def test_a_worker_ten_times_slower_holds_up_the_end_by_no_more_than_the_others_take_for_its_shards() -> None:
    plain, tapered = sizes(tapered=False), sizes(tapered=True)
    before = told("one slow: nothing", night(plain, slow=TENTH), second_attempts=False)
    finer = told("one slow: smaller shards at the end", night(tapered, slow=TENTH), second_attempts=False)
    second = told("one slow: second attempts", night(plain, slow=TENTH))
    both = told("one slow: both", night(tapered, slow=TENTH))
    assert before.tail_s > 5 * SHARD_S
    assert second.tail_s < 2.5 * SHARD_S
    assert both.tail_s < 2.5 * SHARD_S
    assert both.tail_s < min(finer.tail_s, before.tail_s) / 3
    assert 0 < both.tally.speculative_wins <= both.tally.speculative_attempts <= 4
    assert both.node_hours < before.node_hours


def test_a_slow_worker_that_has_not_ended_any_shard_yet_is_noticed_when_it_is_late() -> None:
    """Nothing is known of its speed but that the others had long been done."""
    short = sizes(tapered=False)[: 3 * WORKERS]
    before = told("slow from its first shard on: nothing", night(short, slow={5: 0.06}), second_attempts=False)
    after = told("slow from its first shard on: second attempts", night(short, slow={5: 0.06}))
    assert before.took_h * 3600 > 15 * SHARD_S
    assert after.took_h * 3600 < 8 * SHARD_S
    assert after.tally.speculative_wins >= 2


def test_large_shards_go_first_so_that_none_is_begun_when_the_others_are_about_to_end() -> None:
    as_planned = told("large and small shards: as planned", night(mixed()), largest_first=False, second_attempts=False)
    largest = told("large and small shards: largest first", night(mixed()), second_attempts=False)
    assert largest.tail_s < as_planned.tail_s / 2


def test_smaller_shards_at_the_end_of_a_plan_shorten_its_tail() -> None:
    even = told("equal workers: even shards", night(sizes(tapered=False)), second_attempts=False)
    tapered = told("equal workers: smaller shards at the end", night(sizes(tapered=True)), second_attempts=False)
    assert tapered.tail_s < even.tail_s / 3


@pytest.mark.parametrize("seed", range(3))
def test_without_a_slow_worker_next_to_nothing_is_tried_twice(seed: int) -> None:
    even = told(f"equal workers, seed {seed}", night(sizes(tapered=False), seed=seed))
    tapered = told(f"equal workers, smaller shards at the end, seed {seed}", night(sizes(tapered=True), seed=seed))
    assert even.tally.speculative_attempts + tapered.tally.speculative_attempts <= 1
