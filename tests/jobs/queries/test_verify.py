"""The oracle has teeth: each kind of damage to the output is found and named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import DeltaTable, QueryBuilder

from jobs.cli import main
from jobs.queries import verify
from jobs.reader import done
from jobs.tables.delta_output import DeltaOutput
from jobs.tables.target import Change, Portion, RowFile
from tests.support.digits_job import Digits
from tests.workers.source.test_reading import slices_of
from workers.contract import InputSpec
from workers.source.shard_reader import key_columns


@pytest.fixture(scope="module")
def digits(quantized_digits: Digits) -> Digits:
    return quantized_digits


@pytest.fixture(scope="module")
def scored(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished job with its input copied beside its output, to be copied and damaged."""
    folder = tmp_path_factory.mktemp("scored")
    shutil.copytree(digits.images, folder / "in", copy_function=shutil.copy2)
    spec = folder / "job.yaml"
    spec.write_text(yaml.safe_dump(digits.spec(folder / "out", input__uri=str(folder / "in"))))
    assert main(["run", str(spec), "--pool=local"]) == 0
    return folder


@pytest.fixture
def damaged(scored: Path, digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Copy the output, damage it, verify; returns what verify printed."""

    def check(damage: Callable[[Path], Any], code: int = 1) -> str:
        out = tmp_path / "out"
        shutil.copytree(scored / "out", out)
        damage(out)
        spec = tmp_path / "job.yaml"
        spec.write_text(yaml.safe_dump(digits.spec(out, input__uri=str(scored / "in"))))
        capsys.readouterr()
        assert main(["verify", str(spec)]) == code
        return capsys.readouterr().out

    return check


@pytest.fixture
def all_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every problem, not just the first of each kind."""
    monkeypatch.setattr("jobs.queries.verify._SHOWN", 1000)


def shard(out: Path, index: int = 3) -> Path:
    return next(out.glob(f"model=*/plan=00000001/{index:08d}.parquet"))


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    """As a careless tool would: same metadata, other rows."""
    table = pq.read_table(pa.BufferReader(file.read_bytes()))
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), file, write_page_checksum=True)


def test_a_whole_output_is_verified(damaged: Callable[..., str]) -> None:
    shown = damaged(lambda out: None, code=0)
    assert "verified: 899 rows claimed by 1 plan" in shown
    assert "readers of this model see 899 of them (890 ok + 9 bad)" in shown


def test_keys_of_a_row_group_are_read_once_for_slices_that_follow_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        pq.write_table(pa.table({"id": range(10), "image": [b"x"] * 10}), tmp_path / name, row_group_size=6)
    read_keys = verify.key_reader(InputSpec(uri=str(tmp_path), image="image", keys=("id",)))
    groups = [(name, group, rows) for name in "ab" for group, rows in enumerate((6, 4))]
    slices = [
        part for name, group, rows in groups for n in range(0, rows, 2)
        for part in slices_of(tmp_path / name, (group, n, n + 2))
    ]  # fmt: skip
    read: list[str] = []
    monkeypatch.setattr(verify, "key_columns", lambda *given: read.append(given[0].uri) or key_columns(*given))
    for s in slices:
        rows = read_keys(s)
        assert rows is not None
        assert rows["id"].to_pylist() == list(range(10))[6 * s.row_group :][s.row_start : s.row_stop]
    assert len(read) == len(groups)


def test_of_many_problems_of_a_kind_the_first_are_told_and_how_many_more_there_are(
    damaged: Callable[..., str],
) -> None:
    def strays(out: Path) -> None:
        for number in range(1500):
            (next(out.glob("model=*")) / f"note-{number}").touch()
        shard(out).unlink()

    told = [line for line in damaged(strays).splitlines() if line.startswith("PROBLEM")]
    assert len(told) == 12
    assert "is missing" in told[0]
    assert all(line.startswith("PROBLEM: stray object ") for line in told[1:11])
    assert told[11] == "PROBLEM: and 1,490 more stray objects"


