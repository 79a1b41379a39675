"""Single rows of the input, named and found again, in every format."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support import tars
from workers.contract import InputSpec, SampleSlice, Slice
from workers.source import parquet
from workers.source.shard_reader import sample_cells
from workers.source.single_rows import CHANGED, GONE, Place, RowAt, fetch_images
from workers.storage.filesystems import open_filesystem, version_of

PARQUET = InputSpec(format="parquet", image="image", keys=("id",))


def version(path: Path) -> str:
    fs, name = open_filesystem(str(path))
    return version_of(fs.info(name))


def at(path: Path, row: int, row_group: int = 0) -> RowAt:
    return RowAt(str(path), version(path), row_group, row)


def parquet_of(path: Path, cells: Sequence[object], kind: pa.DataType, rows_a_group: int = 1000) -> Path:
    table = pa.table({"id": pa.array(range(len(cells))), "image": pa.array(cells, kind)})
    pq.write_table(table, path, row_group_size=rows_a_group)
    return path


def test_rows_of_parquet_come_in_the_order_asked_for_from_any_row_group(tmp_path: Path) -> None:
    file = parquet_of(tmp_path / "a.parquet", [b"0", b"1", None, b"3", b"4", b"5"], pa.binary(), rows_a_group=4)
    found = fetch_images(PARQUET, [at(file, 1, 1), at(file, 0), at(file, 2), at(file, 3), at(file, 0)])
    assert found == [
        b"5", b"0", "the image cell is null", b"3", b"0",
    ]  # fmt: skip


def test_a_struct_of_bytes_and_path_gives_the_bytes_or_what_the_path_leads_to(tmp_path: Path) -> None:
    (tmp_path / "b.jpg").write_bytes(b"linked")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [{"bytes": b"held", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}]
    file = parquet_of(tmp_path / "a.parquet", cells, kind)
    how = InputSpec(format="parquet", image="image", uri_roots=(str(tmp_path),))
    assert fetch_images(how, [at(file, 0), at(file, 1)]) == [b"held", b"linked"]


def test_uris_are_followed_below_the_roots_only_and_those_of_other_rows_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.jpg").write_bytes(b"b")
    (tmp_path / "secret").write_bytes(b"secret")
    cells = ["b.jpg", "other.jpg", "../secret", "none.jpg", None]
    file = parquet_of(tmp_path / "in/a.parquet", cells, pa.string())
    how = InputSpec(format="parquet", image="image", uri_roots=(str(tmp_path / "in"),))
    followed: list[str | None] = []
    image_at = parquet.image_at

    def watched(value: str | None, source: str, roots: tuple[str, ...], encoding: str) -> object:
        followed.append(value)
        return image_at(value, source, roots, encoding)

    monkeypatch.setattr(parquet, "image_at", watched)
    b, refused, none, null = fetch_images(how, [at(file, row) for row in (0, 2, 3, 4)])
    assert b == b"b"
    assert (none, null) == (
        f"'none.jpg': no such object at '{tmp_path}/in/none.jpg'", "the image cell is null",
    )  # fmt: skip
    assert "outside of input.uri_roots" in str(refused)
    assert sorted(map(str, followed)) == ["../secret", "None", "b.jpg", "none.jpg"]


def test_a_hundred_rows_of_a_row_group_are_read_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet_of(tmp_path / "a.parquet", [b"%d" % n for n in range(300)], pa.binary())
    passes = []
    read = parquet.row_group_blocks
    monkeypatch.setattr(parquet, "row_group_blocks", lambda *args: passes.append(args) or read(*args))
    found = fetch_images(PARQUET, [at(file, row) for row in range(299, 0, -3)])
    assert found == [b"%d" % n for n in range(299, 0, -3)]
    assert len(passes) == 1


def test_a_sample_follows_the_uris_of_its_rows_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        (tmp_path / f"{number}.jpg").write_bytes(b"%d" % number)
    file = parquet_of(tmp_path / "a.parquet", [f"{number}.jpg" for number in range(10)], pa.string())
    followed = []
    image_at = parquet.image_at
    monkeypatch.setattr(parquet, "image_at", lambda *args: followed.append(args[0]) or image_at(*args))
    piece = Slice(uri=str(file), size=file.stat().st_size, version=version(file), row_group=0, row_start=0, row_stop=10)
    how = InputSpec(format="parquet", image="image", keys=("id",), uri_roots=(str(tmp_path),))
    taken = [
        (row, bytes(cell), block.keys["id"][block.rows.index(row)].as_py())
        for row, cell, block in sample_cells(SampleSlice(rows=piece, take=3), how)
    ]
    assert taken == [(0, b"0", 0), (4, b"4", 4), (9, b"9", 9)]
    assert sorted(followed) == ["0.jpg", "4.jpg", "9.jpg"]


@pytest.mark.parametrize("known", [True, False])
def test_samples_of_a_tar_are_found_with_and_without_the_plans_slices(tmp_path: Path, known: bool) -> None:
    samples = tars.photos(50)
    samples[7] = {"__key__": "no-image", "cls": "3"}
    file = tars.write_tar(tmp_path / "a.tar", samples)
    whole = tars.shard(file, tars.index(file))
    shard = replace(whole, slices=tuple(piece for piece in whole.slices if piece.row_start != 16))
    rows = [49, 0, 20, 7, 48]
    found = fetch_images(tars.JPG, [at(file, row) for row in rows], [shard] if known else [])
    assert "has no jpg, png; it has cls" in str(found.pop(3))
    assert found == [samples[row]["jpg"] for row in rows if row != 7]


def test_image_files_are_rows(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(name.encode())
    how = InputSpec(format="images", image="")
    assert fetch_images(how, [at(tmp_path / f"{name}.jpg", 0) for name in "ba"]) == [b"b", b"a"]


@pytest.mark.parametrize("format", ["parquet", "webdataset", "images"])
def test_a_file_that_is_gone_or_another_one_by_now_is_told(tmp_path: Path, format: str) -> None:
    gone, changed, there = (tmp_path / name for name in ("gone", "changed", "there"))
    for file in (gone, changed, there):
        if format == "parquet":
            parquet_of(file, [b"x"], pa.binary())
        elif format == "webdataset":
            tars.write_tar(file, [{"__key__": "k", "jpg": b"x"}])
        else:
            file.write_bytes(b"x")
    rows = [at(file, 0) for file in (gone, changed, there)]
    gone.unlink()
    os.utime(changed, (1, 1))
    how = InputSpec(format=format, image="jpg" if format == "webdataset" else "image")
    assert fetch_images(how, rows) == [GONE, CHANGED, b"x"]


def test_a_damaged_file_and_rows_that_it_lacks_are_told_and_concern_no_other(tmp_path: Path) -> None:
    damaged, short = tmp_path / "damaged.parquet", parquet_of(tmp_path / "short.parquet", [b"0", b"1"], pa.binary())
    damaged.write_bytes(b"PAR1 this is not Parquet")
    bad, beyond, first = fetch_images(PARQUET, [at(damaged, 0), at(short, 5), at(short, 1)])
    assert isinstance(bad, str)
    assert "cannot be read" in bad
    assert isinstance(beyond, str)
    assert "row group 0 ended at row 2" in beyond
    assert first == b"1"


def test_a_store_that_refuses_is_told_without_credentials(tmp_path: Path) -> None:
    (found,) = fetch_images(PARQUET, [RowAt("nosuch://user:secret@host/a.parquet", "v", 0, 0)])
    assert isinstance(found, str)
    assert "cannot be read" in found
    assert "secret" not in found


@pytest.mark.parametrize(
    ("format", "text", "place"),
    [
        ("parquet", "s3://b/a#1/2#3/4", Place("s3://b/a#1/2", 3, 4)),
        ("webdataset", "a.tar#0/7", Place("a.tar", 0, 7)),
        ("images", "in/a=1.jpg", Place("in/a=1.jpg")),
    ],
)
def test_a_row_is_read_as_it_is_written(format: str, text: str, place: Place) -> None:
    how = InputSpec(format=format, image="image")
    assert (Place.read(text, how), place.write(how)) == (place, text)
