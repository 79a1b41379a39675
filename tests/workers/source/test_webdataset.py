"""WebDataset tars: rows whatever wrote the archive, and from any block of the index on."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
import yaml
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from jobs.cli import main
from jobs.input.footers import Opened, open_sources
from jobs.input.listing import list_input
from jobs.spec.days import today
from tests.support import images
from tests.support.digits_job import Digits, predictions
from tests.support.networks import loaded, sample_request
from tests.support.tars import END, FORMATS, JPG, Row, archive, index, photos, read, shard, write_tar
from workers.build.sample import read_sample
from workers.bundle.manifest import RowRef
from workers.contract import InputSpec, Preprocess, SampleSlice
from workers.image.errors import BadImage
from workers.source import source_file, tar, webdataset
from workers.source.rows import RowGroup
from workers.source.shard_reader import ShardReader, SourceChanged
from workers.source.source_file import InputUnreadable, SourceFile, opened
from workers.source.webdataset import sample_keys
from workers.storage import retries
from workers.storage.errors import StoreError
from workers.storage.filesystems import open_filesystem


def expected(samples: Sequence[dict[str, Any]]) -> list[Row]:
    return [(s["jpg"], {"__key__": s["__key__"], "cls": s["cls"]}) for s in samples]


class Watched(SourceFile):
    """Counts what is read."""

    reads: list[tuple[int, int]]

    def read(self, size: int = -1) -> bytes:
        start = self.tell()
        data = super().read(size)
        self.reads.append((start, len(data)))
        return data


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(offset, bytes) of every read of a source."""
    Watched.reads = []
    monkeypatch.setattr(source_file, "SourceFile", Watched)
    return Watched.reads


# ----------------------------------------------------------------------------------- what becomes a row


@pytest.mark.parametrize("kind", FORMATS)
def test_samples_of_every_tar_format_come_with_their_images_and_keys(tmp_path: Path, kind: str) -> None:
    samples = photos(40)
    path = write_tar(tmp_path / "a.tar", samples, FORMATS[kind])
    parts = index(path)
    assert [(p.row_start, p.rows) for p in parts] == [(0, 16), (16, 16), (32, 8)]
    assert read(path, parts) == expected(samples)


@pytest.mark.parametrize("kind", ["gnu", "pax"])
@pytest.mark.parametrize("length", [99, 100, 101, 300, 3000])
def test_long_names_keep_their_whole_key(tmp_path: Path, kind: str, length: int) -> None:
    keys = ["d/" + f"{i}" * (length - 2) for i in range(3)]
    path = write_tar(tmp_path / "a.tar", [{"__key__": k, "jpg": b"x", "cls": "1"} for k in keys], FORMATS[kind])
    parts = index(path, 1)
    assert [named["__key__"] for _, named in read(path, parts)] == keys
    assert [named["__key__"] for _, named in read(path, parts[1:])] == keys[1:]


def test_names_split_over_the_prefix_of_ustar_are_joined(tmp_path: Path) -> None:
    keys = [f"{'folder' * 20}/{'name' * 10}{i}" for i in range(3)]
    path = write_tar(tmp_path / "a.tar", [{"__key__": k, "jpg": b"x", "cls": "1"} for k in keys], tarfile.USTAR_FORMAT)
    assert [named["__key__"] for _, named in read(path, index(path))] == keys


def test_times_in_a_header_of_gnu_tar_are_not_taken_for_a_part_of_the_name(tmp_path: Path) -> None:
    header = bytearray(archive([("d/0.jpg", b"x")], tarfile.GNU_FORMAT)[:512])
    header[345:369] = b"15300033421\0" * 2  # as `tar --listed-incremental` writes them
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header) + b"x".ljust(512, b"\0") + END)
    assert [named["__key__"] for _, named in read(path, index(path))] == ["d/0"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("0001.jpg", ("0001", "jpg")),
        ("a.b/c.d/0001.Seg.PNG", ("a.b/c.d/0001", "seg.png")),
        ("./0001.cls", ("./0001", "cls")),
        ("0001.", ("0001", "")),
        ("0001", None),
        ("folder.d/0001", None),
        (".hidden.jpg", None),
        ("a/._0001.jpg", None),
        ("__meta__", None),
        ("__meta__.jpg", ("__meta__", "jpg")),
        ("a/__index__/0001.jpg", ("a/__index__/0001", "jpg")),
        ("__index__/0001.jpg", None),
        ("__0001.jpg", ("__0001", "jpg")),
        ("a/", None),
    ],
)
def test_names_fall_into_key_and_extension_as_webdataset_does(name: str, parts: tuple[str, str] | None) -> None:
    assert webdataset.split_name(name) == parts


