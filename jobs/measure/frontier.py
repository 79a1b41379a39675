"""Which candidates are worth their cost: pure functions over what was measured, and the table a person sees.

A candidate is on the frontier unless another one is at least as accurate, costs at most as much, and is better in one
of the two. Cost is that of the whole image: the network's time and that of decoding, which may differ by candidate.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jobs.measure.text_table import text_table
from jobs.progress.snapshot import Price, cost_per_million
from workers.measure.messages import CandidateFigures

Z = 1.96
"""Of a normal distribution, 95 % lie within so many deviations."""


@dataclass(frozen=True, kw_only=True)
class Weighed(CandidateFigures):
    """A candidate as it was measured."""

    rate: float
    """Images a second that one core predicts; decoding not included."""
    spread: float
    """Half the distance between the quartiles of the rounds ÷ the median."""
    peak_bytes: int

    @property
    def accuracy(self) -> float:
        return self.right / self.rows

    @property
    def core_s(self) -> float:
        """Seconds of one core for an image, decoding included."""
        return 1 / self.rate + self.decode_s


@dataclass(frozen=True, kw_only=True)
class Prices:
    per_cpu_hour: float | None
    threads_per_core: int

    @property
    def unit(self) -> str:
        return "core-hours a million" if self.per_cpu_hour is None else "cost a million"

    def images_per_s(self, of_million: Any) -> Any:
        """Images a second a core at such a price of a million; and the price at such a rate: it is its own inverse."""
        return self.of_million(1.0) / of_million

    def of_million(self, core_s: float) -> float:
        """What a million images cost; core-hours where no price is known. A core is all of its logical CPUs."""
        price = Price(per_cpu_hour=self.per_cpu_hour)
        cost = price.cost(core_s, self.threads_per_core)
        return cost_per_million(price.core_hours(core_s) if cost is None else cost, 1)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Everything that was found."""

    job: str
    cpu: str
    isa: str
    batch: int
    labelled: bool
    """Whether `right` means the true class; else the class that the job's own network names in fp32."""
    least: float
    """What the gate asks of a candidate, as an accuracy."""
    weighed: tuple[Weighed, ...]
    """The cheapest one first."""
    fell_out: dict[str, str]
    """Candidates that could not be had, with the reason."""
    prices: Prices

    @property
    def measure(self) -> str:
        return "accuracy" if self.labelled else "agreement with fp32"


def wilson(right: int, rows: int) -> tuple[float, float]:
    """95 % confidence interval of a share (E. B. Wilson, 1927). Raises ValueError without rows."""
    if rows < 1:
        raise ValueError("a share of no rows has no interval")
    share = right / rows
    scale = 1 + Z * Z / rows
    middle = (share + Z * Z / (2 * rows)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / rows + Z * Z / (4 * rows * rows))
    # At the ends rounding may take it past what it holds.
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def dominators(weighed: Sequence[Weighed]) -> list[int | None]:
    """For each candidate the cheapest one on the frontier that dominates it; None for the frontier itself.

    What the gate refuses dominates nothing. Of candidates that are equal in both the first one is on the frontier.
    """
    fit = [index for index, one in enumerate(weighed) if not one.refused]
    frontier = [index for index in fit if not any(_dominates(weighed, other, index) for other in fit)]
    return [
        min(
            (other for other in frontier if index not in frontier and _dominates(weighed, other, index)),
            key=lambda other: weighed[other].core_s,
            default=None,
        )
        for index in range(len(weighed))
    ]


def on_frontier(weighed: Sequence[Weighed]) -> list[Weighed]:
    """From the cheapest to the most accurate."""
    ones = [one for one, by in zip(weighed, dominators(weighed), strict=True) if by is None and not one.refused]
    return sorted(ones, key=lambda one: one.core_s)


def _dominates(weighed: Sequence[Weighed], a: int, b: int) -> bool:
    one, other = ((candidate.core_s, -candidate.accuracy) for candidate in (weighed[a], weighed[b]))
    return one[0] <= other[0] and one[1] <= other[1] and (one != other or a < b)


def recommended(compared: Compared) -> Weighed | None:
    """The cheapest candidate that is as accurate as the gate asks, and that the gate lets pass."""
    # A rounding error of the subtraction must not refuse a fall that is exactly the threshold.
    fit = [one for one in compared.weighed if not one.refused and one.accuracy >= compared.least - 1e-9]
    return min(fit, key=lambda one: one.core_s, default=None)


