"""What of the input is still to be claimed, and whether plans cover it: pure functions of the listing and of the plans.

A source is claimed once in each version. The version of a URI that counts is the one claimed last; a claim that
replaces another version names it as superseded, and strict readers drop the rows of that version.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.ledger.plans import Plan, Source, claims_of, identities, latest_versions
from jobs.ledger.superseded import OutOfDate, less_rows
from jobs.progress.format import first_few
from workers.contract import Slice
from workers.counted import counted


@dataclass(frozen=True)
class NextClaim:
    """What the next plan is to claim."""

    new: tuple[Source, ...] = ()
    """Sources in a version that no plan claims: to be cut into shards."""
    again: Mapping[Source, tuple[Slice, ...]] = field(default_factory=dict)
    """Sources in a version that was claimed before, each with the rows that were gone when they were to be scored."""
    supersedes: Mapping[str, str] = field(default_factory=dict)
    """By URI, the version whose rows are out of date once the plan is done; its own where it is claimed afresh."""
    kept: tuple[Source, ...] = ()
    """Changed sources that are left as they were scored, because the spec says so."""

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Of what is claimed again."""
        return tuple(chain.from_iterable(self.again.values()))


def next_claim(
    sources: Sequence[Source],
    plans: Sequence[Plan],
    lost: Collection[Slice],
    failed: Collection[tuple[str, str]] = (),
    *,
    rescore: bool,
    asked: Collection[str] = (),
) -> NextClaim:
    """What to claim of `sources`, each URI of which is listed once.

    `lost` are the slices without rows, because their source was gone when they were to be scored. A changed source
    whose former version has lost rows is claimed whatever the spec says: it would have no predictions otherwise. So is
    one whose former version has bad rows in an open plan, as `failed` has it by (uri, version): it has been replaced,
    and nobody has seen what was said of it. `asked` are URIs that a person wants scored again, changed or not.
    """
    if not plans:
        return NextClaim(tuple(sources))
    holes = defaultdict[tuple[str, str], list[Slice]](list)
    for piece in sorted(lost, key=lambda s: (s.uri, s.row_group, s.row_start)):
        holes[piece.uri, piece.version].append(piece)
    new: list[Source] = []
    again: dict[Source, tuple[Slice, ...]] = {}
    supersedes: dict[str, str] = {}
    kept: list[Source] = []
    latest_first = claims_of(reversed(plans))
    open_ones = list(_besides_claimed(latest_first, sources, {*asked, *(uri for uri, _ in holes)}))
    changed = [source.uri for source, before in open_ones if before not in (None, source.version)]
    former = set(identities(latest_first.filter(pc.is_in(latest_first["uri"], pa.array(changed, pa.string())))))
    for source, before in open_ones:
        if before is None:
            new.append(source)
        elif source.uri in asked:
            new.append(source)
            claimed_so = before == source.version or source.identity in former
            supersedes[source.uri] = source.version if claimed_so else before
        elif before == source.version:
            if source.identity in holes:
                again[source] = tuple(holes[source.identity])
        elif rescore or (source.uri, before) in holes or (source.uri, before) in failed:
            supersedes[source.uri] = before
            if source.identity in former:  # put back as it once was: its rows are there, but for holes
                again[source] = tuple(holes.get(source.identity, ()))
            else:
                new.append(source)
        else:
            kept.append(source)
    return NextClaim(tuple(new), again, supersedes, tuple(kept))


def _besides_claimed(
    latest_first: pa.Table, sources: Sequence[Source], also: Collection[str]
) -> Iterator[tuple[Source, str | None]]:
    """Each with the version claimed last, if any; but not those claimed as they are, unless `also` has the URI.

    In columns, because of a year of nights nearly all are claimed as they are listed.
    """
    uris = pa.array([source.uri for source in sources], pa.string())
    # Of several places with the URI this is the first, so the version that was claimed last.
    place = pc.index_in(uris, value_set=latest_first["uri"])
    before = latest_first["version"].take(place).combine_chunks()
    as_it_is = pc.fill_null(pc.equal(before, pa.array([source.version for source in sources], pa.string())), False)
    named = pc.is_in(uris, value_set=pa.array(also, pa.string()))
    chosen = pc.indices_nonzero(pc.or_(pc.invert(as_it_is), named))
    for index, version in zip(chosen.to_pylist(), before.take(chosen).to_pylist(), strict=True):
        yield sources[index], version


def unclaimed(plans: Sequence[Plan], sources: Sequence[Source]) -> list[Source]:
    """Sources that no plan claims in any version."""
    latest = {*latest_versions(plans), *(uri for plan in plans if plan.table for uri in plan.table.files)}
    return [source for source in sources if source.uri not in latest]


