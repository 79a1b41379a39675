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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from jobs.errors import COMPLETE, RunFailed, SpecError
from jobs.measure.bench_images import Files, images_of, made_images
from jobs.measure.plots import check_can_draw, draw_ladder
from jobs.measure.rates import Climbed, Completion, Step, Turn, climb, steady_rate
from jobs.plan.job import Job
from jobs.spec.load import load_spec, parse_spec
from jobs.spec.schema import JobSpec, Limits, Schedule, Workers
from workers.contract import GateSpec, InputSpec, OutputSpec
from workers.host.child import Child, Died, KilledFromOutside, Overdue
from workers.host.cores import Topology, read_topology
from workers.host.cpu import cpu_model, isa_class
from workers.host.memory import node_bytes
from workers.measure import messages

# ----------------------------------------------------------------------------------------------------
# What `stint bench` measures: processes that hold one variant of the network, and the whole job. Each gives a rate.

LOAD_S = 600.0
"""A variant that is not loaded by then is stuck."""
MOST_TURNS = 9
LEAST_TURNS = 2


class Rate(Protocol):
    """Something that can be measured again and again, in images a second."""

    def __call__(self, seconds: float) -> float: ...


@dataclass
class Processes:
    """Processes that hold the same variant, each on its own cores."""

    variants: list[messages.Variant]
    children: list[Child]
    batch: int
    what: str = ""
    """What they run, as they say once they are loaded."""

    def load(self) -> str | None:
        """Why they cannot be, or None."""
        for child, variant in zip(self.children, self.variants, strict=True):
            child.put(variant)
        answers: list[messages.Loaded | messages.NotPossible] = [answer_of(child) for child in self.children]
        for answer in answers:
            if isinstance(answer, messages.NotPossible):
                return answer.reason
            self.what = answer.what
        return None

    def __call__(self, seconds: float) -> float:
        for child in self.children:
            child.put(messages.AskBatch(batch=self.batch, seconds=seconds))
        laps: list[messages.BatchLap] = [answer_of(child) for child in self.children]
        return sum(lap.images / lap.seconds for lap in laps)

    def close(self) -> None:
        for child in self.children:
            child.end()


def turns_of(before: Rate, after: Rate, seconds: float, until: float) -> list[Turn]:
    turns: list[Turn] = []
    while len(turns) < LEAST_TURNS or (len(turns) < MOST_TURNS and time.monotonic() + 2 * seconds < until):
        turns.append((before(seconds), after(seconds)))
    return turns


def answer_of(child: Child) -> Any:
    try:
        return child.take(LOAD_S)
    except (Died, KilledFromOutside) as error:
        raise RunFailed(f"a process that measures ended: {error}", "mind this machine's memory") from error
    except Overdue as error:
        raise RunFailed(f"a process that measures has not answered in {LOAD_S:.0f} s") from error


@dataclass
class WholeJob:
    """`stint run` into a new output that has the bundle already."""

    spec: Path
    bundles: Path
    workers: int
    rows: int
    took_s: float = 0.0
    """From the command to its end, of the last run."""

    def __call__(self, seconds: float) -> float:  # noqa: ARG002  (a run takes what it takes)
        output = self.spec.parent / "run"
        shutil.copytree(self.bundles / "_stint" / "bundles", output / "_stint" / "bundles")
        began = time.monotonic()
        stint("run", self.spec, f"--set=output.uri={output}")
        self.took_s = time.monotonic() - began
        rate = steady_rate(completions(output), self.workers)
        shutil.rmtree(output)
        if rate is None:
            raise RunFailed("the whole job ended too soon for its rate to be told: allow more --minutes")
        return rate


def completions(output: Path) -> list[Completion]:
    """When each shard below a local output was committed, and its rows."""
    files = output.glob("model=*/plan=*/*.parquet")
    return [(file.stat().st_mtime, pq.read_metadata(file).num_rows) for file in files]


