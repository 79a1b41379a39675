"""Real Ray heads on loopback, each in a folder and a process group of its own, and ended by these."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.objectstore.processes import free_ports
from tests.support.digits_job import PYTHON

SECRET = "canary+Wren/7391"


@dataclass(frozen=True)
class Head:
    """`address` is the GCS's HOST:PORT, `dashboard` the job server's URL."""

    address: str
    dashboard: str
    folder: Path
    process: subprocess.Popen[bytes]


@contextmanager
def started_head(
    options: Callable[[str, Path], Sequence[str]] | Sequence[str], env: Mapping[str, str]
) -> Iterator[Head]:
    """`ray start --head` with `options`, which may be made from its address and folder. It may not answer yet."""
    gcs, dashboard, agent, agent_grpc, metrics = free_ports(5)
    address = f"127.0.0.1:{gcs}"
    with tempfile.TemporaryDirectory(prefix="stint-ray-") as name:  # short: it holds Unix sockets
        folder = Path(name)
        more = options(address, folder) if callable(options) else options
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    Path(PYTHON).parent / "ray", "start", "--head", "--block", "--disable-usage-stats",
                    f"--port={gcs}", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
                    f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}",
                    f"--dashboard-agent-grpc-port={agent_grpc}", f"--metrics-export-port={metrics}",
                    f"--temp-dir={folder}", "--object-store-memory=100000000", *more,
                ],
                env={**os.environ, **env}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            try:
                yield Head(address, f"http://127.0.0.1:{dashboard}", folder, process)
            finally:
                process.terminate()  # it ends its own children; what it leaves is in its group, or names its folder
                process.wait(20)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                for pid in _processes_of(name):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def await_true(condition: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    """Poll until `condition()` is truthy and return that."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.05)
    return found


def await_job_server(head: Head, token: str | None = None) -> None:
    """Until the job server answers, which is later than its port being open."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}

    def answers() -> bool:
        assert head.process.poll() is None, (head.folder / "log").read_text()
        with suppress(requests.RequestException):
            return requests.get(f"{head.dashboard}/api/jobs/", headers=headers, timeout=5).status_code == 200
        return False

    await_true(answers, "the head's job server", 60)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """Two CPUs, a GPU that is none, a dashboard for job submission, and a secret, as a pod may have one."""
    env = {"RAY_AUTH_MODE": "disabled", "AWS_SECRET_ACCESS_KEY": SECRET}
    with started_head(["--num-cpus=2", "--num-gpus=1"], env) as head:
        await_job_server(head)
        yield head


def _processes_of(folder: str) -> list[int]:
    """Processes that name this folder, which is ours alone."""
    found = []
    for process in Path("/proc").iterdir():
        with suppress(OSError):
            if process.name.isdigit() and folder.encode() in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found
