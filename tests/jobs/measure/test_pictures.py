"""The picture of the frontier: all candidates are named, and labels do not cover each other."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from unittest import mock

import pytest

from jobs.measure import plots
from jobs.measure.frontier import Compared, Prices, Weighed
from jobs.measure.plots import draw_frontier

pytest.importorskip("matplotlib")

FIRST = Weighed(
    network="resnet50", precision="fp32", artifact="torch-float/fp32", right=400, rows=512, rate=10.0, spread=0.01,
    decode_s=0.001, peak_bytes=2**28, size_bytes=2**20, macs=10**9, overrides=(), own=True,
)  # fmt: skip


def crowd() -> Compared:
    """Sixteen candidates, several of them nearly in the same place."""
    weighed = [
        replace(
            FIRST,
            network=f"{name} −{share} %",  # noqa: RUF001
            precision=precision,
            right=400 - 3 * share + number,
            rate=rate * (1 + share / 100),
            refused="agreement" if (precision, share) == ("bf16", 50) else "",
        )
        for number, name in enumerate(("resnet50", "mobilenet_v2"))
        for share in (10, 50)
        for precision, rate in (("fp32", 20.0), ("bf16", 21.0), ("int8", 100.0), ("int8", 101.0))
    ]
    return Compared(
        job="photos", cpu="a CPU", isa="x86-vnni", batch=16, labelled=True, least=0.7, weighed=tuple(weighed),
        fell_out={}, prices=Prices(per_cpu_hour=0.04, threads_per_core=2),
    )  # fmt: skip


def test_labels_cover_neither_each_other_nor_leave_the_axes(tmp_path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Annotation, Text

    with mock.patch.object(plots, "write_figure") as saved:
        draw_frontier(crowd(), tmp_path / "frontier.png")
    figure = saved.call_args.args[0]
    renderer = FigureCanvasAgg(figure).get_renderer()
    labels = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    assert sorted(label.get_text() for label in labels) == sorted(one.name for one in crowd().weighed)
    boxes = [Text.get_window_extent(label, renderer) for label in labels]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    inside = figure.axes[0].get_window_extent(renderer)
    assert all(inside.x0 <= box.x0 and box.x1 <= inside.x1 for box in boxes)


@pytest.mark.parametrize("ending", [".svg", ".png"])
def test_the_same_figures_draw_the_same_picture(ending: str, tmp_path: Path) -> None:
    files = [tmp_path / f"{n}{ending}" for n in range(2)]
    for file in files:
        draw_frontier(crowd(), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_single_candidate_that_the_gate_refuses_is_drawn_without_a_frontier(tmp_path: Path) -> None:
    draw_frontier(replace(crowd(), weighed=(replace(FIRST, refused="agreement"),)), tmp_path / "one.svg")
    assert "resnet50 fp32" in (tmp_path / "one.svg").read_text()
