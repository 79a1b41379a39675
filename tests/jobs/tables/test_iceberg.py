"""Iceberg: live rows only, under present names, and what became of a table since another snapshot."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyiceberg import catalog
from pyiceberg.table import Table
from pyiceberg.typedef import Record
from pyiceberg.types import LongType

from jobs.errors import NothingThere, SpecError
from jobs.tables.iceberg import read_state
from jobs.tables.iceberg_deletes import ALIVE, DeletedKeys
from jobs.tables.state import TableState
from tests.jobs.tables.iceberg_tables import (
    SCHEMA,
    FolderCatalog,
    IcebergMaker,
    data_files,
    deletion_vectors,
    equality_deletes,
    hand_commit,
    hand_file,
    hand_metadata,
    live_rows,
    make_table,
    position_deletes,
    write_rows,
)

MS = timedelta(milliseconds=1)
ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.none() | st.binary(max_size=3), st.none() | st.integers(-3, 3)),
    min_size=1,
    max_size=4,
    unique_by=lambda row: row[0],
)
IDS = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["append", "update", "upsert", "overwrite", "flink_upsert"]), ROWS),
    st.tuples(st.sampled_from(["delete", "delete_positions"]), IDS),
    st.tuples(st.sampled_from(["compact", "expire"]), st.none()),
    st.tuples(st.just("rollback"), st.integers(0, 5)),
)


def files_after(then: TableState, now: TableState) -> set[str]:
    """The files of a state and what its commits did to them."""
    files = {one.uri for one in then.files}
    for commit in now.commits or ():
        assert commit.removed <= files
        assert not commit.added & files
        files = (files - commit.removed) | commit.added
        assert commit.changed <= files - commit.added
    return files


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, min_size=1, max_size=6), mark=st.integers(0, 6))
def test_live_rows_and_commits_are_right_after_any_steps(steps: list, mark: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = IcebergMaker(Path(folder))
        then, rolled = read_state(made.url), False
        for number, (step, what) in enumerate(steps):
            if number == mark:
                then, rolled = read_state(made.url), False
            if step == "append":
                what = [row for row in what if row[0] not in made.rows]
            if step == "rollback":
                line, snapshot = [], made.table.current_snapshot()
                while snapshot is not None:
                    line += [one for one in [str(snapshot.snapshot_id)] if one in made.past]
                    snapshot = made.table.snapshot_by_id(snapshot.parent_snapshot_id or 0)
                what, rolled = (line[what % len(line)], True) if line else (None, rolled)
            if what is None and step in ("compact", "expire"):
                getattr(made, step)()
            elif what:
                getattr(made, step)(what)
        now = read_state(made.url, since=then.version)
        found = {row["id"]: (row["image"], row["label"]) for row in live_rows(now)}
        assert found == made.rows
        assert sum(one.rows - len(one.deleted) for one in now.files) == len(made.rows)
        if now.commits is None:
            assert any(step == "expire" for step, _ in steps)
            return
        assert files_after(then, now) == {one.uri for one in now.files}
        before = {one.uri: one.deleted.tolist() for one in then.files}
        moved = set().union(*(commit.added | commit.removed for commit in now.commits))
        changed = set().union(*(commit.changed for commit in now.commits))
        for one in now.files:
            if one.uri in before and one.uri not in moved:
                differs = before[one.uri] != one.deleted.tolist()
                assert one.uri in changed if differs else rolled or one.uri not in changed


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": ids, "image": [b"%d" % one for one in ids], "label": [one % 3 for one in ids]}, SCHEMA)


def ids(state: TableState) -> list[int]:
    return sorted(row["id"] for row in live_rows(state))


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return make_table(tmp_path)


def location(table: Table) -> str:
    return table.location()


def _at(snapshot: Any) -> datetime:
    return datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC)


# What is live


def test_equality_deletes_take_older_rows_only(table: Table) -> None:
    table.append(rows(1, 2, 3))
    table = hand_commit(table, [equality_deletes(table, pa.table({"id": [2]})), write_rows(table, rows(2, 4))])
    assert ids(read_state(location(table))) == [1, 2, 3, 4]
    (old, new) = sorted(read_state(location(table)).files, key=lambda one: -(one.rows or 0))
    assert old.deleted.tolist() == [1]
    assert new.deleted.tolist() == []


def test_equality_deletes_compare_all_their_columns_and_null_is_null(table: Table) -> None:
    values = {"id": [1, 1, 2, 2, None], "image": [b"a", None, b"a", None, b"b"], "label": [1, 1, 2, 2, None]}
    table.append(pa.table(values, SCHEMA))
    two = pa.table({"id": [1, 2, None], "label": [1, 7, None]}, pa.schema([SCHEMA.field("id"), SCHEMA.field("label")]))
    one = pa.table({"image": pa.array([b"x", None], pa.binary())})
    table = hand_commit(table, [equality_deletes(table, two)])
    table = hand_commit(table, [equality_deletes(table, one)])
    assert live_rows(read_state(location(table))) == [{"id": 2, "image": b"a", "label": 2}]


def test_an_equality_delete_of_nan_takes_nan(tmp_path: Path) -> None:
    table = make_table(tmp_path, pa.schema([("id", pa.int64()), ("x", pa.float64())]))
    table.append(pa.table({"id": [1, 2, 3], "x": [0.5, float("nan"), None]}))
    table = hand_commit(table, [equality_deletes(table, pa.table({"x": [float("nan")]}))])
    assert ids(read_state(location(table))) == [1, 3]


def test_equality_deletes_are_about_their_partition_or_all_where_theirs_is_of_no_spec(table: Table) -> None:
    with table.update_spec() as change:
        change.add_identity("label")
    table.append(rows(1, 2, 4))  # labels 1, 2, 1
    keys = pa.table({"id": [1, 2]})
    table = hand_commit(table, [equality_deletes(table, keys, spec_id=1, partition=Record(1))])
    assert ids(read_state(location(table))) == [2, 4]
    table = hand_commit(table, [equality_deletes(table, keys, spec_id=0)])
    assert ids(read_state(location(table))) == [4]


def test_equality_deletes_find_columns_that_were_renamed_widened_or_added_since(tmp_path: Path) -> None:
    table = make_table(tmp_path, pa.schema([("key", pa.int32())]))
    table.append(pa.table({"key": [1, 2, 3]}, pa.schema([("key", pa.int32())])))
    with table.update_schema() as change:
        change.rename_column("key", "id")
    with table.update_schema() as change:
        change.update_column("id", LongType())
        change.add_column("more", LongType())
    table.append(pa.table({"id": [4, 5], "more": [None, 1]}))
    table = hand_commit(table, [equality_deletes(table, pa.table({"id": [2, 5]}))])
    assert ids(read_state(location(table))) == [1, 3, 4]
    table = hand_commit(table, [equality_deletes(table, pa.table({"more": pa.array([None], pa.int64())}))])
    assert ids(read_state(location(table))) == []


def test_equality_deletes_by_a_column_that_is_gone_still_hold(table: Table) -> None:
    table.append(rows(1, 2, 3))
    table = hand_commit(table, [equality_deletes(table, pa.table({"label": [2]}, pa.schema([SCHEMA.field(2)])))])
    with table.update_schema(allow_incompatible_changes=True) as change:
        change.delete_column("label")
    assert live_rows(read_state(location(table))) == [{"id": 1, "image": b"1"}, {"id": 3, "image": b"3"}]


def test_position_deletes_take_rows_of_files_that_were_there(table: Table) -> None:
    table.append(rows(1, 2, 3))
    path = data_files(table)[0]["file_path"]
    new = write_rows(table, rows(4, 5))
    where = [(path, 0), (path, 2), (path, 99), (new["file_path"], 1), ("/nowhere.parquet", 0)]
    table = hand_commit(table, [new, position_deletes(table, where)], operation="overwrite")
    table = hand_commit(table, [position_deletes(table, [(path, 0)])], operation="delete")
    state = read_state(location(table))
    assert ids(state) == [2, 4]
    assert sum(one.rows - len(one.deleted) for one in state.files) == 2


def test_a_position_delete_takes_nothing_from_a_file_that_came_after_it(table: Table) -> None:
    new = write_rows(table, rows(1, 2))
    table.append(rows(3))
    table = hand_commit(table, [position_deletes(table, [(new["file_path"], 0)])])
    table = hand_commit(table, [new])
    assert ids(read_state(location(table))) == [1, 2, 3]


def as_third_format(metadata: dict[str, Any]) -> None:
    metadata |= {"format-version": 3, "next-row-id": 0}


def test_deletion_vectors_are_read_out_of_one_puffin_file(table: Table) -> None:
    table.append(rows(1, 2, 3))
    table.append(rows(4, 5))
    three, two = sorted(data_files(table), key=lambda one: -one["record_count"])
    vectors = deletion_vectors(table, {three["file_path"]: [0, 2], two["file_path"]: [1]})
    table = hand_commit(table, vectors, operation="delete", change=as_third_format)
    assert ids(read_state(location(table))) == [2, 4]
    path = Path(vectors[0]["file_path"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-6] + b"damage")
    with pytest.raises(SpecError, match="damaged deletion vector"):
        read_state(location(table))
    path.write_bytes(whole)
    table = hand_commit(table, [vectors[0] | {"referenced_data_file": None}])
    with pytest.raises(SpecError, match="does not say where, or of which file"):
        read_state(location(table))


# What is called how


def test_columns_go_by_their_present_names_in_files_of_any_age(table: Table) -> None:
    table.append(rows(1))
    old = read_state(location(table))
    with table.update_schema(allow_incompatible_changes=True) as change:
        change.rename_column("image", "picture")
        change.delete_column("label")
    with table.update_schema() as change:
        change.add_column("label", LongType())
    table.append(pa.table({"id": [2], "picture": pa.array([b"2"], pa.large_binary()), "label": [5]}))
    expected = [{"id": 1, "picture": b"1", "label": None}, {"id": 2, "picture": b"2", "label": 5}]
    assert sorted(live_rows(read_state(location(table))), key=lambda row: row["id"]) == expected
    assert live_rows(read_state(location(table), version=old.version)) == [{"id": 1, "image": b"1", "label": 1}]


def test_fields_of_structs_go_by_their_present_names(tmp_path: Path) -> None:
    inner = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = make_table(tmp_path, pa.schema([("id", pa.int64()), ("image", inner)]))
    table.append(pa.table({"id": [1, 2], "image": pa.array([{"bytes": b"1", "path": "x"}, None], inner)}))
    with table.update_schema(allow_incompatible_changes=True) as change:
        change.rename_column("image.bytes", "data")
        change.delete_column("image.path")
        change.add_column(("image", "more"), LongType())
    expected = [{"id": 1, "image": {"data": b"1", "more": None}}, {"id": 2, "image": None}]
    assert live_rows(read_state(location(table))) == expected


def test_a_rename_alone_counts_and_is_no_new_version(table: Table) -> None:
    table.append(rows(1))
    old = read_state(location(table))
    with table.update_schema() as change:
        change.rename_column("image", "picture")
    new = read_state(location(table), since=old.version)
    assert (new.version, new.commits, new.schema.names) == (old.version, [], ["id", "picture", "label"])


def test_files_without_numbers_go_by_the_name_mapping(table: Table) -> None:
    path = f"{table.location()}/data/foreign.parquet"
    Path(path).parent.mkdir()
    pq.write_table(pa.table({"id": [7], "bytes": [b"7"]}), path)
    names = [{"field-id": 1, "names": ["id"]}, {"field-id": 2, "names": ["image", "bytes"]}]
    with table.transaction() as change:
        change.set_properties({"schema.name-mapping.default": json.dumps(names)})
    with table.update_schema() as change:
        change.rename_column("image", "picture")
    table = hand_commit(table.refresh(), [hand_file(path, 1)])
    assert live_rows(read_state(location(table))) == [{"id": 7, "picture": b"7", "label": None}]


def test_a_partition_that_files_do_not_hold_is_a_constant(tmp_path: Path) -> None:
    table = make_table(tmp_path, pa.schema([("id", pa.int64()), ("day", pa.date32())]))
    with table.update_spec() as change:
        change.add_identity("day")
    day = Record((date(2026, 3, 1) - date(1970, 1, 1)).days)
    state = read_state(
        location(hand_commit(table, [write_rows(table, pa.table({"id": [1]}), spec_id=1, partition=day)]))
    )
    assert state.files[0].constants == {"day": date(2026, 3, 1)}
    assert live_rows(state) == [{"id": 1, "day": date(2026, 3, 1)}]


@pytest.mark.parametrize(
    ("kind", "default", "value"),
    [
        ("int", 7, 7), ("string", "x", "x"), ("binary", "00ff", b"\0\xff"), ("date", "2026-03-01", date(2026, 3, 1)),
        ("uuid", "f79c3e09-677c-4bbd-a479-3f349cb785e7", bytes.fromhex("f79c3e09677c4bbda4793f349cb785e7")),
        ("decimal(9, 2)", "14.20", Decimal("14.20")), ("boolean", False, False), ("time", "10:00:00", time(10)),
        ("timestamptz", "2026-03-01T00:00:00+00:00", datetime(2026, 3, 1, tzinfo=UTC)),
    ],
)  # fmt: skip
def test_columns_that_files_lack_hold_their_initial_default(
    table: Table, kind: str, default: object, value: object
) -> None:
    table.append(rows(1))

    def change(metadata: dict[str, Any]) -> None:
        as_third_format(metadata)
        about = {"id": 4, "name": "more", "required": False, "type": kind, "initial-default": default}
        metadata["schemas"][0]["fields"].append(about)

    table = hand_commit(table, change=change)
    assert live_rows(read_state(location(table)))[0]["more"] == value


def test_a_variant_is_refused_only_where_it_is_read(table: Table) -> None:
    table.append(rows(1))
    metadata = json.loads(Path(table.metadata_location).read_text()) | {"format-version": 3, "next-row-id": 0}
    inner = {"type": "list", "element-id": 5, "element-required": False, "element": "variant"}
    metadata["schemas"][0]["fields"].append({"id": 4, "name": "more", "required": False, "type": inner})
    url = hadoop(table, "v1.metadata.json")
    Path(url, "metadata/v2.metadata.json").write_text(json.dumps(metadata))
    assert read_state(url, columns=["id", "image"]).schema.names == ["id", "image", "label"]
    for columns in ((), ("more",)):
        with pytest.raises(SpecError, match="column more is a variant"):
            read_state(url, columns=columns)


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"file_format": "ORC"}, "data in ORC"), ({"file_format": "AVRO"}, "data in AVRO"),
        ({"key_metadata": b"k"}, "encrypted"), ({"content": 1, "file_format": "ORC"}, "position deletes in ORC"),
        ({"content": 2, "file_format": "AVRO", "equality_ids": [1]}, "equality deletes in AVRO"),
    ],
)  # fmt: skip
def test_files_that_are_not_read_are_refused_by_name(table: Table, about: dict[str, Any], said: str) -> None:
    table.append(rows(1))
    table = hand_commit(table, [write_rows(table, rows(2)) | about])
    with pytest.raises(SpecError, match=said) as refused:
        read_state(location(table))
    assert "hand-" in str(refused.value)


def test_tables_of_the_first_format_are_read(tmp_path: Path) -> None:
    table = make_table(tmp_path, properties={"format-version": "1"})
    table.append(rows(1, 2))
    table.append(rows(3))
    table.delete("id = 2")
    state = read_state(location(table), since="0")
    assert ids(state) == [1, 3]
    assert [len(one.added) - len(one.removed) for one in state.commits or ()] == [1, 1, 0]


# Which version


def test_a_version_is_a_snapshot_a_tag_or_a_branch(table: Table) -> None:
    table.append(rows(1))
    first = table.current_snapshot().snapshot_id
    table.manage_snapshots().create_tag(first, "monday").create_branch(first, "trial").commit()
    table.append(rows(2))
    table.append(rows(3), branch="trial")
    for version, expected in ((str(first), [1]), ("monday", [1]), ("main", [1, 2]), ("trial", [1, 3]), ("0", [])):
        assert ids(read_state(location(table), version=version)) == expected
    with pytest.raises(SpecError, match="no snapshot, tag or branch friday"):
        read_state(location(table), version="friday")


def test_before_takes_what_was_current_then_and_never_half_a_commit(table: Table) -> None:
    table.append(rows(1))
    sleep(0.01)
    table.overwrite(rows(2))  # two snapshots of one commit
    one, half, whole = (_at(snapshot) for snapshot in table.snapshots())
    table.manage_snapshots().rollback_to_snapshot(table.snapshots()[0].snapshot_id).commit()
    for before, expected in ((one + MS, [1]), (whole, [1]), (whole + MS, [2]), (whole + 3600_000 * MS, [1])):
        assert ids(read_state(location(table), before=before)) == expected
    assert half < whole or ids(read_state(location(table), before=half + MS)) == [2]
    with pytest.raises(SpecError, match="is not kept"):
        read_state(location(table), before=one)


def test_before_refuses_a_moment_whose_snapshot_has_expired(table: Table) -> None:
    for number in range(3):
        table.append(rows(number))
        sleep(0.002)
    first, second, third = table.snapshots()
    table.maintenance.expire_snapshots().by_id(second.snapshot_id).commit()
    assert ids(read_state(location(table), before=_at(third) + MS)) == [0, 1, 2]
    with pytest.raises(SpecError, match="is not kept"):
        read_state(location(table), before=_at(third))  # the log of pyiceberg leads from the first to the third
    del first


def test_a_table_without_a_snapshot_is_empty_and_all_is_after_it(table: Table) -> None:
    empty = read_state(location(table))
    assert (empty.version, list(empty.files), empty.schema.names) == ("0", [], SCHEMA.names)
    table.append(rows(1))
    state = read_state(location(table), since="0")
    assert [commit.added for commit in state.commits or ()] == [{state.files[0].uri}]


# Where it is


def hadoop(table: Table, *names: str, hint: str | None = None) -> str:
    """The table's metadata under other names."""
    folder = Path(table.location(), "metadata")
    last = Path(table.metadata_location).read_bytes()
    for old in folder.glob("*.metadata.json"):
        old.unlink()
    for name in names:
        (folder / name).write_bytes(gzip.compress(last) if ".gz" in name else last)
    if hint is not None:
        (folder / "version-hint.text").write_text(hint)
    return table.location()


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["v2.metadata.json"], "2"), (["v2.metadata.json"], None), (["v2.gz.metadata.json"], "1\n"),
        (["v2.metadata.json.gz"], None), (["00003-a.metadata.json", "00003-b.metadata.json"], "00003-b"),
        (["00003-a.metadata.json", "00003-b.metadata.json"], "00003-b.metadata.json"),
        (["named.metadata.json"], "named"),
    ],
)  # fmt: skip
def test_the_metadata_at_a_location_is_what_the_hint_names_or_has_the_highest_number(
    table: Table, names: list[str], hint: str | None
) -> None:
    table.append(rows(1))
    assert ids(read_state(hadoop(table, *names, hint=hint))) == [1]


