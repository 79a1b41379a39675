"""One worker: fixed cores, one model, shards in, objects out. The class that a Ray actor or a LocalPool runs.

Two calls of `score` may be under way: the second reads ahead while the first predicts. Everything that computes with
torch runs in one thread, because OpenMP keeps a pool of its own for every thread that starts parallel work.
torch is imported in `start`, after the cores are leased and pinned.
"""

from __future__ import annotations

import os
import resource
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from workers import threads
from workers.contract import Shard, ThreadPlan, WorkerSpec
from workers.outcomes import Failure, ShardResult, WorkerInfo

if TYPE_CHECKING:
    import pyarrow as pa

    from workers.predict import Predictor
    from workers.read_ahead import ReadAhead
    from workers.store import Store
    from workers.writing import Scored

T = TypeVar("T")

STAGES = ("read", "decode", "predict", "write", "wait")


class Worker:
    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._compute = ThreadPoolExecutor(1, "compute")
        self._lease: threads.Lease | None = None
        self._predictor: Predictor
        self._store: Store
        self._labels: tuple[str, ...] | None = None
        self._outputs = 0
        self._isa = ""
        self._keys: list[pa.Field] = []

    def start(self) -> WorkerInfo | Failure:
        """Lease cores, import torch, load the bundle and check the golden batch on this CPU."""
        return self._guarded(lambda: self._compute.submit(self._start).result())

    def score(self, shard: Shard) -> ShardResult | Failure:
        """Read, decode, predict and commit one shard."""
        return self._guarded(lambda: self._score(shard))

    def stop(self) -> None:
        self._compute.shutdown(wait=True, cancel_futures=True)
        if self._lease:
            self._lease.release()

    def _guarded(self, action: Callable[[], T]) -> T | Failure:
        try:
            return action()
        except Exception as error:  # noqa: BLE001  (every error becomes a sorted Failure that the driver acts on)
            from workers.failures import classify

            return classify(error)

    # ------------------------------------------------------------------------------------------- start

    def _start(self) -> WorkerInfo:
        clock = _Stopwatch()
        spec = self._spec
        plan = self._take_cores(spec.threads)
        clock.lap("lease")
        import torch

        from workers import bundle
        from workers.cpu import isa_class
        from workers.pixels import decode_into
        from workers.predict import Predictor
        from workers.store import open_store
        from workers.writing import read_schema

        clock.lap("import")
        if torch.get_num_interop_threads() != 1:  # may be set once a process; a LocalPool shares its process
            torch.set_num_interop_threads(1)
        torch.set_num_threads(plan.threads)
        self._store = open_store(spec.output.url, single_writer=spec.output.single_writer)
        manifest = bundle.read_manifest(self._store, spec.bundle)
        if manifest is None:
            raise bundle.BundleRefused(
                f"no bundle {spec.bundle} in {spec.output.url}: run `stint quantize`", code="no_bundle"
            )
        engine = bundle.load_engine(self._store, manifest, spec.precision)
        clock.lap("bundle")
        bundle.check_golden(engine, manifest, self._store, decode_into)
        clock.lap("golden")
        self._keys = list(read_schema(spec.output.key_schema)) if spec.output.key_schema else []
        self._labels = manifest.labels
        self._outputs = manifest.outputs
        self._isa = isa_class()
        self._predictor = Predictor(
            engine,
            manifest.preprocess,
            outputs=manifest.outputs,
            batch=spec.batch,
            threads=plan.threads,
            topk=spec.output.topk,
            task=spec.task,
        )
        # Last, because sizing the decode threads leaves its mark on the default of every later thread.
        torch.set_num_threads(plan.threads)
        if torch.get_num_threads() != plan.threads:
            raise RuntimeError(f"torch runs {torch.get_num_threads()} threads, the plan says {plan.threads}")
        return WorkerInfo(
            host=socket.gethostname(),
            pid=os.getpid(),
            plan=plan,
            affinity=tuple(sorted(os.sched_getaffinity(0))),
            torch_threads=torch.get_num_threads(),
            isa=self._isa,
            start_s=clock.laps,
        )

    def _take_cores(self, wanted: int) -> ThreadPlan:
        if not self._spec.pin:
            topology = threads.read_topology()
            return ThreadPlan(
                threads=wanted,
                cpus=(),
                slots=(),
                budget=topology.budget,
                threads_per_core=topology.threads_per_core,
            )
        self._lease = threads.lease(wanted)
        threads.apply(self._lease.plan)
        return self._lease.plan

    # ------------------------------------------------------------------------------------------- score

    def _score(self, shard: Shard) -> ShardResult:
        from workers.read_ahead import ReadAhead
        from workers.reading import ShardReader

        ahead = ReadAhead(ShardReader(shard, self._spec.input))
        try:
            return self._compute.submit(self._score_read, shard, ahead).result()
        finally:
            ahead.close()

    def _score_read(self, shard: Shard, ahead: ReadAhead) -> ShardResult:
        """The part that computes, in the compute thread."""
        import torch

        from workers.writing import encode, object_facts

        wall, cpu = time.perf_counter(), time.process_time()
        stage = self._predictor.stage_s = dict.fromkeys(STAGES, 0.0)
        scored = self._predictor.score(ahead, shard.rows)
        gone = sorted(ahead.reader.gone)
        rows_gone = sum(shard.slices[i].rows for i in gone)
        if scored.rows + rows_gone != shard.rows:
            raise RuntimeError(f"{shard.describe()}: read {scored.rows} rows and {rows_gone} are gone")
        computed = time.perf_counter()
        stage["wait"] = max(0.0, computed - wall - stage["decode"] - stage["predict"])
        stage["read"] = ahead.reader.read_s
        data = encode(
            shard,
            scored,
            task=self._spec.task,
            labels=self._labels,
            keys=self._keys,
            outputs=self._outputs,
            gone=gone,
            metadata={
                "plan_token": shard.plan_token,
                "token": uuid.uuid4().hex,
                "model": self._spec.fingerprint,
                "bundle": self._spec.bundle,
                "precision": self._spec.precision,
                "isa": self._isa,
                "code": self._spec.code_version,
            },
        )
        key = f"{self._spec.output.root}/{shard.key}"
        committed = self._store.create(key, data)
        # Another attempt was first: its object stands for good, so its facts are the shard's.
        facts = object_facts(data if committed else self._store.get(key))
        ended = time.perf_counter()
        stage["write"] = ended - computed
        wall_s, cpu_s = ended - wall, time.process_time() - cpu
        return ShardResult(
            plan=shard.plan,
            index=shard.index,
            committed=committed,
            rows_ok=facts.rows_ok,
            rows_bad=facts.rows_bad,
            bad_by_code=_counts(bad.code for bad in scored.errors.values()),
            bad_samples=_samples(shard, scored),
            rows_gone=sum(shard.slices[i].rows for i in facts.gone),
            sha256=facts.sha256,
            object_bytes=facts.size,
            bytes_read=scored.bytes_read,
            stage_s=stage,
            wall_s=wall_s,
            cpu_s=cpu_s,
            threads_busy=cpu_s / wall_s,
            torch_threads=torch.get_num_threads(),
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )


def _counts(codes: Iterable[str]) -> dict[str, int]:
    return dict(Counter(codes))


def _samples(shard: Shard, scored: Scored) -> dict[str, str]:
    """The first row of each error code: where it is and what was wrong with it."""
    samples: dict[str, str] = {}
    for row, bad in sorted(scored.errors.items()):
        if bad.code not in samples:
            source = shard.slices[scored.slice_index[row]]
            samples[bad.code] = f"{source.uri} row group {source.row_group} row {scored.row[row]}: {bad}"
    return samples


class _Stopwatch:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
