"""Rows of Lance tables as workers read them: every kind of column, deleted rows, bounds, what is gone or damaged."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest
from lance.blob import Blob, blob_array, blob_field

from tests.jobs.tables.lance_tables import KINDS, lance_rows_of
from workers.contract import InputSpec, Slice
from workers.image.errors import BadImage
from workers.source import lance_rows
from workers.source.lance_rows import lance_blocks, lance_columns, lance_dataset, lance_keys
from workers.source.rows import BLOCK_BYTES, RowBlock
from workers.source.source_file import InputUnreadable
from workers.storage.errors import NotFound, StoreError

HOW = InputSpec(format="parquet", image="image", keys=("id",))


def images(count: int, size: int = 3000) -> list[bytes | None]:
    made = random.Random(7)
    return [None if n == 5 else made.randbytes(size + n % 50) for n in range(count)]


def uri_of(url: str, fragment: int = 0) -> str:
    return f"{url}/data/{lance.dataset(url).get_fragments()[fragment].data_files()[0].path}"


def part(url: str, start: int, stop: int, fragment: int = 0) -> Slice:
    return Slice(uri=uri_of(url, fragment), size=1, version="", row_group=0, row_start=start, row_stop=stop)


def blocks(url: str, start: int, stop: int, how: InputSpec = HOW, only: Any = None, **more: Any) -> list[RowBlock]:
    version = str(lance.dataset(url).version)
    return list(lance_blocks(url, version, 3, part(url, start, stop, **more), how, only))


def cells(found: Sequence[RowBlock]) -> dict[int, bytes | str]:
    """By number of row; that each comes with its own key is checked on the way."""
    rows: dict[int, bytes | str] = {}
    for block in found:
        assert block.slice_index == 3
        if block.keys is not None and "id" in block.keys.column_names:
            assert block.keys["id"].to_pylist() == list(block.rows)
        for row, cell in zip(block.rows, block.images, strict=True):
            rows[row] = str(cell.code) if isinstance(cell, BadImage) else bytes(cell)
    assert list(rows) == sorted(rows)
    return rows


def expected(all_images: Sequence[bytes | None], rows: Any) -> dict[int, bytes | str]:
    return {row: "null" if all_images[row] is None else all_images[row] for row in rows}  # type: ignore[misc]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_rows_of_a_slice_come_in_order_with_keys_and_without_deleted_ones(kind: str, tmp_path: Path) -> None:
    url, all_images = str(tmp_path / "t"), images(400)
    table = lance_rows_of([(n, image, n % 7) for n, image in enumerate(all_images)], KINDS[kind][0])
    lance.write_dataset(table, url, data_storage_version=KINDS[kind][1])
    assert cells(blocks(url, 0, 400)) == expected(all_images, range(400))
    lance.dataset(url).delete("id < 3 OR id = 100 OR id BETWEEN 200 AND 260 OR id = 399")
    live = [n for n in range(400) if not (n < 3 or n == 100 or 200 <= n <= 260 or n == 399)]
    assert cells(blocks(url, 0, 400)) == expected(all_images, live)
    assert cells(blocks(url, 90, 205)) == expected(all_images, [n for n in live if 90 <= n < 205])
    assert cells(blocks(url, 201, 250)) == {}
    assert cells(blocks(url, 2, 398, only={0, 1, 4, 99, 100, 101, 399})) == expected(all_images, [4, 99, 101])
    numbers, keys = lance_keys(url, "2", part(url, 198, 265), InputSpec(image="image", keys=({"no": "id"}, "label")))
    assert numbers == keys["no"].to_pylist() == [198, 199, 261, 262, 263, 264]
    assert keys["label"].to_pylist() == [n % 7 for n in numbers]


def test_a_version_is_read_as_it_was(tmp_path: Path) -> None:
    url = str(tmp_path / "t")
    lance.write_dataset(lance_rows_of([(n, b"%d" % n, 0) for n in range(9)]), url)
    lance.dataset(url).delete("id = 4")
    lance.write_dataset(lance_rows_of([(n, b"more", 0) for n in range(3)]), url, mode="append")
    assert [row for block in lance_blocks(url, "1", 0, part(url, 0, 9), HOW) for row in block.rows] == [*range(9)]
    assert list(cells(blocks(url, 0, 9))) == [0, 1, 2, 3, 5, 6, 7, 8]
    assert cells(blocks(url, 1, 3, fragment=1)) == {1: b"more", 2: b"more"}


@pytest.mark.parametrize("blobs", ["none", "v1", "v2"])
def test_images_in_structs(blobs: str, tmp_path: Path) -> None:
    url, all_images = str(tmp_path / "t"), images(30)
    kinds = {
        "none": pa.field("bytes", pa.binary()),
        "v1": KINDS["blobs v1"][0].with_name("bytes"),
        "v2": blob_field("bytes"),
    }
    column = blob_array(all_images) if blobs == "v2" else pa.array(all_images, kinds[blobs].type)
    paths = pa.array([f"{n}.jpg" for n in range(30)])
    inner = pa.StructArray.from_arrays([column, paths], fields=[kinds[blobs], pa.field("path", pa.string())])
    outer = pa.StructArray.from_arrays(
        [inner, pa.array(range(30))], fields=[pa.field("image", inner.type), pa.field("n", pa.int64())]
    )
    lance.write_dataset(
        pa.table({"id": pa.array(range(30)), "sample": outer}),
        url,
        data_storage_version="2.2" if blobs == "v2" else "2.1",
    )
    how = InputSpec(image="sample.image.bytes", keys=("id", {"name": "sample.image.path"}, "sample.n"))
    found = blocks(url, 0, 30, how)
    assert cells(found) == expected(all_images, range(30))
    assert found[0].keys is not None
    assert found[0].keys.slice(2, 1).to_pylist() == [{"id": 2, "name": "2.jpg", "sample.n": 2}]
    whole = cells(blocks(url, 0, 30, InputSpec(image="sample.image", keys=("id",), uri_roots=("/nowhere",))))
    assert whole == expected(all_images, range(30)) | {5: "uri_refused"}
    assert lance_columns(lance_dataset(url)).field("sample").type.field("image").type.field("bytes").type in (
        pa.binary(), pa.large_binary(),
    )  # fmt: skip


def test_blobs_outside_the_table_are_followed_only_below_the_roots(tmp_path: Path) -> None:
    url, secret, good = str(tmp_path / "t"), tmp_path / "secret.bin", tmp_path / "pictures" / "a.jpg"
    good.parent.mkdir()
    secret.write_bytes(b"not for this job")
    good.write_bytes(b"a picture")
    rows = [b"zero", secret.as_uri(), good.as_uri(), b"three", None, Blob.from_uri(good.as_uri(), 2, 4), b""]
    table = pa.table(
        [pa.array(range(7)), blob_array(rows)], schema=pa.schema([pa.field("id", pa.int64()), blob_field("image")])
    )
    lance.write_dataset(table, url, data_storage_version="2.2", allow_external_blob_outside_bases=True)
    read = lance.dataset(url).scanner(columns=["image"], blob_handling="all_binary").to_table()["image"].to_pylist()
    assert read[1] == b"not for this job"  # which the library would give to whoever asks
    how = InputSpec(image="image", keys=("id",), uri_roots=(str(good.parent),))
    assert cells(blocks(url, 0, 7, how)) == {
        0: b"zero", 1: "uri_refused", 2: b"a picture", 3: b"three", 4: "null", 5: "not_found", 6: b"",
    }  # fmt: skip
    assert cells(blocks(url, 0, 7, InputSpec(image="image", uri_roots=("/nowhere",))))[2] == "uri_refused"
    with pytest.raises(InputUnreadable, match="which are not copied"):  # nor copied into the output
        blocks(url, 0, 7, InputSpec(image="image", keys=({"copy": "image"},), uri_roots=("/nowhere",)))


@pytest.mark.parametrize("kind", ["2.0", "2.2", "blobs v1", "blobs v2"])
def test_blocks_are_bounded_where_images_are_of_every_size(kind: str, tmp_path: Path) -> None:
    url = str(tmp_path / "t")
    sizes = [2_000_000 if 600 <= n < 640 else 2_000 for n in range(1500)]
    table = lance_rows_of([(n, bytes(size), 0) for n, size in enumerate(sizes)], KINDS[kind][0])
    lance.write_dataset(table, url, data_storage_version=KINDS[kind][1])
    found = blocks(url, 0, 1500)
    assert [len(cell) for cell in cells(found).values()] == sizes
    assert max(block.bytes_read for block in found) <= BLOCK_BYTES + 2_000_000


HOLD = """
import sys
from workers.contract import InputSpec, Slice
from workers.source.lance_rows import lance_blocks
def now(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(sys.argv[3]))
url, uri, sys.argv[3] = sys.argv[1], sys.argv[2], "VmRSS"
part = Slice(uri=uri, size=1, version="", row_group=0, row_start=0, row_stop=1500)
one = InputSpec(image="image")
next(lance_blocks(url, "1", 0, part, one, {1}))
before, sys.argv[3] = now(), "VmHWM"
print(sum(block.bytes_read for block in lance_blocks(url, "1", 0, part, one)), now() - before)
"""


@pytest.mark.parametrize("kind", ["2.2", "blobs v2"])
def test_a_large_slice_is_not_held_in_memory(kind: str, tmp_path: Path) -> None:
    url, field = str(tmp_path / "t"), KINDS[kind][0]
    parts = (
        lance_rows_of([(n, os.urandom(300_000), 0) for n in range(at, at + 100)], field) for at in range(0, 1500, 100)
    )
    batches = (batch for rows in parts for batch in rows.to_batches())
    lance.write_dataset(batches, url, schema=lance_rows_of([], field).schema, data_storage_version=KINDS[kind][1])
    command = [sys.executable, "-c", HOLD, url, uri_of(url), ""]
    read, more_kb = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert int(read) == 1500 * 300_000
    assert int(more_kb) < 250_000


def test_what_is_cleaned_up_is_gone(tmp_path: Path) -> None:
    url = str(tmp_path / "t")
    lance.write_dataset(lance_rows_of([(n, b"x", 0) for n in range(9)]), url)
    gone = part(url, 0, 9)
    lance.write_dataset(lance_rows_of([(1, b"y", 0)]), url, mode="overwrite")
    assert len(list(lance_blocks(url, "1", 0, gone, HOW))) == 1
    lance_rows._table.cache_clear()
    lance.dataset(url).cleanup_old_versions(older_than=timedelta(0))
    with pytest.raises(NotFound, match="version 1 of"):
        list(lance_blocks(url, "1", 0, gone, HOW))
    with pytest.raises(NotFound):
        list(lance_blocks(url, "2", 0, gone, HOW))
    with pytest.raises(NotFound):
        list(lance_blocks(str(tmp_path / "nowhere"), "1", 0, gone, HOW))


def test_a_file_that_vanishes_while_the_table_is_open_is_gone_and_a_cut_one_is_unreadable(tmp_path: Path) -> None:
    url = str(tmp_path / "t")
    lance.write_dataset(lance_rows_of([(n, image, 0) for n, image in enumerate(images(2000))]), url)
    file = uri_of(url)
    shutil.copy(file, tmp_path / "copy")
    assert len(cells(blocks(url, 0, 3))) == 3
    lance_rows._table.cache_clear()
    os.truncate(file, 3_000_000)
    with pytest.raises(InputUnreadable, match=Path(file).name):
        blocks(url, 0, 2000)
    lance_rows._table.cache_clear()
    Path(file).unlink()
    with pytest.raises(NotFound):
        list(lance_blocks(url, "1", 0, Slice(uri=file, size=1, version="", row_group=0, row_start=0, row_stop=9), HOW))


def test_another_table_in_the_place_of_one_that_was_open_is_read(tmp_path: Path) -> None:
    url = str(tmp_path / "t")
    for text in (b"first", b"second"):
        shutil.rmtree(url, ignore_errors=True)
        lance.write_dataset(lance_rows_of([(0, text, 0)]), url)
        assert cells(blocks(url, 0, 1)) == {0: text}


@pytest.mark.objectstore
def test_a_server_that_fails_is_a_fault_of_the_store(
    behind_proxy: Any, ministack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.objectstore.fault_proxy import internal_error
    from workers.storage.access import storage_options

    monkeypatch.setattr("workers.storage.retries.BACKOFF_S", 0.01)
    proxy, bucket = behind_proxy(ministack)
    url = f"{bucket}/set.lance"
    lance.write_dataset(
        lance_rows_of([(n, image, 0) for n, image in enumerate(images(50))]), url, storage_options=storage_options(url)
    )
    name = lance.dataset(url, storage_options=storage_options(url)).get_fragments()[0].data_files()[0].path
    where = Slice(uri=f"{url}/data/{name}", size=1, version="", row_group=0, row_start=0, row_stop=50)
    assert len(cells([*lance_blocks(url, "1", 3, where, HOW)])) == 50
    lance_rows._table.cache_clear()
    proxy.plan = lambda request: internal_error() if "/data/" in request.target and request.method == "GET" else None
    with pytest.raises(StoreError):
        list(lance_blocks(url, "1", 0, where, HOW))
