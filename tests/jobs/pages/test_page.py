"""What every page is made of: templates, figures for a person, axes and charts."""

from __future__ import annotations

import fnmatch
import math
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from jinja2 import Environment, StrictUndefined, UndefinedError

from jobs.pages import page
from jobs.pages.charts import Axis, Bar, bars, histogram, over_time, trend
from jobs.progress.format import NONE, moment, money, number, percent, points, seconds, significant, size

ROOT = Path(__file__).parents[3]


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A file that `render` finds as `it.html.j2`."""
    monkeypatch.setattr(page, "TEMPLATES", tmp_path)
    page._environment.cache_clear()
    yield tmp_path / "it.html.j2"
    page._environment.cache_clear()


# ------------------------------------------------------------------------------------------ templates


def test_values_are_escaped_in_text_and_attributes(template: Path) -> None:
    template.write_text('<p title="{{ it }}">{{ it }}</p>')
    shown = page.render("it.html.j2", it="\"><script>alert('1')</script>")
    assert shown == '<p title="{0}">{0}</p>'.format("&#34;&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;")


def test_a_value_that_nobody_gave_is_an_error(template: Path) -> None:
    template.write_text("{{ report.rows }}")
    with pytest.raises(UndefinedError, match="rows"):
        page.render("it.html.j2", report={})


def test_a_name_that_is_not_unicode_can_be_written(template: Path) -> None:
    template.write_text("{{ it }}")
    assert page.render("it.html.j2", it="caf\udce9.jpg").encode() == b"caf?.jpg"


def test_pages_are_made_wherever_the_process_works(tmp_path: Path) -> None:
    imported = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from jobs.pages.page import render"
    code = f"{imported}; print(render('base.html.j2'))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "<!doctype html>" in shown.stdout


def test_every_template_goes_into_a_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    files = [file.relative_to(ROOT / "jobs/pages").as_posix() for file in (ROOT / "jobs/pages/templates").iterdir()]
    assert files
    assert [file for file in files if not any(fnmatch.fnmatch(file, pattern) for pattern in patterns)] == []


@pytest.mark.parametrize("file", sorted((ROOT / "jobs/pages/templates").iterdir()), ids=lambda file: file.name)
def test_templates_escape_everything_run_nothing_and_load_nothing(file: Path) -> None:
    text = file.read_text()
    assert not re.search(r"\|\s*safe|autoescape|<script|\son\w+=|@import|url\(", text)
    assert not re.search(r'(?:src|href)=(?!"(?:data:image|#|\{\{))', text)


# ------------------------------------------------------------------------------------------ figures


def test_figures_are_written_for_a_person() -> None:
    assert [number(it) for it in (None, 0, 1234.4, math.nan, 1e300)] == [NONE, "0", "1,234", NONE, "boundless"]
    assert [significant(it) for it in (0, 0.01234, 4.5678, 99.99, 1234.5)] == ["0", "0.0123", "4.57", "100", "1,234"]
    assert [money(it) for it in (None, 0.0, 0.0042, 2.888)] == [NONE, "0.00", "0.0042", "2.89"]
    assert [moment(it) for it in ("2026-03-01T03:00:00+01:00", "tonight")] == ["2026-03-01 02:00 UTC", "tonight"]
    assert [seconds(it).replace("\xa0", " ") for it in (None, 0, 0.0004, 0.045, 2.5, 3.0, 59, 60, 7500)] == [
        NONE, "0 s", "0.4 ms", "45 ms", "2.5 s", "3 s", "59 s", "1m00s", "2h05m"
    ]  # fmt: skip
    assert [size(it).replace("\xa0", " ") for it in (12, 1500, 3.4 * 2**30)] == ["12 B", "1.5 KiB", "3.4 GiB"]


def test_a_difference_of_shares_is_told_in_points_with_its_sign() -> None:
    words = [points(it).replace("\N{MINUS SIGN}", "-").replace("\xa0", " ") for it in (0.031, -0.002, 0.0, -1e-9)]
    assert words == ["+3.10 pp", "-0.20 pp", "0.00 pp", "0.00 pp"]


def test_a_share_is_shown_as_none_or_all_only_if_it_is() -> None:
    assert [percent(it) for it in (None, 0.0, 1e-9, 0.123, 1 - 1e-9, 1.0)] == [
        NONE, "0.0%", "<0.1%", "12.3%", ">99.9%", "100.0%"
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------ charts


@given(some.floats(1e-9, 1e15))
def test_an_axis_holds_what_it_shows_in_few_round_steps(highest: float) -> None:
    axis = Axis.upto(highest, str)
    assert axis.top >= highest * (1 - 1e-6)
    assert axis.top <= highest * 2.5
    assert 1 <= axis.steps <= 4
    assert f"{axis.step:e}"[:8] in ("1.000000", "2.000000", "5.000000")


@pytest.mark.parametrize("highest", [0.0, -1.0, math.inf, math.nan])
def test_an_axis_of_nothing_is_drawn_all_the_same(highest: float) -> None:
    assert Axis.upto(highest, str).top == 1.0


def heights(chart: str) -> list[float]:
    return [float(it) for it in re.findall(r'<rect class="now"[^>]* height="([\d.]+)"', chart)]


def test_columns_over_time_are_rates_with_ticks_in_minutes() -> None:
    chart = over_time([100, 300, 200], 60, what="Rows a second")
    assert heights(chart) == [pytest.approx(100 * rate / 6, abs=0.01) for rate in (100 / 60, 5, 200 / 60)]
    assert re.findall(r'translateX\(-?\d+%\)">([^<]+)<', chart) == ["0\xa0s", "1m00s", "2m00s", "3m00s"]


def test_a_histogram_beside_one_of_another_size_compares_shares() -> None:
    chart = histogram([0, 1, 2], [10, 30], [500, 500], what="Scores", unit="share", edge=str)
    assert heights(chart) == [pytest.approx(25 / 80 * 100, abs=0.01), pytest.approx(75 / 80 * 100, abs=0.01)]
    assert re.findall(r'class="line before" d="([^"]+)"', chart) == ["M0 37.5H50V37.5H100"]
    assert "0 to 1: 10 (25.0%; before 50.0%)" in chart


def test_a_histogram_whose_edges_do_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="3 bins between 3 edges"):
        histogram([0, 1, 2], [1, 2, 3], what="", unit="", edge=str)


def test_bars_are_as_long_as_their_values_and_escape_their_labels() -> None:
    rows = [Bar(label="<b>", value=4, text="4", before=8, before_text="8"), Bar(label="c", value=0, text="0")]
    chart = bars(rows, what="x")
    assert re.findall(r"width:([\d.]+)%", chart) == ["50", "100", "0"]
    assert "&lt;b&gt;" in chart
    assert "<b>" not in chart


def test_a_trend_is_broken_where_a_night_has_no_figure_and_tells_its_threshold() -> None:
    lines = {"classes": [1.0, None, 2.0, 4.0, math.inf]}
    chart = trend(lines, list("abcde"), what="Drift", unit="PSI", write=str, threshold=3.0, threshold_text="at most 3")
    assert re.findall(r'class="line now" d="([^"]+)"', chart) == ["M10 75M50 50L70 0"]
    assert re.findall(r'class="line threshold" d="([^"]+)"', chart) == ["M0 25H100"]
    assert "b: no figure" in chart
    assert "at most 3" in chart


def test_nights_stand_where_their_days_are() -> None:
    chart = trend({"": [1.0, 2.0, 2.0]}, list("abc"), what="", unit="", write=str, places=[0.05, 0.15, 0.95])
    assert re.findall(r'class="line now" d="([^"]+)"', chart) == ["M5 50L15 0L95 0"]
    assert re.findall(r'class="touch" x="([^"]+)" y="0" width="([^"]+)"', chart) == [
        ("0", "10"),
        ("10", "45"),
        ("55", "45"),
    ]


def test_on_an_axis_of_decades_little_shows_beside_much() -> None:
    chart = trend({"": [0.0, 0.0004, 0.3]}, list("abc"), what="", unit="", write=str, decades=True)
    (line,) = re.findall(r'class="line now" d="([^"]+)"', chart)
    heights = [float(point.split()[1]) for point in re.split("[ML]", line)[1:]]
    assert heights == pytest.approx([100, 100 * (1 - 1.602 / 5), 100 * (1 - 4.477 / 5)], abs=0.1)
    assert [write for write in ("0.0", "0.0001", "0.001", "0.01", "0.1", "1.0") if f">{write}<" in chart] == [
        "0.0", "0.0001", "0.001", "0.01", "0.1", "1.0"
    ]  # fmt: skip


def test_a_threshold_far_above_is_told_but_does_not_press_the_line_flat() -> None:
    chart = trend({"": [0.01, 0.02]}, ["a", "b"], what="", unit="", write=str, threshold=1.0,
                  threshold_text="at most 1")  # fmt: skip
    assert "line threshold" not in chart
    assert "at most 1" in chart


def test_charts_of_nothing_are_empty_and_no_error() -> None:
    assert heights(over_time([], 1, what="")) == []
    assert heights(histogram([0], [], what="", unit="", edge=str)) == []
    assert "<li>" not in bars([], what="")
    assert "rect" not in trend({}, [], what="", unit="", write=str)


def test_the_environment_is_strict_and_escapes() -> None:
    made = page._environment()
    assert isinstance(made, Environment)
    assert made.autoescape is True
    assert made.undefined is StrictUndefined
