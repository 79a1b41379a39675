"""What `--again` asks for: files whose rows are to be scored again although they have not changed.

A person names a file or folder that was scored, a day, or rows by a condition in SQL over the columns of the output. A
file is scored again as a whole: its new rows replace all its old ones, as those of a file that was rewritten do.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import SpecError
from jobs.input.listing import sources_now
from jobs.input.manifest import read_entries
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan, Source, claims_of, latest_versions
from jobs.plan.job import Job, absolute
from jobs.plan.query import count_by
from jobs.progress.format import first_few
from jobs.spec.days import Days, filled, parse_day, parse_days
from jobs.spec.patterns import covering
from workers.contract import AS_OF
from workers.storage.errors import NotFound

EMBEDDING = "embedding"
"""A column that is as large as all others together, read only where a condition names it."""


@dataclass(frozen=True)
class Asked:
    """Files to be scored again."""

    text: str = ""
    """As a person wrote it; empty where nothing is asked for."""
    files: Mapping[str, int] = field(default_factory=dict)
    """By URI, the rows for whose sake: those that fulfil the condition, 0 where the file was named itself."""
    sources: tuple[Source, ...] = ()
    """Those of the files that are to be claimed, as they are now."""
    gone: tuple[str, ...] = ()
    """URIs of those that are not there any more."""
    under_way: Mapping[str, str] = field(default_factory=dict)
    """URIs of those that an open plan scores again already, each with the plan's name."""

    @property
    def uris(self) -> set[str]:
        """Of what is to be claimed."""
        return {source.uri for source in self.sources}

    def lines(self) -> list[str]:
        """For a person."""
        if not self.text:
            return []
        if not self.files:
            return [f"--again {self.text}: no row that was scored is meant"]
        lines = list[str]()
        if self.sources:
            rows = sum(self.files[uri] for uri in self.uris)
            why = f", for {rows:,} of their rows" if rows else ""
            lines.append(f"scored again, in place of what was there{why}: {some(sorted(self.uris))}")
        for plan in dict.fromkeys(self.under_way.values()):
            uris = [uri for uri, of in self.under_way.items() if of == plan]
            lines.append(f"scored again by {plan} already, which is not done, so not once more: {some(uris)}")
        if self.gone:
            lines.append(f"not there any more, so their rows stay as they are: {some(self.gone)}")
        return lines


def some(names: Sequence[str]) -> str:
    """All of a few names, or the first of many with their count."""
    return ", ".join(first_few(names, "of them"))


def asked_for(
    job: Job, plans: Sequence[Plan], done: Collection[int], text: str, listed: Sequence[Source] = ()
) -> Asked:
    """Find what `text` names among what plans claim; looked up is what the store has not just `listed`.

    Raises SpecError, RunFailed, StoreError, StoreDenied.
    """
    claimed = pc.unique(claims_of(plans)["uri"])
    if (days := _days(text)) is not None:
        files = dict.fromkeys(of_days(job, claimed, days), 0)
    else:
        files = dict.fromkeys(_named(claimed, text), 0) or _of_rows(job, plans, text)
    now: dict[str, Source | None] = {source.uri: source for source in listed if source.uri in files}
    lookup = files.keys() - now.keys()
    now |= sources_now(lookup, latest_versions(plans, lookup))
    sources = [source for _, source in sorted(now.items()) if source is not None]
    under_way = _under_way(job.ledger, plans, done, sources)
    left = tuple(source for source in sources if source.uri not in under_way)
    return Asked(text, files, left, tuple(sorted(uri for uri in now if now[uri] is None)), under_way)


def _under_way(
    ledger: Ledger, plans: Sequence[Plan], done: Collection[int], sources: Sequence[Source]
) -> dict[str, str]:
    """URIs of what an open plan scores again as it is now, and has found no bad row in so far; with the plan's name."""
    by_number = {plan.number: plan for plan in plans}
    claims = claims_of(plans)
    claims = claims.filter(pc.is_in(claims["uri"], value_set=pa.array([s.uri for s in sources], pa.string())))
    first: dict[str, int] = {}
    began: dict[tuple[str, str], int] = {}
    for uri, version, number in zip(*(column.to_pylist() for column in claims.columns), strict=True):
        first.setdefault(uri, number)
        if (uri, version) in by_number[number].afresh:
            began[uri, version] = number
        began.setdefault((uri, version), number)
    again = {s.identity: began.get(s.identity, first[s.uri]) for s in sources}
    again = {at: number for at, number in again.items() if number not in done and number != first[at[0]]}
    for plan in (plan for plan in plans if plan.number not in done):
        reading = plan.shards_reading(again)
        if again and (shards := list(reading)):
            bad = ledger.bad_rows(plan, ledger.may_be_bad(plan, shards), plans, done)
            again = {at: number for at, number in again.items() if at not in bad}
    return {uri: by_number[number].name for (uri, _), number in again.items()}


def _days(text: str) -> Days | None:
    for parse in (parse_day, parse_days):
        try:
            return parse(text)
        except ValueError:
            continue
    return None


def of_days(job: Job, claimed: pa.Array, days: Days) -> Iterable[str]:
    """Those of the `claimed` URIs that lie in places of these days, or that their manifests name. Raises SpecError
    where no place is of a day; NotFound for a manifest that is not there."""
    given = job.spec.input
    if not given.by_date:
        raise SpecError(
            f"--again {days}: no {{as_of}} is in input.uri, so no file is of a day",
            "name files, or rows by a condition in SQL",
        )
    for template in filter(AS_OF.search, given.uris):
        for place in filled(absolute(template), days):
            yield from _below(claimed, place)
    if given.manifest is not None:
        named = set[str]()
        for url in filled(given.manifest, days):
            with suppress(NotFound):  # no delivery of that day, or none any more
                named.update(entry.uri for entry in read_entries(url))
        yield from claimed.filter(pc.is_in(claimed, value_set=pa.array(named, pa.string()))).to_pylist()


def _named(claimed: pa.Array, text: str) -> list[str]:
    """The file of that URI, those below that folder, or those of that name, whatever folders they lie in."""
    for found in (_below(claimed, absolute(text)), claimed.filter(pc.ends_with(claimed, f"/{text}")).to_pylist()):
        if found:
            return found
    return []


def _below(claimed: pa.Array, place: str) -> list[str]:
    here = pc.or_(pc.equal(claimed, place), pc.match_substring_regex(claimed, f"^{covering(place)}$"))
    found: list[str] = claimed.filter(here).to_pylist()
    return found


def _of_rows(job: Job, plans: Sequence[Plan], condition: str) -> dict[str, int]:
    """Files with rows that fulfil a condition, each with their number; also of plans that are not done."""
    from jobs.ledger.superseded import SOURCE_COLUMNS
    from jobs.reader import predictions  # with Arrow's data sets, which no other run needs

    if not plans:
        return {}
    if re.fullmatch(r"[^\s=<>'\"]+\.[A-Za-z]\w*|[^\s=<>'\"]*/[^\s=<>'\"]*", condition):
        raise SpecError(
            f"--again {condition!r}: no file that was scored is called so, nor a folder of one",
            "name a file or folder that was scored, a day, or a condition in SQL over the columns of the output",
        )
    seen = predictions(job.ledger, with_open=True)
    columns = [name for name in seen.schema.names if name != EMBEDDING or EMBEDDING in condition.lower()]
    try:
        return count_by(seen.reader(columns), condition, SOURCE_COLUMNS[0], option="--again")
    except SpecError as error:
        raise SpecError(str(error), f"name a file or folder that was scored, a day, or {error.next_step}") from error
