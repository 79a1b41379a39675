"""The whole job against bare pinned processes that run the same read, decode and predict loop with no engine around it.

    python -m tests.benchmarks.bench_job [--arch resnet50 mobilenet_v2] [--rows 2000] [--rounds 3]

Both candidates alternate within one run, on the same generated photographs and the same bundle. Steady rates: the bare
processes are timed from when all of them are ready, the job from its first worker being ready to its last shard.
Absolute figures move from machine to machine; the ratio is the point.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.job import Job
from jobs.spec_file import load_spec
from tests.images import photographs
from workers.threads import read_topology, thread_environment

ROW_GROUP = 250
DISTINCT = 64


def make_input(folder: Path, rows: int) -> None:
    """Parquet files of 500×375 JPEG photographs, a file for every 1000 rows."""
    folder.mkdir(parents=True)
    pictures = photographs(DISTINCT, quality=95)
    for number, start in enumerate(range(0, rows, 1000)):
        count = min(1000, rows - start)
        images = pa.array([pictures[(start + i) % DISTINCT] for i in range(count)], pa.binary())
        table = pa.table({"id": pa.array(range(start, start + count), pa.int64()), "image": images})
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(table, folder / f"{number:03d}.parquet", row_group_size=ROW_GROUP, **options)


def make_weights(arch: str, file: Path) -> None:
    """Random weights of the architecture: speed does not depend on what they say."""
    import torch
    from safetensors.torch import save_file

    from workers.torchvision_import import import_torchvision

    torch.manual_seed(0)
    module = import_torchvision().models.get_model(arch, weights=None)
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, file)


def spec_of(folder: Path, arch: str, output: str) -> Path:
    spec = {
        "name": "bench",
        "input": {"uri": str(folder / "images"), "keys": ["id"], "shard_rows": ROW_GROUP},
        "model": {
            "arch": f"torchvision/{arch}",
            "weights": str(folder / f"{arch}.safetensors"),
            "calibration": {"rows": 32},
        },
        "gate": {"min_agreement": 0.0, "rows": 32},
        "output": {"uri": str(folder / output)},
    }
    file = folder / f"{output}.yaml"
    file.write_text(yaml.safe_dump(spec))
    return file


def stint(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "jobs", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


def bare_process(
    cpu: int, spec: str, files: list[Path], barrier: Barrier, seconds: multiprocessing.Queue[float]
) -> None:
    """One pinned process: Parquet, decode, predict, top-5, and nothing else."""
    os.sched_setaffinity(0, {cpu})
    os.environ.update(thread_environment(1))
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    import torch

    from workers.bundle import load_engine, read_manifest
    from workers.pixels import decode_into

    torch.set_num_threads(1)
    job = Job.open(load_spec(spec, []), writing=False)
    manifest = read_manifest(job.store, job.fingerprints.bundle)
    assert manifest is not None
    engine = load_engine(job.store, manifest, "int8")
    buffer = engine.buffer(job.batch)
    engine.predict(buffer.full_NHWC)
    barrier.wait()
    started = time.perf_counter()
    for file in files:
        parquet = pq.ParquetFile(file, pre_buffer=False)
        for group in range(parquet.num_row_groups):
            images = parquet.read_row_group(group, columns=["image"]).column(0).chunk(0)
            for first in range(0, len(images), job.batch):
                for place, image in enumerate(images[first : first + job.batch]):
                    decode_into(memoryview(image.as_buffer()), manifest.preprocess, buffer.interior_NHWC[place])
                torch.from_numpy(engine.predict(buffer.full_NHWC)).softmax(1).topk(5)
    seconds.put(time.perf_counter() - started)


def bare_rate(spec: Path, files: list[Path], rows: int, cores: list[int]) -> float:
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(len(cores)), context.Queue()
    processes = [
        context.Process(target=bare_process, args=(cpu, str(spec), files[n :: len(cores)], barrier, seconds))
        for n, cpu in enumerate(cores)
    ]
    for process in processes:
        process.start()
    took = [seconds.get(timeout=600) for _ in processes]
    for process in processes:
        process.join()
    return rows / max(took)


def job_rate(folder: Path, arch: str, spec: Path, number: int) -> tuple[float, dict[str, float]]:
    """A run into a new output that already has the bundle; its own report says the rate."""
    output = f"{arch}-{number}"
    source = folder / arch / "_stint" / "bundles"
    shutil.copytree(source, folder / output / "_stint" / "bundles")
    copy = spec_of(folder, arch, output)
    stint("run", str(copy))
    report = json.loads(next((folder / output).glob("_stint/runs/*/report.json")).read_text())
    return report["rate"], report["stage_s"]


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
    files = sorted((folder / "images").glob("*.parquet"))
    topology = read_topology()
    cores = [core[0] for core in topology.cores][: topology.budget]
    print(f"{given.rows} photographs of 500 by 375, {len(cores)} cores, {given.rounds} rounds, medians\n")
    print(f"{'network':<16}{'bare img/s':>12}{'job img/s':>12}{'job ÷ bare':>12}   stages of the job")
    for arch in given.arch:
        make_weights(arch, folder / f"{arch}.safetensors")
        spec = spec_of(folder, arch, arch)
        stint("quantize", str(spec))
        bare, job, stages = [], [], {}
        for number in range(given.rounds):
            bare.append(bare_rate(spec, files, given.rows, cores))
            rate, stages = job_rate(folder, arch, spec, number)
            job.append(rate)
        ratio = statistics.median(j / b for j, b in zip(job, bare, strict=True))
        shares = ", ".join(f"{stage} {seconds / sum(stages.values()):.0%}" for stage, seconds in stages.items())
        print(f"{arch:<16}{statistics.median(bare):>12.1f}{statistics.median(job):>12.1f}{ratio:>12.3f}   {shares}")


if __name__ == "__main__":
    main()
