"""Predictions as a Delta table: by one commit or none, whoever else writes, and read by what people read it with."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError

from jobs.errors import SpecError
from jobs.tables.delta_output import DeltaOutput
from jobs.tables.target import Change, Portion, RowFile, Seen, TableMoved
from tests.jobs.tables.delta_tables import column, commit, metadata, protocol
from tests.objectstore.backends import S3
from tests.objectstore.fault_proxy import Fault, FaultProxy, Late, LostAnswer, Request
from tests.objectstore.packages import needed
from tests.tools.packages import python_with_tools
from workers.output import SOURCE_FIELDS, output_schema
from workers.storage.access import object_store_url, storage_options
from workers.storage.errors import StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem
from workers.storage.store import open_store

MODEL = "resnet50-0123456789ab"
KEYS = pa.schema([*SOURCE_FIELDS, pa.field("label", pa.string()), pa.field("score", pa.float32())])
Row = tuple[str, int, str, int]
"""Model, plan, file and number in it."""


class Output:
    """A folder of objects, as runs leave them, and the table of it."""

    def __init__(self, url: str | Path) -> None:
        self.url = str(url)
        self.copies = 0
        self.table = DeltaOutput(self.url)

    def write(self, key: str, part: Portion, rows: pa.Table) -> RowFile:
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd", write_page_checksum=True)
        open_store(self.url).create(key, bytes(sink.getvalue()))
        return RowFile(f"{self.url}/{key}", part, len(rows), sink.tell() if not sink.closed else len(sink.getvalue()))

    def object(
        self, plan: int, index: int = 0, rows: int = 4, *, model: str = MODEL, uri: str = "", **more: Any
    ) -> RowFile:
        part = Portion(model, plan)
        return self.write(
            f"model={model}/plan={plan:08}/{index:08}.parquet", part, some_rows(uri or f"{plan}-{index}", rows, **more)
        )

    def copy(self, part: Portion, rows: pa.Table) -> RowFile:
        self.copies += 1
        name = hashlib.sha256(repr(rows.to_pydict()).encode()).hexdigest()[:20]
        return self.write(f"_stint/table/model={part.model}/plan={part.plan:08}/{name}", part, rows)

    def commit(self, edition: int, change: Change, schema: pa.Schema = KEYS) -> None:
        self.table.commit(edition, schema, change, self.copy)

    def delta(self) -> DeltaTable:
        return DeltaTable(object_store_url(self.url), storage_options=storage_options(self.url))

    def seen(self) -> pa.Table:
        """By deltalake's queries."""
        found = QueryBuilder().register("t", self.delta()).execute("select * from t").read_all()
        return pa.table(found)

    def rows(self) -> list[Row]:
        return rows_of(self.seen())


def rows_of(table: pa.Table) -> list[Row]:
    columns = (table[name].to_pylist() for name in ("model", "plan", "source_uri", "row"))
    return sorted(zip(*columns, strict=True))


def some_rows(uri: str, rows: int, **more: Any) -> pa.Table:
    columns = {
        "source_uri": pa.array([uri] * rows, pa.string()),
        "source_version": pa.array(["v1"] * rows, pa.string()),
        "row_group": pa.array([0] * rows, pa.int32()),
        "row": pa.array(range(rows), pa.int64()),
        "label": pa.array([f"{uri}/{n}" for n in range(rows)], pa.string()),
        "score": pa.array([n / 7 for n in range(rows)], pa.float32()),
    }
    return pa.table(columns | {name: pa.array([value] * rows) for name, value in more.items()})


def of(file: RowFile, uri: str = "", rows: Iterable[int] | None = None) -> list[Row]:
    """The rows of a file that `Output.object` wrote."""
    index = int(Path(file.uri).stem)
    return [(*file.part, uri or f"{file.part.plan}-{index}", n) for n in (range(file.rows) if rows is None else rows)]


def without(*dead: tuple[str, int]) -> Seen:
    def seen(rows: pa.Table) -> pa.Table:
        assert {field.name: field.type for field in SOURCE_FIELDS}.items() <= dict(
            zip(rows.column_names, rows.schema.types, strict=True)
        ).items()
        pairs = zip(rows["source_uri"].to_pylist(), rows["row"].to_pylist(), strict=True)
        return rows.filter(pa.array([pair not in dead for pair in pairs], pa.bool_()))

    return seen


@pytest.fixture
def out(tmp_path: Path) -> Output:
    return Output(tmp_path / "out put")


# Editions


