"""Huge row groups are read by pages: whatever wrote them, any slice is what a plain reader gives, of few bytes read."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.input.footers import open_sources
from jobs.input.listing import list_input
from jobs.plan.sharding import bounds, cut
from jobs.spec.days import today
from tests.workers.source.test_reading import cells, shard, slices_of
from workers.contract import InputSpec
from workers.image.errors import BadImage
from workers.source import pages, parquet, source_file
from workers.source.shard_reader import ShardReader
from workers.source.source_file import InputUnreadable, SourceFile

ROWS = 600
IMAGES: list[bytes | None] = [
    None if n % 41 == 5 else bytes([n % 251]) * (20_000 if n < 9 else 700 + n % 13) for n in range(ROWS)
]
"""Large ones first, then small ones, some of them missing."""
FULL = [image or b"-" for image in IMAGES]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is huge here: 64 KiB."""
    monkeypatch.setattr(parquet, "WHOLE_CHUNK_BYTES", 2**16)
    monkeypatch.setattr(parquet, "TOGETHER_BYTES", 2**14)
    monkeypatch.setattr(parquet, "BUFFER_BYTES", 2**12)
    monkeypatch.setattr(parquet, "BLOCK_BYTES", 2**13)
    monkeypatch.setattr(pages, "_HEADER_BYTES", 16)


def written(path: Path, column: pa.Array | pa.ChunkedArray, schema: pa.Schema | None = None, **how: Any) -> Path:
    table = pa.table({"id": [str(n) for n in range(len(column))], "image": column}, schema=schema)
    how = {"compression": "none", "use_dictionary": False, "data_page_size": 6000, "write_batch_size": 8, **how}
    pq.write_table(table, path, row_group_size=ROWS, write_page_checksum=True, **how)
    return path


def rows_of(path: Path, start: int, stop: int, only: Any = None) -> dict[int, tuple[Any, Any]]:
    """Image and key by row."""
    reader = ShardReader(
        shard(slices_of(path, (0, start, stop))),
        InputSpec(format="parquet", image="image", keys=("id",), uri_roots=(str(path.parent),)),
        only,
    )
    found: dict[int, tuple[Any, Any]] = {}
    for block in reader.blocks():
        assert block.keys is not None
        for row, cell, key in zip(block.rows, block.images, block.keys["id"].to_pylist(), strict=True):
            found[row] = (None if isinstance(cell, BadImage) else bytes(cell), key)
    assert list(found) == sorted(found)
    return found


def expected(images: Sequence[bytes | None], rows: Any) -> dict[int, tuple[Any, Any]]:
    return {row: (images[row], str(row)) for row in rows}


def check(path: Path, images: Sequence[bytes | None]) -> None:
    """Slices from here and there, and single rows."""
    for start, stop in ((0, len(images)), (0, 1), (3, 12), (37, 38), (250, 400), (len(images) - 1, len(images))):
        assert rows_of(path, start, stop) == expected(images, range(start, stop))
    chosen = {4, 300, 301, len(images) - 1}
    assert rows_of(path, 0, len(images), chosen) == expected(images, sorted(chosen))


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "version 2": {"data_page_version": "2.0"},
    "with an index": {"write_page_index": True},
    "version 2, with an index": {"data_page_version": "2.0", "write_page_index": True, "compression": "zstd"},
    "dictionary, then plain": {"use_dictionary": True, "dictionary_pagesize_limit": 60_000},
    "dictionary, then plain, version 2": {
        "use_dictionary": True, "dictionary_pagesize_limit": 60_000, "data_page_version": "2.0", "compression": "zstd",
    },
    "dictionary throughout": {"use_dictionary": True, "write_page_index": True},
    "lengths apart": {"column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY", "id": "PLAIN"}},
    "prefixes apart": {"column_encoding": {"image": "DELTA_BYTE_ARRAY", "id": "PLAIN"}},
    "a page for all": {"data_page_size": 2**30, "write_batch_size": 2**20},
    **{name: {"compression": name} for name in ("snappy", "gzip", "brotli", "zstd", "lz4")},
    **{f"dictionary, {name}": {"use_dictionary": True, "compression": name} for name in ("gzip", "brotli", "lz4")},
}  # fmt: skip


