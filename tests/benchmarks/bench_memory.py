"""A worker's most resident memory over that of a bare process that holds the same model.

    python -m tests.benchmarks.bench_memory [--arch resnet50 mobilenet_v2] [--rows 2000] [--rounds 3]

Bare: a process that imports torch, loads the archive and scores the same photographs, batch by batch, from memory; one
thread, one core. The worker: the largest of a run on a local Ray, which reads Parquet, reads ahead, and writes Parquet
besides. Both by VmHWM, in turns.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from jobs.measure.bench_images import photographs
from jobs.measure.rates import ratio
from tests.benchmarks.arena import DISTINCT, STINT, Arena, make_input
from workers.host.cores import thread_environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("bench-out"))
    given = parser.parse_args()
    folder = given.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    make_input(folder / "images", given.rows)
    pictures = folder / "pictures"
    pictures.mkdir()
    for number, data in enumerate(photographs(DISTINCT, quality=95)):
        (pictures / f"{number:03d}.jpg").write_bytes(data)
    print(f"{given.rows} photographs of 500 by 375, {given.rounds} rounds, medians\n")
    print(f"{'network':<16}{'bare MiB':>10}{'worker MiB':>12}{'worker ÷ bare':>15}{'±':>7}")
    for arch in given.arch:
        arena = Arena.prepare(folder, arch)
        turns = [
            (_bare_bytes(arena, pictures, given.rows), arena.run(STINT, folder / "images")[0].peak_rss_bytes)
            for _ in range(given.rounds)
        ]
        bare, worker = (statistics.median(sizes) / 2**20 for sizes in zip(*turns, strict=True))
        middle, spread = ratio(turns)
        print(f"{arch:<16}{bare:>10.0f}{worker:>12.0f}{middle:>15.2f}{spread:>7.1%}")


def _bare_bytes(arena: Arena, pictures: Path, rows: int) -> int:
    work = arena.work(arena.folder / "bare", pictures)
    file = work.write(arena.folder / "work.json")
    command = [sys.executable, "-m", "tests.benchmarks.peers.model_only", str(file), str(rows)]
    env = {**os.environ, **thread_environment(1), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return int(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)


if __name__ == "__main__":
    main()
