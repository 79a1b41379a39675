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
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq

from jobs.console import Console
from jobs.errors import COMPLETE, RunFailed, SpecError
from jobs.measure.bench_images import IMAGES, images_of, photographs, write_files
from jobs.measure.plots import check_can_draw, draw_ladder
from jobs.measure.rates import Climbed, Completion, Step, Turn, climb, steady_rate
from jobs.plan.job import Job
from jobs.spec.load import load_spec, parse_spec
from jobs.spec.schema import JobSpec, Limits, RowBudget, Schedule, Workers
from workers.contract import GateSpec, InputSpec, OutputSpec
from workers.host.child import python_path
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


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint bench`, see jobs.arguments: measure the job's network on its own images; without one, --arch with random
    weights on photographs.

    Takes about --minutes, of which a large network may need several to be loaded and quantized. Raises SpecError for
    what cannot be had, RunFailed where a process ends.
    """
    if arguments.spec is not None and arguments.arch is not None:
        raise SpecError("--arch names a network to measure without a SPEC; with one, its own is measured")
    if arguments.picture is not None:
        check_can_draw(arguments.picture)
    began, minutes, theirs = time.monotonic(), arguments.minutes, None
    if arguments.spec is None:
        arch = arguments.arch or "resnet50"
        arch = arch if ":" in arch or arch.startswith("torchvision/") else f"torchvision/{arch}"
        model = {"arch": arch, "calibration": {"rows": 32}, "engine": "torch-int8"}
        # A job of nothing but an architecture: its weights, input and output are filled in where it is measured.
        spec = parse_spec({"name": "bench", "input": {"uri": "."}, "model": model, "output": {"uri": "."}}, "--arch")
    else:
        spec = load_spec(arguments.spec, arguments.overrides)
        if (device := spec.model.device) != "cpu":
            raise SpecError(f"model.device: {device}: stint bench climbs by the cores of CPUs", "set it to cpu")
        theirs = Job.open(spec, writing=False)
    console.say(f"about {minutes:g} minutes of all cores; nothing else should run meanwhile (--minutes bounds it)")
    # Photographs of 500 by 375, as those of ImageNet are on average: about 85 KB each.
    images = photographs(IMAGES, quality=95) if theirs is None else images_of(theirs)
    with tempfile.TemporaryDirectory(prefix="stint-bench-") as folder, ExitStack() as running:
        ladder = _Ladder(spec, theirs, Path(folder), images, running, console.say)
        try:
            climbed = ladder.measure(began, minutes)
        except ProcessFailed as error:
            raise RunFailed(f"a rung cannot be measured: {error}", "mind this machine's memory") from error
    console.show(climbed.as_json() if arguments.json else "\n".join(climbed.lines()))
    if arguments.picture is not None:
        draw_ladder(climbed.rungs, f"{climbed.model} on {climbed.cpu}", arguments.picture)
        console.say(f"picture: {arguments.picture}")
    return COMPLETE


@dataclass(frozen=True)
class _Variant:
    """A rung that processes of ours climb."""

    name: str
    change: str
    kind: str
    cpus: tuple[tuple[int, ...], ...]
    """Of each process; () for one that is not pinned."""
    threads: int | None = 1
    """Of each process; None for as many as torch takes by itself."""


@dataclass(frozen=True)
class _Ladder:
    spec: JobSpec
    theirs: Job | None
    """The job as it is; None where there is but an architecture."""
    folder: Path
    images: list[bytes]
    running: ExitStack
    """Ends all processes."""
    say: Callable[[str], None]
    topology: Topology = field(default_factory=read_topology)
    left_out: dict[str, str] = field(default_factory=dict)

    def measure(self, began: float, minutes: float) -> Climbed:
        """All rungs, in about so many minutes since `began`. Raises RunFailed, SpecError, ProcessFailed."""
        until, slice_s = began + 60 * minutes, min(2.0, minutes / 2)
        write_files(self.folder / "sample", self.images, len(self.images), len(self.images), groups_a_file=1)
        job = Job.open(self._local_spec(self.folder / "sample", batch=1, shard_rows=len(self.images)))
        self._make_bundle(job)
        steps: list[Step] = []
        turns: list[list[Turn]] = []
        measures: list[partial[float]] = []
        processes: Processes | None = None
        batch, cores = 1, self.topology.budget
        variants = self._variants()
        for number, variant in enumerate(variants):
            change = variant.change
            if variant.name == "batch":
                assert processes is not None, "the artifact without a batch comes first, and always loads"
                batch = self._best_batch(processes, slice_s / 2)
                change = f"{batch} images a forward pass instead of one"
            now = self._start(variant, job, processes)
            if now is None:
                continue
            measures.append(partial(_rate, now, batch))
            if processes is not None:
                # What is left is shared by the rungs that are left; the whole job takes as much as three of them.
                share_s = (until - time.monotonic()) / (len(variants) - number + 3)
                turns.append(_in_turns(measures[-2], measures[-1], slice_s, time.monotonic() + share_s))
                if processes is not now:
                    processes.end()
            processes = now
            if variant.name in ("uint8 input", "bundle"):
                change = f"{now.description}: {change}"
            width = cores if variant.threads is None else variant.threads * len(variant.cpus)
            steps.append((variant.name, change, width))
            self.say(f"{variant.name}: {measures[-1](slice_s):.1f} img/s")
        rate = measures[-1]
        # Rows enough to last so long, in shards enough for a steady rate between the job's start and its end.
        rows = int(7 * slice_s * min(rate(slice_s), DECODED_A_SECOND * cores))
        shard_rows = max(8, rows // (10 * cores))
        rows = write_files(self.folder / "images", self.images, rows, shard_rows)
        spec = self._local_spec(self.folder / "images", batch=batch, shard_rows=shard_rows)
        turns.append([])
        took_s = 0.0
        while not turns[-1] or (len(turns[-1]) < JOB_TURNS and time.monotonic() + took_s < until):
            alone = rate(slice_s)
            whole, took_s = self._run_job(spec, Path(job.store.url))
            turns[-1].append((alone, whole))
        steps.append(("whole job", "reading, decoding, writing, and Ray around it", cores))
        return Climbed(
            model=self.spec.model.arch,
            images="made, 500 by 375" if self.theirs is None else f"sampled from {self.theirs.spec.name}",
            cpu=cpu_model(),
            isa=isa_class(),
            cores=cores,
            batch=batch,
            rungs=climb(steps, turns),
            left_out=self.left_out,
            start_to_finish=rows / took_s,
            job_rows=rows,
            minutes=round((time.monotonic() - began) / 60, 2),
        )

    def _variants(self) -> list[_Variant]:
        """Everything but the whole job. Where all cores are one, there is nothing to divide."""
        pin, budget = self.topology.may_pin, self.topology.budget
        cores = tuple(core[0] for core in self.topology.cores)[:budget]
        one = (cores[:1] if pin else (),)
        variants = [
            _Variant("fp32 eager", "NCHW, as many threads as torch takes by itself", EAGER, ((),), None),
            _Variant("one core", "the same, one thread on one core", EAGER, one),
            _Variant("channels_last", "pixels and weights NHWC in memory", CHANNELS_LAST, one),
        ]
        if self.spec.model.precision == "int8":
            variants += [
                _Variant("int8 default", "static INT8 (FX) by torch's default configuration", INT8_DEFAULT, one),
                _Variant("int8 fused add", "by oneDNN's: conv + add + ReLU are one operator", INT8_FUSED, one),
                _Variant("uint8 input", "pixels as they are, normalised in the first layer; frozen", BUNDLE, one),
            ]
        else:
            variants.append(_Variant("bundle", "as workers run it", BUNDLE, one))
        variants.append(_Variant("batch", "", BUNDLE, one))
        if budget > 1:
            apart = tuple((core,) if pin else () for core in cores)
            variants += [
                _Variant("threads", f"one process, {budget} threads", BUNDLE, (cores if pin else (),), budget),
                _Variant("workers", f"{budget} processes, a core each", BUNDLE, apart),
            ]
        return variants

    def _start(self, variant: _Variant, job: Job, before: Processes | None) -> Processes | None:
        """Its processes, those of the rung before where they are the same; None where there is no such rung."""
        loads = [
            LoadVariant(
                plan=None if variant.threads is None else replace(unpinned(variant.threads), cpus=cpus, slots=cpus),
                kind=variant.kind,
                worker=replace(job.worker_spec(None), threads=variant.threads or 1),
                images=str(self.folder / "sample" / "00000.parquet"),
            )
            for cpus in variant.cpus
        ]
        if before is not None and before.loads == loads:
            return before
        try:
            processes = Processes(loads, node_bytes(), limit_s=LOAD_S)
        except ProcessFailed as failed:
            if failed.died:
                raise
            reason = (str(failed).splitlines() or [""])[0]
            if variant.kind == BUNDLE:
                raise RunFailed(f"the bundle cannot be run here: {reason}") from failed
            self.left_out[variant.name] = reason
            self.say(f"{variant.name}: left out, {reason}")
            return None
        self.running.callback(processes.end)
        return processes

    def _best_batch(self, processes: Processes, slice_s: float) -> int:
        given = self.spec.workers.batch
        if given != "auto":
            return given
        rates = dict.fromkeys(_BATCHES, 0.0)
        for _ in range(BATCH_TURNS):
            for batch in _BATCHES:
                rates[batch] = max(rates[batch], _rate(processes, batch, slice_s))
        return max(rates, key=rates.__getitem__)

    def _local_spec(self, images: Path, *, batch: int, shard_rows: int) -> JobSpec:
        """The job on local copies of its images, into a folder of its own, with all cores of this machine."""
        model = self.spec.model
        if model.weights is None and model.arch.startswith("torchvision/"):
            file = self.folder / "random.safetensors"
            if not file.exists():
                done = _run("workers.measure.variants", model.arch.removeprefix("torchvision/"), str(file))
                if done.returncode:
                    raise SpecError(f"--arch {model.arch}: {done.stderr.strip().splitlines()[-1]}")
            model = replace(model, weights=str(file))
        return self.spec.model_copy(
            update={
                "model": model,
                "input": InputSpec(uri=str(images), image="image", keys=("id",), shard_rows=shard_rows),
                "gate": GateSpec(min_agreement=0.0, min_cosine=-1.0, rows=16),
                "output": OutputSpec(uri=str(self.folder / "output"), topk=self.spec.output.topk),
                "workers": Workers(max=self.topology.budget, cpus=1, batch=batch),
                "limits": Limits(bad_rows=RowBudget(share=1.0)),
                "schedule": Schedule(),
            }
        )

    def _make_bundle(self, job: Job) -> None:
        """That of the job where it has one, else one made as the job would make it; no gate refuses it here."""
        if self.theirs is not None:
            prefix = f"_stint/bundles/{job.fingerprints.bundle}/"
            keys = [info.key for info in self.theirs.store.list(prefix)]
            for key in sorted(keys, key=lambda key: key.endswith("manifest.json")):  # last: then the others are there
                job.store.create(key, self.theirs.store.get(key))
        self._stint("quantize", job.spec)

    def _run_job(self, spec: JobSpec, bundles: Path) -> tuple[float, float]:
        """The steady rate, in rows a second, of `stint run` into a new output that has the bundle already; and how many
        seconds it took from the command to its end."""
        output = self.folder / "run"
        shutil.copytree(bundles / "_stint" / "bundles", output / "_stint" / "bundles")
        began = time.monotonic()
        self._stint("run", spec, f"--set=output.uri={output}")
        took_s = time.monotonic() - began
        rate = steady_rate(completions(output), self.topology.budget)
        shutil.rmtree(output)
        if rate is None:
            raise RunFailed("the whole job ended before it had a steady rate", "allow more --minutes")
        return rate, took_s

    def _stint(self, command: str, spec: JobSpec, *more: str) -> None:
        file = self.folder / "bench.yaml"
        file.write_text(spec.model_dump_json(exclude_none=True))  # which is YAML, too
        done = _run("jobs", command, str(file), *more)
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-5:])
            raise RunFailed(f"stint {command} ended with code {done.returncode}:\n{last}")


def _rate(processes: Processes, batch: int, seconds: float) -> float:
    return sum(one.rows / one.wall_s for one in processes.measure(batch, seconds))


def _in_turns(before: partial[float], after: partial[float], seconds: float, until: float) -> list[Turn]:
    turns: list[Turn] = []
    while len(turns) < LEAST_TURNS or (len(turns) < MOST_TURNS and time.monotonic() + 2 * seconds < until):
        turns.append((before(seconds), after(seconds)))
    return turns


def completions(output: Path) -> list[Completion]:
    """When each shard below a local output was committed, and its rows."""
    files = output.glob("model=*/plan=*/*.parquet")
    return [(file.stat().st_mtime, pq.read_metadata(file).num_rows) for file in files]


def _run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
