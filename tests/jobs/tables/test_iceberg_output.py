from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pyiceberg
import pytest
from pyiceberg import catalog as catalogs
from pyiceberg.exceptions import (
    BadRequestError,
    CommitFailedException,
    CommitStateUnknownException,
    ForbiddenError,
    TableAlreadyExistsError,
)
from pyiceberg.expressions import EqualTo

from jobs.errors import NothingThere, SpecError
from jobs.tables.folder_catalog import TableFolder
from jobs.tables.iceberg import read_state
from jobs.tables.iceberg_output import _SETTINGS, IcebergOutput
from jobs.tables.target import Change, Portion, RowFile, Seen, TableMoved
from tests.jobs.tables.iceberg_tables import (
    FolderCatalog,
    data_files,
    equality_deletes,
    hand_commit,
    live_rows,
    position_deletes,
)
from tests.tools.packages import run_tool
from workers.output import output_schema
from workers.storage.errors import StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem

SCHEMA = output_schema("classify", [pa.field("id", pa.int64())])
EMBEDDINGS = output_schema("embed", [pa.field("id", pa.int64())])
A, B = Portion("m-1", 1), Portion("m-1", 2)
Row = tuple[str, int, int]
"""Model, plan, id."""


class Objects:
    """Objects of an output, whose rows are known by their ids: source_uri is that of id // 10."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.copied: list[RowFile] = []

    def object(self, part: Portion, ids: Sequence[int], schema: pa.Schema = SCHEMA, **more: Any) -> RowFile:
        columns: dict[str, Any] = {name: [None] * len(ids) for name in schema.names}
        columns |= {"source_uri": [f"u{i // 10}" for i in ids], "source_version": ["v"] * len(ids)}
        columns |= {"row_group": [0] * len(ids), "row": [i % 10 for i in ids], "id": [*ids]}
        columns |= {"label": [f"l{i}" for i in ids]} if "label" in schema.names else {}
        columns |= {"embedding": [[i, 0.5] for i in ids]} if "embedding" in schema.names else {}
        return self._put(part, pa.table(columns | more, schema=schema), min(ids, default=0))

    def _put(self, part: Portion, rows: pa.Table, number: int, kind: str = "plan=") -> RowFile:
        fs, path = open_filesystem(f"{self.url}/model={part.model}/{kind}{part.plan:08d}/{number:08d}.parquet")
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        with fs.open(path, "wb") as file:
            pq.write_table(rows, file)
        uri = path if "://" not in self.url else fs.unstrip_protocol(path)
        return RowFile(uri, part, rows.num_rows, fs.size(path))

    def copy(self, part: Portion, rows: pa.Table) -> RowFile:
        number = abs(hash(str(rows.to_pylist()))) % 10**8
        self.copied.append(self._put(part, rows, number, "copies/"))
        return self.copied[-1]


def no_copy(part: Portion, rows: pa.Table) -> RowFile:
    raise AssertionError("nothing is to be copied")


def without(*ids: int) -> Seen:
    def seen(rows: pa.Table) -> pa.Table:
        uris, at = rows["source_uri"].to_pylist(), rows["row"].to_pylist()
        found = [int(uri[1:]) * 10 + row for uri, row in zip(uris, at, strict=True)]
        return rows.filter(pa.array([i not in ids for i in found], pa.bool_()))

    return seen


def table_of(output: IcebergOutput) -> Any:
    return output._load()


def seen_rows(output: IcebergOutput) -> list[Row]:
    """As pyiceberg reads them, or where that reads no equality deletes, this project."""
    table = table_of(output)
    if any(one.content.value == 2 for one in all_files(table)):
        found = live_rows(read_state(table.metadata_location))
    else:
        found = table.scan().to_arrow().to_pylist()
    return sorted((row["model"], row["plan"], row["id"]) for row in found)


def all_files(table: Any) -> list[Any]:
    snapshot = table.current_snapshot()
    manifests = snapshot.manifests(table.io) if snapshot else []
    return [entry.data_file for one in manifests for entry in one.fetch_manifest_entry(table.io)]


def rows(part: Portion, ids: Iterable[int]) -> list[Row]:
    return [(*part, i) for i in ids]


def snapshots(output: IcebergOutput) -> int:
    return len(table_of(output).metadata.snapshots)


@pytest.fixture
def out(tmp_path: Path) -> Objects:
    return Objects(str(tmp_path / "out"))


@pytest.fixture
def output(out: Objects) -> IcebergOutput:
    return IcebergOutput(out.url)


class LockedCatalog(FolderCatalog):
    """A catalog that compares and sets, as those with a server do: it looks at the requirements only."""

    lock = threading.Lock()

    def create_table(self, identifier: Any, *about: Any, **more: Any) -> Any:
        with self.lock:
            if self._current(identifier).exists():
                raise TableAlreadyExistsError(identifier)
            return super().create_table(identifier, *about, **more)

    def commit_table(self, *about: Any) -> Any:
        with self.lock:
            return super().commit_table(*about)


@pytest.fixture
def in_catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IcebergOutput:
    made = partial(LockedCatalog, warehouse=str(tmp_path / "warehouse"))
    monkeypatch.setattr(catalogs, "load_catalog", lambda name, **properties: made(name, **properties))
    return IcebergOutput("iceberg://folder/shop.predictions")


@pytest.fixture(params=["folder", "catalog"])
def either(request: pytest.FixtureRequest, out: Objects) -> IcebergOutput:
    return IcebergOutput(out.url) if request.param == "folder" else request.getfixturevalue("in_catalog")


def begun(output: IcebergOutput, *files: RowFile) -> None:
    assert output.read() == 0
    output.commit(1, SCHEMA, Change(added=files), no_copy)
    assert output.read() == 1


def test_objects_are_added_where_they_lie_with_model_and_plan(either: IcebergOutput, out: Objects) -> None:
    files = [out.object(A, [1, 2]), out.object(A, []), out.object(Portion("m-1", 1), [11])]
    before = [Path(one.uri).read_bytes() for one in files]
    begun(either, *files)
    assert seen_rows(either) == rows(A, [1, 2, 11])
    assert {one.file_path for one in all_files(table_of(either))} == {files[0].uri, files[2].uri}
    assert either.rows() == {A: 3}
    assert [Path(one.uri).read_bytes() for one in files] == before
    read = table_of(either).scan().to_arrow().sort_by("id").drop(["model", "plan"])
    assert read.equals(pa.concat_tables(pq.ParquetFile(one.uri).read() for one in files).cast(read.schema))


def test_no_object_is_read_to_be_added(output: IcebergOutput, out: Objects) -> None:
    begun(output, RowFile(f"{out.url}/nothing.parquet", A, 5, 100))
    assert output.rows() == {A: 5}


def test_all_of_a_change_is_one_snapshot(either: IcebergOutput, out: Objects) -> None:
    c = Portion("m-1", 3)
    begun(
        either,
        out.object(A, [1, 2]),
        out.object(B, [11]),
        out.object(c, [21, 22]),
        out.object(c, [31]),
        out.object(c, [41]),
    )
    change = Change(added=[out.object(Portion("n-2", 1), [5])], dropped=[A], trimmed={c: without(22, 31)})
    either.commit(2, SCHEMA, change, out.copy)
    assert either.read() == 2
    assert seen_rows(either) == [*rows(B, [11]), *rows(c, [21, 41]), ("n-2", 1, 5)]
    assert (snapshots(either), len(out.copied)) == (2, 1)
    assert either.rows() == {B: 1, c: 2, Portion("n-2", 1): 1}
    assert read_state(table_of(either).metadata_location).commits == ()
    either.commit(3, SCHEMA, Change(), no_copy)
    assert (either.read(), snapshots(either)) == (3, 3)
    assert len(seen_rows(either)) == 4


def test_what_the_edition_is_goes_with_the_rows(either: IcebergOutput, out: Objects) -> None:
    begun(either, out.object(A, [1]))
    either.commit(2, SCHEMA, Change(added=[out.object(B, [2])]), no_copy)
    first, _ = table_of(either).metadata.snapshots
    table_of(either).manage_snapshots().rollback_to_snapshot(first.snapshot_id).commit()
    assert (either.read(), seen_rows(either)) == (1, rows(A, [1]))
    table_of(either).append(pa.table({"model": ["x"], "plan": pa.array([9], pa.int32()), "id": [7]}))
    assert either.read() == 1
    either.commit(3, SCHEMA, Change(added=[out.object(B, [3])]), no_copy)
    assert either.read() == 3
    table = table_of(either)
    table.append(pa.table({"model": ["x"], "plan": pa.array([9], pa.int32()), "id": [8]}))
    now = table.current_snapshot().snapshot_id
    table.maintenance.expire_snapshots().by_ids(
        [one.snapshot_id for one in table.snapshots() if one.snapshot_id != now]
    ).commit()
    assert (either.read(), snapshots(either)) == (3, 1)


def test_a_rollback_to_where_the_history_has_expired_is_told(output: IcebergOutput, out: Objects) -> None:
    begun(output, out.object(A, [1]))
    table = table_of(output)
    table.append(pa.table({"model": ["x"], "plan": pa.array([9], pa.int32()), "id": [8]}))
    theirs = table.current_snapshot().snapshot_id
    output.read()
    output.commit(2, SCHEMA, Change(added=[out.object(B, [2])]), no_copy)
    table = table_of(output)
    table.manage_snapshots().rollback_to_snapshot(theirs).commit()
    assert output.read() == 1
    table.maintenance.expire_snapshots().by_ids(
        [one.snapshot_id for one in table.snapshots() if one.snapshot_id != theirs]
    ).commit()
    with pytest.raises(SpecError, match="rolled back"):
        output.read()


def test_many_commits_leave_few_metadata(either: IcebergOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.tables.iceberg_output._KEPT", 8)
    small = {"write.metadata.previous-versions-max": "8", "commit.manifest.target-size-bytes": str(25_000)}
    monkeypatch.setattr("jobs.tables.iceberg_output._SETTINGS", {**_SETTINGS, **small})
    for night in range(1, 26):
        assert either.read() == night - 1
        files = [RowFile(f"/out/{night}-{i}.parquet", Portion("m-1", night), 10, 100) for i in range(3)]
        dropped = [Portion("m-1", night - 1)] if night % 10 == 0 else []
        either.commit(night, SCHEMA, Change(added=files, dropped=dropped), no_copy)
    assert either.read() == 25
    table = table_of(either)
    assert (len(table.metadata.snapshots), len(table.metadata.metadata_log)) == (8, 8)
    assert len(table.current_snapshot().manifests(table.io)) < 15
    assert either.rows() == {Portion("m-1", night): 30 for night in range(1, 26) if night not in (9, 19)}
    assert {name: table.properties[name] for name in ("gc.enabled", "commit.manifest-merge.enabled")} == {
        "gc.enabled": "false",
        "commit.manifest-merge.enabled": "true",
    }


# Races, lost answers, kills


def race(outputs: Sequence[IcebergOutput], act: Callable[[IcebergOutput], None]) -> list[bool]:
    """Whether each of these, at the same moment after all have read, went through."""
    barrier = threading.Barrier(len(outputs))

    def one(output: IcebergOutput) -> bool:
        output.read()
        barrier.wait()
        try:
            act(output)
        except TableMoved:
            return False
        return True

    with ThreadPoolExecutor(len(outputs)) as threads:
        return [*threads.map(one, outputs)]


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("change", ["add", "nothing", "trim"])
def test_of_eight_that_bring_the_same_edition_one_goes_through(
    either: IcebergOutput, out: Objects, made: bool, change: str
) -> None:
    if made or change == "trim":
        begun(either, out.object(A, [1, 2]))
    new = out.object(B, [2])
    what = {"add": Change(added=[new]), "nothing": Change(), "trim": Change(added=[new], trimmed={A: without(1)})}[
        change
    ]
    outputs = [IcebergOutput(either._uri) for _ in range(8)]
    won = race(outputs, lambda one: one.commit(7, SCHEMA, what, out.copy))
    assert Counter(won) == {True: 1, False: 7}
    assert either.read() == 7
    held = {"add": rows(A, [1, 2] if made else []) + rows(B, [2]), "nothing": rows(A, [1, 2] if made else [])}
    assert seen_rows(either) == held.get(change, [*rows(A, [2]), *rows(B, [2])])


RACER = """
import sys
from jobs.tables.iceberg_output import IcebergOutput
from jobs.tables.target import Change, Portion, RowFile, TableMoved
from workers.output import output_schema
output = IcebergOutput(sys.argv[1])
print(output.read(), flush=True)
sys.stdin.readline()
try:
    change = Change(added=[RowFile(sys.argv[2], Portion("m-1", 2), 1, int(sys.argv[3]))])
    output.commit(2, output_schema("classify", []), change, None)
    print("won")
