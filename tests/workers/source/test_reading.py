"""From shard to rows: every column shape, huge row groups, nulls, URIs, sources that are gone, storage that fails."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from jobs.input.footers import open_sources, opened_rows
from jobs.input.listing import list_input
from jobs.ledger.plans import Source
from jobs.spec.days import today
from workers.contract import InputSpec, Shard, Slice
from workers.image.errors import MAX_IMAGE_BYTES, BadImage
from workers.source import parquet, source_file
from workers.source.columns import image_columns
from workers.source.rows import RowBlock
from workers.source.shard_reader import ReadAhead, ShardReader, SourceChanged
from workers.source.source_file import InputUnreadable, SourceFile
from workers.storage.errors import StoreError
from workers.storage.filesystems import open_filesystem, version_of

PARQUET = InputSpec(format="parquet", image="image")


def images(count: int, size: int = 50) -> list[bytes]:
    return [bytes([i % 251]) * size for i in range(count)]


def write(path: Path, column: pa.Array, rows_a_group: int = 100, **others: Any) -> Path:
    table = pa.table({"image": column, **others})
    pq.write_table(table, path, row_group_size=rows_a_group, compression="none", write_page_checksum=True)
    return path


def slices_of(path: Path, *ranges: tuple[int, int, int]) -> tuple[Slice, ...]:
    fs, name = open_filesystem(str(path))
    info = fs.info(name)
    return tuple(
        Slice(uri=name, size=info["size"], version=version_of(info), row_group=g, row_start=a, row_stop=b)
        for g, a, b in ranges
    )


def shard(slices: Sequence[Slice]) -> Shard:
    return Shard(plan=1, plan_token="t", index=0, slices=tuple(slices))


def cells(reader: ShardReader) -> list[bytes | str]:
    """The bytes of each image, or the error code of its row."""
    return [
        cell.code if isinstance(cell, BadImage) else bytes(memoryview(cell))
        for block in reader.blocks()
        for cell in block.images
    ]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_binary_columns_give_their_bytes_and_nulls_their_code(tmp_path: Path, kind: pa.DataType) -> None:
    path = write(tmp_path / "a.parquet", pa.array([b"one", None, b"three"], kind))
    assert cells(ShardReader(shard(slices_of(path, (0, 0, 3))), PARQUET)) == [b"one", "null", b"three"]


def test_hugging_face_structs_give_the_bytes_or_follow_the_path(tmp_path: Path) -> None:
    (tmp_path / "beside.jpg").write_bytes(b"from the path")
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": b"one", "path": "x"}, {"bytes": None, "path": "beside.jpg"}, None, {"bytes": None, "path": None}]
    path = write(tmp_path / "a.parquet", pa.array(rows, struct))
    how = InputSpec(format="parquet", image="image", uri_roots=(str(tmp_path),))
    found = cells(ShardReader(shard(slices_of(path, (0, 0, 4))), how))
    assert found == [b"one", b"from the path", "null", "null"]


def test_a_struct_of_bytes_alone_is_an_image_column_too(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array([{"bytes": b"one"}], pa.struct([("bytes", pa.binary())])))
    assert cells(ShardReader(shard(slices_of(path, (0, 0, 1))), PARQUET)) == [b"one"]


def test_uris_are_followed_below_the_roots_and_nowhere_else(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "secret.jpg"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "a.jpg").write_bytes(b"A")
    outside.write_bytes(b"secret")
    uris = [
        "deep/a.jpg",
        str(inside / "deep" / "a.jpg"),
        f"file://{inside}/deep/a.jpg",
        "deep/none.jpg",
        "../secret.jpg",
        str(outside),
        f"{inside}/../secret.jpg",
        "http://127.0.0.1/a.jpg",
        f"simplecache::{inside}/deep/a.jpg",
        None,
    ]
    path = write(inside / "a.parquet", pa.array(uris))
    how = InputSpec(format="parquet", image="image", uri_roots=(str(inside),))
    found = cells(ShardReader(shard(slices_of(path, (0, 0, len(uris)))), how))
    assert found == [b"A", b"A", b"A", "not_found", *["uri_refused"] * 5, "null"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_uri_that_is_no_text_is_a_bad_row_and_beside_bytes_it_does_not_matter(
    tmp_path: Path, kind: pa.DataType
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"A")
    raw = pa.large_binary() if kind == pa.large_string() else pa.binary()
    column = pa.array([b"a.jpg", b"\xff\xfe.jpg", None], raw)
    how = InputSpec(format="parquet", image="image", uri_roots=(str(tmp_path),))
    uris = write(tmp_path / "a.parquet", column.view(kind))
    assert cells(ShardReader(shard(slices_of(uris, (0, 0, 3))), how)) == [b"A", "uri_refused", "null"]
    struct = pa.StructArray.from_arrays([pa.array([b"one", b"two", None]), column.view(kind)], ["bytes", "path"])
    both = write(tmp_path / "b.parquet", struct)
    assert cells(ShardReader(shard(slices_of(both, (0, 0, 3))), how)) == [b"one", b"two", "null"]


def test_slices_come_in_order_with_the_rows_they_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array(images(25)), rows_a_group=10)
    blocks = list(ShardReader(shard(slices_of(path, (0, 3, 7), (2, 0, 5))), PARQUET).blocks())
    assert [(b.slice_index, b.rows[0], len(b.images)) for b in blocks] == [(0, 3, 4), (1, 0, 5)]
    assert bytes(memoryview(blocks[1].images[0])) == images(25)[20]


def test_a_huge_row_group_is_streamed_and_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "WHOLE_CHUNK_BYTES", 2**20)
    monkeypatch.setattr(parquet, "BUFFER_BYTES", 2**16)
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 2**18)
    path = write(tmp_path / "a.parquet", pa.array(images(1000, 8192)), rows_a_group=1000)  # one column chunk of 8 MB
    largest = 0

    class Watched(SourceFile):
        def read(self, size: int = -1) -> bytes:
            nonlocal largest
            largest = max(largest, size)
            return super().read(size)

    monkeypatch.setattr(source_file, "SourceFile", Watched)
    found = cells(ShardReader(shard(slices_of(path, (0, 600, 700))), PARQUET))
    assert found == images(1000, 8192)[600:700]
    assert 0 < largest < 4 * 2**20


def test_key_columns_travel_with_their_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array(images(20)), rows_a_group=10, id=pa.array(range(20)))
    how = InputSpec(format="parquet", image="image", keys=("id",))
    blocks = ShardReader(shard(slices_of(path, (1, 2, 6))), how).blocks()
    assert [i for b in blocks if b.keys for i in b.keys["id"].to_pylist()] == [12, 13, 14, 15]


# ------------------------------------------------------------------------ sources that are not as claimed


def test_a_source_that_vanished_or_was_replaced_gives_no_rows_and_is_reported(tmp_path: Path) -> None:
    kept = write(tmp_path / "kept.parquet", pa.array([b"k"]))
    lost = write(tmp_path / "lost.parquet", pa.array([b"l"]))
    replaced = write(tmp_path / "replaced.parquet", pa.array([b"r"]))
    reader = ShardReader(
        shard([*slices_of(lost, (0, 0, 1)), *slices_of(kept, (0, 0, 1)), *slices_of(replaced, (0, 0, 1))]), PARQUET
    )
    lost.unlink()
    write(replaced, pa.array([b"another"]))
    assert cells(reader) == [b"k"]
    assert reader.gone == {0, 2}


def test_a_source_replaced_while_it_is_read_fails_the_attempt(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array(images(20)), rows_a_group=10)
    blocks = ShardReader(shard(slices_of(path, (0, 0, 10), (1, 0, 10))), PARQUET).blocks()
    next(blocks)
    os.utime(path, (1, 1))
    with pytest.raises(SourceChanged):
        list(blocks)


def test_a_folder_of_images_gives_a_row_a_file_and_knows_the_gone_ones(tmp_path: Path) -> None:
    for i in range(40):
        (tmp_path / f"{i:02d}.jpg").write_bytes(f"image {i}".encode())
    (tmp_path / "notes.txt").write_text("not an image")
    spec = InputSpec(uri=str(tmp_path), format="images")
    opened, unreadable = open_sources(list_input(spec, today("UTC"), {}).sources, spec)
    slices = [
        Slice(uri=o.source.uri, size=o.source.size, version=o.source.version, row_group=0, row_start=0, row_stop=1)
        for o in opened
    ]
    (tmp_path / "07.jpg").unlink()
    (tmp_path / "11.jpg").write_bytes(b"replaced")
    reader = ShardReader(shard(slices), InputSpec(format="images", image="image"))
    assert cells(reader) == [f"image {i}".encode() for i in range(40) if i not in (7, 11)]
    assert reader.gone == {7, 11}
    assert unreadable == {}


def test_a_file_that_is_too_large_to_be_an_image_is_a_bad_row_and_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever read it would be killed by its bound of memory, also alone."""
    (tmp_path / "a.jpg").write_bytes(b"A")
    with (tmp_path / "b.jpg").open("wb") as sparse:
        sparse.truncate(MAX_IMAGE_BYTES + 1)
    reads: list[int] = []
    read_bytes, cat_file = Path.read_bytes, LocalFileSystem.cat_file
    monkeypatch.setattr(Path, "read_bytes", lambda it: reads.append(1) or read_bytes(it))
    monkeypatch.setattr(
        LocalFileSystem, "cat_file", lambda it, path, **how: reads.append(1) or cat_file(it, path, **how)
    )
    slices = [piece for name in ("a", "b") for piece in slices_of(tmp_path / f"{name}.jpg", (0, 0, 1))]
    reader = ShardReader(shard(slices), InputSpec(format="images", image=""))
    assert cells(reader) == [b"A", "too_large"]
    path = write(tmp_path / "a.parquet", pa.array(["a.jpg", "b.jpg"]))
    how = InputSpec(format="parquet", image="image", uri_roots=(str(tmp_path),))
    assert cells(ShardReader(shard(slices_of(path, (0, 0, 2))), how)) == [b"A", "too_large"]
    assert len(reads) == 2
    (tmp_path / "b.jpg").unlink()
    reader = ShardReader(shard(slices), InputSpec(format="images", image=""))
    assert cells(reader) == [b"A"]
    assert reader.gone == {1}


