"""What a plan of a million shards costs the driver, step by step: CPU, memory, and requests to the store.

    python -m tests.benchmarks.bench_plan --files 100000 --groups 10

Every step is a process of its own that knows only what is in the ledger, as a run is. Plans, notes and done records lie
on the local disk; the objects of shards are made up, and are listed in pages of 1,000 as object stores do. Footers of
the input are made up too, and no image is scored: what is measured is the driver's own work with the ledger.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from jobs.input.footers import Opened
from jobs.input.listing import Listing
from jobs.ledger.done import NOTE_EVERY, KnownObjects, Noting
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan, Source
from jobs.plan.asked import Asked
from jobs.plan.claims import next_claim
from jobs.plan.discovery import Discovery
from jobs.plan.job import Job
from jobs.plan.sharding import bounds, cut
from jobs.queries.status import describe_status
from jobs.queries.verify import Verdict, _check_shard, _check_strays, _done_record, key_reader
from jobs.run.backlog import Backlog
from jobs.spec.schema import Limits
from tests.support.fakes import RESULT, object_of
from workers.contract import InputSpec, Shard
from workers.source.rows import RowGroup
from workers.storage.store import LocalStore, ObjectInfo

ROOT = "model=net-0123456789abcdef"
PAGE = 1000
ROWS = 1000
"""Of a row group; each makes a shard."""
WORKERS = 64
LEFT = 0.01
"""Share of the shards that is missing at the resume."""
CHECKED = 1000
"""Objects that `verify` reads here."""


class PagedStore(LocalStore):
    """A folder, with made-up objects of shards beside it. Counts requests as an object store would have them."""

    def __init__(self, folder: str, there: np.ndarray | None = None, root: str = ROOT) -> None:
        super().__init__(folder)
        self._root = root
        self.requests: Counter[str] = Counter()
        self.made: dict[str, bytes] = {}
        self._there = np.zeros(0, bool) if there is None else there
        """Objects of plan 1, by the number of the shard."""

    def create(self, key: str, data: bytes) -> bool:
        self.requests["create"] += 1
        return super().create(key, data)

    def get(self, key: str) -> bytes:
        self.requests["get"] += 1
        return self.made.get(key) or super().get(key)

    def list(self, prefix: str, parts: Sequence[str] = ()) -> Iterator[ObjectInfo]:
        for part in parts or ("",):
            listed = 0
            for info in self._listed(prefix, part):
                listed += 1
                yield info
            self.requests["list"] += max(1, -(-listed // PAGE))

    def _listed(self, prefix: str, part: str) -> Iterator[ObjectInfo]:
        if prefix != f"{self._root}/plan=00000001":
            yield from super().list(prefix)
        if prefix in (self._root, f"{self._root}/plan=00000001"):
            first, last = (int(part) * PAGE, int(part) * PAGE + PAGE) if part else (0, len(self._there))
            for index in (first + np.flatnonzero(self._there[first:last])).tolist():
                yield ObjectInfo(f"{self._root}/plan=00000001/{index:08d}.parquet", 50_000, "v")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--groups", type=int, default=10, help="row groups a file, each of which makes a shard")
    arguments = parser.parse_args()
    print(f"{arguments.files * arguments.groups:,} shards of {arguments.files:,} files")
    with tempfile.TemporaryDirectory() as folder:
        for step in (plan, first_start, note, resume, status_open, finish, status_done, verify):
            process = multiprocessing.get_context("spawn").Process(
                target=_measured, args=(step, folder, arguments.files, arguments.groups)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


def _measured(step: Callable[[Step], str], folder: str, files: int, groups: int) -> None:
    it = Step(folder, files, groups)
    told = step(it)
    requests = ", ".join(f"{number:,} {kind}" for kind, number in it.store.requests.items())
    print(
        f"{step.__name__:12} {it.ended - it.began:6.1f} s of CPU, {_mib(it.peak):,} MiB at most, "
        f"{_mib(it.before)} of them before; {requests or 'no requests'}; {told}"
    )


def _mib(kib: int) -> int:
    return kib // 1024


class Step:
    """One step: what it starts with, and what it took."""

    def __init__(self, folder: str, files: int, groups: int) -> None:
        self.files, self.groups = files, groups
        self.shards = files * groups
        self.missing = np.random.default_rng(0).choice(self.shards, int(self.shards * LEFT), replace=False)
        there = np.ones(self.shards, bool)
        there[self.missing] = False
        self.store = PagedStore(folder, there)
        self.ledger = Ledger(self.store, ROOT)
        self.began = self.ended = 0.0
        self.before = self.peak = 0

    def __enter__(self) -> None:
        self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.began = time.process_time()

    def __exit__(self, *error: object) -> None:
        self.ended = time.process_time()
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def nothing_there(self) -> None:
        self.store = PagedStore(self.store.url, np.zeros(self.shards, bool))
        self.ledger = Ledger(self.store, ROOT)

    def all_there(self) -> None:
        self.store = PagedStore(self.store.url, np.ones(self.shards, bool))
        self.ledger = Ledger(self.store, ROOT)

    @property
    def job(self) -> Job:
        prints = SimpleNamespace(root=ROOT)
        spec = SimpleNamespace(name="bench")
        return cast(Job, SimpleNamespace(ledger=self.ledger, store=self.store, fingerprints=prints, spec=spec))


# ------------------------------------------------------------------------------------------------ the steps


def plan(it: Step) -> str:
    """Subtract what is claimed, cut, encode, create, read."""
    it.nothing_there()
    sources = [Source(f"s3://bucket/images/part-{n:08d}.parquet", 10**9, f"{n:032x}") for n in range(it.files)]
    groups = tuple(RowGroup(ROWS, ROWS * 100_000, n) for n in range(it.groups))
    fresh = [Opened(source, groups, None) for source in sources]

    class Bench(SimpleNamespace):
        def cut(self, opened: Sequence[Opened], again: Any = ()) -> Any:
            return cut(opened, replace(bounds(it.shards * ROWS, WORKERS, ROWS, 512 * 2**20)), tuple(again))

    spec = SimpleNamespace(input=SimpleNamespace(on_change="report"))
    job = cast(Job, Bench(spec=spec, days=SimpleNamespace(last="2026-03-01")))
    with it:
        plans = it.ledger.plans()
        found = Discovery(
            job=job, listing=Listing(sources), plans=plans, open_plans=[], lost=frozenset(), failed=frozenset(),
            claim=next_claim(sources, plans, (), rescore=False), asked=Asked(), fresh=fresh, unreadable={},
        )  # fmt: skip
        made = it.ledger.claim(found.content)
    assert made is not None
    return f"{len(made.shards):,} shards, {made.rows:,} rows"


def first_start(it: Step) -> str:
    """A run that begins: everything is missing."""
    it.nothing_there()
    with it:
        (open_plan,) = it.ledger.plans()
        whole = it.ledger.whole(open_plan)
        missing = it.ledger.missing(open_plan)
        backlog = Backlog(missing, {}, Limits(), now=0.0)
    assert not whole
    return f"{len(backlog.left):,} shards to do"


def note(it: Step) -> str:
    """What results say, noted on the way."""
    it.nothing_there()
    done = np.setdiff1d(np.arange(it.shards), it.missing)
    (open_plan,) = it.ledger.plans()
    with it:
        noting = Noting(it.store, ROOT, [open_plan], print)
        for part in np.array_split(done, max(1, len(done) // NOTE_EVERY)):
            _results(noting, part)
            noting.note_due(1)
        noting.close()
    return f"{len(done):,} results"


def resume(it: Step) -> str:
    with it:
        (open_plan,) = it.ledger.plans()
        whole = it.ledger.whole(open_plan)
        missing = it.ledger.missing(open_plan)
        backlog = Backlog(missing, {}, Limits(), now=0.0)
    assert not whole
    return f"{len(backlog.left):,} shards to do"


def status_open(it: Step) -> str:
    with it:
        told = describe_status(it.job)
    return told.splitlines()[-1]


def finish(it: Step) -> str:
    """The done record, from the results of this run and the notes of those before."""
    known = KnownObjects()
    _results(known, it.missing)
    (open_plan,) = it.ledger.plans()
    with it:
        record = it.ledger.finish(open_plan, known[1])
        it.ledger.record_done(open_plan, record)
    return f"{len(record):,} objects with {record.rows.ok:,} rows"


def status_done(it: Step) -> str:
    with it:
        told = describe_status(it.job)
    return told.splitlines()[-1]


def verify(it: Step) -> str:
    """Everything but reading the objects, and what reading one of them takes."""
    it.all_there()
    verdict = Verdict()
    with it:
        (whole,) = it.ledger.plans()
        named = _done_record(it.ledger, whole, verdict)
        _check_strays(it.ledger, [whole], verdict)
        for shard in whole.shards:
            named[shard.index]
    assert verdict.ok, verdict.problems[:3]
    began = _check_objects(it, whole)
    return f"and {1e3 * (time.process_time() - began) / CHECKED:.1f} ms of CPU an object of {ROWS:,} rows"


def _check_objects(it: Step, plan: Plan) -> float:
    shards = plan.shards[:CHECKED]
    for shard in shards:
        it.store.made[f"{ROOT}/{shard.key}"] = object_of(shard)
    given = InputSpec()
    began = time.process_time()
    for shard in shards:
        problems, *_ = _check_shard(it.ledger, shard, None, given, key_reader(given))
        assert not any(problems.values())
    return began


def _results(known: KnownObjects, numbers: np.ndarray) -> None:
    for index in numbers.tolist():
        shard = Shard(plan=1, plan_token="", index=index, slices=())
        result = replace(RESULT, index=index, rows_ok=ROWS, rows_bad=0, sha256=f"{index:064x}", object_bytes=50_000)
        known.add(shard, result)


if __name__ == "__main__":
    main()
