"""`stint bench`: from the network as a user first runs it to the whole job, one change at a time.

Each rung is measured in turns with the one before it, in processes of their own that are pinned to their cores. This
process has no torch and does nothing while they measure.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from jobs.console import Console
from jobs.errors import COMPLETE, RunFailed, SpecError
from jobs.measure.bench_images import images_of, made_images, write_files
from jobs.measure.plots import check_can_draw, draw_ladder
from jobs.measure.rates import Climbed, Completion, LadderStep, Turn, climb, steady_rate
from jobs.plan.job import Job
from jobs.spec.load import load_spec, parse_spec
from jobs.spec.schema import JobSpec, Limits, Schedule, Workers
from workers.contract import GateSpec, InputSpec, OutputSpec
from workers.host.cores import Topology, read_topology, unpinned
from workers.host.cpu import cpu_model, isa_class
from workers.host.memory import node_bytes
from workers.measure.messages import BUNDLE, CHANNELS_LAST, EAGER, INT8_DEFAULT, INT8_FUSED, LoadVariant
from workers.measure.processes import Processes, ProcessFailed

LOAD_S = 600.0
"""A variant that is not loaded by then is stuck."""
MOST_TURNS = 9
LEAST_TURNS = 2
BATCH_TURNS = 2
JOB_TURNS = 3
_BATCHES = (4, 8, 16, 32)
"""Tried where the spec leaves the batch to us."""
DECODED_A_SECOND = 600
"""By one core, of photographs of middling size: what the whole job is sized by where the network is faster."""

_Measure = Callable[[float], float]
"""Measure for so many seconds, again and again: images a second."""


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint bench`, see jobs.arguments. Raises StintError."""
    if arguments.spec is not None and arguments.arch is not None:
        raise SpecError("--arch names a network to measure without a SPEC; with one, its own is measured")
    if arguments.picture is not None:
        check_can_draw(arguments.picture)
    given = None if arguments.spec is None else load_spec(arguments.spec, arguments.overrides)
    if given is not None and given.model.device != "cpu":
        raise SpecError(f"model.device: {given.model.device}: stint bench climbs by the cores of CPUs", "set it to cpu")
    climbed = bench(given, arguments.arch or "resnet50", arguments.minutes, console.say)
    console.show(climbed.as_json() if arguments.json else "\n".join(climbed.lines()))
    if arguments.picture is not None:
        draw_ladder(climbed.rungs, f"{climbed.model} on {climbed.cpu}", arguments.picture)
        console.say(f"picture: {arguments.picture}")
    return COMPLETE


def random_spec(arch: str) -> JobSpec:
    """A job of nothing but an architecture: `resnet50`, `torchvision/resnet50` or `module:function`.

    Its weights, input and output are filled in where it is measured.
    """
    if ":" not in arch and not arch.startswith("torchvision/"):
        arch = f"torchvision/{arch}"
    return parse_spec(
        {
            "name": "bench",
            "input": {"uri": "."},
            "model": {"arch": arch, "calibration": {"rows": 32}, "engine": "torch-int8"},
            "output": {"uri": "."},
        },
        "--arch",
    )


def bench(given: JobSpec | None, arch: str, minutes: float, say: Callable[[str], None]) -> Climbed:
    """Measure the job's network on its own images; without one, `arch` with random weights on photographs.

    Takes about `minutes`, of which a large network may need several to be loaded and quantized. Raises SpecError for
    what cannot be had, RunFailed where a process ends.
    """
    began = time.monotonic()
    say(f"about {minutes:g} minutes of all cores; nothing else should run meanwhile (--minutes bounds it)")
    with tempfile.TemporaryDirectory(prefix="stint-bench-") as folder, ExitStack() as running:
        if given is None:
            spec, images, description = random_spec(arch), made_images(), "made, 500 by 375"
        else:
            spec, images = given, images_of(Job.open(given, writing=False))
            description = f"sampled from {given.name}"
        ladder = _Ladder(spec=spec, given=given, folder=Path(folder), images=images, running=running, say=say)
        try:
            climbed = ladder.measure(began + 60 * minutes, slice_s=min(2.0, minutes / 2), images=description)
        except ProcessFailed as error:
            raise RunFailed(f"a rung cannot be measured: {error}", "mind this machine's memory") from error
    return replace(climbed, minutes=round((time.monotonic() - began) / 60, 2))


@dataclass(frozen=True)
class _Rung:
    """What is to be measured."""

    step: LadderStep
    kind: str
    cpus: tuple[tuple[int, ...], ...]
    """Of each process; () for one that is not pinned."""
    threads: int | None = 1


@dataclass(frozen=True)
class _Running:
    """The processes of a rung, and the batch that they are measured with."""

    loads: list[LoadVariant]
    processes: Processes
    batch: int

    def __call__(self, seconds: float) -> float:
        return sum(one.rows / one.wall_s for one in self.processes.measure(self.batch, seconds))


