"""What notes save the run that finishes a plan which other runs have scored: from the last shard to the done record.

    python -m tests.benchmarks.bench_notes --shards 5000 20000 --latency-ms 0 20 50

Objects have 4,096 rows and lie in memory. A request waits for the latency, as at an object store, and moves its bytes
in no time. Without notes every object is read, 16 at once; with them a note for every 10,000.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from jobs.input.footers import Opened
from jobs.ledger.done import Noting
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan, Source
from jobs.plan.sharding import Bounds, cut
from tests.support.fakes import RESULT, MemoryStore, object_of
from workers.output import object_facts
from workers.source.rows import RowGroup
from workers.storage.store import ObjectInfo

ROWS = 4096
ROOT = "model=net-0123456789abcdef"


class SlowStore(MemoryStore):
    """Answers each request after a while."""

    latency_s = 0.0

    def get(self, key: str) -> bytes:
        time.sleep(self.latency_s)
        return super().get(key)

    def list(self, prefix: str, parts: Sequence[str] = ()) -> Iterator[ObjectInfo]:
        time.sleep(self.latency_s)
        return super().list(prefix, parts)


def scored(shards: int) -> tuple[Ledger, Plan]:
    """A plan with all its objects and no done record."""
    store = SlowStore()
    ledger = Ledger(store, ROOT)
    source = Opened(Source("in.parquet", 1, "v"), tuple(RowGroup(ROWS, 1, i) for i in range(shards)), None)
    plan = ledger.claim(lambda _: cut([source], Bounds(ROWS, ROWS, 2**40)))
    assert plan is not None
    data = object_of(plan.shards[0])  # of the others all is alike but the name
    for shard in plan.shards:
        store.create(f"{ROOT}/{shard.key}", data)
    return ledger, plan


def note(ledger: Ledger, plan: Plan) -> None:
    noting = Noting(ledger.store, ROOT, [plan], print)
    facts = object_facts(ledger.store.get(f"{ROOT}/{plan.shards[0].key}"))
    result = replace(RESULT, plan=plan.number, rows_ok=facts.rows_ok, rows_bad=0, sha256=facts.sha256)
    for shard in plan.shards:
        noting.add(shard, replace(result, index=shard.index, object_bytes=facts.size))
    noting.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=[5000, 20_000])
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[0, 20, 50])
    arguments = parser.parse_args()
    for shards in arguments.shards:
        ledger, plan = scored(shards)
        took: dict[tuple[str, float], float] = {}
        for how in ("read", "notes"):
            if how == "notes":
                note(ledger, plan)
            for latency_ms in arguments.latency_ms:
                ledger.store.latency_s = latency_ms / 1000  # type: ignore[attr-defined]
                began = time.monotonic()
                ledger.record_done(plan, ledger.finish(plan))
                took[how, latency_ms] = time.monotonic() - began
            ledger.store.latency_s = 0.0  # type: ignore[attr-defined]
        for latency_ms in arguments.latency_ms:
            read_s, notes_s = took["read", latency_ms], took["notes", latency_ms]
            print(f"{shards:,} shards, {latency_ms:g} ms a request: {read_s:.1f} s read, {notes_s:.2f} s from notes")


if __name__ == "__main__":
    main()