def test_a_flipped_bit_in_a_page_is_found_and_blamed_on_the_source(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.array(images(100, 500)))
    data = bytearray(path.read_bytes())
    data[20_000] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputUnreadable, match=r"a\.parquet"):
        cells(ShardReader(shard(slices_of(path, (0, 0, 100))), PARQUET))


def test_much_is_read_from_a_store_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_file, "PIECE_BYTES", 1000)
    fs = MemoryFileSystem()
    fs.pipe_file("/much", bytes(range(250)) * 20)
    file = SourceFile(fs, "/much")
    file.remote = True
    file.seek(5)
    assert bytes(file.read(2500)) == (bytes(range(250)) * 20)[5:2505]
    assert file.tell() == 2505
    assert bytes(file.read(9000)) == (bytes(range(250)) * 20)[2505:]
    assert file.read(9000) == b""


def test_a_fault_of_storage_is_not_blamed_on_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", pa.array(images(100, 500)))

    class Faulty(io.FileIO):
        """Gives the footer, then fails as a network does."""

        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            Faulty.reads += 1
            if Faulty.reads > 1:
                raise ConnectionResetError("reset by peer")
            return super().read(size)

    monkeypatch.setattr(LocalFileSystem, "open", lambda self, name, mode, **_: Faulty(name))
    monkeypatch.setattr("workers.storage.retries.BACKOFF_S", 0.01)
    with pytest.raises(StoreError, match="reset by peer"):
        cells(ShardReader(shard(slices_of(path, (0, 0, 100))), PARQUET))


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (pa.schema([("img", pa.binary())]), "no column 'image'; write `image: img`"),
        (pa.schema([("id", pa.int32()), ("row", pa.struct([("jpg", pa.binary())]))]), "write `image: row.jpg`"),
        (pa.schema([("sku", pa.string()), ("image_url", pa.string())]), "write `image: image_url`"),
        (pa.schema([("sku", pa.string())]), "no column of it holds bytes"),
        (pa.schema([("image", pa.int32()), ("photo", pa.binary_view())]), "'image' is int32.*write `image: photo`"),
        (pa.schema([("image", pa.struct([("data", pa.binary())]))]), "write `image: image.data`"),
        (pa.schema([("image", pa.list_(pa.int32()))]), "which holds no image"),
        (pa.schema([("image", pa.binary()), ("image", pa.binary())]), "several columns are called 'image'"),
    ],
)
def test_a_column_that_cannot_hold_images_is_explained(schema: pa.Schema, message: str) -> None:
    with pytest.raises(InputUnreadable, match=message):
        image_columns(schema, "image")


