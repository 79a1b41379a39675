"""Rows per second that a worker reads of a Lance table, and of the same rows in Parquet, in turns.

    python -m tests.benchmarks.bench_lance_rows --rows 4000 --image-kb 100

Nothing is decoded: encoded images and a key are read in slices of 1024 rows, as shards have them, and dropped, with
the malloc that workers have. What is read is on the local disk and has been read before. A ratio is Lance's rate by
Parquet's, of CPU that of Parquet's seconds by Lance's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import lance
import numpy as np
import pyarrow.parquet as pq

from tests.jobs.tables.lance_tables import KINDS, lance_rows_of
from workers.contract import InputSpec, Slice
from workers.host import malloc
from workers.source.lance_rows import lance_blocks
from workers.source.parquet import open_parquet, row_group_blocks
from workers.source.rows import RowBlock
from workers.source.source_file import opened
from workers.storage.filesystems import open_filesystem

SLICE_ROWS = 1024
HOW = InputSpec(image="image", keys=("id",))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--image-kb", type=int, default=100)
    parser.add_argument("--turns", type=int, default=7)
    arguments = parser.parse_args()
    if malloc.VARIABLE not in os.environ:  # which takes effect when a process starts
        command = [sys.executable, "-m", "tests.benchmarks.bench_lance_rows", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **malloc.variables()})
    with tempfile.TemporaryDirectory() as folder:
        readers = made(Path(folder), arguments.rows, arguments.image_kb * 1000)
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        for turn in range(arguments.turns + 1):
            for name, read in readers.items():
                wall, cpu = time.perf_counter(), time.process_time()
                rows = sum(len(block.rows) for block in read())
                assert rows == arguments.rows
                if turn:  # the first one only warms up
                    took[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, times in took.items():
        ratios = [[base[at] / own[at] for base, own in zip(took["parquet"], times, strict=True)] for at in (0, 1)]
        wall, by_cpu = (statistics.median(each) for each in ratios)
        rate = arguments.rows / statistics.median(each[0] for each in times)
        print(f"{name:10} {rate:9,.0f} rows/s, {wall:.2f} of Parquet's ({min(ratios[0]):.2f}-{max(ratios[0]):.2f}), "
              f"{by_cpu:.2f} by CPU")  # fmt: skip


def made(folder: Path, rows: int, image_bytes: int) -> dict[str, Callable[[], Iterator[RowBlock]]]:
    """The same rows in every kind of file, and how each is read."""
    sizes = np.random.default_rng(1).integers(image_bytes // 2, image_bytes * 3 // 2, rows)
    images = [np.random.default_rng(n).bytes(int(size)) for n, size in enumerate(sizes)]
    given = [(n, image, 0) for n, image in enumerate(images)]
    pq.write_table(lance_rows_of(given), folder / "a.parquet", row_group_size=SLICE_ROWS, compression="none")
    readers: dict[str, Callable[[], Iterator[RowBlock]]] = {"parquet": partial(_parquet, str(folder / "a.parquet"))}
    for kind, (field, version) in KINDS.items():
        url = str(folder / kind.replace(" ", "-"))
        lance.write_dataset(lance_rows_of(given, field), url, data_storage_version=version)
        uri = f"{url}/data/{lance.dataset(url).get_fragments()[0].data_files()[0].path}"
        readers[kind] = partial(_lance, url, uri, rows)
    return readers


def _parquet(path: str) -> Iterator[RowBlock]:
    with opened(*open_filesystem(path)) as file:
        whole = open_parquet(file)
        for group in range(whole.num_row_groups):
            rows = whole.metadata.row_group(group).num_rows
            part = Slice(uri=path, size=0, version="", row_group=group, row_start=0, row_stop=rows)
            yield from row_group_blocks(file, whole, 0, part, HOW)


def _lance(url: str, uri: str, rows: int) -> Iterator[RowBlock]:
    for start in range(0, rows, SLICE_ROWS):
        stop = min(start + SLICE_ROWS, rows)
        part = Slice(uri=uri, size=0, version="", row_group=0, row_start=start, row_stop=stop)
        yield from lance_blocks(url, "1", 0, part, HOW)


if __name__ == "__main__":
    main()
