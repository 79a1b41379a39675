"""Profiles: what `stint tune` measured on a kind of node, kept beside the bundle that it was measured with.

`_stint/bundles/<fingerprint>/profiles/<kind of node>/<number>.json`, written once each; a newer tuning adds the next
number, and the highest number counts. Advisory: a profile makes a run faster or slower, never other than right, so one
that is damaged or of another version is passed over. Without one a rule gives the batch. Imports no torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass

from workers.bundle import records
from workers.counted import counted
from workers.engines.choice import LIBRARIES
from workers.host.cores import this_node
from workers.host.cpu import cpu_model, isa_class
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.store import Store

_SCHEMA = 1
_MOST = 4096
"""Threads, workers or images of a batch that no node ever had: a profile that names more is damaged."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HostKind:
    """What of a node decides which engine, width and batch are best on it."""

    cpu_model: str
    isa: str
    """Class of instruction set, see workers.host.cpu."""
    cores: int
    """Physical cores that the node lets us use, by affinity and quota."""
    threads_per_core: int
    pinned: bool
    """Whether workers are pinned to cores of their own; not under a mere quota."""
    versions: Mapping[str, str]
    """Of LIBRARIES, as far as installed."""

    @classmethod
    def here(cls) -> HostKind:
        """This node's, also inside a worker, whose own affinity shows only the cores that it holds."""
        (cores, threads_per_core, pinned), versions = this_node(), dict[str, str]()
        for library in LIBRARIES:
            with suppress(importlib.metadata.PackageNotFoundError):
                versions[library] = importlib.metadata.version(library)
        return cls(
            cpu_model=cpu_model(),
            isa=isa_class(),
            cores=cores,
            threads_per_core=threads_per_core,
            pinned=pinned,
            versions=versions,
        )

    @property
    def key(self) -> str:
        """Name of its folder: readable, and told apart by a hash of everything above."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:10]
        readable = re.sub(r"[^a-z0-9]+", "-", f"{self.cpu_model} {self.isa} {self.cores} cores".lower()).strip("-")
        return f"{readable}-{digest}"

    def __str__(self) -> str:
        return f"{self.cpu_model}, {self.isa}, {counted(self.cores, 'core')}"


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One way to use a node."""

    engine: str
    """Name of the artifact, as `torch-int8/x86-vnni`."""
    threads: int
    """Cores a worker."""
    workers: int
    """At once, each on cores of its own."""
    batch: int

    def __str__(self) -> str:
        layout = f"{counted(self.workers, 'worker')} of {counted(self.threads, 'core')}"
        return f"{self.engine}, {layout}, batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of a candidate."""

    candidate: Candidate
    images_per_s: float | None
    """Of all its workers together, decoding included; None where it was not measured."""
    spread: float | None = None
    """Standard deviation of its slices ÷ their mean, what all candidates had in common taken out; None for one."""
    peak_bytes: int = 0
    """Resident memory of its largest worker."""
    rounds: int = 0
    """Of the search that it took part in."""
    out: str = ""
    """Why it was not measured to the end, for a person: over the memory cap, cannot be loaded."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The result of one tuning."""

    host: HostKind
    chosen: Row
    table: tuple[Row, ...]
    """Every candidate, the best one first."""
    why: str
    """The choice, explained in a sentence or two."""
    tuned_at: str
    """ISO date and time."""
    rows: int
    """Images in the sample."""
    schema: int = _SCHEMA

    @property
    def threads(self) -> int:
        return self.chosen.candidate.threads

    @property
    def workers(self) -> int:
        return self.chosen.candidate.workers

    @property
    def images_per_s(self) -> float:
        assert self.chosen.images_per_s is not None, "what is chosen was measured"
        return self.chosen.images_per_s

    def row_at(self, threads: int) -> Row | None:
        """The best for workers of this width; None where no such width was measured."""
        if threads == self.threads:
            return self.chosen
        wide = (row for row in self.table if row.candidate.threads == threads and row.images_per_s and not row.out)
        # A rate from an early round is a rough one, so who came further goes first.
        return max(wide, key=lambda row: (row.rounds, row.images_per_s or 0.0), default=None)

    def rates(self) -> dict[int, float]:
        """Images a second of the whole node by width of its workers."""
        widths = sorted({self.threads, *(row.candidate.threads for row in self.table)})
        best = ((threads, self.row_at(threads)) for threads in widths)
        return {threads: row.images_per_s for threads, row in best if row and row.images_per_s}

    def __str__(self) -> str:
        return f"{self.chosen.candidate}: {self.images_per_s:,.0f} img/s a node ({self.host})"