def test_a_missing_object_is_named_with_its_rows(damaged: Callable[..., str]) -> None:
    shown = damaged(lambda out: shard(out).unlink())
    assert "plan=00000001/00000003.parquet is missing: shard 00000001/00000003" in shown
    assert "row group" in shown


def test_a_flipped_bit_is_found(damaged: Callable[..., str]) -> None:
    def flip(out: Path) -> None:
        data = bytearray(shard(out).read_bytes())
        data[len(data) // 3] ^= 0x10
        shard(out).write_bytes(data)

    assert "00000003.parquet" in damaged(flip)


def test_a_truncated_object_is_found(damaged: Callable[..., str]) -> None:
    shown = damaged(lambda out: shard(out).write_bytes(shard(out).read_bytes()[:-100]))
    assert "00000003.parquet cannot be read" in shown


def test_an_object_rewritten_with_the_same_rows_is_found_by_its_digest(damaged: Callable[..., str]) -> None:
    assert "was altered: sha256 is" in damaged(lambda out: rewrite(shard(out), lambda t: t))


def test_a_doubled_row_is_named(damaged: Callable[..., str]) -> None:
    def double(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table.slice(0, 5), table.slice(4)])

    assert "metadata counts" in damaged(lambda out: rewrite(shard(out), double))


def test_a_row_in_another_rows_place_is_named(damaged: Callable[..., str]) -> None:
    def swap(table: pa.Table) -> pa.Table:
        return table.take([1, 0, *range(2, table.num_rows)])

    shown = damaged(lambda out: rewrite(shard(out), swap))
    assert "2 rows out of place; the first is row 0: row is" in shown


def test_a_key_that_is_not_the_inputs_is_named(damaged: Callable[..., str]) -> None:
    def rekey(table: pa.Table) -> pa.Table:
        ids = table["id"].to_pylist()
        return table.set_column(table.schema.get_field_index("id"), "id", pa.array([*ids[:-1], -1]))

    assert "key column 'id' differs from" in damaged(lambda out: rewrite(shard(out), rekey))


def test_an_object_of_another_shard_under_this_key_is_found(damaged: Callable[..., str]) -> None:
    shown = damaged(lambda out: shutil.copy(shard(out, 2), shard(out, 3)))
    assert "was written for shard 00000001/00000002" in shown


@pytest.mark.parametrize("name", ["plan=00000001/00009999.parquet", "plan=00000002/00000000.parquet", "notes.txt"])
def test_a_stray_object_is_named(damaged: Callable[..., str], name: str) -> None:
    def stray(out: Path) -> None:
        target = next(out.glob("model=*")) / name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(shard(out), target)

    shown = damaged(stray)
    assert f"stray object {shown.split('stray object ')[1].split('/')[0]}/{name}" in shown


def test_what_a_compaction_of_the_table_left_is_no_stray(damaged: Callable[..., str]) -> None:
    def compacted(out: Path) -> None:
        table, files = DeltaOutput(str(out)), []
        for file in sorted(out.glob("model=*/plan=*/*.parquet")):
            model, plan = (folder.partition("=")[2] for folder in file.parts[-3:-1])
            rows, size = pq.read_metadata(file).num_rows, file.stat().st_size
            files.append(RowFile(str(file), Portion(model, int(plan)), rows, size))
        assert table.read() == 0
        table.commit(1, pq.read_schema(files[0].uri), Change(files), copy=lambda *_: files[0])
        predictions = done(str(out)).table()
        for _ in range(2):
            seen = pa.table(QueryBuilder().register("t", DeltaTable(out)).execute("select * from t").read_all())
            assert set(zip(seen["model"].to_pylist(), seen["plan"].to_pylist(), strict=True)) == {files[0].part}
            same = pa.table({name: seen[name].cast(predictions[name].type) for name in predictions.column_names})
            order = [("source_uri", "ascending"), ("row", "ascending")]
            assert same.sort_by(order).to_pylist() == predictions.sort_by(order).to_pylist()
            DeltaTable(out).optimize.compact()
            assert len([*out.glob("model=*/plan=1/part-*.parquet")]) == 1

    assert "readers of this model see 899 of them" in damaged(compacted, code=0)


