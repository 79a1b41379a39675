"""The one place that draws. With matplotlib, an extra; SVG or PNG, by the file's ending."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.errors import SpecError
from jobs.ladder import Rung

if TYPE_CHECKING:
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


def save(figure: Figure, file: Path) -> None:
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
    told = [
        f" {rung.per_core:.1f}" + ("" if rung.over_before is None else f"   ÷ above: {rung.over_before:.2f}")
        for rung in rungs
    ]
    axes.bar_label(bars, told)
    axes.set_yticks(places, [rung.name for rung in rungs])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.4 * max(rung.per_core for rung in rungs))
    axes.set_xlabel("images a second a core")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left")
    save(figure, file)