def tar_of(tmp_path: Path, *members: str) -> tuple[str, InputSpec]:
    (tmp_path / "a.tar").write_bytes(archive([(name, name.encode()) for name in members]))
    return str(tmp_path / "a.tar"), InputSpec(format="webdataset", image="jpg;png", keys=("__key__",))


def indexed(path: str, how: InputSpec) -> tuple[list[Opened], list[str]]:
    found, unreadable = open_sources(list_input(replace(how, uri=path), today("UTC"), {}).sources, how)
    return found, list(unreadable.values())


def test_stems_with_dots_are_told_before_they_make_one_sample_of_a_hundred_pictures(tmp_path: Path) -> None:
    path, how = tar_of(tmp_path, *(f"cam_2024.05.01_{n:04}.jpg" for n in range(100)))
    _, (why,) = indexed(path, how)
    assert why.startswith("1 sample, 0 with an image; 100 members of others end like one: sample cam_2024 has no jpg")
    assert "05.01_0000.jpg" in why
    assert "write input.sample_key: last_dot if each is a sample" in why
    last = replace(how, sample_key="last_dot")
    (found,), unreadable = indexed(path, last)
    assert (unreadable, found.rows) == ([], 100)
    rows = read(path, index(path, how=last), last)
    assert [image for image, _ in rows] == [f"cam_2024.05.01_{n:04}.jpg".encode() for n in range(100)]
    assert rows[7][1] == {"__key__": "cam_2024.05.01_0007"}
    path, _ = tar_of(tmp_path, *(f"cam_2024.05.01_{n:04}.jpg" for n in range(1100)))
    _, (why,) = indexed(path, how)
    assert "if each is a sample, write input.sample_key: last_dot" in why


def test_an_image_by_a_longer_extension_is_named_with_what_is_there(tmp_path: Path) -> None:
    path, how = tar_of(tmp_path, *(f"s{n}.{end}" for n in range(3) for end in ("input.jpg", "target.jpg", "json")))
    _, (why,) = indexed(path, how)
    assert why.startswith("3 samples, 0 with an image; 6 members of others end like one: sample s0 has no jpg, png; ")
    assert "it has input.jpg, target.jpg, json;" in why
    (found,), _ = indexed(path, replace(how, image="input.jpg"))
    assert (found.rows, dict(found.beside)) == (3, {})


def test_pictures_beside_the_image_of_a_sample_are_counted(tmp_path: Path) -> None:
    path, how = tar_of(tmp_path, "a.jpg", "a.seg.png", "b.jpg", "b.1.jpg", "b.2.jpg", "c.json")
    (found,), unreadable = indexed(path, how)
    assert (unreadable, found.rows, dict(found.beside)) == ([], 3, {"png": 1, "jpg": 2})


NAMELESS = ("h0", "d/.h1.jpg", ".jpg", "__images__/h2.jpg")


@pytest.mark.parametrize("sample_key", ["first_dot", "last_dot"])
def test_images_whose_names_belong_to_no_sample_are_counted_or_set_their_tar_aside(
    tmp_path: Path, sample_key: Any
) -> None:
    picture = b"\xff\xd8\xff and so on"
    how = InputSpec(format="webdataset", image="jpg", sample_key=sample_key)
    no_images = [("README", b"read me"), ("._s0.jpg", b"\0\5\x16\7"), (".DS_Store", b""), ("d/", b"")]
    strays = [(name, picture) for name in NAMELESS]
    for pictures in (0, 3, 4):
        samples = [(f"s{n}.jpg", picture) for n in range(pictures)]
        (tmp_path / "a.tar").write_bytes(archive([*no_images, *strays, *samples]))
        found, unreadable = indexed(str(tmp_path / "a.tar"), how)
        if pictures < len(strays):
            (why,) = unreadable
            assert f"{pictures} with an image; 4 images of no sample (name each with a stem and an extension" in why
            assert why.endswith("as h0")
        else:
            assert (unreadable, found[0].rows, dict(found[0].beside)) == ([], 4, {"": 4})
    (tmp_path / "a.tar").write_bytes(archive(no_images))
    (empty,), unreadable = indexed(str(tmp_path / "a.tar"), how)
    assert (unreadable, empty.rows, dict(empty.beside)) == ([], 0, {})


