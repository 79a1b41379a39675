"""Files whose columns differ: what is promoted, what is set aside by name, and when nothing can be scored at all."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import SpecError
from jobs.input.footers import Opened, open_sources
from jobs.input.key_types import common_keys, common_type
from jobs.input.listing import list_input
from jobs.spec.days import today
from workers.contract import InputSpec
from workers.output import keys_together
from workers.source.links import image_at
from workers.source.parquet import read_keys
from workers.source.source_file import open_parquet

UTC, PLUS_0 = pa.timestamp("us", "UTC"), pa.timestamp("us", "+00:00")
LAST_DAY = datetime.datetime(9999, 12, 31)


def put(folder: Path, name: str, rows: int = 2, **columns: Any) -> Path:
    images = columns.pop("image", pa.array([b"image"] * rows))
    table = {**columns, **({} if images is None else {"image": images})}
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), folder / name)
    return folder / name


def look(
    folder: Path, *keys: str | dict[str, str], types: pa.Schema | None = None, image: str = "image"
) -> tuple[list[Opened], dict[str, str]]:
    spec = InputSpec(uri=str(folder), format="parquet", image=image, keys=keys)
    sources = list_input(spec, today("UTC"), {}).sources
    found, left_out = open_sources(sources, spec, types, lambda: (str(folder),))
    return found, {Path(source.uri).name: why for source, why in left_out.items()}


def values(found: Sequence[Opened], *keys: Any) -> list[Any]:
    """Of the first key of all files, as an output of the plan's types has them."""
    how = InputSpec(format="parquet", image="image", keys=keys)
    assert found[0].keys is not None
    assert all(one.keys == found[0].keys for one in found)
    tables = [read_keys(open_parquet(one.source.uri), how, one.source.uri) for one in found]
    return keys_together(tables, list(found[0].keys))[keys[0]].to_pylist()


@pytest.mark.parametrize(
    ("columns", "kind"),
    [
        ([pa.nulls(2), pa.array(["a", "b"]), pa.array(["c", "d"], pa.large_string())], "string"),
        ([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "d"], pa.string_view())], "string"),
        ([pa.nulls(2), pa.nulls(2)], "string"),
        ([pa.array([1, 2], pa.int32()), pa.array([3, 2**40])], "int64"),
        ([pa.array([1, 2], pa.uint8()), pa.array([-3, 4], pa.int16())], "int16"),
        ([pa.array([1, 2]), pa.array([3.0, None])], "int64"),
        ([pa.array([LAST_DAY] * 2, UTC), pa.array([LAST_DAY] * 2, PLUS_0)], "timestamp[us, tz=UTC]"),
        ([pa.array([1, 2], pa.timestamp("ms")), pa.array([3000, 4000], pa.timestamp("ns"))], "timestamp[ns]"),
        ([pa.array([Decimal("1.5")] * 2), pa.array([Decimal("12.25")] * 2)], "decimal128(4, 2)"),
        ([pa.array([datetime.date(2026, 1, 2)] * 2)] * 2, "date32[day]"),
        ([pa.array([b"a", b"b"], pa.binary_view()), pa.array([b"c", b"d"])], "binary"),
        ([pa.array([[1], [2]], pa.list_(pa.int32())), pa.array([[3], None])], "list<element: int64>"),
    ],
)
def test_key_columns_are_promoted_where_no_value_changes(tmp_path: Path, columns: list[pa.Array], kind: str) -> None:
    for number, column in enumerate(columns):
        put(tmp_path, f"{number}.parquet", key=column)
    found, left_out = look(tmp_path, "key")
    assert left_out == {}
    assert found[0].keys is not None
    common = str(found[0].keys.field("key").type)
    assert common in (kind, kind.replace("string", "large_string"))
    assert values(found, "key") == [value for column in columns for value in column.to_pylist()]


