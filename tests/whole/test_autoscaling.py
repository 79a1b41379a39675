"""From zero nodes and back: Ray's own autoscaler (v2) over real raylets that a fake provider starts on this machine.

The provider is Ray's `FakeMultiNodeProvider`, named as an external one: under its own name the autoscaler reads a file
of defaults that the wheel does not carry.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.digits_job import DEAR, PYTHON, ROOT, Digits, stint
from tests.support.ray_heads import await_true, started_head

pytestmark = pytest.mark.ray

HEAD_ID = "f" * 51 + "00000"
ON_DEMAND = {"ray.io/market-type": "on-demand"}
SPOT = {"ray.io/market-type": "spot"}
IDLE_S = 4
COPIES = 3
"""Enough work to last until the second node is there."""

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


def options(gcs_address: str, folder: Path) -> list[str]:
    file = folder / "autoscaler.json"
    file.write_text(json.dumps(config(gcs_address)))
    return ["--num-cpus=0", "--include-dashboard=false", f"--autoscaling-config={file}"]


@pytest.fixture(scope="module")
def autoscaled() -> Iterator[Autoscaled]:
    env = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_NODE_TYPE_NAME": "ray.head.default",
    }
    with started_head(options, env) as head:
        await_true(lambda: head.process.poll() is None and _listens(head.address), "the head's GCS", 60)
        watched = head.folder / "watched"
        watch = subprocess.Popen([PYTHON, "-c", WATCH, head.address, HEAD_ID, watched], stdout=subprocess.DEVNULL)
        try:
            await_true(lambda: watched.exists() and watched.stat().st_size, "a first look", 30)
            yield Autoscaled(head.address, watched)
        finally:
            watch.kill()
            watch.wait()


def _listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), 1):
        return True
    return False


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
    quantized_digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str], autoscaled: Autoscaled
) -> None:
    out = tmp_path / "out"
    spec = write_spec(quantized_digits.repeated(tmp_path / "in", COPIES).spec(out, **DEAR, workers__max=2))
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


@pytest.mark.slow
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
