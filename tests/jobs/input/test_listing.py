"""Discovery by folders, prefixes, days and manifests: what becomes a source, and what is named as missing."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import jobs.input.listing
import jobs.input.manifest
from jobs.errors import SpecError
from jobs.input.listing import Listing, list_input, vanished
from jobs.input.manifest import Entry, read_entries
from jobs.input.passed_over import COMMENT, OLD_VERSION, PassedOver
from jobs.ledger.plans import Source
from jobs.spec.days import Days
from workers.contract import InputSpec
from workers.storage.errors import StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem, version_of

FIRST, LAST = date(2026, 3, 1), date(2026, 3, 3)


def listed(latest: Mapping[str, str] | None = None, **keys: Any) -> Listing:
    return list_input(InputSpec(**keys), Days(FIRST, LAST), latest or {})


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(listing: Listing, folder: Path) -> list[str]:
    return [str(Path(source.uri).relative_to(folder)) for source in listing.sources]


def test_hidden_files_and_other_suffixes_are_no_sources(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", "b.PARQUET", "_tmp/c.parquet", ".d.parquet", "x/_SUCCESS", "x/e.pq", "notes.txt")
    assert names(listed(uri=str(tmp_path)), tmp_path) == ["a.parquet", "b.PARQUET", "x/e.pq"]


def test_compressed_tars_are_listed_so_that_they_can_be_named_as_unreadable(tmp_path: Path) -> None:
    put(tmp_path, "a.tar", "b.tar.gz", "c.tgz", "d.json")
    assert names(listed(uri=str(tmp_path), format="webdataset"), tmp_path) == ["a.tar", "b.tar.gz", "c.tgz"]


def test_several_prefixes_that_overlap_name_each_file_once(tmp_path: Path) -> None:
    put(tmp_path, "x/a.parquet", "y/b.parquet")
    found = listed(uri=[str(tmp_path / "y"), str(tmp_path), str(tmp_path / "x/a.parquet")])
    assert names(found, tmp_path) == ["x/a.parquet", "y/b.parquet"]


def test_a_days_folder_may_be_missing_while_another_days_is_there(tmp_path: Path) -> None:
    put(tmp_path, "2026-03-01/a.parquet", "2026-03-03/b.parquet", "2026-03-04/c.parquet")
    found = listed(uri=f"{tmp_path}/{{as_of}}", days=3)
    assert names(found, tmp_path) == ["2026-03-01/a.parquet", "2026-03-03/b.parquet"]
    assert found.absent == (f"{tmp_path}/2026-03-02",)


def test_a_prefix_where_nothing_is_at_all_is_an_error_that_names_it(tmp_path: Path) -> None:
    put(tmp_path, "x/a.parquet")
    with pytest.raises(SpecError, match=rf"input.uri: there is nothing at {tmp_path}/z"):
        listed(uri=[str(tmp_path / "x"), str(tmp_path / "z")])
    with pytest.raises(SpecError, match=r"any of 3 places, .*2026-03-01 to .*2026-03-03"):
        listed(uri=f"{tmp_path}/{{as_of}}", days=3)


def test_days_folders_may_all_be_missing_where_nothing_must_have_been_delivered(tmp_path: Path) -> None:
    put(tmp_path, "x/a.parquet")
    uris = (str(tmp_path / "x"), f"{tmp_path}/{{as_of}}")
    found = list_input(InputSpec(uri=uris), Days(FIRST, FIRST), {}, delivered=False)
    assert (names(found, tmp_path), found.absent) == (["x/a.parquet"], (f"{tmp_path}/{FIRST}",))
    with pytest.raises(SpecError, match=r"there is nothing at .*/z"):  # its place does not depend on the day
        list_input(InputSpec(uri=str(tmp_path / "z")), Days(FIRST, FIRST), {}, delivered=False)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("in/*/a.parquet", ["x/a.parquet", "y/a.parquet"]),
        ("in/*.parquet", ["top.parquet"]),
        ("in/?/deep", ["x/deep/b.parquet", "y/deep/b.parquet"]),
        ("in/[!x]/", ["y/a.parquet", "y/deep/b.parquet"]),
        ("in/**/b.parquet", ["x/deep/b.parquet", "y/deep/b.parquet"]),
        ("in/**/*.parquet", ["top.parquet", "x/a.parquet", "x/deep/b.parquet", "y/a.parquet", "y/deep/b.parquet"]),
        ("in/*/de*/**", ["x/deep/b.parquet", "y/deep/b.parquet"]),
        (["in", "!in/x"], ["top.parquet", "y/a.parquet", "y/deep/b.parquet"]),
        (["in", "!**/deep/", "!in/top.*"], ["x/a.parquet", "y/a.parquet"]),
        (["in/*/*.parquet", "!in/{as_of}"], ["x/a.parquet", "y/a.parquet"]),
    ],
)
def test_wildcards_name_many_places_and_a_mark_leaves_some_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: Any, expected: list[str]
) -> None:
    put(tmp_path / "in", "top.parquet", "x/a.parquet", "x/deep/b.parquet", "y/a.parquet", "y/deep/b.parquet")
    put(tmp_path / "in", "_tmp/a.parquet", "x/.hidden/b.parquet", "x/notes.txt", "2026-03-01/a.parquet")
    if "{as_of}" not in str(uri):
        (tmp_path / "in/2026-03-01/a.parquet").unlink()
    monkeypatch.chdir(tmp_path)
    assert names(listed(uri=uri), tmp_path / "in") == expected


def test_what_is_named_like_a_pattern_is_itself(tmp_path: Path) -> None:
    put(tmp_path, "[ab]/x.parquet", "a/y.parquet")
    assert names(listed(uri=f"{tmp_path}/[ab]"), tmp_path) == ["[ab]/x.parquet"]
    assert names(listed(uri=f"{tmp_path}/[a-b]/*"), tmp_path) == ["a/y.parquet"]
    with pytest.raises(SpecError, match=r"there is nothing at .*/\*\.tar"):
        listed(uri=f"{tmp_path}/*.tar")


# -------------------------------------------------------------------------------------------- manifests


def test_a_text_manifest_names_files_beside_it_or_anywhere(tmp_path: Path) -> None:
    put(tmp_path, "data/a.parquet", "data/b.parquet")
    manifest = tmp_path / "data/list.txt"
    manifest.write_text(
        f"# tonight\na.parquet\n\nfile://{tmp_path}/data/b.parquet\na.parquet\n{tmp_path}/data/../data/a.parquet"
    )
    found = listed(manifest=str(manifest))
    assert names(found, tmp_path) == ["data/a.parquet", "data/b.parquet"]
    fs, path = open_filesystem(f"{tmp_path}/data/a.parquet")
    assert found.sources[0].version == version_of(fs.info(path))  # as a listing of the folder would have it


def written(tmp_path: Path, names: Sequence[str]) -> dict[str, Source]:
    """Files, as the store lists them."""
    for name in names:
        (tmp_path / name).write_bytes(b"12345")
    return {source.uri: source for source in listed(uri=str(tmp_path)).sources}


@pytest.mark.parametrize("kind", ["text", "parquet"])
def test_of_entries_with_version_and_size_only_a_few_new_ones_are_compared_with_the_store(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    right = jobs.input.manifest._look_up

    def counted(entries: Sequence[Entry], claimed: str | None) -> Source | str | None:
        looked_up.append(entries[0].uri)
        return right(entries, claimed)

    monkeypatch.setattr("jobs.input.manifest._look_up", counted)
    there = written(tmp_path, [f"{n:03}.parquet" for n in range(100)])
    manifest = tmp_path / "list"
    if kind == "text":
        manifest.write_text("".join(f'{uri}\t"{s.version}"\t{s.size}\n' for uri, s in there.items()))
    else:
        columns = {
            "uri": [*there],
            "size": [s.size for s in there.values()],
            "version": [f'"{s.version}"' for s in there.values()],
        }
        pq.write_table(pa.table(columns), manifest)
    assert listed(manifest=str(manifest)).sources == [*there.values()]
    assert 10 <= len(looked_up) <= 16
    looked_up.clear()
    assert len(listed({uri: s.version for uri, s in there.items()}, manifest=str(manifest)).sources) == 100
    assert looked_up == []


def test_a_manifest_whose_versions_are_not_the_stores_is_named_with_both_and_what_was_claimed_stays(
    tmp_path: Path,
) -> None:
    there = written(tmp_path, [f"{n}.parquet" for n in range(40)])
    manifest = tmp_path / "list"
    manifest.write_text("".join(f"{uri}\tmd5-of-{s.uri[-9]}\t{s.size}\n" for uri, s in there.items()))
    version = there[f"{tmp_path}/0.parquet"].version
    says = rf"of 40 new files 14 were compared .*/0\.parquet: .*says version md5-of-0.* there is version {version}"
    found = listed(manifest=str(manifest))
    assert found.sources == []
    assert [*found.unreadable] == [str(manifest)]
    assert re.search(says, found.unreadable[str(manifest)])
    assert "write what the store lists (for S3 the ETag), or leave both out" in found.unreadable[str(manifest)]
    claimed = {f"{tmp_path}/1.parquet": "md5-of-1"}
    assert names(listed(claimed, manifest=str(manifest)), tmp_path) == ["1.parquet"]


def test_a_manifest_of_files_that_do_not_exist_yet_is_no_matter_of_versions(tmp_path: Path) -> None:
    manifest = tmp_path / "list"
    manifest.write_text("".join(f"{tmp_path}/{n}.parquet\tv\t5\n" for n in range(3)))
    found = listed(manifest=str(manifest))
    assert found.sources == []
    (said,) = found.unreadable.values()
    assert "none is as the manifest says" in said
    assert said.endswith("/0.parquet: the manifest names it, and there is no such file")


def test_a_bad_manifest_of_one_day_keeps_no_other_day_from_being_listed(tmp_path: Path) -> None:
    for day in (1, 2):
        folder = tmp_path / str(day)
        folder.mkdir()
        there = written(folder, ["a.parquet", "b.parquet"])
        lines = (f"{uri}\t{s.version if day == 1 else 'md5'}\t{s.size}\n" for uri, s in there.items())
        (tmp_path / f"list-2026-03-0{day}").write_text("".join(lines))
    found = listed(manifest=f"{tmp_path}/list-{{as_of}}")
    assert names(found, tmp_path) == ["1/a.parquet", "1/b.parquet"]
    assert [*found.unreadable] == [f"{tmp_path}/list-2026-03-02"]


def test_a_file_that_cannot_be_looked_up_counts_as_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = jobs.input.manifest.info_of

    def denied(url: str) -> Any:
        if url.endswith("denied"):
            raise StoreDenied(url)
        return right(url)

    monkeypatch.setattr("jobs.input.manifest.info_of", denied)
    assert vanished([f"{tmp_path}/denied", f"{tmp_path}/gone"]) == {f"{tmp_path}/gone"}


def test_one_entry_that_is_not_as_the_manifest_says_is_left_out_and_named(tmp_path: Path) -> None:
    there = written(tmp_path, ["a.parquet", "b.parquet"])
    manifest = tmp_path / "list"
    manifest.write_text(
        "".join(f"{uri}\t{'other' if 'a.' in uri else s.version}\t{s.size}\n" for uri, s in there.items())
    )
    found = listed(manifest=str(manifest))
    assert names(found, tmp_path) == ["b.parquet"]
    assert "the manifest says version other" in found.unreadable[f"{tmp_path}/a.parquet"]


def test_an_entry_without_a_version_that_was_claimed_is_not_looked_up_again(tmp_path: Path) -> None:
    manifest = tmp_path / "list.txt"
    manifest.write_text(f"{tmp_path}/not-there.parquet\n")
    found = listed({f"{tmp_path}/not-there.parquet": "v7"}, manifest=str(manifest))
    assert [source.version for source in found.sources] == ["v7"]
    assert found.unreadable == {}


def test_entries_that_do_not_exist_or_are_not_as_the_manifest_says_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", "b.parquet", "folder/c.parquet")
    manifest = tmp_path / "list.txt"
    manifest.write_text("a.parquet\tother-version\nb.parquet\nnone.parquet\nfolder\n")
    found = listed(manifest=str(manifest))
    assert names(found, tmp_path) == ["b.parquet"]
    assert {Path(uri).name: reason[:38] for uri, reason in found.unreadable.items()} == {
        "a.parquet": "the manifest says version other-versio",
        "none.parquet": "the manifest names it, and there is no",
        "folder": "the manifest names it, and there is no",
    }


def test_a_manifest_a_day(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", "b.parquet")
    (tmp_path / "list-2026-03-01.txt").write_text("a.parquet")
    (tmp_path / "list-2026-03-03.txt").write_text("b.parquet")
    found = listed(manifest=f"{tmp_path}/list-{{as_of}}.txt", days=3)
    assert names(found, tmp_path) == ["a.parquet", "b.parquet"]
    assert found.absent == (f"{tmp_path}/list-2026-03-02.txt",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a\tb\tlarge\n", "line 1 is not URI"),
        ("ok\na\tb\t1\tx\n", "line 2 is not URI"),
        ("\t\t\n\tv1\n", "line 2 is not URI"),
        (b"\xff\xfe\x00", "neither Parquet nor text in UTF-8"),
        (b"PAR1 and then nothing", "input.manifest: .*list"),
        (pa.table({"label": ["a"]}), "no column 'uri'; it has 'label'"),
        ("id,label\n1,cat\n", "no column 'uri'; it has 'id', 'label'"),
        (" uri , x\na,1\n", "no column 'uri'; it has ' uri ', ' x'"),
        ("page,file,image\nx,a,b\n", "several columns that may be 'uri': file, image"),
        ("uri,uri\na,b\n", "several columns that may be 'uri': uri, uri"),
        ("uri,version,version\na,b,c\n", '"version" exists 2 times'),
        ('"bucket","photos/a.jpg","5"\n', "CSV without a line that names its columns"),
        ('{"label": "cat"}\n', "no column 'uri'; it has 'label'"),
        ('{"uri": "a"\n', "input.manifest: .*list"),
        (pa.table({"uri": ["a", None]}), "row 1 has no uri"),
        (pa.table({"uri": ["a"], "size": ["large"]}), r"the columns are|Failed to parse"),
    ],
)
def test_a_manifest_that_is_none_is_explained(tmp_path: Path, content: Any, message: str) -> None:
    manifest = tmp_path / "list"
    if isinstance(content, pa.Table):
        pq.write_table(content, manifest)
    else:
        manifest.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError, match=message):
        listed(manifest=str(manifest))


@pytest.mark.parametrize(
    ("content", "way_out"),
    [
        (gzip.compress(b"a.jpg\n"), "unpack it"),
        (b'{"uri"\n', "write a JSON object a line"),
        (None, "itself"),
    ],
)
def test_the_way_out_of_a_manifest_that_is_none_is_of_its_kind(
    tmp_path: Path, content: bytes | None, way_out: str
) -> None:
    manifest = tmp_path / "list"
    manifest.mkdir() if content is None else manifest.write_bytes(content)
    with pytest.raises(SpecError) as refused:
        read_entries(str(manifest))
    assert way_out in refused.value.next_step


@pytest.mark.parametrize(
    ("line", "reason"), [("a.jpg,1", "CSV needs a line in front"), ("a|1", "parted by"), ("a\0\tv\t5", "null")]
)
def test_an_entry_that_no_file_can_be_says_what_it_may_be(tmp_path: Path, line: str, reason: str) -> None:
    (tmp_path / "list").write_text(f"{line}\n")
    assert reason in listed(manifest=f"{tmp_path}/list").unreadable[f"{tmp_path}/{line.split(chr(9))[0]}"]


def test_of_a_text_nothing_is_left_out_in_silence(tmp_path: Path) -> None:
    put(tmp_path, "#1.jpg", " lead.jpg", "b.jpg")
    (tmp_path / "list").write_text(f"#1.jpg\n# a word\n lead.jpg\n  {tmp_path}/b.jpg \n")
    found = listed(manifest=f"{tmp_path}/list", format="images")
    assert names(found, tmp_path) == [" lead.jpg", "b.jpg"]
    assert found.passed_over == [(COMMENT, 2, "'# a word'")]
    (tmp_path / "list").write_text("./#1.jpg\n")
    assert names(listed(manifest=f"{tmp_path}/list", format="images"), tmp_path) == ["#1.jpg"]


def test_a_column_called_uri_or_url_goes_before_others(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("path,URL\nb,a\n")
    assert read_entries(f"{tmp_path}/list") == [Entry(f"{tmp_path}/a")]


@pytest.mark.parametrize(
    "text",
    [
        '{"content": "a.jpg", "mimeType": "image/jpeg"}\n{"content": "b,c.jpg"}\n',
        '{"imageGcsUri": "a.jpg"}\n{"imageGcsUri": "b,c.jpg", "x": {"y": 1}}\n',
        '{"source-ref": "a.jpg"}\n{"source-ref": "b,c.jpg"}\n',
        'URI\na.jpg\n"b,c.jpg"\n',
        'id,Image_Path,label\n1,a.jpg,cat\n2,"b,c.jpg",dog\n',
        '"id","url","etag","size"\n1,a.jpg,,\n2,"b,c.jpg","",""\n',
        '\ufeffpath\r\na.jpg\r\n"b,c.jpg"\r\n',
        "a.jpg\nb,c.jpg\n",
    ],
)
def test_manifests_of_other_tools_are_read_by_their_column_of_uris(tmp_path: Path, text: str) -> None:
    put(tmp_path, "a.jpg", "b,c.jpg")
    (tmp_path / "list").write_text(text, newline="")
    assert names(listed(manifest=f"{tmp_path}/list", format="images"), tmp_path) == ["a.jpg", "b,c.jpg"]


def test_versions_of_a_manifest_in_text_stay_text(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("uri,etag,size\ns3://b/a.jpg,0012,5\ns3://b/b.jpg,1e5,6\n")
    assert read_entries(f"{tmp_path}/list") == [Entry("s3://b/a.jpg", "0012", 5), Entry("s3://b/b.jpg", "1e5", 6)]


@pytest.mark.parametrize("kind", ["parquet", "csv", "json"])
def test_an_inventory_of_s3_is_read_as_it_is_without_what_was_deleted(tmp_path: Path, kind: str) -> None:
    rows = [("p/a.jpg", True, False), ("p/b.jpg", False, False), ("p/c.jpg", True, True), ("p/d.jpg", None, None)]
    table = [
        {"bucket": "box", "key": key, "size": 5, "e_tag": "v", "is_latest": latest, "is_delete_marker": gone}
        for key, latest, gone in rows
    ]
    manifest = tmp_path / "list"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), manifest)
    elif kind == "csv":
        table[0]["key"] = "p%2Fa.jpg"
        pa.csv.write_csv(pa.Table.from_pylist(table), manifest)
    else:
        manifest.write_text("".join(json.dumps(row) + "\n" for row in table))
    passed = PassedOver()
    found = read_entries(str(manifest), passed)
    assert found == [Entry("s3://box/p/a.jpg", "v", 5), Entry("s3://box/p/d.jpg", "v", 5)]
    assert passed.rows() == [(OLD_VERSION, 2, "s3://box/p/b.jpg")]


def test_a_damaged_manifest_of_one_day_is_set_aside(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    (tmp_path / "list-2026-03-01").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "list-2026-03-02").write_text("a.parquet")
    found = listed(manifest=f"{tmp_path}/list-{{as_of}}", days=3)
    assert names(found, tmp_path) == ["a.parquet"]
    assert [*found.unreadable] == [f"{tmp_path}/list-2026-03-01"]
    assert found.absent == (f"{tmp_path}/list-2026-03-03",)


def test_relative_entries_of_a_manifest_in_a_bucket_lie_beside_it(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("jobs.input.manifest.read_url", lambda _: b"a.parquet\nsub/b.parquet\ngs://other/c.parquet\n")
    assert [entry.uri for entry in read_entries("s3://bucket/lists/tonight.txt")] == [
        "s3://bucket/lists/a.parquet",
        "s3://bucket/lists/sub/b.parquet",
        "gs://other/c.parquet",
    ]


def test_a_file_is_one_source_however_its_folder_or_manifest_is_spelled(tmp_path: Path) -> None:
    put(tmp_path, "data/a.parquet", "x/y")
    (tmp_path / "data/list.txt").write_text("\ufeffa.parquet\n./../data/a.parquet\n")  # from a spreadsheet
    folders = [f"{tmp_path}/data", f"file://{tmp_path}/data/", f"{tmp_path}/x/../data", f"{tmp_path}/data/./a.parquet"]
    assert names(listed(uri=folders), tmp_path) == ["data/a.parquet"]
    for manifest in ("data/list.txt", "x/../data/list.txt"):
        for scheme in ("", "file://"):
            assert names(listed(manifest=f"{scheme}{tmp_path}/{manifest}"), tmp_path) == ["data/a.parquet"]


def test_other_names_of_a_scheme_are_the_same_source(monkeypatch: Any) -> None:
    monkeypatch.setattr("jobs.input.manifest.read_url", lambda _: b"s3a://b/a\ns3://b/a\nc\n../d\n")
    assert [e.uri for e in read_entries("s3a://b/lists/l")] == ["s3://b/a", "s3://b/a", "s3://b/lists/c", "s3://b/d"]
    monkeypatch.setattr("jobs.input.manifest.read_url", lambda _: b"x//y.parquet\n")
    assert [e.uri for e in read_entries("s3://b//lists/l")] == ["s3://b//lists/x//y.parquet"]  # a key of its own
    monkeypatch.setattr("jobs.input.manifest.read_url", lambda _: b"../../other/y.parquet\n")
    with pytest.raises(SpecError, match=r"\.\. leads above the bucket"):
        read_entries("s3://b/lists/l")


def test_a_manifest_that_is_older_than_the_last_claim_does_not_take_readers_back(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet")
    fs, path = open_filesystem(f"{tmp_path}/a.parquet")
    now = version_of(fs.info(path))
    manifest = tmp_path / "list.txt"
    manifest.write_text(f"a.parquet\tbefore\t5\n{tmp_path}/deleted.parquet\tbefore\t5\n")
    found = listed({str(path): now, f"{tmp_path}/deleted.parquet": "after"}, manifest=str(manifest))
    assert [(source.uri, source.version) for source in found.sources] == [(path, now)]
    assert found.unreadable == {}


def test_a_file_that_a_manifest_names_in_two_versions_is_the_one_that_is_there(tmp_path: Path) -> None:
    """As an inventory of a bucket that keeps old versions has it."""
    put(tmp_path, "a.parquet", "b.parquet")
    fs, path = open_filesystem(f"{tmp_path}/a.parquet")
    now = version_of(fs.info(path))
    manifest = tmp_path / "list.txt"
    manifest.write_text(f"a.parquet\t{now}\t9\na.parquet\told\t5\nb.parquet\told\t5\nb.parquet\tolder\t5\n")
    found = listed(manifest=str(manifest))
    assert [(source.uri, source.version) for source in found.sources] == [(path, now)]
    assert "says version old, size 5 and version older, size 5; there is" in found.unreadable[f"{tmp_path}/b.parquet"]


def test_a_store_that_fails_is_no_mistake_of_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers do not repeat what ends with code 2; a night that met a storage fault is worth repeating."""
    put(tmp_path, "a.parquet")

    def fails(*_: Any, **__: Any) -> None:
        raise StoreError("timed out (6 tries)")

    monkeypatch.setattr("jobs.input.listing.retrying", fails)
    with pytest.raises(StoreError, match="timed out"):
        listed(uri=str(tmp_path))
