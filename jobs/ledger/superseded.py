"""Which rows later plans put out of date: for readers, `verify` and the budget of bad rows alike. Pure functions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.ledger.plans import Plan, claims_of
from jobs.ledger.table_files import FileStands, known_files
from workers.contract import Slice

SOURCE_COLUMNS = ("source_uri", "source_version")
_Rows = TypeVar("_Rows", pa.RecordBatch, pa.Table)


@dataclass(frozen=True)
class OutOfDate:
    """Rows that readers do not see, although their plan is done."""

    claims: frozenset[tuple[int, str, str]] = frozenset()
    """(plan, source_uri, source_version) of files none of whose rows they see of that plan."""
    deleted: Mapping[str, FileStands] = field(default_factory=dict)
    """By source_uri, files of a table some of whose rows are deleted."""

    def __bool__(self) -> bool:
        return bool(self.claims or self.deleted)

    @cached_property
    def _of_plan(self) -> Mapping[int, pa.Array]:
        of_plan = defaultdict[int, list[str]](list)
        for plan, *identity in self.claims:
            of_plan[plan].append("\0".join(identity))
        return {plan: pa.array(identities, pa.string()) for plan, identities in of_plan.items()}

    @cached_property
    def _uris(self) -> pa.Array:
        return pa.array(self.deleted, pa.string())

    def of_plan(self, plan: int) -> set[tuple[str, str]]:
        """(uri, version) of files none of whose rows readers see of the plan."""
        return {claim[1:] for claim in self.claims if claim[0] == plan}

    def seen(self, plan: int, rows: _Rows) -> _Rows:
        """Of rows of one plan, with SOURCE_COLUMNS, `row_group` and `row`, those that readers see."""
        if (dead := self._of_plan.get(plan)) is not None:
            identity = pc.binary_join_element_wise(*(rows.column(name) for name in SOURCE_COLUMNS), "\0")
            rows = rows.filter(pc.invert(pc.is_in(identity, dead)))
        doubtful = pc.index_in(rows.column("source_uri"), value_set=self._uris) if self.deleted else None
        if doubtful is None or doubtful.null_count == len(doubtful):
            return rows
        stands: list[FileStands] = list(self.deleted.values())
        which = pc.fill_null(doubtful, -1).to_numpy(zero_copy_only=False)
        group, row = (np.asarray(rows.column(name)) for name in ("row_group", "row"))
        live = np.ones(len(which), np.bool_)
        number: int
        for number in np.unique(which[which >= 0]).tolist():
            here = which == number
            begins = np.cumsum([0, *stands[number].group_rows])
            live[here] = ~np.isin(begins[group[here]] + row[here], stands[number].deleted)
        return rows.filter(pa.array(live))

    def live_rows(self, piece: Slice) -> int:
        """Of a slice, rows that are not deleted from the table."""
        if (file := self.deleted.get(piece.uri)) is None:
            return piece.rows
        ends = sum(file.group_rows[: piece.row_group]) + np.array([piece.row_start, piece.row_stop])
        return piece.rows - int(np.diff(np.searchsorted(file.deleted, ends))[0])

    def hides(self, plan: int, uri: str, version: str, row_group: int, row: int) -> bool:
        """Whether readers do not see a plan's prediction of this row."""
        file = self.deleted.get(uri)
        deleted = file is not None and sum(file.group_rows[:row_group]) + row in file.deleted
        return deleted or (plan, uri, version) in self.claims


def counted_plans(plans: Sequence[Plan], done: Collection[int]) -> list[Plan]:
    """Those that are done; of a table up to the first that is not, so that readers see the table as it was once."""
    closed: list[Plan] = []
    for plan in plans:
        if plan.number in done:
            closed.append(plan)
        elif plan.table is not None:
            break
    return closed


def of_tables(plans: Sequence[Plan]) -> OutOfDate:
    """What these plans, all of which count, say of a table's files."""
    known = known_files(plan.table.files for plan in plans if plan.table is not None)
    there = {uri: file.now for uri, file in known.items() if file.now.predicted}
    claims = (
        (plan.number, uri, version)
        for plan in plans
        if plan.table is not None
        for uri, version in plan.claimed
        if uri not in there
    )
    return OutOfDate(frozenset(claims), {uri: now for uri, now in there.items() if len(now.deleted)})


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


def less_rows(some: Iterable[Slice], others: Iterable[Slice]) -> set[Slice]:
    """Slices less the rows of others. Those of a table are claimed again without rows that were deleted meanwhile."""

    def place(piece: Slice) -> tuple[str, str, int]:
        return piece.uri, piece.version, piece.row_group

    taken = defaultdict[tuple[str, str, int], list[Slice]](list)
    for piece in sorted(others, key=lambda one: one.row_start):
        taken[place(piece)].append(piece)
    left = set[Slice]()
    for piece in some:
        for one in taken.get(place(piece), ()):
            if piece.row_start < one.row_stop and one.row_start < piece.row_stop:
                if piece.row_start < one.row_start:
                    left.add(replace(piece, row_stop=one.row_start))
                piece = replace(piece, row_start=one.row_stop)
        if piece.rows > 0:
            left.add(piece)
    return left
