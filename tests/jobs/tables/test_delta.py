"""What is live in a Delta table, and what its commits did."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.errors import NothingThere, SpecError
from jobs.tables.delta import read_state
from jobs.tables.state import TableState
from tests.jobs.tables.delta_tables import (
    DeltaMaker,
    added,
    checkpoint,
    column,
    commit,
    inline_vector,
    live_rows,
    mapped,
    metadata,
    noted,
    parquet,
    protocol,
    removed,
    stored_vectors,
)
from workers.storage.access import object_store_url, storage_options

PLAIN = protocol(reader=1)
IDS = metadata(column("id"))
VECTORS = protocol("deletionVectors")


def ids(state: TableState) -> list[int]:
    return sorted(row["id"] for row in live_rows(state))


def names(uris: Any) -> list[str]:
    return sorted(uri.rpartition("/")[2] for uri in uris)


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: row["id"])


def steps(state: TableState) -> list[tuple[str, list[str], list[str], list[str], bool]]:
    assert state.commits is not None
    return [(c.version, names(c.added), names(c.removed), names(c.changed), c.data_change) for c in state.commits]


def folded(before: TableState, commits: Any) -> set[str]:
    files = {file.uri for file in before.files}
    for one in commits:
        files = files - one.removed | one.added
    return files


def three_files(table: Path) -> list[dict[str, Any]]:
    return [parquet(table / f"{n}.parquet", {"id": [3 * n, 3 * n + 1, 3 * n + 2]}) for n in range(3)]


# What is live


def test_live_rows_are_told_after_a_delete_and_a_compaction(tmp_path: Path) -> None:
    made = DeltaMaker(tmp_path / "t")
    made.append(dict.fromkeys(range(20), 0))
    made.append(dict.fromkeys(range(20, 40), 0))
    made.delete(range(5))
    made.compact()
    state = read_state(made.url)
    assert in_order(live_rows(state)) == made.live()
    assert len(state.files) == 1
    assert state.schema.field("image").type == pa.binary()


def test_partitions_come_from_the_log_and_not_from_paths(tmp_path: Path) -> None:
    odd = ["a b", "c%41:=é", "x#?&+", "p/q", None]
    write_deltalake(tmp_path / "t", pa.table({"id": range(5), "p": odd}), partition_by=["p"])
    assert {row["id"]: row["p"] for row in live_rows(read_state(str(tmp_path / "t")))} == dict(enumerate(odd))


def test_partitions_have_the_types_of_their_columns(tmp_path: Path) -> None:
    kinds: dict[str, tuple[str, str | None, object]] = {
        "a": ("integer", "-5", -5),
        "b": ("decimal(8,2)", "1.50", Decimal("1.50")),
        "c": ("date", "2026-01-31", date(2026, 1, 31)),
        "d": ("timestamp", "2026-01-31 01:02:03.5", datetime(2026, 1, 31, 1, 2, 3, 500000, UTC)),
        "e": ("timestamp", "2026-01-31T01:02:03.000004Z", datetime(2026, 1, 31, 1, 2, 3, 4, UTC)),
        "f": ("timestamp_ntz", "2026-01-31 01:02:03", datetime(2026, 1, 31, 1, 2, 3)),
        "g": ("boolean", "true", True),
        "h": ("double", "-Infinity", float("-inf")),
        "i": ("string", "", None),
        "j": ("long", None, None),
        "k": ("string", "a%20b", "a%20b"),
    }
    table = tmp_path / "t"
    file = parquet(table / "x=other" / "1.parquet", {"id": [1]}, "x=other/1.parquet")
    file["add"]["partitionValues"] = {name: text for name, (_, text, _) in kinds.items()}
    columns = [column(name, kind) for name, (kind, _, _) in kinds.items()]
    commit(table, 0, PLAIN, metadata(column("id"), *columns, by=list(kinds)), file)
    [one] = read_state(str(table)).files
    assert one.constants == {name: value for name, (_, _, value) in kinds.items()}


def test_a_partition_that_is_not_of_its_type_is_told(tmp_path: Path) -> None:
    commit(tmp_path, 0, PLAIN, metadata(column("p", "date"), by=["p"]), added("1.parquet", values={"p": "May"}))
    with pytest.raises(SpecError, match="'May' in the partition column p"):
        read_state(str(tmp_path))


def test_a_partition_of_bytes_is_refused_where_it_is_read(tmp_path: Path) -> None:
    columns = metadata(column("id"), column("p", "binary"), by=["p"])
    commit(tmp_path, 0, PLAIN, columns, added("1.parquet", values={"p": "\\u0061"}))
    with pytest.raises(SpecError, match="the column p is of type binary, by which the table is partitioned"):
        read_state(str(tmp_path))
    assert read_state(str(tmp_path), columns=["id"]).files[0].constants == {}


def test_columns_that_are_younger_than_a_file_are_null_in_it(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "t", pa.table({"id": [1]}))
    write_deltalake(tmp_path / "t", pa.table({"id": [2], "more": ["x"]}), mode="append", schema_mode="merge")
    rows = live_rows(read_state(str(tmp_path / "t")))
    assert sorted(rows, key=lambda row: row["id"]) == [{"id": 1, "more": None}, {"id": 2, "more": "x"}]


def test_files_without_statistics_are_files_of_unknown_rows(tmp_path: Path) -> None:
    first, second = three_files(tmp_path)[:2]
    del first["add"]["stats"]
    second["add"]["stats"] = '{"numRecords": 3, "minValues": {"numRecords": 99}}'
    commit(tmp_path, 0, PLAIN, IDS, first, second)
    state = read_state(str(tmp_path))
    assert [file.rows for file in state.files] == [None, 3]
    assert ids(state) == [0, 1, 2, 3, 4, 5]


def test_the_change_data_feed_is_no_part_of_the_table(tmp_path: Path) -> None:
    write_deltalake(
        tmp_path / "t", pa.table({"id": [1, 2, 3]}), configuration={"delta.enableChangeDataFeed": "true"}
    )  # fmt: skip
    DeltaTable(tmp_path / "t").update({"id": "id + 10"}, predicate="id = 2")
    assert (tmp_path / "t" / "_change_data").is_dir()
    state = read_state(str(tmp_path / "t"), since="0")
    assert ids(state) == [1, 3, 12]
    assert state.schema.names == ["id"]
    assert [(len(a), len(r), len(c), d) for _, a, r, c, d in steps(state)] == [(1, 1, 0, True)]


def test_files_of_a_shallow_clone_are_where_the_other_table_has_them(tmp_path: Path) -> None:
    original = tmp_path / "the original"
    file = parquet(original / "a%b c.parquet", {"id": [1, 2]})
    [vector] = stored_vectors(original, [[0]], absolute=f"file:{original}/".replace(" ", "%20"))
    for number, place in enumerate(("file:///", "file:/")):
        path = f"{place}{original}/a%25b%20c.parquet".replace(" ", "%20").replace("//" + str(tmp_path), str(tmp_path))
        file["add"] |= {"path": path, "deletionVector": vector}
        commit(tmp_path / f"{number}", 0, VECTORS, IDS, file)
        state = read_state(str(tmp_path / f"{number}"))
        assert [one.uri for one in state.files] == [str(original / "a%b c.parquet")]
        assert ids(state) == [2]


def test_a_file_that_nothing_here_can_read_is_named(tmp_path: Path) -> None:
    commit(tmp_path, 0, PLAIN, IDS, added("dbfs:/mnt/table/1.parquet"))
    with pytest.raises(SpecError, match=r"dbfs:/mnt/table/1\.parquet"):
        read_state(str(tmp_path))


# Deletion vectors


def test_deletion_vectors_are_honoured_wherever_they_are_kept(tmp_path: Path) -> None:
    table = tmp_path / "t"
    files = [parquet(table / f"{n}.parquet", {"id": range(10 * n, 10 * n + 10)}) for n in range(5)]
    vectors = [
        inline_vector([0, 9]),
        *stored_vectors(table, [[1, 2], [5]]),
        *stored_vectors(table, [range(10)], prefix="ab"),
        *stored_vectors(tmp_path / "else where", [[3]], absolute=f"file://{tmp_path}/else%20where/"),
    ]
    for file, vector in zip(files, vectors, strict=True):
        file["add"]["deletionVector"] = vector
    commit(table, 0, VECTORS, IDS, *files)
    state = read_state(str(table))
    dead = [0, 9, 11, 12, 25, *range(30, 40), 43]
    assert ids(state) == sorted(set(range(50)) - set(dead))
    assert [len(file.deleted) for file in state.files] == [2, 2, 1, 10, 1]
    assert [file.rows for file in state.files] == [10] * 5
    assert all(file.deleted.dtype == np.int64 for file in state.files)


def test_vectors_of_one_file_take_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.local import LocalFileSystem

    files = three_files(tmp_path)
    for file, vector in zip(files, stored_vectors(tmp_path, [[0], [1], [2]]), strict=True):
        file["add"]["deletionVector"] = vector
    commit(tmp_path, 0, VECTORS, IDS, *files)
    asked, real = [], LocalFileSystem.cat_file
    monkeypatch.setattr(
        LocalFileSystem, "cat_file", lambda self, path, *more, **how: asked.append(path) or real(self, path, *more)
    )
    assert ids(read_state(str(tmp_path))) == [1, 2, 3, 5, 6, 7]
    assert len([path for path in asked if path.endswith(".bin")]) == 1


@pytest.mark.parametrize("damage", ["checksum", "count", "kind", "cut"])
def test_a_damaged_deletion_vector_is_never_taken_for_none(tmp_path: Path, damage: str) -> None:
    file = parquet(tmp_path / "1.parquet", {"id": range(10)})
    [vector] = stored_vectors(tmp_path, [[1, 2]])
    [stored] = tmp_path.glob("*.bin")
    if damage == "count":
        vector["cardinality"] = 3
    elif damage == "kind":
        vector["storageType"] = "x"
    else:
        raw = stored.read_bytes()
        stored.write_bytes(raw[:-1] if damage == "cut" else raw[:20] + bytes([raw[20] ^ 1]) + raw[21:])
    file["add"]["deletionVector"] = vector
    commit(tmp_path, 0, VECTORS, IDS, file)
    with pytest.raises(SpecError, match="deletion vector"):
        read_state(str(tmp_path))


def test_a_file_whose_vector_grows_is_changed_and_neither_added_nor_removed(tmp_path: Path) -> None:
    file = parquet(tmp_path / "1.parquet", {"id": range(5)})
    first, second = stored_vectors(tmp_path, [[0], [0, 1]])
    size = file["add"]["size"]
    commit(tmp_path, 0, VECTORS, IDS, file)
    commit(tmp_path, 1, added("1.parquet", size, rows=5, deletionVector=first), removed("1.parquet"))
    commit(
        tmp_path, 2,
        removed("1.parquet", deletionVector=first), added("1.parquet", size, rows=5, deletionVector=second),
    )  # fmt: skip
    commit(tmp_path, 3, removed("1.parquet", deletionVector=second), added("1.parquet", size, rows=5))
    state = read_state(str(tmp_path), since="0")
    assert steps(state) == [(str(n), [], [], ["1.parquet"], True) for n in (1, 2, 3)]
    assert [ids(read_state(str(tmp_path), version=str(n))) for n in range(4)] == [
        [0, 1, 2, 3, 4], [1, 2, 3, 4], [2, 3, 4], [0, 1, 2, 3, 4],
    ]  # fmt: skip


def test_removing_a_file_with_another_vector_leaves_the_one_that_is_there(tmp_path: Path) -> None:
    file = parquet(tmp_path / "1.parquet", {"id": range(5)})
    first, second = stored_vectors(tmp_path, [[0], [0, 1]])
    file["add"]["deletionVector"] = second
    commit(tmp_path, 0, VECTORS, IDS, file)
    commit(tmp_path, 1, removed("1.parquet"))
    commit(tmp_path, 2, removed("1.parquet", deletionVector=first))
    state = read_state(str(tmp_path), since="0")
    assert ids(state) == [2, 3, 4]
    assert steps(state) == [("1", [], [], [], False), ("2", [], [], [], False)]


# Names and types


def nested(name: str, *fields: dict[str, Any], **known: Any) -> dict[str, Any]:
    return column(name, {"type": "struct", "fields": list(fields)}, **known)


def test_columns_mapped_by_name_are_found_whatever_they_are_called_now(tmp_path: Path) -> None:
    inner = pa.array([{"col-y": 1}, {"col-y": 2}])
    file = parquet(tmp_path / "1.parquet", {"id": [1, 2], "col-x": ["a", "b"], "col-s": inner, "dropped": [0, 0]})
    file["add"]["partitionValues"] = {"col-p": "7"}
    columns = [
        mapped("number", "id", 1),
        mapped("dropped", "col-new", 9),
        mapped("text", "col-x", 2, "string"),
        mapped("struct", "col-s", 3, {"type": "struct", "fields": [mapped("y", "col-y", 4)]}),
        mapped("part", "col-p", 5, "integer"),
    ]
    settings = {"columnMapping__mode": "name"}
    commit(tmp_path, 0, protocol(reader=2), metadata(*columns, by=["part"], **settings), file)
    state = read_state(str(tmp_path))
    assert state.files[0].constants == {"part": 7}
    assert state.schema.field("struct").type.field("y").metadata == {b"stint.names": b'["col-y"]'}
    assert [field.metadata for field in state.schema][:2] == [
        {b"stint.names": b'["id"]'}, {b"stint.names": b'["col-new"]'},
    ]  # fmt: skip
    rows = live_rows(read_state(str(tmp_path), columns=["number"]))
    assert [(row["number"], row["dropped"], row["text"], row["part"]) for row in rows] == [
        (1, None, "a", 7), (2, None, "b", 7),
    ]  # fmt: skip


def test_columns_mapped_by_number_are_found_by_it(tmp_path: Path) -> None:
    fields = [
        pa.field("anything", pa.int64(), metadata={"PARQUET:field_id": "7"}),
        pa.field("col-8", pa.int64(), metadata={"PARQUET:field_id": "9"}),
    ]
    file = parquet(tmp_path / "1.parquet", pa.table([[1, 2], [3, 4]], schema=pa.schema(fields)))
    columns = [mapped("seven", "col-7", 7), mapped("eight", "col-9", 9)]
    commit(tmp_path, 0, protocol("columnMapping"), metadata(*columns, columnMapping__mode="id"), file)
    state = read_state(str(tmp_path))
    assert state.schema.field("seven").metadata[b"PARQUET:field_id"] == b"7"
    assert live_rows(state) == [{"seven": 1, "eight": 3}, {"seven": 2, "eight": 4}]


def test_a_mapping_that_the_protocol_does_not_speak_of_is_none(tmp_path: Path) -> None:
    columns = metadata(mapped("id", "col-1", 1), columnMapping__mode="name")
    commit(tmp_path, 0, PLAIN, columns, parquet(tmp_path / "1.parquet", {"id": [5]}))
    assert ids(read_state(str(tmp_path))) == [5]


def test_types_that_became_wider_are_those_of_now(tmp_path: Path) -> None:
    def wider(name: str, *kinds: str) -> dict[str, Any]:
        changes = [{"fromType": one, "toType": other} for one, other in pairwise(kinds)]
        return column(name, kinds[-1], **{"delta.typeChanges": changes})

    old = pa.table(
        {
            "a": pa.array([1], pa.int16()),
            "b": pa.array([1.5], pa.float32()),
            "c": [date(2026, 1, 2)],
            "d": pa.array([Decimal("1.5")], pa.decimal128(4, 1)),
        }
    )
    columns = [
        wider("a", "short", "integer", "long"),
        wider("b", "float", "double"),
        wider("c", "date", "timestamp_ntz"),
        wider("d", "decimal(4,1)", "decimal(10, 4)"),
        wider("p", "integer", "long"),
    ]
    file = parquet(tmp_path / "1.parquet", old)
    file["add"]["partitionValues"] = {"p": "3"}
    commit(tmp_path, 0, protocol("typeWidening"), metadata(*columns, by=["p"]), file)
    assert live_rows(read_state(str(tmp_path))) == [
        {"a": 1, "b": 1.5, "c": datetime(2026, 1, 2), "d": Decimal("1.5000"), "p": 3}
    ]


def test_a_change_of_type_that_is_not_known_is_refused(tmp_path: Path) -> None:
    changes = [{"fromType": "integer", "toType": "string"}]
    commit(tmp_path, 0, protocol("typeWidening"), metadata(column("a", "string", **{"delta.typeChanges": changes})))
    with pytest.raises(SpecError, match="the column a is of type string that was integer"):
        read_state(str(tmp_path))


def test_every_type_of_the_protocol_has_one_of_arrow(tmp_path: Path) -> None:
    kinds: list[Any] = [
        *("string", "long", "integer", "short", "byte", "float", "double", "boolean", "binary", "date"),
        *("timestamp", "timestamp_ntz", "decimal(38,18)"),
        {"type": "array", "elementType": "long", "containsNull": False},
        {"type": "map", "keyType": "string", "valueType": "double", "valueContainsNull": True},
    ]
    columns = [column("nothing", "void"), *(column(f"c{number}", kind) for number, kind in enumerate(kinds))]
    commit(tmp_path, 0, protocol("timestampNtz"), metadata(*columns))
    found = [field.type for field in read_state(str(tmp_path)).schema]
    assert found[4] == pa.int8()
    assert found[12] == pa.decimal128(38, 18)
    assert found[13].value_type == pa.int64()
    assert found[14].item_type == pa.float64()
    assert len(found) == len(kinds)


# What is refused


@pytest.mark.parametrize(
    ("listed", "named"),
    [
        (protocol("deletionVectors", "fooBar", "catalogManaged"), "catalogManaged, fooBar"),
        (protocol(reader=4), "reader version 4"),
    ],
)
def test_what_readers_must_know_and_we_do_not_is_refused_by_name(
    tmp_path: Path, listed: dict[str, Any], named: str
) -> None:
    commit(tmp_path, 0, listed, IDS)
    with pytest.raises(SpecError, match=named) as raised:
        read_state(str(tmp_path))
    assert "DROP FEATURE" in raised.value.next_step


def test_a_type_that_is_not_read_is_refused_only_where_it_is_read(tmp_path: Path) -> None:
    file = parquet(tmp_path / "1.parquet", {"id": [1]})
    features = protocol("variantType", "variantShredding-preview")
    commit(tmp_path, 0, features, metadata(column("id"), column("v", "variant")), file)
    for columns in ([], ["id", "v"]):
        with pytest.raises(SpecError, match="the column v is of type variant"):
            read_state(str(tmp_path), columns=columns)
    state = read_state(str(tmp_path), columns=["id"])
    assert live_rows(state) == [{"id": 1}]


def test_a_table_of_other_files_is_refused(tmp_path: Path) -> None:
    other = metadata(column("id"))
    other["metaData"]["format"]["provider"] = "orc"
    commit(tmp_path, 0, PLAIN, other)
    with pytest.raises(SpecError, match="files of orc"):
        read_state(str(tmp_path))


def test_nothing_and_no_table_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NothingThere):
        read_state(str(tmp_path / "nowhere"))
    for empty in ("", "_delta_log"):
        (tmp_path / empty).mkdir(exist_ok=True)
        with pytest.raises(SpecError, match="not a Delta table") as raised:
            read_state(str(tmp_path))
        assert not isinstance(raised.value, NothingThere)


def test_a_damaged_log_is_told(tmp_path: Path) -> None:
    commit(tmp_path, 0, PLAIN, IDS)
    (tmp_path / "_delta_log" / f"{1:020}.json").write_text('{"add":{"path":')
    with pytest.raises(SpecError, match=r"00001\.json is damaged"):
        read_state(str(tmp_path))
    (tmp_path / "_delta_log" / f"{1:020}.checkpoint.parquet").write_bytes(b"PAR1PAR1")
    with pytest.raises(SpecError, match="is not a checkpoint"):
        read_state(str(tmp_path))


# Versions


def written(milliseconds: int, **more: int) -> dict[str, Any]:
    return noted(timestamp=milliseconds, **more)


def test_versions_are_pinned_by_number(tmp_path: Path) -> None:
    files = three_files(tmp_path)
    for number, file in enumerate(files):
        commit(tmp_path, number, *([PLAIN, IDS] if not number else []), written(1000 * number + 1000), file)
    state = read_state(str(tmp_path), version="1")
    assert (state.version, ids(state)) == ("1", [0, 1, 2, 3, 4, 5])
    assert state.at == datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)
    assert state.id == "the-table"
    for wrong in ("3", "-1", "main"):
        with pytest.raises(SpecError, match=f"has no version {wrong}") as raised:
            read_state(str(tmp_path), version=wrong)
        assert "the newest is 2" in raised.value.next_step


def test_the_last_version_before_a_moment_goes_by_what_writers_say_though_the_log_was_copied(tmp_path: Path) -> None:
    moments = [datetime(2026, 1, day, 12, tzinfo=UTC) for day in (1, 2, 2, 4)]
    for number, moment in enumerate(moments):
        commit(tmp_path / "t", number, *([PLAIN, IDS] if not number else []), written(int(moment.timestamp() * 1000)))
    shutil.copytree(tmp_path / "t", tmp_path / "copy", copy_function=shutil.copyfile)

    def of(day: int, hour: int = 0) -> str:
        return read_state(str(tmp_path / "copy"), before=datetime(2026, 1, day, hour, tzinfo=UTC)).version

    assert [of(2), of(2, 13), of(3), of(4), of(4, 12), of(5)] == ["0", "2", "2", "2", "2", "3"]
    with pytest.raises(NothingThere, match="no version from before 2026-01-01 12:00 UTC") as raised:
        of(1, 12)
    assert "its log begins with version 0, of 2026-01-01 12:00 UTC" in raised.value.next_step


def test_the_time_in_the_commit_goes_before_that_of_the_writer_and_that_before_the_files(tmp_path: Path) -> None:
    commit(tmp_path, 0, written(5000, inCommitTimestamp=7000), PLAIN, IDS)
    assert read_state(str(tmp_path)).at.timestamp() == 7
    commit(tmp_path, 1, PLAIN)
    os.utime(tmp_path / "_delta_log" / f"{1:020}.json", (9, 9))
    assert read_state(str(tmp_path)).at == datetime(1970, 1, 1, 0, 0, 9, tzinfo=UTC)


@pytest.mark.parametrize("kind", ["classic", "parts", "json", "parquet"])
def test_checkpoints_of_every_kind_stand_for_the_log_before_them(tmp_path: Path, kind: str) -> None:
    files = three_files(tmp_path)
    [vector] = stored_vectors(tmp_path, [[1]])
    files[1]["add"] |= {"deletionVector": vector, "partitionValues": {"p": "x"}}
    columns = metadata(mapped("id", "id", 1), mapped("p", "p", 2, "string"), by=["p"], columnMapping__mode="name")
    features = protocol("deletionVectors", "v2Checkpoint", "columnMapping")
    actions = [features, columns, files[0], files[1], removed("gone.parquet")]
    commit(tmp_path, 8, written(8000))
    checkpoint(
        tmp_path, 8, actions,
        parts=3 if kind == "parts" else 1, sidecars=kind if kind in ("json", "parquet") else "",
    )  # fmt: skip
    state = read_state(str(tmp_path))
    assert (state.version, state.at.timestamp()) == ("8", 8)
    assert sorted((row["id"], row["p"]) for row in live_rows(state)) == [
        (0, None), (1, None), (2, None), (3, "x"), (5, "x"),
    ]  # fmt: skip
    commit(tmp_path, 9, files[2], removed("0.parquet"))
    assert ids(read_state(str(tmp_path))) == [3, 5, 6, 7, 8]
    with pytest.raises(SpecError, match="version 7 cannot be put together"):
        read_state(str(tmp_path), version="7")


def test_a_checkpoint_of_which_a_part_is_missing_is_passed_over(tmp_path: Path) -> None:
    files = three_files(tmp_path)
    commit(tmp_path, 0, PLAIN, IDS, files[0])
    commit(tmp_path, 1, files[1])
    checkpoint(tmp_path, 1, [PLAIN, IDS, *files], parts=2)
    [part, _] = sorted((tmp_path / "_delta_log").glob("*.checkpoint.*"))
    part.unlink()
    (tmp_path / "_delta_log" / f"{1:020}.checkpoint.parquet").touch()
    assert ids(read_state(str(tmp_path))) == [0, 1, 2, 3, 4, 5]


def test_a_log_with_a_gap_is_told(tmp_path: Path) -> None:
    commit(tmp_path, 0, PLAIN, IDS)
    commit(tmp_path, 2, noted())
    with pytest.raises(SpecError, match="version 2 cannot be put together"):
        read_state(str(tmp_path))


def test_a_commit_that_is_not_written_yet_is_none_and_an_empty_one_is_one(tmp_path: Path) -> None:
    commit(tmp_path, 0, PLAIN, IDS)
    commit(tmp_path, 1)
    assert read_state(str(tmp_path)).version == "0"
    commit(tmp_path, 2, *three_files(tmp_path))
    assert ids(read_state(str(tmp_path))) == list(range(9))


# Commits


def test_a_compaction_changes_no_data_and_a_rewrite_does(tmp_path: Path) -> None:
    made = DeltaMaker(tmp_path)
    made.append({1: 0, 2: 0})
    made.append({3: 0})
    since = made.version
    made.compact()
    made.update([2], 5)
    made.nothing()
    state = read_state(made.url, since=str(since))
    assert [(len(a), len(r), len(c), d) for _, a, r, c, d in steps(state)] == [
        (1, 2, 0, False), (1, 1, 0, True), (0, 0, 0, False),
    ]  # fmt: skip


def test_history_is_read_from_the_version_on_that_was_asked_for(tmp_path: Path) -> None:
    files = three_files(tmp_path)
    for number in range(8):
        (tmp_path / "_delta_log").mkdir(exist_ok=True)
        (tmp_path / "_delta_log" / f"{number:020}.json").write_text("{damaged")
    [vector] = stored_vectors(tmp_path, [[1]])
    changed = added("1.parquet", files[1]["add"]["size"], deletionVector=vector, rows=3)
    commit(tmp_path, 8, removed("1.parquet"), changed)
    commit(tmp_path, 9, removed("0.parquet"), files[2])
    commit(tmp_path, 10, removed("2.parquet", data_change=False), added("3.parquet", data_change=False))
    checkpoint(tmp_path, 10, [VECTORS, IDS, changed, added("3.parquet")])
    commit(tmp_path, 11, added("4.parquet"))
    assert steps(read_state(str(tmp_path), since="7")) == [
        ("8", [], [], ["1.parquet"], True),
        ("9", ["2.parquet"], ["0.parquet"], [], True),
        ("10", ["3.parquet"], ["2.parquet"], [], False),
        ("11", ["4.parquet"], [], [], True),
    ]
    assert steps(read_state(str(tmp_path), since="10")) == [("11", ["4.parquet"], [], [], True)]
    assert read_state(str(tmp_path), since="11").commits == ()
    assert read_state(str(tmp_path)).commits == ()


def test_a_history_that_does_not_lead_here_is_none(tmp_path: Path) -> None:
    commit(tmp_path, 8, PLAIN)
    checkpoint(tmp_path, 8, [PLAIN, IDS])
    commit(tmp_path, 9, noted())
    state = read_state(str(tmp_path), since="7")
    assert [one.version for one in state.commits or ()] == ["8", "9"]
    assert read_state(str(tmp_path), since="6").commits is None
    assert read_state(str(tmp_path), since="10").commits is None
    assert read_state(str(tmp_path), since="9", version="8").commits is None
    assert read_state(str(tmp_path), since="main").commits is None


def test_a_file_that_is_named_anew_with_the_same_rows_is_not_added(tmp_path: Path) -> None:
    files = three_files(tmp_path)
    commit(tmp_path, 0, PLAIN, IDS, *files[:2])
    commit(tmp_path, 1, added("0.parquet", files[0]["add"]["size"], rows=3, data_change=False, baseRowId=0))
    commit(tmp_path, 2, removed("never.parquet"))
    state = read_state(str(tmp_path), since="0")
    assert steps(state) == [("1", [], [], [], False), ("2", [], [], [], False)]
    assert ids(state) == [0, 1, 2, 3, 4, 5]


def test_a_commit_may_change_data_in_a_part_of_its_files(tmp_path: Path) -> None:
    files = three_files(tmp_path)
    commit(tmp_path, 0, PLAIN, IDS, files[0])
    files[1]["add"]["dataChange"] = False
    commit(tmp_path, 1, removed("0.parquet", data_change=False), files[1], files[2])
    assert steps(read_state(str(tmp_path), since="0")) == [
        ("1", ["1.parquet", "2.parquet"], ["0.parquet"], [], True)
    ]  # fmt: skip


def test_a_restore_goes_back_behind_the_version_that_was_asked_for(tmp_path: Path) -> None:
    made = DeltaMaker(tmp_path)
    made.append({1: 0, 2: 0})
    old = made.version
    made.delete_by_vector([1])
    made.overwrite({5: 5})
    since = read_state(made.url)
    made.restore(old)
    state = read_state(made.url, since=since.version)
    assert in_order(live_rows(state)) == made.live()
    [step] = state.commits or ()
    assert step.data_change
    assert folded(since, [step]) == {file.uri for file in state.files}


def test_another_table_in_the_same_place_has_another_id(tmp_path: Path) -> None:
    commit(tmp_path, 0, PLAIN, metadata(column("id"), table="first"))
    assert read_state(str(tmp_path)).id == "first"
    commit(tmp_path, 1, metadata(column("id"), table="second"))
    assert read_state(str(tmp_path)).id == "second"


# Stores


@pytest.mark.objectstore
def test_a_table_in_a_store_is_read(s3: str) -> None:
    url = f"{s3}/tables/the products"
    options = storage_options(url)
    for first in (0, 10):
        table = pa.table({"id": range(first, first + 10), "p": ["a b"] * 10})
        write_deltalake(object_store_url(url), table, partition_by=["p"], mode="append", storage_options=options)
    made = DeltaTable(object_store_url(url), storage_options=options)
    made.create_checkpoint()
    made.delete("id < 3")
    state = read_state(f"{url}/", since="0")
    assert ids(state) == list(range(3, 20))
    assert all(file.uri.startswith(f"{url}/p=a%20b/part-") for file in state.files)
    assert [(len(a), len(r)) for _, a, r, _, _ in steps(state)] == [(1, 0), (1, 1)]
    with pytest.raises(NothingThere):
        read_state(f"{s3}/tables/nothing")
    with pytest.raises(SpecError, match="not a Delta table"):
        read_state(f"{s3}/tables")


# Whatever comes


IDS_OF_ROWS = st.sets(st.integers(0, 12), max_size=6)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(["append", "merge", "overwrite", "delete", "delete_by_vector", "update"]), IDS_OF_ROWS
        ),
        st.tuples(
            st.sampled_from(["compact", "nothing", "vacuum", "expire", "checkpoint", "restore"]), st.integers(0, 9)
        ),
    ),
    min_size=1,
    max_size=7,
)


def do(made: DeltaMaker, step: tuple[str, Any], label: int) -> None:
    name, what = step
    if name == "restore":
        versions = sorted(made.history)
        made.restore(versions[what % len(versions)])
    elif name == "append":
        made.append({made.fresh(): label for _ in what})
    elif name in ("merge", "overwrite"):
        getattr(made, name)(dict.fromkeys(what, label))
    elif name == "update":
        made.update(what, label)
    elif name in ("delete", "delete_by_vector"):
        getattr(made, name)(what | {-1})
    else:
        getattr(made, name)()


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, at=st.integers(0, 6))
def test_whatever_becomes_of_a_table_its_live_rows_and_its_commits_are_told(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, Any]], at: int
) -> None:
    made = DeltaMaker(tmp_path_factory.mktemp("table") / "t")
    made.append(dict.fromkeys(range(6), 0))
    states = [read_state(made.url)]
    for label, step in enumerate(steps, 1):
        do(made, step, label)
        states.append(read_state(made.url))
        assert in_order(live_rows(states[-1])) == made.live()
    before, now = states[min(at, len(states) - 1)], states[-1]
    commits = read_state(made.url, since=before.version).commits
    if commits is None:
        assert any(name == "expire" for name, _ in steps)
        return
    assert folded(before, commits) == {file.uri for file in now.files}
    stayed: dict[str, list[int]] = {file.uri: file.deleted.tolist() for file in before.files}
    touched = {uri for one in commits for uri in one.added | one.removed | one.changed}
    for file in now.files:
        if file.uri in stayed and file.uri not in touched:
            assert file.deleted.tolist() == stayed[file.uri]
    if not any(one.data_change for one in commits):
        assert in_order(live_rows(before)) == in_order(live_rows(now))