def test_rows_of_files_are_added_in_place_with_model_and_plan(out: Output) -> None:
    assert out.table.read() == 0
    assert out.table.rows() == {}
    first, second = out.object(1), out.object(1, 1, rows=2)
    out.commit(5, Change([first, second]))
    assert out.table.read() == 5
    assert out.table.rows() == {Portion(MODEL, 1): 6}
    assert out.rows() == of(first) + of(second)
    third = out.object(2, model="other-1")
    out.commit(6, Change([third]))
    assert out.table.read() == 6
    assert out.rows() == sorted(of(first) + of(second) + of(third))
    assert {Path(uri).name for uri in out.delta().file_uris()} == {"00000000.parquet", "00000001.parquet"}
    assert out.delta().metadata().partition_columns == ["model", "plan"]


def test_an_edition_without_rows_makes_a_table(out: Output) -> None:
    out.table.read()
    out.commit(1, Change())
    assert out.table.read() == 1
    assert out.rows() == []


def test_parts_are_dropped_and_come_back(out: Output) -> None:
    first, second = out.object(1), out.object(2)
    out.table.read()
    out.commit(1, Change([first, second]))
    out.table.read()
    out.commit(2, Change(dropped=[first.part]))
    assert out.table.read() == 2
    assert out.rows() == of(second)
    out.commit(3, Change([first], dropped=[second.part]))
    assert out.table.read() == 3
    assert out.rows() == of(first)
    out.commit(4, Change([first], dropped=[first.part]))  # the same file again
    out.table.read()
    assert out.rows() == of(first)


def test_of_trimmed_parts_files_stay_go_or_are_copied(out: Output) -> None:
    files = [out.object(1, index, uri=f"u{index}") for index in range(3)]
    out.table.read()
    out.commit(1, Change(files))
    out.table.read()
    seen = without(("u0", 1), ("u0", 3), *(("u2", n) for n in range(4)))
    new = out.object(2)
    out.commit(2, Change([new], trimmed={files[0].part: seen}))
    out.table.read()
    assert out.copies == 1
    assert out.rows() == of(files[0], "u0", [0, 2]) + of(files[1], "u1") + of(new)
    assert out.table.rows() == {files[0].part: 6, new.part: 4}
    assert [label for label in out.seen()["label"].to_pylist() if label.startswith("u0")] == ["u0/0", "u0/2"]
    out.commit(3, Change(trimmed={files[0].part: without(("u0", 2))}))  # of the copy
    out.table.read()
    assert out.rows() == of(files[0], "u0", [0]) + of(files[1], "u1") + of(new)


def test_a_part_is_trimmed_in_whatever_files_others_have_it_by_now(out: Output) -> None:
    files = [out.object(1, index, uri=f"u{index}") for index in range(3)]
    out.table.read()
    out.commit(1, Change(files))
    out.delta().optimize.compact()
    out.delta().delete("source_uri = 'u1' and row = 2")
    out.table.read()
    out.commit(2, Change(trimmed={files[0].part: without(("u0", 1))}))
    out.table.read()
    assert out.rows() == of(files[0], "u0", [0, 2, 3]) + of(files[1], "u1", [0, 1, 3]) + of(files[2], "u2")
    out.delta().optimize.compact()
    out.table.read()
    out.commit(3, Change(dropped=[files[0].part]))
    assert out.rows() == []


def test_rows_that_others_put_into_a_part_stay(out: Output) -> None:
    file = out.object(1, uri="u")
    out.table.read()
    out.commit(1, Change([file]))
    theirs = pa.table({"label": ["theirs"], "note": ["n"], "model": [MODEL], "plan": pa.array([1], pa.int32())})
    write_deltalake(out.url, theirs, mode="append", schema_mode="merge")
    out.table.read()
    assert out.table.rows() == {file.part: 5}
    out.commit(2, Change(trimmed={file.part: without(("u", 0))}))
    assert sorted(out.seen()["label"].to_pylist()) == ["theirs", "u/1", "u/2", "u/3"]
    assert Counter(out.seen()["note"].to_pylist()) == {"n": 1, None: 3}


# Columns


TYPES: dict[str, pa.Array] = {
    "text": pa.array(["é"]),
    "long_text": pa.array(["x"], pa.large_string()),
    "bytes_": pa.array([b"\x00\xff"]),
    "sha": pa.array([b"abcd"], pa.binary(4)),
    "flag": pa.array([True]),
    "i8": pa.array([-128], pa.int8()),
    "i16": pa.array([-(2**15)], pa.int16()),
    "i32": pa.array([-(2**31)], pa.int32()),
    "i64": pa.array([-(2**63)], pa.int64()),
    "u8": pa.array([255], pa.uint8()),
    "u16": pa.array([2**16 - 1], pa.uint16()),
    "u32": pa.array([2**32 - 1], pa.uint32()),
    "f32": pa.array([0.1], pa.float32()),
    "f64": pa.array([0.1]),
    "amount": pa.array([Decimal("-12345678901234567890.12")], pa.decimal128(38, 2)),
    "day": pa.array([datetime(1970, 1, 2, tzinfo=UTC).date()]),
    "at": pa.array([datetime(2026, 1, 1, 1, 2, 3, 4, tzinfo=UTC)], pa.timestamp("us", "UTC")),
    "berlin": pa.array([datetime(2026, 1, 1, tzinfo=UTC)], pa.timestamp("ms", "Europe/Berlin")),
    "local": pa.array([datetime(2026, 1, 1, 1, 2, 3, 4)], pa.timestamp("us")),
    "seconds": pa.array([datetime(2026, 1, 1)], pa.timestamp("s")),
    "tags": pa.array([["a", None]]),
    "vector": pa.array([[0.5, 0.25]], pa.list_(pa.float32(), 2)),
    "nested": pa.array([{"a": 1, "b": [{"c": "x"}]}]),
    "counts": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
}


