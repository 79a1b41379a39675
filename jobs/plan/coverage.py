"""Whether plans cover the input: every source has its rows claimed, and no row is scored twice. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

import pyarrow as pa
import pyarrow.compute as pc

from jobs.ledger.plans import Plan, latest_versions
from jobs.ledger.slices import Source
from workers.contract import Slice


def unclaimed(plans: Sequence[Plan], sources: Sequence[Source]) -> list[Source]:
    """Sources that no plan claims in any version."""
    latest = latest_versions(plans)
    return [source for source in sources if source.uri not in latest]


def notes(plans: Sequence[Plan], sources: Sequence[Source]) -> Iterator[str]:
    """How the input differs from what was scored, where that is as it should be."""
    latest = latest_versions(plans)
    changed = [s.uri for s in sources if s.uri in latest and latest[s.uri] != s.version]
    if changed:
        yield (
            f"{len(changed)} source(s) have another content than the one scored, as {changed[0]}; "
            "with input.on_change: rescore a run scores them again"
        )
    if past := len(latest.keys() - {source.uri for source in sources}):
        yield f"{past} claimed source(s) are not in the input now; their predictions stay"


def faults(plans: Sequence[Plan], gone: Collection[Slice], sources: Sequence[Source]) -> Iterator[str]:
    """Rows scored twice, and rows of files that are there now and were gone, or had changed, when it was their turn.

    `gone` are the slices of plans that their objects list as gone.
    """
    latest = latest_versions(plans)
    here = {source.uri: source.version for source in sources}
    gaps: dict[tuple[str, str], list[Slice]] = {}
    for piece in gone:
        gaps.setdefault((piece.uri, piece.version), []).append(piece)
    # A plan's own slices never overlap: `verify` compares each row with its place.
    doubtful = _claimed_again(plans) | gaps.keys()
    claimed: dict[tuple[str, str], list[tuple[int, Slice]]] = {}
    for plan in plans:
        if not doubtful.isdisjoint(plan.claimed):
            for piece in (piece for shard in plan.shards for piece in shard.slices):
                if (identity := (piece.uri, piece.version)) in doubtful:
                    claimed.setdefault(identity, []).append((plan.number, piece))
    for identity, slices in claimed.items():
        name = f"{identity[0]} (version {identity[1]})"
        # The slices of one plan that another claims again carry the same bounds, so a slice counts as gone once.
        scored = list(_less(slices, gaps.get(identity, [])))
        scored.sort(key=lambda claim: (claim[1].row_group, claim[1].row_start))
        for (number, piece), (other, following) in pairwise(scored):
            if piece.row_group == following.row_group and following.row_start < piece.row_stop:
                yield (
                    f"{name}: row group {piece.row_group} row {following.row_start} is scored by plans "
                    f"{number} and {other}"
                )
        rows = sum(piece.rows for piece in {piece for _, piece in slices} - {piece for _, piece in scored})
        if rows and here.get(identity[0]) == identity[1] == latest[identity[0]]:
            yield f"{name}: {rows} rows are back that were gone when it was their turn: run the job again to score them"
        elif rows and identity[0] in here and latest[identity[0]] == identity[1]:
            yield f"{name}: {rows} rows changed before it was their turn: run the job again to score what is there now"


def _claimed_again(plans: Sequence[Plan]) -> set[tuple[str, str]]:
    """(uri, version) of sources that several plans claim."""
    claims = [
        plan.sources.select(["uri", "version"]).append_column("plan", pa.array([plan.number] * len(plan.sources)))
        for plan in plans
    ]
    if not claims:
        return set()
    times = pa.concat_tables(claims).group_by(["uri", "version"]).aggregate([("plan", "count_distinct")])
    several = times.filter(pc.greater(times["plan_count_distinct"], 1))
    return set(zip(several["uri"].to_pylist(), several["version"].to_pylist(), strict=True))


def _less(slices: Sequence[tuple[int, Slice]], gone: Sequence[Slice]) -> Iterator[tuple[int, Slice]]:
    left = Counter(gone)
    for number, piece in slices:
        if left[piece]:
            left[piece] -= 1
        else:
            yield number, piece
