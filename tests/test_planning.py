"""Cutting: whole row groups in order, within bounds, split only when huge."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.planning import SPLIT_FACTOR, Bounds, bounds, cut
from jobs.sources import Opened, RowGroup, Source

MIB = 2**20


def source(name: str, *groups: tuple[int, int]) -> Opened:
    return Opened(Source(name, 1, "v1"), tuple(RowGroup(rows, size, n) for n, (rows, size) in enumerate(groups)), None)


def rows_of(shards: object) -> list[list[tuple[str, int, int, int]]]:
    return [[(s.uri, s.row_group, s.row_start, s.row_stop) for s in shard] for shard in shards]  # type: ignore[attr-defined]


def test_neighbouring_row_groups_share_a_shard_while_both_bounds_hold() -> None:
    made = cut([source("a", (40, 1), (40, 1), (40, 1)), source("b", (10, 1))], Bounds(100, 100, MIB))
    assert rows_of(made.shards) == [[("a", 0, 0, 40), ("a", 1, 0, 40)], [("a", 2, 0, 40), ("b", 0, 0, 10)]]


def test_bytes_close_a_shard_before_rows_do() -> None:
    made = cut([source("a", (10, 6), (10, 6))], Bounds(100, 100, 10))
    assert len(made.shards) == 2


def test_a_row_group_above_the_bound_but_not_huge_stays_whole() -> None:
    made = cut([source("a", (SPLIT_FACTOR * 100, 1))], Bounds(100, 100, MIB))
    assert rows_of(made.shards) == [[("a", 0, 0, SPLIT_FACTOR * 100)]]
    assert made.warnings == ()


def test_one_huge_row_group_is_split_by_rows_with_a_warning() -> None:
    made = cut([source("a", (1000, 1))], Bounds(100, 100, MIB))
    assert [s[0].rows for s in made.shards] == [100] * 10
    assert len(made.warnings) == 1
    assert "a row group 0 (1000 rows, 0 MiB) into 10" in made.warnings[0]


def test_sources_without_rows_are_claimed_in_no_shard() -> None:
    made = cut([source("empty"), source("hollow", (0, 0)), source("a", (1, 1))], Bounds(10, 10, MIB))
    assert [s.uri for s in made.empty] == ["empty", "hollow"]
    assert len(made.shards) == 1


@pytest.mark.parametrize(
    ("total", "workers", "within"),
    [
        (10**7, 64, Bounds(4096, 4096, MIB, 64, 256)),
        (100_000, 16, Bounds(1563, 1563, MIB, 16, 97)),
        (4_000, 2, Bounds(500, 1024, MIB, 2, 64)),
        (500, 64, Bounds(256, 1024, MIB)),
    ],
)
def test_auto_rows_give_every_worker_several_shards_within_bounds(total: int, workers: int, within: Bounds) -> None:
    assert bounds(total, workers, "auto", MIB) == within


def test_rows_that_the_spec_names_are_taken_as_they_are() -> None:
    assert bounds(10**7, 64, 10, MIB) == Bounds(10, 10, MIB)


@given(
    groups=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 10_000)), max_size=12),
    rows=st.integers(1, 500),
    max_bytes=st.integers(1, 5000),
)
def test_every_row_is_in_exactly_one_shard_in_order(groups: list[tuple[int, int]], rows: int, max_bytes: int) -> None:
    made = cut([source("a", *groups[::2]), source("b", *groups[1::2])], Bounds(rows, rows, max_bytes))
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
