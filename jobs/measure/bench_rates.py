"""What `stint bench` measures: processes that hold one variant of the network, and the whole job. Each gives a rate."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from jobs.errors import RunFailed
from jobs.measure.rates import Completion, Turn, steady_rate
from workers.host.child import Child, Died, KilledFromOutside, Overdue
from workers.measure import messages

LOAD_S = 600.0
"""A variant that is not loaded by then is stuck."""
MOST_TURNS = 9
LEAST_TURNS = 2


class Rate(Protocol):
    """Something that can be measured again and again, in images a second."""

    def __call__(self, seconds: float) -> float: ...


@dataclass
class Processes:
    """Processes that hold the same variant, each on its own cores."""

    variants: list[messages.Variant]
    children: list[Child]
    batch: int
    what: str = ""
    """What they run, as they say once they are loaded."""

    def load(self) -> str | None:
        """Why they cannot be, or None."""
        for child, variant in zip(self.children, self.variants, strict=True):
            child.put(variant)
        answers: list[messages.Loaded | messages.NotPossible] = [answer_of(child) for child in self.children]
        for answer in answers:
            if isinstance(answer, messages.NotPossible):
                return answer.reason
            self.what = answer.what
        return None

    def __call__(self, seconds: float) -> float:
        for child in self.children:
            child.put(messages.AskBatch(batch=self.batch, seconds=seconds))
        laps: list[messages.BatchLap] = [answer_of(child) for child in self.children]
        return sum(lap.images / lap.seconds for lap in laps)

    def close(self) -> None:
        for child in self.children:
            child.end()


def turns_of(before: Rate, after: Rate, seconds: float, until: float) -> list[Turn]:
    turns: list[Turn] = []
    while len(turns) < LEAST_TURNS or (len(turns) < MOST_TURNS and time.monotonic() + 2 * seconds < until):
        turns.append((before(seconds), after(seconds)))
    return turns


def answer_of(child: Child) -> Any:
    try:
        return child.take(LOAD_S)
    except (Died, KilledFromOutside) as error:
        raise RunFailed(f"a process that measures ended: {error}", "mind this machine's memory") from error
    except Overdue as error:
        raise RunFailed(f"a process that measures has not answered in {LOAD_S:.0f} s") from error


@dataclass
class WholeJob:
    """`stint run` into a new output that has the bundle already."""

    spec: Path
    bundles: Path
    workers: int
    rows: int
    took_s: float = 0.0
    """From the command to its end, of the last run."""

    def __call__(self, seconds: float) -> float:  # noqa: ARG002  (a run takes what it takes)
        output = self.spec.parent / "run"
        shutil.copytree(self.bundles / "_stint" / "bundles", output / "_stint" / "bundles")
        began = time.monotonic()
        stint("run", self.spec, f"--set=output.uri={output}")
        self.took_s = time.monotonic() - began
        rate = steady_rate(completions(output), self.workers)
        shutil.rmtree(output)
        if rate is None:
            raise RunFailed("the whole job ended too soon for its rate to be told: allow more --minutes")
        return rate


def completions(output: Path) -> list[Completion]:
    """When each shard below a local output was committed, and its rows."""
    files = output.glob("model=*/plan=*/*.parquet")
    return [(file.stat().st_mtime, pq.read_metadata(file).num_rows) for file in files]


def stint(command: str, spec: Path, *more: str) -> None:
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)  # whatever made this process find us
    done = subprocess.run(
        [sys.executable, "-P", "-m", "jobs", command, str(spec), *more],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last: Sequence[str] = done.stderr.strip().splitlines()[-5:]
        raise RunFailed(f"stint {command} ended with code {done.returncode}:\n" + "\n".join(last))
