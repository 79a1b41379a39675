"""What of a table is to be scored, and what is out of date: a pure function of its state, its commits and the plans.

A row that is in the table is scored once, wherever the table copies it. Commits that say so (`data_change` false) copy
whole files: these are carried, and nothing of them is read. What else is in new files is claimed, and a worker that
finds an image of which these or those rows had a prediction copies that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from jobs.ledger.table_files import NONE_DELETED, FileStands, Known, Positions, Standing, without
from jobs.tables.state import TableFile, TableState


class Why(StrEnum):
    """Why rows are claimed, for a person."""

    ADDED = "in files that were added"
    BACK = "back after they were deleted"
    REWRITTEN = "in files written in place of others (UPDATE, MERGE, DELETE, overwrite)"
    COMPACTED = "in compacted files, of rows not all of which had predictions"
    TOUCHED = "in compacted files that were changed since, or of rows that were gone"
    UNTOLD = "in files of commits that the table does not tell of any more"


@dataclass(frozen=True)
class TableClaim:
    """What the next plan is to claim of a table, and to say of its files."""

    new: Sequence[TableFile] = ()
    """Files of which all live rows are claimed."""
    back: Mapping[str, Positions] = field(default_factory=dict)
    """By URI, rows to claim of files of which others were claimed: deleted then, live now."""
    says: Mapping[str, FileStands] = field(default_factory=dict)
    """By URI, of every file that stands otherwise than the plans say; of `new` ones without their row groups."""
    outdated: frozenset[str] = frozenset()
    """URIs of files of whose predictions some are put out of date: they may be copied."""
    why: Mapping[str, Why] = field(default_factory=dict)
    """By URI, of `new` files and `back`."""


@dataclass(eq=False)
class _Group:
    """Files whose rows were copied into others, by commits that say so."""

    kept: set[str] = field(default_factory=set)
    carried: set[str] = field(default_factory=set)
    whole: bool = True

    @property
    def name(self) -> str:
        """The same, whoever makes it of the same files."""
        return min(self.carried)


_NOT_KNOWN = Known(FileStands(Standing.OUT), None)


def table_claim(table: TableState, known: Mapping[str, Known], gone: AbstractSet[str] = frozenset()) -> TableClaim:
    """What to claim of the table as it is, where plans have said what is `known` of its files; some of which were
    `gone` when it was their turn, so that they have nothing that could be carried."""
    files = {file.uri: file for file in table.files}
    group_of = {uri: group for group in _groups(table, known, files, gone) for uri in (*group.kept, *group.carried)}
    new: list[TableFile] = []
    back: dict[str, Positions] = {}
    says: dict[str, FileStands] = {}
    for uri, file in files.items():
        before = known.get(uri, _NOT_KNOWN)
        if uri in group_of:
            says[uri] = FileStands(Standing.CARRIED, file.deleted, group_of[uri].name)
            continue
        says[uri] = replace(before.now, standing=Standing.LIVE, deleted=file.deleted, group="")
        if before.unscored is None:
            new.append(file)
        elif len(rows := without(before.unscored, file.deleted)):
            back[uri] = rows
    for uri in known.keys() - files.keys():
        before = known[uri]
        if uri in group_of:
            says[uri] = replace(before.now, standing=Standing.KEPT, group=group_of[uri].name)
        else:
            says[uri] = replace(before.now, standing=Standing.OUT, deleted=NONE_DELETED, group="")
    says = {uri: now for uri, now in says.items() if uri not in known or not _same(known[uri].now, now)}
    outdated = {uri for uri, now in says.items() if uri in known and _fewer(known[uri], now)}
    why = dict.fromkeys(back, Why.BACK) | {file.uri: _why(table, known.get(file.uri), file.uri) for file in new}
    return TableClaim(new, back, says, frozenset(outdated), why)


def _why(table: TableState, before: Known | None, uri: str) -> Why:
    """Of a new file."""
    if before is not None:
        return Why.TOUCHED if before.now.standing is Standing.CARRIED else Why.BACK
    if table.commits is None:
        return Why.UNTOLD
    by = next((commit for commit in reversed(table.commits) if uri in commit.added), None)
    if by is None or not (by.removed or by.changed):
        return Why.ADDED
    return Why.REWRITTEN if by.data_change else Why.COMPACTED


@dataclass(frozen=True, kw_only=True)
class TableRows:
    """How many rows of a table a plan is about."""

    live: int = 0
    """What readers saw before, less `deleted` and `replaced`, with those `returned` and `claimed`."""
    claimed: Mapping[str, int] = field(default_factory=dict)
    carried: int = 0
    """Copied by the table in whole files since the plans before: they are not read."""
    deleted: int = 0
    """From files that stay."""
    replaced: int = 0
    """In files that the table has no more."""
    returned: int = 0
    """Out of sight before, with predictions."""

    @property
    def copied(self) -> int:
        """Claimed rows that are expected to have had a prediction elsewhere: so many, if no image was new."""
        again = sum(rows for why, rows in self.claimed.items() if why != Why.ADDED)
        return min(again, self.deleted + self.replaced)


def table_rows(claim: TableClaim, known: Mapping[str, Known], new: Mapping[str, int]) -> TableRows:
    """What `claim` comes to, with the live rows of `new` files by URI, as far as they can be read."""
    count, claimed = Counter[str](), defaultdict[str, int](int)
    for uri, rows in (*new.items(), *((uri, len(at)) for uri, at in claim.back.items())):
        claimed[str(claim.why[uri])] += rows
    for uri in known.keys() | claim.says.keys():
        before = known[uri].now if uri in known else _NOT_KNOWN.now
        now = claim.says.get(uri, before)
        rows, was = now.live_rows if now.predicted else 0, before.live_rows if before.predicted else 0
        gains = len(without(before.deleted, now.deleted)) if rows and was else rows
        count["deleted" if now.predicted else "replaced"] += was + gains - rows
        count["returned"] += gains
        count["live"] += rows
        count["carried"] += rows if now.standing is Standing.KEPT and uri in claim.says else 0
    count["live"] += sum(new.values())
    count["returned"] -= sum(len(at) for at in claim.back.values())
    return TableRows(claimed=dict(claimed), **count)


def _same(one: FileStands, other: FileStands) -> bool:
    return (one.standing, one.group) == (other.standing, other.group) and np.array_equal(one.deleted, other.deleted)


def _fewer(file: Known, now: FileStands) -> bool:
    """Whether some of its predictions were the table's, and are not any more."""
    if file.unscored is None or file.now.standing is Standing.OUT:
        return False
    return now.standing is Standing.OUT or len(without(now.deleted, file.now.deleted)) > 0


