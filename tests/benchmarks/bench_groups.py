"""One huge row group ÷ the same rows in groups of 64 MB: rows a second and peak memory, in turns.

    python -m tests.benchmarks.bench_groups [--input even uneven] [--writer arrow duckdb] [--s3] [--score mobilenet_v2]

`even`: 20,000 rows of 100 KB. `uneven`: 16 of 30 MB before 20,000 of 2 KB. Writers: `arrow` as pyarrow by default (a
dictionary, Snappy, pages of 1,024 rows), `plain` without both, `index` as Polars (pages of 1 MB with an index,
Zstandard), `duckdb` (pages of 100 MB). Reading alone is what a worker's reading thread does, shard by shard as a plan
cuts them, in a fresh process each; with `--score` the photographs are scored by `stint run`. With
`--s3` they lie on ministack.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.input.footers import open_sources
from jobs.input.listing import list_input
from jobs.measure.bench_images import photographs
from jobs.measure.rates import ratio
from jobs.plan.sharding import bounds, cut
from jobs.spec.days import today
from tests.benchmarks.arena import STINT, Arena
from tests.objectstore.packages import ministack
from tests.objectstore.processes import free_ports, started
from workers.contract import InputSpec, Shard
from workers.host.memory import peak_rss_bytes
from workers.source.shard_reader import ReadAhead, ShardReader

WORKERS = 2
GROUP_BYTES = 64 * 10**6


def rows_of(kind: str) -> list[bytes]:
    """The images: padded photographs, of 2 KB no pictures."""
    pictures = photographs(16, quality=80) if kind == "even" else [b"\xff\xd8"]
    noise = np.random.default_rng(0).bytes(2**25)
    sizes = [100_000] * 20_000 if kind == "even" else [30 * 10**6] * 16 + [2000] * 20_000
    images = []
    for number, size in enumerate(sizes):
        picture, place = pictures[number % len(pictures)], number * 1_000_003 % (2**25 - size)
        images.append(picture + noise[place : place + size - len(picture)])
    return images


def write(path: Path, images: list[bytes], group_bytes: int, writer: str) -> None:
    """All rows in groups of at most so many bytes, of at least one row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"id": pa.array(range(len(images))), "image": images})
    if writer == "duckdb" and group_bytes > sum(map(len, images)):
        duckdb.from_arrow(table).write_parquet(str(path))
        return
    how = {
        "arrow": {},
        "duckdb": {"use_dictionary": False},  # in groups smaller than 2,048 rows, which it does not write
        "plain": {"compression": "none", "use_dictionary": False},
        "index": {
            "compression": "zstd", "use_dictionary": False, "write_page_index": True, "write_statistics": False,
            "write_batch_size": max(1, 10**6 * len(images) // sum(map(len, images))), "data_page_size": 1,
        },
    }[writer]  # fmt: skip
    with pq.ParquetWriter(path, table.schema, **how) as out:
        start = held = 0
        for number, image in enumerate([*images, None]):
            if image is None or (held and held + len(image) > group_bytes):
                out.write_table(table.slice(start, number - start), row_group_size=len(images))
                start, held = number, 0
            held += len(image or b"")


def read(uri: str) -> None:
    """In a process of its own: all rows, shard by shard; prints rows a second and the peak."""
    spec = InputSpec(uri=uri, format="parquet", image="image")
    opened, _ = open_sources(list_input(spec, today("UTC"), {}).sources, spec)
    total = sum(source.rows for source in opened)
    shards = cut(opened, bounds(total, WORKERS, "auto", 256 * 2**20)).shards
    rows, began = 0, time.perf_counter()
    for slices in shards:
        for block in ReadAhead(ShardReader(Shard(plan=1, plan_token="t", index=0, slices=slices), spec)):
            rows += len(block.images)
    assert rows == total
    print(json.dumps([rows / (time.perf_counter() - began), peak_rss_bytes()]))


@contextmanager
def store(folder: Path, wanted: bool) -> Iterator[str]:
    """Where the input lies: on the disk, or a bucket."""
    if not wanted:
        yield str(folder)
        return
    [port] = free_ports(1)
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    env = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
    with started([ministack()], folder / "ministack.log", port=port, env=env):
        fs = fsspec.filesystem("s3", skip_instance_cache=True)
        fs.mkdir("bench-groups")
        for name in ("one", "many"):
            fs.put(str(folder / name), f"bench-groups/{name}", recursive=True)
        yield "s3://bench-groups"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", default=["even", "uneven"], choices=["even", "uneven"])
    parser.add_argument("--writer", nargs="+", default=["arrow", "plain", "index", "duckdb"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--s3", action="store_true")
    parser.add_argument("--score", metavar="ARCH")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        read(given.read)
        return
    print("input   writer     one group    of 64 MB   ratio      ±  peak MiB  of 64 MB")
    for kind in given.input:
        images = rows_of(kind)
        for writer in given.writer:
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                write(folder / "one" / "a.parquet", images, 2**60, writer)
                write(folder / "many" / "a.parquet", images, GROUP_BYTES, writer)
                with store(folder, given.s3) as place:
                    arena = Arena.prepare(folder / "arena", given.score) if given.score else None
                    many, one = [], []
                    for _ in range(given.rounds):
                        many.append(_turn(f"{place}/many", arena))
                        one.append(_turn(f"{place}/one", arena))
                middle, spread = ratio([(a, b) for (a, _), (b, _) in zip(many, one, strict=True)])
                rates = [statistics.median(rate for rate, _ in turns) for turns in (one, many)]
                peaks = [max(peak for _, peak in turns) / 2**20 for turns in (one, many)]
                print(
                    f"{kind:<8}{writer:<8}{rates[0]:>12.0f}{rates[1]:>12.0f}{middle:>8.3f}{spread:>7.1%}"
                    f"{peaks[0]:>10.0f}{peaks[1]:>10.0f}",
                    flush=True,
                )


def _turn(uri: str, arena: Arena | None) -> tuple[float, int]:
    """Rows a second and peak bytes."""
    if arena:
        outcome, _ = arena.run(STINT, uri)
        return outcome.steady, outcome.peak_rss_bytes
    command = [sys.executable, "-m", "tests.benchmarks.bench_groups", "--read", uri]
    told = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    rate, peak = json.loads(told.splitlines()[-1])
    return rate, peak


if __name__ == "__main__":
    main()