def rows_claimed(plans: Sequence[Plan], uris: Collection[str]) -> int:
    """Rows of these files as plans claim them; of one that several claim, those of the version claimed last, once."""
    wanted, rows, last = pa.array(uris, pa.string()), dict[tuple[str, str], int](), dict[str, tuple[str, str]]()
    for plan in plans:
        here = pc.indices_nonzero(pc.is_in(plan.sources["uri"], value_set=wanted)).to_pylist()
        if here:
            pieces = plan.slices.pieces
            lengths = pieces["row_stop"] - pieces["row_start"]
            of_source = np.bincount(pieces["source"], lengths, len(plan.sources))
            for index, identity in zip(here, identities(plan.sources.take(here)), strict=True):
                last[identity[0]] = identity
                rows[identity] = max(rows.get(identity, 0), int(of_source[index]))
    return sum(rows[identity] for identity in last.values())


def changed(plans: Sequence[Plan], sources: Sequence[Source]) -> list[Source]:
    """Sources with another content than the one claimed last."""
    latest = latest_versions(plans)
    return [source for source in sources if latest.get(source.uri, source.version) != source.version]


def notes(
    plans: Sequence[Plan], sources: Sequence[Source], gone: Collection[tuple[int, Slice]] = (), *, rescore: bool
) -> Iterator[str]:
    """How the input differs from what was scored, where that is as it should be: with `rescore` no content may. `gone`
    as in `faults`."""
    if others := [] if rescore else changed(plans, sources):
        yield (
            f"{counted(len(others), 'source')} with another content than the one scored, as {others[0].uri}; "
            "with input.on_change: rescore a run scores them again"
        )
    past, gaps = latest_versions(plans).keys() - {source.uri for source in sources}, set(gone)
    without = past & {piece.uri for _, piece in gaps}
    every = {claim for plan in plans for claim in plan.claimed if claim[0] in without} if without else set()
    for plan in plans if without else ():
        pieces = (piece for shard in plan.shards_reading(every) for piece in shard.slices)
        without -= {piece.uri for piece in pieces if (plan.number, piece) not in gaps}
    if kept := len(past - without):
        yield f"{counted(kept, 'claimed source')} not in the input now; the predictions stay"
    if without:
        names = ", ".join(first_few(sorted(without), "of them"))
        yield f"{counted(len(without), 'claimed source')} gone when it was their turn, without any prediction: {names}"


def faults(
    plans: Sequence[Plan], gone: Collection[tuple[int, Slice]], sources: Sequence[Source], dead: OutOfDate
) -> dict[str, list[str]]:
    """Rows scored twice, and rows of files that are there now and were not when they were to be scored, by their kind.

    `gone` are the slices that objects list as gone, each with its plan. Rows that are `dead` need no prediction.
    """
    latest = latest_versions(plans)
    here = {source.uri: source.version for source in sources}
    gaps = set(gone)
    # A plan's own slices never overlap: `verify` compares each row with its place.
    times = claims_of(plans).group_by(["uri", "version"]).aggregate([("plan", "count_distinct")])
    several = set(identities(times.filter(pc.greater(times["plan_count_distinct"], 1))))
    doubtful = several | {(piece.uri, piece.version) for _, piece in gaps}
    claimed = defaultdict[tuple[str, str], list[list[tuple[int, Slice]]]](list)
    """The slices that belong together, with their plans: those since a claim afresh."""
    found = defaultdict[str, list[str]](list)
    for plan in plans:
        of_plan = defaultdict[tuple[str, str], list[tuple[int, Slice]]](list)
        for shard in plan.shards_reading(doubtful):
            for piece in shard.slices:
                if (identity := (piece.uri, piece.version)) in doubtful:
                    of_plan[identity].append((plan.number, piece))
        for identity, slices in of_plan.items():
            if identity in plan.afresh or not claimed[identity]:
                claimed[identity].append([])
            claimed[identity][-1] += slices
    for identity, rounds in claimed.items():
        name = f"{identity[0]} (version {identity[1]})"
        for slices in rounds:
            scored = [claim for claim in slices if claim not in gaps]
            scored.sort(key=lambda claim: (claim[1].row_group, claim[1].row_start))
            for (number, piece), (other, following) in pairwise(scored):
                if piece.row_group == following.row_group and following.row_start < piece.row_stop:
                    found["places with rows that are scored twice"].append(
                        f"{name}: row group {piece.row_group} row {following.row_start} is scored by plans "
                        f"{number} and {other}"
                    )
        left = less_rows((piece for _, piece in slices), [piece for _, piece in scored])
        rows = sum(map(dead.live_rows, left))
        if rows and identity[0] in here and latest[identity[0]] == identity[1]:
            found["sources with rows that are yet to be scored"].append(
                f"{name}: {counted(rows, 'row')} gone when it was their turn, and the file is there in version "
                f"{here[identity[0]]}: run the job again to score it"
            )
    return found