def _groups(
    table: TableState, known: Mapping[str, Known], files: Mapping[str, TableFile], gone: AbstractSet[str]
) -> list[_Group]:
    """Those that plans have said, and what commits have carried since, where the table has the whole group as it is
    known, and nothing of it was gone."""
    by_name = defaultdict[str, _Group](_Group)
    of_carried: dict[str, _Group] = {}
    for uri, file in known.items():
        if file.now.standing is Standing.KEPT:
            by_name[file.now.group].kept.add(uri)
        elif file.now.standing is Standing.CARRIED:
            of_carried[uri] = by_name[file.now.group]
            of_carried[uri].carried.add(uri)
    live = {uri for uri, file in known.items() if file.now.standing is Standing.LIVE}
    for commit in table.commits or ():
        copied = {of_carried[uri] for uri in commit.removed & of_carried.keys()}
        theirs = live.union(*(group.carried for group in copied if group.whole))
        if commit.removed and not commit.data_change and commit.removed <= theirs:
            group = _Group(
                kept=(live & commit.removed).union(*(one.kept for one in copied)),
                carried=set(commit.added).union(*(one.carried for one in copied)) - commit.removed,
            )
            of_carried |= dict.fromkeys(group.carried, group)
        else:
            copied |= {of_carried[uri] for uri in commit.changed & of_carried.keys()}
            for group in copied:
                group.whole = False
        live -= commit.removed | commit.changed
    return [group for group in {*of_carried.values()} if group.kept.isdisjoint(gone) and _is_there(group, known, files)]


def _is_there(group: _Group, known: Mapping[str, Known], files: Mapping[str, TableFile]) -> bool:
    """Whether the table has all its files as they are known, none of those that were copied, and as many rows."""
    if not (group.carried <= files.keys() and group.kept.isdisjoint(files)):
        return False
    carried = [files[uri] for uri in group.carried]
    before = [known[file.uri].now.deleted if file.uri in known else NONE_DELETED for file in carried]
    same = all(np.array_equal(file.deleted, deleted) for file, deleted in zip(carried, before, strict=True))
    kept = sum(known[uri].now.live_rows for uri in group.kept)
    counts = [file.rows - len(file.deleted) for file in carried if file.rows is not None]
    return same and (len(counts) < len(carried) or sum(counts) == kept)
