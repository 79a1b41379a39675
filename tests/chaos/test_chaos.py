"""Nothing lost, nothing doubled, whatever dies: kills at every named point, and at random on a real cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.tables.iceberg_output import IcebergOutput
from tests.chaos.campaign import Round, campaign, table
from tests.chaos.failpoints import KINDS, POINTS, Failpoints, Point, markdown
from tests.chaos.oracle import Bucket, Count, Folder, Output, count, kinds
from tests.support.digits_job import ROOT, Digits, stint

WriteSpec = Callable[[dict[str, Any]], str]
SHARDS = 8
SHARD_ROWS = 16
KILLED = -9
SEED = 0


@pytest.fixture
def local(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "out")


@pytest.fixture
def bucket(s3: str) -> Bucket:
    import s3fs

    fs = s3fs.S3FileSystem(use_listings_cache=False)
    return Bucket(fs, f"{s3.removeprefix('s3://')}/out")


@pytest.fixture(params=["local", pytest.param("bucket", marks=pytest.mark.objectstore)])
def output(request: pytest.FixtureRequest) -> Output:
    return request.getfixturevalue(request.param)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_killed_at_each_named_point_in_turn_is_finished_by_the_next(
    digits: Digits, tmp_path: Path, write_spec: WriteSpec, output: Output
) -> None:
    """One output goes through all of them, each run being killed one create further than the last."""
    data = tmp_path / "data"
    data.mkdir()
    table = pq.read_table(digits.images).slice(0, SHARDS * SHARD_ROWS)
    pq.write_table(table, data / "a.parquet")
    url = str(output.path) if isinstance(output, Folder) else f"s3://{output.path}"
    cheap = {"input__shard_rows": SHARD_ROWS, "gate__labels_column": None, "gate__rows": 16, "gate__min_agreement": 0.0}
    cheap |= {"model__calibration": {"rows": 16}, "output__table": {"format": "iceberg"}}
    spec = write_spec(digits.spec(url, input__uri=str(data), **cheap))
    failpoints = Failpoints(tmp_path / "failpoints")

    def command(name: str) -> list[str]:
        return [name, spec, *(["--pool=local"] if name == "run" else [])]

    passed: list[Point] = []
    for point in POINTS:
        if point.on_ray or (point.moment == "within" and isinstance(output, Bucket)):
            continue  # a create on an object store is one request, which has no inside
        if point.command != "run" and all(p.command == "run" for p in passed):
            assert stint(*command("run")).returncode == 0
        before, scratch = kinds(output.keys()), output.scratch()
        failpoints.arm(point)
        ended = stint(*command(point.command), env=dict(failpoints.env))
        assert ended.returncode == KILLED, f"{point.name}: {ended.returncode}\n{ended.stderr}"
        assert point.name in failpoints.hits()
        made = kinds(output.keys()) - before
        # Whatever came earlier in the order of things may have been completed, the object itself only if it was
        # created, and nothing beyond it.
        later = KINDS[KINDS.index(point.kind) + 1 :]
        earlier_of_kind = point.nth - 1
        assert not [kind for kind in later if made[kind]], f"{point.name}: {made}"
        assert made[point.kind] == earlier_of_kind + (point.moment == "after"), f"{point.name}: {made}"
        assert output.scratch() == scratch + (point.moment == "within"), point.name
        output.look()
        passed.append(point)
    for name in ("run", "promote", "verify"):
        ended = stint(*command(name))
        assert ended.returncode == 0, ended.stdout + ended.stderr
    output.look()
    assert output.rewritten <= {"_iceberg/metadata/version-hint.text"}  # a hint
    assert kinds(output.keys())["plan"] == 1
    shown = IcebergOutput(f"{url}/_iceberg")
    assert shown.read() > 0
    assert sum(shown.rows().values()) == table.num_rows
    counted = count(output, table["id"].to_pylist())
    assert (counted.rows, counted.lost, counted.doubled) == (table.num_rows, 0, 0)


def judge(came: Round) -> None:
    told = table([came]) + "".join(f"\n\nPROBLEM: {problem}" for problem in came.problems)
    assert came.ok, told
    assert all(came.struck.values()), told


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_whatever_of_a_cluster_is_killed_or_frozen_no_row_is_lost_or_doubled(digits: Digits, tmp_path: Path) -> None:
    """Each kind of fault once, in the order of a seed. `make chaos` does more."""
    out = tmp_path / "job" / "out"
    with campaign(digits, print) as running:
        judge(running.round(SEED, tmp_path / "job", str(out), Folder(out)))
        assert {point.name for point in POINTS if point.on_ray} <= running.failpoints.hits()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.objectstore
@pytest.mark.timeout(400)
def test_on_an_object_store_that_keeps_every_version_nothing_is_ever_written_twice(
    digits: Digits, tmp_path: Path, bucket: Bucket, s3_server: dict[str, str]
) -> None:
    kinds_of_fault = ["maker", "worker frozen", "second driver", "failpoint", "raylet", "driver"]
    with campaign(digits, print, s3_server) as running:
        judge(running.round(SEED, tmp_path / "job", f"s3://{bucket.path}", bucket, kinds_of_fault))


def test_the_documentation_names_exactly_the_points_at_which_runs_are_killed() -> None:
    text = (ROOT / "docs/RELIABILITY.md").read_text()
    assert markdown() in text, f"docs/RELIABILITY.md should hold:\n\n{markdown()}"


def test_the_count_finds_rows_that_are_lost_and_doubled_and_objects_that_are_written_again(local: Folder) -> None:
    def put(key: str, columns: dict[str, list[Any]]) -> None:
        file = local.path / key
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)

    root = "model=m-0"
    done = [f"plan=00000001/{index:08d}.parquet" for index in range(2)]
    put(f"{root}/{done[0]}", {"id": [0, 1], "error_code": [None, "crashed_worker"]})
    put(f"{root}/{done[1]}", {"id": [1, 7], "error_code": [None, None]})
    put(f"{root}/plan=00000002/00000000.parquet", {"id": [2], "error_code": [None]})  # of a plan that is open
    put(f"{root}/_stint/done/00000001.stint", {"key": done})
    counted = count(local, range(3))
    assert counted == Count(rows=4, lost=1, doubled=2, quarantined=1)  # 2 is lost, 1 is there twice, 7 is nobody's
    local.look()
    local.look()
    assert local.rewritten == set()
    (local.path / root / done[0]).unlink()
    put(f"{root}/{done[1]}", {"id": [1, 7], "error_code": [None, None]})
    local.look()
    assert local.rewritten == {f"{root}/{name}" for name in done}