except TableMoved:
    print("moved")
"""


def test_of_processes_that_bring_the_same_edition_one_goes_through(output: IcebergOutput, out: Objects) -> None:
    begun(output, out.object(A, [1]))
    new = out.object(B, [2])
    argv = [sys.executable, "-c", RACER, out.url, new.uri, str(new.size)]
    racers = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [one.stdout.readline() for one in racers if one.stdout] == ["1\n"] * 3
    for one in racers:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    assert sorted(one.communicate()[0] for one in racers) == ["moved\n"] * 2 + ["won\n"]
    assert (output.read(), seen_rows(output)) == (2, [*rows(A, [1]), *rows(B, [2])])


def meddled(output: IcebergOutput, monkeypatch: pytest.MonkeyPatch, before: Any = None, after: Any = None) -> None:
    """Once, something happens right before, or after, the catalog has committed."""
    kind = type(output._catalog()[0])
    real = kind.commit_table

    def commit_table(self: Any, *about: Any) -> Any:
        monkeypatch.setattr(kind, "commit_table", real)
        if before is not None:
            before()
        answer = real(self, *about)
        if after is not None:
            after()
        return answer

    monkeypatch.setattr(kind, "commit_table", commit_table)


def their_rows(*ids: int) -> pa.Table:
    columns = {"model": ["x"] * len(ids), "plan": pa.array([9] * len(ids), pa.int32()), "id": [*ids]}
    return pa.table(columns | {"source_uri": [f"u{i // 10}" for i in ids], "row": [i % 10 for i in ids]})


OTHERS: Mapping[str, tuple[Callable[[Any], Any], Callable[[list[Row]], list[Row]]]] = {
    "append": (lambda table: table.append(their_rows(70)), lambda held: [*held, ("x", 9, 70)]),
    "delete": (lambda table: table.delete(EqualTo("id", 2)), lambda held: [row for row in held if row[2] != 2]),
    "overwrite": (
        lambda table: table.overwrite(their_rows(71), EqualTo("id", 1)),
        lambda held: [*(row for row in held if row[2] != 1), ("x", 9, 71)],
    ),
    "columns": (lambda table: add_column(table), lambda held: held),
    "settings": (lambda table: table.transaction().set_properties({"a": "b"}).commit_transaction(), lambda held: held),
}


def add_column(table: Any) -> None:
    from pyiceberg.types import StringType

    with table.update_schema() as update:
        update.add_column("reviewed", StringType())


@pytest.mark.parametrize("other", OTHERS)
def test_what_others_commit_in_between_stays(
    either: IcebergOutput, out: Objects, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    begun(either, out.object(A, [1, 2, 3]))
    act, then = OTHERS[other]
    meddled(either, monkeypatch, before=lambda: act(table_of(either)))
    change = Change(added=[out.object(B, [11])], trimmed={A: without(3)})
    for _ in range(2):
        assert either.read() == 1
        try:
            either.commit(2, SCHEMA, change, out.copy)
            break
        except TableMoved:
            assert either.read() == 1
    assert either.read() == 2
    assert seen_rows(either) == sorted(then(rows(A, [1, 2]) + rows(B, [11])))


LOST = [
    ConnectionError("reset"),
    CommitStateUnknownException("502"),
    CommitFailedException("409 of a second try"),
    TimeoutError(),
]


@pytest.mark.parametrize("lost", LOST, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("through", [True, False])
def test_when_no_answer_comes_the_table_tells(
    either: IcebergOutput, out: Objects, monkeypatch: pytest.MonkeyPatch, lost: Exception, through: bool
) -> None:
    begun(either, out.object(A, [1]))

    def fail() -> None:
        raise lost

    meddled(either, monkeypatch, **{"after" if through else "before": fail})
    change = Change(added=[out.object(B, [2])], trimmed={A: without(5)})
    if through:
        either.commit(2, SCHEMA, change, no_copy)
    else:
        with pytest.raises(TableMoved):
            either.commit(2, SCHEMA, change, no_copy)
        assert either.read() == 1
        either.commit(2, SCHEMA, change, no_copy)
    assert (either.read(), seen_rows(either)) == (2, [*rows(A, [1]), *rows(B, [2])])


@pytest.mark.parametrize(
    ("error", "told"),
    [(ForbiddenError("no"), StoreDenied), (PermissionError("no"), StoreDenied), (BadRequestError("no"), SpecError)],
)
def test_a_refusal_is_told(
    either: IcebergOutput, out: Objects, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
) -> None:
    begun(either, out.object(A, [1]))

    def fail() -> None:
        raise error

    meddled(either, monkeypatch, before=fail)
    with pytest.raises(told):
        either.commit(2, SCHEMA, Change(), no_copy)
    assert either.read() == 1


@pytest.mark.parametrize("other", ["append", "overwrite"])
def test_a_version_that_another_writer_has_just_made_is_not_ours(
    output: IcebergOutput, out: Objects, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    begun(output, out.object(A, [1, 2]))
    real = TableFolder._create

    def create(self: Any, *about: Any) -> bool:  # requirements have been looked at by now
        monkeypatch.setattr(TableFolder, "_create", real)
        OTHERS[other][0](table_of(output))
        return real(self, *about)

    monkeypatch.setattr(TableFolder, "_create", create)
    with pytest.raises(TableMoved, match="another writer was first with version 3"):
        output.commit(2, SCHEMA, Change(added=[out.object(B, [11])]), no_copy)
    assert (output.read(), seen_rows(output)) == (1, sorted(OTHERS[other][1](rows(A, [1, 2]))))


@pytest.mark.parametrize("first", ["late", "again"])
def test_a_request_that_arrives_after_all_and_another_try_are_one_commit(
    output: IcebergOutput, out: Objects, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    begun(output, out.object(A, [1]))
    late: list[Any] = []
    real = TableFolder._create

    def create(self: Any, *about: Any) -> bool:
        monkeypatch.setattr(TableFolder, "_create", real)
        late.append(lambda: real(self, *about))
        raise StoreError("no answer")

    monkeypatch.setattr(TableFolder, "_create", create)
    change = Change(added=[out.object(B, [2])])
    with pytest.raises(TableMoved):
        output.commit(2, SCHEMA, change, no_copy)
    assert output.read() == 1
    if first == "late":
        assert late[0]()
        with pytest.raises(TableMoved):
            output.commit(2, SCHEMA, change, no_copy)
    else:
        output.commit(2, SCHEMA, change, no_copy)
        assert not late[0]()
    assert (output.read(), seen_rows(output)) == (2, [*rows(A, [1]), *rows(B, [2])])


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", ["manifest", "before", "after"])
def test_a_run_that_is_killed_leaves_the_table_as_it_was_or_as_it_is_to_be(
    either: IcebergOutput, out: Objects, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def kill(*_: Any) -> None:
        raise Killed

    for made in (False, True):
        with monkeypatch.context() as patch:
            assert either.read() == (2 if made else 0)
            if step == "manifest":
                patch.setattr("jobs.tables.iceberg_files.StoreFiles.write", kill)
            else:
                meddled(either, patch, **{step: kill})
            part = Portion("m-1", made + 1)
            with pytest.raises(Killed):
                either.commit(2 + made, SCHEMA, Change(added=[out.object(part, [int(made)])]), no_copy)
        if step != "after":
            assert either.read() == (2 if made else 0)
            either.commit(2 + made, SCHEMA, Change(added=[out.object(part, [int(made)])]), no_copy)
        assert either.read() == 2 + made
    assert seen_rows(either) == [*rows(A, [0]), *rows(B, [1])]


def test_a_hint_that_was_not_written_is_made_good(
    output: IcebergOutput, out: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(output, out.object(A, [1]))
    hint = Path(out.url, "metadata/version-hint.text")
    with monkeypatch.context() as patch:
        patch.setattr(TableFolder, "_tell", lambda self, version: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            output.commit(2, SCHEMA, Change(added=[out.object(B, [2])]), no_copy)
    assert hint.read_text() == "2"
    assert {one.constants["plan"] for one in read_state(out.url).files} == {1, 2}
    assert (output.read(), hint.read_text()) == (2, "3")


# Deletes of others


@pytest.mark.parametrize("how", ["positions", "equality", "rewritten"])
def test_deletes_of_others_stay_when_their_rows_are_trimmed(in_catalog: IcebergOutput, out: Objects, how: str) -> None:
    begun(in_catalog, out.object(A, [1, 2, 3, 4]), out.object(A, [11, 12]), out.object(A, [21]))
    table = table_of(in_catalog)
    if how == "positions":
        files = {pq.read_table(one["file_path"])["id"][0].as_py(): one for one in data_files(table)}
        partition = files[1]["partition"]
        where = [(files[1]["file_path"], 1), (files[11]["file_path"], 0), (files[21]["file_path"], 0)]
        table = hand_commit(table, [position_deletes(table, where, partition=partition)], operation="delete")
    elif how == "equality":
        partition = data_files(table)[0]["partition"]
        keys = equality_deletes(table, pa.table({"id": [2, 11, 21]}), partition=partition)
        table = hand_commit(table, [keys], operation="delete")
    else:
        for i in (2, 11, 21):
            table.delete(EqualTo("id", i))
    assert in_catalog.read() == 1
    in_catalog.commit(2, SCHEMA, Change(added=[out.object(B, [31])], trimmed={A: without(3, 11)}), out.copy)
    assert in_catalog.read() == 2
    assert seen_rows(in_catalog) == [*rows(A, [1, 4, 12]), *rows(B, [31])]
    assert in_catalog.rows() == {A: 3, B: 1}
    in_catalog.commit(3, SCHEMA, Change(dropped=[A]), no_copy)
    assert (in_catalog.read(), seen_rows(in_catalog)) == (3, rows(B, [31]))


def test_rows_that_come_back_are_not_taken_by_deletes_of_before(in_catalog: IcebergOutput, out: Objects) -> None:
    file = out.object(A, [1, 2])
    begun(in_catalog, file)
    table = table_of(in_catalog)
    partition = data_files(table)[0]["partition"]
    hand_commit(table, [position_deletes(table, [(file.uri, 0)], partition=partition)], operation="delete")
    assert in_catalog.read() == 1
    assert in_catalog.rows() == {A: 1}
    in_catalog.commit(2, SCHEMA, Change(dropped=[A]), no_copy)
    in_catalog.read()
    in_catalog.commit(3, SCHEMA, Change(added=[file]), no_copy)
    assert (in_catalog.read(), seen_rows(in_catalog)) == (3, rows(A, [1, 2]))


# Columns


def test_a_root_with_other_columns_adds_them(either: IcebergOutput, out: Objects) -> None:
    begun(either, out.object(A, [1]))
    part = Portion("e-1", 1)
    either.commit(2, EMBEDDINGS, Change(added=[out.object(part, [2], EMBEDDINGS)]), no_copy)
    assert either.read() == 2
    found = table_of(either).scan().to_arrow().sort_by("id").select(["id", "label", "embedding"]).to_pylist()
    assert found == [{"id": 1, "label": "l1", "embedding": None}, {"id": 2, "label": None, "embedding": [2.0, 0.5]}]
    either.commit(3, SCHEMA, Change(added=[out.object(B, [3])], trimmed={part: without(2)}), no_copy)
    assert (either.read(), seen_rows(either)) == (3, [*rows(A, [1]), *rows(B, [3])])


def test_a_type_is_widened_where_no_value_changes(either: IcebergOutput, out: Objects) -> None:
    small, large = (output_schema("classify", [pa.field("id", kind)]) for kind in (pa.int32(), pa.int64()))
    either.read()
    either.commit(1, small, Change(added=[out.object(A, [1], small)]), no_copy)
    either.read()
    either.commit(2, large, Change(added=[out.object(B, [2], large)]), no_copy)
    either.read()
    either.commit(3, small, Change(added=[out.object(Portion("m-1", 3), [3], small)]), no_copy)
    assert [row[2] for row in seen_rows(either)] == [1, 2, 3]
    assert str(table_of(either).schema().find_type("id")) == "long"
    for kind in (pa.string(), pa.list_(pa.int64()), pa.float32()):
        with pytest.raises(SpecError, match="do not fit") as refused:
            either.commit(4, output_schema("classify", [pa.field("id", kind)]), Change(), no_copy)
        assert "another output.table.uri" in refused.value.next_step
    assert either.read() == 3


def test_bytes_are_not_taken_for_text(either: IcebergOutput, out: Objects) -> None:
    text, raw = (output_schema("classify", [pa.field("key", kind)]) for kind in (pa.string(), pa.large_binary()))
    either.read()
    either.commit(1, text, Change(), no_copy)
    either.read()
    with pytest.raises(SpecError, match="key"):
        either.commit(2, raw, Change(), no_copy)


def test_columns_that_others_rename_add_and_drop_stay_so(either: IcebergOutput, out: Objects) -> None:
    begun(either, out.object(A, [1, 2]))
    table = table_of(either)
    add_column(table)
    with table.update_schema() as update:
        update.rename_column("label", "class")
        update.delete_column("topk_name")
    table.overwrite(
        pa.table({"model": ["m-1"], "plan": pa.array([1], pa.int32()), "source_uri": ["u0"], "row": [2], "id": [2],
                  "source_version": ["v"], "row_group": pa.array([0], pa.int32()), "class": ["l2"],
                  "reviewed": ["yes"]}),
        EqualTo("id", 2),
    )  # fmt: skip
    either.read()
    schema = pa.schema([one for one in SCHEMA if one.name != "topk_name"])
    change = Change(added=[out.object(B, [3], schema)], trimmed={A: without(1)})
    either.commit(2, schema, change, out.copy)
    assert either.read() == 2
    found = table_of(either).scan().to_arrow().sort_by("id").select(["id", "class", "reviewed"]).to_pylist()
    assert found == [{"id": 2, "class": "l2", "reviewed": "yes"}, {"id": 3, "class": "l3", "reviewed": None}]
    either.commit(3, SCHEMA, Change(added=[out.object(Portion("m-1", 3), [4])]), no_copy)  # which has topk_name
    assert either.read() == 3
    assert "topk_name" in table_of(either).schema().column_names
    assert [row[2] for row in seen_rows(either)] == [2, 3, 4]


def test_columns_that_others_rename_are_not_added_again(either: IcebergOutput, out: Objects) -> None:
    begun(either, out.object(A, [1, 2]))
    with table_of(either).update_schema() as update:
        update.rename_column("label", "class")
    assert either.read() == 1
    either.commit(2, SCHEMA, Change(trimmed={A: without(2)}), out.copy)
    assert either.read() == 2
    assert table_of(either).scan().to_arrow()["class"].to_pylist() == ["l1"]
    names = table_of(either).schema().column_names
    assert "label" not in names


def test_rows_whose_source_is_not_told_any_more_are_not_trimmed(output: IcebergOutput, out: Objects) -> None:
    begun(output, out.object(A, [1, 2]))
    with table_of(output).update_schema() as update:
        update.rename_column("source_uri", "source")
    output.read()
    with pytest.raises(SpecError, match="lacks one of source_uri"):
        output.commit(2, SCHEMA, Change(trimmed={A: without(2)}), no_copy)
    output.commit(2, SCHEMA, Change(dropped=[A]), no_copy)
    assert (output.read(), seen_rows(output)) == (2, [])


WRONG = [
    *(pa.uint32(), pa.uint64(), pa.float16(), pa.timestamp("ns"), pa.duration("s"), pa.time32("s"), pa.date64()),
    *(pa.dictionary(pa.int32(), pa.string()), pa.list_(pa.uint64()), pa.decimal256(50, 2), pa.null()),
    pa.timestamp("us", "Europe/Berlin"),
]


@pytest.mark.parametrize("kind", WRONG, ids=str)
def test_a_type_that_iceberg_lacks_is_refused_by_name_before_anything_is_written(tmp_path: Path, kind: Any) -> None:
    output = IcebergOutput(str(tmp_path))
    output.read()
    with pytest.raises(SpecError, match=r"column key \("):
        output.commit(1, output_schema("classify", [pa.field("key", kind)]), Change(), no_copy)
    assert not [*tmp_path.rglob("*.json"), *tmp_path.rglob("*.avro")]


RIGHT: Mapping[Any, list[Any]] = {
    pa.int8(): [-128, 127],
    pa.uint16(): [0, 65535],
    pa.large_string(): ["a", "é"],
    pa.large_binary(): [b"a", b"\xff"],
    pa.binary(3): [b"abc", b"\0\0\0"],
    pa.date32(): [0, -40000],
    pa.timestamp("s"): [0, -(10**9)],
    pa.timestamp("ms", "UTC"): [0, -(10**12)],
    pa.time64("us"): [0, 86399999999],
    pa.large_list(pa.int64()): [[1], []],
    pa.list_(pa.float32(), 2): [[1, 2], [3, 4]],
    pa.map_(pa.string(), pa.int32()): [[("a", 1)], []],
    pa.struct([("x", pa.int32()), ("y", pa.list_(pa.string()))]): [{"x": 1, "y": ["q"]}, None],
}


@pytest.mark.parametrize("kind", RIGHT, ids=str)
def test_a_key_of_any_other_type_is_read_as_it_was_also_from_a_copy(
    out: Objects, output: IcebergOutput, kind: Any
) -> None:
    schema = output_schema("classify", [pa.field("id", pa.int64()), pa.field("key", kind)])
    values = pa.array(RIGHT[kind], kind)
    output.read()
    output.commit(1, schema, Change(added=[out.object(A, [1, 2], schema, key=values)]), no_copy)
    assert table_of(output).scan().to_arrow().sort_by("id")["key"].to_pylist() == values.to_pylist()
    output.read()
    output.commit(2, schema, Change(trimmed={A: without(1)}), out.copy)
    assert table_of(output).scan().to_arrow()["key"].to_pylist() == values.to_pylist()[1:]


# Tables that are not written


def test_a_table_of_another_kind_is_refused(in_catalog: IcebergOutput, output: IcebergOutput, out: Objects) -> None:
    in_catalog._catalog()[0].create_table("shop.predictions", pa.schema([("id", pa.int64())]))
    with pytest.raises(SpecError, match="not partitioned by"):
        in_catalog.read()
    Path(out.url, "metadata").mkdir(parents=True)
    Path(out.url, "metadata/00000-a.metadata.json").write_text("{}")
    with pytest.raises(SpecError, match="a catalog or a compressing writer") as refused:
        output.read()
    assert "iceberg://" in refused.value.next_step


def test_keys_called_as_the_tables_own_columns_are_refused(output: IcebergOutput) -> None:
    with pytest.raises(SpecError, match="column plan"):
        output.commit(1, output_schema("classify", [pa.field("plan", pa.int64())]), Change(), no_copy)


def test_without_the_library_the_extra_is_named() -> None:
    code = "import sys; sys.modules['pyiceberg'] = None\nfrom jobs.tables.iceberg_output import IcebergOutput\n"
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}IcebergOutput('/x').read()"], capture_output=True, text=True, check=False
    )
    assert "Iceberg tables need pyiceberg" in ended.stderr


def test_a_table_whose_metadata_is_gone_is_not_taken_for_none(either: IcebergOutput, out: Objects) -> None:
    begun(either, out.object(A, [1]))
    Path(table_of(either).current_snapshot().manifest_list).unlink()
    with pytest.raises(SpecError, match="snap-"):
        either.commit(2, SCHEMA, Change(dropped=[A]), no_copy)
    if "://" in either._uri:
        Path(table_of(either).metadata_location).unlink()
        with pytest.raises(NothingThere, match="there is no such table"):
            either.read()


# Readers, stores


def test_a_table_beside_the_roots_leaves_them_plain_parquet(out: Objects) -> None:
    output = IcebergOutput(f"{out.url}/_iceberg")
    begun(output, out.object(A, [1, 2]), out.object(B, [11]))
    assert pads.dataset(out.url, format="parquet", partitioning="hive").count_rows() == 3
    assert len(seen_rows(output)) == 3


def test_polars_reads_the_same_rows(output: IcebergOutput, out: Objects, tmp_path: Path) -> None:
    begun(output, out.object(A, [1, 2]), out.object(A, [11]))
    change = Change(added=[out.object(B, [21], EMBEDDINGS)], trimmed={A: without(2)})
    output.commit(2, EMBEDDINGS, change, out.copy)
    columns = ["model", "plan", "id", "label", "embedding"]
    table = table_of(output)
    expected = table.scan().to_arrow().sort_by("id").select(columns).to_pylist()
    assert [row["id"] for row in expected] == [1, 11, 21]
    script = tmp_path / "read.py"
    script.write_text(
        "import sys, json, polars\n"
        "sys.path.append(sys.argv[2])\n"  # Polars reads by way of pyiceberg
        f"print(json.dumps(polars.scan_iceberg(sys.argv[1]).select({columns}).collect().sort('id').to_dicts()))\n"
    )
    found = run_tool(script, table.metadata_location, Path(pyiceberg.__file__).parents[1])
    assert json.loads(found) == expected


@pytest.mark.objectstore
def test_a_table_on_s3(s3: str) -> None:
    out = Objects(f"{s3}/out")
    output = IcebergOutput(out.url)
    begun(output, out.object(A, [1, 2]))
    new = out.object(B, [11])
    change = Change(added=[new], trimmed={A: without(1)})
    won = race([IcebergOutput(out.url) for _ in range(6)], lambda one: one.commit(2, SCHEMA, change, out.copy))
    assert Counter(won) == {True: 1, False: 5}
    assert (output.read(), seen_rows(output), output.rows()) == (2, [*rows(A, [2]), *rows(B, [11])], {A: 1, B: 1})
    fs, path = open_filesystem(f"{out.url}/metadata/version-hint.text")
    assert fs.cat_file(path) == b"3"
    assert {one.constants["plan"] for one in read_state(out.url.replace("s3://", "s3a://")).files} == {1, 2}


# Anything, in any order


class World:
    """A table beside what it is to hold."""

    def __init__(self, url: str, output: IcebergOutput, seed: int) -> None:
        self.random, self.out, self.output = random.Random(seed), Objects(url), output
        self.rows: set[Row] = set()
        self.edition = self.next_id = 0

    def step(self) -> None:
        ways = [self.ours] * 3 + [self.delete, self.append, self.positions, self.compact, self.expire, self.settings]
        self.random.choice(ways)()

    def ours(self) -> None:
        parts = sorted({Portion(*row[:2]) for row in self.rows})
        gone = [one for one in parts if self.random.random() < 0.25]
        cut = [one for one in parts if one not in gone and self.random.random() < 0.3]
        taken = {row[2] for row in self.rows if row[:2] in cut and self.random.random() < 0.5}
        self.edition += 1
        new = Portion("m-1", self.edition)
        added, ids = [], set[int]()
        for _ in range(self.random.randrange(3)):
            some = [*range(self.next_id, self.next_id + self.random.randrange(1, 5))]
            self.next_id += 10
            added.append(self.out.object(new, some))
            ids |= {*some}
        schema = SCHEMA
        change = Change(added, gone, {one: without(*taken) for one in cut})
        assert self.output.read() == self.edition - 1
        self.output.commit(self.edition, schema, change, self.out.copy)
        self.rows = {row for row in self.rows if row[:2] not in gone and row[2] not in taken} | {(*new, i) for i in ids}

    @property
    def table(self) -> Any:
        return table_of(self.output)

    def delete(self) -> None:
        if self.rows:
            row = self.random.choice(sorted(self.rows))
            self.table.delete(EqualTo("id", row[2]))
            self.rows.discard(row)

    def append(self) -> None:
        if self.edition:
            self.next_id += 10
            self.table.append(their_rows(self.next_id - 1))
            self.rows.add(("x", 9, self.next_id - 1))

    def positions(self) -> None:
        """A delete file by hand, of two rows of a file."""
        if not self.rows or not isinstance(self.table.catalog, FolderCatalog):
            return
        one = self.random.choice(data_files(self.table))
        ids = pq.read_table(one["file_path"])["id"].to_pylist()
        at = sorted(self.random.sample(range(len(ids)), min(2, len(ids))))
        part = [*one["partition"]._data]
        deletes = position_deletes(self.table, [(one["file_path"], i) for i in at], partition=one["partition"])
        hand_commit(self.table, [deletes], operation="delete")
        self.rows -= {(*part, ids[i]) for i in at}

    def compact(self) -> None:
        """All rows of the table in files that pyiceberg writes."""
        if self.rows:
            self.table.overwrite(self.table.scan().to_arrow())

    def expire(self) -> None:
        table = self.table
        if table is not None and table.snapshots():
            keep = {table.current_snapshot().snapshot_id}
            old = [one.snapshot_id for one in table.snapshots() if one.snapshot_id not in keep]
            if old:
                table.maintenance.expire_snapshots().by_ids(old).commit()

    def settings(self) -> None:
        if self.edition:
            self.table.transaction().set_properties({"a": str(self.next_id)}).commit_transaction()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_the_table_holds_what_it_is_to_hold(either: IcebergOutput, tmp_path: Path, seed: int) -> None:
    world = World(str(tmp_path / "objects" if "://" in either._uri else either._uri), either, seed)
    for _ in range(12):
        world.step()
        if world.edition:
            assert seen_rows(either) == sorted(world.rows)
            assert either.read() == world.edition
            assert sum(either.rows().values()) == len(world.rows)
