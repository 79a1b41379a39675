"""Iceberg: live rows only, under present names, and what became of a table since another snapshot."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.tables.iceberg import read_state
from jobs.tables.state import TableState
from tests.jobs.tables.iceberg_tables import IcebergMaker, live_rows

ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.none() | st.binary(max_size=3), st.none() | st.integers(-3, 3)),
    min_size=1,
    max_size=4,
    unique_by=lambda row: row[0],
)
IDS = st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["append", "update", "upsert", "overwrite", "flink_upsert"]), ROWS),
    st.tuples(st.sampled_from(["delete", "delete_positions"]), IDS),
    st.tuples(st.sampled_from(["compact", "expire"]), st.none()),
    st.tuples(st.just("rollback"), st.integers(0, 5)),
)


def files_after(then: TableState, now: TableState) -> set[str]:
    """The files of a state and what its commits did to them."""
    files = {one.uri for one in then.files}
    for commit in now.commits or ():
        assert commit.removed <= files
        assert not commit.added & files
        files = (files - commit.removed) | commit.added
        assert commit.changed <= files - commit.added
    return files


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=st.lists(STEPS, min_size=1, max_size=6), mark=st.integers(0, 6))
def test_live_rows_and_commits_are_right_after_any_steps(steps: list, mark: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = IcebergMaker(Path(folder))
        then, rolled = read_state(made.url), False
        for number, (step, what) in enumerate(steps):
            if number == mark:
                then, rolled = read_state(made.url), False
            if step == "append":
                what = [row for row in what if row[0] not in made.rows]
            if step == "rollback":
                line, snapshot = [], made.table.current_snapshot()
                while snapshot is not None:
                    line += [one for one in [str(snapshot.snapshot_id)] if one in made.past]
                    snapshot = made.table.snapshot_by_id(snapshot.parent_snapshot_id or 0)
                what, rolled = (line[what % len(line)], True) if line else (None, rolled)
            if what is None and step in ("compact", "expire"):
                getattr(made, step)()
            elif what:
                getattr(made, step)(what)
        now = read_state(made.url, since=then.version)
        found = {row["id"]: (row["image"], row["label"]) for row in live_rows(now)}
        assert found == made.rows
        assert sum(one.rows - len(one.deleted) for one in now.files) == len(made.rows)
        if now.commits is None:
            assert any(step == "expire" for step, _ in steps)
            return
        assert files_after(then, now) == {one.uri for one in now.files}
        before = {one.uri: one.deleted.tolist() for one in then.files}
        moved = set().union(*(commit.added | commit.removed for commit in now.commits))
        changed = set().union(*(commit.changed for commit in now.commits))
        for one in now.files:
            if one.uri in before and one.uri not in moved:
                differs = before[one.uri] != one.deleted.tolist()
                assert one.uri in changed if differs else rolled or one.uri not in changed
