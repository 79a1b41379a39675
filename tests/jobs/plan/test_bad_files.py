"""Bad files of plans that are open: what has replaced them is found wherever the run looks for what is new."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.errors import SpecError
from jobs.input.listing import left_out
from jobs.ledger.plans import Plan
from jobs.plan.discovery import Discovery, discover
from jobs.plan.job import Job
from jobs.spec.days import parse_day
from jobs.spec.load import load_spec
from tests.support.small_ledger import SmallLedger
from workers.image.errors import ErrorCode

MONDAY, TUESDAY = "2026-03-02", "2026-03-03"


def look(small: SmallLedger, day: str) -> Discovery:
    return discover(Job.open(load_spec(str(small.spec), []), parse_day(day), writing=False))


def put(small: SmallLedger, name: str, ids: Sequence[int]) -> Path:
    (small.folder / "in" / name).parent.mkdir(exist_ok=True)
    return small.put(name, ids, lambda n: b"%d" % n)


def scored_badly(small: SmallLedger, day: str) -> Plan:
    """All that is there, as a plan that is whole and open; the first row of each file is bad."""
    plan = small.job.ledger.claim(look(small, day).content)
    assert plan is not None
    for shard in plan.shards:
        small.commit(shard, lambda n: ErrorCode.CORRUPT if n % 10 == 0 else (0, 0.5))
    return plan


def names(found: Discovery) -> list[str]:
    return [source.uri.removeprefix(f"{found.job.spec.output.uri[:-3]}in/") for source in found.claim.new]


@pytest.mark.parametrize("on_change", ["report", "rescore"])
def test_a_bad_file_in_the_folder_of_another_day_is_claimed_once_it_is_replaced(tmp_path: Path, on_change: str) -> None:
    small = SmallLedger(tmp_path, input={"uri": f"{tmp_path}/in/{{as_of}}", "on_change": on_change})
    bad = put(small, f"{MONDAY}/bad.parquet", [0, 1])
    put(small, f"{MONDAY}/good.parquet", [11, 12])
    scored_badly(small, MONDAY)
    put(small, f"{TUESDAY}/a.parquet", [20])
    assert names(look(small, TUESDAY)) == [f"{TUESDAY}/a.parquet"]
    put(small, f"{MONDAY}/bad.parquet", [0, 1])
    put(small, f"{MONDAY}/good.parquet", [11, 12])  # of no row that nobody has seen
    found = look(small, TUESDAY)
    assert names(found) == [f"{MONDAY}/bad.parquet", f"{TUESDAY}/a.parquet"]
    assert found.claim.supersedes.keys() == {str(bad)}
    bad.unlink()
    assert names(look(small, TUESDAY)) == [f"{TUESDAY}/a.parquet"]


def test_a_bad_file_that_is_left_out_is_not_claimed_for_having_been_replaced(tmp_path: Path) -> None:
    uris = [f"{tmp_path}/in/{{as_of}}", f"!{tmp_path}/in/**/bad.parquet"]
    small = SmallLedger(tmp_path, input={"uri": uris[0]})
    put(small, f"{MONDAY}/bad.parquet", [0, 1])
    scored_badly(small, MONDAY)
    put(small, f"{MONDAY}/bad.parquet", [0, 1])
    small = SmallLedger(tmp_path, input={"uri": uris})
    put(small, f"{TUESDAY}/a.parquet", [20])
    found = look(small, TUESDAY)
    assert names(found) == [f"{TUESDAY}/a.parquet"]
    assert left_out(found.job.spec.input, found.job.days)(f"{tmp_path}/in/{MONDAY}/bad.parquet")


def test_a_bad_file_of_a_manifest_without_versions_is_looked_up(tmp_path: Path) -> None:
    small = SmallLedger(tmp_path, input={"uri": None, "manifest": f"{tmp_path}/files.txt", "on_change": "report"})
    for name in ("bad.parquet", "good.parquet"):
        put(small, name, [0, 1] if name == "bad.parquet" else [11])
    (tmp_path / "files.txt").write_text("in/bad.parquet\nin/good.parquet\n")
    scored_badly(small, MONDAY)
    assert names(look(small, MONDAY)) == []
    put(small, "bad.parquet", [0, 1])
    assert names(look(small, MONDAY)) == ["bad.parquet"]


def test_a_run_that_began_the_root_meanwhile_decides_what_types_keys_have(tmp_path: Path) -> None:
    """The other one has seen a file that this one has not, with text where this one has numbers."""
    small = SmallLedger(tmp_path, input={"keys": ["name", "id"]})
    put(small, "a.parquet", [1, 2])
    found = discover(small.job)
    pq.write_table(pa.table({"id": ["x"], "name": ["n"], "image": [b"1"]}), tmp_path / "in/b.parquet")
    (tmp_path / "in/a.parquet").rename(tmp_path / "a.parquet")
    first = small.claim()
    assert found.content([first]) is None
    (tmp_path / "a.parquet").rename(tmp_path / "in/a.parquet")
    later = discover(small.job)
    assert (later.fresh, list(later.unreadable)) == ([], [str(tmp_path / "in/a.parquet")])


def test_files_without_rows_do_not_decide_what_types_keys_have(tmp_path: Path) -> None:
    small = SmallLedger(tmp_path, input={"keys": ["id"]})
    empty = pa.table({"id": pa.array([], pa.string()), "image": pa.array([], pa.binary())})
    pq.write_table(empty, tmp_path / "in/0.parquet")
    assert small.claim().rows == 0
    pq.write_table(empty, tmp_path / "in/1.parquet")
    put(small, "a.parquet", [1, 2])
    second = small.claim()
    assert (second.rows, second.keys) == (2, pa.schema([("id", pa.int64())]))
    put(small, "b.parquet", [3])
    assert small.claim().keys == second.keys


def test_the_sample_comes_from_files_that_have_labels(tmp_path: Path) -> None:
    small = SmallLedger(tmp_path, gate={"labels_column": "truth"})
    pq.write_table(pa.table({"other": pa.array([], pa.int64())}), tmp_path / "in/0.parquet")
    assert discover(small.job).fresh_rows == 0
    put(small, "a.parquet", [1, 2])
    with pytest.raises(SpecError, match="has no column 'truth'"):
        discover(small.job)
    table = pq.read_table(tmp_path / "in/a.parquet")
    pq.write_table(table.append_column("truth", pa.array([0, 1])), tmp_path / "in/b.parquet")
    found = discover(small.job)
    assert [len(sources) for sources in (found.fresh, found.to_sample())] == [3, 1]
