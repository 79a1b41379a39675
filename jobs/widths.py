"""How many cores a worker gets where the spec leaves that open: from profiles, or by the rule. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from workers.profiles import HostKind, Profile

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


def choose_width(profiles: Sequence[Profile], host: HostKind | None = None) -> Width:
    """The width of the workers of a run, before any node is known; `host` is the only node, where that is known.

    Of several kinds of nodes each may run workers: the width that loses least on the kind on which it loses most.
    """
    if host is not None:
        profiles = [profile for profile in profiles if profile.host.key == host.key]
    if not profiles:
        return Width(threads=CORES_BY_RULE, reason="no profile of this kind of node" if host else "no profile")
    if len(profiles) == 1:
        only = profiles[0]
        return Width(threads=only.threads, reason=f"as tuned {only.tuned_at}", profile=only)
    kept = {width: kept_share(width, [p.rates() for p in profiles]) for width in _widths(profiles)}
    best = max(kept, key=lambda width: (kept[width], -width))
    if not kept[best]:
        return Width(threads=CORES_BY_RULE, reason=f"profiles of {len(profiles)} kinds of nodes, no width in common")
    return Width(
        threads=best,
        reason=f"profiles of {len(profiles)} kinds of nodes: on each at least {kept[best]:.0%} of what is best there",
    )


def kept_share(width: int, kinds: Sequence[Mapping[int, float]]) -> float:
    """Share of a node's best rate that is left with workers of this width, on the kind that loses most; 0 where it was
    not measured. `kinds` are rates by width."""
    return min(rates.get(width, 0.0) / max(rates.values()) for rates in kinds)


def _widths(profiles: Sequence[Profile]) -> list[int]:
    return sorted({width for profile in profiles for width in profile.rates()})


def worker_rate(profiles: Sequence[Profile], threads: int, host: HostKind | None = None) -> float | None:
    """Rows a second of a worker of this width, by the slowest kind of node that was tuned; None where none was."""
    if host is not None:
        profiles = [profile for profile in profiles if profile.host.key == host.key]
    rows = [row for profile in profiles if (row := profile.row_at(threads)) is not None]
    rates = [row.images_per_s / row.candidate.workers for row in rows if row.images_per_s]
    return min(rates, default=None)
