"""`stint explain`: one row followed from its file to whoever reads its prediction, from the ledger and the objects."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from jobs.console import Console
from jobs.errors import COMPLETE, RunFailed, SpecError, StintError
from jobs.ledger.current import followed_root
from jobs.ledger.ledger import CRASHES_FOLDER, parse_crash_key
from jobs.ledger.plans import Plan
from jobs.ledger.superseded import OutOfDate
from jobs.plan.command_line import last_job_of
from jobs.plan.job import Job
from jobs.progress.format import first_few
from jobs.queries.explanation import (
    Explanation,
    ModelPart,
    ObjectPart,
    OtherVersion,
    PlanPart,
    Prediction,
    prediction_of,
)
from jobs.queries.find_rows import Found, by_file_name, by_keys, by_place, parse
from jobs.queries.status import missing_of
from jobs.report.journal import read_journal, run_ids
from jobs.report.runs import RunSeen, read_run
from workers.bundle.manifest import Manifest
from workers.contract import Shard
from workers.counted import counted
from workers.output import SOURCE_FIELDS, NotOurs, OutputObject, key_names, object_facts, shown_keys
from workers.redaction import redacted_values
from workers.source.single_rows import CHANGED, GONE, Place, RowAt
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import open_filesystem, version_of
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying
from workers.storage.store import Store

LISTED = 20
"""Rows that are named where several have the key."""
_READ_MOST = 200
"""Rows with the key, of all versions, that are looked at."""
_CLOCKS_DIFFER = timedelta(hours=1)
_ATTEMPT = (
    "at", "worker", "host", "engine", "attempt", "second", "isolated", "failure", "message", "committed", "rows_ok",
    "rows_bad", "rows_gone", "wall_s",
)  # fmt: skip
"""What is shown of it, see jobs.report.journal."""
_ACCURACY = ("rows", "top1_agreement", "mean_cosine", "logit_error", "top1", "top1_fp32", "labelled_rows")
"""What is shown of it, see workers.bundle.accuracy."""
_SEEN = 3
OTHERS = 10
"""Versions of a file beside the one that is explained: the newest."""


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint explain`: show what there is to tell of the row that a key names.

    Raises SpecError for a key that names no row or several, which are shown; StintError where there is no such row;
    RunFailed, StoreError, StoreDenied.
    """
    job, key, show = last_job_of(arguments), arguments.key, console.show
    named = parse(key, job.input_spec())
    plans = job.ledger.plans()
    explainer = Explainer(job, plans)
    if isinstance(named, Place):
        claims = by_place(plans, named)
        given = Place.read(key, job.spec.input)
        if not claims and given is not None and (claims := by_file_name(plans, given)):
            _check_one(job, claims, (), key, show)
        if not claims:
            raise _not_claimed(plans, named)
    else:
        claims = by_keys(job.ledger, plans, named, _READ_MOST)
        if not claims:
            raise _not_scored(job, key)
        _check_one(job, explainer.alive(claims) or claims, named, key, show)
    explanation = explainer.explain(claims)
    if arguments.json:
        show(json.dumps(redacted_values(asdict(explanation)), indent=2, ensure_ascii=False))
    else:
        show(explanation.describe())
    return COMPLETE


def _check_one(job: Job, found: Sequence[Found], named: Collection[str], key: str, show: Callable[[str], None]) -> None:
    """Raises SpecError where the key is that of several rows: of several files, or of one version of a file."""
    each = Counter((at.uri, at.version) for at in {row.at for row in found})
    if max(each.values()) == 1 and len({uri for uri, _ in each}) == 1:
        return
    places = [*dict.fromkeys(row.at.place.write(job.spec.input) for row in found)]
    show("\n".join(first_few(places, "rows", LISTED)))
    count = f"{len(places):,}" if len(found) < _READ_MOST else f"at least {len(places):,}"
    others = [name for name in job.spec.input.copied if name not in named]
    more = f"add {', '.join(f'{name}=…' for name in others)}, or " if others else ""
    raise SpecError(f"{key} is the key of {count} rows", f"{more}name one by its place, as it is listed")


def _not_scored(job: Job, key: str) -> StintError:
    missing = missing_of(job.ledger)
    return StintError(
        f"no prediction of this model has {key}; {counted(missing.rows, 'row')} in {counted(len(missing), 'shard')} "
        "are claimed and not scored yet",
        "run the job to its end; a row that is not scored yet is known by its place alone, URI#ROWGROUP/ROW",
    )


def _not_claimed(plans: Sequence[Plan], named: Place) -> StintError:
    claiming = [plan for plan in plans if named.uri in plan.sources["uri"].to_pylist()]
    if claiming:
        has = "without such a row: row groups and rows count from 0"
        return StintError(f"{named.uri} is claimed by plan {claiming[-1].number}, {has}", "name a row that it has")
    return StintError(
        f"not claimed by any plan: {named.uri}",
        "check the URI; `stint plan` tells whether the next run would claim what lies there",
    )


