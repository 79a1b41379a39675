"""A bundle that is loaded and ready, and what is done with it: a shard's rows scored, and its object committed.

The two steps are apart because rows may also be scored a part at a time, in processes of their own; whichever way, one
`commit` writes the same object. This imports torch, and so is imported once the cores are leased and pinned.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import pyarrow as pa
import torch

from workers import output
from workers.bundle.bundle import open_bundle
from workers.bundle.manifest import Manifest
from workers.contract import Shard, TableOf, WorkerSpec
from workers.engines.choice import library
from workers.host import memory
from workers.host.cpu import isa_class
from workers.image.errors import ErrorCode, RowsRefused
from workers.image.plugins import check_decoders
from workers.outcomes import ShardResult, tells_more
from workers.score.copies import Copies
from workers.score.loading import LoadedArtifact, load_best
from workers.score.predictor import Predictor
from workers.source.rows import RowBlock
from workers.source.shard_reader import ShardReader
from workers.source.source_file import InputDenied, InputUnreadable
from workers.storage.retries import take_throttled_s
from workers.storage.store import Store

_REFUSED_LEAST = 8
"""Fewer refused rows say nothing of the spec."""
WORKER_STAGES = ("read", "decode", "predict", "write", "wait")


@dataclass
class Part:
    """Scored rows of a shard, and what that took."""

    scored: output.Scored
    gone: tuple[int, ...]
    """Slices of the shard, by index, that have no rows because their source vanished or changed."""
    stage_s: dict[str, float]
    wall_s: float
    cpu_s: float
    """Of the whole process, so also what another shard's commit took meanwhile."""
    peak_rss_bytes: int
    torch_threads: int
    """As torch counted them in the thread that predicted."""


