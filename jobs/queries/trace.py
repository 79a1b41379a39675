"""What is put together of one row: its claim, its object, and what became of it in other versions of its file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import RunFailed
from jobs.ledger import crashes
from jobs.ledger.current import current_root, roots
from jobs.ledger.plans import Plan
from jobs.plan.job import Job
from jobs.queries.explanation import Explanation
from jobs.queries.find_rows import Found, place_told
from jobs.report.journal import attempts, run_ids
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

# ----------------------------------------------------------------------------------------------------
# One row in its output object: what the object says of itself, and what it predicts for the row.


@dataclass(frozen=True)
class Held:
    """An output object, and a row in it."""

    data: bytes
    metadata: Mapping[str, str]
    """`stint.…`, without the prefix."""
    row: pa.Table
    """One row, or none: then its source was gone when it was its turn."""

    @property
    def there(self) -> bool:
        return bool(self.row.num_rows)

    @property
    def keys(self) -> dict[str, str]:
        """Values of the key columns, for a person."""
        return shown_keys(self.row.select(key_names(self.row.schema)), 0) if self.there else {}

    def prediction(self, manifest: Manifest | None) -> dict[str, Any] | None:
        """As `jobs.queries.explanation.Explanation` has it; class names come from the manifest, where it is there."""
        if not self.there:
            return None
        keys = set(key_names(self.row.schema))
        row = self.row.select([name for name in self.row.column_names if name not in keys]).to_pylist()[0]
        if row["error_code"] is not None:
            return {"error_code": row["error_code"], "error_message": row["error_message"]}
        if "embedding" in row:
            return {"embedding": len(row["embedding"])}
        top = zip(row["topk_label"], row["topk_score"], strict=True)
        return {"label": row["label"], "score": row["score"], "top": [(class_name(manifest, k), s) for k, s in top]}


def held(store: Store, key: str, at: RowAt) -> Held | None:
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
    return Held(data, opened.metadata, table)


def class_name(manifest: Manifest | None, index: int) -> str:
    """As the model's labels call it; its number where they are not known."""
    labels = None if manifest is None else manifest.labels
    return labels[index] if labels and 0 <= index < len(labels) else str(index)


# ----------------------------------------------------------------------------------------------------
# What has happened to one shard: every attempt that runs have noted in their journals, and crashes. Both are
# advisory: what is not there may have happened all the same.

READS_AT_ONCE = 16
CLOCKS_DIFFER = timedelta(hours=1)
COLUMNS = ("at", "worker", "host", "engine", "attempt", "second", "isolated", "failure", "message", "committed",
           "rows_ok", "rows_bad", "rows_gone", "wall_s")  # fmt: skip


@dataclass(frozen=True)
class Open:
    """When a shard could be tried at, by the store's clock; None where that is not known."""

    since: datetime | None
    """Its plan was made."""
    until: datetime | None
    """Its plan was done."""


def attempts_at(store: Store, root: str, shard: Shard, when: Open) -> list[dict[str, Any]]:
    """Each with its `run_id` and COLUMNS, oldest first. Raises StoreError, StoreDenied.

    Looks into the journals of the model's runs that were under way at that time; into all of them where those have
    nothing: a store that was copied tells other times.
    """
    ids = [run_id for run_id in run_ids(store) if when.until is None or _began(run_id) <= when.until + CLOCKS_DIFFER]
    seen = ahead(partial(read_run, store), ids, READS_AT_ONCE, "runs")
    runs = [run for run in seen if run.root == root]
    near = [run for run in runs if when.since is None or _ended(run) >= when.since - CLOCKS_DIFFER]
    return _noted(store, near, shard) or _noted(store, [run for run in runs if run not in near], shard)


def _noted(store: Store, runs: Sequence[RunSeen], shard: Shard) -> list[dict[str, Any]]:
    noted = []
    for run in runs:
        table = attempts(store, run.run_id, ("plan", "shard", *COLUMNS))
        here = table.filter(pc.and_(pc.equal(table["plan"], shard.plan), pc.equal(table["shard"], shard.index)))
        noted += [{"run_id": run.run_id, **row} for row in here.select(COLUMNS).to_pylist()]
    return noted


