"""A real Ray whose GCS answers no more: a run heeds SIGTERM all the same, and ends by itself where the GCS is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.digits_job import DEAR, Digits
from tests.support.ray_heads import Head, await_true, started_head
from tests.whole.test_ray import WriteSpec, objects, started, worker_pids

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240)]

GONE_S = 20
"""How long Ray goes on without its GCS; a minute if it is not told otherwise."""
ENV = {"RAY_AUTH_MODE": "disabled", "RAY_gcs_rpc_server_reconnect_timeout_s": str(GONE_S)}


@contextmanager
def at_work(digits: Digits, out: Path, write_spec: WriteSpec) -> Iterator[tuple[Head, subprocess.Popen[str]]]:
    """A head and a run with a worker that has committed something."""
    many = digits.repeated(out.parent / "many", 4)
    with started_head(["--num-cpus=1"], ENV) as head:
        await_true(lambda: list((head.folder / "session_latest/sockets").glob("raylet*")), "the head", 60)
        with started("run", write_spec(many.spec(out, **DEAR)), "--address", head.address, env=ENV) as driver:
            await_true(lambda: objects(out) and workers(head), "a worker at work")
            yield head, driver


def cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def workers(head: Head) -> list[int]:
    """Of this head's node: their parent is its raylet, which names its folder."""

    def parent(pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return 0

    return [pid for pid in worker_pids() if str(head.folder).encode() in cmdline(parent(pid))]


def gcs(head: Head) -> int:
    pids = [int(process.name) for process in Path("/proc").iterdir() if process.name.isdigit()]
    (found,) = [
        pid
        for pid in pids
        if b"gcs_server" in cmdline(pid).split(b"\0")[0] and str(head.folder).encode() in cmdline(pid)
    ]
    return found


def told(driver: subprocess.Popen[str]) -> str:
    assert driver.stderr is not None
    return driver.stderr.read()


def test_a_run_whose_worker_dies_while_the_gcs_is_frozen_ends_with_code_5_in_time(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec
) -> None:
    with at_work(quantized_digits, tmp_path / "out", write_spec) as (head, driver):
        os.kill(gcs(head), signal.SIGSTOP)
        try:
            os.kill(workers(head)[0], signal.SIGKILL)
            with pytest.raises(subprocess.TimeoutExpired):
                driver.wait(3)  # what became of the node is asked for
            driver.send_signal(signal.SIGTERM)
            sent = time.monotonic()
            assert driver.wait(10) == 5, told(driver)
            assert time.monotonic() - sent < 3
            assert "interrupted; everything committed so far stays" in told(driver)
        finally:
            os.kill(gcs(head), signal.SIGCONT)


def test_a_run_whose_gcs_is_gone_says_so_and_ends_by_itself(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec
) -> None:
    with at_work(quantized_digits, tmp_path / "out", write_spec) as (head, driver):
        os.kill(gcs(head), signal.SIGKILL)
        os.kill(workers(head)[0], signal.SIGKILL)
        assert driver.wait(3 * GONE_S) == 1
        assert "the Ray cluster has not answered for 15 s" in told(driver)
