"""Files of a table are read by the table's present names, whatever they call a column."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.contract import TableOf
from workers.source.source_file import InputUnreadable
from workers.source.table_view import TableView


def field(name: str, kind: pa.DataType, number: int | None = None, **metadata: str) -> pa.Field:
    told = {f"stint.{key}": value for key, value in metadata.items()}
    return pa.field(name, kind, metadata=told | ({} if number is None else {"PARQUET:field_id": str(number)}))


def view(file: pa.Schema, *table: pa.Field, constants: dict[str, object] | None = None) -> TableView:
    told = TableOf(
        url="/t", version="3", schema=pa.schema(list(table)).serialize().to_pybytes(),
        constants={"/t/a.parquet": constants or {}},
    )  # fmt: skip
    return TableView.of(file, told, "/t/a.parquet")


def written(folder: Path, table: pa.Table) -> pq.ParquetFile:
    pq.write_table(table, folder / "a.parquet")
    return pq.ParquetFile(folder / "a.parquet")


def test_columns_are_found_by_their_number_however_they_are_called(tmp_path: Path) -> None:
    inner = pa.struct([field("b", pa.binary(), 5), field("p", pa.string(), 6)])
    schema = pa.schema([field("old", pa.int32(), 1), field("label", pa.string(), 2), field("pic", inner, 3)])
    rows = pa.table([[1, 2], ["x", "y"], [{"b": b"1", "p": None}, None]], schema=schema)
    file = written(tmp_path, rows)
    struct = pa.struct([field("path", pa.string(), 6), field("bytes", pa.binary(), 5)])
    seen = view(
        file.schema_arrow, field("label", pa.int64(), 1), field("image", struct, 3), field("old", pa.string(), 9)
    )
    assert seen.in_file(["image.bytes", "label", "old", "nothing"]) == ["pic.b", "old"]
    [batch] = file.iter_batches(columns=seen.in_file(["image.bytes", "image.path", "label"]))
    assert seen.rows(batch).to_pylist() == [
        {"label": 1, "image": {"path": None, "bytes": b"1"}, "old": None},
        {"label": 2, "image": None, "old": None},
    ]
    assert seen.rows(file.read()).to_pylist() == seen.rows(batch).to_pylist()
    [part] = file.iter_batches(columns=seen.in_file(["image.bytes"]))
    assert seen.rows(part).column("image").to_pylist() == [{"path": None, "bytes": b"1"}, None]
    assert [one.type for one in seen.schema] == [pa.int64(), struct, pa.string()]


def test_files_without_numbers_are_read_by_the_names_that_the_table_says() -> None:
    rows = pa.table({"col-7": [1], "image": [b"x"]})
    seen = view(rows.schema, field("id", pa.int64(), 4, names='["id", "col-7"]'), field("image", pa.binary(), 5))
    assert seen.in_file(["id", "image"]) == ["col-7", "image"]
    assert seen.rows(rows).to_pylist() == [{"id": 1, "image": b"x"}]
    assert view(rows.schema, field("id", pa.int64(), 4)).rows(rows).to_pylist() == [{"id": None}]


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (pa.int32(), 7, 7),
        (pa.date32(), "2026-03-01", datetime.date(2026, 3, 1)),
        (pa.timestamp("us"), "2026-03-01 10:00:00.5", datetime.datetime(2026, 3, 1, 10, 0, 0, 500_000)),
        (pa.timestamp("us", "UTC"), "2026-03-01 10:00:00Z", datetime.datetime(2026, 3, 1, 10, tzinfo=datetime.UTC)),
        (pa.bool_(), True, True),
        (pa.decimal128(6, 2), "12.50", Decimal("12.50")),
        (pa.time64("us"), "10:00:01", datetime.time(10, 0, 1)),
        (pa.binary(), "00ff", b"\0\xff"),
        (pa.string(), "", ""),
        (pa.string(), None, None),
    ],
    ids=str,
)
def test_what_a_file_lacks_is_the_partitions_or_the_default_or_null(kind: Any, given: object, value: object) -> None:
    rows = pa.table({"id": [1, 2]})
    seen = view(rows.schema, field("day", kind, default=json.dumps(given)))
    assert seen.rows(rows).to_pylist() == [{"day": value}] * 2
    for constant in (given, value):
        seen = view(rows.schema, field("day", kind, default="null"), constants={"day": constant})
        assert seen.rows(rows).to_pylist() == [{"day": value}] * 2
    assert seen.schema == pa.schema([("day", kind)])


def test_a_field_that_a_struct_lacks_has_its_default() -> None:
    rows = pa.table({"s": [{"a": 1}, None]})
    struct = pa.struct([field("a", pa.int64()), field("b", pa.int32(), default="5"), field("c", pa.string())])
    assert view(rows.schema, field("s", struct)).rows(rows).to_pylist() == [
        {"s": {"a": 1, "b": 5, "c": None}},
        {"s": None},
    ]


def test_a_value_that_is_none_of_the_tables_type_is_refused_by_the_name_of_the_column() -> None:
    rows = pa.table({"id": ["x"]})
    with pytest.raises(InputUnreadable, match="column 'id' is string in the file, and int64 in the table"):
        view(rows.schema, field("id", pa.int64())).rows(rows)
