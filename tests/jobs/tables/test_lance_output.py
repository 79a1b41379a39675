"""Predictions in a Lance table: each edition once, whoever writes at the same time and wherever a run dies."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import lance
import pyarrow as pa
import pytest
from lance import LanceDataset, LanceOperation
from lance.commit import CommitConflictError

from jobs.errors import SpecError
from jobs.tables.lance import read_state
from jobs.tables.lance_output import LanceOutput
from jobs.tables.target import Change, Portion, RowFile, TableMoved
from tests.jobs.tables.lance_outputs import (
    SCHEMA,
    Editions,
    commit,
    expected,
    held,
    local,
    no_copy,
    plan_of,
    rows_of,
    without,
    written,
)
from tests.objectstore.backends import Backend
from tests.objectstore.fault_proxy import Answered, Fault, FaultProxy, LostAnswer, Request
from workers.output import output_schema
from workers.storage.access import storage_options
from workers.storage.errors import StoreDenied, StoreError

M = "m-1"
EVERYTHING = timedelta(0)
Op = Callable[[LanceDataset], Any]


@pytest.fixture
def place(tmp_path: Path) -> tuple[str, str, LanceOutput]:
    return local(tmp_path)


def by_others(*ids: int) -> pa.Table:
    """Rows of another writer, who has no plans."""
    return rows_of(ids).select(["id", "label"])


def test_an_edition_is_added_dropped_and_trimmed_in_one_commit(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    assert table.read() == 0
    assert table.rows() == {}
    commit(table, 1, Change([*plan_of(out, 1, range(20)), *plan_of(out, 2, range(20, 30))]))
    assert table.read() == 1
    assert table.rows() == {(M, 1): 20, (M, 2): 10}
    before = lance.dataset(url).version
    trimmed = {Portion(M, 1): without([3, 4, 19]), Portion(M, 9): without([1])}
    commit(table, 5, Change(plan_of(out, 3, range(30, 35)), [Portion(M, 2), Portion("other", 1)], trimmed))
    assert lance.dataset(url).version == before + 1
    assert table.read() == 5
    assert held(url) == expected((M, 1, {*range(20)} - {3, 4, 19}), (M, 3, range(30, 35)))
    commit(table, 6, Change(trimmed={Portion(M, 1): without(range(20)), Portion(M, 3): without([1000])}))
    assert held(url) == expected((M, 3, range(30, 35)))
    assert [one.num_deletions for one in lance.dataset(url).get_fragments()] == [0]  # what is empty has left
    commit(table, 7, Change(dropped=[Portion(M, 3)]))
    assert table.read() == 7
    assert table.rows() == {}
    commit(table, 8, Change(plan_of(out, 4, range(5))))
    assert held(url) == expected((M, 4, range(5)))
    assert lance.dataset(url).has_stable_row_ids


def test_rows_are_those_of_the_objects(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    commit(table, 1, Change(plan_of(out, 1, range(3000), files=1)))
    found = lance.dataset(url).to_table()
    assert found.drop(["model", "plan"]).equals(rows_of(range(3000)).cast(found.drop(["model", "plan"]).schema))
    assert found.schema.field("model").type == pa.string()
    assert found.schema.field("plan").type == pa.int32()


def test_parts_mixed_in_one_fragment_are_told_apart(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    many = [file for plan in range(1, 6) for file in plan_of(out, plan, range(plan * 10, plan * 10 + 10))]
    commit(table, 1, Change([*many, *plan_of(out, 1, range(100, 110), "it's-2")]))
    lance.dataset(url).delete("id IN (21, 31, 41)")
    lance.dataset(url).optimize.compact_files()
    lance.dataset(url).delete("id IN (22, 32, 42)")
    gone = {Portion(M, 2): without([23]), Portion(M, 3): without([33]), Portion("it's-2", 1): without([101])}
    commit(table, 2, Change(dropped=[Portion(M, 1), Portion(M, 5)], trimmed=gone))
    left = [(M, 2, {*range(20, 30)} - {21, 22, 23}), (M, 3, {*range(30, 40)} - {31, 32, 33})]
    left += [(M, 4, {*range(40, 50)} - {41, 42}), ("it's-2", 1, {*range(100, 110)} - {101})]
    assert held(url) == expected(*left)
    assert table.read() == 2
    assert sum(table.rows().values()) == len(held(url))
    lance.dataset(url).validate()


def test_indices_tags_columns_and_rows_of_others_stay(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    commit(table, 1, Change(plan_of(out, 1, range(20))))
    theirs = lance.dataset(url)
    theirs.create_scalar_index("id", "BTREE")
    theirs.add_columns({"twice": "id * 2"})
    theirs.update({"label": "'seen'"}, where="id = 5")
    lance.write_dataset(by_others(900, 901), url, mode="append")
    theirs = lance.dataset(url)
    theirs.update_config({"some": "thing"})
    theirs.tags.create("before", theirs.version)
    ids = dict(zip(*lance.dataset(url).to_table(["id"], with_row_id=True).to_pydict().values(), strict=True))
    commit(table, 2, Change(plan_of(out, 2, range(20, 30)), trimmed={Portion(M, 1): without([0, 1])}))
    now = lance.dataset(url)
    assert [one.name for one in now.describe_indices()] == ["id_idx"]
    assert now.config() == {"some": "thing"}
    assert lance.dataset(url, version="before").count_rows() == 22
    assert now.to_table(["id"], filter="id IN (1, 2, 25, 900)")["id"].to_pylist() == [2, 900, 25]
    assert now.to_table(["label", "twice"], filter="id = 5").to_pylist() == [{"label": "seen", "twice": 10}]
    assert now.to_table(["twice"], filter="plan = 2")["twice"].null_count == 10
    rows = now.to_table(["id"], with_row_id=True).to_pydict()
    kept = dict(zip(rows["id"], rows["_rowid"], strict=True))
    assert {n: kept[n] for n in ids if n > 1} == {n: row for n, row in ids.items() if n > 1}
    assert len({*kept.values()}) == len(kept)


def test_columns_come_and_stay_away_by_root(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    commit(table, 1, Change(plan_of(out, 1, range(4))))
    embed = output_schema("embed", [pa.field("id", pa.int32()), pa.field("shop", pa.string())])
    commit(table, 2, Change([written(out, Portion("e-2", 1), 0, rows_of(range(4, 6), embed))]), embed)
    rows = lance.dataset(url).to_table().to_pylist()
    assert [row["embedding"] for row in rows] == [None] * 4 + [[2.0, None, 1.0], [2.5, None, 1.0]]
    assert [row["label"] for row in rows] == ["class 0", "class 2", "class 1", "class 3", None, None]
    assert [row["id"] for row in rows] == [0, 2, 1, 3, 4, 5]
    assert lance.dataset(url).schema.field("id").type == pa.int64()
    wider = output_schema("classify", [pa.field("id", pa.string())])
    with pytest.raises(SpecError, match="has id: int64, which predictions do not fill"):
        commit(table, 3, Change(plan_of(out, 2, range(3))), wider)
    assert table.read() == 2


def test_a_table_of_somebody_else_gets_the_rows_and_columns(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    lance.write_dataset(by_others(7, 8), url)
    assert table.read() == 0
    assert table.rows() == {}
    commit(table, 1, Change(plan_of(out, 1, range(4))))
    assert held(url) == expected((M, 1, range(4)))
    assert lance.dataset(url).count_rows() == 6


@pytest.mark.parametrize(
    ("field", "named"),
    [
        (pa.field("took", pa.month_day_nano_interval()), "'took' of type month_day_nano_interval"),
        (pa.field("price", pa.decimal32(5, 2)), "'price' of type decimal32"),
        (pa.field("of", pa.struct([("some", pa.list_view(pa.int8()))])), "'of' of type struct"),
        (pa.field("a.b", pa.int8()), "'a.b' of type int8: .*cannot contain `.`"),
        (pa.field("_rowid", pa.int64()), "'_rowid' of type int64: .*reserved name"),
    ],
)
def test_what_lance_has_no_column_for_is_refused_by_name(
    field: pa.Field, named: str, place: tuple[str, str, LanceOutput]
) -> None:
    _, url, table = place
    with pytest.raises(SpecError, match=named) as refused:
        commit(table, 1, Change(), output_schema("classify", [field]))
    assert refused.value.next_step
    assert not Path(url).exists()


def test_key_columns_of_any_other_type_come_back_as_they_were(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    values: dict[pa.DataType, list[Any]] = {
        pa.uint64(): [2**64 - 1, None],
        pa.float16(): [1.5, None],
        pa.decimal128(38, 10): [None, Decimal(1)],
        pa.decimal256(60, 2): [Decimal(12), None],
        pa.time64("ns"): [5, None],
        pa.timestamp("ns", "Europe/Berlin"): [5, None],
        pa.date64(): [86400000, None],
        pa.duration("ms"): [7, None],
        pa.large_string(): ["ä", None],
        pa.binary(3): [b"abc", None],
        pa.bool_(): [True, None],
        pa.null(): [None, None],
        pa.list_(pa.struct([("a", pa.int8()), ("b", pa.string())])): [[{"a": 1, "b": None}, None], None],
        pa.struct([("a", pa.list_(pa.float64()))]): [{"a": [1.0, None]}, None],
        pa.map_(pa.string(), pa.int32()): [[("k", 1)], None],
        pa.list_(pa.int16(), 2): [[1, 2], None],
    }
    keys = [pa.field(f"key {n}", kind) for n, kind in enumerate(values)]
    schema = output_schema("classify", keys)
    rows = rows_of([0, 1], schema)
    for n, (kind, cells) in enumerate(values.items()):
        rows = rows.set_column(rows.schema.get_field_index(f"key {n}"), keys[n], pa.array(cells, kind))
    commit(table, 1, Change([written(out, Portion(M, 1), 0, rows)]), schema)
    found = lance.dataset(url).to_table([field.name for field in keys])
    assert [field.type for field in found.schema] == [*values]
    assert found.equals(rows.select(found.column_names))


def test_a_table_that_cannot_take_nulls_is_refused(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    lance.write_dataset(pa.table([[1]], schema=pa.schema([pa.field("must", pa.int64(), nullable=False)])), url)
    with pytest.raises(SpecError, match="has must: int64, which predictions do not fill"):
        commit(table, 1, Change(plan_of(out, 1, range(4))))


def test_a_table_that_has_lost_its_number_is_not_added_to(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    commit(table, 1, Change(plan_of(out, 1, range(4))))
    rows = lance.dataset(url).to_table()
    lance.write_dataset(rows, url, mode="overwrite")
    assert table.read() == 1  # what is written back as it was read has it
    lance.write_dataset(rows.replace_schema_metadata(None), url, mode="overwrite")
    with pytest.raises(SpecError, match="lost the number"):
        table.read()
    lance.write_dataset(rows.replace_schema_metadata(None).slice(0, 0), url, mode="overwrite")
    assert table.read() == 0


def test_a_damaged_or_missing_object_is_a_fault_and_nothing_is_added(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    commit(table, 1, Change(plan_of(out, 1, range(4))))
    good, bad = plan_of(out, 2, range(40))
    Path(bad.uri).write_bytes(b"PAR1 and no more")
    with pytest.raises(StoreError, match=r"00000001\.parquet is gone or damaged"):
        commit(table, 2, Change([good, bad]))
    Path(bad.uri).unlink()
    with pytest.raises(StoreError, match=r"00000001\.parquet is gone or damaged"):
        commit(table, 2, Change([good, bad]))
    with pytest.raises(StoreError, match="has 20 rows in place of 21"):
        commit(table, 2, Change([RowFile(good.uri, good.part, 21, good.size)]))
    assert table.read() == 1
    assert held(url) == expected((M, 1, range(4)))


def test_the_library_is_asked_for_where_it_is_missing(
    place: tuple[str, str, LanceOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lance", None)
    with pytest.raises(SpecError) as refused:
        place[2].read()
    assert refused.value.next_step == "pip install 'stint[lance]'"


MAINTENANCE: dict[str, Op] = {
    "append": lambda table: lance.write_dataset(by_others(900), table, mode="append"),
    "delete": lambda table: table.delete("id = 3"),
    "update": lambda table: table.update({"label": "'x'"}, where="id = 4"),
    "upsert": lambda table: (
        table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(by_others(5, 901))
    ),
    "compaction": lambda table: table.optimize.compact_files(),
    "add a column": lambda table: table.add_columns({"more": "id + 1"}),
    "add an empty column": lambda table: table.add_columns(pa.schema([pa.field("more", pa.int8())])),
    "drop a column": lambda table: table.drop_columns(["label"]),
    "rename": lambda table: table.alter_columns({"path": "score", "name": "points"}),
    "index": lambda table: table.create_scalar_index("id", "BTREE"),
    "config": lambda table: table.update_config({"a": "b"}),
    "schema metadata": lambda table: table.update_schema_metadata({"a": "b"}),
    "tag": lambda table: table.tags.create("now", table.version),
    "restore": lambda table: lance.dataset(table.uri, version=table.version - 1).restore(),
    "overwrite": lambda table: lance.write_dataset(table.to_table(), table, mode="overwrite"),
    "cleanup": lambda table: table.cleanup_old_versions(EVERYTHING),
    "nothing": lambda table: table,
}


Arrange = Callable[..., None]


def nothing() -> None:
    """In place of something."""


@pytest.fixture
def at_commit(monkeypatch: pytest.MonkeyPatch) -> Arrange:
    """Has something done right before the next commit of an edition, and right after it."""
    real = LanceDataset.commit

    def arrange(before: Callable[[], Any] = nothing, after: Callable[[], Any] = nothing) -> None:
        def wrapped(base: Any, operation: Any, *positional: Any, **named: Any) -> Any:
            if not isinstance(operation, LanceOperation.Merge):
                return real(base, operation, *positional, **named)
            monkeypatch.setattr(LanceDataset, "commit", staticmethod(real))
            before()
            done = real(base, operation, *positional, **named)
            after()
            return done

        monkeypatch.setattr(LanceDataset, "commit", staticmethod(wrapped))

    return arrange


@pytest.fixture
def editions(tmp_path: Path) -> Editions:
    """Two that are in the table, and a third one that adds and trims."""
    made, table = Editions(str(tmp_path)), LanceOutput(str(tmp_path / "predictions.lance"))
    made.add({Portion(M, 1): range(10)})
    made.sync(table)
    made.add({Portion(M, 1): range(10), Portion(M, 2): range(10, 20)})
    made.sync(table)
    made.add({Portion(M, 1): {*range(10)} - {1}, Portion(M, 2): {*range(10, 20)} - {11}, Portion(M, 3): range(20, 30)})
    return made


def alive(url: str, editions: Editions, *, gone: Collection[int] = ()) -> bool:
    """Whether the table has the rows of the last edition, but those that others deleted, each once."""
    lance.dataset(url).validate()
    return held(url) == [row for row in editions.rows() if row[2] not in gone]


@pytest.mark.parametrize("what", MAINTENANCE)
def test_others_between_our_last_look_and_the_commit(
    what: str, editions: Editions, place: tuple[str, str, LanceOutput], at_commit: Arrange
) -> None:
    _, url, table = place
    at_commit(lambda: MAINTENANCE[what](lance.dataset(url)))
    assert editions.sync(table) in (1, 2)
    assert alive(url, editions, gone={3} if what == "delete" else ())
    assert ("more" in lance.dataset(url).schema.names) == (what in ("add a column", "add an empty column"))
    if what in ("append", "upsert"):
        assert lance.dataset(url).count_rows("plan IS NULL") == 1
    assert lance.dataset(url).count_rows("plan = 3 AND label IS NOT NULL AND score IS NOT NULL") == 8


@pytest.mark.parametrize("what", MAINTENANCE)
def test_others_who_looked_before_our_commit_and_commit_after_it(
    what: str, editions: Editions, place: tuple[str, str, LanceOutput]
) -> None:
    _, url, table = place
    stale = lance.dataset(url)
    assert editions.sync(table) == 1
    refused = ""
    try:
        MAINTENANCE[what](stale)
    except OSError as error:
        refused = str(error)
    assert "onflict" in refused or not refused
    back = {"overwrite": 2, "restore": 1}.get(what, 3)
    assert table.read() == back
    assert editions.sync(table) == (back < 3)
    assert alive(url, editions, gone={3} if what == "delete" and not refused else ())


@pytest.mark.parametrize("error", [OSError("timed out"), CommitConflictError("lost"), ValueError("no answer")])
def test_a_lost_answer_is_no_second_commit(
    error: Exception, editions: Editions, place: tuple[str, str, LanceOutput], at_commit: Arrange
) -> None:
    _, url, table = place

    def lost() -> None:
        raise error

    at_commit(after=lost)
    held_before = table.read()
    with pytest.raises(TableMoved):
        table.commit(3, SCHEMA, editions.change(held_before, 3), no_copy)
    assert table.read() == 3
    assert alive(url, editions)


def test_rows_of_others_with_plans_in_a_table_that_was_made_just_now(
    place: tuple[str, str, LanceOutput], at_commit: Arrange
) -> None:
    out, url, table = place
    theirs = rows_of([900]).append_column("model", pa.array(["z"])).append_column("plan", pa.array([1], pa.int32()))
    at_commit(lambda: lance.write_dataset(theirs, url, mode="append"))
    commit(table, 1, Change(plan_of(out, 1, range(4))))
    assert held(url) == expected((M, 1, range(4)), ("z", 1, [900]))


def test_a_commit_that_fails_for_sure_is_a_fault(
    editions: Editions, place: tuple[str, str, LanceOutput], at_commit: Arrange
) -> None:
    _, url, table = place

    def fail() -> None:
        raise OSError("no space left on device")

    at_commit(fail)
    with pytest.raises(StoreError, match="no space left"):
        editions.sync(table)
    assert held(url) == editions.rows(2)
    editions.sync(table)
    assert alive(url, editions)


def test_another_run_of_ours_between_our_last_look_and_the_commit(
    editions: Editions, place: tuple[str, str, LanceOutput], at_commit: Arrange
) -> None:
    _, url, table = place
    at_commit(lambda: editions.sync(LanceOutput(url)))
    table.read()
    with pytest.raises(TableMoved, match="holds edition 3 in place of 2"):
        table.commit(3, SCHEMA, editions.change(2, 3), no_copy)
    assert alive(url, editions)
    with pytest.raises(TableMoved):  # also from an edition that is read no more
        LanceOutput(url).commit(1, SCHEMA, editions.change(0, 1), no_copy)
    assert alive(url, editions)


def test_another_run_whose_traces_are_cleaned_up_between_our_last_look_and_the_commit(
    editions: Editions, place: tuple[str, str, LanceOutput], at_commit: Arrange
) -> None:
    """Lance compares with the versions that are left, and this one lets any change through."""
    _, url, table = place

    def another() -> None:
        editions.sync(LanceOutput(url))
        lance.dataset(url).update_config({"a": "b"})
        lance.dataset(url).cleanup_old_versions(EVERYTHING)

    at_commit(another)
    table.read()
    with pytest.raises(TableMoved):
        table.commit(3, SCHEMA, editions.change(2, 3), no_copy)
    assert alive(url, editions)


def test_a_table_that_is_changed_all_the_time_is_left_for_later(
    editions: Editions, place: tuple[str, str, LanceOutput], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, url, table = place
    monkeypatch.setattr("jobs.tables.lance_output.LOOKS", 3)
    real = LanceOutput._kept

    def busy(self: LanceOutput, *given: Any) -> Any:
        lance.dataset(url).update_config({"a": "b"})
        return real(self, *given)

    monkeypatch.setattr(LanceOutput, "_kept", busy)
    table.read()
    with pytest.raises(TableMoved, match="changed by others all the time"):
        table.commit(3, SCHEMA, editions.change(2, 3), no_copy)


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.jobs.tables.lance_outputs"])


def dies(url: str, editions: Editions, moment: str) -> None:
    """A run that is killed."""
    real = LanceDataset.commit

    def kill(*given: Any, **named: Any) -> Any:
        strict = isinstance(given[1], LanceOperation.Merge) == (moment != "once it is made")
        if strict and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        done = real(*given, **named)
        if strict:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    LanceDataset.commit = staticmethod(kill)
    editions.sync(LanceOutput(url))


@pytest.mark.parametrize("moment", ["before", "after", "once it is made"])
def test_killed_at_any_moment_the_next_run_completes(moment: str, place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    editions = Editions(out)
    editions.add({Portion(M, 1): range(10)})
    killed = CONTEXT.Process(target=dies, args=(url, editions, moment))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert table.read() == (moment == "after")
    editions.sync(table)
    assert alive(url, editions)


def test_what_a_killed_maker_leaves_on_a_disk_is_no_table(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    (Path(url) / "_versions").mkdir(parents=True)
    assert table.read() == 0
    commit(table, 1, Change(plan_of(out, 1, range(4))))
    assert held(url) == expected((M, 1, range(4)))


def races(url: str, editions: Editions, environment: Mapping[str, str], barrier: Any, won: Any) -> None:
    """One of several runs that all add every edition."""
    os.environ.update(environment)
    table = LanceOutput(url)
    for number in range(1, editions.last + 1):
        barrier.wait()
        while (at := table.read()) < number:
            try:
                table.commit(number, SCHEMA, editions.change(at, number), no_copy)
            except TableMoved:
                continue
            won.put(number)
            break


def maintains(url: str, stop: Any, done: Any) -> None:
    """Somebody else, who does what one does to a table, all the time."""
    chosen, counts = random.Random(5), Counter[str]()
    usual = {name: op for name, op in MAINTENANCE.items() if name not in ("restore", "overwrite", "tag", "rename")}
    while not stop.wait(0.01):
        name = chosen.choice([*usual])
        try:
            usual[name](lance.dataset(url))
            counts[name] += 1
        except (OSError, ValueError):
            counts["refused"] += 1
    done.put(counts)


def raced(url: str, editions: Editions, runs: int, others: int) -> Counter[int]:
    """How many of the runs committed each edition."""
    barrier, won, done, stop = CONTEXT.Barrier(runs), CONTEXT.Queue(), CONTEXT.Queue(), CONTEXT.Event()
    ours = [CONTEXT.Process(target=races, args=(url, editions, dict(os.environ), barrier, won)) for _ in range(runs)]
    theirs = [CONTEXT.Process(target=maintains, args=(url, stop, done)) for _ in range(others)]
    for process in (*ours, *theirs):
        process.start()
    for process in ours:
        process.join()
        assert process.exitcode == 0
    stop.set()
    counts: Counter[str] = sum((done.get() for _ in theirs), Counter())
    for process in theirs:
        process.join()
    assert sum(counts.values()) >= 3 * others, counts
    return Counter(won.get() for _ in range(editions.last))


def a_year(out: str, nights: int) -> Editions:
    """Each night adds a plan, trims one and drops one."""
    editions = Editions(out)
    seen: dict[Portion, set[int]] = {}
    for night in range(1, nights + 1):
        seen[Portion(M, night)] = {*range(night * 100, night * 100 + 20)}
        if trimmed := seen.get(Portion(M, night - 1)):
            trimmed -= {(night - 1) * 100 + 7, (night - 1) * 100 + 8}
        seen.pop(Portion(M, night - 4), None)
        editions.add(seen)
    return editions


@pytest.mark.parametrize(("runs", "others"), [(8, 0), (3, 1)])
def test_of_runs_that_commit_the_same_editions_at_once_exactly_one_does(
    runs: int, others: int, place: tuple[str, str, LanceOutput]
) -> None:
    out, url, table = place
    editions = a_year(out, 8)
    assert raced(url, editions, runs, others) == dict.fromkeys(range(1, 9), 1)
    assert table.read() == 8
    deleted = {3} if others else set()
    assert alive(url, editions, gone=deleted)


def test_duckdb_and_our_own_reading_side_see_the_rows(place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    editions = a_year(out, 5)
    editions.sync(table)
    predictions = lance.dataset(url)  # as DuckDB finds it by its name
    assert duckdb.execute("SELECT model, plan, id FROM predictions ORDER BY ALL").fetchall() == editions.rows()
    counted = duckdb.execute("SELECT plan, count(*) FROM predictions WHERE model = 'm-1' GROUP BY ALL").fetchall()
    assert dict(counted) == {part.plan: rows for part, rows in table.rows().items()}
    assert predictions.count_rows("model = 'm-1' AND plan = 4") == 18
    state = read_state(url)
    assert sum((file.rows or 0) - len(file.deleted) for file in state.files) == len(editions.rows())
    assert state.commits == ()


@pytest.mark.parametrize("place", ["s3://bucket/a#1", "s3://bucket/what?/t.lance", "s3://bucket/a%20b"])
def test_a_place_that_lance_would_take_for_another_is_refused(place: str) -> None:
    with pytest.raises(SpecError, match="for parts of a URL"):
        LanceOutput(place).read()


@pytest.mark.objectstore
def test_a_table_on_a_server(s3: str) -> None:
    editions, url = a_year(s3, 4), f"{s3}/tables/a name.lance"
    table = LanceOutput(f"{url}/")
    assert table.read() == 0
    assert raced(url, editions, 3, 0) == dict.fromkeys(range(1, 5), 1)
    assert held(url, storage_options(url)) == editions.rows()
    assert table.read() == 4
    lance.dataset(url, storage_options=storage_options(url)).optimize.compact_files()
    editions.add({Portion(M, 9): range(900, 910)})
    assert editions.sync(table) == 1
    assert held(url, storage_options(url)) == editions.rows()


def manifests(request: Request) -> bool:
    return request.method == "PUT" and request.target.endswith(".manifest")


@pytest.mark.objectstore
def test_a_server_whose_answers_are_lost_and_one_that_refuses(
    ministack: Any, behind_proxy: Callable[[Backend], tuple[FaultProxy, str]]
) -> None:
    proxy, place = behind_proxy(ministack)
    editions, table = a_year(place, 3), LanceOutput(f"{place}/t.lance")
    editions.sync(table, 1)
    lost: list[Request] = []

    def once(request: Request) -> Fault | None:
        if lost or not manifests(request):
            return None
        lost.append(request)
        return LostAnswer()

    proxy.plan = once
    editions.sync(table, 2)
    assert len(lost) == 1
    proxy.plan = lambda request: Answered(403, REFUSAL) if request.method == "PUT" else None
    with pytest.raises(StoreDenied, match="lacked the necessary privileges"):
        editions.sync(table, 3)
    proxy.plan = lambda request: Answered(403, REFUSAL)
    with pytest.raises(StoreDenied):
        table.read()
    proxy.plan = lambda _: None
    assert table.read() == 2
    assert held(f"{place}/t.lance", storage_options(place)) == editions.rows(2)


REFUSAL = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Not you.</Message></Error>"


@pytest.mark.parametrize("seed", range(3))
def test_random_editions_among_random_maintenance(seed: int, place: tuple[str, str, LanceOutput]) -> None:
    out, url, table = place
    chosen, editions, deleted = random.Random(seed), Editions(out), set[int]()
    seen: dict[Portion, set[int]] = {}
    usual = [MAINTENANCE[name] for name in ("compaction", "index", "cleanup", "update", "append")]
    began = time.monotonic()
    for step in range(1, 40):
        if step > 5 and time.monotonic() - began > 2.5:
            break
        match chosen.randrange(3):
            case 0 if seen:
                del seen[chosen.choice([*seen])]
            case 1 if seen:
                part = chosen.choice([*seen])
                seen[part] = {n for n in seen[part] if chosen.random() < chosen.choice([0.2, 0.8])}
            case _:
                seen[Portion(chosen.choice([M, "n-2"]), step)] = {
                    *range(step * 1000, step * 1000 + chosen.randrange(1, 30))
                }
        seen = {part: ids for part, ids in seen.items() if ids}
        editions.add(seen)
        if chosen.random() < 0.8:
            editions.sync(table)
            assert alive(url, editions, gone=deleted)
            for _ in range(chosen.randrange(4)):
                chosen.choice(usual)(lance.dataset(url))
            if chosen.random() < 0.5 and (rows := held(url)):
                some = {row[2] for row in chosen.sample(rows, min(3, len(rows)))}
                lance.dataset(url).delete(f"id IN ({str([*some])[1:-1]})")
                deleted |= some
            assert alive(url, editions, gone=deleted)
            assert table.read() == editions.last
            assert sum(table.rows().values()) == len(held(url))
        table = LanceOutput(url) if chosen.random() < 0.5 else table
