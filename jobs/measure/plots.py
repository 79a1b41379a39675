"""The one place that draws. With matplotlib, an extra; SVG or PNG, by the file's ending."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.errors import SpecError
from jobs.measure.frontier import Compared, Weighed, on_frontier, recommended, wilson
from jobs.measure.rates import Rung

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".svg", ".png")


def check_can_draw(file: Path) -> None:
    """To be called before minutes are spent on what is to be drawn. Raises SpecError."""
    if file.suffix not in ENDINGS:
        raise SpecError(f"--picture {file}: its ending must be one of {', '.join(ENDINGS)}")
    if not file.parent.is_dir():
        raise SpecError(f"--picture {file}: there is no folder {file.parent}")
    new_figure(1, 1)


def new_figure(width_in: float, height_in: float) -> Figure:
    """An empty figure that belongs to no window. Raises SpecError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SpecError("--picture: pictures are drawn by matplotlib", "pip install 'stint[plots]'") from error
    return Figure(figsize=(width_in, height_in), layout="constrained")


def write_figure(figure: Figure, file: Path) -> None:
    """Write it, replacing what is there; the same figure gives the same bytes."""
    # Without a date, and with names of shapes that do not change from one time to the next.
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "stint"}):
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else {})


def draw_ladder(rungs: Sequence[Rung], title: str, file: Path) -> None:
    """A bar a rung, images a second a core, each with what it is over the one before."""
    figure = new_figure(9, 1 + 0.45 * len(rungs))
    axes = figure.subplots()
    places = range(len(rungs))
    bars = axes.barh(places, [rung.per_core for rung in rungs], color="#4477aa")
    labels = [
        f" {rung.per_core:.1f}" + ("" if rung.over_before is None else f"   ÷ above: {rung.over_before:.2f}")
        for rung in rungs
    ]
    axes.bar_label(bars, labels)
    axes.set_yticks(places, [rung.name for rung in rungs])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(rung.per_core for rung in rungs))
    axes.set_xlabel("images a second a core")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    write_figure(figure, file)


PRECISION_COLOURS = {"int8": "#4477aa", "bf16": "#ccbb44", "fp32": "#ee6677"}
"""Of Paul Tol's bright scheme, which people who see colours differently can tell apart."""
LABEL_PT = 8
_SIDES = ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 1), (-1, -1), (-1, 0))
"""Where a label may stand, seen from its point: right, up."""
_REACHES_PT = (7, 14, 24, 36, 50, 66, 84, 104)
_LINE_FROM_PT = 10
"""A label that is farther off has a line to its point."""


def draw_frontier(compared: Compared, file: Path) -> None:
    """Every candidate by cost and accuracy, with its interval; the frontier as a line, what is recommended ringed."""
    figure = new_figure(10, 6.5)
    import numpy as np
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes = figure.subplots()
    price = compared.prices

    def at(one: Weighed) -> tuple[float, float]:
        return price.of_million(one.core_s), 100 * one.accuracy

    axes.set_xscale("log")
    frontier = [at(one) for one in on_frontier(compared.weighed)]
    xs, ys = [x for x, _ in frontier], [y for _, y in frontier]
    axes.plot(xs, ys, color="#bbbbbb", drawstyle="steps-post", zorder=1, label="frontier")
    for precision, colour in PRECISION_COLOURS.items():
        for refused in (False, True):
            ones = [o for o in compared.weighed if o.precision == precision and bool(o.refused) == refused]
            for one in ones:
                low, high = wilson(one.right, one.rows)
                axes.vlines(at(one)[0], 100 * low, 100 * high, color=colour, alpha=0.25, linewidth=2, zorder=2)
            if ones:
                fill = "white" if refused else colour
                label = f"{precision}, refused by the gate" if refused else precision
                xs, ys = [at(one)[0] for one in ones], [at(one)[1] for one in ones]
                axes.scatter(xs, ys, s=42, color=fill, edgecolors=colour, label=label, zorder=3)
    axes.axhline(100 * compared.least, color="#888888", linewidth=0.8, linestyle=":", label="what the gate asks for")
    if (choice := recommended(compared)) is not None:
        axes.scatter(*at(choice), s=150, facecolors="none", edgecolors="black", zorder=4, label="recommended")
    axes.margins(0.16, 0.1)
    axes.set_xlabel(f"{price.unit} images, decoding included")
    axes.set_ylabel(f"{compared.measure} in %, with its 95 % interval")

    def images_per_s(places: Any) -> Any:
        return price.images_per_s(np.maximum(places, 1e-12))  # it is asked about 0, too

    above = axes.secondary_xaxis("top", functions=(images_per_s, images_per_s))
    above.set_xlabel("images a second a core, decoding included")
    for axis in (axes.xaxis, above.xaxis):  # plain numbers on both: 20 and 50, not powers of ten
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.2, which="both")
    axes.set_title(f"{compared.job} on {compared.cpu}", loc="left")
    figure.legend(loc="outside lower center", ncols=7, frameon=False, fontsize=LABEL_PT)
    _label_points(figure, axes, [(at(one), one.name) for one in compared.weighed])
    write_figure(figure, file)


def _label_points(figure: Figure, axes: Axes, labels: Sequence[tuple[tuple[float, float], str]]) -> None:
    """A label beside each point, where it covers neither another label nor a point."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    renderer = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()  # so that everything has its place,
    figure.set_layout_engine("none")  # and keeps it
    half = 5 * figure.dpi / 72
    points = [axes.transData.transform(at) for at, _ in labels]
    taken = [Bbox.from_extents(x - half, y - half, x + half, y + half) for x, y in points]
    inside = axes.get_window_extent(renderer)
    places = [(reach * right, reach * up) for reach in _REACHES_PT for right, up in _SIDES]
    for at, name in labels:
        for place in places:
            text = axes.annotate(
                name,
                at,
                place,
                textcoords="offset points",
                ha="center" if not place[0] else "left" if place[0] > 0 else "right",
                va="center" if not place[1] else "bottom" if place[1] > 0 else "top",
                fontsize=LABEL_PT,
                arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
                if max(map(abs, place)) > _LINE_FROM_PT
                else None,
                zorder=5,
            )
            text.update_positions(renderer)
            box = Text.get_window_extent(text, renderer)  # without the line
            within = inside.contains(box.x0, box.y0) and inside.contains(box.x1, box.y1)
            if (within and not box.count_overlaps(taken)) or place is places[-1]:
                taken.append(box)
                break
            text.remove()
