"""What measurements mean: ratios of turns, rungs, steady rates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.measure.rates import Step, climb, ladder_table, ratio, steady_rate
from tests.benchmarks.peers.scoring import steady_rate_of


def step(name: str, cores: int = 1) -> Step:
    return name, "something", cores


def test_the_ratio_is_the_median_of_the_turns_and_not_that_of_two_medians() -> None:
    # The machine halves its clock after the first turn: each turn says 2, two medians would say 1.
    assert ratio([(10, 20), (5, 10), (5, 10)]) == (2.0, 0.0)


def test_a_spread_is_half_the_distance_between_the_quartiles() -> None:
    middle, spread = ratio([(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)])
    assert middle == 3
    assert spread == pytest.approx((4 - 2) / 2 / 3)


def test_rungs_compare_rates_a_core() -> None:
    first, second, third = climb(
        [step("a", cores=2), step("b", cores=1), step("c", cores=2)],
        [[(10, 10), (10, 10)], [(12, 24), (8, 16)]],
    )
    assert (first.over_before, first.over_first, first.per_core) == (None, 1.0, 5.0)
    assert (second.over_before, second.over_first) == (2.0, 2.0)
    assert (third.over_before, third.over_first, third.rate) == (1.0, 2.0, 20)


def test_what_is_over_the_first_is_the_product_of_turns_and_not_of_distant_minutes() -> None:
    # Between the two pairs of rungs the machine has become three times as fast.
    rungs = climb([step("a"), step("b"), step("c")], [[(1, 2)], [(6, 12)]])
    assert rungs[-1].over_first == 4


def test_steps_and_turns_must_match() -> None:
    with pytest.raises(ValueError, match="need 1 lists"):
        climb([step("a"), step("b")], [])
    with pytest.raises(ValueError, match="need 1 lists"):
        climb([step("a"), step("b")], [[]])


def test_the_table_has_a_line_a_rung_and_no_ratio_on_the_first() -> None:
    lines = ladder_table(climb([step("first"), step("second")], [[(2, 3)]]))
    assert len(lines) == 3
    assert "1.50 ±0.0%" in lines[2]
    assert "±" not in lines[1]


RATES = st.floats(0.1, 1000)


@given(rate=RATES, workers=st.integers(1, 16), rows=st.integers(1, 5000), shards_each=st.integers(4, 40), start=RATES)
def test_workers_in_step_are_measured_exactly(
    rate: float, workers: int, rows: int, shards_each: int, start: float
) -> None:
    done = [(start + (n + 1) * rows / rate, rows) for n in range(shards_each) for _ in range(workers)]
    assert steady_rate(done, workers) == pytest.approx(workers * rate)


@given(rate=RATES, workers=st.integers(1, 16), rows=st.integers(1, 5000), shards=st.integers(40, 80))
def test_workers_evenly_out_of_step_are_measured_exactly(rate: float, workers: int, rows: int, shards: int) -> None:
    done = [((n + 1) * rows / rate, rows) for n in range(shards)]
    assert steady_rate(done, workers) == pytest.approx(rate)


@given(
    rates=st.lists(RATES, min_size=1, max_size=8),
    rows=st.integers(1, 64),
    late=st.floats(0, 10),
    batches=st.integers(200, 300),
)
def test_streams_of_constant_rates_add_up_exactly(rates: list[float], rows: int, late: float, batches: int) -> None:
    """However late each starts, and however soon it runs dry."""
    fastest = max(rates)
    streams = [
        [(late * number * rows / fastest + n * rows / rate, rows) for n in range(batches)]
        for number, rate in enumerate(rates)
        if rate > fastest / 20
    ]
    measured = steady_rate_of(streams)
    assert measured == pytest.approx(sum(rate for rate in rates if rate > fastest / 20))


def test_too_few_completions_have_no_steady_rate() -> None:
    assert steady_rate([(1.0, 10), (2.0, 10), (3.0, 10)], workers=2) is None
    assert steady_rate([], workers=1) is None
    assert steady_rate_of([[(1.0, 10)], [(1.0, 10), (2.0, 10)]]) is None
    assert steady_rate_of([]) is None


def test_neither_the_start_nor_the_tail_counts_as_steady() -> None:
    """Two workers, the second of which comes late and goes on alone at the end."""
    early = [(float(n), 10) for n in range(10, 30)]
    late = [(float(n), 10) for n in range(20, 60)]
    assert steady_rate_of([early, late]) == pytest.approx(20)
