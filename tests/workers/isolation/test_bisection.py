"""The search for rows that kill, with sets of numbers in place of processes."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.isolation.bisection import MOST_BLAMED, NONE_SURVIVED, Hopeless, ReadingKills, Try, search

Kills = Callable[[Try, bool], bool]


def run(rows: int, kills: Kills) -> tuple[dict[int, str], list[Try], int]:
    """What is blamed, the tries that survived, and the deaths; `kills` is asked whether a try kills its process."""
    survived: list[Try] = []
    deaths, used = 0, False

    def attempt(this: Try) -> str | None:
        nonlocal deaths, used
        if kills(this, used):
            deaths, used = deaths + 1, False
            return "dies"
        survived.append(this)
        used = True
        return None

    return search(rows, attempt), survived, deaths


def covered(tries: list[Try]) -> list[int]:
    return [row for this in tries for row in range(this.first, this.last)]


@st.composite
def rows_and_killers(draw: st.DrawFn) -> tuple[int, set[int]]:
    rows = draw(st.integers(1, 3000))
    most = min(rows // 2, 20)
    return rows, draw(st.sets(st.integers(0, rows - 1), max_size=most))


@settings(max_examples=200, deadline=None)
@given(rows_and_killers())
def test_exactly_the_rows_that_kill_are_found_and_every_other_is_scored_once(case: tuple[int, set[int]]) -> None:
    rows, killers = case

    def kills(this: Try, used: bool) -> bool:
        return this.blamed is None and any(this.first <= killer < this.last for killer in killers)

    if killers >= set(range(NONE_SURVIVED)):  # nothing at all survives before these
        with pytest.raises(Hopeless):
            run(rows, kills)
        return
    blamed, survived, deaths = run(rows, kills)
    assert set(blamed) == killers
    assert covered(survived) == list(range(rows))
    assert {this.first for this in survived if this.blamed} == killers
    assert deaths <= len(killers) * (math.ceil(math.log2(rows)) + 2)


def test_nothing_that_kills_is_one_try() -> None:
    assert run(1000, lambda this, used: False) == ({}, [Try(0, 1000)], 0)


def test_no_rows_are_no_tries() -> None:
    assert run(0, lambda this, used: True) == ({}, [], 0)


def test_rows_that_kill_only_together_are_all_scored() -> None:
    blamed, survived, _ = run(64, lambda this, used: this.first <= 20 and this.last > 40)
    assert blamed == {}
    assert covered(survived) == list(range(64))


def test_what_piles_up_in_a_process_is_blamed_on_no_row() -> None:
    """A leak: so many rows in one process are too many, whichever they are."""
    held = 0

    def kills(this: Try, used: bool) -> bool:
        nonlocal held
        held = (held if used else 0) + this.rows
        return held > 10

    blamed, survived, _ = run(500, kills)
    assert blamed == {}
    assert covered(survived) == list(range(500))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.randoms(use_true_random=False))
def test_the_search_ends_however_processes_die(rows: int, random: object) -> None:
    tries = 0

    def kills(this: Try, used: bool) -> bool:
        nonlocal tries
        tries += 1
        return this.blamed is None and random.random() < 0.7  # type: ignore[attr-defined]

    try:
        _, survived, _ = run(rows, kills)
    except Hopeless:
        pass
    else:
        assert covered(survived) == list(range(rows))
    assert tries <= 4 * rows


def test_it_is_given_up_when_every_row_kills() -> None:
    with pytest.raises(Hopeless) as caught:
        run(10_000, lambda this, used: this.blamed is None)
    assert len(caught.value.blamed) == NONE_SURVIVED


def test_it_is_given_up_when_too_many_rows_kill() -> None:
    with pytest.raises(Hopeless) as caught:
        run(1000, lambda this, used: this.blamed is None and any(row % 3 == 0 for row in range(this.first, this.last)))
    assert len(caught.value.blamed) == MOST_BLAMED + 1


def test_a_row_that_kills_by_being_read_is_told_apart() -> None:
    with pytest.raises(ReadingKills) as caught:
        run(16, lambda this, used: this.first <= 5 < this.last)
    assert caught.value.row == 5