def store_profile(store: Store, bundle: str, profile: Profile) -> str:
    """Add a profile to those of its kind of node; its key. Raises StoreError, StoreDenied."""
    folder = f"{_folder(bundle)}/{profile.host.key}"
    number = 1 + max((n for n, _, _ in _numbered(store, folder)), default=0)
    while not store.create(key := f"{folder}/{number:06d}.json", records.to_json(profile)):
        number += 1  # another tuning was first
    return key


def read_profile(store: Store, bundle: str, host: HostKind) -> Profile | None:
    """The newest profile of a kind of node. None without one that can be read; why is logged."""
    return _newest(store, f"{_folder(bundle)}/{host.key}").get(host.key)


def read_profiles(store: Store, bundle: str) -> tuple[Profile, ...]:
    """The newest profile of every kind of node, with one listing."""
    return tuple(profile for _, profile in sorted(_newest(store, _folder(bundle)).items()))


def _newest(store: Store, folder: str) -> dict[str, Profile]:
    """By kind of node."""
    found: dict[str, Profile] = {}
    try:
        for _, kind, key in sorted(_numbered(store, folder), reverse=True):
            if kind in found:
                continue
            try:
                profile = _parsed(store.get(key))
                if profile.host.key != kind:
                    raise ValueError(f"it is of another kind of node: {profile.host}")
                found[kind] = profile
            except (NotFound, ValueError) as error:
                _logger.warning("profile %s is passed over: %s", key, error)
    except (StoreError, StoreDenied) as error:
        _logger.warning("profiles of `stint tune` cannot be listed, the run goes by the rule: %s", error)
    return found


def _numbered(store: Store, folder: str) -> Iterator[tuple[int, str, str]]:
    """Profiles below a folder: number, kind of node, key."""
    for info in store.list(folder):
        if found := re.search(r"/([^/]+)/(\d{6,})\.json$", info.key):
            yield int(found[2]), found[1], info.key


def _folder(bundle: str) -> str:
    return f"_stint/bundles/{bundle}/profiles"


def _parsed(data: bytes) -> Profile:
    """Raises ValueError for what is no profile, or one of another schema."""
    profile = records.from_json(Profile, data, (_SCHEMA,), "profile")
    # Workers compare and format these: one damaged file must not end every worker of a run.
    rows = (profile.chosen, *profile.table)
    candidates, rates = [row.candidate for row in rows], [row.images_per_s for row in rows]
    if not (
        all(1 <= number <= _MOST for c in candidates for number in (c.threads, c.workers, c.batch))
        and all(0 < rate < float("inf") for rate in rates if rate is not None)
        and profile.chosen.images_per_s is not None
        and profile.threads * profile.workers <= profile.host.cores
    ):
        raise ValueError("not a profile: there is no node with such numbers of workers, threads or images")
    return profile


BATCH = 16
"""Best of 1 to 64 for ResNet-50 INT8 on one core: small batches stay in the second-level cache."""
GPU_BATCH = 64
"""A GPU is fed by fewer and larger steps. A guess: set workers.batch to what yours likes best."""
_BYTES_A_PIXEL = {"int8": 128, "bf16": 256, "fp32": 512}
"""Working memory of one image, by precision, over the pixels of its crop: what the first layers of VGG hold, the widest
of torchvision's at full resolution: 64 channels in, 64 out."""
_MEMORY_SHARE = 4
"""A batch may take the _MEMORY_SHARE-th part of the memory; weights, read-ahead and libraries need the rest."""


def batch_by_rule(crop_px: int, precision: str, memory_bytes: int | None, device: str = "cpu") -> int:
    """BATCH, or GPU_BATCH, halved until a batch of such crops fits. At least 1.

    `memory_bytes` is the worker's bound, or what its GPU has free; None where there is none to heed.
    """
    batch = BATCH if device == "cpu" else GPU_BATCH
    image_bytes = crop_px * crop_px * _BYTES_A_PIXEL[precision]
    while memory_bytes is not None and batch > 1 and batch * image_bytes > memory_bytes // _MEMORY_SHARE:
        batch //= 2
    return batch
