"""A tiny night: a few image files, the real run over the modelled store, and what may happen to the input meanwhile.

What is real: everything of the driver from opening the job to its report (discovery, claims, ledger, loop, done
records), the store with its retries, the worker's reader and the output objects. Made up: the pool, which scores one
shard at a time without a network, and the bundle, which is a manifest alone.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any
from unittest import mock

import jobs.accept
import jobs.pages.save
import jobs.plan.job
import jobs.report.journal
import jobs.run.run
import jobs.tables.editions
from jobs.errors import BadRowsExceeded, SpecError
from jobs.plan.job import Job
from jobs.progress.displays import Display, display_for
from jobs.progress.progress import Progress
from jobs.run.loop import Loop
from jobs.spec.days import Days, today
from jobs.spec.schema import JobSpec
from tests.model.earlier import earlier
from tests.model.model_fs import IN, OUT, Bucket
from tests.model.model_table import ModelTable, compact
from tests.model.pool import ModelCluster, Slow
from tests.model.remembered import remembered
from tests.model.scheduler import BEGAN, Stops, World, taken_over

SPEC: dict[str, Any] = {
    "name": "model",
    "input": {"uri": f"s3://{IN}", "format": "images", "shard_rows": 1},
    "model": {"arch": "workers.digits:digits_cnn", "precision": "fp32"},
    "output": {"uri": f"s3://{OUT}"},
    "workers": {"max": 1},
    "limits": {"gone_rows": 1.0},
    "drift": {"nights": 0},
}


OF_TABLE = ModuleType("jobs.tables.delta_output")
OF_TABLE.DeltaOutput = ModelTable  # type: ignore[attr-defined]

EARLIER_DONE = f"{OUT}/model=earlier-0/_stint/done/00000001.parquet"


@dataclass(frozen=True)
class Change:
    """Something that happens to the input, once, whenever the scheduler likes."""

    file: str
    data: bytes | None
    """What the file holds from then on; None: it is deleted."""
    modified: int | None = None
    """Its time, where that is not now: a file that was long under way."""

    def __str__(self) -> str:
        return f"{'delete' if self.data is None else 'deliver'} {self.file}"

    def apply(self, world: World) -> None:
        path = f"{IN}/{self.file}"
        if self.data is not None:
            world.bucket.put(path, self.data, self.modified)
        elif path in world.bucket.objects:
            world.bucket.remove(path)
        world.input_version += 1


@dataclass(frozen=True)
class Compaction(Change):
    """Somebody else's, of the output table."""

    file: str = "the table"
    data: bytes | None = None

    def __str__(self) -> str:
        return "the table is compacted"

    def apply(self, world: World) -> None:
        compact(world.bucket)


@dataclass(frozen=True)
class Scenario:
    """Where an execution begins, and what besides faults may happen in it."""

    name: str
    files: Mapping[str, bytes]
    runs: int = 1
    changes: Sequence[Change] = ()
    """In this order."""
    before: Mapping[str, bytes] = field(default_factory=dict)
    """Files of an earlier night, scored and done."""
    first_night: bool = False
    """Whether the output is empty: neither probe nor bundle is there."""
    on_change: str = "report"
    again: str = ""
    """What these runs, but not those before and after them, are asked to score again."""
    shard_rows: int = 1
    slow: Slow | None = None
    """Whether each run has two workers, of which one does nothing until the other tries its shard too."""
    earlier_model: bool = False
    """Whether readers follow another model's root, because it is the only one."""
    earlier: frozenset[int] = frozenset()
    """Which of the runs are of an earlier release; then the earlier night was, too."""
    table: bool = False
    """Whether the input is the table of tests.model.tables."""
    output_table: bool = False
    """Whether the output has a table."""
    accept: bool = False
    """Whether each run comes after `stint accept` of the first plan, whose files in `before` are bad."""

    @property
    def spec(self) -> JobSpec:
        given = {**SPEC["input"], "on_change": self.on_change, "shard_rows": self.shard_rows}
        given |= {"format": "delta", "image": "image"} if self.table else {}
        output = SPEC["output"] | ({"table": {"format": "delta"}} if self.output_table else {})
        workers = {"max": 2 if self.slow else 1}
        return JobSpec.model_validate({**SPEC, "input": given, "output": output, "workers": workers})


