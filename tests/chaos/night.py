"""The job that chaos befalls: rows are delivered in files, drivers come and go, the output is watched all along."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from tests.chaos.cluster import ChaosCluster
from tests.chaos.oracle import Output
from tests.support.digits_job import DEAR, PYTHON, ROOT, Digits

DELIVERY_ROWS = 1600
SHARD_ROWS = 16
LOOK_S = 0.05
BROKEN = (2, 3, 4)
"""Exit codes that no fault of a machine may end a run with: a bad spec, bad rows, a refused model."""


@dataclass
class Driver:
    """`stint run` in a process of its own."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stacks(self) -> str:
        """Where its threads are, for a run that should have ended."""
        spy = subprocess.run(
            [Path(PYTHON).parent / "py-spy", "dump", "--pid", str(self.process.pid)],
            capture_output=True, text=True, check=False, timeout=30,
        )  # fmt: skip
        return spy.stdout + spy.stderr

    def said(self) -> str:
        return self.log.read_text(errors="replace")


@dataclass
class Night:
    """`folder` holds input, spec and logs. `url` is the output for the spec, `output` the same for the oracle."""

    cluster: ChaosCluster
    digits: Digits
    folder: Path
    url: str
    output: Output
    say: Callable[[str], None]
    delivered: int = 0
    drivers: list[Driver] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    restarts: int = 0
    _seen: int = 0
    """Drivers whose end has been looked at."""

    def __post_init__(self) -> None:
        self._images = self.folder / "images"
        self._images.mkdir(parents=True)
        table = pq.read_table(self.digits.images)
        self._table = table.take([row % table.num_rows for row in range(DELIVERY_ROWS)])
        self.spec = self.folder / "job.yaml"
        changes: dict[str, Any] = {**DEAR, "input__uri": str(self._images), "input__shard_rows": SHARD_ROWS}
        self.spec.write_text(yaml.safe_dump(self.digits.spec(self.url, **changes)))
        self.deliver()

    def deliver(self) -> None:
        """One more file of rows, with keys that no other row has."""
        keys = pa.array(range(self.delivered, self.delivered + DELIVERY_ROWS), pa.int64())
        rows = self._table.set_column(self._table.schema.get_field_index("id"), "id", keys)
        part = self._images / ".part"  # a half-copied file is another test's business
        pq.write_table(rows, part, row_group_size=SHARD_ROWS, compression="none", use_dictionary=False)
        part.rename(self._images / f"{self.delivered:08d}.parquet")
        self.delivered += DELIVERY_ROWS

    def run(self) -> Driver:
        log = self.folder / f"driver-{len(self.drivers)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [PYTHON, "-m", "jobs", "run", str(self.spec), "--address", self.cluster.address],
                cwd=ROOT, env=self.cluster.env, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        self.drivers.append(Driver(process, log))
        return self.drivers[-1]

    def running(self) -> list[Driver]:
        return [driver for driver in self.drivers if driver.running]

    def go_on(self) -> None:
        """See to it that a driver is running: again after one that failed, after one that is through with more rows."""
        if self.running():
            return
        if self.drivers and self.complete():
            self.deliver()
        self.run()

    def complete(self) -> bool:
        """Whether the driver that ended last has completed everything; the ends of all are judged on the way."""
        for driver in self.drivers[self._seen :]:
            if driver.running:
                return False
            self._seen += 1
            code = driver.process.returncode
            self.restarts += code != 0
            last = (driver.said().strip().splitlines() or [""])[-1]
            self.say(f"    run {self._seen} ended with code {code}: {last[:150]}")
            if code in BROKEN:
                self.problems.append(f"a run ended with code {code}: {driver.said()[-2000:]}")
        return self.drivers[-1].process.returncode == 0

    def wait(self, condition: Callable[[], Any], timeout_s: float) -> bool:
        """Until the condition holds, while runs go on; False if it does not in time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.go_on()
            time.sleep(LOOK_S)
        return True

    def await_end(self, timeout_s: float, why: str) -> None:
        """Until no driver is running; one that does not end is told, with its stacks, and killed."""
        deadline = time.monotonic() + timeout_s
        for driver in self.running():
            with suppress(subprocess.TimeoutExpired):
                driver.process.wait(max(0.0, deadline - time.monotonic()))
            if driver.running:
                self.problems.append(
                    f"{why}: a run goes on after {timeout_s:.0f} s\n{driver.stacks()}\n{driver.said()[-2000:]}"
                )
                driver.kill()

    def verify(self) -> None:
        ended = subprocess.run(
            [PYTHON, "-m", "jobs", "verify", str(self.spec)],
            cwd=ROOT, env=self.cluster.env, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        if ended.returncode:
            self.problems.append(f"verify: code {ended.returncode}\n{ended.stdout}{ended.stderr}")

    def end(self) -> None:
        for driver in self.running():
            driver.kill()
