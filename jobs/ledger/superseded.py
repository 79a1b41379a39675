"""Which rows later plans put out of date: for readers, `verify` and the budget of bad rows alike. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from jobs.ledger.plans import Plan, claims_of


def disputed(plans: Sequence[Plan]) -> list[tuple[int, str, str]]:
    """(plan, uri, version) of files whose rows these plans may have put out of date, in the order of plans: those that
    they claim in several versions, or afresh."""
    claims = claims_of(plans)
    versions = claims.group_by("uri").aggregate([("version", "count_distinct")])
    afresh = pa.array({uri for plan in plans for uri, _ in plan.afresh}, pa.string())
    several = pc.or_(pc.greater(versions["version_count_distinct"], 1), pc.is_in(versions["uri"], value_set=afresh))
    several = versions.filter(several)["uri"].combine_chunks()
    found = claims.filter(pc.is_in(claims["uri"], several)).group_by(["plan", "uri", "version"]).aggregate([])
    columns = found.sort_by("plan").select(["plan", "uri", "version"]).columns
    return list(zip(*(column.to_pylist() for column in columns), strict=True))


class Claim(NamedTuple):
    """That a plan claims a source."""

    plan: int
    uri: str
    version: str
    afresh: bool = False
    """Whether earlier rows of the same version are put out of date."""
    whole: bool | None = True
    """Whether it found the whole file there; None where its plan does not count, because it is not done."""


def dead_claims(claims: Iterable[Claim]) -> set[tuple[int, str, str]]:
    """(plan, uri, version) of those, of all claims in the order of their plans, whose rows a later one put out of date.

    Rows of a version belong together from a claim afresh to the next one: a later plan adds those that were gone. Of
    each URI the rows count that belong with the last claim that found the whole file. A version that was gone when it
    was its turn does not put out of date what was scored before; nor does a claim that adds to rows of a plan that does
    not count, and which itself does not count until that one does.
    """
    began: dict[tuple[str, str], int] = {}
    waiting: set[tuple[str, tuple[str, int]]] = set()
    """Rows that belong together, by their URI and where they began, of which a plan that does not count has some."""
    live: dict[str, tuple[tuple[str, int], bool]] = {}
    dead: set[tuple[int, str, str]] = set()
    counted: list[tuple[Claim, tuple[str, int]]] = []
    for claim in claims:
        if claim.afresh or (claim.uri, claim.version) not in began:
            began[claim.uri, claim.version] = claim.plan
        together = claim.version, began[claim.uri, claim.version]
        if claim.whole is None:
            waiting.add((claim.uri, together))
        elif (claim.uri, together) in waiting:
            dead.add(claim[:3])
        else:
            counted.append((claim, together))
            if claim.whole or not live.get(claim.uri, (together, False))[1]:
                live[claim.uri] = together, claim.whole
    return dead | {claim[:3] for claim, together in counted if live[claim.uri][0] != together}
