"""The product as its users run it: a real Ray, real `ray job submit`, a real object store, real kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.digits_job import DEAR, PYTHON, ROOT, Digits, stint
from tests.support.ray_heads import Head, await_true

pytestmark = pytest.mark.ray

WriteSpec = Callable[[dict[str, Any]], str]
COPIES = 2


@pytest.fixture(scope="module")
def many(quantized_digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return quantized_digits.repeated(tmp_path_factory.mktemp("many"), COPIES)


def objects(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob("model=*/plan=*/*.parquet")}


@contextmanager
def started(*arguments: str, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """A driver in a process of its own; ended with the block."""
    process = subprocess.Popen(
        [PYTHON, "-m", "jobs", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()


# --------------------------------------------------------------------------------- threads of workers


def used(pid: int) -> dict[str, float]:
    """CPU seconds of each thread of a process."""
    seconds = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended since the listing
            fields = (task / "stat").read_text().rpartition(")")[2].split()
            seconds[task.name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def masks(pid: int) -> set[frozenset[int]]:
    """Affinity masks of all threads of a process."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(ProcessLookupError):
            found.add(frozenset(os.sched_getaffinity(int(task.name))))
    return found


def worker_pids() -> list[int]:
    """Processes of Ray actors of class Worker, by the title that Ray gives them."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                title = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::Worker"):
                found.append(int(process.name))
    return found


def pinned_workers() -> list[int]:
    """Those that have leased their core already."""
    found = []
    for pid in worker_pids():
        with suppress(ProcessLookupError):
            if len(os.sched_getaffinity(pid)) == 1:
                found.append(pid)
    return found


def test_workers_keep_to_disjoint_cores_and_run_no_more_busy_threads_than_they_hold(
    many: Digits, tmp_path: Path, write_spec: WriteSpec
) -> None:
    out = tmp_path / "out"
    spec = write_spec(many.spec(out, **DEAR))
    wall_s = 1.0
    with started("run", spec) as driver:
        await_true(lambda: len(objects(out)) >= 2 and len(pinned_workers()) >= 2, "two workers at work")
        pids = pinned_workers()
        for pid in pids:  # which were made ready by a local Ray, before anybody asked for them
            assert b"glibc.malloc.arena_max=1" in (Path("/proc") / str(pid) / "environ").read_bytes()
        before = {pid: used(pid) for pid in pids}
        time.sleep(wall_s)
        after = {pid: (used(pid), masks(pid)) for pid in pids}
        assert driver.wait(200) == 0, driver.stderr and driver.stderr.read()
    report = json.loads(next(out.glob("_stint/runs/*/report.json")).read_text())
    assert len(report["workers"]) == 2
    assert all(w["torch_threads"] == w["plan"]["threads"] == 1 for w in report["workers"])
    assert 0 < report["threads_busy"] <= 1.05  # CPU seconds ÷ wall seconds, to the precision of the clocks
    cores = [set(w["affinity"]) for w in report["workers"]]
    assert cores[0].isdisjoint(cores[1])
    assert [len(c) for c in cores] == [1, 1]
    for pid, (seconds_after, masks_after) in after.items():
        assert masks_after in [{frozenset(c)} for c in cores]  # every thread of the process, Ray's own included
        seconds = {task: s - before[pid].get(task, 0.0) for task, s in seconds_after.items()}
        assert sum(seconds.values()) <= wall_s * 1.1
        assert sum(s > wall_s / 2 for s in seconds.values()) <= 1
    assert stint("verify", spec).returncode == 0


# ------------------------------------------------------------------------------------------ stopping


def test_sigterm_ends_a_run_with_code_5_within_3_seconds_and_the_next_run_completes(
    many: Digits, tmp_path: Path, write_spec: WriteSpec, ray_head: Head
) -> None:
    out = tmp_path / "out"
    spec = write_spec(many.spec(out, **DEAR))
    with started("run", spec, "--address", ray_head.address) as driver:
        await_true(lambda: len(objects(out)) >= 2, "two shards committed")
        driver.send_signal(signal.SIGTERM)
        told = time.monotonic()
        assert driver.wait(10) == 5
        assert time.monotonic() - told < 3.0
        assert driver.stderr is not None
        assert "interrupted" in driver.stderr.read()
    before = objects(out)
    again = stint("run", spec, "--address", ray_head.address)
    assert again.returncode == 0, again.stderr
    assert {name: objects(out)[name] for name in before} == before
    assert stint("verify", spec).returncode == 0


def test_two_drivers_started_together_both_succeed_and_commit_each_shard_once(
    many: Digits, tmp_path: Path, write_spec: WriteSpec, ray_head: Head
) -> None:
    out = tmp_path / "out"
    spec = write_spec(many.spec(out, **DEAR, workers__max=1))
    with started("run", spec, "--address", ray_head.address) as one:
        with started("run", spec, "--address", ray_head.address) as two:
            first, second = (driver.communicate(timeout=200) for driver in (one, two))
        assert (one.returncode, two.returncode) == (0, 0), first[1] + second[1]
    committed = [
        json.loads(file.read_text())["shards_committed_here"] for file in out.glob("_stint/runs/*/report.json")
    ]
    assert len(committed) == 2
    assert sum(committed) == len(objects(out))
    verified = stint("verify", spec)
    assert verified.returncode == 0, verified.stdout


def test_a_killed_worker_is_replaced_and_its_shards_are_scored(
    many: Digits, tmp_path: Path, write_spec: WriteSpec, ray_head: Head
) -> None:
    out = tmp_path / "out"
    spec = write_spec(many.spec(out, **DEAR))
    with started("run", spec, "--address", ray_head.address) as driver:
        await_true(lambda: len(objects(out)) >= 2 and worker_pids(), "a worker at work")
        # The one that has worked: another may still be starting.
        os.kill(max(worker_pids(), key=lambda pid: sum(used(pid).values())), signal.SIGKILL)
        assert driver.wait(200) == 0
        assert driver.stderr is not None
        assert "worker lost" in driver.stderr.read()
    report = json.loads(next(out.glob("_stint/runs/*/report.json")).read_text())
    assert report["retries_by_code"].get("crashed", 0) == len(list(out.glob("model=*/_stint/crashes/*/*.json")))
    assert {failure["code"] for failure in report["failures"] if failure["shard"]} <= {"crashed"}
    assert stint("verify", spec).returncode == 0


# ------------------------------------------------------------------------------ ray job submit, S3, kill -9


def submit(head: Head, spec: str, submission: str, env: dict[str, str]) -> None:
    subprocess.run(
        [
            Path(PYTHON).parent / "ray", "job", "submit", "--no-wait", "--submission-id", submission,
            "--address", head.dashboard, "--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": env}),
            "--", PYTHON, "-m", "jobs", "run", spec,
        ],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip


def driver_pid(spec: str) -> int | None:
    """The process that runs `-m jobs run SPEC` itself, not the shell or supervisor around it."""
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[1:4] == [b"-m", b"jobs", b"run"] and spec.encode() in words:
            return int(process.name)
    return None


@pytest.mark.slow
@pytest.mark.objectstore
def test_a_submitted_job_killed_and_then_stopped_half_way_is_finished_by_submitting_it_again(
    many: Digits, tmp_path: Path, s3: str, s3_server: dict[str, str], ray_head: Head
) -> None:
    import s3fs
    from ray.job_submission import JobStatus, JobSubmissionClient

    fs = s3fs.S3FileSystem(version_aware=True, use_listings_cache=False)
    for file in many.images.glob("*.parquet"):
        fs.put(str(file), f"{s3}/images/{file.name}")
    fs.put(str(many.weights), f"{s3}/weights/digits.safetensors")
    changes = {"input__uri": f"{s3}/images/", "model__weights": f"{s3}/weights/digits.safetensors"}
    spec = tmp_path / "job.yaml"
    spec.write_text(yaml.safe_dump(many.spec(f"{s3}/out", **DEAR, **changes)))

    def versions() -> dict[str, list[str]]:
        """Every version that every prediction object ever had."""
        found = [key for key in fs.find(f"{s3}/out") if "/plan=" in key]
        return {key: [v["VersionId"] for v in fs.object_version_info(key) if v["Key"] in key] for key in found}

    client = JobSubmissionClient(ray_head.dashboard)
    killed, stopped, last = (f"digits-{uuid.uuid4().hex[:6]}" for _ in range(3))

    def await_end(submission: str) -> str:
        await_true(lambda: client.get_job_status(submission).is_terminal(), f"{submission} to end", 200)
        return str(client.get_job_logs(submission))

    submit(ray_head, str(spec), killed, s3_server)
    await_true(lambda: len(versions()) >= 4, "four shards committed")
    pid = driver_pid(str(spec))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await_end(killed)
    assert client.get_job_status(killed) == JobStatus.FAILED
    before = versions()

    submit(ray_head, str(spec), stopped, s3_server)
    await_true(lambda: len(versions()) >= len(before) + 4, "four more")
    client.stop_job(stopped)
    logs = await_end(stopped)
    assert client.get_job_status(stopped) == JobStatus.STOPPED
    assert "stint: interrupted; everything committed so far stays" in logs
    before |= versions()
    print(f"{len(before)} of {many.rows // 16} shards before the last submission")
    assert len(before) < many.rows / 16

    submit(ray_head, str(spec), last, s3_server)
    logs = await_end(last)
    assert client.get_job_status(last) == JobStatus.SUCCEEDED, logs
    assert f"complete: {many.rows:,} rows" in logs
    after = versions()
    assert {key: after[key] for key in before} == before
    assert all(len(ids) == 1 for ids in after.values())
    verified = stint("verify", str(spec), env=s3_server)
    assert verified.returncode == 0, verified.stdout
    assert f"{many.rows:,} rows claimed" in verified.stdout
    assert s3_server["AWS_SECRET_ACCESS_KEY"] not in logs
