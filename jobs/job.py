"""A spec resolved against the world: its store, ledger, fingerprints, and what workers are told."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from jobs import planning
from jobs.errors import SpecError
from jobs.fingerprint import Fingerprints, fingerprints
from jobs.ledger import Ledger, Plan, unclaimed
from jobs.sampling import choose_sample
from jobs.sources import Opened, Source, list_sources, open_sources
from jobs.spec import JobSpec
from workers.contract import BundleRequest, GateSpec, InputSpec, ModelSpec, OutputSpec, SampleSlice, WorkerSpec
from workers.store import Store, StoreDenied, StoreError, open_filesystem, open_store, probe, read_url

BATCH = 16
"""Best of 1 to 64 for ResNet-50 INT8 on one core: small batches stay in the second-level cache."""
CPUS = 1
"""Cores a worker: partitioning beats sharing, so one each."""


@dataclass(frozen=True)
class Job:
    spec: JobSpec
    store: Store
    ledger: Ledger
    fingerprints: Fingerprints

    @classmethod
    def open(cls, spec: JobSpec, *, writing: bool = True) -> Job:
        """Resolve the spec. Raises SpecError for what cannot be: weights, module, output, a store that lies."""
        source, target = absolute(spec.input.uri), absolute(spec.output.uri)
        if f"{target}/".startswith(f"{source}/"):
            raise SpecError(
                f"output.uri {target} lies inside input.uri {source}: predictions would be taken for input",
                "write beside the input, not into it",
            )
        prints = fingerprints(spec, read_url)
        try:
            store = open_store(target, single_writer=spec.output.single_writer)
            if writing and not spec.output.single_writer:
                probe(store)
        except (StoreDenied, StoreError) as error:
            raise SpecError(f"output.uri: {error}") from error
        return cls(spec=spec, store=store, ledger=Ledger(store, prints.root), fingerprints=prints)

    # -------------------------------------------------------------------------------------- for workers

    def input_spec(self, extra: tuple[str, ...] = ()) -> InputSpec:
        """`extra` columns are read beside the keys."""
        given = self.spec.input
        fs, path = open_filesystem(given.uri)
        is_file = fs.isfile(path)
        root = absolute(given.uri)
        return InputSpec(
            format=given.format,
            image=given.image,
            keys=tuple(dict.fromkeys((*given.keys, *extra))),
            uri_roots=tuple(map(absolute, given.uri_roots)) or (root.rpartition("/")[0] if is_file else root,),
        )

    def output_spec(self, keys: pa.Schema | None) -> OutputSpec:
        return OutputSpec(
            url=absolute(self.spec.output.uri),
            root=self.fingerprints.root,
            topk=self.spec.output.topk,
            key_schema=keys.serialize().to_pybytes() if keys is not None and len(keys) else b"",
            single_writer=self.spec.output.single_writer,
        )

    @property
    def threads(self) -> int:
        return CPUS if self.spec.workers.cpus == "auto" else self.spec.workers.cpus

    @property
    def batch(self) -> int:
        return BATCH if self.spec.workers.batch == "auto" else self.spec.workers.batch

    def worker_spec(self, keys: pa.Schema | None) -> WorkerSpec:
        return WorkerSpec(
            bundle=self.fingerprints.bundle,
            fingerprint=self.fingerprints.model,
            input=self.input_spec(),
            output=self.output_spec(keys),
            threads=self.threads,
            batch=self.batch,
            task=self.spec.model.task,
            precision=self.spec.model.precision,
            code_version=code_version(),
        )

    def sample(self, opened: Sequence[Opened]) -> tuple[SampleSlice, ...]:
        """Rows that calibrate and judge the INT8 model."""
        calibration = self.spec.model.calibration
        return choose_sample(opened, calibration.rows + self.spec.gate.rows, calibration.seed)

    def bundle_request(self) -> BundleRequest:
        """Without a sample yet: that takes the footers of the input."""
        spec = self.spec
        labels_column = spec.gate.labels_column
        return BundleRequest(
            fingerprint=self.fingerprints.bundle,
            model=ModelSpec(
                arch=spec.model.arch,
                weights=spec.model.weights,
                args=spec.model.args,
                labels=spec.model.labels,
                task=spec.model.task,
                precision=spec.model.precision,
                preprocess=spec.model.preprocess.model_dump(exclude_none=True),
                calibration_rows=spec.model.calibration.rows,
                calibration_seed=spec.model.calibration.seed,
            ),
            gate=GateSpec(**spec.gate.model_dump()),
            input=self.input_spec((labels_column,) if labels_column else ()),
            output=self.output_spec(None),
            sample=(),
            batch=self.batch,
        )

    # ------------------------------------------------------------------------------------------- input

    def discover(self) -> Discovery:
        """What the input holds, what of it no plan claims, and the plans that are not done. One listing each."""
        sources = list_sources(self.spec.input)
        plans = self.ledger.plans()
        opened, unreadable = open_sources(unclaimed(sources, plans), self.spec.input)
        done = self.ledger.done_numbers()
        self._check_keys(opened, plans)
        self._check_labels(opened)
        return Discovery(
            sources=sources,
            plans=plans,
            open_plans=[plan for plan in plans if plan.number not in done],
            fresh=opened,
            unreadable=unreadable,
        )

    def cut(self, opened: Sequence[Opened]) -> planning.Cut:
        given = self.spec.input
        total = sum(group.rows for o in opened for group in o.groups)
        within = planning.bounds(total, self.spec.workers.max, given.shard_rows, given.shard_mb * 2**20)
        return planning.cut(opened, within)

    def _check_keys(self, opened: Sequence[Opened], plans: Sequence[Plan]) -> None:
        """A model's root holds one schema: key columns may not change type from one night to the next."""
        if opened and plans and opened[0].keys != plans[-1].keys:
            raise SpecError(
                f"input.keys: {opened[0].source.uri} has {str(opened[0].keys).strip()!r}, earlier plans of this "
                f"output have {str(plans[-1].keys).strip()!r}",
                "cast the column in the input, or write to another output.uri",
            )

    def _check_labels(self, opened: Sequence[Opened]) -> None:
        column = self.spec.gate.labels_column
        missing = [o for o in opened if column and column not in o.columns]
        if missing:
            raise SpecError(
                f"gate.labels_column: {missing[0].source.uri} has no column {column!r}; "
                f"it has {', '.join(missing[0].columns) or 'none'}"
            )


@dataclass(frozen=True)
class Discovery:
    sources: list[Source]
    plans: list[Plan]
    open_plans: list[Plan]
    fresh: list[Opened]
    unreadable: dict[Source, str]

    @property
    def fresh_rows(self) -> int:
        return sum(group.rows for opened in self.fresh for group in opened.groups)


def absolute(url: str) -> str:
    """A URL as it is, a local path made absolute: workers may have another working directory."""
    return url.rstrip("/") if "://" in url else str(Path(url).expanduser().absolute())


def code_version() -> str:
    """Digest of the source that runs, so that an output object tells which code wrote it."""
    digest = hashlib.sha256()
    root = Path(__file__).parent.parent
    for file in sorted([*root.glob("jobs/*.py"), *root.glob("workers/**/*.py")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