@pytest.mark.parametrize(
    ("good", "odd"),
    [
        (pa.array(["a", "b"]), pa.array([1, 2])),
        (pa.array(["a", "b"]), pa.array([b"a", b"b"])),
        (pa.array([1, 2]), pa.array([0.5, 1.0])),
        (pa.array([2**60 + 1, 2]), pa.array([0.5, 1.0])),
        (pa.array([1.5, 2.5]), pa.array([2**60 + 1, 2])),
        (pa.array([1.5, 2.5]), pa.array([Decimal("1.5")] * 2)),
        (pa.array([1, 2], UTC), pa.array([1, 2], pa.timestamp("us"))),
        (pa.array([1000, 2000], pa.timestamp("ns")), pa.array([LAST_DAY] * 2, pa.timestamp("us"))),
        (pa.array([1, 2]), pa.array([2**63 + 1, 2], pa.uint64())),
        (pa.array([datetime.date(2026, 1, 2)] * 2), pa.array([1, 2], pa.timestamp("us"))),
    ],
)
def test_a_file_whose_key_has_other_values_is_set_aside_by_name_and_the_others_are_taken(
    tmp_path: Path, good: pa.Array, odd: pa.Array
) -> None:
    put(tmp_path, "a-odd.parquet", key=odd)
    for name in ("b.parquet", "c.parquet"):
        put(tmp_path, name, key=good)
    found, left_out = look(tmp_path, "key")
    assert left_out.keys() == {"a-odd.parquet"}
    assert "input.keys: 'key' is " in left_out["a-odd.parquet"]
    assert values(found, "key") == good.to_pylist() * 2


@pytest.mark.parametrize(
    ("root", "tonight", "fits"),
    [
        (pa.int32(), pa.array([1, 2]), True),
        (pa.int32(), pa.array([1, 2**40]), False),
        (pa.int64(), pa.array([1.0, 2.0]), True),
        (pa.int64(), pa.array([1.5, 2.0]), False),
        (pa.int64(), pa.array([1.0, np.nan]), False),
        (pa.float32(), pa.array([0.5, np.nan]), True),
        (pa.float32(), pa.array([0.1, 0.5]), False),
        (pa.timestamp("us"), pa.array([1000, None], pa.timestamp("ns")), True),
        (pa.timestamp("us"), pa.array([1001, None], pa.timestamp("ns")), False),
        (pa.timestamp("ns"), pa.array([LAST_DAY] * 2, pa.timestamp("us")), False),
        (pa.decimal128(5, 2), pa.array([Decimal("1.50"), None]), True),
        (pa.decimal128(5, 1), pa.array([Decimal("1.55"), None]), False),
        (pa.dictionary(pa.int32(), pa.string()), pa.array(["a", "b"]), True),
        (pa.large_string(), pa.array(["a", "b"]).dictionary_encode(), True),
        (pa.null(), pa.array(["a", "b"]), False),
    ],
)
def test_a_root_keeps_the_types_of_its_first_plan(
    tmp_path: Path, root: pa.DataType, tonight: pa.Array, fits: bool
) -> None:
    put(tmp_path, "a.parquet", key=tonight)
    found, left_out = look(tmp_path, "key", types=pa.schema([("key", root)]))
    if not fits:
        assert found == []
        assert f"and {root} in other files or earlier plans" in left_out["a.parquet"]
        return
    assert left_out == {}
    assert str(values(found, "key")) == str(
        tonight.cast(root if pa.types.is_integer(root) else tonight.type).to_pylist()
    )


def test_a_column_that_some_files_lack_sets_these_aside_and_one_that_all_lack_is_a_fault_of_the_spec(
    tmp_path: Path,
) -> None:
    put(tmp_path, "a.parquet", key=[1, 2])
    put(tmp_path, "b.parquet", other=[1, 2])
    put(tmp_path, "c.parquet", key=[1, 2], image=None, img=pa.array([b"x", b"y"]))
    (tmp_path / "d.parquet").write_bytes(b"PAR1 cut short")
    found, left_out = look(tmp_path, "key")
    assert [Path(one.source.uri).name for one in found] == ["a.parquet"]
    assert "input.keys: no column 'key' (it has other, image)" in left_out["b.parquet"]
    assert "input.image: no column 'image'; write `image: img`" in left_out["c.parquet"]
    assert left_out.keys() == {"b.parquet", "c.parquet", "d.parquet"}
    with pytest.raises(SpecError, match=r"no column 'kye'; write `keys: \[key\]`"):
        look(tmp_path, "kye")
    found, left_out = look(tmp_path, "kye", types=pa.schema([("kye", pa.int64())]))  # earlier plans have it
    assert (found, len(left_out)) == ([], 4)