def test_columns_of_every_type_are_read_back(out: Output) -> None:
    rows = some_rows("u", 1)
    for name, values in TYPES.items():
        rows = rows.append_column(name, values)
    file = out.write(f"model={MODEL}/plan=00000001/00000000.parquet", Portion(MODEL, 1), rows)
    out.table.read()
    out.commit(1, Change([file]), rows.schema)
    [query], [arrow] = out.seen().to_pylist(), pa.table(out.delta().to_pyarrow_table()).to_pylist()
    assert query == arrow
    assert {**query, "model": MODEL, "plan": 1} == query
    for name, values in TYPES.items():
        assert query[name] == values[0].as_py(), name
    out.delta().optimize.compact()
    out.table.read()
    out.commit(2, Change([], trimmed={file.part: lambda found: found}), rows.schema)
    assert out.seen().to_pylist() == [query]


@pytest.mark.parametrize(
    "kind",
    [
        pa.uint64(), pa.float16(), pa.time64("us"), pa.duration("s"), pa.timestamp("ns"), pa.timestamp("ns", "UTC"),
        pa.decimal256(50, 2), pa.null(), pa.list_(pa.timestamp("ns")), pa.struct([("a", pa.time32("s"))]),
        pa.decimal128(5, -2),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_without_a_type_is_refused_before_anything_is_written(out: Output, kind: pa.DataType) -> None:
    out.table.read()
    with pytest.raises(SpecError, match=r"no type for the key odd") as refused:
        out.commit(1, Change(), KEYS.append(pa.field("odd", kind)))
    assert "drop it" in refused.value.next_step
    assert not Path(out.url, "_delta_log").exists()


@pytest.mark.parametrize("name", ["model", "plan", "PLAN", "Label"])
def test_a_key_whose_name_is_taken_is_refused(out: Output, name: str) -> None:
    out.table.read()
    with pytest.raises(SpecError, match=name):
        out.commit(1, Change(), KEYS.append(pa.field(name, pa.string())))


def test_later_models_may_have_other_columns(out: Output) -> None:
    first = out.object(1)
    out.table.read()
    out.commit(1, Change([first]))
    assert out.delta().protocol().min_reader_version == 1
    rows = some_rows("e", 2, embedding=[0.5, 1.0], local=datetime(2026, 1, 1)).drop_columns(["label"])
    rows = rows.set_column(
        rows.column_names.index("embedding"), "embedding", rows["embedding"].cast(pa.list_(pa.float32()))
    )
    second = out.write("model=embed-1/plan=00000001/00000000.parquet", Portion("embed-1", 1), rows)
    out.table.read()
    out.commit(2, Change([second]), rows.schema)
    assert out.table.read() == 2
    for seen in (out.seen(), pa.table(out.delta().to_pyarrow_table())):
        assert rows_of(seen) == sorted([*of(first), *of(second, "e")])
        by_model = {row["model"]: row for row in seen.to_pylist()}
        assert by_model[MODEL]["embedding"] is None
        assert by_model["embed-1"]["label"] is None
        assert by_model["embed-1"]["embedding"] == [0.5, 1.0]
    third = out.object(2)
    out.commit(3, Change([third]))
    out.table.read()
    assert out.table.rows() == {first.part: 4, second.part: 2, third.part: 4}
    changed = KEYS.set(KEYS.get_field_index("score"), pa.field("score", pa.float64()))
    with pytest.raises(SpecError, match=r"score is double, and the table has score as float"):
        out.commit(4, Change(), changed)


def test_the_columns_of_predictions_have_types(out: Output) -> None:
    out.table.read()
    for edition, task in enumerate(("classify", "embed"), 1):
        out.commit(edition, Change(), output_schema(task, [pa.field("id", pa.int64())], hashed=True))
        assert out.table.read() == edition


# Who else writes


def compact(out: Output) -> None:
    out.delta().optimize.compact()


def delete_some(out: Output) -> None:
    out.delta().delete("row = 0")


def append(out: Output) -> None:
    rows = some_rows("theirs", 1, model="theirs").append_column("plan", pa.array([1], pa.int32()))
    write_deltalake(out.url, rows, mode="append")


def set_property(out: Output) -> None:
    out.delta().alter.set_table_properties({"delta.logRetentionDuration": "interval 10 days"})


def another_edition(out: Output) -> None:
    other = Output(out.url)
    other.table.read()
    other.commit(77, Change([out.object(9)]))


OTHERS = [compact, delete_some, append, set_property, another_edition]


@pytest.mark.parametrize("step", OTHERS)
@pytest.mark.parametrize("how", ["add", "drop", "trim"])
def test_a_commit_after_somebody_elses_is_nothing_until_the_table_is_read_again(
    out: Output, how: str, step: Callable[[Output], None]
) -> None:
    files = [out.object(1, index) for index in range(2)]
    out.table.read()
    out.commit(1, Change(files))
    change = {
        "add": Change([out.object(2)]),
        "drop": Change(dropped=[files[0].part]),
        "trim": Change(trimmed={files[0].part: without(("1-0", 1))}),
    }[how]
    out.table.read()
    step(out)
    before = out.rows()
    for _ in range(2):
        with pytest.raises(TableMoved):
            out.commit(2, change)
    assert out.rows() == before
    assert out.table.read() == (77 if step is another_edition else 1)
    out.commit(2, change)
    assert out.table.read() == 2
    come = [row for file in change.added for row in of(file)]
    gone = [row for row in before if (row[1] == 1 and row[0] == MODEL and how == "drop") or row[2:] == ("1-0", 1)]
    assert out.rows() == sorted([*before, *come] if how == "add" else [row for row in before if row not in gone])


@pytest.mark.parametrize("step", OTHERS)
def test_a_step_of_somebody_else_while_files_are_copied_is_seen(out: Output, step: Callable[[Output], None]) -> None:
    files = [out.object(1, index) for index in range(3)]
    out.table.read()
    out.commit(1, Change(files))
    out.table.read()
    stepped = list[bool]()

    def copy(part: Portion, rows: pa.Table) -> RowFile:
        if not stepped:
            stepped.append(True)
            step(out)
        return Output.copy(out, part, rows)

    change = Change(trimmed={files[0].part: without(*((f"1-{n}", 1) for n in range(3)))})
    with pytest.raises(TableMoved):
        out.table.commit(2, KEYS, change, copy)
    before = out.rows()
    assert out.table.read() != 2
    out.commit(2, change)
    assert out.rows() == [row for row in before if row[1:2] + row[3:] != (1, 1) or row[0] != MODEL]


def merge(table: DeltaTable) -> None:
    rows = some_rows("1-1", 2, model=MODEL).append_column("plan", pa.array([1] * 2, pa.int32()))
    merger = table.merge(rows, "s.source_uri = t.source_uri and s.row = t.row", source_alias="s", target_alias="t")
    merger.when_matched_update_all().execute()


@pytest.mark.parametrize("how", ["add", "drop", "trim"])
@pytest.mark.parametrize(
    "step",
    [
        lambda table: table.optimize.compact(),
        lambda table: table.optimize.z_order(["row"]),
        lambda table: table.delete("row = 0"),
        lambda table: table.update(new_values={"label": "x"}, predicate="row = 0"),
        merge,
    ],
    ids=["compact", "z_order", "delete", "update", "merge"],
)
def test_others_who_began_before_our_commit_do_not_bring_back_what_it_took(
    out: Output, how: str, step: Callable[[DeltaTable], None]
) -> None:
    files = [out.object(1, index) for index in range(3)]
    out.table.read()
    out.commit(1, Change(files))
    theirs = out.delta()
    out.table.read()
    change = {
        "add": Change([out.object(2)]),
        "drop": Change(dropped=[files[0].part]),
        "trim": Change(trimmed={files[0].part: without(("1-0", 1))}),
    }[how]
    out.commit(2, change)
    before = out.rows()
    with suppress(CommitFailedError):
        step(theirs)
    assert out.rows() == before
    assert out.table.read() == 2


def race(url: str, edition: int, plan: int, start: threading.Barrier) -> bool:
    out = Output(url)
    file = out.object(plan)
    out.table.read()
    start.wait()
    try:
        out.commit(edition, Change([file]))
    except TableMoved:
        return False
    return True


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("same", [True, False])
def test_of_commits_at_once_exactly_one_goes_through(tmp_path: Path, there: bool, same: bool) -> None:
    for turn in range(5):
        out = Output(tmp_path / f"{turn}")
        old = [out.object(1)] if there else []
        if there:
            out.table.read()
            out.commit(1, Change(old))
        start = threading.Barrier(8)
        with ThreadPoolExecutor(8) as writers:
            tries = [writers.submit(race, out.url, 7 if same else 10 + n, 7, start) for n in range(8)]
        assert Counter(one.result() for one in tries) == {True: 1, False: 7}
        assert out.rows() == sorted([row for file in old for row in of(file)] + of(out.object(7)))
        assert out.delta().version() == len(old)


def test_writers_beside_compactions_add_each_edition_once(out: Output) -> None:
    """The loop of the core, in four threads that all want all editions, beside somebody who compacts and cleans up."""
    files = {edition: out.object(edition) for edition in range(1, 13)}
    ended = threading.Event()

    def write() -> None:
        mine = Output(out.url)
        while (held := mine.table.read()) < 12:
            try:
                mine.commit(held + 1, Change([files[held + 1]]))
            except TableMoved:
                continue

    def disturb() -> None:
        while not ended.is_set():
            if Path(out.url, "_delta_log").exists():
                try:
                    compact(out)
                    out.delta().vacuum(full=True, dry_run=False)
                except Exception:  # noqa: BLE001  (its own conflicts with ours)
                    continue
            time.sleep(0.01)

    with ThreadPoolExecutor(5) as threads:
        disturber = threads.submit(disturb)
        writers = [threads.submit(write) for _ in range(4)]
        try:
            for one in writers:
                one.result()
        finally:
            ended.set()
        disturber.result()
    assert out.rows() == sorted(row for file in files.values() for row in of(file))


def test_somebody_who_creates_a_table_in_the_same_moment_wins_or_loses(out: Output) -> None:
    out.table.read()
    rows = some_rows("theirs", 1, model="theirs").append_column("plan", pa.array([1], pa.int32()))
    write_deltalake(out.url, rows, partition_by=["model", "plan"])
    with pytest.raises(TableMoved):
        out.commit(1, Change([out.object(1)]))
    assert out.table.read() == 0
    out.commit(1, Change([out.object(1)]))
    assert out.table.read() == 1
    assert len(out.rows()) == 5
    assert out.delta().metadata().configuration["delta.deletedFileRetentionDuration"] == "interval 36500 days"


# Answers that are lost, and death


@pytest.mark.parametrize("through", [True, False])
def test_after_a_lost_answer_the_number_tells(out: Output, monkeypatch: pytest.MonkeyPatch, through: bool) -> None:
    out.table.read()
    create = out.table._store.create

    def lost(key: str, data: bytes) -> bool:
        if through:
            create(key, data)
        raise StoreError("no answer")

    file = out.object(1)
    with monkeypatch.context() as patched:
        patched.setattr(out.table._store, "create", lost)
        with pytest.raises(StoreError):
            out.commit(1, Change([file]))
    if through:
        with pytest.raises(TableMoved):  # a second try on the same reading adds nothing
            out.commit(1, Change([file]))
    assert out.table.read() == (1 if through else 0)


def test_of_two_commits_the_same_the_second_knows_that_the_first_was_not_its_own(out: Output) -> None:
    other = Output(out.url)
    file = out.object(1)
    out.table.read(), other.table.read()
    out.commit(1, Change([file]))
    with pytest.raises(TableMoved):
        other.commit(1, Change([file]))


DYING = """
import os, sys
from tests.jobs.tables.test_delta_output import *
out = Output(sys.argv[1])
edition = out.table.read() + 1
create = out.table._store.create
def die(key, data):
    if sys.argv[2] == "after":
        create(key, data)
    os._exit(9)
file = out.object(edition)
out.table._store.create = die
out.commit(edition, Change([file], trimmed={Portion(MODEL, 1): without(("1-0", 0))}))
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_writer_that_is_killed_leaves_all_of_its_commit_or_nothing(out: Output, when: str) -> None:
    first = out.object(1)
    out.table.read()
    out.commit(1, Change([first]))
    died = subprocess.run([sys.executable, "-c", DYING, out.url, when], cwd=Path(__file__).parents[3], check=False)
    assert died.returncode == 9
    assert out.table.read() == (2 if when == "after" else 1)
    assert out.rows() == (of(first, rows=[1, 2, 3]) + of(out.object(2)) if when == "after" else of(first))


# Upkeep


def test_no_vacuum_takes_our_files(out: Output) -> None:
    files = [out.object(1, index) for index in range(3)]
    not_yet = out.object(3)
    out.table.read()
    out.commit(1, Change(files))
    out.table.read()
    out.commit(2, Change(trimmed={files[0].part: without(("1-0", 1))}))
    out.table.read()
    out.commit(3, Change(dropped=[files[0].part]))
    out.table.read()
    out.commit(4, Change(files))
    compact(out)
    old = (datetime.now(UTC) - timedelta(days=3000)).timestamp()
    ours = [file for file in Path(out.url).rglob("*") if file.is_file() and "_delta_log" not in file.parts]
    for file in ours:
        os.utime(file, (old, old))
    log = Path(out.url, "_delta_log")
    for _ in range(2):
        for full in (False, True):
            assert out.delta().vacuum(full=full, dry_run=False) == []
            with pytest.raises(DeltaError, match="Invalid retention period"):
                out.delta().vacuum(168, full=full, dry_run=False)
        assert all(file.exists() for file in ours)
        out.delta().create_checkpoint()  # and again, when tombstones are in a checkpoint alone
        for file in log.glob("*.json"):
            if file.name[0] == "0" and int(file.stem) < out.delta().version():
                file.unlink()
    assert Path(not_yet.uri) in ours
    out.table.read()
    assert out.table.rows() == {files[0].part: 12}
    out.commit(5, Change([files[0]], dropped=[files[0].part]))
    assert out.rows() == of(files[0])


def test_checkpoints_are_written_by_us_and_the_log_may_end_at_one(out: Output) -> None:
    files = {edition: out.object(edition) for edition in range(1, 26)}
    for edition, file in files.items():
        assert out.table.read() == edition - 1
        out.commit(edition, Change([file]))
    log = Path(out.url, "_delta_log")
    assert [file.name[:20] for file in sorted(log.glob("*.checkpoint.parquet"))] == [f"{n:020}" for n in (9, 19)]
    assert out.delta().transaction_version("stint") == 25
    old = (datetime.now(UTC) - timedelta(days=100)).timestamp()
    for file in log.iterdir():
        os.utime(file, (old, old))
    for edition in range(26, 32):
        files[edition] = out.object(edition)
        assert out.table.read() == edition - 1
        out.commit(edition, Change([files[edition]]))
    assert sorted(int(file.stem) for file in log.glob("*[0-9].json")) == list(range(19, 31))
    assert out.delta().transaction_version("stint") == 31
    assert out.delta().history(1)[0]["operation"] == "WRITE"
    assert out.rows() == sorted(row for file in files.values() for row in of(file))
    assert out.table.read() == 31
    assert out.table.rows() == {file.part: 4 for file in files.values()}
    out.commit(32, Change(dropped=[Portion(MODEL, 3)], trimmed={Portion(MODEL, 25): without(("25-0", 0))}))
    assert out.rows() == sorted(
        row for n, file in files.items() for row in of(file) if n != 3 and row[2:] != ("25-0", 0)
    )


def test_a_checkpoint_that_fails_is_told_and_made_after_the_next_commit(
    out: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: DeltaTable) -> None:
        raise OSError("no space left on device")

    for edition in range(1, 10):
        out.table.read()
        out.commit(edition, Change([out.object(edition)]))
    out.table.read()
    with monkeypatch.context() as patched:
        patched.setattr(DeltaTable, "create_checkpoint", full)
        with pytest.raises(StoreError, match="no checkpoint can be written: no space"):
            out.commit(10, Change([out.object(10)]))
    assert out.table.read() == 10
    out.commit(11, Change([out.object(11)]))
    assert [file.name[:20] for file in Path(out.url, "_delta_log").glob("*.checkpoint.parquet")] == [f"{10:020}"]
    assert len(out.rows()) == 44


# Tables that are refused


def log_only(url: str, *actions: Any) -> None:
    commit(Path(url), 0, *actions)


OURS = (column("model", "string"), column("plan", "integer"), column("source_uri", "string"))
BY = ["model", "plan"]


@pytest.mark.parametrize(
    ("actions", "told"),
    [
        ([protocol("deletionVectors"), metadata(*OURS, by=BY, enableDeletionVectors="true")], "deletionVectors"),
        ([protocol("columnMapping"), metadata(*OURS, by=BY, columnMapping__mode="name")], "columnMapping"),
        ([protocol(reader=2), metadata(*OURS, by=BY, columnMapping__mode="name")], r"versions \(2, 7\)"),
        ([protocol(reader=1), metadata(*OURS, by=["model"])], r"partitions by \['model'\]"),
        ([protocol(reader=1), metadata(*OURS, by=BY, appendOnly="true")], "delta.appendOnly"),
        (
            [
                protocol(reader=1),
                metadata(*OURS, column("id", **{"delta.invariants": '{"expression":{}}'}), by=BY),
            ],
            "delta.invariants",
        ),
    ],
)
def test_a_table_that_we_cannot_write_is_refused(out: Output, actions: Sequence[Any], told: str) -> None:
    log_only(out.url, *actions)
    with pytest.raises(SpecError, match=told) as refused:
        out.table.read()
    assert "move _delta_log/ away" in refused.value.next_step


def test_a_table_of_features_that_are_none_is_written(out: Output) -> None:
    log_only(out.url, protocol(), metadata(*OURS, by=BY))
    assert out.table.read() == 0
    out.commit(1, Change([out.object(1)]))
    assert out.table.read() == 1
    assert len(out.rows()) == 4


def test_the_number_goes_back_with_the_rows_that_somebody_restores(out: Output) -> None:
    files = [out.object(number) for number in (1, 2)]
    for number, file in enumerate(files, 1):
        out.table.read()
        out.commit(number, Change([file]))
    out.delta().alter.set_table_description(f"Ours. {out.delta().metadata().description}")
    out.delta().restore(0)
    assert out.table.read() == 1
    out.commit(2, Change([files[1]]))
    assert out.rows() == sorted([*of(files[0]), *of(files[1])])
    out.delta().alter.set_table_description("Another text")
    assert out.table.read() == 2
    out.commit(3, Change())
    assert out.delta().metadata().description == "Another text Predictions of Stint, edition 3."
    assert out.table.read() == 3


def test_the_number_does_not_expire(out: Output) -> None:
    out.table.read()
    out.commit(1, Change([out.object(1)]))
    out.delta().alter.set_table_properties({"delta.setTransactionRetentionDuration": "interval 0 days"})
    out.delta().create_checkpoint()
    assert out.table.read() == 1


def test_a_table_that_deltalake_gave_a_constraint_is_refused(out: Output) -> None:
    out.table.read()
    out.commit(1, Change([out.object(1)]))
    out.delta().alter.add_constraint({"positive": "row >= 0"})
    with pytest.raises(SpecError, match="writing to this Delta table takes"):
        out.table.read()
    Path(out.url, "_delta_log").rename(Path(out.url, "_away"))
    assert out.table.read() == 0


def test_a_damaged_log_is_told(out: Output) -> None:
    out.table.read()
    out.commit(1, Change([out.object(1)]))
    Path(out.url, "_delta_log", f"{1:020}.json").write_text("{")
    with pytest.raises(SpecError, match=r"output\.table: .* is damaged"):
        out.table.read()


def test_a_file_of_the_table_that_is_lost_is_told(out: Output) -> None:
    file = out.object(1)
    out.table.read()
    out.commit(1, Change([file]))
    Path(file.uri).unlink()
    out.table.read()
    with pytest.raises(StoreError, match=r"00000000\.parquet of the table cannot be read"):
        out.commit(2, Change(trimmed={file.part: without()}))


def test_a_folder_that_nobody_may_write_is_told(out: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    out.table.read()

    def denied(*_: Any) -> bool:
        raise PermissionError(13, "denied")

    file = out.object(1)
    monkeypatch.setattr("workers.storage.store._link", denied)
    with pytest.raises(StoreDenied):
        out.commit(1, Change([file]))


def test_files_elsewhere_are_refused(out: Output) -> None:
    out.table.read()
    for uri in ("/elsewhere/a.parquet", f"{out.url}/a.parquet"):
        with pytest.raises(ValueError, match="does not lie below"):
            out.commit(1, Change([RowFile(uri, Portion(MODEL, 1), 1, 1)]))


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(SpecError) as refused:
        DeltaOutput(str(tmp_path))
    assert refused.value.next_step == "pip install 'stint[delta]'"


# Readers


READ = """
import json, sys
import daft, polars
out = sys.argv[1]
polars_rows = polars.read_delta(out).select("model", "plan", "source_uri", "row").rows()
found = daft.read_deltalake(out).select("model", "plan", "source_uri", "row").to_pydict()
print(json.dumps([sorted(polars_rows), sorted(zip(*found.values()))]))
"""


def test_polars_and_daft_see_the_same_rows(tmp_path: Path) -> None:
    python = needed(python_with_tools)
    out = Output(tmp_path / "out")
    files = [out.object(1, index, uri=f"u{index}") for index in range(3)]
    out.table.read()
    out.commit(1, Change(files))
    out.table.read()
    out.commit(2, Change([out.object(2)], trimmed={files[0].part: without(("u1", 2))}))
    libraries = tmp_path / "libraries"  # deltalake, which the tools' environment lacks
    libraries.mkdir()
    for module in ("deltalake", "arro3", "deprecated", "wrapt"):
        place = next(iter(__import__(module).__path__))
        (libraries / module).symlink_to(place)
    env = {**os.environ, "PYTHONPATH": str(libraries), "DAFT_PROGRESS_BAR": "0"}
    ran = subprocess.run([python, "-c", READ, out.url], capture_output=True, text=True, env=env, check=False)
    assert ran.returncode == 0, ran.stderr
    expected = [list(row) for row in out.rows()]
    assert json.loads(ran.stdout.splitlines()[-1]) == [expected, expected]
    assert len(expected) == 15


# Stores


@pytest.mark.objectstore
def test_a_table_in_a_store(s3: str) -> None:
    out = Output(f"{s3}/a b/out")
    assert out.table.read() == 0
    start = threading.Barrier(4)
    with ThreadPoolExecutor(4) as writers:
        tries = [writers.submit(race, out.url, 1, 1, start) for _ in range(4)]
    assert Counter(one.result() for one in tries) == {True: 1, False: 3}
    first = out.object(1)
    for edition in range(2, 13):
        assert out.table.read() == edition - 1
        out.commit(edition, Change([out.object(edition)]))
    fs, path = open_filesystem(out.url)
    assert [name.rpartition("/")[2] for name in fs.glob(f"{path}/_delta_log/*.checkpoint.parquet")] == [
        f"{9:020}.checkpoint.parquet"
    ]
    compact(out)
    with pytest.raises(TableMoved):
        out.commit(13, Change(dropped=[first.part]))
    out.table.read()
    out.commit(13, Change(dropped=[Portion(MODEL, 2)], trimmed={first.part: without(("1-0", 0))}))
    assert out.rows() == sorted(
        of(first, rows=[1, 2, 3]) + [(MODEL, plan, f"{plan}-0", n) for plan in range(3, 13) for n in range(4)]
    )
    assert out.table.read() == 13
    assert out.delta().vacuum(full=True, dry_run=False) == []


@pytest.mark.objectstore
def test_a_commit_whose_answer_is_lost_or_that_comes_late_is_there_once(
    behind_proxy: Callable[..., tuple[FaultProxy, str]], ministack: S3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.storage.retries.BACKOFF_S", 0.01)
    proxy, bucket = behind_proxy(ministack)
    out, late = Output(f"{bucket}/out"), Late()
    files = [out.object(plan) for plan in range(1, 4)]

    def on(fault: Fault, number: int) -> Callable[[Request], Fault | None]:
        pending = [fault]
        return lambda request: (
            pending.pop() if pending and request.method == "PUT" and f"{number:020}.json" in request.target else None
        )

    out.table.read()
    proxy.plan = on(LostAnswer(), 0)
    out.commit(1, Change(files[:1]))  # what lies there is ours
    assert proxy.faults() == [LostAnswer()]
    assert out.table.read() == 1
    proxy.plan = on(late, 1)
    out.commit(2, Change(files[1:2]))  # by a second try
    late.when.set()
    assert out.table.read() == 2
    other = Output(out.url)
    other.table.read()
    proxy.plan = on(LostAnswer(), 2)
    out.commit(3, Change(files[2:]))
    with pytest.raises(TableMoved):
        other.commit(3, Change(files[2:]))
    assert out.table.read() == 3
    assert out.table.rows() == {file.part: 4 for file in files}
    fs, path = open_filesystem(out.url)
    assert len(fs.ls(f"{path}/_delta_log")) == 3


# Whatever comes


@pytest.mark.parametrize("seed", range(6))
def test_whatever_others_do_between_the_table_holds_what_it_is_to_hold(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    out = Output(tmp_path / "out")
    live = dict[Portion, set[Row]]()
    files = dict[Portion, list[RowFile]]()
    edition = 0

    def ours() -> None:
        nonlocal edition
        new, dropped, trimmed = [], set[Portion](), dict[Portion, Seen]()
        model: dict[Portion, set[Row]] = {part: set(rows) for part, rows in live.items()}
        for part in chance.sample(sorted(model), min(len(model), chance.randrange(3))):
            if chance.random() < 0.3:
                dropped.add(part)
                model.pop(part)
            else:
                dead = set(chance.sample(sorted(model[part]), min(len(model[part]), chance.randrange(4))))
                trimmed[part] = without(*(row[2:] for row in dead))
                model[part] -= dead
        for _ in range(chance.randrange(3)):
            part = Portion(MODEL, len(files) + 1)
            files[part] = [out.object(part.plan, index, chance.randrange(1, 5)) for index in range(chance.randrange(3))]
            new += files[part]
            model[part] = {row for file in files[part] for row in of(file)}
        if chance.random() < 0.2 and (back := sorted(files.keys() - model.keys())):  # a part that was dropped is back
            new += files[back[0]]
            model[back[0]] = {row for file in files[back[0]] for row in of(file)}
        edition += 1
        while True:
            try:
                out.commit(edition, Change(new, dropped, trimmed))
            except TableMoved:
                assert out.table.read() == edition - 1
            else:
                break
        live.clear()
        live.update(model)

    def delete() -> None:
        row = chance.randrange(4)
        out.delta().delete(f"row = {row} and plan % 2 = 0")
        for part, rows in live.items():
            if part.plan % 2 == 0:
                live[part] = {one for one in rows if one[3] != row}

    def vacuum() -> None:
        out.delta().vacuum(full=chance.random() < 0.5, dry_run=False)

    def reopen() -> None:
        out.table = DeltaOutput(out.url)
        out.table.read()

    assert out.table.read() == 0
    ours()
    for _ in range(14):
        step = chance.choice([ours, ours, ours, delete, vacuum, reopen, lambda: compact(out)])
        step()
        assert out.rows() == sorted(row for rows in live.values() for row in rows)
    assert out.table.read() == edition
    assert {part: rows for part, rows in out.table.rows().items() if rows} == {
        part: len(rows) for part, rows in live.items() if rows
    }
    for uri in (file.uri for some in files.values() for file in some):
        assert Path(uri).exists()
