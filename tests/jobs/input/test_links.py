"""Links below the input: what they lead to is found, and taken once."""

from __future__ import annotations

import errno
import os
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import jobs.input.passed_over
from jobs.errors import NothingThere
from jobs.input import below
from jobs.input.listing import list_input
from jobs.input.passed_over import DEAD, DENIED, LOOP, OTHER_NAME, OWN
from jobs.spec.days import Days
from tests.jobs.input.test_passed_over import DAY, counts, listed, names, put
from workers.contract import InputSpec
from workers.storage.errors import StoreError
from workers.storage.filesystems import open_filesystem, version_of


def test_links_to_files_and_folders_are_followed_with_the_version_that_workers_see(tmp_path: Path) -> None:
    put(tmp_path, "elsewhere/a.jpg", "elsewhere/deep/b.jpg", "blobs/0f3c")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/c.jpg").symlink_to("../blobs/0f3c")
    os.utime(tmp_path / "in/c.jpg", (1, 1), follow_symlinks=False)
    found = listed(tmp_path / "in")
    assert names(found, tmp_path / "in") == ["c.jpg", "train/a.jpg", "train/deep/b.jpg"]
    assert found.passed_over == []
    for source in found.sources:
        fs, path = open_filesystem(source.uri)
        assert (version_of(fs.info(path)), fs.info(path)["size"]) == (source.version, source.size)
    before = found.sources[0]
    os.utime(tmp_path / "blobs/0f3c", (9, 9))
    assert listed(tmp_path / "in").sources[0].version != before.version


@pytest.mark.parametrize("uri", ["in", "in/*", "in/**", "in/*.jpg"])
def test_dead_links_and_loops_are_named_and_never_claimed(tmp_path: Path, uri: str) -> None:
    put(tmp_path, "in/a.jpg", "in/deep/b.jpg")
    for n in range(3):
        (tmp_path / f"in/missing{n}.jpg").symlink_to(f"../.dvc/cache/{n}")
    (tmp_path / "in/self.jpg").symlink_to("self.jpg")
    (tmp_path / "in/deep/up").symlink_to("..")
    found = listed(tmp_path / uri)
    assert "in/a.jpg" in names(found, tmp_path)
    assert counts(found)[DEAD] == 4
    if uri in ("in", "in/*"):
        assert counts(found)[LOOP] == 1


