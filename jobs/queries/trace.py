"""What is put together of one row: its claim, its object, and what became of it in other versions of its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow.compute as pc

from jobs.ledger.current import current_root, roots
from jobs.ledger.plans import Plan
from jobs.plan.job import Job
from jobs.queries.explanation import Explanation
from jobs.queries.find_rows import place_told
from jobs.queries.found_rows import Found
from jobs.queries.row_history import Open, attempts_at, crashes_of
from jobs.queries.row_object import Held, held
from jobs.report.row_images import CHANGED, GONE, RowAt
from workers.bundle.bundle import read_manifest
from workers.bundle.manifest import Manifest
from workers.output import object_facts
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem, version_of
from workers.storage.retries import retrying

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
