"""Days: what `{as_of}` stands for, and how many runs a backfill takes."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

import pytest

from jobs.errors import SpecError
from jobs.spec.days import (
    Days,
    check_template,
    days_in_zone,
    filled,
    filled_in,
    parse_as_of,
    parse_day,
    parse_days,
    runs,
    today,
)

MARCH = Days(date(2026, 3, 1), date(2026, 3, 3))


def test_days_are_written_with_two_dots_and_both_ends_count() -> None:
    assert parse_days("2026-03-01..2026-03-03") == MARCH
    assert len(MARCH) == 3
    assert str(MARCH) == "2026-03-01..2026-03-03"
    assert str(parse_day("2026-03-01")) == "2026-03-01"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-03-01", "FROM..TO is wanted"),
        ("2026-03-03..2026-03-01", "FROM comes first"),
        ("1206-03-03..2026-03-01", "3660 days are the most"),
        ("0206-03-03..2026-03-01", "'0206-03-03' is no day"),
        ("2026-03-03..2026-02-31", "day is out of range"),
        ("2026-03-03..", "'' is no day; write it as 2026-03-01"),
    ],
)
def test_days_that_cannot_be_are_explained(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_days(text)


@pytest.mark.parametrize("text", ["2026-03-01", "2026-3-1", "2026/03/01", "2026.3.1", "20260301", " 2026-03-01 "])
def test_a_day_may_be_written_in_each_way_that_has_one_meaning(text: str) -> None:
    assert str(parse_day(text)) == str(parse_as_of(text)) == "2026-03-01"


@pytest.mark.parametrize(
    "text", ["01.03.2026", "03/01/2026", "last night", "2026-03", "2026-03-01T00:00", "2026-02-30", ""]
)
def test_a_day_that_is_none_is_answered_with_one(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no day(; write it as 2026-03-01|: day is out of range)"):
        parse_as_of(text)


def test_yesterday_is_that_of_the_time_zone() -> None:
    late = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
    assert parse_as_of("Yesterday") == 1
    assert str(days_in_zone(1, "UTC", late)) == "2026-02-28"
    assert str(days_in_zone(1, "Europe/Berlin", late)) == "2026-03-01"
    assert str(days_in_zone(0, "UTC", late)) == "2026-03-01"


def test_today_is_that_of_the_time_zone() -> None:
    late = datetime(2026, 3, 1, 23, 30, tzinfo=UTC)
    assert str(today("UTC", late)) == "2026-03-01"
    assert str(today("Europe/Berlin", late)) == "2026-03-02"


def test_a_run_reaches_back_but_never_less_than_asked_for() -> None:
    assert str(parse_day("2026-03-03").reaching_back(3)) == "2026-03-01..2026-03-03"
    assert MARCH.reaching_back(1) == MARCH


def test_a_template_is_filled_once_a_day_oldest_first() -> None:
    assert filled("in/{as_of}/", MARCH) == ["in/2026-03-01/", "in/2026-03-02/", "in/2026-03-03/"]
    assert filled("in/", MARCH) == ["in/"]


def test_a_backfill_is_one_run_unless_every_day_has_an_output_of_its_own() -> None:
    assert runs(None, False, "out") == [None]
    assert runs(MARCH, True, "out") == [MARCH]
    assert [str(days) for days in runs(MARCH, True, "out/{as_of}")] == ["2026-03-01", "2026-03-02", "2026-03-03"]
    with pytest.raises(SpecError, match=r"no \{as_of\} is in input.uri"):
        runs(MARCH, False, "out")


@pytest.mark.parametrize(
    ("template", "first", "count"),
    [
        ("in/{as_of:%Y/%m/%d}/", "in/2026/03/01/", 3),
        ("in/year={as_of:%Y}/month={as_of:%m}/day={as_of:%d}/", "in/year=2026/month=03/day=01/", 3),
        ("in/month={as_of:%-m}/day={as_of:%-d}/", "in/month=3/day=1/", 3),
        ("in/{as_of:%Y-%m}/", "in/2026-03/", 1),
        ("in/{as_of}/hour={as_of:%H}/", "in/2026-03-01/hour=00/", 72),
        ("in/{as_of:%y%j}", "in/26060", 3),
    ],
)
def test_a_template_writes_the_day_as_the_folders_do(template: str, first: str, count: int) -> None:
    places = filled(template, MARCH)
    assert (places[0], len(places), len(set(places))) == (first, count, count)
    assert [filled_in(template, f"{place}/x/a.parquet") for place in places] == places


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        ("in/{as_of:today}", "{as_of:today} names no part of the date; write {as_of}, or {as_of:%Y/%m/%d}"),
        ("in/{as_of:}", "names no part of the date"),
        ("in/{as_of:%Y/%D}", "%D is no part of the date; there are %Y, %y, %j, %m, %d, %H, %-m, %-d, %-H"),
        ("out/{as_of:%H}", "a run is of whole days, so its output cannot depend on the hour"),
    ],
)
def test_a_template_that_cannot_be_filled_is_explained(template: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)):
        check_template(template, hours=not template.startswith("out"))
    check_template("{as_of}/{as_of:%Y/%m/%d/%H}")


@pytest.mark.parametrize(
    ("template", "uri", "place"),
    [
        ("s3://b/in/{as_of}/", "s3://b/in/2026-03-01/t/a.parquet", "s3://b/in/2026-03-01/"),
        ("/in/{as_of}.parquet", "/in/2026-03-01.parquet", "/in/2026-03-01.parquet"),
        ("/in/{as_of}/x/{as_of}", "/in/2026-03-01/x/2026-03-01/a", "/in/2026-03-01/x/2026-03-01"),
        ("/in/{as_of}/x/{as_of}", "/in/2026-03-01/x/2026-03-02/a", None),
        ("/in/{as_of:%Y}/{as_of}", "/in/2026/2026-03-01/a", "/in/2026/2026-03-01"),
        ("/in/{as_of}", "/other/2026-03-01/a", None),
        ("/in/{as_of}", "/in/latest/a.parquet", None),
        ("/in/{as_of}", "/in/2026-13-01/a.parquet", None),
        ("/in/{as_of}", "/in/2026-03-01a/a.parquet", None),
        ("/in", "/in/2026-03-01/a", None),
        ("s3://b/in/{as_of}/*.parquet", "s3://b/in/2026-03-01/a.parquet", "s3://b/in/2026-03-01/*.parquet"),
        ("s3://b/in/{as_of}/*.parquet", "s3://b/in/2026-03-01/a.tar", None),
        ("/in/{as_of:%Y/%m/%d}*/**/t/", "/in/2026/03/01-b/x/y/t/a", "/in/2026/03/01*/**/t/"),
        ("/in/*/{as_of}/x[ab]", "/in/shop/2026-03-01/xa/1.parquet", "/in/*/2026-03-01/x[ab]"),
        ("/in/[{as_of}]", "/in/[2026-03-01]/a.parquet", "/in/[2026-03-01]"),
    ],
)
def test_the_place_that_a_file_lies_in_is_told_by_its_name(template: str, uri: str, place: str | None) -> None:
    assert filled_in(template, uri) == place
