"""How long a night takes to find out what is new, when every night before it has left a plan.

    python -m tests.benchmarks.bench_discovery --nights 365 --files 2000

The ledger lies on the local disk; an object store adds its latency once for each 16 plans and done records. The input
is listed in memory: what is measured is the driver's own work, and its memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time

from jobs.ledger.done import DoneRecord, DoneShard
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Content, Source, encode_plan
from jobs.plan.claims import next_claim
from jobs.tables.editions import Edition
from jobs.tables.sync import Moves
from jobs.tables.target import RowFile
from tests.support.slices import slices_of
from workers.contract import Slice
from workers.storage.store import LocalStore

ROWS_A_FILE = 10_000
GROUPS_A_FILE = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=365)
    parser.add_argument("--files", type=int, default=2000, help="new files a night, of 10,000 rows each")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own, so that what it holds does not count.
        writer = multiprocessing.get_context("spawn").Process(
            target=_write, args=(folder, arguments.nights, arguments.files)
        )
        writer.start()
        writer.join()
        sources = [s for night in range(1, arguments.nights + 1) for s in _sources(night, arguments.files)]
        late = [Source(f"s3://bucket/images/late/{n:06d}.parquet", 1, f"{n:032x}") for n in range(arguments.files)]
        ledger = _ledger(folder)
        listed = _peak_gib()
        began = time.process_time()
        plans, done = ledger.plans(), ledger.done_numbers()
        read = time.process_time()
        lost = ledger.lost(plans, done, sources)
        records = time.process_time()
        found = next_claim([*sources, *late], plans, lost, rescore=True)
        ended = time.process_time()
        before, after = (Edition(ledger.root, frozenset(range(1, last + 1))) for last in (len(done) - 1, len(done)))
        moves = Moves.between(ledger, before, after)
        change = moves.change(lambda portion, rows: RowFile("", portion, 0, 0))
        moved = time.process_time()
    assert len(change.added) > 0
    assert len(found.new) == arguments.files
    rows = len(sources) * ROWS_A_FILE
    print(f"{arguments.nights} plans, {len(sources):,} files, {rows:,} rows claimed")
    print(
        f"CPU: read plans {read - began:.1f} s, done records {records - read:.1f} s, subtract {ended - records:.1f} s, "
        f"what an output table is to add of the last night {moved - ended:.1f} s"
    )
    print(f"peak memory {_peak_gib():.2f} GiB, of which {listed:.2f} GiB for the listing")


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _ledger(folder: str) -> Ledger:
    return Ledger(LocalStore(folder), "model=net-0123456789abcdef")


def _sources(number: int, files: int) -> list[Source]:
    return [
        Source(f"s3://bucket/images/{number:04d}/part-{n:06d}.parquet", 1, f"{number * files + n:032x}")
        for n in range(files)
    ]


def _write(folder: str, nights: int, files: int) -> None:
    """Each night's plan and done record."""
    ledger = _ledger(folder)
    step = ROWS_A_FILE // GROUPS_A_FILE
    for number in range(1, nights + 1):
        slices = [
            Slice(uri=s.uri, size=s.size, version=s.version, row_group=group, row_start=0, row_stop=step)
            for s in _sources(number, files)
            for group in range(GROUPS_A_FILE)
        ]
        data = encode_plan(Content(slices_of((piece,) for piece in slices)), "t")
        ledger.store.create(f"{ledger.root}/_stint/plans/{number:08d}.stint", data)
        plan = ledger.plan(number)
        facts = (DoneShard(s.key, step, 0, 0, 10_000, f"{hash(s.key) % 2**64:064x}") for s in plan.shards)
        ledger.record_done(plan, DoneRecord.of(facts))


if __name__ == "__main__":
    main()
