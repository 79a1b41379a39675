"""Cutting: whole row groups in order, within bounds, split only when huge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.planning import SPLIT_FACTOR, cut, target_rows
from jobs.sources import Opened, RowGroup, Source

MIB = 2**20


def source(name: str, *groups: tuple[int, int]) -> Opened:
    return Opened(Source(name, 1, "v1"), tuple(RowGroup(rows, size) for rows, size in groups), None)


def rows_of(shards: object) -> list[list[tuple[str, int, int, int]]]:
    return [[(s.uri, s.row_group, s.row_start, s.row_stop) for s in shard] for shard in shards]  # type: ignore[attr-defined]


def test_neighbouring_row_groups_share_a_shard_while_both_bounds_hold() -> None:
    made = cut([source("a", (40, 1), (40, 1), (40, 1)), source("b", (10, 1))], rows=100, max_bytes=MIB)
    assert rows_of(made.shards) == [[("a", 0, 0, 40), ("a", 1, 0, 40)], [("a", 2, 0, 40), ("b", 0, 0, 10)]]


def test_bytes_close_a_shard_before_rows_do() -> None:
    made = cut([source("a", (10, 6), (10, 6))], rows=100, max_bytes=10)
    assert len(made.shards) == 2


def test_a_row_group_above_the_bound_but_not_huge_stays_whole() -> None:
    made = cut([source("a", (SPLIT_FACTOR * 100, 1))], rows=100, max_bytes=MIB)
    assert rows_of(made.shards) == [[("a", 0, 0, SPLIT_FACTOR * 100)]]
    assert made.warnings == ()


def test_one_huge_row_group_is_split_by_rows_with_a_warning() -> None:
    made = cut([source("a", (1000, 1))], rows=100, max_bytes=MIB)
    assert [s[0].rows for s in made.shards] == [100] * 10
    assert len(made.warnings) == 1
    assert "row group 0 has 1000 rows" in made.warnings[0]


def test_sources_without_rows_are_claimed_in_no_shard() -> None:
    made = cut([source("empty"), source("hollow", (0, 0)), source("a", (1, 1))], rows=10, max_bytes=MIB)
    assert [s.uri for s in made.empty] == ["empty", "hollow"]
    assert len(made.shards) == 1


@pytest.mark.parametrize(("total", "workers", "rows"), [(10**7, 64, 4096), (100_000, 16, 1563), (500, 64, 256)])
def test_auto_rows_give_every_worker_several_shards_within_bounds(total: int, workers: int, rows: int) -> None:
    assert target_rows(total, workers) == rows


@given(
    groups=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 10_000)), max_size=12),
    rows=st.integers(1, 500),
    max_bytes=st.integers(1, 5000),
)
def test_every_row_is_in_exactly_one_shard_in_order(groups: list[tuple[int, int]], rows: int, max_bytes: int) -> None:
    made = cut([source("a", *groups[::2]), source("b", *groups[1::2])], rows=rows, max_bytes=max_bytes)
    found = [
        (s.uri, s.row_group, row) for shard in made.shards for s in shard for row in range(s.row_start, s.row_stop)
    ]
    expected = [
        (name, index, row)
        for name, mine in (("a", groups[::2]), ("b", groups[1::2]))
        for index, (count, _) in enumerate(mine)
        for row in range(count)
    ]
    assert found == expected
