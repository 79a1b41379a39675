"""How long a night takes to find out what is new, when every night before it has left a plan.

    python -m tests.benchmarks.bench_discovery --nights 365 --files 2000

The ledger lies on the local disk; an object store adds its latency once for each 16 plans and done records. The input
is listed in memory: what is measured is the driver's own work, and its memory.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time

from jobs.claims import wanted
from jobs.ledger import DoneShard, Ledger
from jobs.planning import Cut
from jobs.plans import Content, encode_plan
from jobs.sources import Source
from workers.contract import Slice
from workers.store import LocalStore

ROWS_A_FILE = 10_000
GROUPS_A_FILE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--files", type=int, default=2000, help="new files a night, of 10,000 rows each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(LocalStore(folder), "model=net-0123456789abcdef")
        sources = [source for night in range(arguments.nights) for source in _claim(ledger, night + 1, arguments.files)]
        late = [Source(f"s3://bucket/images/late/{n:06d}.parquet", 1, f"{n:032x}") for n in range(arguments.files)]
        began = time.perf_counter()
        plans, done = ledger.plans(), ledger.done_numbers()
        read = time.perf_counter()
        lost = ledger.lost(plans, done, sources)
        found = wanted([*sources, *late], plans, lost, rescore=True)
        ended = time.perf_counter()
    assert len(found.new) == arguments.files
    rows = len(sources) * ROWS_A_FILE
    print(f"{arguments.nights} plans, {len(sources):,} files, {rows:,} rows claimed")
    print(f"read the plans {read - began:.1f} s, subtract them {ended - read:.1f} s")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB (with the listing)")


def _claim(ledger: Ledger, number: int, files: int) -> list[Source]:
    """Write one night's plan and done record; returns the files that it claims."""
    step = ROWS_A_FILE // GROUPS_A_FILE
    sources = [
        Source(f"s3://bucket/images/{number:04d}/part-{n:06d}.parquet", 1, f"{number * files + n:032x}")
        for n in range(files)
    ]
    slices = [
        Slice(uri=s.uri, size=s.size, version=s.version, row_group=group, row_start=0, row_stop=step)
        for s in sources
        for group in range(GROUPS_A_FILE)
    ]
    shards = tuple((piece,) for piece in slices)
    ledger.store.create(
        f"{ledger.root}/_stint/plans/{number:08d}.parquet", encode_plan(Content(Cut(shards, ()), None), "t")
    )
    plan = ledger.plan(number)
    ledger.record_done(
        plan, [DoneShard(shard.key, step, 0, 0, 10_000, f"{hash(shard.key):064x}") for shard in plan.shards]
    )
    return sources


if __name__ == "__main__":
    main()
