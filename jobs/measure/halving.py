"""Successive halving: which candidate is the fastest, within a given time. Pure but for `measure`, which is given.

Every round shares what time is left evenly among the rounds to come, so that half as many candidates get slices twice
as long (K. Jamieson and A. Talwalkar, Non-stochastic best arm identification and hyperparameter optimization, 2016).
Within a round the candidates take turns, there and back again, so that a clock that drifts meets all of them alike; and
what a turn has in common for all is taken out before rates are compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from workers.bundle.profiles import Candidate
from workers.measure.messages import Unusable
from workers.measure.tune_node import Trialled

FINALISTS = 4
"""So many are compared in the last round."""
TURNS = 2
"""Slices a candidate and round: one on the way there, one on the way back."""
LAST_TURNS = 6
"""Enough of them to distinguish a difference from noise."""
LEAST_SLICE_S = 0.1
MOST_OF_TIME = 0.5
"""Of the time that is left a round that is not the last takes no more, however long its candidates take to start: what
was not reached by then falls out, and the others are still compared well."""
ROUGH = 0.1
"""Single slices that differ by less than this are equal."""
NOTICEABLE = 0.01
"""A smaller gain is not worth a more complicated way, however sure it is."""
SURE = 2.0
"""Standard errors beyond which a difference is no noise."""


@dataclass
class Arm:
    """A candidate and how it fared: the arm of a bandit, as the literature calls it."""

    candidate: Candidate
    steady: list[float] = field(default_factory=list)
    """Rates of its slices in the last round that it took part in, less what the slices of a turn had in common."""
    rounds: int = 0
    out: str = ""
    trial: Trialled | None = None
    """Its last slice."""
    peak_bytes: int = 0
    """The least of all slices: the first ones of a process have the least of what other batches left in it."""

    @property
    def rate(self) -> float | None:
        return statistics.fmean(self.steady) if self.steady else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of its slices ÷ their mean; None for a single one."""
        return statistics.stdev(self.steady) / statistics.fmean(self.steady) if len(self.steady) > 1 else None


def halve(
    candidates: Sequence[Candidate],
    measure: Callable[[Candidate, float], Trialled | Unusable],
    *,
    seconds: float,
    clock: Callable[[], float],
    keep: Collection[Candidate] = (),
    say: Callable[[str], None] = lambda _: None,
) -> list[Arm]:
    """An arm for every candidate, the best one first: by rounds, then by rate; those that are out come last.

    `measure` runs a candidate for so many seconds; what it raises ends the search. `keep` stay to the end whatever
    their rate, to be compared with. `clock` gives the time in seconds; with the time over the search ends after the
    slice under way. Put first what is likely to be good: where starting takes long, what comes last may not be reached.
    `say` hears of each round. One that is cut short counts if everybody took part in it.
    """
    arms = [Arm(candidate) for candidate in candidates]
    ends_at = clock() + seconds
    alive = arms
    number = 0
    while alive and clock() < ends_at:
        number += 1
        to_come = rounds_to_come(len(alive))
        turns = LAST_TURNS if to_come == 1 else TURNS
        slice_s = max(LEAST_SLICE_S, (ends_at - clock()) / to_come / turns / len(alive))
        say(f"round {number}: {len(alive)} candidates, {slice_s:.1f} s at a time")
        round_ends_at = ends_at if to_come == 1 else clock() + MOST_OF_TIME * (ends_at - clock())
        rates_of: dict[Candidate, list[float]] = {arm.candidate: [] for arm in alive}
        for arm in chain.from_iterable(alive if turn % 2 == 0 else reversed(alive) for turn in range(turns)):
            if arm.out:
                continue
            if clock() >= round_ends_at:
                break
            outcome = measure(arm.candidate, slice_s)
            if isinstance(outcome, Unusable):
                arm.out = outcome.reason
                continue
            arm.peak_bytes = min(outcome.peak_bytes, arm.peak_bytes) if arm.trial else outcome.peak_bytes
            arm.trial = outcome
            rates_of[arm.candidate].append(outcome.images_per_s)
        whole = min((len(rates_of[arm.candidate]) for arm in alive if not arm.out), default=0)
        if whole or number == 1:  # else what is known from the round before is fairer to all
            measured = [arm for arm in alive if not arm.out and rates_of[arm.candidate]]
            steady = without_drift([rates_of[arm.candidate] for arm in measured], whole)
            for arm, rates in zip(measured, steady, strict=True):
                arm.steady, arm.rounds = rates, number
        if to_come == 1:
            break
        staying = survivors({arm.candidate: arm.rate or 0.0 for arm in alive if arm.rounds and not arm.out}, keep)
        alive = [arm for arm in alive if arm.candidate in staying]
    return sorted(arms, key=lambda arm: (bool(arm.out), -arm.rounds, -(arm.rate or 0.0)))


