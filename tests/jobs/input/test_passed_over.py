"""What lies under the input and is not taken is counted, with the reason and one of it; what lies there is found."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs.input.passed_over
from jobs.errors import NothingThere, SpecError
from jobs.input import below
from jobs.input.listing import Listing, list_input
from jobs.input.passed_over import (
    ARCHIVED,
    DEAD,
    DENIED,
    EMPTY,
    FOLDER_MARKER,
    HALF_COPIED,
    HIDDEN,
    LEFT_OUT,
    LOOP,
    NO_FILE,
    NO_TEXT,
    passed_over_lines,
)
from jobs.spec.days import Days
from workers.contract import InputSpec
from workers.storage.errors import StoreError
from workers.storage.filesystems import open_filesystem, version_of

DAY = Days(date(2026, 3, 1), date(2026, 3, 1))
JPEG = b"\xff\xd8\xff and so on"


def listed(uri: Any, format: Any = "images", claimed: Mapping[str, str] | None = None, **given: Any) -> Listing:
    known = claimed or {}

    def find(uris: Sequence[str]) -> Mapping[str, str]:
        return {uri: known[uri] for uri in uris if uri in known}

    uri = uri if isinstance(uri, tuple) else str(uri)
    return list_input(InputSpec(uri=uri, format=format), DAY, {}, claimed=find, **given)


def put(folder: Path, *names: str, data: bytes = JPEG) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def names(listing: Listing, folder: Path | str) -> list[str]:
    return [source.uri.removeprefix(f"{folder}/") for source in listing.sources]


def counts(listing: Listing) -> dict[str, int]:
    return {why: count for why, count, _ in listing.passed_over}


# ------------------------------------------------------------------------------------------------ names


def test_each_kind_is_counted_with_one_example(tmp_path: Path) -> None:
    put(
        tmp_path,
        "a.jpg",
        "_tmp/b.jpg",
        "_tmp/c/d.jpg",
        ".e.jpg",
        "f.json",
        "g.json",
        "h.jpg.part",
        "i.csv",
        "j.jpg.6eF5b5da",
    )
    put(tmp_path, "READY", "k.jpg", data=b"")
    os.mkfifo(tmp_path / "pipe.jpg")
    put(tmp_path, os.fsdecode(b"caf\xe9.jpg"))
    found = listed(tmp_path)
    assert names(found, tmp_path) == ["a.jpg", "k.jpg"]  # one of zero bytes is a bad row that somebody expects to see
    assert {why: (count, example.removeprefix(f"{tmp_path}/")) for why, count, example in found.passed_over} == {
        HIDDEN: (3, ".e.jpg"),
        "named .json": (2, "f.json"),
        "named .csv": (1, "i.csv"),
        HALF_COPIED: (1, "h.jpg.part"),
        "with more behind .jpg": (1, "j.jpg.6eF5b5da"),
        EMPTY: (1, "READY"),
        NO_FILE: (1, "pipe.jpg"),
        NO_TEXT: (1, "caf\\xe9.jpg"),
    }
    (line,) = passed_over_lines(found.passed_over)
    assert line.startswith(f"passed over: {HIDDEN}: 3, as {tmp_path}/.e.jpg; named .json: 2, as {tmp_path}/f.json; ")
    assert line.endswith("; 2 other kinds: 2")
    put(tmp_path / "well", "a.jpg")
    assert passed_over_lines(listed(tmp_path / "well").passed_over) == []


def test_a_folder_with_an_equals_sign_is_a_partition_whatever_it_begins_with(tmp_path: Path) -> None:
    put(tmp_path, "_x=1/a.jpg", "_x=1/_y/b.jpg", "_x=1/_c.jpg", ".x=1/d.jpg", "y=_z/e.jpg")
    assert names(listed(tmp_path), tmp_path) == ["_x=1/a.jpg", "y=_z/e.jpg"]
    assert counts(listed(tmp_path)) == {HIDDEN: 3}


def test_what_is_called_like_the_format_is_the_example(tmp_path: Path) -> None:
    put(tmp_path, ".DS_Store", "__MACOSX/._a.jpg", "_DSC1.JPG", "_SUCCESS", "a.jpg")
    assert listed(tmp_path).passed_over == [(HIDDEN, 4, f"{tmp_path}/_DSC1.JPG")]
    assert listed(tmp_path, "parquet", delivered=False).passed_over[0] == (HIDDEN, 4, f"{tmp_path}/.DS_Store")
    (tmp_path / "_DSC1.JPG").unlink()
    assert listed(tmp_path).passed_over == [(HIDDEN, 3, f"{tmp_path}/__MACOSX/._a.jpg")]


def test_what_a_pattern_leaves_out_is_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.json", "x/c.jpg", "x/.d")
    spec = InputSpec(uri=(str(tmp_path), "!**/x/", "!**/*.json", "!**/nowhere/"), format="images")
    assert list_input(spec, DAY, {}).passed_over == [(LEFT_OUT, 3, f"{tmp_path}/x/c.jpg")]
    spec = InputSpec(uri=(str(tmp_path), "!**/nowhere/", "!**/*.png"), format="images")
    assert LEFT_OUT not in counts(list_input(spec, DAY, {}))


# ------------------------------------------------------------------------------------------ first bytes


def test_a_name_without_a_suffix_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1]}), tmp_path / "20260101_144951_00037_v74wa_0f3c")
    put(tmp_path, "0a1b2c3d", "4e5f.bin", data=JPEG)
    put(tmp_path, "members", data=bytes(257) + b"ustar\x0000" + bytes(300))
    put(tmp_path, "packed", data=b"\x1f\x8b\x08")
    put(tmp_path, "what", data=b"who knows")
    for format, expected in {
        "parquet": ["20260101_144951_00037_v74wa_0f3c"], "images": ["0a1b2c3d", "4e5f.bin"], "webdataset": ["members"],
    }.items():  # fmt: skip
        assert names(listed(tmp_path, format), tmp_path) == expected
    assert counts(listed(tmp_path, "images")) == {
        "Parquet by their first bytes": 1, "tar by their first bytes": 1, "gzip by their first bytes": 1,
        "of no format that the first bytes tell": 1,
    }  # fmt: skip


def test_what_is_claimed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "0a", "1b", "2c")
    looked = []
    right = jobs.input.passed_over._kind_of
    monkeypatch.setattr(jobs.input.passed_over, "_kind_of", lambda source: looked.append(source.uri) or right(source))
    found = listed(tmp_path, claimed={f"{tmp_path}/0a": "v", f"{tmp_path}/1b": "v"})
    assert names(found, tmp_path) == ["0a", "1b", "2c"]
    assert looked == [f"{tmp_path}/2c"]


def test_of_very_many_images_by_hash_a_spread_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs.input.passed_over, "_ALL_UP_TO", 20)
    monkeypatch.setattr(jobs.input.passed_over, "_SAMPLE", 10)
    put(tmp_path, *(f"{n:04}" for n in range(200)))
    looked = []
    right = jobs.input.passed_over._kind_of
    monkeypatch.setattr(jobs.input.passed_over, "_kind_of", lambda source: looked.append(source.uri) or right(source))
    assert len(listed(tmp_path).sources) == 200
    assert len(looked) == 10
    put(tmp_path, "0020", data=b"one of the spread is no image: all are read")
    assert len(listed(tmp_path).sources) == 199


# --------------------------------------------------------------------------------------- nothing is taken


@pytest.mark.parametrize(
    ("format", "name", "data", "says", "way_out"),
    [
        ("parquet", "{n}", JPEG, "JPEG by their first bytes: 40, as .*/0", "write `format: images` in input"),
        ("parquet", "{n}.jpg", JPEG, "is Parquet; passed over: named .jpg: 40", "write `format: images` in input"),
        ("images", "{n}.parquet", b"PAR1", "is an image; passed over: named .parquet: 40", "write `format: parquet`"),
        ("images", "{n}.tar", b"x", "named .tar: 40", "write `format: webdataset`"),
        ("parquet", "{n}.csv", b"a,b", "named .csv: 40", "check input.uri and input.format, which is parquet"),
        ("parquet", "{n}.parquet", b"", "of zero bytes: 40", "have them delivered again"),
    ],
)  # fmt: skip
def test_much_is_there_and_nothing_taken_is_an_error_with_the_way_out(
    tmp_path: Path, format: str, name: str, data: bytes, says: str, way_out: str
) -> None:
    put(tmp_path, *(name.format(n=n) for n in range(40)), data=data)
    with pytest.raises(NothingThere, match=says) as error:
        listed(tmp_path, format)
    assert way_out in error.value.next_step
    assert listed(tmp_path, format, delivered=False).sources == []  # `verify` of what was scored before


@pytest.mark.parametrize("name", ["a.jpg", "0f3c"])
def test_a_pattern_that_leaves_out_all_that_is_new_is_an_error_with_the_way_out(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "b.tar", "_SUCCESS")
    given = {"uri": (str(tmp_path), f"!{tmp_path}/*"), "format": "images"}
    with pytest.raises(NothingThere, match=r"left out by ! in input.uri: 3, as ") as error:
        listed(**given)
    assert error.value.next_step.startswith("take the pattern with ! that names what is to be scored out of input.uri")
    assert listed(**given, claimed={f"{tmp_path}/{name}": "v"}).sources == []  # left out since, perhaps for bad rows
    (tmp_path / name).unlink()
    assert listed(**given).sources == []


@pytest.mark.parametrize("beside", [(), ("_SUCCESS",), ("README.md",), ("_tmp/a.jpg", "a.jpg.part"), ("READY",)])
def test_a_folder_before_its_delivery_is_empty(tmp_path: Path, beside: tuple[str, ...]) -> None:
    put(tmp_path, *beside, data=b"" if beside == ("READY",) else b"x")
    assert listed(tmp_path).sources == []


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        *(("", "_DSC{n}.JPG"), ("", "_images/{n}.jpg"), ("*", "_images/{n}.jpg"), ("*.JPG", "_DSC{n}.JPG")),
        ("**/*.jpg", "x/_MG_{n}.jpg"),
    ],
)
def test_a_folder_full_of_hidden_files_that_are_called_like_data_is_an_error(
    tmp_path: Path, uri: str, name: str
) -> None:
    put(tmp_path, *(name.format(n=n) for n in range(40)))
    with pytest.raises(NothingThere, match=r"hidden .*: 40, as .*/_") as error:
        listed(tmp_path / uri)
    assert "rename what is hidden, or name its folder in input.uri" in error.value.next_step


def test_hidden_files_of_a_writer_under_way_are_no_delivery_and_wildcards_count_them(tmp_path: Path) -> None:
    put(tmp_path, *(f"_temporary/0/{n}.jpg" for n in range(40)), *(f".trash/{n}.jpg" for n in range(40)))
    put(tmp_path, *(f"_stint/{n}.jpg" for n in range(40)))
    for uri in ("", "*"):
        found = listed(tmp_path / uri)
        assert (found.sources, counts(found)) == ([], {HIDDEN: 120})
    put(tmp_path, "a.jpg", "_DSC1.jpg", "_b.txt")
    assert counts(listed(tmp_path / "*.jpg")) == {HIDDEN: 1}


# ------------------------------------------------------------------------------------------- odd places


def test_a_place_that_is_neither_file_nor_folder_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "dead").symlink_to("nowhere")
    for name, says in (("pipe", f"{NO_FILE}: 1, as"), ("self", "there is nothing at"), ("dead", "there is nothing at")):
        with pytest.raises(NothingThere, match=f"{says} .*/{name}"):
            listed(tmp_path / name)


def test_names_that_are_not_utf_8_can_be_shown(tmp_path: Path) -> None:
    put(tmp_path, *map(os.fsdecode, (b"_h\xe9.jpg", b"n\xe9.jpg", b"t\xe9.txt")))
    for name, target in ((b"dead\xe9.jpg", "nowhere"), (b"loop\xe9", ".")):
        (tmp_path / os.fsdecode(name)).symlink_to(target)
    os.mkfifo(tmp_path / os.fsdecode(b"p\xe9.jpg"))
    found = listed(tmp_path, delivered=False)
    assert counts(found) == {HIDDEN: 1, NO_TEXT: 2, DEAD: 1, LOOP: 1, NO_FILE: 1}
    assert all(example.isascii() and "\\xe9" in example for _, _, example in found.passed_over)


# ---------------------------------------------------------------------------------------- may not be read


def test_files_that_nobody_may_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a.jpg", "b.jpg", "known.jpg", "c.parquet", "d.parquet")
    for name in ("b.jpg", "known.jpg", "c.parquet"):
        (tmp_path / name).chmod(0)
    monkeypatch.setattr(below.os, "access", lambda *_: False)  # as for anybody but root
    found = listed(tmp_path, claimed={f"{tmp_path}/known.jpg": "v"})
    assert names(found, tmp_path) == ["a.jpg", "known.jpg"]
    assert counts(found)[DENIED] == 1
    assert [*found.unreadable] == [f"{tmp_path}/b.jpg"]
    found = listed(tmp_path, "parquet")
    assert (names(found, tmp_path), [*found.unreadable]) == (["d.parquet"], [f"{tmp_path}/c.parquet"])


@pytest.mark.parametrize("format", ["images", "parquet"])
@pytest.mark.parametrize("uri", ["", "*", "*/*", "**", "**/*.jpg"])
def test_a_folder_that_may_not_be_listed_is_named_and_the_rest_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, format: str
) -> None:
    put(tmp_path, "in/x/a.jpg", "in/sub/b.jpg")

    def scandir(path: str, right: Any = os.scandir) -> Any:
        if path.rstrip("/").endswith("/sub"):
            raise PermissionError(path)
        return right(path)

    monkeypatch.setattr(below.os, "scandir", scandir)
    found = listed(tmp_path / "in" / uri, format, delivered=False)
    assert names(found, tmp_path) == (["in/x/a.jpg"] if format == "images" else [])
    assert counts(found)[DENIED] == 1
    assert [*found.unreadable] == [f"{tmp_path}/in/sub/"]
    monkeypatch.setattr(below.os, "scandir", lambda path: scandir(f"{path}/sub"))
    with pytest.raises(SpecError, match=r"cannot list .*"):
        listed(tmp_path / "in")
    monkeypatch.undo()


def test_a_file_whose_first_bytes_cannot_be_read_is_named_and_many_are_a_fault_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "0a", "1b", *(f"many/{n}" for n in range(20)))

    def broken(call: Any, url: str) -> Any:
        if "/many/" in url or url.endswith("/0a"):
            raise StoreError(f"{url}: Input/output error")
        return call()

    monkeypatch.setattr(jobs.input.passed_over, "retrying", broken)
    spec = InputSpec(uri=(str(tmp_path), "!**/many/"), format="images")
    found = list_input(spec, DAY, {})
    assert (names(found, tmp_path), [*found.unreadable]) == (["1b"], [f"{tmp_path}/0a"])
    with pytest.raises(StoreError, match="could not be read"):
        listed(tmp_path)


# ------------------------------------------------------------------------------------------------ stores


@pytest.mark.objectstore
def test_markers_of_consoles_and_archived_objects_are_passed_over_on_s3(s3: str) -> None:
    fs = fsspec.filesystem("s3")
    bucket = s3.removeprefix("s3://")

    def write(key: str, data: bytes, **more: str) -> None:
        fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **more)

    for key in ("in", "in/", "in/deep/", "in/deep_$folder$", "in/deep"):
        write(key, b"")
    for key in ("in/a.jpg", "in/deep/b.jpg", "in/_x=1/c.jpg", "in/_tmp/d.jpg", "in/deep/0f3c"):
        write(key, JPEG)
    write("in/old.jpg", JPEG, StorageClass="GLACIER")
    write("in/known.jpg", JPEG, StorageClass="DEEP_ARCHIVE")
    for uri in (f"{s3}/in", f"{s3}/in/", f"{s3}/i*"):
        found = listed(uri, claimed={f"{s3}/in/known.jpg": "v"})
        expected = ["_x=1/c.jpg", "a.jpg", "deep/0f3c", "deep/b.jpg", "known.jpg"]
        assert names(found, f"{s3}/in") == expected
        passed = counts(found)
        assert {why: passed[why] for why in (HIDDEN, ARCHIVED)} == {HIDDEN: 1, ARCHIVED: 1}
        assert passed[FOLDER_MARKER] + passed[EMPTY] >= 4
        assert found.unreadable == {f"{s3}/in/old.jpg": "archived: restore the objects"}
    for source in found.sources:
        fs, path = open_filesystem(source.uri)
        assert version_of(fs.info(path)) == source.version


class Adlfs:
    """What adlfs does where an object has the name of the folder: `find` gives a list, whatever is asked."""

    protocol = "abfs"

    def find(self, path: str, detail: bool, prefix: str = "") -> Any:
        if path == "box/in":
            return ["box/in"]
        assert (path, prefix, detail) == ("box", "in", True)
        info = {"size": 1, "type": "file", "etag": '"e"'}
        return {name: {**info, "name": name} for name in ("box/in/a.jpg", "box/in/_b.jpg", "box/in2/c.jpg")}


def test_an_object_with_the_folders_own_name_hides_nothing_on_azure() -> None:
    found = list(below.files_below(Adlfs(), "box/in", "abfs://box/in"))
    assert [(one.path, one.why) for one in found] == [("box/in/a.jpg", ""), ("box/in/_b.jpg", HIDDEN)]


def test_what_plans_claim_by_an_etag_keeps_that_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of GCS, where earlier releases took the etag, which changes with metadata."""

    class Gcsfs:
        protocol = ("gs", "gcs")

        def info(self, path: str) -> dict[str, Any]:
            return {"name": path, "type": "directory"}

        def find(self, path: str, detail: bool) -> Any:
            one = {"size": 1, "type": "file"}
            return {
                name: {**one, "name": name, "etag": f"e-{name[-5]}", "generation": f"g-{name[-5]}"}
                for name in (f"{path}/a.jpg", f"{path}/b.jpg", f"{path}/c.jpg")
            }

        def unstrip_protocol(self, path: str) -> str:
            return f"gs://{path}"

    monkeypatch.setattr("jobs.input.listing.open_filesystem", lambda url: (Gcsfs(), url.removeprefix("gs://")))
    claimed = {"gs://box/in/a.jpg": "e-a", "gs://box/in/b.jpg": "e-before"}
    found = listed("gs://box/in", claimed=claimed)
    assert [source.version for source in found.sources] == ["e-a", "g-b", "g-c"]
