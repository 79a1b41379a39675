"""Small charts for pages, of plain values: shapes in SVG that stretch with the page, words and figures as its text.

Colours are the page's own variables, so a chart is light or dark as the page is. Tonight is filled and blue, what was
before is a line or a thin bar and orange, so they differ without colour, too. Style: `jobs/pages/templates/charts.css`.

A shape lives in a square of 100 by 100 that the page stretches to its width, so lines keep their own width
(`vector-effect`), and everything to be read stands outside of the square, as text of the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from jobs.pages.page import fragment
from jobs.progress.format import seconds

_EDGE = 0.1
"""Of the width: labels nearer to an end than that are flush with it."""
_DOTS_UP_TO = 40
"""Points of a line; of more only the last has a dot."""
_X_LABELS = 4
_CLOCK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
_DRAWN_UP_TO = 4.0
"""A threshold so many times the highest value is named, not drawn: it would press the line flat."""
_COMPARED = (("now", "tonight"), ("before stroke", "before"))
_Rect = tuple[str, str, str, str, str, str]


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


@dataclass(frozen=True, kw_only=True)
class Bar:
    label: str
    value: float
    text: str
    before: float | None = None
    before_text: str = ""


def over_time(rows: Sequence[float], step_s: float, *, what: str) -> Markup:
    """Columns of rows a second; `rows` ended in each step of `step_s` since the beginning."""
    rates = [ended / step_s for ended in rows]
    titles = [
        f"{seconds(at * step_s)} to {seconds((at + 1) * step_s)}: {rate:,.0f} rows/s" for at, rate in enumerate(rates)
    ]
    whole_s = step_s * max(1, len(rates))
    every_s = next((step for step in _CLOCK_STEPS_S if whole_s / step <= _X_LABELS), whole_s / _X_LABELS)
    ticks = [(at * every_s / whole_s, seconds(at * every_s)) for at in range(int(whole_s / every_s) + 1)]
    axis = Axis.upto(max(rates, default=0.0), lambda value: f"{value:,.10g}")
    return _frame(axis, ticks, rects=_columns(rates, axis.top, titles), what=what, unit="rows a second")


def histogram(
    edges: Sequence[float],
    counts: Sequence[float],
    before: Sequence[float] = (),
    *,
    what: str,
    unit: str,
    edge: Callable[[float], str],
) -> Markup:
    """Counts between edges, all bins drawn as wide; with `before`, both as shares of their sums.

    `edge` writes an edge for a person. Raises ValueError where the numbers of edges and counts do not fit.
    """
    if len(edges) != len(counts) + 1 or (before and len(before) != len(counts)):
        raise ValueError(f"{len(counts)} bins between {len(edges)} edges, and {len(before)} before")
    now, then = (_shares(counts), _shares(before)) if before else (list(counts), [])
    axis = Axis.upto(
        max([*now, *then], default=0.0),
        (lambda share: f"{share * 100:.3g}%") if then else "{:,.0f}".format,
        whole=not then,
    )
    titles = [
        f"{edge(low)} to {edge(high)}: {count:,}" + (f" ({now[at]:.1%}; before {then[at]:.1%})" if then else "")
        for at, (low, high, count) in enumerate(zip(edges, edges[1:], counts, strict=False))
    ]
    every = max(1, math.ceil(len(counts) / _X_LABELS))
    ticks = [(at / len(counts), edge(edges[at])) for at in range(0, len(edges), every)] if counts else []
    return _frame(
        axis,
        ticks,
        rects=_columns(now, axis.top, titles),
        paths=[("line before", _steps(then, axis.top))] if then else [],
        what=what,
        unit=unit,
        legend=_COMPARED if then else (),
    )


def bars(rows: Sequence[Bar], *, what: str) -> Markup:
    """One bar a row, with its label and value as text; a second, thin one where the row has a `before`."""
    top = max((value for row in rows for value in (row.value, row.before) if value), default=1.0)

    def width(value: float) -> str:
        return _short(100 * min(1.0, value / top)) if value > 0 and top > 0 else "0"

    compared = any(row.before is not None for row in rows)
    return fragment("bars.html.j2", rows=rows, width=width, what=what, legend=_COMPARED if compared else ())


def trend(
    lines: Mapping[str, Sequence[float | None]],
    nights: Sequence[str],
    *,
    what: str,
    unit: str,
    write: Callable[[float], str],
    threshold: float | None = None,
    threshold_text: str = "",
    places: Sequence[float] | None = None,
    decades: bool = False,
) -> Markup:
    """Up to two lines over nights, by their names, broken where a value is missing, and a dashed one at `threshold`.

    `places` are where the nights stand, between 0 and 1; without any they are as far from each other as can be. With
    `decades` every step of the axis above 0 is ten times the one below, so that little shows beside much; such a chart
    has no threshold.
    """
    finite = {name: [v if v is not None and math.isfinite(v) else None for v in line] for name, line in lines.items()}
    highest = max((value for line in finite.values() for value in line if value is not None), default=0.0)
    drawn = threshold if threshold is not None and threshold <= _DRAWN_UP_TO * highest else None
    axis = Axis.upto(max(highest, drawn or 0.0), write)
    shown = finite
    if decades and highest > 0:
        least = math.floor(math.log10(min(v for line in finite.values() for v in line if v is not None and v > 0)))
        shown = {name: [v if not v else math.log10(v) - least + 1 for v in line] for name, line in finite.items()}
        top = math.ceil(math.log10(highest) - least + 1 - 1e-9)
        axis = Axis(1.0, max(1, top), lambda step: write(10 ** (least + step - 1) if step else 0.0))
    at_x = [(at + 0.5) / len(nights) for at in range(len(nights))] if places is None else places
    paths = [] if drawn is None else [("line threshold", f"M0 {_y(drawn, axis.top)}H100")]
    for line, colour in zip(shown.values(), ("now", "before"), strict=False):
        paths += [(f"line {colour}", _line(line, at_x, axis.top)), (f"dots {colour}", _dots(line, at_x, axis.top))]
    rects = []
    edges = [0.0, *((left + right) / 2 for left, right in pairwise(at_x)), 1.0]
    for at, night in enumerate(nights):
        figures = [f"{name} {write(value)}" for name, line in finite.items() if (value := line[at]) is not None]
        title = f"{night}: {', '.join(figures) or 'no figure'}"
        width = 100 * (edges[at + 1] - edges[at])
        rects.append(("touch", _short(100 * edges[at]), "0", _short(width), "100", title))
    ticks = [(at_x[at], nights[at]) for at in sorted({0, len(nights) - 1} if nights else ())]
    legend = list(zip(("now stroke", "before stroke"), lines, strict=False)) if len(lines) > 1 else []
    if threshold_text:
        legend.append(("threshold", threshold_text))
    return _frame(axis, ticks, rects=rects, paths=paths, what=what, unit=unit, legend=legend)


def _frame(
    axis: Axis, ticks: Iterable[tuple[float, str]], *, rects: Sequence[_Rect], paths: Sequence[tuple[str, str]] = (),
    what: str, unit: str, legend: Sequence[tuple[str, str]] = (),
) -> Markup:  # fmt: skip
    """A chart in its axes; `ticks` are places between 0 and 1, and what stands there; `paths`, by their class, lie over
    the rectangles; `legend` has marks (`now`, `before`, `threshold`, with `stroke` for a line) and what they mean."""
    return fragment(
        "chart.html.j2",
        ys=[(_y(at, axis.steps), axis.write(at * axis.step)) for at in range(axis.steps + 1)],
        xs=[(_short(100 * at), 0 if at < _EDGE else -100 if at > 1 - _EDGE else -50, text) for at, text in ticks],
        rects=rects,
        paths=paths,
        what=what,
        unit=unit,
        legend=legend,
    )


def _columns(values: Sequence[float], top: float, titles: Sequence[str]) -> list[_Rect]:
    width = 100 / max(1, len(values))
    gap = width * 0.14
    return [
        ("now", _short(at * width + gap / 2), _y(value, top), _short(width - gap), _short(100 * value / top), title)
        for at, (value, title) in enumerate(zip(values, titles, strict=True))
    ]


def _steps(values: Sequence[float], top: float) -> str:
    """The outline of columns, as a path."""
    width = 100 / max(1, len(values))
    return "".join(
        f"{'V' if at else 'M0 '}{_y(value, top)}H{_short((at + 1) * width)}" for at, value in enumerate(values)
    )


def _line(values: Sequence[float | None], places: Sequence[float], top: float) -> str:
    """A path from one place to the next, broken where a value is missing."""
    parts, pen = [], "M"
    for place, value in zip(places, values, strict=True):
        if value is None:
            pen = "M"
        else:
            parts.append(f"{pen}{_short(100 * place)} {_y(value, top)}")
            pen = "L"
    return "".join(parts)


def _dots(values: Sequence[float | None], places: Sequence[float], top: float) -> str:
    """Round ones, which a stretched circle would not be: lines of no length with round ends."""
    found = [(place, value) for place, value in zip(places, values, strict=True) if value is not None]
    shown = found if len(values) <= _DOTS_UP_TO else found[-1:]
    return "".join(f"M{_short(100 * place)} {_y(value, top)}h0" for place, value in shown)


def _y(value: float, top: float) -> str:
    """Down from the top, as SVG counts."""
    return _short(100 - 100 * value / top)


def _short(value: float) -> str:
    """Two places are finer than a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _shares(counts: Sequence[float]) -> list[float]:
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]