def noisy(images: Sequence[bytes | None]) -> list[bytes | None]:
    """As many bytes, which do not compress."""
    noise = random.Random(0)
    return [None if image is None else noise.randbytes(len(image)) for image in images]


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Byte at which each reading of pages begins."""
    starts: list[int] = []
    read = parquet.read_pages
    monkeypatch.setattr(parquet, "read_pages", lambda *args: starts.append(args[2]) or read(*args))  # type: ignore[func-returns-value]
    return starts


@pytest.mark.parametrize("nullable", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_whatever_the_pages_are_like_each_row_is_what_was_written(
    form: str, nullable: bool, tmp_path: Path, paged: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "WHOLE_CHUNK_BYTES", 2**13)  # however well the images compress
    images: list[bytes | None] = list(IMAGES if nullable else FULL)
    schema = pa.schema([pa.field("id", pa.string()), pa.field("image", pa.binary(), nullable=nullable)])
    check(written(tmp_path / "a.parquet", pa.array(images, pa.binary()), schema, **FORMS[form]), images)
    check(written(tmp_path / "b.parquet", pa.array(noisy(images), pa.binary()), schema, **FORMS[form]), noisy(images))
    assert paged


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.string(), pa.large_string()], ids=str)
def test_columns_of_other_types_keep_them(kind: pa.DataType, tmp_path: Path, paged: list[int]) -> None:
    names = [f"{n}-{'x' * 150}.jpg" for n in range(ROWS)]
    for name in names[310:320]:
        (tmp_path / name).write_text(name)
    path = written(tmp_path / "a.parquet", pa.array([name.encode() for name in names]).cast(kind))
    how = InputSpec(format="parquet", image="image", uri_roots=(str(tmp_path),))
    found = cells(ShardReader(shard(slices_of(path, (0, 310, 330))), how))
    rest = [name.encode() for name in names[320:330]] if kind == pa.large_binary() else ["not_found"] * 10
    assert found == [*(name.encode() for name in names[310:320]), *rest]
    assert paged


def test_structs_of_bytes_and_path_are_put_together_again(tmp_path: Path, paged: list[int]) -> None:
    (tmp_path / "beside.jpg").write_bytes(b"from the path")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows: list[Any] = [
        {"bytes": image, "path": "beside.jpg" if n % 82 == 5 else None} for n, image in enumerate(IMAGES)
    ]
    rows[47:50] = [None] * 3
    images = [row and (row["bytes"] or (b"from the path" if row["path"] else None)) for row in rows]
    check(written(tmp_path / "a.parquet", pa.array(rows, kind)), images)
    check(written(tmp_path / "b.parquet", pa.array(rows, kind), use_dictionary=True, compression="snappy"), images)
    assert paged


def test_two_large_columns_are_read_from_the_start(tmp_path: Path, paged: list[int]) -> None:
    path = written(tmp_path / "a.parquet", pa.array(FULL))
    table = pq.read_table(path).set_column(0, "id", pa.array([str(n) + "-" * 700 for n in range(ROWS)]))
    pq.write_table(table, path, use_dictionary=False, compression="none", data_page_size=6000, write_batch_size=8)
    assert rows_of(path, 310, 330) == {n: (FULL[n], str(n) + "-" * 700) for n in range(310, 330)}
    assert not paged


@pytest.mark.parametrize("form", ["text", "struct"])
def test_a_huge_key_beside_small_images_is_a_huge_column_too(form: str, tmp_path: Path, paged: list[int]) -> None:
    keys: list[Any] = [str(n) + "-" * 700 for n in range(ROWS)]
    if form == "struct":
        keys = [{"text": key, "n": n} for n, key in enumerate(keys)]
    images = [b"%d" % n for n in range(ROWS)]
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"id": keys, "image": images}),
        path, use_dictionary=False, compression="none", data_page_size=6000, write_batch_size=8,
    )  # fmt: skip
    assert rows_of(path, 310, 330) == {n: (images[n], keys[n]) for n in range(310, 330)}
    assert bool(paged) is (form == "text")


def test_duckdb_pages(tmp_path: Path, paged: list[int]) -> None:
    table = pa.table({"id": [str(n) for n in range(ROWS)], "image": noisy(IMAGES)})
    path = tmp_path / "a.parquet"
    duckdb.from_arrow(table).write_parquet(str(path))
    check(path, noisy(IMAGES))
    assert paged


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_slice_and_any_choice_of_rows_is_what_a_plain_reader_gives(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sizes = data.draw(st.lists(st.one_of(st.none(), st.integers(0, 9000)), min_size=1, max_size=120))
    distinct = data.draw(st.integers(1, 130))
    images = [None if size is None else bytes([n % distinct]) * size for n, size in enumerate(sizes)]
    path = written(
        tmp_path_factory.mktemp("any") / "a.parquet",
        pa.array(images, pa.binary()),
        use_dictionary=data.draw(st.booleans()),
        dictionary_pagesize_limit=data.draw(st.integers(1, 10**5)),
        data_page_size=data.draw(st.integers(1, 30_000)),
        write_batch_size=data.draw(st.integers(1, 50)),
        compression=data.draw(st.sampled_from(["none", "snappy", "zstd"])),
        data_page_version=data.draw(st.sampled_from(["1.0", "2.0"])),
        write_page_index=data.draw(st.booleans()),
        write_statistics=data.draw(st.booleans()),
    )
    start = data.draw(st.integers(0, len(images) - 1))
    stop = data.draw(st.integers(start + 1, len(images)))
    only = data.draw(st.one_of(st.none(), st.sets(st.integers(0, len(images)))))
    plain = pq.read_table(path)["image"].to_pylist()
    rows = [row for row in range(start, stop) if only is None or row in only]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "WHOLE_CHUNK_BYTES", data.draw(st.sampled_from([1, 1000, 2**16])))
        patch.setattr(parquet, "TOGETHER_BYTES", data.draw(st.integers(1, 50_000)))
        assert rows_of(path, start, stop, only) == expected(plain, rows)


@pytest.mark.parametrize(
    ("index", "dictionary"), [(True, False), (True, True), (False, False)], ids=["index", "dictionary", "headers"]
)
def test_of_a_slice_in_the_middle_little_else_is_read(
    index: bool, dictionary: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(
        tmp_path / "a.parquet", pa.array(noisy(IMAGES)), write_page_index=index, write_statistics=False,
        use_dictionary=["image"] if dictionary else False, dictionary_pagesize_limit=60_000,
    )  # fmt: skip
    read: list[int] = []

    class Watched(SourceFile):
        def read(self, size: int = -1) -> bytes:
            data = super().read(size)
            read.append(len(data))
            return data

    monkeypatch.setattr(source_file, "SourceFile", Watched)
    monkeypatch.setattr(pages, "_HEADER_BYTES", 64)
    assert len(rows_of(path, 400, 440)) == 40
    footers = 2**16 + 2 * pq.read_metadata(path).serialized_size
    keys = pq.read_metadata(path).row_group(0).column(0).total_compressed_size
    headers = 2000 if index else 64 * (440 // 8 + 1)
    assert sum(read) - footers - keys - headers < 40 * 720 + 2 * 8 * 720  # with the rest of the first page and the last
    assert len(read) < (15 if index else 40)


@pytest.mark.parametrize("how", [{}, {"use_dictionary": True, "compression": "snappy"}], ids=str)
def test_damage_in_a_page_that_is_read_is_found(how: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", pa.array(noisy(FULL)), **how)
    whole = path.read_bytes()
    column = pq.read_metadata(path).row_group(0).column(1)
    start = column.dictionary_page_offset if how else column.data_page_offset

    def damaged(place: int) -> None:
        path.write_bytes(whole[:place] + bytes(255 - byte for byte in whole[place : place + 4]) + whole[place + 4 :])

    for place, rows in ((start + 5000, (0, 8)), (start, (0, 8)), (start, (500, 600))):
        damaged(place)
        with pytest.raises(InputUnreadable, match=r"a\.parquet"):
            rows_of(path, *rows)
    damaged(start + 5000)
    if not how:  # all that needs a damaged dictionary is lost
        assert rows_of(path, 500, 600) == expected(noisy(FULL), range(500, 600))


@pytest.mark.parametrize("how", [{}, {"write_page_index": True}, {"use_dictionary": True}], ids=str)
def test_a_huge_row_group_is_cut_between_pages_by_their_bytes(
    how: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "PART_BYTES", 30_000)
    path = written(tmp_path / "a.parquet", pa.array(noisy(FULL)), dictionary_pagesize_limit=60_000, **how)
    spec = InputSpec(uri=str(path), format="parquet", image="image", keys=("id",))
    ((found,), _) = open_sources(list_input(spec, today("UTC"), {}).sources, spec)
    parts = found.groups
    ends = list(itertools.accumulate((part.rows for part in parts), initial=0))
    assert [part.row_start for part in parts] == ends[:-1]
    assert ends[-1] == ROWS
    assert sum(part.bytes for part in parts) == pq.read_metadata(path).row_group(0).column(1).total_compressed_size
    assert all(part.bytes < 30_000 + 13_000 for part in parts[1:])
    assert len(parts) > 10
    made = cut([found], bounds(ROWS, 1, 256, 100_000))
    assert made.warnings == ()
    assert [row for (piece,) in made.shards for row in range(piece.row_start, piece.row_stop)] == list(range(ROWS))
    monkeypatch.setattr(parquet, "MOST_HEADERS", 10)
    ((found,), _) = open_sources(list_input(spec, today("UTC"), {}).sources, spec)
    assert sum(part.rows for part in found.groups) == ROWS
    assert len(found.groups) == len(parts) if "write_page_index" in how else len(found.groups) < 7


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 30_000), byte=st.integers(0, 255), start=st.integers(0, 99), how=st.sampled_from(range(3)))
def test_whatever_is_damaged_the_file_is_to_blame(
    place: int, byte: int, start: int, how: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    form: dict[str, Any] = [{}, {"use_dictionary": True, "compression": "snappy"}, {"write_page_index": True}][how]
    images = noisy(FULL[500:600])
    path = written(tmp_path_factory.mktemp("damage") / "a.parquet", pa.array(images), **form)
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(1)
    first = column.dictionary_page_offset or column.data_page_offset
    header_near = first + place % 40 if place % 2 else first + place
    data[header_near] = byte
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch, suppress(InputUnreadable):
        patch.setattr(parquet, "WHOLE_CHUNK_BYTES", 1000)
        rows_of(path, start, 100)


def test_an_index_that_counts_rows_otherwise_than_the_pages_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.parquet", pa.array(FULL), write_page_index=True)
    places = pages._places
    for shift in (-3, 3):
        monkeypatch.setattr(
            pages, "_places", lambda index, by=shift: [(at, row + by * (row == 304)) for at, row in places(index) or ()]
        )
        with pytest.raises(InputUnreadable, match=r"a\.parquet"):
            rows_of(path, 280, 330)
        with pytest.raises(InputUnreadable, match=r"a\.parquet"):
            rows_of(path, 307, 312)


def with_index(path: Path, index: Any, at: int | None = None) -> None:
    """Another page index for the images, at the end of the file or said to be somewhere else."""
    size = pq.read_metadata(path).serialized_size
    data = path.read_bytes()[: -8 - size]
    footer, _ = pages._read(path.read_bytes()[-8 - size : -8], 0, 12)
    column = footer[4][1][1][0][1][1][1][1]
    column |= {4: (6, len(data) if at is None else at), 5: (5, len(index))}
    again = pages._written(12, footer)
    path.write_bytes(data + index + again + len(again).to_bytes(4, "little") + b"PAR1")


def index_of(places: Sequence[tuple[int, int]]) -> bytes:
    """As writers have it: sizes are not looked at."""
    entries = b"".join(
        b"\x16%b\x15\x02\x16%b\0" % (pages._written(6, at), pages._written(6, row)) for at, row in places
    )
    return b"\x19\xfc" + pages._written_varint(len(places)) + entries + b"\0"


def indexed(path: Path) -> list[tuple[int, int]]:
    size = pq.read_metadata(path).serialized_size
    column = pages._read(path.read_bytes()[-8 - size : -8], 0, 12)[0][4][1][1][0][1][1][1][1]
    return pages._places(path.read_bytes()[column[4][1] :][: column[5][1]])


LIES: dict[str, Any] = {
    "all later rows": lambda places: [(at, row + 3 * (n > 2)) for n, (at, row) in enumerate(places)],
    "all rows": lambda places: [(at, row + 3) for at, row in places],
    "begins late": lambda places: places[5:],
    "ends early": lambda places: places[:-5],
    "one page": lambda places: places[:1],
    "no page": lambda places: [],
    "elsewhere": lambda places: [(at + 10**9, row) for at, row in places],
    "backwards": lambda places: places[:1] + places[:0:-1],
    "no rows": lambda places: [(at, 0) for at, row in places],
}


@pytest.mark.parametrize("lie", LIES)
def test_with_a_page_index_that_is_wrong_headers_are_read(lie: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", pa.array(FULL), write_page_index=True)
    places = indexed(path)
    with_index(path, index_of(LIES[lie](places)))
    check(path, FULL)
    with_index(path, index_of(places))
    assert indexed(path) == places


@pytest.mark.parametrize("at", [None, -5, 10**9, 2**63 - 1])
@pytest.mark.parametrize("index", [b"", b"\x19", b"\x19\xfc\xff", b"\x19\xfc" + b"\xff" * 40 + b"\1", b"\x19\x7c" * 90])
def test_a_damaged_page_index_harms_neither_the_file_nor_the_plan(
    index: bytes, at: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "PART_BYTES", 30_000)
    path = written(tmp_path / "a.parquet", pa.array(FULL), write_page_index=True)
    with_index(path, index, at)
    spec = InputSpec(uri=str(path), format="parquet", image="image", keys=("id",))
    ((found,), left_out) = open_sources(list_input(spec, today("UTC"), {}).sources, spec)
    assert (found.rows, left_out) == (ROWS, {})
    assert len(found.groups) > 10
    assert rows_of(path, 280, 330) == expected(FULL, range(280, 330))


@pytest.mark.parametrize("more", [-1, 1])
def test_pages_that_count_other_rows_than_the_row_group_has_are_found_in_planning(
    more: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "a.parquet", pa.array(FULL))
    header = pages._data_header
    monkeypatch.setattr(pages, "_data_header", lambda page: {**header(page), 1: (5, header(page)[1][1] + more)})
    spec = InputSpec(uri=str(path), format="parquet", image="image")
    found, left_out = open_sources(list_input(spec, today("UTC"), {}).sources, spec)
    assert not found
    assert [f"{ROWS} planned" in reason for reason in left_out.values()] == [True]


def test_rows_that_do_not_come_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.parquet", pa.array(FULL))
    runs = parquet._runs
    monkeypatch.setattr(parquet, "_runs", lambda *args: list(runs(*args))[1:])
    for only in (None, {3, 250}):
        with pytest.raises(InputUnreadable, match=r"a\.parquet: row group 0 gave"):
            rows_of(path, 0, ROWS, only)


def test_what_only_arrow_can_unpack_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.parquet", pa.array(noisy(FULL)), use_dictionary=True, compression="snappy")
    monkeypatch.setattr(pages, "_CODECS", {})
    check(path, noisy(FULL))


def test_the_footer_of_a_file_of_many_row_groups_is_taken_apart_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": noisy(FULL)}), path, row_group_size=150, compression="none")
    footer = pq.read_metadata(path).serialized_size
    parsed: list[tuple[int, int]] = []
    read = pages._read
    monkeypatch.setattr(pages, "_read", lambda data, *how: parsed.append((len(data), how[0])) or read(data, *how))  # type: ignore[func-returns-value]
    spec = InputSpec(uri=str(path), format="parquet", image="image")
    ((found,), _) = open_sources(list_input(spec, today("UTC"), {}).sources, spec)
    assert {group.number for group in found.groups if group.paged} == {0, 1, 2, 3}
    reader = ShardReader(shard(slices_of(path, *((group, 0, 150) for group in range(4)))), spec)
    assert sum(len(block.rows) for block in reader.blocks()) == ROWS
    assert parsed.count((footer, 0)) == 2  # by the driver, and by a worker


@pytest.mark.parametrize("index", [True, False])
def test_rows_that_a_plan_has_and_the_file_has_not_are_told(index: bool, tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", pa.array(FULL), write_page_index=index)
    with pytest.raises(InputUnreadable, match=f"ended at row {ROWS}, {ROWS + 1} planned"):
        rows_of(path, 500, ROWS + 1)


def test_thrift_that_is_read_is_written_as_it_was_meant(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", pa.array(FULL), write_page_index=True)
    size = pq.read_metadata(path).serialized_size
    footer = path.read_bytes()[-8 - size : -8]
    read, end = pages._read(footer, 0, 12)
    again = pages._written(12, read)
    assert end == size
    assert pages._read(again, 0, 12) == (read, len(again))
    other = pq.read_metadata(pa.BufferReader(b"PAR1" + again + len(again).to_bytes(4, "little") + b"PAR1"))
    assert other.to_dict() == {**pq.read_metadata(path).to_dict(), "serialized_size": len(again)}
    for length in itertools.chain(range(40), range(40, size, 97)):
        with pytest.raises(IndexError):
            pages._read(footer[:length], 0, 12)
