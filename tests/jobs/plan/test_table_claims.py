"""Of a table, whatever it goes through, readers see the live rows, once, and no image is scored twice."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.ledger import superseded, table_files
from jobs.ledger.table_files import FileStands, Known, Standing, known_files
from jobs.plan import table_claims
from jobs.plan.table_claims import TableClaim, TableRows, Why, table_claim, table_rows
from jobs.tables.state import TableCommit, TableFile, TableState

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@dataclass
class Table:
    """A table in plain Python: its files with the images in them, and which rows are deleted."""

    images: dict[str, list[int]] = field(default_factory=dict)
    """Of every file that ever was."""
    versions: list[dict[str, frozenset[int]]] = field(default_factory=lambda: [{}])
    """Of each version the files, with the rows that are deleted."""
    commits: list[TableCommit] = field(default_factory=list)
    made: int = 0

    @property
    def files(self) -> dict[str, frozenset[int]]:
        return self.versions[-1]

    @property
    def rows(self) -> list[tuple[str, int]]:
        return [(u, at) for u, gone in self.files.items() for at in range(len(self.images[u])) if at not in gone]

    @property
    def live(self) -> list[int]:
        return [self.images[uri][at] for uri, at in self.rows]

    def write(self, images: list[int]) -> str:
        uri = f"/t/{len(self.images)}.parquet"
        self.images[uri] = images
        return uri

    def fresh(self, count: int) -> list[int]:
        self.made += count
        return list(range(self.made - count, self.made))

    def commit(self, files: dict[str, frozenset[int]], *, data_change: bool = True) -> None:
        before = self.files
        changed = frozenset(uri for uri in before.keys() & files.keys() if before[uri] != files[uri])
        self.versions.append(files)
        added, removed = frozenset(files.keys() - before.keys()), frozenset(before.keys() - files.keys())
        self.commits.append(TableCommit(str(len(self.versions) - 1), NOW, added, removed, changed, data_change))

    # What becomes of it; `pick` chooses rows.

    def append(self, pick: list[int]) -> None:
        self.commit({**self.files, self.write(self.fresh(1 + 2 * len(pick))): frozenset()})

    def delete(self, pick: list[int]) -> None:
        """By deletion vectors."""
        files = dict(self.files)
        for uri, at in self._chosen(pick):
            files[uri] |= {at}
        self.commit(files)

    def update(self, pick: list[int]) -> None:
        """Whole files are rewritten, the rows that are chosen with another image."""
        chosen = set(self._chosen(pick))
        touched = {uri for uri, _ in chosen}
        rows = [(uri, at) for uri, at in self.rows if uri in touched]
        images = [self.fresh(1)[0] if row in chosen else self.images[row[0]][row[1]] for row in rows]
        left = {uri: gone for uri, gone in self.files.items() if uri not in touched}
        self.commit({**left, self.write(images): frozenset()} if images else left)

    def overwrite(self, pick: list[int]) -> None:
        """All rows again, in another order, and some new ones."""
        self.commit({self.write([*reversed(self.live), *self.fresh(len(pick))]): frozenset()})

    def compact(self, pick: list[int]) -> None:
        touched = {uri for uri, _ in self._chosen(pick)}
        images = [self.images[uri][at] for uri, at in self.rows if uri in touched][::-1]
        half = len(images) // 2
        files = {uri: gone for uri, gone in self.files.items() if uri not in touched}
        files |= {self.write(part): frozenset() for part in (images[:half], images[half:]) if part}
        self.commit(files, data_change=False)

    def drop(self, pick: list[int]) -> None:
        touched = {uri for uri, _ in self._chosen(pick)}
        self.commit({uri: gone for uri, gone in self.files.items() if uri not in touched})

    def restore(self, pick: list[int]) -> None:
        self.commit(self.versions[sum(pick) % len(self.versions)])

    def nothing(self, pick: list[int]) -> None:
        self.commit(self.files)

    def _chosen(self, pick: list[int]) -> list[tuple[str, int]]:
        return [self.rows[number % len(self.rows)] for number in pick] if self.rows else []


@dataclass
class Scored:
    """What nights have made of a table: what plans say, and the rows that were scored or copied."""

    table: Table
    says: list[dict[str, FileStands]] = field(default_factory=list)
    predictions: set[tuple[str, int]] = field(default_factory=set)
    times: Counter[int] = field(default_factory=Counter)
    """How often an image was scored."""
    seen: int = 0
    """The version that was planned last."""
    lost: set[tuple[str, int]] = field(default_factory=set)
    """Rows that were claimed and had no prediction, as their file was gone."""
    told: TableRows = field(default_factory=TableRows)
    """Of the last night."""

    @property
    def known(self) -> dict[str, Known]:
        return known_files(self.says)

    def state(self, history: bool, counted: bool = True) -> TableState:
        files = [
            TableFile(uri, 100, len(self.table.images[uri]) if counted else None, np.array(sorted(gone), np.int64))
            for uri, gone in sorted(self.table.files.items())
        ]
        commits = self.table.commits[self.seen :] if history else None
        version = str(len(self.table.versions) - 1)
        return TableState(version=version, at=NOW, files=files, schema=pa.schema([]), commits=commits)

    def night(self, *, history: bool = True, counted: bool = True, going: Sequence[int] = ()) -> TableClaim:
        """Of the rows that are claimed those with these numbers are gone when it is their turn."""
        known = self.known
        claim = table_claim(self.state(history, counted), known, {uri for uri, _ in self.lost})
        images = self.table.images
        rows = {file.uri: without_these(len(images[file.uri]), file.deleted) for file in claim.new}
        self.told = told = table_rows(claim, known, {uri: len(at) for uri, at in rows.items()})
        before = sum(file.now.live_rows for file in known.values() if file.now.predicted)
        assert told.live == len(self.table.live)
        assert told.live == before - told.deleted - told.replaced + told.returned + sum(told.claimed.values())
        again = self.lost & {*self.table.rows}
        if not claim.says and not again:
            return claim
        copies = {images[uri][at] for uri, at in self.predictions if uri in claim.outdated}
        seen = Counter(images[uri][at] for uri, at in self.visible())
        rows |= {uri: at.tolist() for uri, at in claim.back.items()}
        every = [*((uri, at) for uri, claimed in rows.items() for at in claimed), *sorted(again)]
        left = {row for number, row in enumerate(every) if number in going}
        self.lost = (self.lost - again) | left
        for uri, at in (row for row in every if row not in left):
            assert (uri, at) not in self.predictions, "a row is claimed twice"
            image = images[uri][at]
            if image not in copies:
                # Readers saw a prediction of it before this night: then there is no reason to score it again.
                assert not seen[image], f"{image} is scored again"
                self.times[image] += 1
            self.predictions.add((uri, at))
        new = {file.uri for file in claim.new}
        groups = {uri: (len(images[uri]),) if uri in new else now.group_rows for uri, now in claim.says.items()}
        self.says.append({uri: replace(now, group_rows=groups[uri]) for uri, now in claim.says.items()})
        self.seen = len(self.table.commits)
        return claim

    def visible(self) -> list[tuple[str, int]]:
        plans = [SimpleNamespace(number=1, table=SimpleNamespace(files=says), claimed=()) for says in self.says]
        if plans:  # as if the last one had claimed everything
            plans[-1].claimed = {(uri, "") for uri, _ in self.predictions}
        dead: Any = superseded.of_tables(plans)  # type: ignore[arg-type]
        return [(uri, at) for uri, at in sorted(self.predictions) if not dead.hides(1, uri, "", 0, at)]

    def check(self) -> None:
        assert Counter(self.table.images[uri][at] for uri, at in self.visible()) == Counter(self.table.live)


def without_these(rows: int, deleted: Any) -> list[int]:
    return [at for at in range(rows) if at not in deleted]


ROWS = st.lists(st.integers(0, 50), min_size=1, max_size=4)
STEPS = [
    *("append", "delete", "update", "overwrite", "drop", "restore", "nothing", "late"),
    *("compact", "night") * 3,
    *("gone",) * 2,
]


@settings(max_examples=500, deadline=None)
@example([("night", [0]), ("compact", [0]), ("delete", [0]), ("compact", [0])], False)
@example([("night", [0]), ("compact", [0]), ("night", [0]), ("delete", [0]), ("late", [0])], False)
@example([("night", [0]), ("delete", [0]), ("night", [0]), ("restore", [1])], True)
@example([("gone", [0]), ("compact", [0])], False)
@example([("append", [0]), ("compact", [0]), ("gone", [0]), ("compact", [0]), ("night", [0])], False)
@example([("gone", [0]), ("compact", [0]), ("gone", [0]), ("delete", [0]), ("restore", [1])], True)
@given(st.lists(st.tuples(st.sampled_from(STEPS), ROWS), max_size=25), st.booleans())
def test_readers_see_the_live_rows_once_whatever_the_table_goes_through(steps: list[Any], counted: bool) -> None:
    gone_through(steps, counted)


def gone_through(steps: list[Any], counted: bool) -> None:
    table = Table()
    scored = Scored(table)
    for step, pick in [("append", [1, 2, 3, 4]), *steps]:
        if step == "gone":  # some of what this night claims is not there when it is its turn
            scored.night(counted=counted, going=pick)
        elif step in ("night", "late"):  # late: the history does not go back to the night before
            scored.night(history=step == "night", counted=counted)
            scored.check()
        else:
            getattr(table, step)(pick)
    scored.night(counted=counted)
    scored.check()
    assert not scored.night().says, "a night after which nothing happened has nothing to do"
    assert set(table.live) <= scored.times.keys()


MISTAKES = {
    "a rewrite counts as a compaction": (table_claims, "not commit.data_change and ", ""),
    "rows without predictions are carried": (table_claims, " and commit.removed <= theirs", ""),
    "a file that was touched is carried": (table_claims, "commit.removed | commit.changed", "commit.removed"),
    "a group that was touched is carried": (table_claims, "group.whole = False", "pass"),
    "a group of which the table has a part": (table_claims, "group.carried <= files.keys() and ", ""),
    "a group whose first files are back": (table_claims, " and group.kept.isdisjoint(files)", ""),
    "rows deleted from carried files": (table_claims, "return same and", "return"),
    "a copy of more rows is carried": (table_claims, "sum(counts) == kept", "True"),
    "rows that were gone are carried": (table_claims, "group.kept.isdisjoint(gone) and ", ""),
    "rows that stay deleted are claimed": (table_claims, "without(before.unscored, file.deleted)", "before.unscored"),
    "rows that are back are not claimed": (table_claims, "back[uri] = rows", "pass"),
    "a file that is no more stays": (table_claims, "standing=Standing.OUT, deleted", "standing=Standing.LIVE, deleted"),
    "what is out of date is not told": (table_claims, "frozenset(outdated), why", "frozenset(), why"),
    "what was scored once is forgotten": (table_files, "if unscored is None", "if True"),
    "files that are out have predictions": (table_files, "in (Standing.LIVE, Standing.KEPT)", "in tuple(Standing)"),
    "kept files count as gone": (table_files, "in (Standing.LIVE, Standing.KEPT)", "is Standing.LIVE"),
    "superseded rows are seen": (superseded, "if uri not in there", "if False"),
    "deleted rows are seen": (superseded, "now in there.items() if len(now.deleted)", "now in there.items() if False"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_any_of_the_rules_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, right, wrong = MISTAKES[name]
    source = Path(module.__file__ or "").read_text()
    assert source.count(right) == 1, f"{module.__name__} does not say {right} any more"
    mistaken = dict(vars(module))
    exec(compile(source.replace(right, wrong), module.__file__ or "", "exec"), mistaken)
    for other in (sys.modules[__name__], table_claims, table_files, superseded):
        for called in ("table_claim", "known_files", "of_tables"):
            if called in vars(other) and vars(other)[called].__module__ == module.__name__:
                monkeypatch.setattr(other, called, mistaken[called])
    if module is table_files:
        monkeypatch.setattr(FileStands, "predicted", mistaken["FileStands"].predicted)
    with pytest.raises((AssertionError, KeyError)):
        everything()


def everything() -> None:
    """The same as above, at random, and what no table goes through by itself."""
    test_a_copy_that_holds_another_number_of_rows_is_none()
    test_a_file_that_comes_back_beside_its_copy_is_scored_twice_as_the_table_has_it_twice()
    chance = random.Random(0)
    for _ in range(2000):
        picks = [[chance.randrange(50) for _ in range(chance.randrange(1, 5))] for _ in range(chance.randrange(3, 20))]
        gone_through([(chance.choice(STEPS), pick) for pick in picks], chance.random() < 0.5)


def a_night_after(*steps: tuple[str, list[int]]) -> tuple[Scored, TableClaim]:
    scored = Scored(Table())
    scored.table.append([0])
    scored.table.append([0])
    scored.night()
    for step, pick in steps:
        if step == "night":
            scored.night()
        else:
            getattr(scored.table, step)(pick)
    return scored, scored.night()


def told(live: int, claimed: dict[Why, int] | None = None, **rows: int) -> TableRows:
    return TableRows(live=live, claimed=claimed or {}, **rows)


@pytest.mark.parametrize(
    ("steps", "new", "scored_again", "stand", "told"),
    [
        ([("append", [])], 1, 1, {Standing.LIVE: 1}, told(7, {Why.ADDED: 1})),
        ([("nothing", [])], 0, 0, {}, told(6)),
        ([("delete", [1])], 0, 0, {Standing.LIVE: 1}, told(5, deleted=1)),
        ([("compact", [0, 4])], 0, 0, {Standing.KEPT: 2, Standing.CARRIED: 2}, told(6, carried=6)),
        ([("drop", [0])], 0, 0, {Standing.OUT: 1}, told(3, replaced=3)),
        ([("update", [1])], 1, 1, {Standing.LIVE: 1, Standing.OUT: 1}, told(6, {Why.REWRITTEN: 3}, replaced=3)),
        ([("overwrite", [])], 1, 0, {Standing.LIVE: 1, Standing.OUT: 2}, told(6, {Why.REWRITTEN: 6}, replaced=6)),
        ([("drop", [0]), ("restore", [2])], 0, 0, {}, told(6)),
        ([("append", []), ("compact", [0, 6])], 2, 1, {Standing.LIVE: 2, Standing.OUT: 1},
         told(7, {Why.COMPACTED: 4}, replaced=3)),
        ([("compact", [0, 4]), ("delete", [1])], 2, 0, {Standing.LIVE: 2, Standing.OUT: 2},
         told(5, {Why.COMPACTED: 5}, replaced=6)),
        ([("compact", [0, 4]), ("night", []), ("delete", [1])], 2, 0, {Standing.LIVE: 2, Standing.OUT: 2},
         told(5, {Why.TOUCHED: 5}, replaced=6)),
        ([("delete", [1]), ("night", []), ("restore", [2])], 0, 0, {Standing.LIVE: 1}, told(6, returned=1)),
    ],
)  # fmt: skip
def test_what_a_night_claims_after_a_commit(
    steps: list[Any], new: int, scored_again: int, stand: dict[Standing, int], told: TableRows
) -> None:
    scored, claim = a_night_after(*steps)
    assert (len(claim.new), sum(scored.times.values()) - 6) == (new, scored_again)
    assert Counter(now.standing for now in claim.says.values()) == stand
    assert scored.told == told
    scored.check()


def test_a_copy_that_holds_another_number_of_rows_is_none() -> None:
    scored = Scored(Table())
    scored.table.append([0])
    scored.night()
    scored.table.commit({scored.table.write([0, 1, 2, 3, 77]): frozenset()}, data_change=False)
    assert len(scored.night().new) == 1
    scored.check()


def test_a_file_that_comes_back_beside_its_copy_is_scored_twice_as_the_table_has_it_twice() -> None:
    scored = Scored(Table())
    scored.table.append([0])
    scored.night()
    before = scored.table.files
    scored.table.compact([0])
    scored.night()
    scored.table.commit({**before, **scored.table.files})
    claim = table_claim(scored.state(history=True), scored.known)
    assert {file.uri for file in claim.new} == scored.table.files.keys() - before.keys()
    assert all(claim.says[uri].standing is Standing.LIVE for uri in before)


def test_a_night_says_why_it_reads_rows_that_had_predictions() -> None:
    scored = Scored(Table())
    scored.table.append([0])
    scored.table.delete([0])
    scored.night()
    scored.table.restore([1])  # the row that was deleted before the first night
    scored.night()
    assert scored.told == told(3, {Why.BACK: 1})
    scored.table.overwrite([])
    scored.night(history=False)
    assert scored.told == told(3, {Why.UNTOLD: 3}, replaced=3)
    assert scored.told.copied == 3
    scored.table.compact([0])
    scored.night()
    scored.lost = {next(iter(scored.predictions & {(uri, 0) for uri, at in scored.visible() if at == 0}))}
    scored.predictions -= scored.lost
    scored.night()
    assert scored.told == told(3, {Why.TOUCHED: 3}, replaced=3)
    scored.check()
