"""The whole job against bare pinned processes that run the same read, decode and predict loop with no engine around it.

    python -m tests.benchmarks.bench_job [--arch resnet50 mobilenet_v2] [--rows 4000] [--rounds 3]

Both take turns on the same generated photographs and the same bundle; their predictions must be the same. Steady rates:
while all workers score. Absolute figures move from machine to machine; the ratio is the point.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from pathlib import Path

from jobs.measure.rates import ratio
from tests.benchmarks.arena import BARE, STINT, Arena, make_input, same_work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["resnet50", "mobilenet_v2"])
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("bench-out"))
    given = parser.parse_args()
    folder = given.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    make_input(folder / "images", given.rows)
    print(f"{given.rows} photographs of 500 by 375, {given.rounds} rounds, medians\n")
    print(f"{'network':<16}{'bare img/s':>12}{'job img/s':>12}{'job ÷ bare':>12}{'±':>7}   stages of the job")
    for arch in given.arch:
        arena = Arena.prepare(folder, arch)
        turns, stage_s = [], {}
        for _ in range(given.rounds):
            bare, theirs = arena.run(BARE, folder / "images")
            job, ours = arena.run(STINT, folder / "images")
            if why := same_work(ours, theirs, same_network=True):
                raise SystemExit(f"{arch}: not the same work: {why}")
            turns.append((bare.steady, job.steady))
            stage_s = {stage: s for stage, s in job.stage_s.items() if stage not in ("wait", "throttled")}
        bare_rate, job_rate = (statistics.median(rates) for rates in zip(*turns, strict=True))
        middle, spread = ratio(turns)
        shares = ", ".join(f"{stage} {seconds / sum(stage_s.values()):.0%}" for stage, seconds in stage_s.items())
        print(f"{arch:<16}{bare_rate:>12.1f}{job_rate:>12.1f}{middle:>12.3f}{spread:>7.1%}   {shares}")


if __name__ == "__main__":
    main()