def rounds_to_come(alive: int) -> int:
    return 1 + max(0, math.ceil(math.log2(alive / FINALISTS)))


def survivors(rates: Mapping[Candidate, float], keep: Collection[Candidate]) -> list[Candidate]:
    """The better half, in the order given; those to be kept are not counted."""
    kept = [c for c in rates if c in keep]
    others = sorted((c for c in rates if c not in keep), key=lambda c: -rates[c])
    staying = {*others[: max(FINALISTS, math.ceil(len(rates) / 2)) - len(kept)], *kept}
    return [c for c in rates if c in staying]


def without_drift(slices: Sequence[Sequence[float]], whole: int) -> list[list[float]]:
    """Rates of each candidate's slices, less what those of a turn have in common.

    Of the first `whole` turns, in which everybody took part; with none of them, the rates as they are.
    """
    if whole == 0:
        return [list(rates) for rates in slices]
    of_turn = [statistics.fmean(math.log(rates[turn]) for rates in slices) for turn in range(whole)]
    middle = statistics.fmean(of_turn)
    return [[rates[turn] * math.exp(middle - of_turn[turn]) for turn in range(whole)] for rates in slices]


def as_fast(arms: Sequence[Arm]) -> list[Arm]:
    """Of those that came furthest the fastest, then those that cannot be told from it; [] where none was measured."""
    measured = [arm for arm in arms if arm.rate and not arm.out]
    # By rounds first: those that came less far are not compared with the others.
    measured.sort(key=lambda arm: (-arm.rounds, -(arm.rate or 0.0)))
    return [arm for arm in measured if arm.rounds == measured[0].rounds and same(arm, measured[0])]


def same(a: Arm, b: Arm) -> bool:
    """Whether their rates are equal but for noise, or differ by less than NOTICEABLE. Slices are compared in pairs."""
    ratios = [math.log(y / x) for x, y in zip(a.steady, b.steady, strict=False)]
    difference = abs(statistics.fmean(ratios))
    if len(ratios) < 2:
        return difference <= ROUGH
    error = statistics.stdev(ratios) / math.sqrt(len(ratios))
    return difference <= max(math.log1p(NOTICEABLE), SURE * error)


_BATCHES = (1, 2, 4, 8, 16, 32, 64)
SMALL_NODE_CORES = 4
"""On a node of no more cores than this one of them may be worth more to reading and writing than to another worker."""
SIMPLEST = "torch-int8"
"""It needs nothing beside the base installation."""


def candidates(engines: Sequence[str], cores: int, default: Candidate) -> tuple[Candidate, ...]:
    """Engine × threads a worker × workers × batch, what is likely to be good first: the time may end early.

    Those that share processes are neighbours, with batches that grow: what one takes of memory is not covered up by
    what another took before.
    """
    combined = [
        Candidate(engine=engine, threads=threads, workers=workers, batch=batch)
        for threads, workers in layouts(cores)
        for engine in engines
        for batch in _BATCHES
    ]
    first = [c for c in combined if replace(c, batch=default.batch) == default]
    return tuple(dict.fromkeys((*first, *combined)))


def layouts(cores: int) -> tuple[tuple[int, int], ...]:
    """(threads a worker, workers), for 1, 2, 4, … threads and all cores in one; as many workers as fit.

    On small nodes also one worker less, where that leaves a core free.
    """
    widths = [width for width in (2**power for power in range(cores.bit_length())) if width < cores] + [cores]
    full = [(width, cores // width) for width in widths]
    spared = [
        (width, workers - 1)
        for width, workers in full
        if cores <= SMALL_NODE_CORES and workers > 1 and cores - width * workers == 0
    ]
    return (*full, *spared)


def by_rule(engines: Sequence[str], cores: int, threads: int, batch: int) -> Candidate:
    """What runs without a profile."""
    threads = min(threads, cores)
    return Candidate(engine=engines[0], threads=threads, workers=cores // threads, batch=batch)


def effort(candidate: Candidate) -> tuple[int, ...]:
    """The less, the simpler: the engine that is always there, few threads a worker, full nodes, small batches."""
    other_engine = not candidate.engine.startswith(SIMPLEST + "/")
    return (int(other_engine), candidate.threads, -candidate.workers, candidate.batch)