def test_a_hint_that_is_behind_does_not_hide_what_came_after(table: Table) -> None:
    table.append(rows(1))
    url = hadoop(table, "v10.metadata.json", hint="9")
    Path(url, "metadata/v9.metadata.json").write_text("{}")
    assert ids(read_state(url + "/")) == [1]


@pytest.mark.parametrize(
    "names",
    [
        ["00003-a.metadata.json", "00003-b.metadata.json"],
        ["00000-a.metadata.json", "00000-b.metadata.json", "00003-a.metadata.json"],  # dropped and made again
        ["v7.metadata.json", "00001-a.metadata.json"],  # taken over by a catalog
    ],
)
def test_a_location_whose_metadata_only_a_catalog_knows_is_refused(table: Table, names: list[str]) -> None:
    table.append(rows(1))
    url = hadoop(table, *names)
    with pytest.raises(SpecError, match="only a catalog knows") as refused:
        read_state(url)
    assert "metadata.json" in refused.value.next_step
    assert ids(read_state(f"{url}/metadata/{names[0]}")) == [1]


def test_what_is_no_table_is_told_from_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NothingThere):
        read_state(str(tmp_path / "nowhere"))
    with pytest.raises(NothingThere):
        read_state(str(tmp_path / "00000-a.metadata.json"))
    with pytest.raises(SpecError, match="is no Iceberg table"):
        read_state(str(tmp_path))
    (tmp_path / "v1.metadata.json").write_text('{"format-version": 9}')
    with pytest.raises(SpecError, match="cannot do this"):
        read_state(str(tmp_path / "v1.metadata.json"))


