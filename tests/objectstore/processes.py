"""Server processes on loopback: a free port each, their log in a file, ended by their process id."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

READY_S = 60.0
PORTS = 20_000, 32_000
"""Above those of Ray's workers, below those that Linux gives to connections."""
_chance = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """`count` different ones, none of those that the kernel gives to connections: until a server listens, one of its
    own might get it. Drawn from the machine's chance: Hypothesis seeds `random` alike in every process of the suite.
    """
    ports: list[int] = []
    with ExitStack() as held:  # each is held until all are drawn, so that none is drawn twice
        while len(ports) < count:
            with suppress(OSError):
                s = held.enter_context(socket.socket())
                s.bind(("127.0.0.1", port := _chance.randrange(*PORTS)))
                ports.append(port)
    return ports


@contextmanager
def started(
    argv: Sequence[str | Path], log: Path, *, port: int | None = None, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended on leaving; with a `port`, it listens there on entering."""
    with log.open("ab") as out:
        process = subprocess.Popen(argv, env={**os.environ, **(env or {})}, stdout=out, stderr=subprocess.STDOUT)
    try:
        if port is not None:
            await_port(port, process, log)
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode} before it listened; see {log}")
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError(f"the server did not listen on port {port} within {READY_S:.0f} s; see {log}")
