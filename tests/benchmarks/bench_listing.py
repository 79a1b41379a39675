"""What listing an input of very many small files costs the driver, alone: CPU and memory.

    python -m tests.benchmarks.bench_listing --files 1000000

Image files of one byte in folders of 1,000, on the local disk; with `--named hash` without a suffix, with `--links`
each by a symbolic link to a file elsewhere. Writing them takes longer than listing them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

from jobs.input.listing import list_input
from jobs.spec.days import today
from workers.contract import InputSpec

A_FOLDER = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--named", choices=["jpg", "hash"], default="jpg")
    parser.add_argument("--links", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args = (Path(folder), arguments.files, ".jpg" if arguments.named == "jpg" else "", arguments.links)
        writer = multiprocessing.get_context("spawn").Process(target=_write, args=args)
        writer.start()
        writer.join()
        before = _peak_mib()
        cpu_s, wall_s = time.process_time(), time.perf_counter()
        found = list_input(InputSpec(uri=f"{folder}/in", format="images"), today("UTC"), {})
        cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
        assert len(found.sources) == arguments.files
        print(f"{arguments.files:,} files listed: CPU {cpu_s:.1f} s, {wall_s:.1f} s")
        print(f"peak memory {_peak_mib():,.0f} MiB, {before:,.0f} MiB before", flush=True)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _write(folder: Path, files: int, suffix: str, links: bool) -> None:
    for start in range(0, files, A_FOLDER):
        place = folder / "in" / f"{start // A_FOLDER:06d}"
        place.mkdir(parents=True)
        for number in range(start, min(files, start + A_FOLDER)):
            file = place / f"{number:08d}{suffix}"
            if links:
                target = folder / "elsewhere" / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.symlink_to(target)
                file = target
            file.write_bytes(b"\xff\xd8\xff")


if __name__ == "__main__":
    main()