# --------------------------------------------------------------------------------------------------
# What is put together of one row: its claim, its object, and what became of it in other versions of its file.


class _OutputRow(NamedTuple):
    """A row in an output object."""

    data: bytes
    metadata: Mapping[str, str]
    """`stint.…`, without the prefix."""
    keys: Mapping[str, str]
    """For a person."""
    row: Mapping[str, Any] | None
    """Its other columns; None where its source was gone when it was its turn."""


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
    keys = table.select(key_names(table.schema))
    row = next(iter(table.drop_columns(keys.column_names).to_pylist()), None)
    return _OutputRow(data, opened.metadata, {} if row is None else shown_keys(keys, 0), row)


def _attempts(
    store: Store, root: str, shard: Shard, since: datetime | None, until: datetime | None
) -> list[dict[str, Any]]:
    """Attempts at a shard that runs have written into their journals, oldest first. Raises StoreError, StoreDenied.

    Reads the journals of the model's runs that were under way between `since`, when the plan was made, and `until`,
    when it was done, by the store's clock, where these are known; all of them where those have nothing: a store that
    was copied has other times. Journals are advisory: an attempt that is in none may have been made all the same.
    """
    # Ids begin with their time.
    ids = [run_id for run_id in run_ids(store) if until is None or run_id <= f"{until + _CLOCKS_DIFFER:%Y%m%dT%H%M%S}"]
    runs = [run for run in ahead(partial(read_run, store), ids, "runs") if run.root == root]
    near = [run for run in runs if since is None or run.heard_at >= since - _CLOCKS_DIFFER]
    return _of_journals(store, near, shard) or _of_journals(store, [run for run in runs if run not in near], shard)


def _of_journals(store: Store, runs: Sequence[RunSeen], shard: Shard) -> list[dict[str, Any]]:
    found = []
    for run in runs:
        table = read_journal(store, run.run_id, ("plan", "shard", *_ATTEMPT)).attempts
        here = table.filter(pc.and_(pc.equal(table["plan"], shard.plan), pc.equal(table["shard"], shard.index)))
        rows = here.select(_ATTEMPT).to_pylist()
        found += [{"run_id": run.run_id, **row, "at": _iso(row["at"])} for row in rows]
    return found


def _crashes(store: Store, root: str, shard: Shard) -> list[dict[str, Any]]:
    """As Ledger.record_crash records them, oldest first; advisory, too. Raises StoreError, StoreDenied."""

    listed = [info.key for info in store.list(f"{root}/{CRASHES_FOLDER}/{shard.plan:08d}", [f"{shard.index:08d}-"])]
    ours = [key for key in listed if parse_crash_key(key.removeprefix(f"{root}/")) == (shard.plan, shard.index)]
    read = map(json.loads, ahead(store.get, ours, "crashes"))
    return sorted(read, key=lambda crash: str(crash.get("at", "")))


class _Version(NamedTuple):
    """A claim on the row, in one version of its file, and what became of it."""

    claim: Found
    output: _OutputRow | None
    """None while there is no object."""
    rank: int
    """_SEEN where readers see its row, 2 where readers of this model do, 1 where they will, else 0."""
    standing: str
    """Why, for a person."""


