"""What a job finds: the input as listed, what of it is to be claimed, and the plans that are not done.

A set difference of the listing and of what plans claim, never a modification-time watermark: late files, files that
were put back and nights that were missed need no rule of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from jobs.errors import SpecError
from jobs.input.footers import Opened, open_sources
from jobs.input.listing import Listing, list_input
from jobs.ledger.plans import Content, Plan, Source, latest_versions
from jobs.plan.claims import NextClaim, next_claim
from jobs.plan.job import Job
from workers.contract import Slice

_SHOWN = 5


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
    """(uri, version) of sources that have been replaced, and have bad rows in plans that are open."""
    claim: NextClaim
    fresh: list[Opened]
    """The new sources that can be read, with their row groups."""
    unreadable: Mapping[str, str]
    """URIs that stay unclaimed, each with the reason."""

    @property
    def sources(self) -> list[Source]:
        return self.listing.sources

    @property
    def fresh_rows(self) -> int:
        """Rows that the next plan claims."""
        return sum(opened.rows for opened in self.fresh) + sum(piece.rows for piece in self.claim.slices)

    def to_sample(self) -> list[Opened]:
        """With nothing new, what is there: the bundle of an open plan may still be missing."""
        return self.fresh or open_sources(self.sources, self.job.spec.input)[0]

    def cut(self) -> Content:
        """How the next plan falls into shards."""
        return self.job.cut(self.fresh, self.claim.slices)

    def content(self, plans: Sequence[Plan]) -> Content | None:
        """What of this discovery is still to be claimed after `plans`, some of which may have come since.

        A file that a plan has claimed since is left to it: what that run saw may be newer than what this one did.
        """
        since = {uri for plan in plans if plan.number > len(self.plans) for uri, _ in plan.claimed}
        unseen = [source for source in self.sources if source.uri not in since]
        now = _next_claim(self.job, unseen, plans, self.lost, self.failed)
        new = set(now.new)
        fresh = [opened for opened in self.fresh if opened.source in new]
        if not fresh and not now.again:
            return None
        cut = self.job.cut(fresh, now.slices)
        empty = tuple(source for source, slices in now.again.items() if not slices)
        claimed = {opened.source.uri for opened in fresh} | {source.uri for source in now.again}
        return replace(
            cut,
            empty=cut.empty + empty,
            keys=fresh[0].keys if fresh else plans[-1].keys,
            supersedes={uri: before for uri, before in now.supersedes.items() if uri in claimed},
            day=str(self.job.days.last),
        )

    def lines(self) -> list[str]:
        """What was found, for a person."""
        there = len(self.sources)
        claimed = there - len(self.claim.new) - len(self.claim.again)
        lines = [
            f"input as of {self.job.days}: {there:,} sources, {claimed:,} claimed by earlier plans, "
            f"{len(self.fresh) + len(self.claim.again):,} new with {self.fresh_rows:,} rows"
        ]
        if self.listing.absent:
            lines.append(f"not there (yet): {_some(self.listing.absent)}")
        if self.claim.kept:
            lines.append(
                f"changed since they were scored, predictions kept: {_some([s.uri for s in self.claim.kept])}; "
                "input.on_change: rescore would score them again"
            )
        if self.claim.supersedes:
            lines.append(f"changed, scored again in place of what was there: {_some(sorted(self.claim.supersedes))}")
        back = [source.uri for source in self.claim.again if source.uri not in self.claim.supersedes]
        if back:
            lines.append(f"back again after they were gone when it was their turn: {_some(back)}")
        lines += [f"unreadable, left unclaimed: {uri}: {reason}" for uri, reason in self.unreadable.items()]
        return lines


def _some(names: Sequence[str]) -> str:
    """All of a few names, or the first of many with their count."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def list_job_input(job: Job, plans: Sequence[Plan], done: Collection[int]) -> Listing:
    """The input as it is now. Raises SpecError, StoreError.

    What a manifest says is checked for files that were gone, or had changed, when they were to be scored.
    """
    latest: Mapping[str, str] = {}
    doubtful: set[str] = set()
    if job.spec.input.manifest is not None:
        latest = latest_versions(plans)
        everything = [Source(uri, 0, version) for uri, version in latest.items()]
        closed = [plan for plan in plans if plan.number in done]
        doubtful = {piece.uri for piece in job.ledger.lost(closed, done, everything)}
    return list_input(job.spec.input, job.days, latest, doubtful)


def discover(job: Job) -> Discovery:
    """One listing of the input, one of the ledger, and the footers of what is new. Raises SpecError, StoreError."""
    plans = job.ledger.plans()
    done = job.ledger.done_numbers()
    listing = list_job_input(job, plans, done)
    lost = frozenset(job.ledger.lost(plans, done, listing.sources))
    rescore = job.spec.input.on_change == "rescore"  # whatever has changed, then
    failed = frozenset(() if rescore else job.ledger.failed(plans, done, listing.sources))
    now = _next_claim(job, listing.sources, plans, lost, failed)
    opened, unreadable = open_sources(now.new, job.spec.input)
    _check_keys(opened, plans)
    _check_labels(opened, job.spec.gate.labels_column)
    return Discovery(
        job=job,
        listing=listing,
        plans=plans,
        open_plans=[plan for plan in plans if plan.number not in done],
        lost=lost,
        failed=failed,
        claim=now,
        fresh=opened,
        unreadable={**listing.unreadable, **{source.uri: reason for source, reason in unreadable.items()}},
    )


def _next_claim(
    job: Job,
    sources: Sequence[Source],
    plans: Sequence[Plan],
    lost: frozenset[Slice],
    failed: frozenset[tuple[str, str]],
) -> NextClaim:
    return next_claim(sources, plans, lost, failed, rescore=job.spec.input.on_change == "rescore")


def _check_keys(opened: Sequence[Opened], plans: Sequence[Plan]) -> None:
    """A model's root holds one schema: key columns may not change type from one night to the next."""
    if opened and plans and opened[0].keys != plans[-1].keys:
        raise SpecError(
            f"input.keys: {opened[0].source.uri} has {str(opened[0].keys).strip()!r}, earlier plans of this "
            f"output have {str(plans[-1].keys).strip()!r}",
            "cast the column in the input, or write to another output.uri",
        )


def _check_labels(opened: Sequence[Opened], column: str | None) -> None:
    missing = [o for o in opened if column and o.columns is not None and column not in o.columns]
    if missing:
        raise SpecError(
            f"gate.labels_column: {missing[0].source.uri} has no column {column!r}; "
            f"it has {', '.join(missing[0].columns or ()) or 'none'}"
        )
