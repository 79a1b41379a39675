"""A spec resolved against the world: its store, ledger, fingerprints, and what workers get to know."""

from __future__ import annotations

import hashlib
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import jobs
import workers
from jobs.errors import RunFailed, SpecError
from jobs.input.footers import Opened, opened_rows
from jobs.ledger.current import roots
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import BOOK, EARLIER_BOOK, Content, Plan
from jobs.plan import sharding
from jobs.plan.known_code import is_root_of, known_fingerprints
from jobs.plan.sample import choose_sample
from jobs.plan.worker_width import Width, choose_width, given_width, of_host
from jobs.spec.days import Days, filled, filled_in, today
from jobs.spec.fingerprint import Fingerprints, Identity, identity, wanted_root
from jobs.spec.patterns import covers, split_pattern
from jobs.spec.schema import JobSpec
from workers.bundle.profiles import BATCH, HostKind, Profile, read_profiles
from workers.contract import BundleRequest, InputSpec, OutputSpec, SampleSlice, Slice, WorkerSpec
from workers.image.errors import DecoderMissing
from workers.image.plugins import check_decoders
from workers.redaction import redacted
from workers.storage.errors import NotFound, StoreDenied
from workers.storage.filesystems import is_local, open_filesystem, read_url
from workers.storage.retries import retrying
from workers.storage.store import Store, open_store, probe

if TYPE_CHECKING:
    from workers.bundle.manifest import Manifest

_COMMAND_SHOWN = 200
"""Characters."""


_MOST_REFUSED = 0.9
"""Share of a shard's rows that the spec may refuse, unless limits.bad_rows allows more: beyond, the spec is wrong."""


def require_decoders(given: InputSpec) -> None:
    """Raises SpecError where the libraries of `input.formats` are not installed here."""
    try:
        check_decoders(given.formats)
    except DecoderMissing as error:
        raise SpecError(str(error)) from error


