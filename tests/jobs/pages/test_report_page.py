"""The page of a run: in a real browser, light and dark, wide and narrow; and what it says where figures are missing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from jobs.pages.run_page import report_page
from jobs.report.report import REPORT_VERSION, read_report, summary
from tests.support import browser as looking
from tests.support.browser import VIEWS, shown
from tests.support.report_examples import (
    HOSTILE_KEY,
    HOSTILE_LABEL,
    complete_report,
    early_report,
    failed_report,
    hostile_report,
    large_report,
    small_labels_report,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

REPORTS: dict[str, Callable[[], dict[str, Any]]] = {
    "complete": complete_report,
    "matrix": small_labels_report,
    "failed": failed_report,
    "early": early_report,
    "hostile": hostile_report,
    "large": large_report,
}


def page_of(report: dict[str, Any]) -> str:
    """Of the report as it comes back from the store."""
    return report_page(read_report(json.loads(json.dumps(report))))


def text_of(page: str) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split())


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.DOTALL)
    assert found, name
    return text_of(found[0])


# ------------------------------------------------------------------------------------------ in the browser


@pytest.mark.parametrize("name", REPORTS)
def test_the_page_loads_nothing_fits_its_window_and_can_be_read(browser: Browser, tmp_path: Path, name: str) -> None:
    with shown(browser, page_of(REPORTS[name]()), tmp_path) as it:
        assert it.empty_sections() == []
        for view in VIEWS:
            it.view(*view)
            assert (view, it.overflowing(), it.faint()) == (view, [], [])
            if name == "complete":
                it.screenshot("report-{}-{}".format(*view))
        assert it.problems == []


def test_every_section_is_there_under_its_id_and_can_be_reached_from_the_top(browser: Browser, tmp_path: Path) -> None:
    with shown(browser, page_of(complete_report()), tmp_path) as it:
        ids = it.page.evaluate("() => [...document.querySelectorAll('section')].map(it => it.id)")
        links = it.page.evaluate("() => [...document.querySelectorAll('nav a')].map(it => it.hash.slice(1))")
    assert ids == [
        "outcome", "rows", "throughput", "workers", "stages", "shards", "predictions", "accuracy", "cost", "failures",
        "time", "run",
    ]  # fmt: skip
    assert links == ids[1:]


def test_light_and_dark_are_different_pages_of_the_same_words(browser: Browser, tmp_path: Path) -> None:
    seen = {}
    with shown(browser, page_of(complete_report()), tmp_path) as it:
        for scheme in ("light", "dark"):
            it.view(1280, scheme)
            paper = it.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
            bars = it.page.evaluate("() => getComputedStyle(document.querySelector('#throughput rect.now')).fill")
            seen[scheme] = (it.page.inner_text("main"), paper, bars)
    light, dark = seen["light"], seen["dark"]
    assert light[0] == dark[0]
    assert light[1] != dark[1]
    assert light[2] != dark[2]


def test_bars_show_what_the_figures_say(browser: Browser, tmp_path: Path) -> None:
    report = complete_report()
    with shown(browser, page_of(report), tmp_path) as it:
        widths = it.page.evaluate(
            "() => [...document.querySelectorAll('#predictions .bar.now')].map(it => it.getBoundingClientRect().width)"
        )
    top = sorted(report["classes"].values(), reverse=True)[:20]
    longest = max(top) / report["rows_ok"]
    before = report["drift"]["classes_before"]
    scale = max(longest, max(before.values()) / sum(before.values())) * report["rows_ok"]
    track = widths[0] / (top[0] / scale)
    assert widths == pytest.approx([max(2, track * rows / scale) for rows in top], abs=0.5)


def test_hostile_values_are_shown_as_text(browser: Browser, tmp_path: Path) -> None:
    with shown(browser, page_of(hostile_report()), tmp_path) as it:
        words = it.page.inner_text("main")
        scripts, bold, pictures = it.page.evaluate(
            "() => ['script', 'b b, dd b', 'img'].map(what => document.querySelectorAll(what).length)"
        )
        assert it.problems == []
    assert HOSTILE_LABEL in words
    assert HOSTILE_KEY in words
    assert (scripts, bold, pictures) == (0, 0, 0)


def test_the_policy_lets_no_script_run_whatever_gets_into_the_page(browser: Browser, tmp_path: Path) -> None:
    page = page_of(complete_report()).replace("</main>", "<script>document.title = 'it ran'</script></main>")
    with shown(browser, page, tmp_path) as it:
        assert it.page.title() != "it ran"
        assert any("Content Security Policy" in problem for problem in it.problems)


def test_a_table_of_many_workers_is_folded_and_scrolls_in_its_own_box(browser: Browser, tmp_path: Path) -> None:
    with shown(browser, page_of(large_report()), tmp_path, width_px=390) as it:
        folded = it.page.locator("#workers details")
        assert folded.get_attribute("open") is None
        folded.locator("summary").click()
        scrolls = folded.locator(".scroll").evaluate("it => it.scrollWidth > it.clientWidth")
        assert scrolls
        assert it.overflowing() == []


def test_what_is_to_be_cut_off_or_faint_or_loaded_is_found(browser: Browser, tmp_path: Path) -> None:
    page = page_of(early_report()).replace(
        "</main>",
        '<p style="white-space:nowrap">' + "wide " * 200 + '</p><p style="color:#999;background:#fff">faint</p>'
        '<p style="overflow:hidden;width:3em;white-space:nowrap">cut off here</p>'
        '<img src="https://example.invalid/pixel.png" alt=""></main>',
    )
    page = page.replace("img-src data:", "img-src *")
    with shown(browser, page, tmp_path, width_px=390) as it:
        assert len(it.overflowing()) >= 3
        assert any("faint" in text for text in it.faint())
        assert any("example.invalid" in problem for problem in it.problems)


def test_without_a_browser_its_tests_are_skipped_with_the_reason_or_fail_where_it_is_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(looking, "CHROMIUM", tmp_path / "chromium")
    monkeypatch.delenv("STINT_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="make browser"):
        looking.needed()
    monkeypatch.setenv("STINT_BROWSER", "required")
    with pytest.raises(looking.Unavailable, match="make browser"):
        looking.needed()


# ------------------------------------------------------------------------------------------ what it says


def test_a_complete_run_says_so_first_and_shows_its_key_numbers() -> None:
    words = section(page_of(complete_report()), "outcome")
    for text in (
        "Complete",
        "12,042,240 rows",
        "22m33s",
        "Rows ok 12,038,828",
        "Bad rows 3,412 0.03% of those scored by this run",
        "2.89",
    ):
        assert text in words
    assert "predicted classes: PSI" in words


def test_a_failed_run_says_what_happened_and_what_to_do() -> None:
    words = section(page_of(failed_report()), "outcome")
    assert "Too many bad rows" in words
    assert "limits.bad_rows allows 0.01%" in words
    assert "Next: look at the rows named above" in words


def test_rows_are_counted_of_the_run_of_each_of_its_plans_and_of_the_data_set() -> None:
    words = section(page_of(complete_report()), "rows")
    assert "Rows All Ok Bad Bad share Gone Scored by other runs Not scored yet Scored by this run 12,0" in words
    assert "plan 58 (2026-02-28), open, with too many bad rows 11,208,333 8,811,004 260,711 2.87% 0 1,120,400" in words
    assert "data set, 59 plans 657,951,471 655,402,113 412,007 0.06% 733 1,120,400 1,016,218" in words
    assert "Plans accepted with their bad rows: 1 plan 31 (2026-02-01): the shop knows" in words


def test_the_summary_names_files_that_were_gone() -> None:
    of = {"plans": [1], "rows_ok": 8, "rows_gone": 4}
    assert "claimed\n" in summary(read_report(of))
    assert "after it was claimed: a, b\n" in summary(read_report(of | {"gone": ["a", "b"]}))


def test_the_summary_says_whose_bad_rows_it_names_where_its_plans_have_others() -> None:
    plan = {"plan": 1, "day": "", "state": "done", "rows": {"ok": 6, "bad": 4, "gone": 0}, "why": ""}
    own = {"plans": [1], "of_plans": [plan], "bad_by_code": {"truncated": 2}, "bad_samples": {}}
    of = early_report() | own | {"outcome": "complete", "report_version": REPORT_VERSION, "rows_ok": 1, "rows_bad": 2}
    assert "\nbad rows of this run: 2 truncated\n" in summary(read_report(of))
    assert "\nbad rows: 2 truncated\n" in summary(read_report(of | {"rows_bad": 4}))


def test_time_is_told_in_the_words_of_the_terminal() -> None:
    words = section(page_of(complete_report()), "time")
    for text in ("listing input and ledger", "connecting to Ray", "waiting for workers", "finishing: done records"):
        assert text in words


def test_one_of_something_is_no_plural() -> None:
    one = complete_report() | {"rows_scored_here": 1, "shards_scored_here": 1, "bad_by_code": {"truncated": 1}}
    words = " ".join(re.sub("<[^>]*>", " ", page_of(one)).split())
    assert not re.search(r"\b(?<![,.])1 (rows|shards|workers|attempts|predictions|nodes|cores|nights)\b", words)


def test_an_outcome_that_this_version_does_not_know_is_a_failure_under_its_own_name() -> None:
    words = section(page_of(early_report() | {"outcome": "SomethingNew"}), "outcome")
    assert "Failed The run ended with SomethingNew" in words


def test_sections_without_figures_are_not_there_nor_are_links_to_them() -> None:
    page = page_of(early_report())
    assert re.findall(r'<section id="(\w+)"', page) == ["outcome", "run"]
    assert re.findall(r'<a href="#(\w+)"', page) == ["run"]


def test_at_the_top_stands_what_changed_since_the_last_night_like_this_one() -> None:
    words = section(page_of(complete_report()), "outcome")
    assert "Since the last night like this one, 2026-02-28 Then Now Change" in words
    assert "Rows scored 11,208,333 12,042,240 +7%" in words
    assert "Engine torch-int8/x86-no-vnni torch-int8/x86-vnni changed" in words
    assert "Nodes 6 6 the same" in words
    assert "Since the last night" not in page_of(early_report())


def test_the_whole_of_a_message_can_be_read_however_narrow_the_window(browser: Browser, tmp_path: Path) -> None:
    with shown(browser, page_of(failed_report()), tmp_path) as it:
        for width_px in (1280, 390):
            it.view(width_px, "light")
            cut = it.page.evaluate("() => { const it = document.querySelector('.ending pre'); "
                                   "return it.scrollWidth > it.clientWidth; }")  # fmt: skip
            assert not cut
            it.screenshot(f"failed-{width_px}")


def test_a_table_that_scrolls_shows_it_by_a_shade_where_there_is_more(browser: Browser, tmp_path: Path) -> None:
    with shown(browser, page_of(complete_report()), tmp_path, width_px=390) as it:
        shades = it.page.evaluate(
            "() => [...document.querySelectorAll('.scroll')].filter(it => it.scrollWidth > it.clientWidth)"
            ".map(it => getComputedStyle(it).backgroundAttachment)"
        )
    assert shades
    assert set(shades) == {"local, local, scroll, scroll"}


def test_fields_of_another_kind_than_this_version_has_are_passed_over() -> None:
    report = complete_report() | {"classes": "many", "workers": None, "cost": "2.89", "shard_times": [], "plans": 7}
    known = read_report(report)
    assert (known.classes, known.workers, known.cost, known.plans) == ({}, [], None, [])
    assert 'id="workers"' not in report_page(known)


def test_names_of_files_that_are_not_unicode_do_not_lose_a_report() -> None:
    known = read_report(complete_report() | {"changed": ["caf\udce9.jpg"]})
    assert known.changed == ["caf?.jpg"]
    assert known.rows_ok == complete_report()["rows_ok"]


def test_a_run_without_labels_says_that_true_accuracy_is_not_known() -> None:
    report = complete_report()
    report["accuracy"] |= {"top1": None, "top1_fp32": None, "labelled_rows": 0}
    report["confusion"] = []
    words = section(page_of(report), "accuracy")
    assert "98.83%" in words
    assert "True accuracy is not known" in words


def test_embeddings_are_compared_by_their_vectors_alone() -> None:
    gone = {"confusion": [], "disagreements": [], "classes": {}, "scores": [], "drift": {}}
    report = complete_report() | gone | {"task": "embed"}
    report["accuracy"] |= {"top1_agreement": 0.11, "top1": None, "top1_fp32": None, "labelled_rows": 0}
    words = section(page_of(report), "accuracy")
    assert "Cosine 0.9987" in words
    assert "top-1" not in words
    assert 'id="predictions"' not in page_of(report)


def test_a_run_of_a_moment_has_no_picture_of_its_throughput_but_a_line() -> None:
    words = section(page_of(complete_report() | {"throughput": {"step_s": 1, "rows": [899]}}), "throughput")
    assert "over too soon" in words


def test_few_labels_make_a_matrix_and_many_a_list_of_errors() -> None:
    matrix, errors = (section(page_of(it()), "accuracy") for it in (small_labels_report, complete_report))
    assert "true class down, prediction across" in matrix
    assert "Most frequent errors" not in matrix
    assert "Most frequent errors" in errors


def test_the_bottleneck_and_what_it_means_are_told() -> None:
    assert "Predict (61% of the workers" in section(page_of(complete_report()), "stages")


@pytest.mark.parametrize(
    ("idle_share", "words"), [(0.02, "Nearly all of the time"), (0.1, "For a part of"), (0.5, "Fewer workers")]
)
def test_the_idle_share_is_told_with_what_it_means(idle_share: float, words: str) -> None:
    report = complete_report()
    report["idle_core_hours"] = report["core_hours"] * idle_share
    assert words in section(page_of(report), "cost")


def test_without_a_price_the_page_says_where_to_set_one() -> None:
    assert "cost.per_cpu_hour is not set" in section(page_of(failed_report()), "cost")


def test_a_credential_in_a_report_is_not_on_its_page() -> None:
    report = complete_report() | {"output": "https://user:hunter2-secret@host/out", "outcome": "RunFailed"}
    report["error"] = "GET https://host/x?X-Amz-Signature=0123456789abcdef failed"
    page = page_of(report)
    assert "hunter2-secret" not in page
    assert "0123456789abcdef" not in page
