"""A small real job: digits as JPEG in Parquet, a network trained on the other half, true labels."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.demo import load_digits, train_weights, write_images

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable


@dataclass(frozen=True)
class Digits:
    """Input and weights that a session's tests share and never change."""

    images: Path
    weights: Path
    rows: int

    def spec(self, output: str | Path, **changes: Any) -> dict[str, Any]:
        """A spec over them; `section__key=value` changes a key, `section=mapping` a whole section."""
        spec: dict[str, Any] = {
            "name": "digits",
            "input": {"uri": str(self.images), "keys": ["id", "digit"], "shard_rows": 64},
            "model": {
                "arch": "workers.digits:digits_cnn",
                "weights": str(self.weights),
                "preprocess": {"resize": 32, "crop": 32, "mean": [0.3] * 3, "std": [0.35] * 3},
                "calibration": {"rows": 64},
            },
            "gate": {"labels_column": "digit", "max_top1_drop": 0.01, "rows": 200},
            "output": {"uri": str(output), "topk": 3},
            "limits": {"bad_rows": 0.05},
        }
        for path, value in changes.items():
            section, _, key = path.partition("__")
            if key:
                spec.setdefault(section, {})[key] = value
            else:
                spec[section] = value
        return spec


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    folder = tmp_path_factory.mktemp("digits")
    pictures, labels = load_digits()
    half = len(labels) // 2
    train_weights(folder / "digits.safetensors", pictures[:half], labels[:half], copies=2)
    rows = write_images(folder / "images", pictures[half:], labels[half:], seed=1, copies=1)
    return Digits(folder / "images", folder / "digits.safetensors", rows)


@pytest.fixture
def write_spec(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    def write(spec: dict[str, Any]) -> str:
        file = tmp_path / "job.yaml"
        file.write_text(yaml.safe_dump(spec))
        return str(file)

    return write


def stint(*arguments: str, env: dict[str, str] | None = None, timeout: float = 200) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, from the root of the checkout."""
    return subprocess.run(
        [PYTHON, "-m", "jobs", *arguments],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def predictions(folder: Path) -> pa.Table:
    """All predictions below an output folder, in the order of the shards."""
    files = sorted(folder.glob("model=*/plan=*/*.parquet"))
    return pa.concat_tables(pq.read_table(io.BytesIO(file.read_bytes())) for file in files)


# ---------------------------------------------------------------------------------------------- Ray


@dataclass(frozen=True)
class Head:
    address: str
    dashboard: str


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    """A real head node with two CPUs and a dashboard for job submission, on loopback."""
    ports = [_free_port() for _ in range(5)]
    with tempfile.TemporaryDirectory(prefix="stint-ray-") as folder:  # short: it holds Unix sockets
        log = (Path(folder) / "log").open("wb")
        head = subprocess.Popen(
            [
                Path(PYTHON).parent / "ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats",
                f"--port={ports[0]}", "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1",
                f"--dashboard-port={ports[1]}", f"--dashboard-agent-listen-port={ports[2]}",
                f"--dashboard-agent-grpc-port={ports[3]}", f"--metrics-export-port={ports[4]}",
                f"--temp-dir={folder}", "--object-store-memory=100000000",
            ],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            _await_job_server(ports[1], head)
            yield Head(f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}")
        finally:
            head.terminate()  # it ends its own children; what it leaves is in its process group
            head.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
            log.close()


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _await_job_server(port: int, head: subprocess.Popen[bytes]) -> None:
    """Until the job server answers, which is later than the port being open."""
    from ray.job_submission import JobSubmissionClient

    deadline = time.monotonic() + 60
    while True:
        try:
            JobSubmissionClient(f"http://127.0.0.1:{port}").list_jobs()
            return
        except (ConnectionError, RuntimeError):
            if head.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.3)


def await_true(condition: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    """Poll until `condition()` is truthy and return that."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.05)
    return found