def test_what_is_no_sample_is_passed_over_and_parts_nothing(tmp_path: Path) -> None:
    members = [("d/", b""), ("__index__/0.json", b"{}"), ("d/0.jpg", b"zero"), ("d/.DS_Store", b"x"), ("README", b"y")]
    members += [("d/0.cls", b"7"), ("d/1.jpg", b"one")]
    path = tmp_path / "a.tar"
    path.write_bytes(archive(members))
    assert read(path, index(path)) == [
        (b"zero", {"__key__": "d/0", "cls": "7"}),
        (b"one", {"__key__": "d/1", "cls": None}),
    ]


def test_the_preferred_extension_is_the_image_wherever_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(
        archive([("0.png", b"png"), ("0.jpg", b"jpg"), ("1.JPG", b"jpg"), ("1.png", b"png"), ("2.png", b"png")])
    )
    parts = index(path)
    assert [image for image, _ in read(path, parts)] == [b"jpg", b"jpg", b"png"]
    how = InputSpec(format="webdataset", image="png;jpg")
    assert [image for image, _ in read(path, parts, how)] == [b"png", b"png", b"png"]


def test_a_sample_without_an_image_is_a_row_that_says_what_was_looked_for(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [{"__key__": "0", "txt": "a", "cls": "1"}, {"__key__": "1", "jpg": b""}])
    (block,) = ShardReader(shard(path, index(path)), JPG).blocks()
    assert isinstance(block.images[0], BadImage)
    assert block.images[0].code == "null"
    assert str(block.images[0]) == "sample 0 has no jpg, png; it has txt, cls"
    assert block.images[1] == b""  # an empty member: the decoder calls it `empty`


def test_key_columns_are_text_without_the_line_break_that_ends_a_file(tmp_path: Path) -> None:
    samples: list[dict[str, bytes | str]] = [
        {"__key__": "a", "jpg": b"x", "CLS": "7\n", "json": '{"a": 1}\r\n'},
        {"__key__": "bé", "jpg": b"x", "cls": b"\xff\n\n"},
        {"__key__": "c", "jpg": b"x", "cls": b""},
    ]
    path = write_tar(tmp_path / "a.tar", samples)
    parts = index(path)
    names = ("json", "__key__", "cls")
    wanted = [
        {"json": '{"a": 1}', "__key__": "a", "cls": "7"},
        {"json": None, "__key__": "bé", "cls": "\\xff\n"},
        {"json": None, "__key__": "c", "cls": ""},
    ]
    how = InputSpec(format="webdataset", image="jpg", keys=names)
    assert [named for _, named in read(path, parts, how)] == wanted
    with opened(*open_filesystem(str(path))) as file:
        table = sample_keys(file, parts[0].byte_start, 3, how)
        assert table.to_pylist() == wanted
        assert {str(field.type) for field in table.schema} == {"string"}
        with pytest.raises(InputUnreadable, match="3 samples from byte 0 on, 4 planned"):
            sample_keys(file, 0, 4, how)


def test_a_name_that_is_not_utf_8_has_a_key_that_can_be_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for kind in FORMATS.values():
        path.write_bytes(archive([("caf\udce9.jpg", b"x")], kind))
        assert read(path, index(path)) == [(b"x", {"__key__": "caf\\xe9", "cls": None})]


def test_a_repeated_extension_begins_a_new_row_so_that_no_image_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive([("0.jpg", b"first"), ("0.cls", b"1"), ("0.jpg", b"second"), ("0.cls", b"2")]))
    parts = index(path, 1)
    rows = [(b"first", {"__key__": "0", "cls": "1"}), (b"second", {"__key__": "0", "cls": "2"})]
    assert read(path, parts) == rows
    assert read(path, parts[1:]) == rows[1:]


