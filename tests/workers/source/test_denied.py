"""What the store does not let be read: a row of an image file, a shard of a file of many rows, never the night."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem

from jobs.input.footers import open_sources
from jobs.input.listing import list_input
from jobs.spec.days import today
from tests.workers.source.test_reading import PARQUET, cells, images, shard, slices_of, write
from workers.contract import InputSpec, Slice
from workers.failures import classify
from workers.image.errors import BadImage, ErrorCode
from workers.outcomes import FailureCode, FailureKind
from workers.output import Scored
from workers.score.scorer import _check_refused
from workers.source import source_file
from workers.source.links import image_at
from workers.source.shard_reader import ShardReader
from workers.source.source_file import InputDenied

FOLDER = InputSpec(format="images")


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has reads of files with these names refused, from the `after`th read on."""

    def refuse(*names: str, after: int = 0) -> None:
        right, seen = LocalFileSystem.cat_file, []

        def cat_file(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
            seen.append(path)
            if Path(path).name in names and len(seen) > after:
                raise PermissionError(f"InvalidObjectState: {path} token=CANARY")
            return right(self, path, *args, **kwargs)

        monkeypatch.setattr(LocalFileSystem, "cat_file", cat_file)

    return refuse


def test_an_image_that_may_not_be_read_is_a_row_and_the_others_are_scored(
    tmp_path: Path, deny: Callable[..., None]
) -> None:
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(b"%d" % n)
    slices = [s for n in range(4) for s in slices_of(tmp_path / f"{n}.jpg", (0, 0, 1))]
    deny("2.jpg")
    assert cells(ShardReader(shard(slices), FOLDER)) == [b"0", b"1", ErrorCode.DENIED, b"3"]


def test_where_the_right_to_read_has_ended_on_the_way_nothing_is_a_row(
    tmp_path: Path, deny: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.source.shard_reader.FETCHES", 1)
    for n in range(4):
        (tmp_path / f"{n}.jpg").write_bytes(b"%d" % n)
    slices = [s for n in range(4) for s in slices_of(tmp_path / f"{n}.jpg", (0, 0, 1))]
    deny(*(f"{n}.jpg" for n in range(4)), after=2)
    with pytest.raises(InputDenied, match="InvalidObjectState"):
        cells(ShardReader(shard(slices), FOLDER))


@pytest.mark.parametrize("step", ["open", "read"])
def test_a_file_of_many_rows_that_may_not_be_read_is_unreadable_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = write(tmp_path / "a.parquet", pa.array(images(10)))
    slices = slices_of(path, (0, 0, 10))

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError("AccessDenied")

    if step == "open":
        monkeypatch.setattr(LocalFileSystem, "open", refuse)
    else:
        monkeypatch.setattr(source_file, "retrying", lambda call, name, right=source_file.retrying: right(
            refuse if name == str(path) and "read" in call.__qualname__ else call, name))  # fmt: skip
    with pytest.raises(InputDenied, match="AccessDenied") as error:
        cells(ShardReader(shard(slices), PARQUET))
    failure = classify(error.value)
    assert (failure.kind, failure.code) == (FailureKind.DATA, FailureCode.DENIED)


def test_a_footer_that_may_not_be_read_leaves_its_file_unclaimed_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.parquet", "b.parquet"):
        write(tmp_path / name, pa.array(images(3)))
    right = LocalFileSystem.open

    def open_(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        if path.endswith("b.parquet"):
            raise PermissionError("AccessDenied")
        return right(self, path, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "open", open_)
    spec = InputSpec(uri=str(tmp_path), image="image")
    opened, unreadable = open_sources(list_input(spec, today("UTC"), {}).sources, spec)
    assert [Path(one.source.uri).name for one in opened] == ["a.parquet"]
    assert ["AccessDenied" in why for why in unreadable.values()] == [True]


def test_a_uri_whose_object_may_not_be_read_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")

    def refuse(*_: Any) -> Any:
        raise PermissionError("mode 000")

    monkeypatch.setattr("workers.source.links.read_below", refuse)
    cell = image_at("a.jpg", f"{tmp_path}/t.parquet", (str(tmp_path),))
    assert isinstance(cell, BadImage)
    assert cell.code is ErrorCode.DENIED


@pytest.mark.parametrize(("denied", "rows", "raises"), [(1, 1, True), (9, 10, False), (19, 20, True), (1, 100, False)])
def test_expired_credentials_never_become_rows(tmp_path: Path, denied: int, rows: int, raises: bool) -> None:
    path = write(tmp_path / "a.parquet", pa.array(images(rows)))
    bad = {row: BadImage(ErrorCode.DENIED, "AccessDenied") for row in range(denied)}
    scored = Scored(
        np.zeros((rows, 1), np.int32), np.zeros((rows, 1), np.float32),
        errors=bad, row=list(range(rows)), slice_index=[0] * rows,
    )  # fmt: skip
    with pytest.raises(InputDenied, match=f"{denied} of {rows} rows") if raises else nullcontext():
        _check_refused(shard(slices_of(path, (0, 0, rows))), scored, 0.9)


@pytest.mark.objectstore
def test_an_archived_object_of_s3_that_no_listing_has_shown_is_denied_and_nothing_else(s3: str, tmp_path: Path) -> None:
    """As a manifest names it: the HEAD answers, and the GET does not."""
    fs = fsspec.filesystem("s3")
    body = write(tmp_path / "a.parquet", pa.array(images(3))).read_bytes()
    for name in ("a.parquet", "old.parquet", "b.jpg", "old.jpg"):
        kind = "GLACIER" if "old" in name else "STANDARD"
        fs.call_s3("put_object", Bucket=s3[5:], Key=name, Body=body, StorageClass=kind)
    manifest = tmp_path / "list"
    manifest.write_text(f"{s3}/a.parquet\n{s3}/old.parquet\n")
    spec = InputSpec(manifest=str(manifest), image="image")
    opened, unreadable = open_sources(list_input(spec, today("UTC"), {}).sources, spec)
    assert [one.source.uri for one in opened] == [f"{s3}/a.parquet"]
    assert [source.uri for source in unreadable] == [f"{s3}/old.parquet"]
    manifest.write_text(f"{s3}/b.jpg\n{s3}/old.jpg\n")
    sources = list_input(InputSpec(manifest=str(manifest), format="images"), today("UTC"), {}).sources
    slices = [
        Slice(uri=one.uri, size=one.size, version=one.version, row_group=0, row_start=0, row_stop=1) for one in sources
    ]
    assert cells(ShardReader(shard(slices), FOLDER)) == [body, ErrorCode.DENIED]