def _began(run_id: str) -> datetime:
    """Ids begin with their time; one that does not is as old as can be."""
    try:
        return datetime.strptime(run_id[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def _ended(run: RunSeen) -> datetime:
    """When it was last heard of; one that does not tell may be under way."""
    text = str((run.report or {}).get("ended", "")) or (run.snapshot.at if run.snapshot else "")
    try:
        ended = datetime.fromisoformat(text)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC) - CLOCKS_DIFFER
    return ended if ended.tzinfo is not None else ended.replace(tzinfo=UTC)


def crashes_of(store: Store, root: str, shard: Shard) -> list[dict[str, Any]]:
    """As jobs.ledger.crashes records them, oldest first. Raises StoreError, StoreDenied."""

    def found() -> Iterator[str]:
        for info in store.list(f"{root}/{crashes.CRASHES_FOLDER}/{shard.plan:08d}", [f"{shard.index:08d}-"]):
            if crashes.parse_crash_key(info.key.removeprefix(f"{root}/")) == (shard.plan, shard.index):
                yield info.key

    read = ahead(store.get, found(), READS_AT_ONCE, "crashes")
    return sorted((json.loads(data) for data in read), key=lambda crash: str(crash.get("at", "")))


ACCURACY = ("rows", "top1_agreement", "mean_cosine", "logit_error", "top1", "top1_fp32", "labelled_rows")
"""What is told of the gate's measurements."""
OTHERS = 10
"""Versions of a file beside the one that is explained: the newest."""


class Standing(NamedTuple):
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
        return [it for it in claims if (it.at.uri, it.at.version) not in self.dead]

    def explain(self, claims: Sequence[Found]) -> Explanation:
        """Of one row, claimed in one version of its file or in several; `claims` are in the order of plans.

        What readers see counts; without that, what was claimed last.
        """
        of_each = [held(self.job.store, f"{self.job.ledger.root}/{it.shard.key}", it.at) for it in claims]
        standing = [self._standing(it, of) for it, of in zip(claims, of_each, strict=True)]
        main = max(range(len(claims)), key=lambda n: (standing[n].rank, claims[n].plan.number))
        others = sorted(set(range(len(claims))) - {main}, key=lambda n: -claims[n].plan.number)[:OTHERS]
        it, of = claims[main], of_each[main]
        manifest = self._manifest(of)
        claimed_at, done_at = self._times(it.plan)
        return Explanation(
            place=self._place(it.at),
            source_uri=it.at.uri,
            source_version=it.at.version,
            row_group=it.at.row_group,
            row=it.at.row,
            keys={} if of is None else of.keys,
            prediction=None if of is None else of.prediction(manifest),
            seen=standing[main].seen,
            standing=standing[main].why,
            source=_source(it),
            plan={
                "number": it.plan.number,
                "rows": it.plan.rows,
                "shards": len(it.plan.shards),
                "claimed_at": _iso(claimed_at),
                "done_at": _iso(done_at),
            },
            shard={
                "name": it.shard.name,
                "rows": it.shard.rows,
                "slices": [asdict(piece) for piece in it.shard.slices],
            },
            object=None if of is None else self._object(it, of),
            attempts=[
                {**attempt, "at": _iso(attempt["at"])}
                for attempt in attempts_at(self.job.store, self.job.ledger.root, it.shard, Open(claimed_at, done_at))
            ],
            crashes=crashes_of(self.job.store, self.job.ledger.root, it.shard),
            model=self._model(of, manifest),
            others=[
                {
                    "plan": claims[n].plan.number,
                    "version": claims[n].at.version,
                    "place": self._place(claims[n].at),
                    "prediction": None if (other := of_each[n]) is None else other.prediction(self._manifest(other)),
                    "standing": standing[n].why,
                }
                for n in others
            ],
        )

    # ------------------------------------------------------------------------------------------- parts

    def _standing(self, it: Found, of: Held | None) -> Standing:
        number = it.plan.number
        if of is None:
            why = f"shard {it.shard.name} is missing: it is not scored yet; run the job to finish plan {number}"
            return Standing(0, False, why)
        if not of.there:
            return Standing(0, False, "its file was gone, or another one, when it was its turn, so it has no row")
        if number not in self.done:
            return Standing(1, False, f"plan {number} is not done; run the job to finish it")
        if (it.at.uri, it.at.version) in self.dead:
            return Standing(0, False, f"superseded: plan {self._later(it)} has the file in a newer version")
        if self._current == self.job.ledger.root:
            return Standing(2, True, f"plan {number} is done, and readers follow this model")
        if self._current is None and roots(self.job.store.url) == [self.job.ledger.root]:
            return Standing(2, True, f"plan {number} is done, and this is the only model")
        follow = f"readers follow {self._current}" if self._current else "of several models none is promoted"
        return Standing(2, False, f"plan {number} is done, but {follow}")

    def _later(self, it: Found) -> int:
        """The last done plan that claims the file."""
        claiming = (plan.number for plan in self.plans if it.at.uri in plan.sources["uri"].to_pylist())
        return max((number for number in claiming if number in self.done), default=it.plan.number)

    def _object(self, it: Found, of: Held) -> dict[str, Any]:
        facts = object_facts(of.data)
        recorded: bool | None = None
        if it.plan.number in self.done:
            table = self.job.ledger.read_done(it.plan.number).table
            recorded = table.filter(pc.equal(table["key"], it.shard.key))["sha256"].to_pylist() == [facts.sha256]
        return {
            "key": f"{self.job.store.url}/{self.job.ledger.root}/{it.shard.key}",
            "size": facts.size,
            "sha256": facts.sha256,
            "as_recorded": recorded,
            "metadata": dict(of.metadata),
        }

    def _manifest(self, of: Held | None) -> Manifest | None:
        bundle = self.job.fingerprints.bundle if of is None else of.metadata.get("bundle", "")
        if bundle not in self._manifests:
            self._manifests[bundle] = read_manifest(self.job.store, bundle)
        return self._manifests[bundle]

    @cached_property
    def _manifests(self) -> dict[str, Manifest | None]:
        return {}

    def _model(self, of: Held | None, manifest: Manifest | None) -> dict[str, Any]:
        metadata = {} if of is None else of.metadata
        artifact = None if manifest is None else manifest.artifact(metadata.get("engine", ""))
        accuracy = None if artifact is None else artifact.accuracy
        spec = self.job.spec.model
        return {
            "arch": spec.arch if manifest is None else manifest.spec["arch"],
            "weights": spec.weights if manifest is None else manifest.spec["weights"],
            "bundle": metadata.get("bundle", self.job.fingerprints.bundle),
            "task": spec.task if manifest is None else manifest.task,
            "artifact": metadata.get("engine", ""),
            "accuracy": None if accuracy is None else {name: getattr(accuracy, name) for name in ACCURACY},
        }

    def _times(self, plan: Plan) -> tuple[datetime | None, datetime | None]:
        """When the plan was claimed and done, by the store's listing."""
        made = (self._modified(f"_stint/{kind}/{plan.number:08d}.parquet") for kind in ("plans", "done"))
        claimed_at, done_at = made
        return claimed_at, done_at

    def _modified(self, key: str) -> datetime | None:
        url = f"{self.job.store.url}/{self.job.ledger.root}/{key}"
        fs, path = open_filesystem(url)
        try:
            at: datetime = retrying(lambda: fs.modified(path), url)
        except (NotFound, NotImplementedError, KeyError):  # not all of fsspec's file systems know
            return None
        return at if at.tzinfo is not None else at.replace(tzinfo=UTC)

    def _place(self, at: RowAt) -> str:
        return place_told(at.uri, at.row_group, at.row, self.job.spec.input.format)


def _source(it: Found) -> str:
    """What became of the file since it was claimed."""
    try:
        fs, path = open_filesystem(it.at.uri)
        info = retrying(lambda: fs.info(path), it.at.uri)
    except NotFound:
        return f"{GONE}; claimed in version {it.at.version}"
    except (StoreError, StoreDenied) as error:
        return f"cannot be looked at: {error}"
    now = version_of(info)
    if now == it.at.version:
        return f"there, in the version that was claimed ({now})"
    return f"{CHANGED}: version {it.at.version} was claimed, {now} is there"


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat(timespec="seconds")
