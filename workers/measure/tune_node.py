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

from workers.bundle import bundle
from workers.bundle.profiles import Candidate, HostKind
from workers.contract import SampleSlice, ThreadPlan, WorkerSpec
from workers.engines.artifact import ArtifactInfo
from workers.engines.choice import installed_to_run, ranked
from workers.failures import classify
from workers.host import cores, memory
from workers.host.cpu import isa_class
from workers.measure.tune_crew import Crew, Failed, Setup
from workers.measure.tune_sample import read_sample, write_sample
from workers.outcomes import Failure
from workers.storage.store import open_store

GROWTH = 1.25
"""A candidate is expected to take so much more memory than the largest worker so far, when room is made for it."""


@dataclass(frozen=True, kw_only=True)
class TuneRequest:
    """What a node needs to try candidates."""

    spec: WorkerSpec
    """Of the job; its engine, threads and batch are those of the candidates."""
    sample: tuple[SampleSlice, ...]


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


@dataclass(frozen=True)
class Unusable:
    """A candidate that cannot run here, and why."""

    reason: str


class Bench:
    """`open` it first, `close` it at last. Use from one thread, whose end is that of all its processes."""

    def __init__(self, request: TuneRequest) -> None:
        self._request = request
        self._held = ExitStack()
        self._crews: dict[tuple[str, int, int], Crew] = {}
        """By engine, threads and workers; the one that ran last comes last."""
        self._hopeless: dict[tuple[str, int, int], str] = {}
        """Those that did not come up, and why."""
        self._worker_bytes = 0
        """Most that a worker has taken so far."""
        self._lease: cores.Lease
        self._topology: cores.Topology
        self._sample: Path
        self._rows = 0

    def open(self) -> NodeFacts | Failure:
        """Lease every core of the node and read the sample."""
        try:
            return self._open()
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the driver acts on)
            return classify(error)

    def _open(self) -> NodeFacts:
        spec = self._request.spec
        self._topology = cores.read_topology()
        self._lease = cores.lease(self._topology.budget, self._topology)
        self._held.callback(self._lease.release)
        store = open_store(spec.output.uri, single_writer=spec.output.single_writer)
        manifest = bundle.read_manifest(store, spec.bundle)
        if manifest is None:
            raise bundle.BundleRefused(f"no bundle {spec.bundle} in {spec.output.uri}", code="no_bundle")
        folder = Path(self._held.enter_context(tempfile.TemporaryDirectory(prefix="stint-tune-")))
        images = read_sample(self._request.sample, spec.input)
        self._rows = len(images)
        self._sample = folder / "sample.arrow"
        write_sample(self._sample, images)
        # Those that the gate of this run refuses are none of its workers' engines.
        engines = _engines(
            [a.info for a in manifest.artifacts if not spec.artifacts or a.info.name in spec.artifacts], spec
        )
        return NodeFacts(host=HostKind.here(), engines=engines, rows=len(images))

    def measure(self, candidate: Candidate, slice_s: float) -> Trialled | Unusable:
        """Have a candidate's workers score for so long, all at once."""
        over = self._over_the_node(candidate)
        if over is not None:
            return Unusable(over)
        for fresh in (False, True):
            try:
                crew = self._crew(candidate)
            except Failed as failed:
                return Unusable(str(failed))
            alone = crew.batches <= {candidate.batch}
            try:
                return self._ran(crew, candidate, slice_s)
            except Failed as failed:
                self._end(candidate)
                # What other batches left behind in its process may have been too much, not this one.
                if alone or fresh or not failed.died:
                    return Unusable(str(failed))
        raise AssertionError("a fresh process has run one batch size only")

    def close(self) -> None:
        for crew in self._crews.values():
            crew.end()
        self._crews.clear()
        self._held.close()

    def _ran(self, crew: Crew, candidate: Candidate, slice_s: float) -> Trialled:
        crew.prepare(candidate.batch)
        runs = crew.run(slice_s)
        peak_bytes = max(run.peak_bytes for run in runs)
        self._worker_bytes = max(self._worker_bytes, peak_bytes)
        wall_s = sum(run.wall_s for run in runs)
        return Trialled(
            images_per_s=sum(run.rows / run.wall_s for run in runs),
            decode_share=sum(run.decode_s for run in runs) / wall_s,
            predict_share=sum(run.predict_s for run in runs) / wall_s,
            threads_busy=sum(run.cpu_s for run in runs) / wall_s,
            peak_bytes=peak_bytes,
        )

    # ------------------------------------------------------------------------------------------- crews

    def _crew(self, candidate: Candidate) -> Crew:
        """The candidate's workers; those that have not run for longest make room for them. Raises Failed."""
        key = _key(candidate)
        if key in self._hopeless:
            raise Failed(self._hopeless[key], died=False)
        crew = self._crews.pop(key, None)
        if crew is None:
            wanted = self._worker_bytes * GROWTH * candidate.workers
            while self._crews and self._resident() + wanted > memory.node_bytes() * memory.NODE_SHARE:
                self._crews.pop(next(iter(self._crews))).end()
            try:
                crew = self._started(candidate)
            except Failed as failed:
                self._hopeless[key] = str(failed)
                raise
        self._crews[key] = crew
        return crew

    def _started(self, candidate: Candidate) -> Crew:
        # In single images at first: that it can be loaded at all is one thing, what a batch takes of memory another.
        spec = replace(self._request.spec, engine=candidate.engine, threads=candidate.threads, batch=1, pin=True)
        plans = shares(self._lease.plan, self._topology, candidate.threads, candidate.workers)
        setups = [
            Setup(spec=spec, plan=plan, sample=str(self._sample), first=number * self._rows // candidate.workers)
            for number, plan in enumerate(plans)
        ]
        return Crew(setups, self._cap(candidate))

    def _end(self, candidate: Candidate) -> None:
        self._crews.pop(_key(candidate)).end()

    def _resident(self) -> int:
        return sum(crew.resident_bytes for crew in self._crews.values())

    # ------------------------------------------------------------------------------------------- memory

    def _cap(self, candidate: Candidate) -> int:
        plan = replace(self._lease.plan, threads=candidate.threads)
        return memory.bound_bytes(self._request.spec.memory_bytes, plan)

    def _over_the_node(self, candidate: Candidate) -> str | None:
        """Where the spec gives workers more than their cores' share, fewer of them fit a node."""
        together = self._cap(candidate) * candidate.workers
        room = memory.node_bytes() * memory.NODE_SHARE
        if together <= room * 1.001:
            return None
        return (
            f"{candidate.workers} workers that may take {self._cap(candidate) / 2**30:.2f} GiB each (workers.memory) "
            f"do not fit the node's {room / 2**30:.2f} GiB"
        )


def _key(candidate: Candidate) -> tuple[str, int, int]:
    return candidate.engine, candidate.threads, candidate.workers


def shares(whole: ThreadPlan, topology: cores.Topology, width: int, workers: int) -> list[ThreadPlan]:
    """The leased cores dealt out: `width` of them to each worker, none spanning two caches where they fit in one."""
    pin = bool(whole.cpus)
    firsts = [core[0] for core in topology.cores]
    caches = dict(zip(firsts, topology.l3, strict=True)) if pin else dict.fromkeys(whole.slots, 0)
    free = list(whole.slots)
    plans: list[ThreadPlan] = []
    for _ in range(workers):
        chosen = tuple(sorted(cores.choose(free, caches, width)))
        free = [slot for slot in free if slot not in chosen]
        plans.append(replace(whole, threads=width, cpus=chosen if pin else (), slots=chosen))
    return plans


def _engines(artifacts: Sequence[ArtifactInfo], spec: WorkerSpec) -> tuple[str, ...]:
    """The best artifact of every engine that runs here, the one that the rule takes first before the others."""
    fit = ranked(
        artifacts, precision=spec.model.precision, isa=isa_class(), installed=installed_to_run(), engine=spec.engine
    )
    best: dict[str, str] = {}
    for info in fit:
        best.setdefault(info.engine, info.name)
    return tuple(best.values())
