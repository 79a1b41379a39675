"""From zero nodes and back: Ray's own autoscaler (v2) over real raylets that a fake provider starts on this machine.

The provider is Ray's `FakeMultiNodeProvider`, named as an external one: under its own name the autoscaler reads a file
of defaults that the wheel does not carry.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.digits_job import PYTHON, ROOT, Digits, await_true, stint

pytestmark = pytest.mark.ray

HEAD_ID = "f" * 51 + "00000"
ON_DEMAND = {"ray.io/market-type": "on-demand"}
SPOT = {"ray.io/market-type": "spot"}
IDLE_S = 4
SLOW = {
    "model__preprocess": {"resize": 448, "crop": 448, "mean": [0.3] * 3, "std": [0.35] * 3},
    "model__calibration": {"rows": 16},
    "gate__labels_column": None,
    "gate__min_agreement": 0.0,
    "gate__rows": 16,
}
COPIES = 6
"""Large crops, many times over, make the work last until the second node is there; nobody looks at the predictions."""


WATCH = """
import json, pathlib, sys, time, ray
ray.init(sys.argv[1], log_to_driver=False, logging_level="ERROR")
file = pathlib.Path(sys.argv[3]).open("w")  # Ray says things of its own on stdout
while True:
    nodes = [node["Labels"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != sys.argv[2]]
    print(json.dumps([labels.get("ray.io/market-type") for labels in nodes]), file=file, flush=True)
    time.sleep(0.2)
"""
"""A process of its own, because one that loses its GCS is ended by Ray."""


@dataclass(frozen=True)
class Autoscaled:
    """A head without CPUs whose autoscaler may start two nodes of one CPU each, both labelled on-demand."""

    address: str
    watched: Path
    """A line for each look: the market types of the nodes that were up, the head left out."""

    def looks(self) -> list[list[str]]:
        return [json.loads(line) for line in self.watched.read_text().splitlines(keepends=True) if line[-1] == "\n"]

    def nodes(self) -> list[str]:
        return self.looks()[-1]


def config(gcs_address: str) -> dict[str, Any]:
    def node_type(cpus: int, most: int, **more: Any) -> dict[str, Any]:
        return {"resources": {"CPU": cpus}, "node_config": {}, "min_workers": 0, "max_workers": most, **more}

    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 1000,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": gcs_address,
            "head_node_id": HEAD_ID,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        # Nothing is installed anywhere, but each key is read.
        **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
        **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
        **{key: [] for key in ("initialization_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")},
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        "file_mounts_sync_continuously": False,
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": node_type(0, 0),
            "on-demand": node_type(1, 2, labels=ON_DEMAND),
        },
    }


@pytest.fixture(scope="module")
def autoscaled() -> Iterator[Autoscaled]:
    port, metrics_port = _free_port(), _free_port()
    address = f"127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="stint-ray-") as folder:  # short: it holds Unix sockets
        file = Path(folder) / "autoscaler.json"
        file.write_text(json.dumps(config(address)))
        log, watched = (Path(folder) / "log").open("wb"), Path(folder) / "watched"
        watch = None
        head = subprocess.Popen(
            [
                Path(PYTHON).parent / "ray", "start", "--head", "--block", "--num-cpus=0", "--disable-usage-stats",
                f"--port={port}", "--node-ip-address=127.0.0.1", "--include-dashboard=false",
                f"--metrics-export-port={metrics_port}", f"--temp-dir={folder}", "--object-store-memory=100000000",
                f"--autoscaling-config={file}",
            ],
            env={
                **os.environ,
                "RAY_AUTH_MODE": "disabled",
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
                "RAY_NODE_TYPE_NAME": "ray.head.default",
            },
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            await_true(lambda: head.poll() is None and _listens(port), "the head's GCS", 60)
            watch = subprocess.Popen([PYTHON, "-c", WATCH, address, HEAD_ID, watched], stdout=log, stderr=log)
            await_true(lambda: watched.exists() and watched.stat().st_size, "a first look", 30)
            yield Autoscaled(address, watched)
        finally:
            if watch is not None:
                watch.kill()
                watch.wait()
            head.terminate()  # it ends its own children; nodes that the provider has started are in its process group
            head.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            for pid in _processes_of(folder):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            log.close()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _processes_of(folder: str) -> list[int]:
    """Processes of the session in this folder, which is ours alone."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and folder.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


@contextmanager
def running(spec: str, cluster: Autoscaled) -> Iterator[subprocess.Popen[str]]:
    driver = subprocess.Popen(
        [PYTHON, "-m", "jobs", "run", spec, "--address", cluster.address],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield driver
    finally:
        driver.kill()
        driver.communicate()


def test_a_run_brings_up_nodes_from_zero_and_they_go_when_it_is_done(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str], autoscaled: Autoscaled
) -> None:
    out, many = tmp_path / "out", tmp_path / "in"
    many.mkdir()
    for file in digits.images.glob("*.parquet"):
        for copy in range(COPIES):
            (many / f"{copy}-{file.name}").write_bytes(file.read_bytes())
    spec = write_spec(digits.spec(out, **SLOW, workers__max=2, input__shard_rows=16, input__uri=str(many)))
    await_true(lambda: not autoscaled.nodes(), "no nodes at first")
    with running(spec, autoscaled) as driver:
        await_true(lambda: len(autoscaled.nodes()) == 2 or driver.poll() is not None, "two nodes")
        _, told = driver.communicate(timeout=120)
        assert driver.returncode == 0, told
    ended = time.monotonic()
    await_true(lambda: not autoscaled.nodes(), "the nodes to go", 60)
    print(f"nodes gone {time.monotonic() - ended:.0f} s after the run")
    report = json.loads(next(out.glob("_stint/runs/*/report.json")).read_text())
    assert max(len(look) for look in autoscaled.looks()) == 2
    assert len(report["workers"]) == 2, told
    assert stint("verify", spec).returncode == 0


def test_a_group_whose_nodes_never_come_is_not_waited_for(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str], autoscaled: Autoscaled
) -> None:
    out = tmp_path / "out"
    groups = [{"labels": SPOT, "patience_s": 2}, {"labels": ON_DEMAND}]
    spec = write_spec(digits.spec(out, workers__max=2, workers__groups=groups))
    with running(spec, autoscaled) as driver:
        _, told = driver.communicate(timeout=120)
        assert driver.returncode == 0, told
    assert {kind for look in autoscaled.looks() for kind in look} == {"on-demand"}
    assert stint("verify", spec).returncode == 0
