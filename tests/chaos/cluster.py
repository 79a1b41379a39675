"""A Ray cluster of several raylets on this machine, in a folder of its own, that may be killed in part or as a whole.

`ray.cluster_utils.Cluster` belongs to its process, and whoever loses its GCS is ended by Ray: so it lives in a process
of its own (`python -m tests.chaos.cluster`), which is told by lines on stdin to add nodes and answers with their
processes. Killing is done from outside, by process id. The kernel ends the daemons with that process; workers whose
raylet is gone end themselves, and what does not is found by the files that it holds open below the folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.ray_heads import await_true

NODES = 2
START_S = 120.0
GONE_S = 30.0
QUICK = {
    # How soon a node that says nothing is held to be dead, and how long a process goes on without its GCS.
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # or Ray takes 127.0.0.1 for the machine's address, and listens there
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
}


@dataclass
class ChaosCluster:
    """`folder` is short, because it holds Unix sockets, and ours alone; `env` is for its daemons and its drivers."""

    folder: Path
    more_env: Mapping[str, str]
    address: str = ""
    gcs: int = 0
    """Process id of the GCS."""
    head: int = 0
    """Process id of the head's raylet, which drivers connect to."""
    raylets: list[int] = field(default_factory=list)
    """Process ids of the other raylets, which hold a CPU each."""
    _host: subprocess.Popen[str] | None = None

    @property
    def env(self) -> dict[str, str]:
        # TMPDIR: Ray's address file, and the core leases of this cluster's workers, apart from others of the machine.
        return {**os.environ, **QUICK, **self.more_env, "TMPDIR": str(self.folder)}

    def start(self) -> None:
        """A head without CPUs and NODES nodes of one CPU each; whatever ran before is ended."""
        self.end()
        log = (self.folder / "host.log").open("a")
        self._host = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.cluster", str(self.folder)],
            env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        log.close()
        started = self._told()
        self.address, self.gcs, self.head = started["address"], started["gcs_server"], started["raylet"]
        for _ in range(NODES):
            self.add_node()

    def add_node(self) -> None:
        assert self._host is not None
        assert self._host.stdin is not None
        print("add", file=self._host.stdin, flush=True)
        self.raylets.append(self._told()["raylet"])

    def end(self) -> None:
        """SIGKILL everything of this cluster at once, and return when it is gone."""
        if self._host is not None:
            self._host.kill()
        for pid in self.processes():
            kill(pid)
        if self._host is not None:
            self._host.wait()
            for stream in (self._host.stdin, self._host.stdout):
                assert stream is not None
                with suppress(BrokenPipeError):
                    stream.close()
        self._host, self.raylets = None, []
        await_true(self._swept, "the cluster's processes to be gone", GONE_S)

    def workers(self, title: str = "ray::Worker") -> list[int]:
        """Processes of this cluster's actors whose title begins so."""
        return [pid for pid in self.processes() if title_of(pid).startswith(title)]

    def processes(self) -> Iterator[int]:
        """Whatever holds a file below the folder open: daemons and workers have their logs there."""
        below = f"{self.folder}/"
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid():
                with suppress(OSError):
                    if any(_target(link).startswith(below) for link in (process / "fd").iterdir()):
                        yield int(process.name)

    def _swept(self) -> bool:
        left = list(self.processes())
        for pid in left:
            kill(pid)
        return not left

    def _told(self) -> dict[str, Any]:
        assert self._host is not None
        assert self._host.stdout is not None
        line = self._host.stdout.readline()
        if not line:
            raise RuntimeError(f"the cluster's process has ended: {(self.folder / 'host.log').read_text()[-2000:]}")
        told: dict[str, Any] = json.loads(line)
        return told


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """False when there is no such process any more."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
        return True
    return False


def title_of(pid: int) -> str:
    with suppress(OSError):
        return (Path("/proc") / str(pid) / "cmdline").read_bytes().decode(errors="replace")
    return ""


def _target(link: Path) -> str:
    with suppress(OSError):
        return str(link.readlink())
    return ""


def _host(folder: str) -> None:
    """The process that the cluster lives in: ends with its stdin."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever Ray says goes to the log
    from ray.cluster_utils import Cluster

    here = {"node_ip_address": "127.0.0.1", "temp_dir": f"{folder}/ray", "object_store_memory": 100 * 2**20}
    cluster = Cluster(head_node_args={**here, "num_cpus": 0, "include_dashboard": False}, initialize_head=True)

    def tell(node: Any, **more: Any) -> None:
        pids = {kind: running[0].process.pid for kind, running in node.all_processes.items()}
        print(json.dumps({**pids, **more}), file=told, flush=True)

    tell(cluster.head_node, address=cluster.address)
    for _ in sys.stdin:
        tell(cluster.add_node(**here, num_cpus=1))


if __name__ == "__main__":
    _host(sys.argv[1])
