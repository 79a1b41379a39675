"""What of the input is still to be claimed: pure functions of the listing and of what plans claim already.

A source is claimed once in each version. The version of a URI that counts is the one claimed last; a claim that
replaces another version names it as superseded, and strict readers drop the rows of that version.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from jobs.ledger.plans import Claiming, _pairs
from jobs.ledger.slices import Source
from workers.contract import Slice


@dataclass(frozen=True)
class Wanted:
    """What the next plan is to claim."""

    new: tuple[Source, ...] = ()
    """Sources in a version that no plan claims: to be cut into shards."""
    again: Mapping[Source, tuple[Slice, ...]] = field(default_factory=dict)
    """Sources in a version that was claimed before, each with the rows that were not there when it was their turn."""
    supersedes: Mapping[str, str] = field(default_factory=dict)
    """By URI, the version whose rows are out of date once the plan is done."""
    kept: tuple[Source, ...] = ()
    """Changed sources that are left as they were scored, because the spec says so."""


def wanted(sources: Sequence[Source], plans: Sequence[Claiming], lost: Collection[Slice], *, rescore: bool) -> Wanted:
    """What to claim of `sources`, each URI of which is listed once.

    `lost` are the slices without rows, because their source was gone when it was their turn. A changed source whose
    former version has lost rows is claimed whatever the spec says: it would have no predictions otherwise.
    """
    holes: dict[tuple[str, str], list[Slice]] = {}
    for piece in sorted(lost, key=lambda s: (s.uri, s.row_group, s.row_start)):
        holes.setdefault((piece.uri, piece.version), []).append(piece)
    new: list[Source] = []
    again: dict[Source, tuple[Slice, ...]] = {}
    supersedes: dict[str, str] = {}
    kept: list[Source] = []
    claims = _Claims(plans)
    open_ones = list(claims.besides_claimed(sources, {uri for uri, _ in holes}))
    former = claims.of(source.uri for source, before in open_ones if before not in (None, source.version))
    for source, before in open_ones:
        if before is None:
            new.append(source)
        elif before == source.version:
            if source.identity in holes:
                again[source] = tuple(holes[source.identity])
        elif rescore or (source.uri, before) in holes:
            supersedes[source.uri] = before
            if source.identity in former:  # put back as it once was: its rows are there, but for holes
                again[source] = tuple(holes.get(source.identity, ()))
            else:
                new.append(source)
        else:
            kept.append(source)
    return Wanted(tuple(new), again, supersedes, tuple(kept))


class _Claims:
    """Sources of all plans, as columns: of a year of nights nearly all are claimed as they are listed."""

    def __init__(self, plans: Sequence[Claiming]) -> None:
        none = pa.schema([("uri", pa.string()), ("version", pa.string())]).empty_table()
        self._latest_first = pa.concat_tables(
            [none, *(plan.sources.select(["uri", "version"]) for plan in reversed(plans))]
        )

    def besides_claimed(self, sources: Sequence[Source], also: Collection[str]) -> Iterator[tuple[Source, str | None]]:
        """Each with the version claimed last, if any; but not those claimed as they are, unless `also` has the URI."""
        uris = pa.array([source.uri for source in sources], pa.string())
        # Of several places with the URI this is the first, so the version that was claimed last.
        place = pc.index_in(uris, value_set=self._latest_first["uri"])
        before = self._latest_first["version"].take(place).combine_chunks()
        as_it_is = pc.fill_null(pc.equal(before, pa.array([source.version for source in sources], pa.string())), False)
        asked = pc.is_in(uris, value_set=pa.array(also, pa.string()))
        chosen = pc.indices_nonzero(pc.or_(pc.invert(as_it_is), asked))
        for index, version in zip(chosen.to_pylist(), before.take(chosen).to_pylist(), strict=True):
            yield sources[index], version

    def of(self, uris: Iterable[str]) -> set[tuple[str, str]]:
        """Identities of every claim of these URIs."""
        named = pc.is_in(self._latest_first["uri"], value_set=pa.array(uris, pa.string()))
        return set(_pairs(self._latest_first.filter(named)))