@dataclass(frozen=True)
class Explainer:
    """For one command: what it reads of the ledger it reads once. Raises RunFailed, StoreError, StoreDenied."""

    job: Job
    plans: Sequence[Plan]

    @cached_property
    def done(self) -> set[int]:
        return self.job.ledger.done_numbers()

    @cached_property
    def dead(self) -> OutOfDate:
        """Rows that readers no longer see."""
        return self.job.ledger.superseded(self.plans, self.done)

    def alive(self, claims: Sequence[Found]) -> list[Found]:
        """Those that no later version has put out of date."""
        return [claim for claim in claims if not self.dead.hides(claim.plan.number, *astuple(claim.at))]

    def explain(self, claims: Sequence[Found]) -> Explanation:
        """Of one row, claimed in one version of its file or in several.

        What readers see counts; without that, what was claimed last.
        """
        root, given = self.job.ledger.root, self.job.spec.input
        versions = sorted(map(self._version, claims), key=lambda version: -version.claim.plan.number)
        main = max(versions, key=lambda version: version.rank)
        (plan, shard, at), output = main.claim, main.output
        claimed_at, done_at = map(self._modified, self.job.ledger.keys_of(plan.number))
        return Explanation(
            place=at.place.write(given),
            source_uri=at.uri,
            source_version=at.version,
            row_group=at.row_group,
            row=at.row,
            keys={} if output is None else output.keys,
            prediction=self._prediction(output),
            seen=main.rank == _SEEN,
            standing=main.standing,
            source=_source(at),
            plan=PlanPart(plan.number, plan.rows, len(plan.shards), _iso(claimed_at), _iso(done_at)),
            shard={"name": shard.name, "rows": shard.rows, "slices": shard.slices},
            object=None if output is None else self._object(main.claim, output),
            attempts=_attempts(self.job.store, root, shard, claimed_at, done_at),
            crashes=_crashes(self.job.store, root, shard),
            model=self._model(output),
            others=[self._other(version) for version in versions if version is not main][:OTHERS],
        )

    # ------------------------------------------------------------------------------------------- parts

    def _version(self, claim: Found) -> _Version:
        output = _read_row(self.job.store, f"{self.job.ledger.root}/{claim.shard.key}", claim.at)
        return _Version(claim, output, *self._standing(claim, output))

    def _standing(self, claim: Found, output: _OutputRow | None) -> tuple[int, str]:
        number, root = claim.plan.number, self.job.ledger.root
        if output is None:
            return 0, f"shard {claim.shard.name} is missing: it is not scored yet; run the job to finish plan {number}"
        if output.row is None:
            return 0, "its file was gone, or another one, when it was its turn, so it has no row"
        if number not in self.done:
            return 1, f"plan {number} is not done; run the job to finish it"
        if not self.alive([claim]):
            key = number, claim.at.uri, claim.at.version
            if key not in self.job.ledger.superseded(self.plans, self.done, [number]).claims:
                return 1, f"plan {number} adds to rows of a plan that is not done; run the job to finish that"
            claiming = (plan for plan in reversed(self.plans) if claim.at.uri in plan.sources["uri"].to_pylist())
            later = next(plan for plan in claiming if plan.number in self.done)
            again = (claim.at.uri, claim.at.version) in later.afresh
            what = "has scored the file again" if again else "has the file in a newer version"
            return 0, f"superseded: plan {later.number} {what}"
        followed = followed_root(self.job.store)
        if followed == root:
            return _SEEN, f"plan {number} is done, and readers follow this model"
        follow = f"readers follow {followed}" if followed else "of several models none is promoted"
        return 2, f"plan {number} is done, but {follow}"

    def _other(self, version: _Version) -> OtherVersion:
        (plan, _, at), prediction = version.claim, self._prediction(version.output)
        place = at.place.write(self.job.spec.input)
        return OtherVersion(plan.number, at.version, place, prediction, version.standing)

    def _object(self, claim: Found, output: _OutputRow) -> ObjectPart:
        facts = object_facts(output.data)
        recorded: bool | None = None
        if claim.plan.number in self.done:
            table = self.job.ledger.read_done(claim.plan.number).table
            recorded = table.filter(pc.equal(table["key"], claim.shard.key))["sha256"].to_pylist() == [facts.sha256]
        url = f"{self.job.store.url}/{self.job.ledger.root}/{claim.shard.key}"
        return ObjectPart(url, facts.size, facts.sha256, recorded, dict(output.metadata))

    def _prediction(self, output: _OutputRow | None) -> Prediction:
        if output is None or output.row is None:
            return None
        return prediction_of(output.row, self._manifest(output.metadata.get("bundle", "")))

    @cached_property
    def _manifest(self) -> Callable[[str], Manifest | None]:
        """Of the bundle with a fingerprint."""
        return cache(self.job.manifest)

    def _model(self, output: _OutputRow | None) -> ModelPart:
        metadata: Mapping[str, str] = {} if output is None else output.metadata
        bundle, engine = metadata.get("bundle", self.job.fingerprints.bundle), metadata.get("engine", "")
        manifest = self._manifest(bundle)
        artifact = None if manifest is None else manifest.artifact(engine)
        measured = None if artifact is None else artifact.accuracy
        spec = self.job.spec.model
        return ModelPart(
            arch=spec.arch if manifest is None else manifest.spec["arch"],
            weights=spec.weights if manifest is None else manifest.spec["weights"],
            bundle=bundle,
            task=spec.task if manifest is None else manifest.task,
            artifact=engine,
            accuracy=None if measured is None else {name: getattr(measured, name) for name in _ACCURACY},
            preprocess=None if manifest is None else str(manifest.preprocess),
        )

    def _modified(self, key: str) -> datetime | None:
        url = f"{self.job.store.url}/{self.job.ledger.root}/{key}"
        fs, path = open_filesystem(url)
        try:
            at: datetime = retrying(lambda: fs.modified(path), url)
        except (NotFound, NotImplementedError, KeyError):  # not all of fsspec's file systems know
            return None
        return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _source(at: RowAt) -> str:
    """What became of the file since it was claimed."""
    try:
        fs, path = open_filesystem(at.uri)
        info = retrying(lambda: fs.info(path), at.uri)
    except NotFound:
        return f"{GONE}; claimed in version {at.version}"
    except (StoreError, StoreDenied) as error:
        return f"cannot be looked at: {error}"
    now = version_of(info, at.version)
    if now == at.version:
        return f"there, in the version that was claimed ({now})"
    return f"{CHANGED}: version {at.version} was claimed, {now} is there"


def _iso(at: datetime | None) -> Any:
    return None if at is None else at.isoformat(timespec="seconds")