def test_a_key_that_comes_again_later_is_a_second_row(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive([("0.jpg", b"a"), ("1.jpg", b"b"), ("0.cls", b"1")]))
    assert [(image, named["__key__"]) for image, named in read(path, index(path))] == [
        (b"a", "0"),
        (b"b", "1"),
        ("null", "0"),
    ]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_an_image_that_is_a_link_is_an_error_row_and_not_a_missing_one(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("1.jpg")
    link.type, link.linkname = kind, "0.jpg"
    path = tmp_path / "a.tar"
    path.write_bytes(archive([("0.jpg", b"a")])[:2048] + link.tobuf() + END)
    (block,) = ShardReader(shard(path, index(path)), JPG).blocks()
    assert block.images[0] == b"a"
    assert str(block.images[1]) == "1.jpg is a link to 0.jpg; links are not followed"


def test_an_image_beyond_any_picture_is_refused_without_reading_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[tuple[int, int]]
) -> None:
    path = write_tar(tmp_path / "a.tar", [{"__key__": "0", "jpg": bytes(3 * 2**20), "cls": "1"}, *photos(1)])
    monkeypatch.setattr(webdataset, "MAX_IMAGE_BYTES", 2**20)
    parts = index(path)
    reads.clear()
    assert [image for image, _ in read(path, parts)] == ["too_large", photos(1)[0]["jpg"]]
    assert sum(size for _, size in reads) < 2 * 2**20


def test_a_key_column_of_huge_members_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", [{"__key__": "0", "jpg": b"x", "cls": "1" * 2000}])
    monkeypatch.setattr(webdataset, "MAX_TEXT_BYTES", 1000)
    with pytest.raises(InputUnreadable, match=r"0\.cls has 2000 bytes, a value of a key column 1000 at most"):
        read(path, index(path))


def test_labels_of_the_gate_are_read_from_class_members(tmp_path: Path) -> None:
    samples = [
        {"__key__": f"{i}", "jpg": data, "cls": f"{i}\n"} for i, data in enumerate(images.photographs(4, 90, 99))
    ]
    path = write_tar(tmp_path / "a.tar", samples)
    slices = [SampleSlice(rows=s, take=2) for s in shard(path, index(path, 2)).slices]
    crop = Preprocess(resize_px=32, crop_px=32, mean=(0.5,) * 3, std=(0.5,) * 3)
    request = sample_request(slices, JPG, labels_column="cls")
    sample = read_sample(request, loaded(nn.Identity(), crop, outputs=10), 2**30)
    assert sample.labels is not None
    found = {int(label): row for label, row in zip(sample.labels, sample.rows, strict=True)}
    assert found == {i: RowRef(uri=str(path), row_group=0, row=i) for i in range(4)}


# ------------------------------------------------------------------------------- reading from the middle