# ---------------------------------------------------------------------------------------------- read-ahead


class Blocks:
    """A reader of `count` blocks of `size` bytes that counts how many it has given."""

    def __init__(self, count: int, size: int, error: Exception | None = None) -> None:
        self.count, self.size, self.error, self.given = count, size, error, 0

    def blocks(self) -> Any:
        for i in range(self.count):
            self.given += 1
            yield RowBlock(0, [i], [], None, self.size)
        if self.error:
            raise self.error


def test_read_ahead_holds_no_more_bytes_than_its_bound(tmp_path: Path) -> None:
    source = Blocks(100, 10)
    ahead = ReadAhead(source, max_bytes=35)  # type: ignore[arg-type]
    taken = []
    for block in ahead:
        taken += block.rows
        assert source.given <= len(taken) + 3 + 1  # three fit the bound, one waits in the reader's hand
    assert taken == list(range(100))
    ahead.close()


def test_a_block_above_the_bound_passes_alone_and_close_ends_a_reader_that_waits() -> None:
    ahead = ReadAhead(Blocks(3, 1000), max_bytes=10)  # type: ignore[arg-type]
    assert [row for b in ahead for row in b.rows] == [0, 1, 2]
    waiting = ReadAhead(Blocks(100, 10), max_bytes=10)  # type: ignore[arg-type]
    waiting.close()
    assert not waiting._thread.is_alive()


def test_an_error_of_the_reader_comes_out_of_the_iteration() -> None:
    ahead = ReadAhead(Blocks(1, 1, StoreError("503")), max_bytes=10)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="503"):
        list(ahead)


def test_image_files_are_made_into_objects_as_they_are_asked_for() -> None:
    sources = [Source(f"{n}.jpg", n, "v") for n in range(5)]
    images, unreadable = open_sources(sources, InputSpec(uri="in", format="images", keys=("name",)))
    assert (len(images), opened_rows(images), unreadable) == (5, 5, {})
    assert [one.source for one in images] == [one.source for one in images[:]] == sources
    assert [(group.rows, group.bytes) for group in images[-1].groups] == [(1, 4)]
    assert [field.name for field in images[0].keys] == ["name"]
    assert [one.source for one in images[1:3]] == sources[1:3]