def test_a_file_without_rows_holds_nothing_to_score_whatever_its_columns_are(tmp_path: Path) -> None:
    put(tmp_path, "a.parquet", 0, key=pa.array([], pa.string()), image=None)
    put(tmp_path, "b.parquet", 0, other=pa.array([], pa.int64()))
    alone, left_out = look(tmp_path, "key")
    assert ([one.rows for one in alone], left_out) == ([0, 0], {})
    put(tmp_path, "c.parquet", other=[1, 2])
    with pytest.raises(SpecError, match="no column 'key'"):  # what no file with rows has is a fault of the spec
        look(tmp_path, "key")
    put(tmp_path, "c.parquet", key=[1, 2])
    found, left_out = look(tmp_path, "key")
    assert ([one.rows for one in found], left_out) == ([0, 0, 2], {})
    assert {one.keys for one in found} == {pa.schema([("key", pa.int64())])}


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_times_of_spark_keep_their_value_or_are_refused(tmp_path: Path, unit: str) -> None:
    times = [LAST_DAY, datetime.datetime(1, 1, 1), None, datetime.datetime(2026, 1, 2, 3, 4, 5, 6)]
    if unit == "ns":
        times[:2] = [None, datetime.datetime(1969, 12, 31, 23, 59, 59, 999999)]
    table = pa.table({"at": pa.array(times, pa.timestamp(unit)), "image": [b"x"] * 4})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    found, left_out = look(tmp_path, "at")
    assert left_out == {}
    assert values(found, "at") == times
    cut = pa.table({"at": pa.array([1, 1001], pa.timestamp("ns")), "image": [b"x"] * 2})
    pq.write_table(cut, tmp_path / "b.parquet", use_deprecated_int96_timestamps=True)
    found, left_out = look(tmp_path, "at")
    assert len(found) == 1
    assert "'at' has times (INT96) with parts of a microsecond" in left_out["b.parquet"]


def test_ordinary_times_of_spark_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table({"at": pa.array([10**15, 10**15 + 1], pa.timestamp("us")), "image": [b"x"] * 2})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    read = []
    monkeypatch.setattr("jobs.input.footers.read_keys", lambda *given: read.append(given) or read_keys(*given))
    assert look(tmp_path, "at")[1] == {}
    assert len(read) == 1


def test_paths_without_images_are_told_before_anything_is_scored_unless_they_may_be_followed(tmp_path: Path) -> None:
    for name in ("in/0.jpg", "elsewhere/0.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"jpeg")

    def struct(folder: str, images: pa.Array) -> pa.Array:
        return pa.StructArray.from_arrays([images, pa.array([f"{tmp_path}/{folder}/0.jpg"] * 2)], ["bytes", "path"])

    nothing = pa.nulls(2, pa.binary())
    put(tmp_path / "in", "a.parquet", image=struct("elsewhere", nothing))
    with pytest.raises(
        SpecError, match=rf"no bytes in image\.bytes, but .*write `uri_roots: \[{tmp_path}/elsewhere/\]`"
    ):
        look(tmp_path / "in")
    put(tmp_path / "in", "b.parquet", image=struct("in", pa.nulls(2)))
    put(tmp_path / "in", "c.parquet", image=struct("elsewhere", pa.array([b"x" * 300, None])))
    put(tmp_path / "in", "d.parquet", image=struct("elsewhere", nothing)[:0], rows=0)
    many = pa.StructArray.from_arrays(
        [pa.nulls(99_999, pa.binary()), pa.array([None] * 2000 + [f"{tmp_path}/elsewhere/0.jpg"] * 97_999)],
        ["bytes", "path"],
    )
    put(tmp_path / "in", "e.parquet", image=many, rows=99_999)
    found, left_out = look(tmp_path / "in")
    assert len(found) == 3
    assert left_out.keys() == {"a.parquet", "e.parquet"}
    assert image_at(f"{tmp_path}/in/0.jpg", found[0].source.uri, (str(tmp_path / "in"),)) == b"jpeg"


def test_a_key_from_folders_is_text_whatever_it_looks_like(tmp_path: Path) -> None:
    for day in ("2026-01-01", "2026-01-02"):
        put(tmp_path, f"day={day}/hour=07/a.parquet")
    found, _ = look(tmp_path, "day", {"h": "hour"})
    assert found[0].keys == pa.schema([("day", pa.string()), ("h", pa.string())])
    assert values(found, "day", {"h": "hour"}) == ["2026-01-01"] * 2 + ["2026-01-02"] * 2
    assert found[0].columns == ("image", "day", "hour")


def test_the_common_types_are_those_that_most_files_can_have() -> None:
    few, many = pa.schema([("a", pa.string())]), pa.schema([("a", pa.int32())])
    wide = pa.schema([("a", pa.int64())])
    assert common_keys([few, many, wide, many]) == wide
    assert common_keys([]) is None
    assert common_keys([pa.schema([])]) == pa.schema([])
    assert common_type(pa.string(), pa.binary()) is None
