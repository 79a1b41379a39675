"""What measurements mean: rates of candidates that took turns, and the steady rate of a job. Plain values in and out.

A machine's clock wanders by more than what is to be shown, so that only rates measured in turns are compared: first
one, then the other, several times; the ratio is the median of the ratios of the turns, and not that of two medians.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from jobs.measure.text_table import text_table

Turn = tuple[float, float]
"""Rates of two candidates, measured one right after the other."""
Completion = tuple[float, int]
"""When some rows were done, in seconds of any one clock, and how many."""


Step = tuple[str, str, int]
"""A candidate: its name, what is changed against the one before, and the physical cores that it computes on."""


@dataclass(frozen=True)
class Rung:
    """A candidate as measured."""

    name: str
    change: str
    cores: int
    rate: float
    """Images a second on all its cores: the median."""
    over_before: float | None
    """Times the rate per core of the rung before; None for the first."""
    spread: float | None
    """Half the distance between the quartiles of that ratio ÷ its median."""
    over_first: float
    """Times the rate per core of the first rung: the product of all ratios up to here."""

    @property
    def per_core(self) -> float:
        return self.rate / self.cores


def climb(steps: Sequence[Step], turns: Sequence[Sequence[Turn]]) -> list[Rung]:
    """The rungs; `turns[i]` are those of step i with step i + 1, in images a second. Raises ValueError without any."""
    if len(turns) != len(steps) - 1 or not all(turns):
        raise ValueError(f"{len(steps)} steps need {len(steps) - 1} lists of turns, got {[len(t) for t in turns]}")
    rungs: list[Rung] = []
    for index, (name, change, cores) in enumerate(steps):
        over_before = spread = None
        over_first = 1.0
        if index:
            scale = rungs[-1].cores / cores
            over_before, spread = ratio([(before, after * scale) for before, after in turns[index - 1]])
            over_first = rungs[-1].over_first * over_before
        # In its turns with the one before it, where there is one: the figure beside the ratio is of the same minutes.
        rate = statistics.median([after for _, after in turns[index - 1]] if index else [one for one, _ in turns[0]])
        rungs.append(Rung(name, change, cores, rate, over_before, spread, over_first))
    return rungs


def ratio(turns: Sequence[Turn]) -> tuple[float, float]:
    """The median of after ÷ before, and half the distance between its quartiles as a share of it."""
    ratios = [after / before for before, after in turns]
    middle = statistics.median(ratios)
    if len(ratios) == 1:
        return middle, 0.0
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return middle, (high - low) / 2 / middle


def steady_rate(completions: Sequence[Completion], workers: int) -> float | None:
    """Rows a second from the completion at which all workers have one behind them to that at which they run dry.

    From the k-th to the (n−k)-th, k being the number of workers; None where fewer than 2k + 2 were completed. Workers
    of any constant rate whose completions are spread evenly are measured exactly.
    """
    done = sorted(completions)
    first, last = workers - 1, len(done) - workers - 1
    if last <= first or done[last][0] <= done[first][0]:
        return None
    return sum(rows for _, rows in done[first + 1 : last + 1]) / (done[last][0] - done[first][0])


def ladder_table(rungs: Sequence[Rung]) -> list[str]:
    """For a person: a line a rung, and one above them."""
    head = ("rung", "img/s", "cores", "a core", "÷ before", "÷ first", "what changed")
    rows = [
        (
            rung.name,
            f"{rung.rate:.1f}",
            str(rung.cores),
            f"{rung.per_core:.1f}",
            "" if rung.over_before is None else f"{rung.over_before:.2f} ±{rung.spread or 0.0:.1%}",
            f"{rung.over_first:.2f}",
            rung.change,
        )
        for rung in rungs
    ]
    return text_table(head, rows, left=(0, len(head) - 1))


@dataclass(frozen=True, kw_only=True)
class Climbed:
    """What was measured, and on what."""

    model: str
    images: str
    cpu: str
    isa: str
    cores: int
    batch: int
    rungs: list[Rung]
    left_out: dict[str, str]
    """Rungs that the network does not have, and why."""
    start_to_finish: float
    """Rows a second of the whole job, from the command to its end, of the last run."""
    job_rows: int
    minutes: float

    def lines(self) -> list[str]:
        """For a person."""
        return [
            f"{self.model}; images: {self.images}; {self.cores} cores of {self.cpu} ({self.isa}); "
            f"{self.minutes:.1f} minutes",
            "",
            *ladder_table(self.rungs),
            "",
            "÷ before, ÷ first: images a second a core over those of the rung above, and of the first one; ± half the "
            "distance between the quartiles",
            f"whole job: its steady rate; {self.job_rows:,} rows from the command to its end, start included, at "
            f"{self.start_to_finish:.1f} rows/s",
            *(f"{name} was left out: {reason}" for name, reason in self.left_out.items()),
        ]

    def as_json(self) -> str:
        plain = asdict(self)
        plain["rungs"] = [{**asdict(rung), "per_core": rung.per_core} for rung in self.rungs]
        return json.dumps(plain, indent=2)
