"""Cutting: whole row groups in order, within bounds, split only when huge."""

from __future__ import annotations

import heapq
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.input.footers import Opened
from jobs.ledger.plans import Source
from jobs.plan.sharding import MIN_SPLIT_ROWS, SPLIT_FACTOR, Bounds, bounds, cut
from workers.source.rows import RowGroup

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


def test_one_that_is_read_by_its_pages_is_split_without_a_warning() -> None:
    paged = Opened(Source("a", 1, "v1"), (RowGroup(1000, 1, paged=True),), None)
    made = cut([paged], Bounds(100, 100, MIB))
    assert ([s[0].rows for s in made.shards], made.warnings) == ([100] * 10, ())


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


def made_for(there: int, groups: list[int], most: int = 64) -> tuple[list[int], tuple[str, ...]]:
    """Rows of the shards where so many workers are there, of `most` that the spec allows."""
    within = bounds(sum(groups), most, "auto", MIB, there)
    made = cut([source("a", *((rows, rows) for rows in groups))], within)
    return made.shards.rows.tolist(), made.warnings


def test_a_small_input_is_shared_evenly_over_the_workers_that_are_there() -> None:
    assert made_for(2, [1] * 300) == ([75] * 4, ())
    assert made_for(2, [1] * 150) == ([38, 38, 38, 36], ())
    assert made_for(2, [1] * 40) == ([20, 20], ())
    assert made_for(2, [1] * 20) == ([20], ())
    assert made_for(3, [1] * 90) == ([30] * 3, ())
    assert made_for(1, [1] * 150) == ([75] * 2, ())
    assert made_for(64, [1] * 500)[0] == [17] * 29 + [7]


def test_a_small_row_group_is_split_for_the_sake_of_the_workers_without_a_warning() -> None:
    assert made_for(2, [300]) == ([75] * 4, ())
    assert made_for(2, [60, 60, 60, 60]) == ([60] * 4, ())


def test_an_input_for_a_part_of_the_workers_ends_together_on_those_that_are_there() -> None:
    made, _ = made_for(2, [1] * 4000)
    assert made[:11] == [256] * 11
    assert made[11:] == sorted(made[11:], reverse=True)
    assert made[-1] <= 64
    assert efficiency(made, 2) > 0.98


def test_rows_that_the_spec_names_are_taken_as_they_are() -> None:
    assert bounds(10**7, 64, 10, MIB) == Bounds(10, 10, MIB)


@settings(deadline=None)
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


# ------------------------------------------------------------------------------------------- the end of a plan


def sizes(groups: list[int], workers: int) -> list[int]:
    """Of the shards that `auto` makes of row groups of so many rows."""
    made = cut([source("a", *((rows, rows) for rows in groups))], bounds(sum(groups), workers, "auto", MIB))
    return list(made.shards.rows.tolist())


def whole(groups: list[int], workers: int) -> list[int]:
    """The same without an end that is cut finer."""
    within = replace(bounds(sum(groups), workers, "auto", MIB), workers=0)
    return list(cut([source("a", *((rows, rows) for rows in groups))], within).shards.rows.tolist())


def efficiency(shards: list[int], workers: int) -> float:
    """Time of all workers at work until the last shard ends, as a share of the time that they are there.

    Every second worker is a fifth slower. Each takes the next shard, largest first, as soon as it is free.
    """
    speeds = [1.0 if worker % 2 else 0.8 for worker in range(workers)]
    free = [(0.0, worker) for worker in range(workers)]
    for rows in sorted(shards, reverse=True):
        at, worker = heapq.heappop(free)
        heapq.heappush(free, (at + rows / speeds[worker], worker))
    return sum(shards) / sum(speeds) / max(at for at, _ in free)


def test_shards_grow_smaller_over_the_last_two_rounds() -> None:
    assert sizes([10] * 400, 2) == [500] * 5 + [370, 280, 210, 160, 120, 90, 60, 60, 60, 60, 30]
    made = sizes([100] * 1000, 2)
    assert made[:22] == [4000] * 22
    assert made[22:] == sorted(made[22:], reverse=True)
    assert made[-2:] == [200, 100]


def test_rows_that_the_spec_names_are_exact_to_the_end() -> None:
    made = cut([source("a", *[(10, 1)] * 100)], bounds(1000, 2, 100, MIB))
    assert made.shards.rows.tolist() == [100] * 10


def test_where_there_is_too_little_work_for_all_workers_shards_are_not_cut_finer() -> None:
    assert sizes([16] * 250, 64) == [256] * 15 + [160]


def test_row_groups_are_not_split_for_the_sake_of_the_end() -> None:
    assert sizes([250] * 16, 2) == [500] * 5 + [250] * 6
    assert sizes([1000] * 4, 2) == [1000] * 4


def test_of_a_huge_row_group_that_is_split_anyhow_the_last_pieces_are_smaller() -> None:
    made = sizes([100_000], 2)
    assert made[:20] == [4000] * 20
    assert made == sorted(made, reverse=True)
    assert sum(made) == 100_000
    assert min(made) >= MIN_SPLIT_ROWS // 2


@settings(deadline=None)
@given(group=st.integers(1, 2 * MIN_SPLIT_ROWS), groups=st.integers(1, 300), workers=st.integers(1, 100))
def test_shards_of_even_row_groups_never_grow_towards_the_end_and_keep_their_bounds(
    group: int, groups: int, workers: int
) -> None:
    within = bounds(group * groups, workers, "auto", MIB)
    made = cut([source("a", *[(group, 1)] * groups)], within)
    rows = made.shards.rows.tolist()
    assert sum(rows) == group * groups
    assert rows == sorted(rows, reverse=True)
    left = sum(rows)
    for size, slices in zip(rows, made.shards, strict=True):
        assert size <= within.limit(left) or len(slices) == 1
        left -= size
    assert made.shards.rows.tolist() == cut([source("a", *[(group, 1)] * groups)], within).shards.rows.tolist()


@settings(deadline=None)
@given(st.lists(st.integers(0, 9000), max_size=40), st.integers(1, 20))
def test_whatever_the_row_groups_a_shard_of_several_is_within_its_share_of_what_is_left(
    groups: list[int], workers: int
) -> None:
    within = bounds(sum(groups), workers, "auto", 2**40)
    made = cut([source("a", *((rows, rows) for rows in groups))], within)
    left = sum(groups)
    for slices in made.shards:
        size = sum(piece.rows for piece in slices)
        assert size <= within.limit(left) or len(slices) == 1
        left -= size
    assert left == 0


@pytest.mark.parametrize(
    ("group", "rows", "workers"),
    [(1, 4_000, 2), (16, 4_000, 2), (250, 4_000, 2), (100, 1_000_000, 64)],
    ids=["4,000 files on 2 workers", "a tar on 2", "row groups of 250 on 2", "a million rows on 64"],
)
def test_workers_run_dry_together(group: int, rows: int, workers: int) -> None:
    """Without an end that is cut finer a tenth of the workers' time is lost: 0.89, 0.90, 0.89 and 0.89."""
    groups = [group] * (rows // group)
    assert efficiency(whole(groups, workers), workers) < 0.91
    assert efficiency(sizes(groups, workers), workers) > 0.98
