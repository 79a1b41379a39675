"""What is put together of one row: its claim, its object, and what became of it in other versions of its file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import RunFailed
from jobs.ledger.current import current_root, roots
from jobs.ledger.ledger import CRASHES_FOLDER, parse_crash_key
from jobs.ledger.plans import Plan
from jobs.plan.job import Job
from jobs.queries.explanation import (
    AccuracyPart,
    AttemptPart,
    Explanation,
    Label,
    ModelPart,
    NoPrediction,
    ObjectPart,
    OtherVersion,
    PlanPart,
    Prediction,
    ShardPart,
    Vector,
)
from jobs.queries.find_rows import Found, place_of
from jobs.report.drift import class_name
from jobs.report.journal import read_journal, run_ids
from jobs.report.row_images import CHANGED, GONE, RowAt
from jobs.report.runs import RunSeen, read_run
from workers.bundle.bundle import read_manifest
from workers.bundle.manifest import Manifest
from workers.contract import Shard
from workers.output import SOURCE_FIELDS, NotOurs, OutputObject, key_names, object_facts, shown_keys
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem, version_of
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying
from workers.storage.store import Store

_READS_AT_ONCE = 16
_CLOCKS_DIFFER = timedelta(hours=1)
_ATTEMPT = tuple(field.name for field in fields(AttemptPart) if field.name != "run_id")
OTHERS = 10
"""Versions of a file beside the one that is explained: the newest."""


@dataclass(frozen=True)
class _OutputRow:
    """An output object, and a row in it."""

    data: bytes
    metadata: Mapping[str, str]
    """`stint.…`, without the prefix."""
    row: pa.Table
    """One row, or none: then its source was gone when it was its turn."""

    @property
    def present(self) -> bool:
        return bool(self.row.num_rows)

    @property
    def keys(self) -> dict[str, str]:
        """Values of the key columns, for a person."""
        return shown_keys(self.row.select(key_names(self.row.schema)), 0) if self.present else {}

    def prediction(self, manifest: Manifest | None) -> Prediction:
        """Class names come from the manifest, where it is there."""
        if not self.present:
            return None
        keys = set(key_names(self.row.schema))
        row = self.row.select([name for name in self.row.column_names if name not in keys]).to_pylist()[0]
        if row["error_code"] is not None:
            return NoPrediction(row["error_code"], row["error_message"])
        if "embedding" in row:
            return Vector(len(row["embedding"]))
        top = zip(row["topk_label"], row["topk_score"], strict=True)
        labels = manifest.labels if manifest else None
        return Label(row["label"], row["score"], [(class_name(labels, k), score) for k, score in top])


def _read_row(store: Store, key: str, at: RowAt) -> _OutputRow | None:
    """None while there is no object. Raises RunFailed for one that is damaged; StoreError, StoreDenied."""
    try:
        data = store.get(key)
    except NotFound:
        return None
    try:
        opened = OutputObject(data)
        table = opened.table()
        for column, value in zip(SOURCE_FIELDS, astuple(at), strict=True):
            table = table.filter(pc.equal(table[column.name], pa.scalar(value, column.type)))
    except (NotOurs, KeyError) as error:
        raise RunFailed(f"{key} cannot be read: {error}", "`stint verify` names all that is damaged") from error
    return _OutputRow(data, opened.metadata, table)


def _attempts(
    store: Store, root: str, shard: Shard, since: datetime | None, until: datetime | None
) -> list[AttemptPart]:
    """Attempts at a shard that runs have written into their journals, oldest first. Raises StoreError, StoreDenied.

    Reads the journals of the model's runs that were under way between `since`, when the plan was made, and `until`,
    when it was done, by the store's clock, where these are known; all of them where those have nothing: a store that
    was copied has other times. Journals are advisory: an attempt that is in none may have been made all the same.
    """
    ids = [run_id for run_id in run_ids(store) if until is None or _began(run_id) <= until + _CLOCKS_DIFFER]
    runs = [run for run in ahead(partial(read_run, store), ids, _READS_AT_ONCE, "runs") if run.root == root]
    near = [run for run in runs if since is None or _ended(run) >= since - _CLOCKS_DIFFER]
    return _of_journals(store, near, shard) or _of_journals(store, [run for run in runs if run not in near], shard)


def _of_journals(store: Store, runs: Sequence[RunSeen], shard: Shard) -> list[AttemptPart]:
    found = []
    for run in runs:
        table = read_journal(store, run.run_id, ("plan", "shard", *_ATTEMPT)).attempts
        here = table.filter(pc.and_(pc.equal(table["plan"], shard.plan), pc.equal(table["shard"], shard.index)))
        rows = here.select(_ATTEMPT).to_pylist()
        found += [AttemptPart(run_id=run.run_id, **{**row, "at": _iso(row["at"])}) for row in rows]
    return found


def _began(run_id: str) -> datetime:
    """Ids begin with their time; one that does not is as old as can be."""
    try:
        return datetime.strptime(run_id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def _ended(run: RunSeen) -> datetime:
    """When it was last heard of; one that does not tell may be under way."""
    text = run.report.ended if run.report else run.snapshot.at if run.snapshot else ""
    try:
        ended = datetime.fromisoformat(text)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC) - _CLOCKS_DIFFER
    return ended if ended.tzinfo is not None else ended.replace(tzinfo=UTC)


def _crashes(store: Store, root: str, shard: Shard) -> list[dict[str, Any]]:
    """As Ledger.record_crash records them, oldest first; advisory, too. Raises StoreError, StoreDenied."""

    def found() -> Iterator[str]:
        for info in store.list(f"{root}/{CRASHES_FOLDER}/{shard.plan:08d}", [f"{shard.index:08d}-"]):
            if parse_crash_key(info.key.removeprefix(f"{root}/")) == (shard.plan, shard.index):
                yield info.key

    read = ahead(store.get, found(), _READS_AT_ONCE, "crashes")
    return sorted((json.loads(data) for data in read), key=lambda crash: str(crash.get("at", "")))


class _Standing(NamedTuple):
    """Of a claim on a row."""

    rank: int
    """How much it counts: 2 where its row is what readers of this model see, 1 where it is to be, else 0."""
    seen: bool
    why: str
    """For a person."""


@dataclass(frozen=True)
class Explainer:
    """For one command: what it reads of the ledger it reads once. Raises RunFailed, StoreError, StoreDenied."""

    job: Job
    plans: Sequence[Plan]

    @cached_property
    def done(self) -> set[int]:
        return self.job.ledger.done_numbers()

    @cached_property
    def dead(self) -> set[tuple[str, str]]:
        """(uri, version) of rows that readers no longer see."""
        return self.job.ledger.superseded([plan for plan in self.plans if plan.number in self.done], self.done)

    @cached_property
    def _current(self) -> str | None:
        return current_root(self.job.store)

    def alive(self, claims: Sequence[Found]) -> list[Found]:
        """Those that no later version has put out of date."""
        return [claim for claim in claims if (claim.at.uri, claim.at.version) not in self.dead]

    def explain(self, claims: Sequence[Found]) -> Explanation:
        """Of one row, claimed in one version of its file or in several; `claims` are in the order of plans.

        What readers see counts; without that, what was claimed last.
        """
        root = self.job.ledger.root
        objects = [_read_row(self.job.store, f"{root}/{claim.shard.key}", claim.at) for claim in claims]
        standings = [self._standing(claim, found) for claim, found in zip(claims, objects, strict=True)]
        main = max(range(len(claims)), key=lambda n: (standings[n].rank, claims[n].plan.number))
        others = sorted(set(range(len(claims))) - {main}, key=lambda n: -claims[n].plan.number)[:OTHERS]
        claim, found = claims[main], objects[main]
        plan, shard = claim.plan, claim.shard
        manifest = self._manifest(found)
        claimed_at, done_at = (self._modified(f"_stint/{kind}/{plan.number:08d}.parquet") for kind in ("plans", "done"))
        return Explanation(
            place=self._place(claim.at),
            source_uri=claim.at.uri,
            source_version=claim.at.version,
            row_group=claim.at.row_group,
            row=claim.at.row,
            keys={} if found is None else found.keys,
            prediction=None if found is None else found.prediction(manifest),
            seen=standings[main].seen,
            standing=standings[main].why,
            source=_source(claim),
            plan=PlanPart(plan.number, plan.rows, len(plan.shards), _iso(claimed_at), _iso(done_at)),
            shard=ShardPart(shard.name, shard.rows, shard.slices),
            object=None if found is None else self._object(claim, found),
            attempts=_attempts(self.job.store, root, shard, claimed_at, done_at),
            crashes=_crashes(self.job.store, root, shard),
            model=self._model(found, manifest),
            others=[self._other(claims[n], objects[n], standings[n].why) for n in others],
        )

    # ------------------------------------------------------------------------------------------- parts

    def _standing(self, claim: Found, found: _OutputRow | None) -> _Standing:
        number = claim.plan.number
        if found is None:
            why = f"shard {claim.shard.name} is missing: it is not scored yet; run the job to finish plan {number}"
            return _Standing(0, False, why)
        if not found.present:
            return _Standing(0, False, "its file was gone, or another one, when it was its turn, so it has no row")
        if number not in self.done:
            return _Standing(1, False, f"plan {number} is not done; run the job to finish it")
        if (claim.at.uri, claim.at.version) in self.dead:
            return _Standing(0, False, f"superseded: plan {self._later(claim)} has the file in a newer version")
        if self._current == self.job.ledger.root:
            return _Standing(2, True, f"plan {number} is done, and readers follow this model")
        if self._current is None and roots(self.job.store.url) == [self.job.ledger.root]:
            return _Standing(2, True, f"plan {number} is done, and this is the only model")
        follow = f"readers follow {self._current}" if self._current else "of several models none is promoted"
        return _Standing(2, False, f"plan {number} is done, but {follow}")

    def _later(self, claim: Found) -> int:
        """The last done plan that claims the file."""
        claiming = (plan.number for plan in self.plans if claim.at.uri in plan.sources["uri"].to_pylist())
        return max((number for number in claiming if number in self.done), default=claim.plan.number)

    def _object(self, claim: Found, found: _OutputRow) -> ObjectPart:
        facts = object_facts(found.data)
        recorded: bool | None = None
        if claim.plan.number in self.done:
            table = self.job.ledger.read_done(claim.plan.number).table
            recorded = table.filter(pc.equal(table["key"], claim.shard.key))["sha256"].to_pylist() == [facts.sha256]
        url = f"{self.job.store.url}/{self.job.ledger.root}/{claim.shard.key}"
        return ObjectPart(url, facts.size, facts.sha256, recorded, dict(found.metadata))

    def _other(self, claim: Found, found: _OutputRow | None, standing: str) -> OtherVersion:
        prediction = None if found is None else found.prediction(self._manifest(found))
        return OtherVersion(claim.plan.number, claim.at.version, self._place(claim.at), prediction, standing)

    def _manifest(self, found: _OutputRow | None) -> Manifest | None:
        bundle = self.job.fingerprints.bundle if found is None else found.metadata.get("bundle", "")
        if bundle not in self._manifests:
            self._manifests[bundle] = read_manifest(self.job.store, bundle)
        return self._manifests[bundle]

    @cached_property
    def _manifests(self) -> dict[str, Manifest | None]:
        return {}

    def _model(self, found: _OutputRow | None, manifest: Manifest | None) -> ModelPart:
        metadata = {} if found is None else found.metadata
        engine = metadata.get("engine", "")
        artifact = None if manifest is None else manifest.artifact(engine)
        measured = None if artifact is None else artifact.accuracy
        names = [field.name for field in fields(AccuracyPart)]
        spec = self.job.spec.model
        return ModelPart(
            arch=spec.arch if manifest is None else manifest.spec["arch"],
            weights=spec.weights if manifest is None else manifest.spec["weights"],
            bundle=metadata.get("bundle", self.job.fingerprints.bundle),
            task=spec.task if manifest is None else manifest.task,
            artifact=engine,
            accuracy=None if measured is None else AccuracyPart(**{name: getattr(measured, name) for name in names}),
        )

    def _modified(self, key: str) -> datetime | None:
        url = f"{self.job.store.url}/{self.job.ledger.root}/{key}"
        fs, path = open_filesystem(url)
        try:
            at: datetime = retrying(lambda: fs.modified(path), url)
        except (NotFound, NotImplementedError, KeyError):  # not all of fsspec's file systems know
            return None
        return at if at.tzinfo is not None else at.replace(tzinfo=UTC)

    def _place(self, at: RowAt) -> str:
        return place_of(at.uri, at.row_group, at.row, self.job.spec.input.format)


def _source(claim: Found) -> str:
    """What became of the file since it was claimed."""
    try:
        fs, path = open_filesystem(claim.at.uri)
        info = retrying(lambda: fs.info(path), claim.at.uri)
    except NotFound:
        return f"{GONE}; claimed in version {claim.at.version}"
    except (StoreError, StoreDenied) as error:
        return f"cannot be looked at: {error}"
    now = version_of(info)
    if now == claim.at.version:
        return f"there, in the version that was claimed ({now})"
    return f"{CHANGED}: version {claim.at.version} was claimed, {now} is there"


def _iso(at: datetime | None) -> Any:
    return None if at is None else at.isoformat(timespec="seconds")
