"""`stint explain`: one row followed from its file to whoever reads its prediction, from the ledger and the objects."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict

from jobs.console import Console
from jobs.errors import COMPLETE, SpecError, StintError
from jobs.ledger.plans import Plan
from jobs.plan.command_line import last_job_of
from jobs.plan.job import Job
from jobs.queries.find_rows import Found, by_keys, by_place, parse, shards_of
from jobs.queries.trace import Explainer
from workers.redaction import redacted_values
from workers.source.single_rows import Place
from workers.storage.errors import NotFound
from workers.storage.filesystems import open_filesystem, version_of
from workers.storage.retries import retrying

LISTED = 20
"""Rows that are named where several have the key."""
_READ_MOST = 200
"""Rows with the key, of all versions, that are looked at."""


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
        if not claims:
            raise _not_claimed(plans, named)
    else:
        claims = by_keys(job.ledger, plans, named, _READ_MOST)
        if not claims:
            raise _not_scored(job, plans, key)
        _check_one(job, explainer.alive(claims) or claims, named, key, show)
    explanation = explainer.explain(claims)
    if arguments.json:
        show(json.dumps(redacted_values(asdict(explanation)), indent=2, ensure_ascii=False))
    else:
        show(explanation.describe())
    return COMPLETE


def _check_one(job: Job, found: Sequence[Found], named: Collection[str], key: str, show: Callable[[str], None]) -> None:
    """Raises SpecError where the key is that of several rows: of several files, or of one version of a file."""
    each = Counter((row.at.uri, row.at.version) for row in found)
    if max(each.values()) == 1 and len({uri for uri, _ in each}) == 1:
        return
    places = dict.fromkeys(row.at.place.write(job.spec.input) for row in found)
    for place in list(places)[:LISTED]:
        show(place)
    count = f"{len(places):,}" if len(found) < _READ_MOST else f"at least {len(places):,}"
    others = [name for name in job.spec.input.keys if name not in named]
    more = f"add {', '.join(f'{name}=…' for name in others)}, or " if others else ""
    listed = "listed" if len(places) <= LISTED else f"the first {LISTED} of which are listed"
    raise SpecError(f"{key} is the key of {count} rows, {listed}", f"{more}name one by its place, as it is listed")


def _not_scored(job: Job, plans: Sequence[Plan], key: str) -> StintError:
    done = job.ledger.done_numbers()
    missing = job.ledger.missing(*(plan for plan in plans if plan.number not in done))
    if not len(missing):
        return StintError(
            f"no prediction of this model has {key}", "see `stint plan` for input that is not claimed yet"
        )
    return StintError(
        f"no prediction of this model has {key}; {missing.rows:,} rows in {len(missing):,} shards are claimed and not "
        "scored yet, and only their places are known",
        "name the row as URI#ROWGROUP/ROW, or run the job to its end",
    )


def _not_claimed(plans: Sequence[Plan], named: Place) -> StintError:
    claiming = [plan for plan in plans if named.uri in plan.sources["uri"].to_pylist()]
    if claiming:
        pieces = [piece for shard in shards_of(claiming[-1], [named.uri]) for piece in shard.slices]
        groups = sorted({piece.row_group for piece in pieces if piece.uri == named.uri})
        rows = max((p.row_stop for p in pieces if (p.uri, p.row_group) == (named.uri, named.row_group)), default=0)
        has = f"row group {named.row_group} has {rows:,} rows" if rows else f"its row groups are {_ranges(groups)}"
        return StintError(
            f"{named.uri} is claimed by plan {claiming[-1].number}, and {has}: both count from 0",
            "name a row that it has",
        )
    try:
        fs, path = open_filesystem(named.uri)
        info = retrying(lambda: fs.info(path), named.uri)
    except NotFound:
        return StintError(f"not claimed by any plan: {named.uri}, and there is no such file", "check the URI")
    return StintError(
        f"not claimed by any plan: {named.uri}; the file is there, in version {version_of(info)}",
        "`stint plan` tells whether the next run would claim it: it must lie where the spec's input is",
    )


def _ranges(groups: Sequence[int]) -> str:
    if not groups:
        return "none: it has no rows"
    return f"{groups[0]} to {groups[-1]}" if len(groups) > 1 else str(groups[0])
