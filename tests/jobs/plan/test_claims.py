"""What is claimed, by the history of each file; and that readers see each file's rows once, in its present version."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.ledger.plans import Source
from jobs.ledger.superseded import Claim, dead_claims
from jobs.plan.claims import NextClaim, next_claim
from workers.contract import Slice


@dataclass
class Night:
    """What next_claim asks of a plan."""

    claimed: set[tuple[str, str]]
    number: int = 0
    afresh: set[tuple[str, str]] = field(default_factory=set)

    @property
    def sources(self) -> pa.Table:
        rows = [{"uri": uri, "version": version} for uri, version in sorted(self.claimed)]
        return pa.Table.from_pylist(rows, pa.schema([("uri", pa.string()), ("version", pa.string())]))


def source(uri: str, version: str = "v1") -> Source:
    return Source(uri, 10, version)


def rows(uri: str, version: str = "v1", start: int = 0) -> Slice:
    return Slice(uri=uri, size=10, version=version, row_group=0, row_start=start, row_stop=start + 5)


def test_a_file_that_no_plan_knows_is_new() -> None:
    now = next_claim([source("a"), source("b")], [Night({("a", "v1")})], (), rescore=False)
    assert now == NextClaim(new=(source("b"),))


def test_a_changed_file_keeps_its_predictions_and_is_named() -> None:
    now = next_claim([source("a", "v2")], [Night({("a", "v1")})], (), rescore=False)
    assert now == NextClaim(kept=(source("a", "v2"),))


def test_a_changed_file_is_claimed_in_place_of_the_version_before_it() -> None:
    plans = [Night({("a", "v1")}), Night({("a", "v2")})]
    now = next_claim([source("a", "v3")], plans, (), rescore=True)
    assert now == NextClaim(new=(source("a", "v3"),), supersedes={"a": "v2"})


def test_a_file_that_changed_before_its_turn_is_claimed_whatever_the_spec_says() -> None:
    now = next_claim([source("a", "v2")], [Night({("a", "v1")})], [rows("a")], rescore=False)
    assert now == NextClaim(new=(source("a", "v2"),), supersedes={"a": "v1"})


def test_a_bad_file_of_an_open_plan_that_was_replaced_is_claimed_whatever_the_spec_says() -> None:
    now = next_claim([source("a", "v2")], [Night({("a", "v1")})], (), {("a", "v1")}, rescore=False)
    assert now == NextClaim(new=(source("a", "v2"),), supersedes={"a": "v1"})


def test_a_file_that_was_gone_and_came_back_is_claimed_for_the_rows_that_are_missing() -> None:
    holes = [rows("a", start=5), rows("a", start=0), rows("b")]
    now = next_claim([source("a")], [Night({("a", "v1"), ("b", "v1")})], holes, rescore=False)
    assert now == NextClaim(again={source("a"): (rows("a", start=0), rows("a", start=5))})


def test_a_file_put_back_as_it_once_was_counts_again_without_being_scored_again() -> None:
    plans = [Night({("a", "v1")}), Night({("a", "v2")})]
    now = next_claim([source("a", "v1")], plans, (), rescore=True)
    assert now == NextClaim(again={source("a", "v1"): ()}, supersedes={"a": "v2"})


def test_a_file_that_is_asked_for_is_claimed_afresh_whatever_it_is_now() -> None:
    plans = [Night({("a", "v1")}), Night({("a", "v2"), ("b", "v1")})]
    for now, supersedes in (("v2", "v2"), ("v3", "v2"), ("v1", "v1")):  # as it is, changed, put back
        found = next_claim([source("a", now), source("b")], plans, [rows("a", now)], rescore=False, asked=["a"])
        assert found == NextClaim(new=(source("a", now),), supersedes={"a": supersedes})


@dataclass
class World:
    """Claims, predictions and readers, in a few lines: the reference for the property below."""

    plans: list[Night] = field(default_factory=list)
    scored: list[tuple[int, tuple[str, str]]] = field(default_factory=list)
    """Rows by plan."""
    lost: set[Slice] = field(default_factory=set)
    gaps: set[tuple[int, str]] = field(default_factory=set)
    """Plan and URI where rows were gone."""

    def night(
        self, files: Mapping[str, str], gone: set[str], rescore: bool, asked: Collection[str] = frozenset()
    ) -> None:
        """Claim and score; files in `gone` vanish between claim and turn, those `asked` for are scored again."""
        sources = [source(uri, version) for uri, version in files.items()]
        now = next_claim(sources, self.plans, self.lost, rescore=rescore, asked=asked)
        if not now.new and not now.again:
            return
        afresh = {s.identity for s in now.new if now.supersedes.get(s.uri) == s.version}
        self.lost = {piece for piece in self.lost if (piece.uri, piece.version) not in afresh}
        self.plans.append(Night({s.identity for s in (*now.new, *now.again)}, afresh=afresh))
        for s in now.new:
            self._turn(rows(s.uri, s.version), gone)
        for slices in now.again.values():
            for piece in slices:
                self.lost.discard(piece)
                self._turn(piece, gone)

    def _turn(self, piece: Slice, gone: set[str]) -> None:
        if piece.uri in gone:
            self.lost.add(piece)
            self.gaps.add((len(self.plans), piece.uri))
        else:
            self.scored.append((len(self.plans), (piece.uri, piece.version)))

    def read(self, unfinished: Collection[int] = ()) -> list[tuple[str, str]]:
        dead = dead_claims(
            Claim(
                number, *identity, identity in plan.afresh,
                None if number in unfinished else (number, identity[0]) not in self.gaps,
            )
            for number, plan in enumerate(self.plans, 1)
            for identity in plan.claimed
        )  # fmt: skip
        return [rows for number, rows in self.scored if number not in unfinished and (number, *rows) not in dead]


URIS = ("a", "b", "c")
NIGHTS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(URIS), st.sampled_from(("v1", "v2", "v3"))),
        st.sets(st.sampled_from(URIS), max_size=1),
        st.sets(st.sampled_from(URIS), max_size=1),
    ),
    max_size=8,
)
"""Files with their versions, what of them vanishes before its turn, and what is asked for again."""
OF_ONE_FILE = st.lists(
    st.tuples(
        st.sampled_from(({"a": "v1"}, {"a": "v2"})), st.sampled_from((set(), {"a"})), st.sampled_from((set(), {"a"}))
    ),
    max_size=6,
)


@given(NIGHTS)
def test_after_a_quiet_night_readers_see_every_file_once_in_its_present_version(
    nights: list[tuple[dict[str, str], set[str], set[str]]],
) -> None:
    """Whatever was added, overwritten, deleted, put back or lost on the way."""
    world = World()
    for files, gone, asked in nights:
        world.night(files, gone, rescore=True, asked=asked)
    last = nights[-1][0] if nights else {}
    world.night(last, set(), rescore=True)
    seen = world.read()
    assert len(seen) == len(set(seen))
    assert {(uri, version) for uri, version in seen if uri in last} == set(last.items())
    assert world.lost == {piece for piece in world.lost if last.get(piece.uri) != piece.version}
    world.night(last, set(), rescore=True)
    assert world.read() == seen  # and then there is nothing left to do


@given(NIGHTS)
def test_a_file_that_was_scored_once_is_never_without_predictions(
    nights: list[tuple[dict[str, str], set[str], set[str]]],
) -> None:
    world = World()
    scored: set[str] = set()
    for files, gone, asked in nights:
        world.night(files, gone, rescore=True, asked=asked)
        scored |= {uri for _, (uri, _) in world.scored}
        assert {uri for uri, _ in world.read()} == scored


@settings(max_examples=500)
@given(OF_ONE_FILE, st.sets(st.integers(1, 6), max_size=3))
def test_whatever_plans_are_unfinished_readers_see_a_file_in_one_version_no_row_twice_and_no_file_vanish(
    nights: list[tuple[dict[str, str], set[str], set[str]]], unfinished: set[int]
) -> None:
    """And whatever plans come later, a file that they have seen is never without rows."""
    world = World()
    before = set[str]()
    for files, gone, asked in nights:
        world.night(files, gone, rescore=True, asked=asked)
        seen = [uri for uri, _ in world.read(unfinished)]
        assert len(set(seen)) == len(seen)
        assert before <= set(seen)
        before = set(seen)


@given(NIGHTS)
def test_without_rescoring_every_file_keeps_the_first_version_that_was_scored(
    nights: list[tuple[dict[str, str], set[str], set[str]]],
) -> None:
    world = World()
    for files, gone, _ in nights:
        world.night(files, gone, rescore=False)
    last = nights[-1][0] if nights else {}
    world.night(last, set(), rescore=False)
    seen = [uri for uri, _ in world.read()]
    assert len(seen) == len(set(seen))
    assert set(seen) >= set(last)
