"""Workers and nodes of a real Ray, killed: the facts that `jobs.pool.nodes` sorts by. The pool is the real one.

`python -m tests.jobs.pool.test_losses_ray ADDRESS` is the driver, in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.digits_job import PYTHON, ROOT

KILLS = ("worker", "raylet told to end", "raylet")
EXPECTED = {"worker": "crashed", "raylet told to end": "preempted", "raylet": "node_lost"}
LOST_WITHIN_S = 60.0


@pytest.mark.ray
@pytest.mark.slow
def test_how_a_worker_died_is_told_by_what_ray_knows_of_its_node() -> None:
    from tests.chaos.cluster import ChaosCluster

    with tempfile.TemporaryDirectory(prefix="stint-losses-") as name:
        cluster = ChaosCluster(Path(name), {})
        try:
            cluster.start()
            shown = subprocess.run(
                [PYTHON, "-m", "tests.jobs.pool.test_losses_ray", cluster.address],
                cwd=ROOT, env=cluster.env, capture_output=True, text=True, timeout=200, check=False,
            )  # fmt: skip
        finally:
            cluster.end()
    assert shown.returncode == 0, shown.stderr
    told = json.loads(shown.stdout.splitlines()[-1])
    assert told == EXPECTED


class Sleeper:
    """Stands for a worker: comes up at once and scores for ever. Its parent is the raylet of its node."""

    def __init__(self, spec: Any) -> None:
        pass

    def start(self) -> Any:
        from tests.support.fakes import INFO

        return replace(INFO, host=str(os.getppid()), pid=os.getpid())

    def score(self, shard: Any) -> None:
        time.sleep(1e6)


def _drive(address: str) -> None:
    import ray

    from jobs.pool import ray_pool
    from jobs.pool.contract import WorkerGone, WorkerReady
    from jobs.pool.nodes import NodeWatch
    from tests.jobs.pool.test_ray_pool import SHARD

    ray.init(address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    ray_pool.Worker = Sleeper  # type: ignore[attr-defined,misc,assignment]
    nodes = NodeWatch(ray.get_runtime_context().get_node_id(), ray.nodes)
    pool = ray_pool.RayPool(
        SimpleNamespace(threads=1, memory_bytes=None, model=SimpleNamespace(device="cpu")), 1, nodes
    )  # type: ignore[arg-type]

    def await_event(kind: type) -> Any:
        until = time.monotonic() + LOST_WITHIN_S
        while time.monotonic() < until:
            for event in pool.poll(0.2):
                if isinstance(event, kind):
                    return event
        raise TimeoutError(kind.__name__)

    told = {}
    for kill in KILLS:
        worker = pool.start({})
        info = await_event(WorkerReady).info
        pool.assign(worker, SHARD)
        time.sleep(0.5)  # let the call reach the actor
        if kill == "worker":
            os.kill(info.pid, signal.SIGKILL)
        else:
            os.kill(int(info.host), signal.SIGKILL if kill == "raylet" else signal.SIGTERM)
        told[kill] = await_event(WorkerGone).failure.code
    pool.close()
    print(json.dumps(told))


if __name__ == "__main__":
    _drive(sys.argv[1])
