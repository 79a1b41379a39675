"""Bare pinned processes, a core each: read, decode, predict, top-5, and no engine around it.

python -m tests.benchmarks.peers.bare WORK.json
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.peers.scoring import Work
from workers.host.cores import thread_environment


def main() -> None:
    file = sys.argv[1]
    if len(sys.argv) == 3:
        score(Work.read(file), int(sys.argv[2]))
        return
    command = [sys.executable, "-m", "tests.benchmarks.peers.bare", file]
    processes = [subprocess.Popen([*command, str(share)]) for share in range(len(Work.read(file).cores))]
    if codes := [process.wait() for process in processes if process.wait()]:
        sys.exit(f"a process ended with code {codes[0]}")


def score(work: Work, share: int) -> None:
    """Every n-th row group, n being the number of cores."""
    os.sched_setaffinity(0, {work.cores[share]})
    os.environ.update(thread_environment(1))
    os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.benchmarks.peers.scoring import Network, one_chunk

    pa.set_cpu_count(1)
    network = Network(work)
    tables = []
    files = [pq.ParquetFile(file, pre_buffer=False) for file in sorted(Path(work.images).glob("*.parquet"))]
    groups = [(file, group) for file in files for group in range(file.num_row_groups)]
    for file, group in groups[share :: len(work.cores)]:
        rows = file.read_row_group(group, columns=["id", "image"], use_threads=False)
        tables.append(network.table(one_chunk(rows["id"]), one_chunk(rows["image"])))
    folder = Path(work.predictions)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), folder / f"{share}.parquet")


if __name__ == "__main__":
    main()