class Stage:
    """A scenario made ready: it gives worlds to explore, and runs to start in them."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.spec = scenario.spec
        self.days: Days = today("UTC", BEGAN)
        self.world: World
        self._stops: Stops = {}
        self._bodies: dict[tuple[str, bool], Callable[[], None]] = {}
        self._opening = self._made()

    def new_world(self) -> World:
        """A world as the scenario has it. There is one at a time."""
        self.world = World(self._opening.copy(), IN, self._stops)
        return self.world

    def body(self, again: str = "", *, of_earlier: bool = False) -> Callable[[], None]:
        """A run from start to end, with caches of its own, as a new process has."""

        def run() -> None:
            job = Job.open(self.spec, self.days)
            job = earlier(job) if of_earlier else job
            if self.scenario.accept and job.ledger.plans():
                with suppress(SpecError):  # it is done already
                    accepting = Job.open(self.spec, self.days, writing=False)
                    jobs.accept.accept_plan(accepting, 1, "known", lambda line: None)
            self.run(job, again)

        return self._bodies.setdefault((again, of_earlier), run)

    def run(self, job: Job, again: str = "") -> None:
        cluster = ModelCluster(self.world, job, self.scenario.slow)
        jobs.run.run.Run(job, lambda: cluster, lambda: False, lambda line: None, again=again).complete()

    def job(self) -> Job:
        """For the oracle: its calls are made at once."""
        return Job.open(self.spec, self.days, writing=False)

    @contextmanager
    def played(self) -> Iterator[None]:
        """Within it, runs find the model in place of the world: store, time, chance, terminal."""

        def loop(**settings: Any) -> Loop:
            world = self.world
            return Loop(**settings, clock=lambda: world.current.now_s, sleep=lambda seconds: time.sleep(seconds))

        def display(*_: object) -> Display:
            return display_for(io.StringIO())

        with ExitStack() as stack:
            stack.enter_context(taken_over(lambda: self.world))
            stack.enter_context(mock.patch.object(jobs.run.run, "Loop", loop))
            progress = partial(Progress, clock=lambda: self.world.current.now_s)
            stack.enter_context(mock.patch.object(jobs.run.run, "Progress", progress))
            stack.enter_context(mock.patch.object(Progress, "beating", return_value=nullcontext()))
            stack.enter_context(mock.patch.object(jobs.run.run, "display_for", display))
            stack.enter_context(mock.patch.object(jobs.plan.job, "code_version", return_value="code"))
            stack.enter_context(mock.patch.dict(sys.modules, {"jobs.tables.delta_output": OF_TABLE}))
            stack.enter_context(mock.patch.object(jobs.tables.editions.secrets, "randbelow", return_value=0))
            # Nothing but the page and the figures of a report depends on templates and journals, which take their time.
            stack.enter_context(mock.patch.object(jobs.report.journal, "to_bytes", return_value=b""))
            stack.enter_context(mock.patch.object(jobs.pages.save, "page_of", return_value="a page"))
            stack.enter_context(mock.patch.object(jobs.pages.save, "redacted_values", lambda values: values))
            stack.enter_context(remembered())
            yield

    def _made(self) -> Bucket:
        """The bucket at the start: after an earlier night, unless this is the first."""
        bucket = Bucket(OUT)
        self.world = World(bucket, IN)
        scenario = self.scenario
        if not scenario.first_night:
            for name, data in scenario.before.items():
                bucket.put(f"{IN}/{name}", data)
            with self.played():
                if scenario.accept:
                    with suppress(BadRowsExceeded):
                        self.run(Job.open(self.spec, self.days))
                elif scenario.before:
                    self.body(of_earlier=bool(scenario.earlier))()
                else:
                    job = Job.open(self.spec, self.days)
                    ModelCluster(self.world, job).pool(job.bundle_request()).start({})
            for path in [p for p in bucket.objects if "/_stint/runs/" in p or "/_stint/journals/" in p]:
                bucket.remove(path)
        if scenario.earlier_model:  # of which nothing else is looked at
            bucket.objects[EARLIER_DONE] = b""
        for name, data in scenario.files.items():
            bucket.put(f"{IN}/{name}", data)
        return bucket
