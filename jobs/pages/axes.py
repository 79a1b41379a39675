"""What the charts of `jobs.pages.charts` are put together from: an axis in round steps, a frame, and shapes within it.

A shape lives in a square of 100 by 100 that the page stretches to its width, so lines keep their own width
(`vector-effect`) and everything that is read stands outside of the square, as text of the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

EDGE = 0.1
"""Of the width: labels nearer to an end than that are flush with it."""
GAPS_UP_TO = 60
"""Columns; more have no room for one."""
DOTS_UP_TO = 40
"""Points of a line; of more only the last has a dot."""


@dataclass(frozen=True)
class Axis:
    """From 0 in equal steps, each written by `write`."""

    step: float
    steps: int
    write: Callable[[float], str]

    @classmethod
    def upto(cls, highest: float, write: Callable[[float], str], *, whole: bool = False) -> Axis:
        """Two to four steps of 1, 2 or 5 times a power of ten; with `whole` none below 1."""
        if highest <= 0 or not math.isfinite(highest):
            return cls(1.0, 1, write)
        power = 10.0 ** math.floor(math.log10(highest / 4))
        step = next(power * times for times in (1, 2, 5, 10) if highest / (power * times) <= 4 * (1 + 1e-9))
        if whole:
            step = max(1.0, step)
        return cls(step, max(1, math.ceil(highest / step - 1e-9)), write)

    @property
    def top(self) -> float:
        return self.step * self.steps


def frame(
    body: Markup, axis: Axis, ticks: Iterable[tuple[float, str]], *, what: str, unit: str, legend: Markup | str = ""
) -> Markup:
    """A chart in its axes; `ticks` are places between 0 and 1, and what stands there."""
    grid = Markup("").join(
        Markup('<path class="grid" d="M0 {}H100"/>').format(y(at, axis.steps)) for at in range(axis.steps + 1)
    )
    ys = Markup("").join(Markup("<span>{}</span>").format(axis.write(at * axis.step)) for at in range(axis.steps + 1))
    xs = Markup("").join(
        Markup('<span style="left:{}%;transform:translateX({}%)">{}</span>').format(
            short(100 * at), 0 if at < EDGE else -100 if at > 1 - EDGE else -50, text
        )
        for at, text in ticks
    )
    return Markup(
        '<figure class="chart" role="img" aria-label="{what}"><p class="unit">{unit}</p><div class="chart-y">{ys}</div>'
        '<svg viewBox="0 0 100 100" preserveAspectRatio="none" aria-hidden="true"><title>{what}</title>{grid}{body}'
        '</svg><div class="chart-x">{xs}</div></figure>{legend}'
    ).format(what=what, unit=unit, ys=ys, xs=xs, grid=grid, body=body, legend=legend)


def legend(*entries: tuple[str, str]) -> Markup:
    """Each a mark (`now`, `before`, `threshold`, with `stroke` for a line) and what it stands for."""
    return Markup('<p class="legend">{}</p>').format(
        Markup(" ").join(Markup('<span><i class="{}"></i>{}</span>').format(*entry) for entry in entries)
    )


def columns(values: Sequence[float], top: float, titles: Sequence[str]) -> Markup:
    width = 100 / max(1, len(values))
    gap = width * 0.14 if len(values) <= GAPS_UP_TO else 0.0
    return Markup("").join(
        Markup('<rect class="now" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
            short(at * width + gap / 2), y(value, top), short(width - gap), short(100 * value / top), title
        )
        for at, (value, title) in enumerate(zip(values, titles, strict=True))
    )


def steps(values: Sequence[float], top: float) -> str:
    """The outline of columns, as a path."""
    width = 100 / max(1, len(values))
    return "".join(
        f"{'V' if at else 'M0 '}{y(value, top)}H{short((at + 1) * width)}" for at, value in enumerate(values)
    )


def line(values: Sequence[float | None], top: float) -> str:
    """A path from the middle of one column to the next, broken where a value is missing."""
    width, parts, pen = 100 / max(1, len(values)), [], "M"
    for at, value in enumerate(values):
        if value is None:
            pen = "M"
        else:
            parts.append(f"{pen}{short((at + 0.5) * width)} {y(value, top)}")
            pen = "L"
    return "".join(parts)


def dots(values: Sequence[float | None], top: float) -> str:
    """Round ones, which a stretched circle would not be: lines of no length with round ends."""
    width = 100 / max(1, len(values))
    found = [(at, value) for at, value in enumerate(values) if value is not None]
    shown = found if len(values) <= DOTS_UP_TO else found[-1:]
    return "".join(f"M{short((at + 0.5) * width)} {y(value, top)}h0" for at, value in shown)


def y(value: float, top: float) -> str:
    """Down from the top, as SVG counts."""
    return short(100 - 100 * value / top)


def short(value: float) -> str:
    """Two places are finer than a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