@dataclass(kw_only=True)
class _Ladder:
    spec: JobSpec
    given: JobSpec | None
    folder: Path
    images: list[bytes]
    running: ExitStack
    """Ends all processes."""
    say: Callable[[str], None]
    topology: Topology = field(default_factory=read_topology)
    left_out: dict[str, str] = field(default_factory=dict)
    batch: int = 0

    def measure(self, until: float, *, slice_s: float, images: str) -> Climbed:
        """All rungs, until about then by time.monotonic. Raises RunFailed, SpecError, ProcessFailed."""
        write_files(self.folder / "sample", self.images, len(self.images), len(self.images), groups_a_file=1)
        job = Job.open(self._local_spec(self.folder / "sample", batch=1, shard_rows=len(self.images)))
        self._make_bundle(job)
        steps: list[LadderStep] = []
        turns: list[list[Turn]] = []
        before: _Running | None = None
        rungs = self._rungs()
        for number, rung in enumerate(rungs):
            step = rung.step
            if step.name == "batch":
                assert before is not None, "the artifact without a batch comes first, and always loads"
                self.batch = self._best_batch(before, slice_s / 2)
                step = replace(step, change=f"{self.batch} images a forward pass instead of one")
            now = self._start(rung, job, before)
            if now is None:
                continue
            if before is not None:
                # What is left is shared by the rungs that are left; the whole job takes as much as three of them.
                share_s = (until - time.monotonic()) / (len(rungs) - number + 3)
                turns.append(_in_turns(before, now, slice_s, time.monotonic() + share_s))
                if before.processes is not now.processes:
                    before.processes.end()
            if step.name in ("uint8 input", "bundle"):
                step = replace(step, change=f"{now.processes.description}: {step.change}")
            steps.append(step)
            before = now
            self.say(f"{step.name}: {now(slice_s):.1f} img/s")
        assert before is not None
        whole = self._whole_job(job, before(slice_s), seconds=7 * slice_s)
        turns.append([(before(slice_s), whole.measure())])
        while len(turns[-1]) < JOB_TURNS and time.monotonic() + whole.took_s < until:
            turns[-1].append((before(slice_s), whole.measure()))
        cores = self.topology.budget
        steps.append(LadderStep(name="whole job", change="reading, decoding, writing, and Ray around it", cores=cores))
        return Climbed(
            model=self.spec.model.arch,
            images=images,
            cpu=cpu_model(),
            isa=isa_class(),
            cores=cores,
            batch=self.batch,
            rungs=climb(steps, turns),
            left_out=self.left_out,
            start_to_finish=whole.rows / whole.took_s,
            job_rows=whole.rows,
        )

    def _rungs(self) -> list[_Rung]:
        """Everything but the whole job. Where all cores are one, there is nothing to divide."""
        pin, budget = self.topology.may_pin, self.topology.budget
        cores = [core[0] for core in self.topology.cores][:budget]

        def on_one(name: str, change: str, kind: str) -> _Rung:
            return _Rung(LadderStep(name=name, change=change, cores=1), kind, (tuple(cores[:1]) if pin else (),))

        whole = LadderStep(name="fp32 eager", change="NCHW, as many threads as torch takes by itself", cores=budget)
        rungs = [
            _Rung(whole, EAGER, ((),), None),
            on_one("one core", "the same, one thread on one core", EAGER),
            on_one("channels_last", "pixels and weights NHWC in memory", CHANNELS_LAST),
        ]
        if self.spec.model.precision == "int8":
            rungs += [
                on_one("int8 default", "static INT8 (FX) by torch's default configuration", INT8_DEFAULT),
                on_one("int8 fused add", "by oneDNN's: conv + add + ReLU are one operator", INT8_FUSED),
                on_one("uint8 input", "pixels as they are, normalised in the first layer; frozen", BUNDLE),
            ]
        else:
            rungs.append(on_one("bundle", "as workers run it", BUNDLE))
        rungs.append(on_one("batch", "", BUNDLE))
        if budget > 1:
            threads = LadderStep(name="threads", change=f"one process, {budget} threads", cores=budget)
            workers = LadderStep(name="workers", change=f"{budget} processes, a core each", cores=budget)
            together = (tuple(cores) if pin else (),)
            apart = tuple((core,) if pin else () for core in cores)
            rungs += [_Rung(threads, BUNDLE, together, budget), _Rung(workers, BUNDLE, apart)]
        return rungs

    def _start(self, rung: _Rung, job: Job, before: _Running | None) -> _Running | None:
        """The rung's processes, those of the one before where they are the same; None where there is no such rung."""
        loads = [
            LoadVariant(
                plan=None if rung.threads is None else replace(unpinned(rung.threads), cpus=cpus, slots=cpus),
                kind=rung.kind,
                worker=replace(job.worker_spec(None), threads=rung.threads or 1),
                model=job.bundle_request().model,
                images=str(self.folder / "sample" / "00000.parquet"),
            )
            for cpus in rung.cpus
        ]
        batch = self.batch or 1
        if before is not None and before.loads == loads:
            return replace(before, batch=batch)
        try:
            processes = Processes(loads, node_bytes(), limit_s=LOAD_S)
        except ProcessFailed as failed:
            if failed.died:
                raise
            reason = (str(failed).splitlines() or [""])[0]
            if rung.kind == BUNDLE:
                raise RunFailed(f"the bundle cannot be run here: {reason}") from failed
            self.left_out[rung.step.name] = reason
            self.say(f"{rung.step.name}: left out, {reason}")
            return None
        self.running.callback(processes.end)
        return _Running(loads, processes, batch)

    def _best_batch(self, running: _Running, slice_s: float) -> int:
        given = self.spec.workers.batch
        if given != "auto":
            return given
        rates = dict.fromkeys(_BATCHES, 0.0)
        for _ in range(BATCH_TURNS):
            for batch in _BATCHES:
                rates[batch] = max(rates[batch], replace(running, batch=batch)(slice_s))
        return max(rates, key=rates.__getitem__)

    def _local_spec(self, images: Path, *, batch: int, shard_rows: int) -> JobSpec:
        """The job on local copies of its images, into a folder of its own, with all cores of this machine."""
        model = self.spec.model
        if model.weights is None and model.arch.startswith("torchvision/"):
            model = replace(model, weights=self._random_weights(model.arch))
        return self.spec.model_copy(
            update={
                "model": model,
                "input": InputSpec(uri=str(images), image="image", keys=("id",), shard_rows=shard_rows),
                "gate": GateSpec(min_agreement=0.0, min_cosine=-1.0, rows=16),
                "output": OutputSpec(uri=str(self.folder / "output"), topk=self.spec.output.topk),
                "workers": Workers(max=self.topology.budget, cpus=1, batch=batch),
                "limits": Limits(bad_rows=1.0),
                "schedule": Schedule(),
            }
        )

    def _random_weights(self, arch: str) -> str:
        file = self.folder / "random.safetensors"
        if not file.exists():
            done = _run("workers.measure.variants", arch.removeprefix("torchvision/"), str(file))
            if done.returncode:
                raise SpecError(f"--arch {arch}: {done.stderr.strip().splitlines()[-1]}")
        return str(file)

    def _make_bundle(self, job: Job) -> None:
        """That of the job where it has one, else one made as the job would make it; no gate refuses it here."""
        if self.given is not None:
            theirs = Job.open(self.given, writing=False)
            prefix = f"_stint/bundles/{job.fingerprints.bundle}/"
            keys = [info.key for info in theirs.store.list(prefix)]
            for key in sorted(keys, key=lambda key: key.endswith("manifest.json")):  # last: then the others are there
                job.store.create(key, theirs.store.get(key))
        _stint("quantize", self._written(job.spec))

    def _whole_job(self, job: Job, rate: float, seconds: float) -> _WholeJob:
        """Sized to last so long; enough shards for a steady rate between its start and its end."""
        workers = self.topology.budget
        rows = int(seconds * min(rate, DECODED_A_SECOND * workers))
        shard_rows = max(8, rows // (10 * workers))
        rows = write_files(self.folder / "images", self.images, rows, shard_rows)
        spec = self._local_spec(self.folder / "images", batch=self.batch, shard_rows=shard_rows)
        return _WholeJob(self._written(spec), Path(job.store.url), workers, rows)

    def _written(self, spec: JobSpec) -> Path:
        file = self.folder / "bench.yaml"
        file.write_text(spec.model_dump_json(exclude_none=True))  # which is YAML, too
        return file


def _in_turns(before: _Measure, after: _Measure, seconds: float, until: float) -> list[Turn]:
    turns: list[Turn] = []
    while len(turns) < LEAST_TURNS or (len(turns) < MOST_TURNS and time.monotonic() + 2 * seconds < until):
        turns.append((before(seconds), after(seconds)))
    return turns


@dataclass
class _WholeJob:
    """`stint run` into a new output that has the bundle already."""

    spec: Path
    bundles: Path
    workers: int
    rows: int
    took_s: float = 0.0
    """From the command to its end, of the last run."""

    def measure(self) -> float:
        """The steady rate of one run, in rows a second."""
        output = self.spec.parent / "run"
        shutil.copytree(self.bundles / "_stint" / "bundles", output / "_stint" / "bundles")
        began = time.monotonic()
        _stint("run", self.spec, f"--set=output.uri={output}")
        self.took_s = time.monotonic() - began
        rate = steady_rate(completions(output), self.workers)
        shutil.rmtree(output)
        if rate is None:
            raise RunFailed("the whole job ended before it had a steady rate", "allow more --minutes")
        return rate


def completions(output: Path) -> list[Completion]:
    """When each shard below a local output was committed, and its rows."""
    files = output.glob("model=*/plan=*/*.parquet")
    return [(file.stat().st_mtime, pq.read_metadata(file).num_rows) for file in files]


def _stint(command: str, spec: Path, *more: str) -> None:
    done = _run("jobs", command, str(spec), *more)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-5:]
        raise RunFailed(f"stint {command} ended with code {done.returncode}:\n" + "\n".join(last))


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)  # whatever made this process find us
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
