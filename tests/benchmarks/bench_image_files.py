"""What a folder of a million image files costs the driver: planned, looked at again, and gone on with.

    python -m tests.benchmarks.bench_image_files --files 1000000

Each step is a process of its own that knows only what is in the ledger, as a run is. The listing is made up, and so are
the objects of shards; plans lie on the local disk. Nothing is scored. Of CPU and memory, all that the process has used,
the imports and the listing included: `listed` is what it had used before the step.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np

import jobs.plan.discovery
from jobs.input.listing import Listing
from jobs.ledger.done import DONE_SCHEMA
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Source, to_bytes
from jobs.plan.discovery import Discovery, discover
from jobs.plan.job import Job
from jobs.run.backlog import Backlog
from jobs.spec.schema import JobSpec, Limits
from tests.benchmarks.bench_plan import PagedStore


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("in", "out"):
            (Path(folder) / name).mkdir()
        for step in (first_plan, resume, nothing_new, changed):
            process = multiprocessing.get_context("spawn").Process(
                target=_measured, args=(step, folder, arguments.files)
            )
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


def _measured(step: Callable[[Job, list[Source]], str], folder: str, files: int) -> None:
    spec = JobSpec.model_validate({
        "name": "many",
        "input": {"uri": f"{folder}/in", "format": "images"},
        "model": {"arch": "workers.digits:digits_cnn", "precision": "fp32"},
        "output": {"uri": f"{folder}/out"},
    })  # fmt: skip
    job = Job.open(spec)
    sources = [Source(f"s3://bucket/photographs/{n % 997:03d}/{n:09d}.jpg", 100_000, f"{n:032x}") for n in range(files)]
    sources.sort()
    listed, before = _peak_mib(), time.process_time()
    with mock.patch.object(jobs.plan.discovery, "list_input", return_value=Listing(sources)):
        told = step(job, sources)
    print(
        f"{step.__name__:12} {time.process_time():5.1f} s of CPU, {before:.1f} of them before; "
        f"{_peak_mib():,} MiB at most, {listed} of them before; {told}"
    )


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _told(found: Discovery) -> str:
    return f"{len(found.lines())} lines, {found.fresh_rows:,} new"


def first_plan(job: Job, sources: list[Source]) -> str:
    """Nothing is there: discover, choose the sample that calibrates, claim."""
    found = discover(job)
    told = _told(found)
    sample = job.sample(found.to_sample())
    plan = job.ledger.claim(found.content, job.book)
    assert plan is not None
    job.store.create("shards", str(len(plan.shards)).encode())
    return f"{told}, a sample of {len(sample)}, {plan.rows:,} rows in {len(plan.shards):,} shards"


def resume(job: Job, sources: list[Source]) -> str:
    """Half of the shards are there."""
    shards = int(job.store.get("shards"))
    store = PagedStore(job.store.url, np.arange(shards) < shards / 2, job.ledger.root)
    job = replace(job, store=store, ledger=Ledger(store, job.ledger.root))
    told = _told(discover(job))
    plans = job.ledger.plans()
    missing = job.ledger.missing(*plans)
    job.worker_spec(plans[-1], (uri for plan in plans for uri in plan.sources["uri"].to_pylist()))
    backlog = Backlog(missing, {}, Limits(), now=0.0)
    return f"{told}; {len(backlog.left):,} shards to do with {missing.rows:,} rows"


def nothing_new(job: Job, sources: list[Source]) -> str:
    """A night after the plan is done, with a hundred late files."""
    job.store.create(
        job.ledger.root + "/" + job.ledger.keys_of(1)[1], to_bytes([DONE_SCHEMA.empty_table()], DONE_SCHEMA, {})
    )
    sources += [Source(f"s3://bucket/photographs/late/{n:09d}.jpg", 100_000, f"{n:032x}") for n in range(100)]
    found = discover(job)
    assert job.ledger.claim(found.content, job.book) is not None
    return _told(found)


def changed(job: Job, sources: list[Source]) -> str:
    """The night after, with a tenth of the files in another version."""
    sources[::10] = [Source(s.uri, s.size, f"{s.version}-2") for s in sources[::10]]
    return _told(discover(job))


if __name__ == "__main__":
    main()
