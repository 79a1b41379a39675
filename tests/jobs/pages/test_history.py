"""The nights of a job, from what runs have left in the ledger: as a table, as a page, and by `stint report`."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from rich.console import Console

from jobs.cli import main
from jobs.errors import BAD_SPEC, COMPLETE
from jobs.pages.history import LOG_WIDTH, Night, by_day, history_page, nights, nights_table
from jobs.plan.job import Job
from jobs.progress.snapshot import Snapshot
from jobs.report.journal import Journal
from jobs.spec.load import load_spec
from tests.support.browser import VIEWS, shown
from tests.support.report_examples import (
    HOSTILE_KEY,
    complete_report,
    early_report,
    failed_report,
    hostile_nights,
    nights_example,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@dataclass
class Ledger:
    """A job whose runs leave what a test says."""

    spec: str
    job: Job

    def reported(self, run_id: str, **changes: Any) -> str:
        """A run that is over."""
        own = {"root": self.job.ledger.root, "run_id": run_id, "output": self.job.store.url}
        return self.left(run_id, "report.json", json.dumps(complete_report() | own | changes))

    def left(self, run_id: str, name: str, text: str) -> str:
        self.job.store.create(f"_stint/runs/{run_id}/{name}", text.encode())
        return run_id

    def died(self, run_id: str, **changes: Any) -> str:
        """A run that left its spec and its journal."""
        known = {
            "run_id": run_id, "job": "products", "root": self.job.ledger.root, "at": "2026-03-02T02:10:00+00:00",
            "elapsed_s": 100.0, "rows_total": 5_000, "rows_ok": 1_990, "rows_bad": 10, "rows_gone": 0,
            "rows_elsewhere": 0, "shards_total": 10, "shards_done": 4, "core_hours": 0.5, "cost": 0.04,
        }  # fmt: skip
        journal = Journal(self.job.store, run_id, pytest.fail)
        journal.show(Snapshot(**(known | changes)))
        journal.close()
        return self.left(run_id, "spec.json", "{}")

    def nights(self, most: int = 400) -> list[Night]:
        return nights(self.job.store, self.job.ledger.root, most)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    (tmp_path / "w.safetensors").write_bytes(b"weights")
    spec = {
        "name": "products",
        "input": {"uri": str(tmp_path / "images")},
        "model": {
            "arch": "workers.digits:digits_cnn",
            "weights": str(tmp_path / "w.safetensors"),
            "preprocess": {"resize": 32, "crop": 32, "mean": [0.3] * 3, "std": [0.35] * 3},
        },
        "output": {"uri": str(tmp_path / "out")},
    }
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(spec))
    return Ledger(str(file), Job.open(load_spec(str(file), []), writing=False))


Printed = Callable[[], str]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    def out() -> str:
        return capsys.readouterr().out

    return out


# ------------------------------------------------------------------------------------------ what the ledger has


def test_nights_are_rows_with_the_newest_last(ledger: Ledger) -> None:
    second = ledger.reported("20260302T020000Z-bbbbbb", as_of="2026-03-02")
    first = ledger.reported("20260301T020000Z-cccccc", as_of="2026-03-01")
    found = ledger.nights()
    assert [(night.run_id, night.day) for night in found] == [(first, "2026-03-01"), (second, "2026-03-02")]
    report = complete_report()
    assert found[0] == Night(
        run_id=first,
        day="2026-03-01",
        outcome="complete",
        rows=report["rows_ok"] + report["rows_bad"],
        bad_share=report["rows_bad"] / (report["rows_ok"] + report["rows_bad"]),
        rate=report["rate"],
        elapsed_s=report["elapsed_s"],
        core_hours=report["core_hours"],
        cost=report["cost"],
        cost_per_million=report["cost_per_million"],
        psi_classes=report["drift"]["classes"]["psi"],
        psi_scores=report["drift"]["scores"]["psi"],
        max_psi=0.02,
        flags=report["drift"]["flags"],
    )


def test_runs_of_other_models_and_what_is_damaged_or_foreign_are_passed_over(ledger: Ledger) -> None:
    ledger.reported("20260301T020000Z-aaaaaa", root="model=products-000000000000")
    ledger.left("20260301T030000Z-bbbbbb", "report.json", '{"root": ')
    ledger.left("20260301T040000Z-cccccc", "report.json", "[1, 2]")
    ledger.left("20260301T050000Z-dddddd", "notes.txt", "not ours")
    ledger.died("20260301T060000Z-eeeeee", root="model=products-000000000000")
    kept = ledger.reported("20260302T020000Z-ffffff")
    assert [night.run_id for night in ledger.nights()] == [kept]


def test_runs_of_another_job_with_the_same_model_are_none_of_this_ones_nights(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = ledger.reported("20260301T020000Z-aaaaaa", job="products")
    other = ledger.reported("20260302T020000Z-bbbbbb", job="returns")
    assert [night.run_id for night in ledger.nights()] == [mine, other]
    assert main(["report", ledger.spec, "--history"]) == COMPLETE
    shown = capsys.readouterr().out
    assert (mine in shown, other in shown) == (True, False)


def test_figures_that_are_no_numbers_are_missing_ones(ledger: Ledger) -> None:
    ledger.reported(
        "20260301T020000Z-aaaaaa", rate="fast", cost=None, cost_per_million=float("nan"), drift=[], rows_ok=None,
        rows_bad=None, elapsed_s=float("inf"),
    )  # fmt: skip
    (night,) = ledger.nights()
    assert (night.rate, night.cost, night.cost_per_million, night.elapsed_s) == (None, None, None, None)
    assert (night.psi_classes, night.flags) == (None, ())
    assert (night.rows, night.bad_share) == (0, None)


def test_a_report_without_its_day_is_of_the_one_on_which_it_began(ledger: Ledger) -> None:
    early = early_report() | {"root": ledger.job.ledger.root, "outcome": "complete", "rows_ok": 2_000, "rows_bad": 0,
                              "cost_per_million": 250.0, "rows_scored_here": 2_000}  # fmt: skip
    ledger.left("20260301T020000Z-aaaaaa", "report.json", json.dumps(early))
    (night,) = ledger.nights()
    assert (night.day, night.rows, night.cost_per_million) == ("2026-03-01", 2_000, 250.0)


def test_a_run_that_died_without_a_report_is_a_night_as_far_as_its_journal_tells(ledger: Ledger) -> None:
    run_id = ledger.died("20260302T020000Z-dddddd")
    (night,) = ledger.nights()
    assert (night.run_id, night.day, night.outcome, night.ok) == (run_id, "2026-03-02", "unfinished", False)
    assert (night.rows, night.bad_share, night.rate) == (2_000, 0.005, 20.0)
    assert (night.core_hours, night.cost, night.cost_per_million) == (0.5, 0.04, 20.0)


def test_only_the_newest_nights_are_read(ledger: Ledger) -> None:
    runs = [ledger.reported(f"202603{day:02d}T020000Z-aaaaaa") for day in range(1, 8)]
    assert [night.run_id for night in ledger.nights(most=3)] == runs[-3:]


# ------------------------------------------------------------------------------------------ the page


def test_runs_of_one_day_are_one_night_and_a_row_counts_once(ledger: Ledger) -> None:
    def run(hour: int, **changes: Any) -> str:
        return ledger.reported(f"20260301T{hour:02d}0000Z-aaaaaa", as_of="2026-03-01", **changes)

    run(1, outcome="Interrupted", rows_ok=400, rows_bad=0, cost=1.0)
    run(2, rows_ok=590, rows_bad=10, cost=2.0, rate=50.0)
    last = run(3, rows_ok=0, rows_bad=0, rows_scored_here=0, cost=0.0, rate=0.0, drift={})
    ledger.reported("20260309T020000Z-bbbbbb", as_of="2026-03-09")
    night, other = by_day(ledger.nights())
    assert (night.run_id, night.day, night.runs, night.outcome) == (last, "2026-03-01", 3, "complete")
    assert (night.rows, night.bad_share, night.rate, night.cost) == (1000, 0.01, 50.0, 3.0)
    assert night.psi_classes == other.psi_classes
    assert (other.day, other.runs) == ("2026-03-09", 1)
    page = history_page("products", "model=x", "out", ledger.nights())
    assert re.search(r"<dt>Nights</dt><dd>2<small>4 runs", page)
    assert "M5.56 " in page  # of nine days, the first is in the middle of its column


def test_figures_at_the_top_are_of_days_and_a_quiet_run_after_a_night_changes_none(ledger: Ledger) -> None:
    ledger.reported("20260301T020000Z-aaaaaa", as_of="2026-03-01", rows_ok=1, rows_bad=0, drift={})
    ledger.reported("20260302T020000Z-bbbbbb", as_of="2026-03-02", rows_ok=1, rows_bad=0, outcome="RunFailed", drift={})
    quiet = {"rows_ok": 0, "rows_bad": 0, "rate": 0.0, "rows_scored_here": 0}
    ledger.reported("20260302T090000Z-cccccc", as_of="2026-03-02", **quiet)
    page = history_page("products", "model=x", "out", ledger.nights())
    words = " ".join(re.sub("<[^>]*>", " ", page).split())
    rate = f"{complete_report()['rate']:,.0f}"
    assert "Nights 2 3 runs, 2026-03-01 to 2026-03-02 Complete nights 2 100% Nights with drift 1" in words
    assert f"Last complete 2026-03-02 1 row at {rate} a second" in words
    page = history_page("products", "model=x", "out", ledger.nights()[-1:])
    assert "<small>nothing new to score</small>" in page
    assert "<small>1 run, " in page


def test_a_chart_of_what_no_night_tells_is_left_out(ledger: Ledger) -> None:
    for day in ("01", "02"):
        ledger.reported(f"202603{day}T020000Z-aaaaaa", as_of=f"2026-03-{day}", drift={}, cost_per_million=None)
    page = history_page("products", "model=x", "out", ledger.nights())
    assert re.findall("<h3>(.*?)</h3>", page) == ["Rows", "Rate", "Bad rows", "Duration"]


def test_the_page_of_nights_loads_nothing_fits_its_window_and_can_be_read(browser: Browser, tmp_path: Path) -> None:
    page = history_page("products", "model=products-5d2c81a09be4", "s3://shop/products", nights_example())
    with shown(browser, page, tmp_path) as it:
        assert it.empty_sections() == []
        ids = it.page.evaluate("() => [...document.querySelectorAll('section')].map(it => it.id)")
        assert ids == ["trends", "nights"]
        for view in VIEWS:
            it.view(*view)
            assert (view, it.overflowing(), it.faint()) == (view, [], [])
            it.screenshot("nights-{}-{}".format(*view))
        assert it.problems == []


def test_hostile_values_of_nights_are_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    with shown(browser, history_page("J" * 200, "model=x", "o" * 900, hostile_nights()), tmp_path) as it:
        for view in VIEWS:
            it.view(*view)
            assert (view, it.overflowing()) == (view, [])
        assert HOSTILE_KEY in it.page.inner_text("#nights")
        assert it.problems == []


@pytest.mark.parametrize(("number", "printed"), [(0, "there are none so far"), (1, "there is one so far")])
def test_too_few_nights_for_a_trend_are_told(number: int, printed: str) -> None:
    page = history_page("products", "model=x", "out", nights_example(number))
    assert printed in page
    assert "No run of this model" in page or number


def test_the_page_lists_the_newest_night_first() -> None:
    of = nights_example(3)
    page = history_page("products", "model=x", "out", of)
    assert page.index(of[2].run_id) < page.index(of[1].run_id) < page.index(of[0].run_id)


# ------------------------------------------------------------------------------------------ the command


def test_the_last_run_is_told_again_with_where_its_page_is(ledger: Ledger, printed: Printed) -> None:
    ledger.reported("20260301T020000Z-aaaaaa")
    last = ledger.reported("20260302T020000Z-bbbbbb")
    ledger.left(last, "report.html", "<!doctype html>")
    assert main(["report", ledger.spec]) == COMPLETE
    text = printed()
    assert text.startswith("complete: 12,042,240 rows = 12,038,828 ok + 3,412 bad")
    assert text.endswith(f"report: {ledger.job.store.url}/_stint/runs/{last}/report.html\n")


def test_a_run_that_failed_is_told_with_the_way_out(ledger: Ledger, printed: Printed) -> None:
    ended = {name: failed_report()[name] for name in ("outcome", "error", "next_step")}
    ledger.reported("20260301T020000Z-aaaaaa", **ended, passed_over=[["named .json", 2, "in/a.json"]])
    assert main(["report", ledger.spec]) == COMPLETE
    text = printed()
    assert "\npassed over: named .json: 2, as in/a.json\n" in text
    assert text.startswith("BadRowsExceeded: plan 59 (2026-03-01): 3,412 of 12,042,240 rows are bad")
    assert "next: look at the rows named above" in text
    assert "--html FILE makes one" in text


def test_the_page_of_any_run_is_written_to_a_file(ledger: Ledger, printed: Printed, tmp_path: Path) -> None:
    first = ledger.reported("20260301T020000Z-aaaaaa", bad_examples=[])
    ledger.reported("20260302T020000Z-bbbbbb", bad_examples=[])
    file = tmp_path / "page.html"
    assert main(["report", ledger.spec, "--run", first, "--html", str(file)]) == COMPLETE
    assert printed() == f"page: {file}\n"
    assert first in file.read_text()


def test_a_run_that_died_has_a_page_made_of_its_journal(ledger: Ledger, tmp_path: Path) -> None:
    run_id = ledger.died("20260302T020000Z-dddddd")
    file = tmp_path / "page.html"
    assert main(["report", ledger.spec, "--html", str(file)]) == COMPLETE
    text = file.read_text()
    assert run_id in text
    assert "Unfinished" in text


def test_nights_are_a_table_on_the_terminal(ledger: Ledger, printed: Printed) -> None:
    ledger.reported("20260301T020000Z-aaaaaa", as_of="2026-03-01")
    ledger.died("20260302T020000Z-dddddd")
    assert main(["report", ledger.spec, "--history"]) == COMPLETE
    first, second = printed().splitlines()[-2:]
    assert first.split()[:3] == ["2026-03-01", "Complete", "12,042,240"]
    assert first.split()[-2:] == ["DRIFT", "20260301T020000Z-aaaaaa"]
    assert second.split()[:3] == ["2026-03-02", "Unfinished", "2,000"]


@pytest.mark.parametrize("width", [80, 96, 116, LOG_WIDTH])
def test_the_table_of_nights_fits_the_terminal_with_every_figure_whole(width: int) -> None:
    of = nights_example(60)
    text = io.StringIO()
    Console(file=text, width=width).print(nights_table(of, width))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert len(of) + 3 <= len(lines) <= len(of) + 4  # one outcome is long, and may take two lines
    assert "\N{HORIZONTAL ELLIPSIS}" not in text.getvalue()


def test_nights_are_a_page_in_a_file(ledger: Ledger, printed: Printed, tmp_path: Path) -> None:
    run_id = ledger.reported("20260301T020000Z-aaaaaa")
    file = tmp_path / "nights.html"
    assert main(["report", ledger.spec, "--history", "--html", str(file)]) == COMPLETE
    assert run_id in file.read_text()


def test_without_any_run_or_with_an_unknown_one_the_command_says_what_to_do(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", ledger.spec]) == BAD_SPEC
    assert "next: run the job first" in capsys.readouterr().err
    assert main(["report", ledger.spec, "--run", "20260101T000000Z-000000"]) == BAD_SPEC
    assert "no run 20260101T000000Z-000000" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named(
    ledger: Ledger, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ledger.reported("20260301T020000Z-aaaaaa", bad_examples=[])
    assert main(["report", ledger.spec, "--html", str(tmp_path / "nowhere/page.html")]) == BAD_SPEC
    assert "nowhere/page.html: No such file or directory" in capsys.readouterr().err
