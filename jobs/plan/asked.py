"""What `--again` asks for: files whose rows are to be scored again although they have not changed.

A person names a file or folder that was scored, a day, or rows by a condition in SQL over the columns of the output. A
file is scored again as a whole: its new rows replace all its old ones, as those of a file that was rewritten do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import SpecError
from jobs.input.manifest import Entry, pin_entries, read_entries
from jobs.ledger.plans import Plan, Source, claims_of
from jobs.plan.job import Job, absolute
from jobs.plan.query import count_by
from jobs.progress.format import first_few
from jobs.spec.days import Days, filled, parse_day, parse_days
from jobs.spec.patterns import covering
from workers.contract import AS_OF

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
    """Those files as they are now."""
    gone: tuple[str, ...] = ()
    """URIs of those that are not there any more."""

    def beside(self, listed: Sequence[Source]) -> list[Source]:
        """By URI, each once, what was listed and what is asked for: that was looked up by itself."""
        both = {source.uri: source for source in (*listed, *self.sources)}
        return [both[uri] for uri in sorted(both)] if self.sources else list(listed)

    def lines(self) -> list[str]:
        """For a person."""
        if not self.text:
            return []
        if not self.files:
            return [f"--again {self.text}: no row that was scored is meant"]
        rows = sum(self.files.values())
        why = f", for {rows:,} of their rows" if rows else ""
        lines = [f"scored again, in place of what was there{why}: {some([source.uri for source in self.sources])}"]
        if self.gone:
            lines.append(f"not there any more, so their rows stay as they are: {some(self.gone)}")
        return lines


def some(names: Sequence[str]) -> str:
    """All of a few names, or the first of many with their count."""
    return ", ".join(first_few(names, "of them"))


def asked_for(job: Job, plans: Sequence[Plan], text: str) -> Asked:
    """Find what `text` names among what plans claim. Raises SpecError, RunFailed, StoreError, StoreDenied."""
    claimed = pc.unique(claims_of(plans)["uri"])
    if (days := _days(text)) is not None:
        files = dict.fromkeys(of_days(job, claimed, days), 0)
    else:
        files = dict.fromkeys(_named(claimed, text), 0) or _of_rows(job, plans, text)
    sources, missing = pin_entries([Entry(uri) for uri in files], {})
    return Asked(text, files, tuple(sources), tuple(sorted(missing)))


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
        named = {entry.uri for url in filled(given.manifest, days) for entry in read_entries(url)}
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
    from jobs.reader import SOURCE_COLUMNS, predictions  # with Arrow's data sets, which no other run needs

    if not plans:
        return {}
    seen = predictions(job.ledger, with_open=True)
    columns = [name for name in seen.schema.names if name != EMBEDDING or EMBEDDING in condition.lower()]
    try:
        return count_by(seen.reader(columns), condition, SOURCE_COLUMNS[0], option="--again")
    except SpecError as error:
        raise SpecError(str(error), f"name a file or folder that was scored, a day, or {error.next_step}") from error
