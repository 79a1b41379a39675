"""A shard that kills whoever scores it: the rows that do become error rows, everything else is scored."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.cli import main
from jobs.plan.job import Job
from jobs.spec.load import load_spec
from tests.support import poison
from tests.support.digits_job import ROOT, Digits
from tests.support.ray_heads import await_true
from tests.support.tars import END, index, write_tar
from tests.support.tars import shard as tar_shard
from workers.actor import Worker
from workers.contract import InputSpec, Shard, Slice, WorkerSpec
from workers.host.child import Child, Died, how_it_died
from workers.image.errors import MAX_IMAGE_BYTES
from workers.isolation import bisection
from workers.isolation.isolate import limit_of, score_isolated
from workers.outcomes import Failure, FailureCode, FailureKind, ShardResult
from workers.storage.filesystems import open_filesystem, version_of

LIMIT_S = 100.0
MEMORY_BYTES = 700 * 2**20
CRASHED = "killed the process that scored it: SIGSEGV"


@dataclass(frozen=True)
class Bench:
    """A bundle, a worker that has loaded it, and images to score with it."""

    spec: WorkerSpec
    worker: Worker
    images: list[bytes]
    folder: Path

    def parquet(self, name: str, marks: Mapping[int, str], rows: int = 8) -> Shard:
        """A shard of good images, two row groups in one file, of which some rows kill."""
        images = [image + poison.mark(marks[i]) if i in marks else image for i, image in enumerate(self.images[:rows])]
        file = self.folder / f"{name}.parquet"
        table = {"id": pa.array(range(100, 100 + rows)), "digit": pa.array([0] * rows), "image": images}
        pq.write_table(pa.table(table), file, row_group_size=-(-rows // 2))
        half = -(-rows // 2)
        groups = ((0, 0, half), (1, 0, rows - half))
        slices = tuple(_slice(file, *group) for group in groups)
        return Shard(plan=1, plan_token=name, index=next(self._numbers), slices=slices)

    def rows(self, shard: Shard) -> list[dict[str, object]]:
        """The object's rows."""
        file = Path(self.spec.output.uri, self.spec.root, shard.key)
        return pq.read_table(pa.BufferReader(file.read_bytes())).to_pylist()

    def isolated(self, shard: Shard, limit_s: float = LIMIT_S, memory_bytes: int = MEMORY_BYTES) -> ShardResult:
        result = score_isolated(self.spec, shard, limit_s, memory_bytes)
        assert isinstance(result, ShardResult), result
        assert result.committed
        assert result.rows_ok + result.rows_bad + result.rows_gone == shard.rows
        return result

    def check(self, shard: Shard, blamed: Mapping[int, str]) -> None:
        """The object is what an unharmed worker makes of the shard, but for the blamed rows."""
        known = replace(shard, plan=2)
        assert isinstance(self.worker.score(known), ShardResult)
        expected, found = self.rows(known), self.rows(shard)
        assert len(found) == shard.rows
        for number, (good, row) in enumerate(zip(expected, found, strict=True)):
            if number in blamed:
                assert row["error_code"] == "crashed_worker"
                assert row["error_message"] == blamed[number]
                same = set(self.spec.input.keys) | {"source_uri", "source_version", "row_group", "row"}
                assert {name: row[name] for name in same} == {name: good[name] for name in same}
                assert row["label"] is row["topk_score"] is None
            else:
                assert good["error_code"] is None
                assert row == good

    _numbers = itertools.count()


def _slice(file: Path, row_group: int, start: int, stop: int) -> Slice:
    fs, path = open_filesystem(str(file))
    info = fs.info(path)
    return Slice(
        uri=str(file), size=info["size"], version=version_of(info), row_group=row_group, row_start=start, row_stop=stop
    )


@pytest.fixture(scope="module")
def bundle(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Job, Worker, list[bytes]]]:
    folder = tmp_path_factory.mktemp("isolation")
    file = folder / "job.yaml"

    file.write_text(
        yaml.safe_dump(digits.spec(folder / "out", model__calibration={"rows": 16}, gate={"min_agreement": 0}))
    )
    assert main(["quantize", str(file), "--pool=local"]) == 0
    job = Job.open(load_spec(str(file), []))
    table = pq.read_table(sorted(digits.images.glob("*.parquet"))[0])
    images = [image for image in table["image"].to_pylist() if image and image[-2:] == b"\xff\xd9"][:32]
    keys = pa.schema([pa.field("id", pa.int64()), pa.field("digit", pa.int64())])
    worker = Worker(replace(job.worker_spec(None), key_schema=keys.serialize().to_pybytes(), pin=False))
    assert not isinstance(worker.start(), Failure)
    yield job, worker, images
    worker.stop()


