"""What of a table is to be scored, and what is out of date: a pure function of its state, its commits and the plans.

A row that is in the table is scored once, wherever the table copies it. Commits that say so (`data_change` false) copy
whole files: these are carried, and nothing of them is read. What else is in new files is claimed, and a worker that
finds an image of which these or those rows had a prediction copies that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from jobs.ledger.table_files import NONE_DELETED, FileStands, Known, Positions, Standing, without
from jobs.tables.state import TableFile, TableState


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

    def count(self, standing: Standing) -> int:
        """Files that stand so."""
        return sum(now.standing is standing for now in self.says.values())


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


def table_claim(table: TableState, known: Mapping[str, Known]) -> TableClaim:
    """What to claim of the table as it is, where plans have said what is `known` of its files."""
    files = {file.uri: file for file in table.files}
    group_of = {uri: group for group in _groups(table, known, files) for uri in (*group.kept, *group.carried)}
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
    return TableClaim(new, back, says, frozenset(outdated))


def _same(one: FileStands, other: FileStands) -> bool:
    return (one.standing, one.group) == (other.standing, other.group) and np.array_equal(one.deleted, other.deleted)


def _fewer(file: Known, now: FileStands) -> bool:
    """Whether some of its predictions were the table's, and are not any more."""
    if file.unscored is None or file.now.standing is Standing.OUT:
        return False
    return now.standing is Standing.OUT or len(without(now.deleted, file.now.deleted)) > 0


def _groups(table: TableState, known: Mapping[str, Known], files: Mapping[str, TableFile]) -> list[_Group]:
    """Those that plans have said, and what commits have carried since, where the table has the whole group as it is
    known."""
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
    return [group for group in {*of_carried.values()} if _is_there(group, known, files)]


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