def test_only_dead_links_say_how_to_fetch_what_they_lead_to(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.jpg").symlink_to(f"../.git/annex/objects/{n}")
    with pytest.raises(NothingThere, match="links that lead nowhere: 3") as error:
        listed(tmp_path)
    assert "git annex get" in error.value.next_step


def test_a_file_that_is_reached_twice_is_taken_once_by_the_name_that_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the cache of Hugging Face holds it: blobs, and links to them in every snapshot."""
    looked = []
    right = jobs.input.passed_over._kind_of
    monkeypatch.setattr(jobs.input.passed_over, "_kind_of", lambda source: looked.append(source.uri) or right(source))
    put(tmp_path, "blobs/0f3c", "blobs/1d2e")
    for snapshot in ("s1", "s2"):
        (tmp_path / snapshot).mkdir()
        (tmp_path / snapshot / "a.jpg").symlink_to("../blobs/0f3c")
    (tmp_path / "again").symlink_to("s1")
    found = listed(tmp_path)
    assert names(found, tmp_path) == ["again/a.jpg", "blobs/1d2e"]  # a name that says what it is, before a hash
    assert counts(found) == {OTHER_NAME: 3}
    assert looked == [f"{tmp_path}/blobs/1d2e"]  # what another name says is not looked at
    claimed = {f"{tmp_path}/s2/a.jpg": "v"}
    assert names(listed(tmp_path, claimed=claimed), tmp_path) == ["blobs/1d2e", "s2/a.jpg"]
    (tmp_path / "s2/hard.jpg").hardlink_to(tmp_path / "blobs/1d2e")  # a file like any other
    assert names(listed(tmp_path), tmp_path) == ["again/a.jpg", "blobs/1d2e", "s2/hard.jpg"]
    spec = InputSpec(uri=(f"{tmp_path}/s2", f"{tmp_path}/s1"), format="images")
    assert names(list_input(spec, DAY, {}), tmp_path) == ["s1/a.jpg", "s2/hard.jpg"]


def test_a_link_or_a_folder_that_comes_later_is_no_new_file(tmp_path: Path) -> None:
    put(tmp_path, "store/1.jpg", "store/2.jpg")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/current").symlink_to("../store")
    claimed = {source.uri: source.version for source in listed(tmp_path / "in").sources}
    assert [*claimed] == [f"{tmp_path}/in/current/1.jpg", f"{tmp_path}/in/current/2.jpg"]
    (tmp_path / "in/alpha").symlink_to("../store")
    (tmp_path / "in/beta").symlink_to("current")
    found = listed(tmp_path / "in", claimed=claimed)
    assert ([s.uri for s in found.sources], counts(found)) == ([*claimed], {OTHER_NAME: 4})
    (tmp_path / "store").rename(tmp_path / "in/store")
    (tmp_path / "store").symlink_to("in/store")
    assert [s.uri for s in listed(tmp_path / "in", claimed=claimed).sources] == [*claimed]


@pytest.mark.parametrize(
    ("uri", "links"),
    [
        ("in/2026-*", {"in/2026-latest": "2026-03-01"}),
        ("in/*", {"in/2026-latest": "2026-03-01"}),
        ("in/*/*", {"in/2026-latest": "2026-03-01"}),
        ("in/*", {"in/self": "."}),
        (["in/2026-03-01", "in/b"], {"in/b/l": "../2026-03-01"}),
        (["in/b", "in/2026-03-01"], {"in/b/l": "../2026-03-01"}),
        (["in/latest.jpg", "in"], {"in/latest.jpg": "2026-03-01/0.jpg"}),
    ],
)
def test_wildcards_and_several_places_take_a_file_once(tmp_path: Path, uri: Any, links: dict[str, str]) -> None:
    put(tmp_path, *(f"in/2026-03-01/{n}.jpg" for n in range(5)), *(["in/b/x.jpg"] if isinstance(uri, list) else []))
    for link, target in links.items():
        (tmp_path / link).parent.mkdir(exist_ok=True)
        (tmp_path / link).symlink_to(target)
    uris = tuple(f"{tmp_path}/{one}" for one in ([uri] if isinstance(uri, str) else uri))
    found = list_input(InputSpec(uri=uris, format="images"), DAY, {})
    assert names(found, f"{tmp_path}/in") == [f"2026-03-01/{n}.jpg" for n in range(5)] + ["b/x.jpg"] * (len(uris) - 1)


def test_a_day_whose_folder_is_a_link_to_another_days_is_taken_once(tmp_path: Path) -> None:
    put(tmp_path, "2026-02-28/a.jpg")
    (tmp_path / "2026-03-01").symlink_to("2026-02-28")
    days = Days(date(2026, 2, 27), date(2026, 3, 1))
    found = list_input(InputSpec(uri=f"{tmp_path}/{{as_of}}/", days=3, format="images"), days, {})
    assert names(found, tmp_path) == ["2026-02-28/a.jpg"]


def test_a_link_to_what_is_left_out_by_its_own_name_is_followed(tmp_path: Path) -> None:
    put(tmp_path, "releases/7/a.jpg")
    (tmp_path / "current").symlink_to("releases/7")
    spec = InputSpec(uri=(str(tmp_path), f"!{tmp_path}/releases/"), format="images")
    assert names(list_input(spec, DAY, {}), tmp_path) == ["current/a.jpg"]


def test_links_within_links_end(tmp_path: Path) -> None:
    for n in range(12):  # which has more than 10**8 ways through
        put(tmp_path, f"{n}/{n}.jpg")
        for other in {*range(12)} - {n}:
            (tmp_path / f"{n}/to{other}").symlink_to(f"../{other}")
    assert names(listed(tmp_path), tmp_path) == sorted(f"{n}/{n}.jpg" for n in range(12))


def test_a_link_into_the_output_is_named_and_not_followed(tmp_path: Path) -> None:
    put(tmp_path, "in/a.parquet", "out/data/b.parquet", "out2/c.parquet")
    (tmp_path / "in/folder").symlink_to("../out")
    (tmp_path / "in/b.parquet").symlink_to("../out/data/b.parquet")
    (tmp_path / "in/c.parquet").symlink_to("../out2/c.parquet")
    found = listed(tmp_path / "in", "parquet", own=f"{tmp_path}/out")
    assert (names(found, tmp_path / "in"), counts(found)) == (["a.parquet", "c.parquet"], {OWN: 2})
    (tmp_path / "to-in").symlink_to("in/out")
    put(tmp_path, "in/out/d.parquet")
    assert names(listed(tmp_path / "in/out*", "parquet", own=f"{tmp_path}/to-in", delivered=False), tmp_path) == []


@pytest.mark.parametrize(("error", "why"), [(errno.EACCES, DENIED), (errno.ENAMETOOLONG, DEAD), (errno.EIO, "")])
def test_a_link_behind_a_fault_leads_somewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, why: str
) -> None:
    put(tmp_path, "in/a.jpg")
    (tmp_path / "in/l.jpg").symlink_to("../a.jpg")
    (tmp_path / "in/l.txt").symlink_to("../a.jpg")
    right = os.stat

    def stat(path: Any, **given: Any) -> os.stat_result:
        if str(path).startswith(f"{tmp_path}/in/l"):
            raise OSError(error, os.strerror(error), path)
        return right(path, **given)

    monkeypatch.setattr(below.os, "stat", stat)
    monkeypatch.setattr("workers.storage.retries.sleep", lambda _: None)
    for uri in ("in", "in/*"):
        if not why:
            with pytest.raises(StoreError):
                listed(tmp_path / uri)
            continue
        found = listed(tmp_path / uri)
        assert names(found, tmp_path) == ["in/a.jpg"]
        assert counts(found)[why] == (1 if why == DENIED else 2)
        assert [*found.unreadable] == ([f"{tmp_path}/in/l.jpg"] if why == DENIED else [])