def test_a_catalog_names_a_table(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.append(rows(1))
    with pytest.raises(SpecError, match="PYICEBERG_CATALOG__FOLDER__URI"):
        read_state("iceberg://folder/shop.products")
    # pyiceberg takes a class of catalogs from its caller only, not from its configuration.
    made = partial(FolderCatalog, warehouse=str(tmp_path))
    monkeypatch.setattr(catalog, "load_catalog", lambda name, **properties: made(name, **properties))
    assert ids(read_state("iceberg://folder/shop.products")) == [1]
    with pytest.raises(NothingThere):
        read_state("iceberg://folder/shop.nothing")
    with pytest.raises(SpecError, match="names no table"):
        read_state("iceberg://folder/products")


@pytest.mark.parametrize("form", ["file:{}", "file://{}"])
def test_paths_are_named_as_other_sources_are(tmp_path: Path, form: str) -> None:
    table = make_table(tmp_path)
    table.append(rows(1))
    path = data_files(table)[0]["file_path"]
    table = hand_commit(table, [hand_file(path, 1) | {"file_path": form.format(path)}], data_files(table))
    state = read_state(form.format(table.location()) if "//" in form else table.location())
    assert [one.uri for one in state.files] == [path]
    assert ids(state) == [1]


def test_a_manifest_that_is_gone_or_damaged_is_named(table: Table) -> None:
    table.append(rows(1))
    path = Path(table.current_snapshot().manifests(table.io)[0].manifest_path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(SpecError, match=path.name):
        read_state(location(table))
    path.unlink()
    with pytest.raises(SpecError, match=path.name):
        read_state(location(table))


def test_the_library_is_imported_only_where_a_table_is_read() -> None:
    code = "import sys, jobs.tables.iceberg; sys.exit(any(name.startswith('pyiceberg') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_the_library_the_extra_is_named(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiceberg", None)
    with pytest.raises(SpecError) as refused:
        read_state(location(table))
    assert refused.value.next_step == "pip install 'stint[iceberg]'"


# What came since


def test_an_overwrite_is_one_commit_and_a_compaction_changes_no_data(table: Table) -> None:
    table.append(rows(1))
    then = read_state(location(table))
    sleep(0.01)
    table.overwrite(rows(2, 3))
    whole = read_state(location(table), since=then.version)
    (commit,) = whole.commits or ()
    assert (commit.version, commit.data_change) == (whole.version, True)
    assert (commit.removed, commit.added) == ({then.files[0].uri}, {whole.files[0].uri})
    table = hand_commit(table, [write_rows(table, rows(2, 3))], data_files(table), "replace")
    (commit,) = read_state(location(table), since=whole.version).commits or ()
    assert (commit.data_change, len(commit.added), commit.removed) == (False, 1, {whole.files[0].uri})


def test_a_delete_changes_the_files_whose_rows_it_took_also_those_that_a_compaction_removed_since(table: Table) -> None:
    table.append(rows(1, 2))
    table.append(rows(3))
    then = read_state(location(table))
    one, other = (file.uri for file in sorted(then.files, key=lambda file: -(file.rows or 0)))
    sleep(0.002)
    table = hand_commit(table, [equality_deletes(table, pa.table({"id": [2, 9]}))], operation="delete")
    table = hand_commit(table, [equality_deletes(table, pa.table({"id": [2]}))], operation="delete")
    table = hand_commit(table, [position_deletes(table, [(other, 0), (one, 1)])], operation="delete")
    table = hand_commit(table, [write_rows(table, rows(1))], data_files(table, (0, 1, 2)), "replace")
    now = read_state(location(table), since=then.version)
    assert ids(now) == [1]
    assert [commit.changed for commit in now.commits or ()] == [{one}, set(), {other}, set()]


def test_a_way_back_is_a_commit(table: Table) -> None:
    table.append(rows(1, 2))
    table = hand_commit(table, [position_deletes(table, [(data_files(table)[0]["file_path"], 1)])], operation="delete")
    (file,) = read_state(location(table)).files
    table.append(rows(3))
    since = read_state(location(table))
    table.manage_snapshots().rollback_to_snapshot(table.snapshots()[0].snapshot_id).commit()
    table.append(rows(4))
    now = read_state(location(table), since=since.version)
    back, forward = now.commits or ()
    assert ids(now) == [1, 2, 4]
    assert (back.version, back.changed, back.added) == (str(table.snapshots()[0].snapshot_id), {file.uri}, set())
    assert back.removed == {one.uri for one in since.files} - {file.uri}
    assert len(forward.added) == 1


def test_a_history_that_does_not_lead_here_is_none(table: Table) -> None:
    table.append(rows(1))
    first = read_state(location(table)).version
    table.append(rows(2))
    assert read_state(location(table), since="12345").commits is None
    assert read_state(location(table), since="tuesday").commits is None
    table.maintenance.expire_snapshots().by_id(int(first)).commit()
    assert read_state(location(table), since=first).commits is None
    assert (
        read_state(location(table), since="0").commits is None
    )  # pyiceberg makes the second snapshot look like a first


def test_a_snapshot_that_expired_last_is_still_one_to_come_from(table: Table) -> None:
    table.append(rows(1))
    first = table.current_snapshot()
    table.append(rows(2))
    metadata = json.loads(Path(table.metadata_location).read_text())
    metadata["snapshots"] = metadata["snapshots"][1:]  # Spark leaves its id in the next one
    Path(first.manifest_list).unlink()
    table = hand_metadata(table, metadata)
    (commit,) = read_state(location(table), since=str(first.snapshot_id)).commits or ()
    assert len(commit.added) == 1
    assert read_state(location(table), since="0").commits is None


def test_a_history_of_files_that_are_not_read_is_none_once_the_table_is_rid_of_them(table: Table) -> None:
    table.append(rows(1, 2))
    then = read_state(location(table))
    table = hand_commit(table, [position_deletes(table, [(then.files[0].uri, 0)]) | {"file_format": "ORC"}])
    with pytest.raises(SpecError, match="position deletes in ORC"):
        read_state(location(table))
    table = hand_commit(table, [write_rows(table, rows(2))], data_files(table, (0, 1)), "replace")
    now = read_state(location(table), since=then.version)
    assert (ids(now), now.commits) == ([2], None)


@pytest.mark.objectstore
def test_a_table_on_s3_is_read_as_files_are(s3: str, tmp_path: Path) -> None:
    made = IcebergMaker(tmp_path, location=f"{s3}/products")
    made.append([(1, b"a", 1), (2, b"b", 2), (3, b"c", 3)])
    then = read_state(made.url)
    made.delete_positions([1])
    made.flink_upsert([(2, b"x", None)])
    now = read_state(made.url.replace("s3://", "s3a://"), since=then.version)
    assert {row["id"]: (row["image"], row["label"]) for row in live_rows(now)} == made.rows
    assert all(one.uri.startswith(f"{s3}/products/data/") for one in now.files)
    assert [commit.changed for commit in now.commits or ()] == [{then.files[0].uri}] * 2
    with pytest.raises(NothingThere):
        read_state(f"{s3}/nothing")


VALUES = st.none() | st.sampled_from([0, 1, -5, 2**62])
KEY_TABLES = st.lists(st.tuples(VALUES, VALUES), max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    deletes=st.lists(st.tuples(KEY_TABLES, st.integers(1, 6)), min_size=1, max_size=4),
    data=KEY_TABLES,
    at=st.integers(0, 6),
)
def test_the_first_later_delete_of_a_key_is_found(deletes: list, data: list, at: int) -> None:
    def keys(found: list) -> pa.Table:
        return pa.table({name: pa.array([row[n] for row in found], pa.int64()) for n, name in enumerate("ab")})

    taken = DeletedKeys((1, 2), [(keys(found), sequence) for found, sequence in deletes])
    later = [[sequence for found, sequence in deletes if row in found and sequence > at] for row in data]
    if taken.last > at:
        assert taken.taken_at(keys(data), np.full(len(data), at)).tolist() == [
            min(some, default=ALIVE) for some in later
        ]
    else:
        assert not any(later)
