"""What a job finds: the input as listed, what of it is to be claimed, and the plans that are not done.

A set difference of the listing and of what plans claim, never a modification-time watermark: late files, files that
were put back and nights that were missed need no rule of their own.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial

import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import NothingThere, SpecError
from jobs.input.footers import Opened, open_sources, opened_rows
from jobs.input.listing import Listing, left_out, list_input, named_once, sources_now
from jobs.input.passed_over import PassedOver, passed_over_lines
from jobs.ledger.plans import Content, Plan, Source, latest_versions
from jobs.plan.asked import Asked, asked_for, some
from jobs.plan.claims import NextClaim, next_claim
from jobs.plan.job import Job, absolute
from jobs.plan.tables import TableFound, find_table
from jobs.progress.format import first_few
from jobs.spec.days import Days, filled
from jobs.spec.patterns import covering, split_pattern
from jobs.tables.detect import refuse_inside_table
from workers.contract import AS_OF, Slice
from workers.counted import counted
from workers.source.webdataset import NO_SAMPLE
from workers.storage.errors import StoreDenied, StoreError

LOOKED_BACK = 14
"""Days before those of a run whose folders should not have been passed over."""
_BESIDE = "beside the image of their sample (if each is a sample of its own, write input.sample_key: last_dot)"


@dataclass(frozen=True)
class Discovery:
    """Input and ledger as they were when they were listed."""

    job: Job
    listing: Listing
    plans: list[Plan]
    open_plans: list[Plan]
    lost: frozenset[Slice]
    """Rows of earlier plans whose source was gone when they were to be scored."""
    failed: frozenset[tuple[str, str]]
    """(uri, version) of sources that are not there as they were claimed, or not listed, and have bad rows in plans that
    are open."""
    claim: NextClaim
    asked: Asked
    """What a person wants scored again."""
    fresh: Sequence[Opened]
    """The new sources that can be read, with their row groups."""
    unreadable: Mapping[str, str]
    """URIs that stay unclaimed, each with the reason."""
    table: TableFound | None = None
    """Where the input is one."""

    @property
    def nothing(self) -> bool:
        """Whether nothing is to be claimed, nor to be said of a table."""
        return not (self.fresh or self.claim.again or (self.table and self.table.claim.says))

    @property
    def sources(self) -> list[Source]:
        return self.listing.sources

    @cached_property
    def fresh_rows(self) -> int:
        """Rows that the next plan claims."""
        return opened_rows(self.fresh) + sum(piece.rows for piece in self.claim.slices)

    @property
    def superseded(self) -> AbstractSet[str]:
        """URIs whose rows are scored again, in place of what was there."""
        return self.claim.supersedes.keys() - self.unreadable.keys()

    @cached_property
    def overlooked(self) -> Mapping[str, int]:
        """Days that no run has looked at, each with the files that are there: since the first that was claimed, at most
        LOOKED_BACK before this run's, those of whose files no plan claims one.

        Manifests are left out: which files a day's names only the manifest itself tells.
        """
        found = dict[str, int]()
        if AS_OF.search(self.job.spec.output.uri):  # then each day has a ledger of its own
            return found
        days = [Days(day, day) for day in self.job.days.before(LOOKED_BACK)]
        # No plan has files of days after its own; those of earlier releases do not say which that is.
        recent = [plan.sources["uri"] for plan in reversed(self.plans) if days and not "" < plan.day < str(days[0])]
        left_out = tuple(f"!{template}" for template in self.job.spec.input.exclusions)
        for template in filter(AS_OF.search, map(absolute, self.job.spec.input.uris)):
            began = False
            for day in days:
                files = f"^(?:{'|'.join(map(covering, filled(template, day)))})$"
                if any(pc.any(pc.match_substring_regex(uris, files)).as_py() for uris in recent):
                    began = True
                elif began:
                    with suppress(SpecError, StoreError, StoreDenied):  # mostly because there is nothing
                        there = list_input(replace(self.job.spec.input, uri=(template, *left_out)), day, {}).sources
                        found |= {str(day): found.get(str(day), 0) + len(there)} if there else {}
        return dict(sorted(found.items()))

    def to_sample(self) -> Sequence[Opened]:
        """With nothing new, what is there: the bundle of an open plan may still be missing."""
        there = self.fresh or _opened(self.job, self.sources, self.plans, self.table)[0]
        column = self.job.spec.gate.labels_column
        return [one for one in there if _has_labels(one, column)] if column and not self.job.labels_key else there

    def cut(self) -> Content:
        """How the next plan falls into shards."""
        return self.job.cut(self.fresh, self.claim.slices)

    def content(self, plans: Sequence[Plan]) -> Content | None:
        """What of this discovery is still to be claimed after `plans`, some of which may have come since.

        A file that a plan has claimed since is left to it: what that run saw may be newer than what this one did.
        """
        now, fresh, types = self.claim, self.fresh, _types(plans)
        if len(plans) > len(self.plans):
            if self.table is not None:  # theirs may be of a later version: what it lacks the next run finds
                return None
            since = {uri for plan in plans[len(self.plans) :] for uri in plan.sources["uri"].to_pylist()}
            left = [source for source in self.sources if source.uri not in since]
            rescore, asked = self.job.spec.input.on_change == "rescore", self.asked.uris
            now = next_claim(left, plans, self.lost, self.failed, rescore=rescore, asked=asked)
            new = set(now.new)
            # Of a root that another run began meanwhile, with other types, the next run fits the files to these.
            fresh = [one for one in self.fresh if one.source in new and (not types or one.keys == types)]
        if not (fresh or now.again or (self.table and self.table.claim.says)):
            return None
        cut = self.job.cut(fresh, now.slices)
        empty = tuple(source for source, slices in now.again.items() if not slices)
        claimed = {opened.source.uri for opened in fresh if now.supersedes} | {source.uri for source in now.again}
        return replace(
            cut,
            empty=cut.empty + empty,
            keys=fresh[0].keys if types is None and fresh else types,
            named=not plans or plans[0].named,
            supersedes={uri: before for uri, before in now.supersedes.items() if uri in claimed},
            day=str(self.job.days.last),
            table=self.table.part(fresh) if self.table else None,
        )

    @property
    def claimed_before(self) -> int:
        """Sources of which nothing is to be claimed: earlier plans have them."""
        return len(self.sources) - len(self.claim.new) - len(self.claim.again)

    def lines(self) -> list[str]:
        """What was found, for a person."""
        there, claimed = len(self.sources), self.claimed_before
        lines = [
            f"input as of {self.job.days}: {counted(there, 'source')}, {claimed:,} claimed by earlier plans, "
            f"{len(self.fresh) + len(self.claim.again):,} new with {counted(self.fresh_rows, 'row')}"
        ]
        lines += missed_lines(self.listing)
        if self.table is not None:
            lines += self.table.figures(self.fresh)["lines"]
        if self.claim.kept:
            lines.append(
                f"changed since they were scored, predictions kept: {some([s.uri for s in self.claim.kept])}; "
                "input.on_change: rescore would score them again"
            )
        lines += self.asked.lines()
        if changed := sorted(self.superseded - self.asked.uris):
            lines.append(f"changed, scored again in place of what was there: {some(changed)}")
        back = [source.uri for source in self.claim.again if source.uri not in self.claim.supersedes]
        if back:
            lines.append(f"back again after they were gone when it was their turn: {some(back)}")
        if self.overlooked:
            first, last = min(self.overlooked), max(self.overlooked)
            lines.append(
                f"warning: no run has looked at {some([f'{d} (files: {n:,})' for d, n in self.overlooked.items()])}; "
                f"--backfill {first}..{last} scores them, and input.days has every run look back so many days"
            )
        unreadable = [f"unreadable, left unclaimed: {uri}: {reason}" for uri, reason in self.unreadable.items()]
        return lines + first_few(unreadable, "sources that are unreadable, left unclaimed")


def missed_lines(listing: Listing) -> list[str]:
    """Of what should be there and is not, and of what is there and is not taken: a line each, or none."""
    absent = [f"not there (yet): {some(listing.absent)}"] if listing.absent else []
    return absent + passed_over_lines(listing.passed_over)


def list_job_input(job: Job, plans: Sequence[Plan], done: Collection[int], *, delivered: bool = True) -> Listing:
    """The input as it is now, of which something must have been `delivered`: see list_input. Raises SpecError,
    StoreError.

    What a manifest says is checked for files that were gone, or had changed, when they were to be scored.
    """
    if job.spec.input.is_table:
        return Listing(find_table(job, plans).sources)
    latest: Mapping[str, str] = {}
    doubtful: set[str] = set()
    if job.spec.input.manifest is not None:
        latest = latest_versions(plans)
        everything = [Source(uri, 0, version) for uri, version in latest.items()]
        closed = [plan for plan in plans if plan.number in done]
        doubtful = {piece.uri for piece in job.ledger.lost(closed, done, everything)}
    claimed = partial(latest_versions, plans)
    return list_input(
        job.spec.input, job.days, latest, doubtful, delivered=delivered, claimed=claimed, own=job.store.url
    )


def discover(job: Job, again: str = "") -> Discovery:
    """One listing of the input, one of the ledger, and the footers of what is new; and of what is to be scored `again`,
    see jobs.plan.asked. Raises SpecError, StoreError.
    """
    plans = job.ledger.plans()
    done = job.ledger.done_numbers()
    if job.spec.input.is_table:
        return _discover_table(job, plans, done, again)
    nothing: NothingThere | None = None
    if not plans and job.spec.input.format == "parquet":  # later on what is listed tells
        for template in job.spec.input.uris:
            refuse_inside_table(split_pattern(absolute(filled(template, job.days)[-1]))[0])
    try:
        listing = list_job_input(job, plans, done)
    except NothingThere as error:
        listing, nothing = Listing([]), error
    # What a manifest says is no listing of the store.
    known = listing.sources if job.spec.input.manifest is None else ()
    asked = asked_for(job, plans, done, again, known) if again else Asked()
    if nothing is not None and not asked.sources and not asked.under_way:
        raise nothing  # but what was scored before does not wait for today's delivery
    failed = frozenset(job.ledger.failed(plans, done, (*asked.sources, *known)))
    if beside := {source.uri: source for source in (*asked.sources, *_replaced(job, failed, (*known, *asked.sources)))}:
        beside = {source.uri: source for source in listing.sources} | beside
        listing = replace(listing, sources=[beside[uri] for uri in sorted(beside)])
    lost = frozenset(job.ledger.lost(plans, done, listing.sources))
    rescore = job.spec.input.on_change == "rescore"
    now = next_claim(listing.sources, plans, lost, failed, rescore=rescore, asked=asked.uris)
    return _discovered(job, plans, done, listing, lost, failed, now, asked)


def _discover_table(job: Job, plans: list[Plan], done: Collection[int], again: str) -> Discovery:
    table = find_table(job, plans)
    sources, asked = table.sources, Asked()
    if again:
        asked, there = asked_for(job, plans, done, again, sources), {*sources}
        gone = (*asked.gone, *(source.uri for source in asked.sources if source not in there))
        asked = replace(asked, sources=tuple(source for source in asked.sources if source in there), gone=gone)
    if not table.is_past:
        table = replace(table, lost=frozenset(job.ledger.lost(plans, done, [*sources, *table.predicted])))
    now = table.next_claim(asked.sources)
    return _discovered(job, plans, done, Listing(sources), table.lost, frozenset(), now, asked, table)


def _discovered(
    job: Job, plans: list[Plan], done: Collection[int], listing: Listing, lost: frozenset[Slice],
    failed: frozenset[tuple[str, str]], now: NextClaim, asked: Asked, table: TableFound | None = None,
) -> Discovery:  # fmt: skip
    """With what is in the new sources."""
    opened, unreadable = _opened(job, now.new, plans, table)
    if not job.labels_key:
        _check_labels(opened, job.spec.gate.labels_column)
    return Discovery(
        job=job,
        listing=replace(listing, passed_over=[*listing.passed_over, *members_passed_over(job, opened)]),
        plans=plans,
        open_plans=[plan for plan in plans if plan.number not in done],
        lost=lost,
        failed=failed,
        claim=now,
        asked=asked,
        fresh=opened,
        unreadable={**listing.unreadable, **named_once({source.uri: reason for source, reason in unreadable.items()})},
        table=table,
    )


def _opened(
    job: Job, sources: Sequence[Source], plans: Sequence[Plan], table: TableFound | None
) -> tuple[Sequence[Opened], dict[Source, str]]:
    roots = cache(lambda: job.input_spec().uri_roots)
    files = None if table is None else {file.uri: file for file in table.state.files}
    return open_sources(sources, job.spec.input, _types(plans), roots, None if table is None else table.of, files)


def members_passed_over(job: Job, opened: Iterable[Opened]) -> list[tuple[str, int, str]]:
    """Images in tars that are not the one of a sample, as in `Listing.passed_over`."""
    members = PassedOver()
    for one in opened if job.spec.input.format == "webdataset" else ():
        for end, count in one.beside.items():
            members.add(f"members in .{end} {_BESIDE}" if end else f"images {NO_SAMPLE}", one.source.uri, count)
    return members.rows()


def _types(plans: Sequence[Plan]) -> pa.Schema | None:
    """Of the key columns: a root has one schema, that of its first plan with rows."""
    return next((plan.keys for plan in plans if plan.rows), None)


def _replaced(job: Job, failed: Collection[tuple[str, str]], known: Collection[Source]) -> list[Source]:
    """Bad files of open plans that the store has not just shown, as those of another day, where others are now."""
    excluded, shown = left_out(job.spec.input, job.days), {source.uri for source in known}
    doubtful = {uri for uri, _ in failed if uri not in shown and not excluded(uri)}
    with suppress(StoreDenied):  # that is told when their plan is to be finished
        return [s for s in sources_now(doubtful, dict(failed)).values() if s is not None and s.identity not in failed]
    return []


def _has_labels(one: Opened, column: str) -> bool:
    return one.columns is None or column in one.columns


def _check_labels(opened: Sequence[Opened], column: str | None) -> None:
    """Raises SpecError where no source has the labels: of those that have them the sample is taken."""
    first = next((one for one in opened if one.columns != ()), None)
    if column and first and not any(_has_labels(one, column) for one in opened):
        there = first.columns or ()
        near = difflib.get_close_matches(column, there, n=1)
        raise SpecError(
            f"gate.labels_column: {first.source.uri} has no column {column!r}; it has {', '.join(there) or 'none'}",
            f"write `labels_column: {near[0]}`" if near else "",
        )
