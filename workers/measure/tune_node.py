"""A node on which `stint tune` tries candidates: it holds all cores, the sample, and the processes of the candidates.

Workers of one candidate run at once, each in a process of its own on cores of its own; those of other candidates that
are still there only wait. They stay because to start one takes seconds, as far as the node's memory has room; and they
end with the process that holds them, however that one ends. Imports no torch: that is for the processes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from workers.bundle.bundle import open_bundle
from workers.bundle.profiles import Candidate, HostKind
from workers.contract import SampleSlice, ThreadPlan, WorkerSpec
from workers.failures import classify
from workers.host import cores, malloc, memory
from workers.measure.messages import LoadWorker, Measured, Unusable
from workers.measure.processes import Processes, ProcessFailed
from workers.measure.sample_file import read_images, write_sample
from workers.outcomes import Failure
from workers.score.loading import fitting

GROWTH = 1.25
"""A candidate is expected to take so much more memory than the largest worker so far, when room is made for it."""
LIMIT_S = 300.0
"""To start, and beyond a slice: one round of a slow network in large batches may take minutes."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    host: HostKind
    engines: tuple[str, ...]
    """Names of artifacts that run on the node, the best of each engine, the one that the rule takes first."""
    rows: int
    """Images in the sample."""


@dataclass(frozen=True, kw_only=True)
class Trialled:
    """What a candidate's workers did in one slice."""

    images_per_s: float
    decode_share: float
    """Of the workers' time."""
    predict_share: float
    threads_busy: float
    """Of a worker."""
    peak_bytes: int
    """Of the largest worker."""

    @classmethod
    def by(cls, workers: Sequence[Measured]) -> Trialled:
        wall_s = sum(worker.wall_s for worker in workers)
        return cls(
            images_per_s=sum(worker.rows / worker.wall_s for worker in workers),
            decode_share=sum(worker.stage_s["decode"] for worker in workers) / wall_s,
            predict_share=sum(worker.stage_s["predict"] for worker in workers) / wall_s,
            threads_busy=sum(worker.cpu_s for worker in workers) / wall_s,
            peak_bytes=max(worker.peak_bytes for worker in workers),
        )


class TuneNode:
    """`open` it first, `close` it at last. Use from one thread, whose end is that of all its processes."""

    def __init__(self, spec: WorkerSpec, sample: Sequence[SampleSlice]) -> None:
        """`spec` is the job's; its engine, threads and batch are those of the candidates."""
        self._spec, self._sampled = spec, sample
        self._resources = ExitStack()
        self._processes: dict[Candidate, Processes] = {}
        """By candidate, whatever its batch (0 here); those that ran last come last."""
        self._failed: dict[Candidate, str] = {}
        """Those that did not come up, and why."""
        self._worker_bytes = 0
        """Most that a worker has taken so far."""

    def open(self) -> NodeFacts | Failure:
        """Lease every core of the node and read the sample."""
        spec = self._spec
        try:
            self._topology = cores.read_topology()
            self._lease = cores.lease(self._topology.budget, self._topology, held_for="stint tune")
            self._resources.callback(self._lease.release)
            _, manifest = open_bundle(spec.output, spec.bundle)
            folder = self._resources.enter_context(tempfile.TemporaryDirectory(prefix="stint-tune-"))
            images = read_images(self._sampled, spec.input)
            if not images:
                raise ValueError("the sample of the input holds no image")
            self._rows = len(images)
            self._sample = Path(folder) / "sample.arrow"
            write_sample(self._sample, images)
            best: dict[str, str] = {}
            for info in fitting(manifest, spec):
                best.setdefault(info.engine, info.name)
            return NodeFacts(host=HostKind.here(), engines=tuple(best.values()), rows=len(images))
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the driver acts on)
            return classify(error)

    def measure(self, candidate: Candidate, slice_s: float) -> Trialled | Unusable:
        """Have a candidate's workers score for so long, all at once."""
        plan = replace(self._lease.plan, threads=candidate.threads)
        bound_bytes = memory.bound_bytes(self._spec.memory_bytes, plan)
        room = memory.node_bytes() * memory.NODE_SHARE
        if bound_bytes * candidate.workers > room * 1.001:  # the spec gives workers more than their cores' share
            return Unusable(
                reason=f"{candidate.workers} workers that may take {bound_bytes / 2**30:.2f} GiB each (workers.memory) "
                f"do not fit the node's {room / 2**30:.2f} GiB"
            )
        key = replace(candidate, batch=0)
        while True:
            try:
                processes = self._started(key, bound_bytes, room)
            except ProcessFailed as failed:
                return Unusable(reason=str(failed))
            alone = processes.batches <= {candidate.batch}
            try:
                trialled = Trialled.by(processes.measure(candidate.batch, slice_s))
                self._worker_bytes = max(self._worker_bytes, trialled.peak_bytes)
                return trialled
            except ProcessFailed as failed:
                self._processes.pop(key).end()
                # What other batches left behind in its process may have been too much, not this one: once more, afresh.
                if alone or not failed.died:
                    return Unusable(reason=str(failed))

    def close(self) -> None:
        for processes in self._processes.values():
            processes.end()
        self._processes.clear()
        self._resources.close()

    def _started(self, candidate: Candidate, bound_bytes: int, room: float) -> Processes:
        """The candidate's workers; those that have not run for longest make room for them. Raises ProcessFailed."""
        if candidate in self._failed:
            raise ProcessFailed(self._failed[candidate], died=False)
        processes = self._processes.pop(candidate, None)
        if processes is None:
            wanted = self._worker_bytes * GROWTH * candidate.workers
            while self._processes and wanted + sum(p.resident_bytes for p in self._processes.values()) > room:
                self._processes.pop(next(iter(self._processes))).end()
            # In single images at first: that it can be loaded is one thing, what a batch takes of memory another.
            spec = replace(self._spec, engine=candidate.engine, threads=candidate.threads, batch=1, pin=True)
            plans = shares(self._lease.plan, self._topology, candidate.threads, candidate.workers)
            loads = [
                LoadWorker(plan=plan, spec=spec, sample=str(self._sample), first=n * self._rows // candidate.workers)
                for n, plan in enumerate(plans)
            ]
            try:
                processes = Processes(loads, bound_bytes, limit_s=LIMIT_S, environment=malloc.variables())
            except ProcessFailed as failed:
                self._failed[candidate] = str(failed)
                raise
        self._processes[candidate] = processes
        return processes


def shares(whole: ThreadPlan, topology: cores.Topology, width: int, workers: int) -> list[ThreadPlan]:
    """The leased cores dealt out: `width` of them to each worker, none spanning two caches where they fit in one."""
    pin = bool(whole.cpus)
    firsts = [core[0] for core in topology.cores]
    caches = dict(zip(firsts, topology.l3, strict=True)) if pin else dict.fromkeys(whole.slots, 0)
    free = list(whole.slots)
    plans: list[ThreadPlan] = []
    for _ in range(workers):
        chosen = tuple(sorted(cores.choose_slots(free, caches, width)))
        free = [slot for slot in free if slot not in chosen]
        plans.append(replace(whole, threads=width, cpus=chosen if pin else (), slots=chosen))
    return plans