def advice(compared: Compared) -> list[str]:
    """Which candidate to take, why, and the options with which a job takes it."""
    choice = recommended(compared)
    asked = f"{compared.measure} of {compared.least:.2%}"
    if choice is None:
        return [f"No candidate reaches the {asked} that the gate asks for."]
    low, high = wilson(choice.right, choice.rows)
    price = compared.prices.of_million(choice.core_s)
    lines = [
        f"Take {choice.name}: of all that reach the {asked} that the gate asks for it is the cheapest, "
        f"{price:,.3g} {compared.prices.unit}"
    ]
    own_fp32 = next((one for one in compared.weighed if one.own and one.precision == "fp32"), None)
    if own_fp32 is not None and own_fp32 is not choice:
        lines[0] += f", {own_fp32.core_s / choice.core_s:.1f} times less than {own_fp32.name}"  # decoding included
    lines[0] += "."
    if low < compared.least:
        lines.append(
            f"Of {choice.rows} rows its {compared.measure} is only known to be between {low:.1%} and {high:.1%}; "
            "a larger gate.rows narrows that."
        )
    if choice.overrides:
        options = [f"--set {shlex.quote(value)}" for value in choice.overrides]
        lines.append(" \\\n  ".join(["stint run SPEC", *options]))
    elif not choice.own:
        lines.append("The same command with --save-pruned DIR writes it as a model that a job can name.")
    else:
        lines.append("It is what the spec says already.")
    return lines


def frontier_table(compared: Compared) -> list[str]:
    """A line a candidate, the cheapest one first."""
    price = compared.prices
    head = ("#", "candidate", "", compared.measure.replace(" with ", "\nwith "), "95 %", "img/s\na core", "± %",
            price.unit.replace(" a ", "\na "), "peak\nMiB", "size\nMiB", "GMAC", "")  # fmt: skip
    places = ["frontier" if by is None else f"dominated by {by + 1}" for by in dominators(compared.weighed)]
    rows = [
        (
            str(number),
            one.network,
            one.precision,
            f"{one.accuracy:.2%}",
            "{:.1%}–{:.1%}".format(*wilson(one.right, one.rows)),  # noqa: RUF001
            f"{one.rate:,.1f}",
            f"{100 * one.spread:.1f}",
            f"{price.of_million(one.core_s):,.3g}",
            f"{one.peak_bytes / 2**20:,.0f}",
            f"{one.size_bytes / 2**20:,.2f}",
            f"{one.macs / 1e9:.3g}",
            f"the gate refuses it: {one.refused}" if one.refused else place,
        )
        for number, (one, place) in enumerate(zip(compared.weighed, places, strict=True), 1)
    ]
    return text_table(head, rows, left=(1, 2, len(head) - 1))


def lines(compared: Compared) -> list[str]:
    """All of it, for a person."""
    what = (
        f"accuracy: on {compared.weighed[0].rows} labelled rows"
        if compared.labelled
        else f"no gate.labels_column: what is shown is agreement with the job's own network in fp32, on "
        f"{compared.weighed[0].rows} rows, and not accuracy"
    )
    decode_s = sorted(one.decode_s for one in compared.weighed)
    price = compared.prices
    per_hour = "" if price.per_cpu_hour is None else f", at {price.per_cpu_hour:g} a logical CPU and hour"
    return [
        f"{compared.job}: {len(compared.weighed)} candidates on one core of {compared.cpu} ({compared.isa}), "
        f"{compared.batch} images a forward pass",
        "",
        *frontier_table(compared),
        "",
        f"{what}; 95 %: Wilson's interval",
        f"img/s a core: the network alone; {price.unit}: with {1000 * decode_s[0]:.2f} to {1000 * decode_s[-1]:.2f} ms "
        f"of decoding an image{per_hour}",
        "peak: of a process that holds this candidate alone, Python and libraries included",
        *(f"fell out: {name}: {reason}" for name, reason in compared.fell_out.items()),
        "",
        *advice(compared),
    ]


def as_json(compared: Compared) -> str:
    """All figures."""
    choice = recommended(compared)
    plain: dict[str, object] = asdict(compared)
    plain["weighed"] = [
        {
            **asdict(one),
            "name": one.name,
            "accuracy": one.accuracy,
            "interval": wilson(one.right, one.rows),
            "core_s": one.core_s,
            "of_million": compared.prices.of_million(one.core_s),
            "on_frontier": by is None and not one.refused,
            "dominated_by": None if by is None else compared.weighed[by].name,
        }
        for one, by in zip(compared.weighed, dominators(compared.weighed), strict=True)
    ]
    plain["recommended"] = None if choice is None else choice.name
    return json.dumps(plain, indent=2)
