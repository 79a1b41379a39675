"""Successive halving of made-up candidates: its schedule, its fairness to drifting clocks, what it calls a tie."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.measure.halving import (
    FINALISTS,
    LAST_TURNS,
    TURNS,
    Arm,
    as_fast,
    halve,
    rounds_to_come,
    same,
    survivors,
    without_drift,
)
from workers.measure.messages import Unusable
from workers.measure.tune_node import Trialled

TRIAL = Trialled(images_per_s=0, decode_share=0.1, predict_share=0.9, threads_busy=1.0, peak_bytes=2**20)


class Machine:
    """Candidates of known rates on a clock of its own; noise and drift as told."""

    def __init__(
        self, rates: Mapping[str, float], *, noise: float = 0.0, drift: Callable[[float], float] = lambda _: 1.0,
        out: Mapping[str, str] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.rates, self.out = rates, out or {}
        self.now = 0.0
        self.slices: list[tuple[str, float]] = []
        self._noise, self._drift = noise, drift
        self._random = random.Random(seed)

    def clock(self) -> float:
        return self.now

    def measure(self, name: str, slice_s: float) -> Trialled | Unusable:
        if name in self.out:
            return Unusable(reason=self.out[name])
        self.slices.append((name, slice_s))
        rate = self.rates[name] * self._drift(self.now) * math.exp(self._random.gauss(0, self._noise))
        self.now += slice_s
        return replace(TRIAL, images_per_s=rate)

    def search(self, seconds: float, keep: tuple[str, ...] = ()) -> list[Arm]:
        return halve(list(self.rates), self.measure, seconds=seconds, clock=self.clock, keep=keep)


def named(number: int) -> dict[str, float]:
    return {f"c{n}": 100.0 + n for n in range(number)}


def simplest(arms: Sequence[Arm]) -> Arm:
    """Here that is the one with the least number."""
    return min(as_fast(arms), key=lambda arm: int(arm.candidate[1:]))  # type: ignore[index]


# ---------------------------------------------------------------------------------------------- schedule


def test_each_round_keeps_the_better_half_and_doubles_the_slices_within_the_time_given() -> None:
    machine = Machine(named(32))
    standings = machine.search(320)
    assert [rounds_to_come(n) for n in (32, 16, 8, 4, 1)] == [4, 3, 2, 1, 1]
    sizes = Counter(slice_s for _, slice_s in machine.slices)
    lengths = sorted(sizes)
    assert [sizes[s] for s in lengths] == [32 * TURNS, 16 * TURNS, FINALISTS * LAST_TURNS, 8 * TURNS]
    first, second, last, third = lengths
    assert (second / first, third / first) == (pytest.approx(2), pytest.approx(4))
    assert last == pytest.approx(80 / FINALISTS / LAST_TURNS)
    assert machine.now == pytest.approx(320)
    assert [s.candidate for s in standings[:4]] == ["c31", "c30", "c29", "c28"]
    assert [s.rounds for s in standings[:4]] == [4] * 4
    assert Counter(s.rounds for s in standings) == {4: 4, 3: 4, 2: 8, 1: 16}


def test_candidates_take_turns_there_and_back_again() -> None:
    machine = Machine(named(3))
    machine.search(18)
    order = [name for name, _ in machine.slices]
    assert order == ["c0", "c1", "c2", "c2", "c1", "c0"] * (LAST_TURNS // 2)


def test_those_to_be_kept_reach_the_last_round_whatever_their_rate() -> None:
    standings = Machine(named(32)).search(320, keep=("c0",))
    last = [s.candidate for s in standings if s.rounds == 4]
    assert sorted(last) == ["c0", "c29", "c30", "c31"]


@pytest.mark.parametrize(
    ("rates", "keep", "expected"),
    [
        (named(9), (), ["c4", "c5", "c6", "c7", "c8"]),
        (named(9), ("c0",), ["c0", "c5", "c6", "c7", "c8"]),
        (named(5), (), ["c1", "c2", "c3", "c4"]),
        (named(2), ("gone",), ["c0", "c1"]),
    ],
)
def test_the_better_half_survives_and_no_fewer_than_finalists(rates, keep, expected) -> None:  # type: ignore[no-untyped-def]
    assert survivors(rates, keep) == expected


def test_candidates_that_are_out_take_no_more_time_and_say_why() -> None:
    machine = Machine(named(8), out={"c7": "over the memory cap"})
    standings = machine.search(80)
    assert standings[-1].candidate == "c7"
    assert standings[-1].out == "over the memory cap"
    assert standings[0].candidate == "c6"
    assert "c7" not in dict(machine.slices)


def test_with_every_candidate_out_nothing_is_chosen() -> None:
    assert as_fast(Machine(named(3), out=dict.fromkeys(named(3), "no")).search(10)) == []


def test_when_starting_takes_too_long_those_that_were_reached_are_still_compared_well() -> None:
    machine = Machine(named(100))
    started: set[str] = set()

    def measure(name: str, slice_s: float) -> Trialled | Unusable:
        if name not in started:
            started.add(name)
            machine.now += 5  # 100 of them do not fit
        return machine.measure(name, slice_s)

    standings = halve(list(machine.rates), measure, seconds=300, clock=machine.clock)
    known = {s.candidate for s in standings if s.rate is not None}
    assert known == {f"c{n}" for n in range(len(known))}
    assert 25 <= len(known) <= 30
    assert machine.now < 301
    fastest = as_fast(standings)[0]
    assert fastest.candidate == f"c{len(known) - 1}"
    assert len(fastest.steady) == LAST_TURNS


def test_a_round_that_nobody_finished_does_not_count() -> None:
    machine = Machine(named(8))
    slow = machine.measure

    def measure(name: str, slice_s: float) -> Trialled | Unusable:
        outcome = slow(name, slice_s)
        if len(machine.slices) > 8 * TURNS + 1:  # from the second slice of the second round on
            machine.now += 1000
        return outcome

    standings = halve(list(machine.rates), measure, seconds=80, clock=machine.clock)
    assert {s.rounds for s in standings} == {1}


# ------------------------------------------------------------------------------------------ noise and drift


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**20), number=st.integers(2, 70), keep=st.booleans())
def test_what_is_chosen_is_never_far_from_the_best(seed: int, number: int, keep: bool) -> None:
    rng = random.Random(seed)
    rates = {f"c{n}": rng.uniform(20, 100) for n in range(number)}
    machine = Machine(rates, noise=0.01, seed=seed)
    standings = machine.search(300, keep=("c0",) if keep else ())
    assert rates[simplest(standings).candidate] >= 0.93 * max(rates.values())
    assert machine.now <= 301
    assert {s.candidate for s in standings} == set(rates)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**20), fall=st.floats(0, 0.5))
def test_a_clock_that_drifts_meets_all_alike(seed: int, fall: float) -> None:
    rng = random.Random(seed)
    order = list(named(16).items())
    rng.shuffle(order)
    machine = Machine(dict(order), drift=lambda now: math.exp(-fall * now / 300))
    assert [s.candidate for s in machine.search(300)[:1]] == ["c15"]


def test_what_a_turn_has_in_common_is_taken_out() -> None:
    assert without_drift([[100, 50, 200], [110, 55, 220]], 3) == [
        pytest.approx([100] * 3),
        pytest.approx([110] * 3),
    ]
    assert without_drift([[100, 50], [110]], 0) == [[100, 50], [110]]


# ------------------------------------------------------------------------------------------------ ties


def standing(name: str, *steady: float, rounds: int = 1) -> Arm:
    return Arm(name, steady=list(steady), rounds=rounds)


def test_of_those_that_noise_does_not_tell_apart_the_simplest_is_taken() -> None:
    noisy = standing("c1", 95, 105, 98, 104, 97, 102)
    fastest = standing("c2", 103, 99, 104, 98, 105, 101)
    slower = standing("c0", 80, 81, 80, 79, 80, 81)
    assert as_fast([slower, noisy, fastest]) == [fastest, noisy]
    assert simplest([fastest, noisy, slower]) is noisy


def test_a_sure_gain_is_taken_and_one_that_nobody_would_notice_is_not() -> None:
    base = standing("c0", *[100.0, 100.1] * 3)
    sure = standing("c1", *[103.0, 103.1] * 3)
    tiny = standing("c1", *[100.9, 101.0] * 3)
    assert not same(base, sure)
    assert same(base, tiny)
    assert simplest([sure, base]) is sure
    assert simplest([tiny, base]) is base


def test_those_that_fell_out_earlier_are_not_compared_with_finalists() -> None:
    early = standing("c0", 200.0, 200.0, rounds=1)
    final = standing("c1", 100.0, 100.0, rounds=2)
    assert simplest([final, early]) is final


def test_a_single_slice_has_no_spread() -> None:
    assert standing("c0", 100.0).spread is None
    assert same(standing("c0", 100.0), standing("c1", 109.0))
    assert not same(standing("c0", 100.0), standing("c1", 112.0))
    assert standing("c0", 99.0, 101.0).spread == pytest.approx(math.sqrt(2) / 100)