STEMS = st.sampled_from(["0", "1", "a/0", "a.b/0", "x" * 120, "ä"])
NAMES = st.one_of(
    st.tuples(STEMS, st.sampled_from([".jpg", ".JPG", ".cls", ".png", ".seg.png"])).map("".join),
    st.sampled_from(["folder/", ".hidden", "__index__/0.jpg", "README"]),
)
CONTENT = st.one_of(st.just(b""), st.binary(max_size=40), st.integers(500, 2000).map(lambda n: b"7" * n))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    members=st.lists(st.tuples(NAMES, CONTENT), max_size=25),
    kind=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    rows_a_block=st.integers(1, 4),
)
def test_reading_from_any_block_on_gives_the_rows_of_a_full_read(
    tmp_path: Path, members: list[tuple[str, bytes]], kind: int, rows_a_block: int
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(archive(members, kind))
    parts = index(path, rows_a_block)
    grouped = _grouped_by_tarfile(path)
    assert sum(part.rows for part in parts) == len(grouped)
    assert all(part.rows == rows_a_block for part in parts[:-1])
    assert all(a.byte_start + a.bytes == b.byte_start for a, b in pairwise(parts))
    assert (read(path, parts) if parts else []) == grouped
    for first, part in enumerate(parts):
        assert read(path, parts[first:]) == grouped[part.row_start :]
        assert read(path, [part]) == grouped[part.row_start : part.row_start + part.rows]


def _grouped_by_tarfile(path: Path) -> list[Row]:
    """The rows as the standard library and WebDataset's own pattern for names give them."""
    samples: list[tuple[str, dict[str, bytes]]] = []
    with tarfile.open(path) as whole:
        for member in whole:
            match = re.fullmatch(r"((?:.*/|)[^./]+)[.]([^/]*)", member.name)
            if not member.isreg() or match is None or member.name.startswith("__index__/"):
                continue
            key, extension = match[1], match[2].lower()
            if not samples or samples[-1][0] != key or extension in samples[-1][1]:
                samples.append((key, {}))
            content = whole.extractfile(member)
            assert content is not None
            samples[-1][1][extension] = content.read()
    return [
        (found.get("jpg", found.get("png", "null")), {"__key__": key, "cls": _text(found.get("cls"))})
        for key, found in samples
    ]


def _text(content: bytes | None) -> str | None:
    return None if content is None else content.decode("utf-8", "backslashreplace").rstrip("\r\n")


def test_a_slice_in_the_middle_reads_little_more_than_itself(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    path = write_tar(tmp_path / "a.tar", photos(800, 50_000))
    parts = index(path)
    reads.clear()
    wanted = parts[20:24]
    assert len(read(path, wanted)) == 64
    start, size = wanted[0].byte_start, sum(part.bytes for part in wanted)
    assert min(at for at, _ in reads) == start
    assert sum(count for _, count in reads) <= 2 * size + 2**20


def test_neighbouring_slices_are_read_as_one_stream(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    path = write_tar(tmp_path / "a.tar", photos(200, 50_000))
    parts = index(path)
    reads.clear()
    assert read(path, parts) == expected(photos(200, 50_000))
    assert sum(count for _, count in reads) == path.stat().st_size
    assert len(reads) < 10


def test_the_index_passes_over_the_content_of_large_members(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    path = write_tar(tmp_path / "a.tar", photos(20, 2**20))
    reads.clear()
    assert sum(part.rows for part in index(path)) == 20
    assert sum(count for _, count in reads) < 2**20


def test_rows_come_in_blocks_of_bounded_bytes(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", photos(100, 300_000))
    found = list(ShardReader(shard(path, index(path, 100)), JPG).blocks())
    assert len(found) > 5
    assert max(block.bytes_read for block in found) < webdataset.BLOCK_BYTES + 300_001
    assert sum(block.bytes_read for block in found) == 100 * 300_001


# ------------------------------------------------------------------------------- sources and their storage


def test_a_tar_that_is_gone_or_replaced_gives_no_rows_and_is_reported(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", photos(20))
    reader = ShardReader(shard(path, index(path)), JPG)
    write_tar(path, photos(21))
    assert list(reader.blocks()) == []
    assert reader.gone == {0, 1}


@pytest.mark.parametrize("how", ["touched", "cut"])
def test_a_tar_replaced_while_it_is_read_fails_the_attempt(tmp_path: Path, how: str) -> None:
    path = write_tar(tmp_path / "a.tar", photos(200, 50_000))
    found = ShardReader(shard(path, index(path)), JPG).blocks()
    next(found)
    if how == "touched":
        os.utime(path, (1, 1))
    else:
        os.truncate(path, 3 * 2**20)
    with pytest.raises(SourceChanged):
        list(found)


def test_fewer_samples_than_planned_blame_the_source(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", photos(20))
    with pytest.raises(InputUnreadable, match=r"a\.tar: 20 samples from byte 0 on, 21 planned"):
        read(path, [RowGroup(21, 0)])
    with pytest.raises(InputUnreadable, match=r"a\.tar: not a tar file|a\.tar: damaged tar: no header at byte 512"):
        read(path, [RowGroup(1, 0, byte_start=512)])


def test_a_fault_of_storage_is_not_blamed_on_the_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "a.tar", photos(200, 50_000))
    of = shard(path, index(path))

    class Faulty(io.FileIO):
        """Gives the first piece, then fails as a network does."""

        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            Faulty.reads += 1
            if Faulty.reads > 1:
                raise ConnectionResetError("reset by peer")
            return super().read(size)

    monkeypatch.setattr(LocalFileSystem, "open", lambda self, name, mode, **_: Faulty(name))
    monkeypatch.setattr(retries, "sleep", lambda _: None)
    with pytest.raises(StoreError, match="reset by peer"):
        list(ShardReader(of, JPG).blocks())
    Faulty.reads = 0
    with pytest.raises(StoreError, match="reset by peer"):
        index(path)


@pytest.mark.objectstore
def test_a_tar_on_an_object_store_is_indexed_and_read_in_few_requests(
    s3: str, tmp_path: Path, reads: list[tuple[int, int]]
) -> None:
    samples = photos(300, 50_000)
    local = write_tar(tmp_path / "a.tar", samples)
    url = f"{s3}/in/a.tar"
    fs, path = open_filesystem(url)
    fs.put_file(str(local), path)
    parts = index(url)
    assert len(reads) < 12  # small members are read through: a request for each of 600 headers would take longer
    assert parts == index(local)
    reads.clear()
    assert read(url, parts[7:]) == expected(samples[7 * 16 :])
    assert min(at for at, _ in reads) == parts[7].byte_start
    assert len(reads) < 8
    with opened(fs, path) as file:
        assert sample_keys(file, parts[7].byte_start, 2, InputSpec(keys=("__key__",)))["__key__"].to_pylist() == [
            "train/00112",
            "train/00113",
        ]


@pytest.mark.objectstore
def test_an_object_that_was_overwritten_is_gone_for_the_plan_that_claimed_it(s3: str) -> None:
    url = f"{s3}/in/a.tar"
    with fsspec.open(url, "wb") as file:
        file.write(archive([("0.jpg", b"old")]))
    reader = ShardReader(shard(url, index(url)), JPG)
    with fsspec.open(url, "wb") as file:
        file.write(archive([("0.jpg", b"new")]))
    assert list(reader.blocks()) == []
    assert reader.gone == {0}


def test_the_window_never_reads_a_byte_twice_going_forwards(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    path = tmp_path / "a"
    path.write_bytes(os.urandom(300_000))
    with opened(*open_filesystem(str(path))) as file:
        window = tar.Window(file, first_bytes=1000, most_bytes=16_000)
        whole = b"".join(window.at(at, min(777, 300_000 - at)) for at in range(0, 300_000, 777))
        assert whole == path.read_bytes()
        assert sum(count for _, count in reads) == 300_000
        assert [count for _, count in reads[:3]] == [1000, 2000, 4000]
        with pytest.raises(InputUnreadable, match="file ends at byte 300000"):
            window.at(299_999, 2)


# -------------------------------------------------------------------------------------------- the whole job


@pytest.fixture(scope="module")
def digits(quantized_digits: Digits) -> Digits:
    return quantized_digits


def test_a_job_over_tars_scores_every_sample_once_and_sets_a_half_copied_one_aside(
    digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pq.read_table(digits.images).select(["id", "digit", "image"])
    data, labels = tmp_path / "tars", {}
    data.mkdir()
    for first in range(0, table.num_rows, 300):
        rows = table.slice(first, 300).to_pylist()
        samples = [
            {"__key__": f"{row['id']:05d}", "cls": str(row["digit"])} | ({"jpg": row["image"]} if row["image"] else {})
            for row in rows
        ]
        write_tar(data / f"{first:05d}.tar", samples)
        labels |= {sample["__key__"]: sample["cls"] for sample in samples}
    half = (data / "00300.tar").read_bytes()
    (data / "late.tar").write_bytes(half[: len(half) // 2])
    changes = {
        "input": {"uri": str(data), "format": "webdataset", "keys": ["__key__", "cls"], "shard_rows": 64},
        "gate": {"labels_column": "cls", "max_top1_drop": 0.01, "rows": 200},
    }
    spec = tmp_path / "job.yaml"
    spec.write_text(yaml.safe_dump(digits.spec(tmp_path / "out") | changes))
    assert main(["run", str(spec), "--pool=local"]) == 1
    shown = capsys.readouterr()
    assert "late.tar" in shown.out + shown.err
    assert "cut off" in shown.out + shown.err
    (data / "late.tar").unlink()
    assert main(["run", str(spec), "--pool=local"]) == 0
    assert main(["verify", str(spec)]) == 0
    scored = predictions(tmp_path / "out").to_pylist()
    assert {row["__key__"]: row["cls"] for row in scored} == labels
    assert len(scored) == len(labels) == table.num_rows
    assert sum(row["label"] == row["cls"] for row in scored if row["error_code"] is None) > 0.9 * len(scored)