@dataclass(frozen=True, kw_only=True)
class Scorer(LoadedArtifact):
    """A loaded network with its output. `predict` from one thread, always the same one; `commit` from any."""

    spec: WorkerSpec
    store: Store
    predictor: Predictor
    manifest: Manifest
    isa: str
    keys: tuple[pa.Field, ...]
    copies: dict[tuple[str, ...], Copies] = field(default_factory=dict)
    """Of the plan that is worked on, by the objects whose predictions may be copied."""

    @classmethod
    def load(
        cls, spec: WorkerSpec, lap: Callable[[str], None] = lambda _: None, *, memory_bytes: int | None = None
    ) -> Scorer:
        """Load the best artifact of the bundle, check the golden batch on this CPU.

        `lap` is called with the name of each step that is done; `memory_bytes` is the process's bound, for the size of
        a batch where the spec leaves it open. Raises BundleRefused, DecoderMissing, ModelError, StoreError,
        StoreDenied.
        """
        check_decoders(spec.input.formats)
        lap("import")
        if torch.get_num_interop_threads() != 1:  # may be set once a process; a LocalPool shares its process
            torch.set_num_interop_threads(1)
        torch.set_num_threads(spec.threads)
        store, manifest = open_bundle(spec.output, spec.bundle)
        loaded = load_best(store, manifest, spec, memory_bytes=memory_bytes, lap=lap)
        predictor = Predictor(
            loaded.engine,
            manifest.preprocess.of(spec.input.formats),
            outputs=manifest.outputs,
            batch=loaded.batch,
            threads=spec.threads,
            topk=spec.output.topk,
            task=spec.model.task,
        )
        # Last, because sizing the decode threads leaves its mark on the default of every later thread.
        torch.set_num_threads(spec.threads)
        if torch.get_num_threads() != spec.threads:
            raise RuntimeError(f"torch runs {torch.get_num_threads()} threads, the plan says {spec.threads}")
        return cls(
            **vars(loaded),
            spec=spec,
            store=store,
            predictor=predictor,
            manifest=manifest,
            isa=isa_class(),
            keys=tuple(pa.ipc.read_schema(pa.py_buffer(spec.key_schema))) if spec.key_schema else (),
        )

    @property
    def settled(self) -> WorkerSpec:
        """The spec with what it left open as it was decided here: another process on this host does the same."""
        return replace(self.spec, engine=self.info.name, batch=self.batch)

    def predict(
        self,
        blocks: Iterable[RowBlock],
        rows: int,
        reader: ShardReader,
        between_rounds: Callable[[int], None] = lambda _: None,
    ) -> Part:
        """Score the at most `rows` rows of `blocks`, which `reader` reads. What the reader raises goes up.

        `between_rounds` is called with the number of rows that are done; what it raises goes up, too.
        """
        wall, cpu = time.perf_counter(), time.process_time()
        stage = self.predictor.stage_s = dict.fromkeys(WORKER_STAGES, 0.0)
        scored = self.predictor.score(blocks, rows, between_rounds, self._copies(reader.shard.table))
        wall_s = time.perf_counter() - wall
        stage["wait"] = max(0.0, wall_s - stage["decode"] - stage["predict"])
        stage["read"] = reader.read_s
        return Part(
            scored,
            tuple(sorted(reader.gone)),
            stage,
            wall_s,
            time.process_time() - cpu,
            memory.peak_rss_bytes(),
            torch.get_num_threads(),
        )

    def _copies(self, table: TableOf | None) -> Copies | None:
        if table is not None and table.copies not in self.copies:
            self.copies.clear()
            keys = [f"{self.spec.root}/{key}" for key in table.copies]
            self.copies[table.copies] = Copies(self.store, keys, self.predictor.copied_columns)
        return None if table is None else self.copies[table.copies]

    def commit(self, shard: Shard, part: Part) -> ShardResult:
        """Encode all rows of a shard and create its object; another attempt's that is there already stands for good.

        Raises RuntimeError unless every row is scored or gone; InputUnreadable for a key that the output cannot hold;
        RowsRefused, InputDenied; StoreError, StoreDenied.
        """
        began = time.perf_counter()
        scored = part.scored
        try:
            scored.keys = [output.keys_together(scored.keys, self.keys)] if self.keys else scored.keys
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputUnreadable(f"{shard.describe()}: a key column is not as in earlier plans: {error}") from error
        rows_gone = sum(shard.slices[i].rows for i in part.gone)
        if scored.rows + rows_gone != shard.rows:
            raise RuntimeError(f"{shard.describe()}: read {scored.rows} rows and {rows_gone} are gone")
        if shard.plan not in self.spec.accepted:
            _check_refused(shard, scored, self.spec.most_refused)
        data = output.encode(
            shard,
            scored,
            task=self.spec.model.task,
            labels=self.manifest.labels,
            keys=self.keys,
            outputs=self.manifest.outputs,
            named=self.spec.named,
            gone=part.gone,
            metadata={
                "plan_token": shard.plan_token,
                "token": uuid.uuid4().hex,
                "model": self.spec.fingerprint,
                "bundle": self.spec.bundle,
                "engine": self.info.name,
                "engine_version": library(self.info.engine),
                "precision": self.info.precision,
                "isa": self.isa,
                "device": self.spec.model.device,
                "threads": str(self.spec.threads),
                "float_layers": str(len(self.info.float_layers)),
                "code": self.spec.code_version,
            },
        )
        key = f"{self.spec.root}/{shard.key}"
        committed = self.store.create(key, data)
        # Another attempt was first: its object stands for good, so its facts are the shard's.
        facts = output.object_facts(data if committed else self.store.get(key))
        ok = scored.ok if committed and self.spec.model.task == "classify" else None
        write_s = time.perf_counter() - began
        return ShardResult(
            plan=shard.plan,
            index=shard.index,
            committed=committed,
            rows_ok=facts.rows_ok,
            rows_bad=facts.rows_bad,
            rows_copied=scored.copied if committed else 0,
            bad_by_code=dict(Counter(str(bad.code) for bad in scored.errors.values())),
            bad_samples=_samples(shard, scored),
            rows_gone=sum(shard.slices[i].rows for i in facts.gone),
            sha256=facts.sha256,
            object_bytes=facts.size,
            bytes_read=scored.bytes_read,
            stage_s={**part.stage_s, "write": write_s, "throttled": take_throttled_s()},
            wall_s=part.wall_s,
            cpu_s=part.cpu_s,
            threads_busy=part.cpu_s / part.wall_s if part.wall_s else 0.0,
            torch_threads=part.torch_threads,
            peak_rss_bytes=max(part.peak_rss_bytes, memory.peak_rss_bytes()),
            class_counts={} if ok is None else dict(Counter(scored.label_NK[: scored.rows][ok, 0].tolist())),
            score_counts=() if ok is None else tuple(output.by_score(scored.score_NK[: scored.rows][ok, 0]).tolist()),
            labelled=(0, 0) if ok is None else self._labelled(scored),
        )

    def _labelled(self, scored: output.Scored) -> tuple[int, int]:
        if not (column := self.spec.labels_key) or not scored.keys:
            return 0, 0
        keys, ok = pa.concat_tables(scored.keys), scored.ok
        truth = output.true_classes(keys[column].filter(pa.array(ok)).to_pylist(), self.manifest.labels)
        return output.right_ones(truth, scored.label_NK[: scored.rows][ok, 0].tolist())


def _check_refused(shard: Shard, scored: output.Scored, most: float) -> None:
    """What is committed stays for good, and these rows lack nothing but a root in the spec, or a right.

    Raises RowsRefused, InputDenied.
    """
    for code, least, kind, what in (
        (ErrorCode.DENIED, 1, InputDenied, "may not be read"),
        (ErrorCode.URI_REFUSED, _REFUSED_LEAST, RowsRefused, "are refused"),
    ):
        rows = sum(bad.code is code for bad in scored.errors.values())
        if rows >= least and rows > most * scored.rows:
            example = _samples(shard, scored)[code]
            raise kind(f"{rows:,} of {scored.rows:,} rows of a shard {what} ({code}), e.g. {example}")


def _samples(shard: Shard, scored: output.Scored) -> dict[str, str]:
    """A row of each error code: its keys, where it is, and what was wrong with it."""
    samples: dict[str, str] = {}
    keys = pa.concat_tables(scored.keys) if scored.keys else None
    for row, bad in sorted(scored.errors.items()):
        if tells_more(str(bad), samples.get(bad.code)):
            source = shard.slices[scored.slice_index[row]]
            named = {} if keys is None else output.shown_keys(keys, row)
            samples[bad.code] = f"{output.describe_row(source.uri, source.row_group, scored.row[row], named)}: {bad}"
    return samples
