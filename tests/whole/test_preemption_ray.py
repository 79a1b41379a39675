"""Preemption on a real Ray: a head, two nodes as KubeRay starts them, and a run whose budgets allow no failure."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.digits_job import DEAR, PYTHON, Digits, stint
from tests.support.ray_heads import Head, await_true, started_head
from tests.whole.test_ray import WriteSpec, started, worker_pids

DEARER = {**DEAR, "model__preprocess": {"resize": 800, "crop": 800, "mean": [0.3] * 3, "std": [0.35] * 3}}
"""Half a second a shard, which is long beside the time that word of a drain takes from the driver to a worker: else it
may be through with both shards that it holds before it hears of it."""

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(480)]

DISABLED = {"RAY_AUTH_MODE": "disabled"}
NO_FAILURE = {"bad_rows": 0.05, "infra_retries": 0, "task_retries": 0, "crash_retries": 0}
DRAIN_S = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"


@pytest.fixture(scope="module")
def many(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    return digits.repeated(tmp_path_factory.mktemp("many"), 3)


@contextmanager
def node_of(head: Head, drain_s: float) -> Iterator[subprocess.Popen[bytes]]:
    """A node of one CPU, by the command line that KubeRay gives to bash: SIGTERM must reach Ray through it."""
    ray = Path(PYTHON).parent / "ray"
    command = f"{ray} start --address={head.address} --node-ip-address=127.0.0.1 --block --num-cpus=1"
    options = "--object-store-memory=80000000 --disable-usage-stats"
    before = len(raylets(head))
    with (head.folder / "node.log").open("ab") as log:
        process = subprocess.Popen(
            ["/bin/bash", "-c", "--", f"ulimit -n 1024; {command} {options}"],
            env={**os.environ, **DISABLED, DRAIN_S: str(drain_s)},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        await_true(lambda: len(raylets(head)) > before, "a node", 60)
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(20)


@contextmanager
def two_nodes(head: Head, drain_s: float = 20) -> Iterator[list[subprocess.Popen[bytes]]]:
    with ExitStack() as stack:
        yield [stack.enter_context(node_of(head, drain_s)) for _ in range(2)]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Without CPUs, as heads in Kubernetes are."""
    with started_head(["--num-cpus=0"], DISABLED) as head:
        await_true(lambda: raylets(head), "the head", 60)
        yield head


def raylets(head: Head) -> list[Path]:
    """Sockets of all nodes that ever were. Two that start at the same moment on one machine take the same name."""
    return list((head.folder / "session_latest/sockets").glob("raylet*"))


def workers_of(node: subprocess.Popen[bytes]) -> list[int]:
    """Processes of our actors on a node, which is a session of its own."""
    return [pid for pid in worker_pids() if session_of(pid) == node.pid]


def node_at_work(nodes: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    """The first whose worker scores: Ray puts the method that an actor is in into the title of its process."""

    def scores(node: subprocess.Popen[bytes]) -> bool:
        with suppress(OSError):
            return any(b"Worker.score" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers_of(node))
        return False

    found: subprocess.Popen[bytes] = await_true(lambda: next(filter(scores, nodes), None), "a worker that scores", 150)
    return found


def session_of(pid: int) -> int:
    """0 if there is no such process any more."""
    with suppress(OSError):
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
        return 0 if state == "Z" else int(session)
    return 0


def report_of(out: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(next(out.glob("_stint/runs/*/report.json")).read_text())
    return report


@pytest.mark.parametrize("drain_s", [80, 2], ids=["time to finish", "no time"])
def test_a_drained_node_is_left_before_its_deadline_and_costs_no_budget(
    many: Digits, tmp_path: Path, write_spec: WriteSpec, head: Head, drain_s: float
) -> None:
    out = tmp_path / "out"
    changes = {**DEARER, "input__shard_rows": 64, "workers": {"batch": 8}, "limits": NO_FAILURE}
    spec = write_spec(many.spec(out, **changes))
    with two_nodes(head, drain_s) as nodes, started("run", spec, "--address", head.address) as driver:
        node = node_at_work(nodes)
        node.terminate()
        told = time.monotonic()
        node.wait(60)
        left_after_s = time.monotonic() - told
        _, shown = driver.communicate(timeout=200)
        assert driver.returncode == 0, shown
    # Ray ends a drained node early once its workers are gone, and kills it at the deadline. Ending takes seconds, too.
    assert left_after_s < max(drain_s / 2, 20)
    failed = [failure for failure in report_of(out)["failures"] if failure["budget"] != "start"]
    # With time enough it hands back what it only read ahead, and without also what it was in the middle of.
    assert 0 < len(failed) <= (1 if drain_s == 80 else 2)
    assert {(failure["code"], failure["budget"]) for failure in failed} == {("preempted", "none")}
    assert stint("verify", spec).returncode == 0


def test_a_worker_that_gets_sigterm_is_replaced_and_costs_no_budget(
    many: Digits, tmp_path: Path, write_spec: WriteSpec, head: Head
) -> None:
    out = tmp_path / "out"
    changes = {**DEARER, "input__shard_rows": 64, "workers": {"batch": 8}, "limits": NO_FAILURE}
    spec = write_spec(many.spec(out, **changes))
    with two_nodes(head) as nodes, started("run", spec, "--address", head.address) as driver:
        (worker,) = workers_of(node_at_work(nodes))
        before = {worker for node in nodes for worker in workers_of(node)}
        os.kill(worker, signal.SIGTERM)
        await_true(lambda: not session_of(worker), "the worker has left", 30)
        await_true(lambda: {w for node in nodes for w in workers_of(node)} - before, "another in its place", 60)
        _, shown = driver.communicate(timeout=200)
        assert driver.returncode == 0, shown
    assert {failure["budget"] for failure in report_of(out)["failures"]} <= {"none", "start"}
    assert stint("verify", spec).returncode == 0