@dataclass(frozen=True)
class Job:
    spec: JobSpec
    days: Days
    """What `{as_of}` stands for, oldest first; the last is the day of the run."""
    store: Store
    ledger: Ledger
    fingerprints: Fingerprints
    identity: Identity
    """What they cover."""
    host: HostKind | None = None
    """The one node that all workers run on; None where they run in a cluster."""
    most_threads: int | None = None
    """Cores of the largest node that is there, as far as known."""
    workers_there: int | None = None
    """How many workers fit the nodes that are there, as far as known."""

    @classmethod
    def open(cls, spec: JobSpec, days: Days | None = None, *, writing: bool = True) -> Job:
        """Resolve the spec as of the given days, today by default.

        Raises SpecError for what cannot be: weights, module, output, a store that lies; RunFailed, StoreError.
        """
        days = (days or today(spec.schedule.timezone)).reaching_back(spec.input.days)
        target = absolute(filled(spec.output.uri, days)[-1])
        for source in (absolute(uri) for template in spec.input.uris for uri in filled(template, days)):
            if f"{target}/".startswith(f"{source}/") or covers(source, target):
                raise SpecError(
                    f"output.uri {target} lies inside input.uri {source}: predictions would be taken for input",
                    "write beside the input, not into it",
                )
        model = identity(spec, read_url)
        try:
            store = open_store(target, single_writer=spec.output.single_writer)
            if writing and not spec.output.single_writer:
                probe(store)
            there = roots(store.url)
            prints = known_fingerprints(store, model, there, writing=writing)
        except StoreDenied as error:
            raise SpecError(f"output.uri: {error}") from error
        # A folder that is there keeps its name, whatever model.name says, or said before it was taken out.
        named, wanted = [root for root in there if is_root_of(prints, root)], wanted_root(spec, prints)
        if prints.root not in named or wanted != prints.root:
            prints = replace(prints, root=next(iter(named), wanted))
        return cls(
            spec=spec, days=days, store=store, ledger=Ledger(store, prints.root), fingerprints=prints, identity=model
        )

    # -------------------------------------------------------------------------------------- for workers

    def input_spec(self, extra: tuple[str, ...] = (), uris: Iterable[str] = ()) -> InputSpec:
        """`extra` columns are read beside the keys; `uris` are sources that may be of other days than this run's."""
        given = self.spec.input
        return replace(
            given,
            keys=(*given.keys, *(column for column in extra if column not in given.copied)),
            uri_roots=self._uri_roots(uris) if given.format == "parquet" or given.is_table else (),
        )

    def _uri_roots(self, uris: Iterable[str]) -> tuple[str, ...]:
        """What images that rows point to must lie below: where the spec says, or where the input itself lies."""
        given = self.spec.input
        if given.uri_roots:
            return tuple(map(absolute, given.uri_roots))
        uris = list(uris)

        def of_other_days(template: str) -> list[str]:
            """What is open, or asked for again, may be of any day."""
            return sorted({place for uri in uris if (place := filled_in(template, uri)) is not None})

        # Where the table of a catalog lies, only that knows.
        templates = [absolute(template) for template in given.uris if not template.startswith("iceberg://")]
        places = [uri for template in templates for uri in (*filled(template, self.days), *of_other_days(template))]
        folders = [_folder_of(place) for place in dict.fromkeys(places)]
        if given.manifest is not None:
            manifest = absolute(given.manifest)
            folders += [url.rpartition("/")[0] for url in filled(manifest, self.days)]
            folders += of_other_days(manifest.rpartition("/")[0])
        return tuple(dict.fromkeys(folders))

    @property
    def output(self) -> OutputSpec:
        """For workers: the output of this run's day, whatever their working directory."""
        return replace(self.spec.output, uri=self.store.url)

    def manifest(self, bundle: str = "") -> Manifest | None:
        """Of the job's bundle, or of another `bundle` of its output; None where there is none.

        Raises RunFailed for one that this version of Stint cannot read; StoreError, StoreDenied.
        """
        from workers.bundle.bundle import BundleRefused, read_manifest  # with numpy and what reads pictures

        try:
            return read_manifest(self.store, bundle or self.fingerprints.bundle)
        except BundleRefused as error:
            raise RunFailed(str(error)) from error

    def book(self) -> str:
        """How plans are to end in a root that begins: as every run has it that may begin it. Raises as `manifest`."""
        manifest = self.manifest()
        return EARLIER_BOOK if manifest is not None and manifest.earlier else BOOK

    @cached_property
    def profiles(self) -> tuple[Profile, ...]:
        """Of every kind of node that was tuned with this model, and that workers may be on."""
        if self.spec.model.device != "cpu":
            return ()
        return of_host(read_profiles(self.store, self.fingerprints.bundle), self.host)

    @cached_property
    def width(self) -> Width:
        """Cores a worker, and where that comes from."""
        given = self.spec.workers
        if given.cpus == "auto":
            return choose_width(self.profiles, self.most_threads)
        return given_width(given.cpus, self.profiles if given.batch == "auto" else ())

    @property
    def threads(self) -> int:
        return self.width.threads

    @property
    def batch(self) -> int | None:
        """Images a forward pass; None where each worker knows best."""
        return None if self.spec.workers.batch == "auto" else self.spec.workers.batch

    @property
    def labels_key(self) -> str:
        """The key whose input column, or else name, is `gate.labels_column`; nothing where there is none."""
        column, copied = self.spec.gate.labels_column, self.spec.input.copied
        return next((key for key in copied if copied[key] == column), column if column in copied else "") or ""

    def worker_spec(
        self,
        plan: Plan | None,
        uris: Iterable[str] = (),
        artifacts: tuple[str, ...] = (),
        accepted: tuple[int, ...] = (),
    ) -> WorkerSpec:
        """For sources at `uris`, with the columns of `plan`; `artifacts` are those that passed the gate, and `accepted`
        the plans that a person has accepted with their bad rows."""
        keys = plan.keys if plan else None
        return WorkerSpec(
            bundle=self.fingerprints.bundle,
            fingerprint=self.fingerprints.model,
            input=self.input_spec(uris=uris),
            output=self.output,
            root=self.fingerprints.root,
            key_schema=keys.serialize().to_pybytes() if keys is not None and len(keys) else b"",
            named=plan is None or plan.named,
            labels_key=self.labels_key,
            model=self.spec.model,
            threads=self.threads,
            batch=self.batch,
            artifacts=artifacts,
            engine=self.spec.model.engine,
            memory_bytes=self.spec.workers.memory_bytes,
            started_by=this_command(),
            most_refused=max(_MOST_REFUSED, self.spec.limits.bad_rows.share),
            accepted=accepted,
            code_version=code_version(),
        )

    def sample(self, opened: Sequence[Opened]) -> tuple[SampleSlice, ...]:
        """Rows that calibrate and judge the INT8 model."""
        calibration = self.spec.model.calibration
        return choose_sample(opened, calibration.rows + self.spec.gate.rows, calibration.seed)

    def bundle_request(self) -> BundleRequest:
        """Without a sample yet: that takes the footers of the input."""
        spec = self.spec
        labels_column = self.labels_key or spec.gate.labels_column
        return BundleRequest(
            fingerprint=self.fingerprints.bundle,
            model=spec.model,
            gate=replace(spec.gate, labels_column=labels_column),
            input=self.input_spec((labels_column,) if labels_column else ()),
            output=self.output,
            sample=(),
            batch=self.batch or BATCH,
            worker_threads=self.threads,
            memory_bytes=spec.workers.memory_bytes,
            started_by=this_command(),
        )

    def cut(self, opened: Sequence[Opened], again: Sequence[Slice] = ()) -> Content:
        """`opened` sources by the spec's bounds, and slices that stay as they are."""
        given = self.spec.input
        total = opened_rows(opened) + sum(piece.rows for piece in again)
        most, there = self.spec.workers.max, self.workers_there
        there = None if there is None else min(there, most)
        within = sharding.bounds(total, most, given.shard_rows, given.shard_mb * 2**20, there)
        return sharding.cut(opened, within, again)


def _folder_of(url: str) -> str:
    """The folder that a place in `input.uri` is, or that it lies in where it is a file or has wildcards."""
    fs, path = open_filesystem(url)
    try:
        is_file = retrying(lambda: fs.info(path), url)["type"] == "file"
    except NotFound:
        return split_pattern(url)[0]
    return url.rpartition("/")[0] if is_file else url


def absolute(url: str) -> str:
    """A URL as it is; a local path, with or without `file://`, made absolute: workers may have another working
    directory."""
    return open_filesystem(url)[1] if is_local(url) else url.rstrip("/")


def this_command() -> str:
    """For a person who wants to know whose workers there are: the command line of this process, and where it runs."""
    line = redacted(shlex.join(["stint", *sys.argv[1:]]))
    return f"`{line[:_COMMAND_SHOWN]}` (process {os.getpid()} on {socket.gethostname()})"


def code_version() -> str:
    """Digest of the source that runs, so that an output object tells which code wrote it."""
    digest = hashlib.sha256()
    for file in sorted(file for package in (jobs, workers) for file in Path(package.__path__[0]).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
