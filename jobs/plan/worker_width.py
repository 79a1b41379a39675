"""How many cores a worker gets where the spec leaves that open: from profiles, or by the rule. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from workers.bundle.profiles import HostKind, Profile

CORES_BY_RULE = 1
"""Partitioning beats sharing: workers that share nothing wait for nobody, and one core has no threads to join. On two
cores two workers of one were level with one worker of two at its best batch, and ahead at all others."""


@dataclass(frozen=True, kw_only=True)
class Width:
    threads: int
    """Physical cores a worker."""
    reason: str
    """For a person."""
    profile: Profile | None = None
    """The one that it was taken from, where there is one alone."""
    from_profiles: bool = False
    """Whether there are profiles for workers of this width."""


def of_host(profiles: Iterable[Profile], host: HostKind | None) -> tuple[Profile, ...]:
    """Those of the only node that there is; all where None is known."""
    return tuple(profile for profile in profiles if host is None or profile.host.key == host.key)


def choose_width(of: Sequence[Profile], most_threads: int | None = None) -> Width:
    """The width of the workers of a run, from the profiles `of` nodes on which they may be.

    `most_threads` are the cores of the largest node that is there, as far as known. Of several kinds of nodes each may
    run workers: the width that loses least on the kind on which it loses most.
    """
    if not of:
        return Width(threads=CORES_BY_RULE, reason="no profile of this kind of node")
    kinds = [p.rates() for p in of]
    widths = sorted({width for rates in kinds for width in rates if most_threads is None or width <= most_threads})
    kept = {width: kept_share(width, kinds) for width in widths}
    if not any(kept.values()):
        return Width(threads=CORES_BY_RULE, reason="profiles of other nodes than are there")
    best = of[0].threads if len(of) == 1 and of[0].threads in kept else max(kept, key=lambda w: (kept[w], -w))
    if len(of) == 1:
        return Width(threads=best, reason=f"tuned {of[0].tuned_at}", profile=of[0], from_profiles=True)
    reason = f"profiles of {len(of)} kinds of nodes, on each at least {kept[best]:.0%} of its best"
    return Width(threads=best, reason=reason, from_profiles=True)


def given_width(threads: int, of: Sequence[Profile]) -> Width:
    """The width that the spec names; engine and batch may still be as tuned for workers of that width."""
    fit = [profile for profile in of if profile.row_at(threads) is not None]
    only = fit[0] if len(of) == 1 and fit else None
    reason = f"tuned {only.tuned_at}" if only else f"workers.cpus: {threads}"
    return Width(threads=threads, reason=reason, profile=only, from_profiles=bool(fit))


def kept_share(width: int, kinds: Sequence[Mapping[int, float]]) -> float:
    """Share of a node's best rate that is left with workers of this width, on the kind that loses most; 0 where it was
    not measured. `kinds` are rates by width."""
    return min(rates.get(width, 0.0) / max(rates.values()) for rates in kinds)


def worker_rate(profiles: Sequence[Profile], threads: int) -> float | None:
    """Rows a second of a worker of this width, by the slowest kind of node that was tuned; None where none was."""
    rows = [row for profile in profiles if (row := profile.row_at(threads)) is not None]
    rates = [row.images_per_s / row.candidate.workers for row in rows if row.images_per_s]
    return min(rates, default=None)


def describe_width(width: Width) -> str:
    """The line of a run that leaves its workers' cores or batches open."""
    cores = "1 core" if width.threads == 1 else f"{width.threads} cores"
    profile = width.profile
    row = None if profile is None else profile.row_at(width.threads)
    if profile is not None and row is not None:
        return f"profile: {row.candidate}: {row.images_per_s:,.0f} img/s a node ({profile.host}; {width.reason})"
    if width.from_profiles:
        return f"{width.reason}: {cores} a worker, engine and batch as tuned on each"
    return f"{width.reason}: {cores} a worker, engine and batch by the rule; `stint tune` measures what is best"