def stint(command: str, spec: Path, *more: str) -> None:
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)  # whatever made this process find us
    done = subprocess.run(
        [sys.executable, "-P", "-m", "jobs", command, str(spec), *more],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last: Sequence[str] = done.stderr.strip().splitlines()[-5:]
        raise RunFailed(f"stint {command} ended with code {done.returncode}:\n" + "\n".join(last))


BATCHES = (4, 8, 16, 32)
"""Tried where the spec leaves the batch to us."""
BATCH_TURNS = 2
JOB_TURNS = 3
DECODED_A_SECOND = 600
"""By one core, of photographs of middling size: what the whole job is sized by where the network is faster."""

Say = Callable[[str], None]


def bench_command(arguments: argparse.Namespace, say: Say) -> int:
    """`stint bench`, see jobs.arguments. Raises StintError."""
    if arguments.spec is not None and arguments.arch is not None:
        raise SpecError("--arch names a network to measure without a SPEC; with one, its own is measured")
    if arguments.picture is not None:
        check_can_draw(arguments.picture)
    given = None if arguments.spec is None else load_spec(arguments.spec, arguments.overrides)
    if given is not None and given.model.device != "cpu":
        raise SpecError(f"model.device: {given.model.device}: stint bench climbs by the cores of CPUs", "set it to cpu")
    climbed = bench(given, arguments.arch or "resnet50", arguments.minutes, say)
    print(climbed.as_json() if arguments.json else "\n".join(climbed.lines()))
    if arguments.picture is not None:
        draw_ladder(climbed.rungs, f"{climbed.model} on {climbed.cpu}", arguments.picture)
        say(f"picture: {arguments.picture}")
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


def bench(given: JobSpec | None, arch: str, minutes: float, say: Say) -> Climbed:
    """Measure the job's network on its own images; without one, `arch` with random weights on photographs.

    Takes about `minutes`, of which a large network may need several to be loaded and quantized. Raises SpecError for
    what cannot be had, RunFailed where a process ends.
    """
    began = time.monotonic()
    say(f"about {minutes:g} minutes of all cores; nothing else should run meanwhile (--minutes bounds it)")
    with tempfile.TemporaryDirectory(prefix="stint-bench-") as name, ExitStack() as held:
        folder = Path(name)
        if given is None:
            spec, images, what = random_spec(arch), made_images(), "made, 500 by 375"
        else:
            spec, images, what = given, images_of(Job.open(given, writing=False)), f"sampled from {given.name}"
        ladder = _Ladder(spec=spec, given=given, folder=folder, images=images, held=held, say=say)
        climbed = ladder.measure(until=began + 60 * minutes, slice_s=min(2.0, minutes / 2), images=what)
    return replace(climbed, minutes=round((time.monotonic() - began) / 60, 2))


@dataclass(frozen=True)
class _Stage:
    step: Step
    kind: str
    cpus: tuple[tuple[int, ...], ...] = ()
    """Of each process."""
    threads: int | None = 1
    batch: int = 1


@dataclass(kw_only=True)
class _Ladder:
    spec: JobSpec
    given: JobSpec | None
    folder: Path
    images: list[bytes]
    held: ExitStack
    say: Say
    topology: Topology = field(default_factory=read_topology)
    left_out: dict[str, str] = field(default_factory=dict)
    batch: int = 0

    def measure(self, *, until: float, slice_s: float, images: str) -> Climbed:
        small = Files(self.folder / "sample", self.images)
        small.write(len(self.images), len(self.images), groups_a_file=1)
        job = Job.open(self._local_spec(self.folder / "sample", batch=1, shard_rows=len(self.images)))
        self._bundle(job)
        steps: list[Step] = []
        turns: list[list[Turn]] = []
        before: tuple[_Stage, Processes] | None = None
        stages = self._stages()
        for number, stage in enumerate(stages):
            if stage.step.name == "batch":
                assert before is not None, "the artifact without a batch comes first, and always loads"
                self.batch = self._best_batch(before[1], slice_s / 2)
                change = f"{self.batch} images a forward pass instead of one"
                stage = replace(stage, step=replace(stage.step, change=change))
            stage = replace(stage, batch=self.batch or 1)
            processes = self._loaded(stage, job, None if before is None else before[1])
            if processes is None:
                continue
            if before is not None:
                # What is left is shared by the rungs that are left; the whole job takes as much as three of them.
                share_s = (until - time.monotonic()) / (len(stages) - number + 3)
                turns.append(turns_of(before[1], processes, slice_s, time.monotonic() + share_s))
                if before[1].children is not processes.children:
                    before[1].close()
            if stage.step.name in ("uint8 input", "bundle"):
                stage = replace(stage, step=replace(stage.step, change=f"{processes.what}: {stage.step.change}"))
            steps.append(stage.step)
            before = stage, processes
            self.say(f"{stage.step.name}: {processes(slice_s):.1f} img/s")
        assert before is not None
        workers = before[1]
        whole = self._whole_job(job, workers(slice_s), seconds=7 * slice_s)
        turns.append([(workers(slice_s), whole(slice_s))])
        while len(turns[-1]) < JOB_TURNS and time.monotonic() + whole.took_s < until:
            turns[-1].append((workers(slice_s), whole(slice_s)))
        cores = self.topology.budget
        steps.append(Step(name="whole job", change="reading, decoding, writing, and Ray around it", cores=cores))
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

    def _stages(self) -> list[_Stage]:
        """Everything but the whole job. Where all cores are one, there is nothing to divide."""
        pin, budget = self.topology.may_pin, self.topology.budget
        cores = [core[0] for core in self.topology.cores][:budget]
        one = (tuple(cores[:1]) if pin else (),)
        quantized = self.spec.model.precision == "int8"

        def on_one(name: str, change: str, kind: str) -> _Stage:
            return _Stage(Step(name=name, change=change, cores=1), kind, one)

        whole = Step(name="fp32 eager", change="NCHW, as many threads as torch takes by itself", cores=budget)
        stages = [
            _Stage(whole, messages.EAGER, ((),), None),
            on_one("one core", "the same, one thread on one core", messages.EAGER),
            on_one("channels_last", "pixels and weights NHWC in memory", messages.CHANNELS_LAST),
        ]
        if quantized:
            stages += [
                on_one("int8 default", "static INT8 (FX) by torch's default configuration", messages.INT8_DEFAULT),
                on_one("int8 fused add", "by oneDNN's: conv + add + ReLU are one operator", messages.INT8_FUSED),
                on_one("uint8 input", "pixels as they are, normalised in the first layer; frozen", messages.ARTIFACT),
            ]
        else:
            stages.append(on_one("bundle", "as workers run it", messages.ARTIFACT))
        stages.append(on_one("batch", "", messages.ARTIFACT))
        if budget > 1:
            threads = Step(name="threads", change=f"one process, {budget} threads", cores=budget)
            workers = Step(name="workers", change=f"{budget} processes, a core each", cores=budget)
            together = (tuple(cores) if pin else (),)
            apart = tuple((core,) if pin else () for core in cores)
            stages += [_Stage(threads, messages.ARTIFACT, together, budget), _Stage(workers, messages.ARTIFACT, apart)]
        return stages

    def _loaded(self, stage: _Stage, job: Job, before: Processes | None) -> Processes | None:
        """The stage's processes, those of the one before where they are the same; None where there is no such rung."""
        variants = [
            messages.Variant(
                kind=stage.kind,
                cpus=cpus,
                threads=stage.threads,
                worker=replace(job.worker_spec(None), threads=stage.threads or 1),
                model=job.bundle_request().model,
                images=str(self.folder / "sample" / "00000.parquet"),
            )
            for cpus in stage.cpus
        ]
        if before is not None and before.variants == variants:
            return replace(before, batch=stage.batch)
        processes = Processes(variants, [self._child() for _ in variants], stage.batch)
        reason = processes.load()
        if reason is not None:
            if stage.kind == messages.ARTIFACT:
                raise RunFailed(f"the bundle cannot be run here: {reason}")
            self.left_out[stage.step.name] = reason
            self.say(f"{stage.step.name}: left out, {reason}")
            processes.close()
            return None
        return processes

    def _child(self) -> Child:
        child = Child("workers.measure.bench_measure", node_bytes(), "measured")
        self.held.callback(child.end)
        return child

    def _best_batch(self, processes: Processes, slice_s: float) -> int:
        given = self.spec.workers.batch
        if given != "auto":
            return given
        rates = dict.fromkeys(BATCHES, 0.0)
        for _ in range(BATCH_TURNS):
            for batch in BATCHES:
                rates[batch] = max(rates[batch], replace(processes, batch=batch)(slice_s))
        return max(rates, key=rates.__getitem__)

    # ---------------------------------------------------------------------------------------- the job

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
            child = self._child()
            child.put(messages.RandomWeights(arch=arch.removeprefix("torchvision/"), file=str(file)))
            answer = answer_of(child)
            if isinstance(answer, messages.NotPossible):
                raise SpecError(f"--arch {arch}: {answer.reason}")
        return str(file)

    def _bundle(self, job: Job) -> None:
        """That of the job where it has one, else one made as the job would make it; no gate refuses it here."""
        if self.given is not None:
            theirs = Job.open(self.given, writing=False)
            prefix = f"_stint/bundles/{job.fingerprints.bundle}/"
            keys = [info.key for info in theirs.store.list(prefix)]
            for key in sorted(keys, key=lambda key: key.endswith("manifest.json")):  # last: then the others are there
                job.store.create(key, theirs.store.get(key))
        stint("quantize", self._written(job.spec))

    def _whole_job(self, job: Job, rate: float, seconds: float) -> WholeJob:
        """Sized to last so long; enough shards for its steady rate to be told from its start and its end."""
        workers = self.topology.budget
        rows = int(seconds * min(rate, DECODED_A_SECOND * workers))
        shard_rows = max(8, rows // (10 * workers))
        rows = Files(self.folder / "images", self.images).write(rows, shard_rows)
        spec = self._local_spec(self.folder / "images", batch=self.batch, shard_rows=shard_rows)
        return WholeJob(self._written(spec), Path(job.store.url), workers, rows)

    def _written(self, spec: JobSpec) -> Path:
        file = self.folder / "bench.yaml"
        file.write_text(spec.model_dump_json(exclude_none=True))  # which is YAML, too
        return file
