"""How soon `stint run` has committed its first prediction, against what no run can do without.

    python -m tests.benchmarks.bench_start [--arch resnet50] [--rounds 5]

The run: from the start of the command to its first object, on a local Ray, the bundle being ready; shards are of a few
rows. Bare: starting a local Ray with the same options, `import ray` included, plus importing torch and loading the
bundle. A worker exists only when Ray does, so the two are added; workers start at once, so torch and bundle are taken
by as many fresh pinned processes at once as the run has workers, and the quickest counts, as the run's first object is
that of its quickest worker. Interpreters that start, and everything else, are the run's own. All in turns, medians.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from jobs.measure.rates import ratio
from tests.benchmarks.arena import Arena, make_input
from tests.benchmarks.peers.scoring import Work
from workers.host.cores import thread_environment

ROWS_A_GROUP = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("bench-out"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        print(json.dumps(STEPS[given.step](given.work)))
        return
    folder = given.folder.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    make_input(folder / "images", 8 * ROWS_A_GROUP, ROWS_A_GROUP)
    arena = Arena.prepare(folder, given.arch, shard_rows=ROWS_A_GROUP)
    work = folder / "work.json"
    arena.work(folder / "bare", folder / "images").write(work)
    bare, runs = [], []
    for _ in range(given.rounds):
        bare.append(_bare(work, arena.cores))
        runs.append(_run(arena, folder))
    middle, spread = ratio([(sum(b.values()), r["first object"]) for b, r in zip(bare, runs, strict=True)])
    print(f"{given.arch}, {len(arena.cores)} workers, {given.rounds} rounds in turns, medians\n\nbare, seconds:")
    for step in bare[0]:
        print(f"  {step:<24}{statistics.median(b[step] for b in bare):>7.2f}")
    print("run, seconds from the start of the command:")
    for step in runs[-1]:
        print(f"  {step:<24}{statistics.median(r[step] for r in runs if step in r):>7.2f}")
    print(f"\nrun ÷ bare {middle:.2f} ±{spread:.1%}")


def _bare(work: Path, cores: tuple[int, ...]) -> dict[str, float]:
    ray = json.loads(_step("ray", work).communicate()[0])
    loading = [_step("model", work, core) for core in cores]
    loaded = [json.loads(process.communicate()[0]) for process in loading]
    return {**ray, **min(loaded, key=lambda seconds: sum(seconds.values()))}


def _step(name: str, work: Path, core: int | None = None) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_start", "--step", name, "--work", str(work)]
    env = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        **(thread_environment(1) if core is not None else {}),
    }
    pinned = ["taskset", "-c", str(core)] if core is not None and shutil.which("taskset") else []
    return subprocess.Popen([*pinned, *command], stdout=subprocess.PIPE, env=env)


def _ray(work: Path) -> dict[str, float]:
    cores = len(Work.read(str(work)).cores)
    began = time.perf_counter()
    import ray

    imported = time.perf_counter()
    from jobs.pool.ray_local import OBJECT_STORE_BYTES

    between = time.perf_counter()
    ray.init(
        "local",
        num_cpus=cores,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    done = {"import ray": imported - began, "ray.init": time.perf_counter() - between}
    ray.shutdown()
    return done


def _model(work: Path) -> dict[str, float]:
    from workers.bundle.bundle import load_engine, read_manifest
    from workers.storage.store import open_store

    it = Work.read(str(work))
    store = open_store(it.output, single_writer=True)
    began = time.perf_counter()
    import torch

    torch.set_num_threads(1)
    imported = time.perf_counter()
    manifest = read_manifest(store, it.bundle)
    assert manifest is not None, it
    load_engine(store, manifest, it.artifact, threads=1)
    return {"import torch": imported - began, "load bundle": time.perf_counter() - imported}


STEPS = {"ray": _ray, "model": _model}


def _run(arena: Arena, folder: Path) -> dict[str, float]:
    """Moments of one run, in seconds after its command was given."""
    trace = folder / "trace.json"
    trace.unlink(missing_ok=True)
    out, began = arena.run_stint(
        folder / "images", module="tests.benchmarks.start_trace", env={"START_TRACE": str(trace)}
    )
    moments = {step: at - began for step, at in json.loads(trace.read_text()).items()}
    report = json.loads(next(out.glob("_stint/runs/*/report.json")).read_text())
    laps = min((worker["start_s"] for worker in report["workers"]), key=lambda laps: sum(laps.values()))
    first = min(file.stat().st_mtime for file in out.glob("model=*/plan=*/*.parquet"))
    return {**moments, "first object": first - began, **{f"of it, worker: {lap}": s for lap, s in laps.items()}}


if __name__ == "__main__":
    main()
