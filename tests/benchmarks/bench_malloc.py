"""What glibc's malloc costs a network that computes in a thread of its own, as it does in a worker.

    python -m tests.benchmarks.bench_malloc [--arch mobilenet_v2] [--seconds 4] [--rounds 5]

Fresh processes on one core take turns: malloc as it is, in the main thread and in another; one arena for all threads;
that with huge pages, which is what workers run with (workers/host/malloc.py). Rates are those of the INT8 network alone
in batches of 16, medians; faults are minor page faults, their mean over the processes and their range.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from workers.host import malloc
from workers.host.cores import thread_environment

BATCH = 16
CANDIDATES = {
    "main thread": ("main", {}),
    "another thread": ("thread", {}),
    "  one arena": ("thread", {malloc.VARIABLE: "glibc.malloc.arena_max=1"}),
    "  one arena, huge pages": ("thread", malloc.variables({})),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=2, metavar=("WHERE", "ARTIFACT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        where, file = given.one
        told: list[tuple[float, float]] = []
        work = threading.Thread(target=lambda: told.append(measured(Path(file), given.seconds)))
        work.run() if where == "main" else work.start()
        if where != "main":
            work.join()
        print(json.dumps(told[0]))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "artifact"
        subprocess.run([sys.executable, "-c", MAKE, given.arch, str(file)], check=True, stderr=subprocess.DEVNULL)
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in CANDIDATES}
        for _ in range(given.rounds):
            for name, (where, variables) in CANDIDATES.items():
                runs[name].append(one(where, file, variables, given.seconds))
    print(f"{given.arch} INT8, one core, {given.rounds} processes each, in turns")
    print(f"{'malloc':<26}{'img/s':>8}{'lowest':>9}{'faults/s':>10}   range")
    for name, each in runs.items():
        rates, faults = zip(*each, strict=True)
        middle = statistics.median(rates)
        print(
            f"{name:<26}{middle:>8.1f}{min(rates):>9.1f}{statistics.mean(faults):>10,.0f}   "
            f"{min(faults):,.0f} to {max(faults):,.0f}"
        )


MAKE = """
import pickle, sys
from pathlib import Path
from tests.benchmarks.bench_engines import CALIBRATION_ROWS, crops, network
from tests.support.networks import quantize
from workers.host.cpu import isa_class
model = network(sys.argv[1], 224)
Path(sys.argv[2]).write_bytes(pickle.dumps(quantize(model, crops(model, CALIBRATION_ROWS), isa_class()).int8))
"""


def one(where: str, file: Path, variables: dict[str, str], seconds: float) -> tuple[float, float]:
    """Images and page faults a second of a fresh process."""
    env = {name: value for name, value in os.environ.items() if name != malloc.VARIABLE}
    env |= {**thread_environment(1), "TORCH_CPP_LOG_LEVEL": "ERROR", **variables}
    module = [sys.executable, "-m", "tests.benchmarks.bench_malloc", "--seconds", str(seconds)]
    done = subprocess.run([*module, "--one", where, str(file)], env=env, stdout=subprocess.PIPE, check=True)
    rate, faults = json.loads(done.stdout)
    return rate, faults


def measured(file: Path, seconds: float) -> tuple[float, float]:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    import pickle

    import torch

    from workers.engines.artifact import open_artifact

    torch.set_num_threads(1)
    engine = open_artifact(pickle.loads(file.read_bytes()))
    pixels_NHWC = engine.buffer(BATCH).full_NHWC
    for _ in range(5):
        engine.predict(pixels_NHWC)
    before, began, images = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter(), 0
    while (took_s := time.perf_counter() - began) < seconds:
        engine.predict(pixels_NHWC)
        images += BATCH
    return images / took_s, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / took_s


if __name__ == "__main__":
    main()
