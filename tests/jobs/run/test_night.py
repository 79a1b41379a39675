"""Nights of twenty million images, simulated: the deadline is met, and node-hours stay near the ideal.

`pytest tests/jobs/run/test_night.py -s` prints the figures. The ideal is all work on perfectly packed nodes that start
and end at no cost.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobs.run import loop
from jobs.spec.schema import Workers
from tests.support.night import RATE, Kind, Morning, Night, simulate

HOURS = 6.0
SEEDS = (1, 2)
NIGHT = Night(rows=20_000_000, hours=HOURS)
GROUPS = Workers(
    max=256,
    groups=[{"labels": {"market": "spot"}, "patience_s": 300}, {"labels": {"market": "on-demand"}}],  # type: ignore
)
ON_DEMAND = Kind(labels={"market": "on-demand"})
FLAKY = {0: 4, 1: 0, 2: 2}


def spot(**changes: object) -> Kind:
    return replace(Kind(labels={"market": "spot"}), **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop looks up less often than in truth, which only makes it slower to act."""
    monkeypatch.setattr(loop, "POLL_S", 5.0)
    monkeypatch.setattr(loop, "RELIST_S", 1e9)


def told(name: str, night: Night) -> Morning:
    morning = simulate(night)
    print(f"{name}: {morning}; {morning.node_hours / night.ideal_node_hours:.2f} times the ideal")
    assert morning.tally.rows_ok >= night.rows
    return morning


@pytest.mark.parametrize(
    ("name", "night", "most"),
    [
        ("no earlier run", NIGHT, 1.05),
        ("an earlier run measured", replace(NIGHT, rate_before=RATE), 1.05),
        ("the earlier run was twice as fast", replace(NIGHT, rate_before=2 * RATE), 1.05),
        ("the earlier run was half as fast", replace(NIGHT, rate_before=RATE / 2), 1.05),
        ("nodes take 5 to 20 minutes", replace(NIGHT, kinds=[Kind(boot_s=(300, 1200))]), 1.1),
        ("every fifth node is lost each hour", replace(NIGHT, kinds=[Kind(lost_per_hour=0.2)]), 1.1),
        ("every node is lost once an hour", replace(NIGHT, kinds=[Kind(lost_per_hour=1.0)]), 1.15),
        ("nodes of two workers", replace(NIGHT, kinds=[Kind(slots=2, lost_per_hour=0.5)]), 1.1),
        ("an hour for half of it", replace(NIGHT, rows=10_000_000, hours=1.0), 1.15),
        ("little to do", replace(NIGHT, rows=300_000), 1.4),
    ],
)
def test_the_deadline_is_met_near_the_ideal_node_hours(name: str, night: Night, most: float) -> None:
    for seed in SEEDS:
        morning = told(name, replace(night, seed=seed))
        assert night.hours is not None
        assert morning.took_h <= night.hours
        assert morning.node_hours <= most * night.ideal_node_hours


@pytest.mark.parametrize("rows", [300_000, 20_000_000])
def test_a_deadline_costs_less_than_all_the_workers_that_there_may_be(rows: int) -> None:
    night = replace(NIGHT, rows=rows)
    sized, most = told("sized", night), told("always max", replace(night, hours=None))
    assert sized.peak < most.peak
    assert sized.node_hours < 0.95 * most.node_hours


def test_slow_nodes_are_made_up_for_by_more_of_them() -> None:
    """A third of the nodes is half as fast: 1.2 times the ideal of fast ones, were they drawn evenly."""
    for seed in SEEDS:
        assert told("slow nodes", replace(NIGHT, kinds=[Kind(speeds=(1, 1, 0.5))], seed=seed)).took_h <= HOURS


def test_places_that_another_run_holds_on_a_shared_node_are_not_waited_for_with_more_and_more_nodes() -> None:
    morning = told("a shared node", replace(NIGHT, rows=2_000_000, rate_before=RATE, neighbours=7))
    assert (morning.peak, morning.nodes) == (9, 1)


def test_a_deadline_that_cannot_be_met_takes_all_workers_and_ends_as_soon_as_they_can() -> None:
    night = replace(NIGHT, rows=40_000_000, hours=0.5)
    morning = told("too much", night)
    assert morning.peak == 256
    assert morning.took_h <= 1.1 * night.rows / RATE / 256 / 3600 + 0.1


def test_a_spot_group_that_never_comes_costs_its_patience_and_nothing_else() -> None:
    night = replace(NIGHT, workers=GROUPS, kinds=[spot(capacity=lambda now_s: 0), ON_DEMAND])
    morning = told("spot never comes", night)
    assert morning.took_h <= HOURS
    assert morning.node_hours <= 1.05 * night.ideal_node_hours


def test_spot_nodes_that_come_an_hour_late_take_the_work_over_from_on_demand_nodes() -> None:
    kinds = [spot(capacity=lambda now_s: 0 if now_s < 3600 else 99), ON_DEMAND]
    morning = told("spot comes after an hour", replace(NIGHT, workers=GROUPS, kinds=kinds))
    assert morning.took_h <= HOURS
    spot_h, on_demand_h = morning.node_hours_of
    assert on_demand_h < 0.3 * spot_h


def test_a_spot_group_that_comes_and_goes_is_filled_up_on_demand_in_time() -> None:
    flaky = spot(lost_per_hour=0.5, capacity=lambda now_s: FLAKY[int(now_s / 5000) % 3])
    for seed in SEEDS:
        morning = told("flaky spot", replace(NIGHT, workers=GROUPS, kinds=[flaky, ON_DEMAND], seed=seed))
        assert morning.took_h <= HOURS
        assert morning.node_hours <= 1.15 * NIGHT.ideal_node_hours


def test_a_night_is_the_same_from_the_same_seed() -> None:
    night = replace(NIGHT, rows=2_000_000, kinds=[Kind(lost_per_hour=0.5)])
    one, two = simulate(night), simulate(night)
    assert (one.took_h, one.node_hours, one.nodes) == (two.took_h, two.node_hours, two.nodes)