@pytest.fixture
def bench(bundle: tuple[Job, Worker, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Its isolated processes heed the marks; this one does not."""
    _, worker, images = bundle
    monkeypatch.syspath_prepend(str(poison.hooked(tmp_path / "hook")))
    monkeypatch.syspath_prepend(str(ROOT))
    return Bench(worker._spec, worker, images, tmp_path)


def test_a_row_that_crashes_becomes_an_error_row_and_the_other_is_scored(bench: Bench) -> None:
    shard = bench.parquet("crashing", {0: "crash"}, rows=2)
    result = bench.isolated(shard)
    assert result.bad_by_code == {"crashed_worker": 1}
    assert result.bad_samples["crashed_worker"].endswith(CRASHED)
    assert 0 < result.peak_rss_bytes < MEMORY_BYTES
    bench.check(shard, {0: CRASHED})


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rows_that_crash_or_take_all_memory_are_found_among_others(bench: Bench) -> None:
    shard = bench.parquet("poisoned", {1: "crash", 4: "hog"}, rows=5)
    assert bench.isolated(shard).bad_by_code == {"crashed_worker": 2}
    bench.check(shard, {1: CRASHED, 4: "took more than 0.68 GiB of memory"})


def test_a_shard_that_kills_nobody_is_committed_as_it_is(bench: Bench) -> None:
    shard = bench.parquet("good", {})
    assert bench.isolated(shard).rows_ok == 8
    bench.check(shard, {})
    again = score_isolated(bench.spec, shard, LIMIT_S, MEMORY_BYTES)
    assert isinstance(again, ShardResult)
    assert not again.committed


@pytest.mark.slow
def test_rows_that_never_end_or_end_the_process_or_ask_for_too_much_become_error_rows(bench: Bench) -> None:
    shard = bench.parquet("various", {0: "hang", 1: "exit", 3: "ask too much"}, rows=4)
    assert bench.isolated(shard, limit_s=8).bad_by_code == {"crashed_worker": 3}
    how = {
        0: "was not scored within 8 s",
        1: "ended the process that scored it, with exit code 0",
        3: "needed more memory than there is",
    }
    bench.check(shard, how)


@pytest.mark.slow
def test_memory_that_piles_up_is_blamed_on_no_row(bench: Bench) -> None:
    shard = bench.parquet("leaking", dict.fromkeys(range(12), "leak"), rows=12)
    assert bench.isolated(shard, memory_bytes=520 * 2**20).rows_bad == 0
    bench.check(shard, {})


@pytest.mark.slow
def test_samples_of_a_tar_are_found_although_it_cannot_be_cut_in_the_middle(bench: Bench) -> None:
    bad = {3}
    samples = [
        {"__key__": f"{i:04d}", "jpg": image + (poison.mark("crash") if i in bad else b""), "cls": str(i)}
        for i, image in enumerate(bench.images[:5])
    ]
    tar = write_tar(bench.folder / "a.tar", samples)
    tar.write_bytes(tar.read_bytes() + END)
    shard = tar_shard(tar, index(tar, rows_a_block=16))
    keys = pa.schema([("__key__", pa.string()), ("cls", pa.string())])
    spec = replace(
        bench.spec,
        input=InputSpec(format="webdataset", image="jpg", keys=("__key__", "cls")),
        key_schema=keys.serialize().to_pybytes(),
    )
    bench = replace(bench, spec=spec)
    assert bench.isolated(replace(shard, plan=3)).rows_bad == 1
    rows = bench.rows(replace(shard, plan=3))
    assert [(row["__key__"], row["cls"]) for row in rows] == [(f"{i:04d}", str(i)) for i in range(5)]
    assert [row["error_message"] for row in rows] == [None, None, None, CRASHED, None]


@pytest.mark.slow
def test_image_files_that_are_gone_stay_gone_and_one_that_kills_is_an_error_row(bench: Bench) -> None:
    files = []
    for i, image in enumerate(bench.images[:5]):
        files.append(bench.folder / f"{i}.jpg")
        files[-1].write_bytes(image + (poison.mark("crash") if i == 3 else b""))
    shard = Shard(plan=4, plan_token="t", index=0, slices=tuple(_slice(file, 0, 0, 1) for file in files))
    files[1].unlink()
    files[4].unlink()
    spec = replace(bench.spec, input=InputSpec(format="images", image=""), key_schema=b"")
    bench = replace(bench, spec=spec)
    result = bench.isolated(shard)
    assert (result.rows_ok, result.rows_bad, result.rows_gone) == (2, 1, 2)
    assert [Path(str(row["source_uri"])).stem for row in bench.rows(shard)] == ["0", "2", "3"]


@pytest.mark.slow
def test_a_link_to_what_takes_all_memory_becomes_an_error_row(bench: Bench) -> None:
    """Its row is not even read: the link would lead there again."""
    with (bench.folder / "large.jpg").open("wb") as sparse:
        sparse.truncate(MAX_IMAGE_BYTES)
    (bench.folder / "good.jpg").write_bytes(bench.images[0])
    file = bench.folder / "links.parquet"
    pq.write_table(pa.table({"id": [1, 2], "digit": [0, 0], "image": ["large.jpg", "good.jpg"]}), file)
    spec = replace(bench.spec, input=replace(bench.spec.input, uri_roots=(str(bench.folder),)))
    shard = Shard(plan=5, plan_token="t", index=0, slices=(_slice(file, 0, 0, 2),))
    result = replace(bench, spec=spec).isolated(shard)
    assert result.bad_by_code == {"crashed_worker": 1}
    assert [row["error_code"] for row in bench.rows(shard)] == ["crashed_worker", None]


# ----------------------------------------------------------------------------------- what is no row's doing


def test_a_process_that_somebody_else_killed_blames_no_row(bench: Bench) -> None:
    failure = score_isolated(bench.spec, bench.parquet("outside", {0: "killed from outside"}), LIMIT_S, MEMORY_BYTES)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.INFRA
    assert "SIGKILL" in failure.message


def test_input_that_cannot_be_read_is_the_failure_that_it_is_anywhere(bench: Bench) -> None:
    spec = replace(bench.spec, input=replace(bench.spec.input, image="picture"))
    failure = score_isolated(spec, bench.parquet("unreadable", {}), LIMIT_S, MEMORY_BYTES)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.DATA
    assert "no column 'picture'" in failure.message


def test_a_missing_bundle_is_a_failure_of_its_own(bench: Bench) -> None:
    failure = score_isolated(replace(bench.spec, bundle="none"), bench.parquet("x", {}), LIMIT_S, MEMORY_BYTES)
    assert isinstance(failure, Failure)
    assert failure.code == "no_bundle"


def test_a_bound_below_what_the_network_takes_is_told(bench: Bench) -> None:
    failure = score_isolated(bench.spec, bench.parquet("y", {}), LIMIT_S, 64 * 2**20)
    assert isinstance(failure, Failure)
    assert failure.message == "loading the bundle in an isolated process took more than 0.06 GiB of memory"


@pytest.mark.slow
def test_rows_that_all_kill_are_given_up_with_their_names(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bisection, "NONE_SURVIVED", 2)
    shard = bench.parquet("all", {0: "crash", 1: "crash"}, rows=2)
    failure = score_isolated(bench.spec, shard, LIMIT_S, MEMORY_BYTES)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.code) == (FailureKind.TASK, FailureCode.CRASHED)
    assert failure.message == f"{shard.describe()}: 2 of its rows (0, 1 …), each scored alone, {CRASHED}"
    assert not Path(bench.spec.output.uri, bench.spec.root, shard.key).exists()


SCORE = """
import pickle, sys
from pathlib import Path
from workers.actor import Worker
spec, shard = pickle.loads(Path(sys.argv[1]).read_bytes())
worker = Worker(spec)
worker.start()
worker.score_isolated(shard, 1000.0)
"""

pytestmark = pytest.mark.cores


def test_the_isolated_process_and_its_guard_end_with_a_worker_that_is_killed(bench: Bench) -> None:
    work = bench.folder / "work"
    work.write_bytes(pickle.dumps((bench.spec, bench.parquet("hanging", {0: "hang"}))))
    path = os.pathsep.join([str(bench.folder / "hook"), str(ROOT)])
    process = subprocess.Popen(
        [sys.executable, "-c", SCORE, str(work)], env={**os.environ, "PYTHONPATH": path}, cwd=bench.folder
    )
    try:
        began: list[int] = await_true(lambda: len(found := _children(process.pid)) == 2 and found, "child and guard")
    finally:
        process.kill()
        process.wait()
    await_true(lambda: not any(_runs(pid) for pid in began), "their end")


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -------------------------------------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    ("returncode", "over_memory", "how"),
    [
        (-signal.SIGSEGV, False, CRASHED),
        (-signal.SIGABRT, False, "killed the process that scored it: SIGABRT"),
        (-signal.SIGBUS, False, "killed the process that scored it: SIGBUS"),
        (-signal.SIGKILL, True, "took more than 2.00 GiB of memory"),
        (-signal.SIGKILL, False, None),
        (-signal.SIGTERM, False, None),
        (0, False, "ended the process that scored it, with exit code 0"),
        (7, False, "ended the process that scored it, with exit code 7"),
    ],
)
def test_what_a_process_died_of(returncode: int, over_memory: bool, how: str | None) -> None:
    assert how_it_died(returncode, over_memory=over_memory, memory_bytes=2 * 2**30, did="scored") == how


def test_a_process_that_dies_in_the_middle_of_an_answer_has_died_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large answer is when it needs most memory, and so when the guard is likeliest to kill."""
    (tmp_path / "dying.py").write_text(
        "import os, signal, struct\n"
        "from workers.host.child import to_parent\n"
        "parent = to_parent()\n"
        "os.write(parent.fileno(), struct.pack('!i', 1000) + b'half')\n"
        "os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    child = Child("dying", MEMORY_BYTES, "scored")
    try:
        with pytest.raises(Died, match="SIGSEGV"):
            child.take(LIMIT_S)
    finally:
        child.end()


@pytest.mark.parametrize(
    ("rows", "of_rows", "limit_s", "expected"),
    [(1000, 1000, 600, 600), (500, 1000, 600, 300), (1, 1000, 600, 60), (1, 1000, 20, 20), (1, 1, 600, 600)],
)
def test_time_for_some_rows_of_a_shard(rows: int, of_rows: int, limit_s: float, expected: float) -> None:
    assert limit_of(rows, of_rows, limit_s) == expected