def test_a_plan_that_is_not_done_is_a_problem(damaged: Callable[..., str]) -> None:
    shown = damaged(lambda out: next(out.glob("model=*/_stint/done/*")).unlink())
    assert "plan 1 has no done record: run the job again" in shown
    assert "= 899 rows out (890 ok + 9 bad)" in shown
    assert "readers of this model see 0 of them" in shown


def test_input_that_no_plan_claims_is_named(scored: Path, damaged: Callable[..., str]) -> None:
    late = scored / "in" / "late.parquet"
    shutil.copy(scored / "in" / "digits-0.parquet", late)
    try:
        assert "late.parquet (version " in damaged(lambda out: None)
    finally:
        late.unlink()


def done_record(out: Path) -> Path:
    return next(out.glob("model=*/_stint/done/00000001.stint"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(1), "lacks plan=00000001/00000000.parquet: readers do not see its rows"),
        (lambda t: t.slice(0, 0), "lacks plan=00000001/00000000.parquet"),
        (lambda t: pa.concat_tables([t, t.slice(2, 1)]), "names plan=00000001/00000002.parquet, more than once"),
        (
            lambda t: t.set_column(3, "rows_gone", pa.array([5] * len(t), pa.int64())),
            "5 gone, ",
        ),
    ],
    ids=["lacks one", "empty", "doubled", "miscounted"],
)
def test_a_done_record_that_is_not_as_the_plan_and_its_objects_is_named(
    damaged: Callable[..., str], change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    """Strict readers see just what it names."""
    assert message in damaged(lambda out: rewrite(done_record(out), change))


def test_a_damaged_done_record_is_a_problem_and_the_objects_are_checked_all_the_same(
    damaged: Callable[..., str],
) -> None:
    def damage(out: Path) -> None:
        done_record(out).write_bytes(done_record(out).read_bytes()[:-20])
        shard(out).unlink()

    shown = damaged(damage)
    assert "_stint/done/00000001.stint is damaged" in shown
    assert "00000003.parquet is missing" in shown


def test_a_damaged_plan_is_named_with_the_way_out(
    scored: Path, digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(scored / "out", tmp_path / "out")
    plan = next((tmp_path / "out").glob("model=*/_stint/plans/*"))
    plan.write_bytes(plan.read_bytes()[:-20])
    spec = tmp_path / "job.yaml"
    spec.write_text(yaml.safe_dump(digits.spec(tmp_path / "out", input__uri=str(scored / "in"))))
    assert main(["verify", str(spec)]) == 1
    assert "_stint/plans/00000001.stint is damaged" in capsys.readouterr().err


# ------------------------------------------------------------- whatever is altered, after the done record and before


def shards(out: Path) -> list[Path]:
    return sorted(out.glob("model=*/plan=00000001/*.parquet"))


def unfinished(out: Path) -> None:
    done_record(out).unlink()


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 0x01
    file.write_bytes(data)


@pytest.mark.usefixtures("all_shown")
def test_a_single_bit_anywhere_in_an_object_is_found(damaged: Callable[..., str]) -> None:
    """At another place in each object: magic, pages, their headers, the footer, its length."""

    names: list[str] = []

    def flip_all(out: Path) -> None:
        names.extend(file.name for file in shards(out))
        for n, file in enumerate(shards(out)):
            flip(file, n * (file.stat().st_size - 1) // (len(names) - 1))

    shown = damaged(flip_all)
    assert len(names) > 10
    assert [name for name in names if name not in shown] == []


@pytest.mark.usefixtures("all_shown")
def test_before_the_done_record_a_bit_in_a_page_of_any_column_is_found(damaged: Callable[..., str]) -> None:
    names: list[str] = []

    def flip_pages(out: Path) -> None:
        unfinished(out)
        for n, file in enumerate(shards(out)):
            group = pq.read_metadata(pa.BufferReader(file.read_bytes())).row_group(0)
            chunk = group.column(n % group.num_columns)
            names.append(chunk.path_in_schema.partition(".")[0])
            flip(file, chunk.data_page_offset + chunk.total_compressed_size - (
                chunk.data_page_offset - (chunk.dictionary_page_offset or chunk.data_page_offset)
            ) - 1)  # fmt: skip

    shown = damaged(flip_pages)
    assert {"label", "score", "topk_score"} <= set(names)
    missed = [name for n, name in enumerate(names) if f"{n:08d}.parquet cannot be read" not in shown]
    assert missed == []


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done yet"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: shard(out).write_bytes(shard(out).read_bytes() + b"\0"), "00000003.parquet cannot be read"),
        (lambda out: shard(out).write_bytes(b""), "00000003.parquet cannot be read"),
        (lambda out: shutil.copy(done_record(out), shard(out)), "00000003.parquet cannot be read"),
        (
            lambda out: (shutil.copy(shard(out, 1), out / "x"), shutil.copy(shard(out, 2), shard(out, 1)),
                         shutil.move(out / "x", shard(out, 2))),
            "was written for shard 00000001/00000001",
        ),
    ],
    ids=["appended", "emptied", "another Parquet file", "swapped"],
)  # fmt: skip
def test_an_object_in_whose_place_something_else_lies_is_found(
    damaged: Callable[..., str], damage: Callable[[Path], Any], message: str, done: bool
) -> None:
    def change(out: Path) -> None:
        damage(out)
        if not done:
            unfinished(out)

    assert message in damaged(change)


def test_a_prediction_that_was_changed_with_right_checksums_is_found_once_it_is_done(
    damaged: Callable[..., str],
) -> None:
    """Before the done record nothing else knows the object's digest: docs/SECURITY.md says so."""

    def better(table: pa.Table) -> pa.Table:
        return table.set_column(
            table.schema.get_field_index("score"), "score", pa.array([1.0] * len(table), pa.float32())
        )

    assert "was altered: sha256 is" in damaged(lambda out: rewrite(shard(out), better))


def plan_record(out: Path) -> Path:
    return next(out.glob("model=*/_stint/plans/00000001.stint"))


def with_token(out: Path) -> None:
    table = pq.read_table(pa.BufferReader(plan_record(out).read_bytes()))
    metadata = {**table.schema.metadata, b"stint.token": b"another"}
    pq.write_table(table.replace_schema_metadata(metadata), plan_record(out))


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[pa.Table], pa.Table]:
    def apply(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        values = [change(value) for value in table[name].to_pylist()]
        return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (with_token, "not for this plan"),
        (lambda out: rewrite(plan_record(out), changed("row_start", lambda row: row + 1)), "planned"),
        (lambda out: rewrite(plan_record(out), changed("uri", lambda uri: uri + "x")), "rows out of place"),
        (lambda out: rewrite(plan_record(out), changed("version", lambda _: "v")), "rows out of place"),
        (lambda out: rewrite(plan_record(out), lambda t: t.slice(0, len(t) - 1)), "which the plan does not"),
        (lambda out: rewrite(done_record(out), changed("sha256", lambda digest: digest[::-1])), "was altered: sha256"),
        (lambda out: rewrite(done_record(out), changed("size", lambda size: size + 1)), "the done record says"),
        (lambda out: rewrite(done_record(out), changed("key", lambda key: "../" + key)), "which the plan does not"),
    ],
    ids=["token", "rows", "uri", "version", "a slice less", "digests", "sizes", "keys"],
)
def test_a_plan_or_done_record_that_was_altered_contradicts_the_objects(
    damaged: Callable[..., str], damage: Callable[[Path], Any], message: str
) -> None:
    assert message in damaged(damage)
