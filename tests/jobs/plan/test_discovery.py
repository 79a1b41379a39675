"""What is told of days that no run has looked at, and where rows of other days' files may point."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from jobs.plan.discovery import Discovery, discover
from jobs.plan.job import Job
from jobs.queries.verify import verify
from jobs.spec.days import parse_day
from jobs.spec.load import load_spec
from tests.support.small_ledger import SmallLedger
from tests.support.tars import archive
from workers.storage.errors import StoreDenied, StoreError

DAYS = ("2026-03-01", "2026-03-02", "2026-03-03", "2026-03-04")


def job_of(folder: Path, day: str, **given: Any) -> Job:
    small = SmallLedger(folder, input=given)
    return Job.open(load_spec(str(small.spec), []), parse_day(day), writing=False)


def found_without_the_second_day(folder: Path, **given: Any) -> Discovery:
    """Of the fourth, after runs on the first and the third, which was the last day of the input."""
    small = SmallLedger(folder)
    for day in DAYS:
        (small.folder / "in" / day / "old").mkdir(parents=True)
        for name in ("a.parquet", "b.parquet", "old/c.parquet"):
            small.put(f"{day}/{name}", [1, 2], lambda _: b"x")
    given = {"uri": f"{folder}/in/{{as_of}}/", **given}
    for day in (DAYS[0], DAYS[2]):
        job = job_of(folder, day, **given)
        assert job.ledger.claim(discover(job).content) is not None
    return discover(job_of(folder, DAYS[3], **given))


@pytest.mark.parametrize(
    ("given", "files"),
    [
        ({}, 3),
        ({"uri": ["{folder}/in/{{as_of}}/", "!**/old/"]}, 2),
        ({"uri": ["{folder}/in/{{as_of}}/", "!{folder}/in/{{as_of}}/a*", "!**/old/"]}, 1),
        ({"uri": ["{folder}/in/{{as_of}}/a*", "{folder}/in/{{as_of}}/b*"]}, 2),
        ({"uri": ["{folder}/in/{{as_of}}/", "!{folder}/in/2026-03-02/"]}, 0),
    ],
    ids=str,
)
def test_a_day_that_no_run_looked_at_is_told_with_the_files_that_are_wanted(
    tmp_path: Path, given: dict[str, list[str]], files: int
) -> None:
    given = {key: [place.format(folder=tmp_path) for place in places] for key, places in given.items()}
    assert found_without_the_second_day(tmp_path, **given).overlooked == ({DAYS[1]: files} if files else {})


@pytest.mark.parametrize("error", [StoreError("later"), StoreDenied("never")], ids=str)
def test_a_store_that_does_not_list_such_a_day_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    found = found_without_the_second_day(tmp_path)

    def fails(*_: object) -> object:
        raise error

    monkeypatch.setattr("jobs.plan.discovery.list_input", fails)
    assert found.overlooked == {}


def test_plans_of_days_before_those_that_are_looked_back_at_are_not_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = found_without_the_second_day(tmp_path)
    nights = [replace(found.plans[0], number=n + 1, day=f"2025-01-{n + 1:02}") for n in range(30)]
    looked_into = []
    matches = pc.match_substring_regex
    monkeypatch.setattr(pc, "match_substring_regex", lambda uris, _: looked_into.append(len(uris)) or matches(uris, _))
    assert replace(found, plans=[*nights, *found.plans]).overlooked == {DAYS[1]: 3}
    assert len(looked_into) <= 2 * 14
    unnamed = [replace(plan, day="") for plan in found.plans]
    assert replace(found, plans=unnamed).overlooked == {DAYS[1]: 3}, "plans of earlier releases do not tell their day"


@pytest.mark.parametrize(
    ("given", "roots"),
    [
        ({"uri": "{folder}/in/{{as_of}}/"}, ["2026-03-04", "2026-03-01"]),
        ({"uri": "{folder}/in/{{as_of}}/**/*.parquet"}, ["2026-03-04", "2026-03-01"]),
        ({"uri": "{folder}/in/{{as_of:%Y}}-03-{{as_of:%d}}/t*/"}, ["2026-03-04", "2026-03-01"]),
        ({"uri": None, "manifest": "{folder}/in/{{as_of}}/list.parquet"}, ["2026-03-04", "2026-03-01"]),
        ({"uri": None, "manifest": "{folder}/in/{{as_of}}.parquet"}, [""]),
    ],
    ids=str,
)
def test_rows_of_a_file_of_another_day_may_point_into_its_own_folder(
    tmp_path: Path, given: dict[str, str | None], roots: list[str]
) -> None:
    given = {key: place and place.format(folder=tmp_path) for key, place in given.items()}
    job = job_of(tmp_path, DAYS[3], **given)
    file = f"{tmp_path}/in/2026-03-01/tables/a.parquet"
    assert job.input_spec(uris=[file]).uri_roots == tuple(f"{tmp_path}/in/{day}".rstrip("/") for day in roots)


def test_members_of_a_tar_that_are_not_scored_are_among_what_is_passed_over(tmp_path: Path) -> None:
    small = SmallLedger(tmp_path, input={"format": "webdataset", "keys": ["__key__"]})
    members = [(f"{n}.{end}", b"x") for n in range(3) for end in ("jpg", "seg.png", "mask.png")[: n + 1]]
    for name in ("a.tar", "b.tar"):
        (tmp_path / "in" / name).write_bytes(archive(members[:3] if name == "b.tar" else members[:1]))
    found = discover(small.job)
    [(why, count, example)] = found.listing.passed_over
    assert why.startswith("members in .png beside the image of their sample")
    assert (count, example) == (1, f"{tmp_path}/in/b.tar")
    assert why in "".join(found.lines())
    assert any(f"{why}: 1, as {example}" in note for note in verify(small.job).notes)  # of whatever plan
    (tmp_path / "in/b.tar").write_bytes(archive([("0.jpg", b"x"), ("nameless", b"\xff\xd8\xff")]))
    [(why, count, example)] = discover(small.job).listing.passed_over
    assert why.startswith("images of no sample (name each with a stem and an extension")
    assert (count, example) == (1, f"{tmp_path}/in/b.tar")
