"""The books on workers: what reported events make of the decisions. Time is a number here."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from jobs.run.fleet import Fleet, HeldShard
from jobs.run.policy import Manner
from jobs.scaling import groups
from jobs.spec.schema import Group, Workers
from tests.support.journals import shard

SPOT, ON_DEMAND = 0, 1
SHARD = shard(0)
Decided = tuple[list[groups.NodeGroup], list[int]]


class Books:
    """A fleet whose decisions are carried out at once."""

    def __init__(self, *given: Group, most: int = 4, finish_at: float | None = None) -> None:
        self.fleet = Fleet(Workers(max=most, groups=given), now=0.0, finish_at=finish_at)
        self.numbers = itertools.count()
        self.group_of: dict[int, int] = {}
        self.ready_ones: set[int] = set()

    def step(
        self, now: float, *, shards: int = 1000, rows: int = 1_000_000
    ) -> tuple[list[groups.NodeGroup], list[int]]:
        start, end = self.fleet.decide(now, rows_left=rows, shards_left=shards)
        for worker in end:
            self.fleet.ended(worker)
            self.ready_ones.discard(worker)
            del self.group_of[worker]
        for group in start:
            worker = next(self.numbers)
            self.fleet.asked(worker, group, now)
            self.group_of[worker] = self.fleet._groups.index(group)
        return start, end

    def ready(self, worker: int, now: float, node: str = "n") -> None:
        self.fleet.placed(worker, node, 1, now)
        self.fleet.ready(worker, now)
        self.ready_ones.add(worker)

    def give(self, worker: int, now: float) -> None:
        self.fleet.assigned(worker, HeldShard(SHARD, Manner.BESIDE, now))

    def fail(self, workers: list[int], now: float) -> None:
        for worker in workers:
            self.fleet.gone(worker, now)
            del self.group_of[worker]

    @property
    def pending(self) -> Mapping[int, list[int]]:
        return {g: [w for w, of in self.group_of.items() if of == g and w not in self.ready_ones] for g in (0, 1)}


def spot_and_on_demand(**changes: int) -> Books:
    return Books(Group(labels={"m": "spot"}, patience_s=300), Group(labels={"m": "od"}), **changes)


def test_workers_that_found_no_node_in_time_are_asked_for_in_the_next_group() -> None:
    books = spot_and_on_demand()
    books.step(0.0)
    books.step(299.0)
    assert [len(books.pending[g]) for g in (SPOT, ON_DEMAND)] == [4, 0]
    books.step(301.0)
    assert [len(books.pending[g]) for g in (SPOT, ON_DEMAND)] == [0, 4]


def test_a_worker_that_has_a_node_is_not_out_of_patience_however_long_it_starts() -> None:
    books = spot_and_on_demand()
    books.step(0.0)
    for worker in books.pending[SPOT]:
        books.fleet.placed(worker, "n", 4, 50.0)
    assert books.step(1000.0) == ([], [])


def test_the_preferred_group_is_tried_again_and_takes_the_work_over() -> None:
    books = spot_and_on_demand()
    books.step(0.0)
    books.step(301.0)
    for worker in books.pending[ON_DEMAND]:
        books.ready(worker, 400.0)
        books.give(worker, 400.0)
        books.give(worker, 400.0)
        books.fleet.shard_ended(worker, SHARD, 1, 500.0)  # slow enough that changing groups is worth it
    books.step(300.0 + groups.REOPEN_S)
    assert not books.pending[SPOT]
    later = 310.0 + groups.REOPEN_S
    books.step(later)
    assert len(books.pending[SPOT]) == 4
    books.ready(books.pending[SPOT][0], later + 100, "s")
    books.step(later + 100)
    released = books.fleet.released
    assert len(released) == 1
    assert books.fleet.able.keys() == books.ready_ones - released
    assert {books.group_of[worker] for worker in released} == {ON_DEMAND}


def test_a_node_that_is_lost_with_all_that_start_on_it_counts_as_one_failure() -> None:
    books = Books(most=8)
    books.step(0.0)
    books.fail(list(books.group_of), 10.0)
    assert books.fleet.failures.count == 1
    books.step(20.0)
    books.fail(list(books.group_of), 30.0)
    assert books.fleet.failures.count == 2
    books.step(40.0)
    books.ready(next(iter(books.group_of)), 50.0)
    assert books.fleet.failures.count == 0


def test_a_group_where_nothing_starts_is_given_up_for_the_next_before_the_run_is() -> None:
    books = spot_and_on_demand()
    for start in (0.0, 10.0, 20.0):
        books.step(start)
        assert books.fleet.others_to_try()
        books.fail(books.pending[SPOT], start + 5)
    books.step(30.0)
    assert [len(books.pending[g]) for g in (SPOT, ON_DEMAND)] == [0, 4]


def test_idle_workers_of_the_emptiest_node_end_first_and_shards_go_to_full_nodes() -> None:
    books = Books(most=5)
    books.step(0.0)
    for worker, node in zip(list(books.group_of), "aaabb", strict=True):
        books.ready(worker, 10.0, node)
    assert books.fleet.fullest_first(0)[:3] == [2, 1, 0]
    books.give(0, 10.0)
    books.give(1, 10.0)
    assert books.fleet.holding == [{2, 3, 4}, {0, 1}]
    assert books.fleet.fullest_first(0) + books.fleet.fullest_first(1) == [2, 4, 3, 1, 0]
    idle = books.fleet.holding[0]
    assert books.fleet.to_let_go(idle, ready=5, shards=3) == [3, 4]
    assert books.fleet.to_let_go(idle, ready=5, shards=9) == []


def measured(books: Books, group: int, rows: int, now: float) -> None:
    """One worker of the group is ready at once and has scored so many rows ten seconds later."""
    worker = books.pending[group][0]
    books.ready(worker, now, f"node-{worker}")
    books.give(worker, now)
    books.give(worker, now)
    books.fleet.shard_ended(worker, SHARD, rows, now + 10)


def test_what_workers_show_sets_their_number() -> None:
    numbers = []
    for rows in (1000, 100):
        books = Books(most=64, finish_at=7200.0)
        books.step(0.0)
        measured(books, 0, rows, 100.0)
        books.step(110.0, rows=500_000, shards=5000)
        numbers.append(books.fleet.wanted)
    assert numbers == [1, 8]


def test_the_rate_of_the_group_that_is_asked_next_counts() -> None:
    numbers: list[int] = []
    for spot_comes in (True, False):
        books = spot_and_on_demand(most=64, finish_at=20_000.0)
        books.step(0.0)
        measured(books, SPOT, 1000, 0.0)
        books.step(301.0, rows=20_000_000, shards=5000)  # the other requests for spot are given up
        measured(books, ON_DEMAND, 100, 301.0)
        at = 320.0 + groups.REOPEN_S * spot_comes
        books.step(at, rows=20_000_000, shards=5000)
        numbers.append(books.fleet.wanted or 0)
    assert numbers[0] < numbers[1]


def test_a_worker_that_is_leaving_is_replaced_at_once_gets_no_more_and_is_ended_when_it_is_idle() -> None:
    books = Books(most=2)
    books.step(0.0)
    for worker in (0, 1):
        books.ready(worker, 60.0, node=f"n{worker}")
        books.give(worker, 60.0)
    books.fleet.leaving(0)
    start, end = books.step(61.0)
    assert (len(start), books.fleet.released, end) == (1, {0}, [])
    assert (books.step(62.0)[0], books.fleet.stays(0), books.fleet.stays(1)) == ([], False, True)
    books.fleet.shard_ended(0, SHARD, 10, 63.0)
    assert (books.step(64.0)[1], books.group_of.keys()) == ([0], {1, 2})


def test_workers_that_were_starting_on_a_node_that_leaves_are_asked_for_elsewhere_and_are_no_failed_starts() -> None:
    books = Books(most=2)
    books.step(0.0)
    books.fleet.placed(0, "n", 2, 30.0)
    books.fleet.leaving(0)
    books.fleet.leaving(0)  # told again, with less time
    assert len(books.step(31.0)[0]) == 1
    assert 0 not in books.group_of
    books.fleet.leaving(1)
    books.fleet.gone(1, 32.0)
    assert books.fleet.failures.count == 0


def test_those_with_fewest_neighbours_go_first_so_that_nodes_fall_idle() -> None:
    fleet = Fleet(Workers(max=6), now=0.0)
    for worker, node in {1: "a", 2: "a", 3: "a", 4: "b", 5: "c", 6: "c"}.items():
        fleet.asked(worker, fleet._groups[0], 0.0)
        fleet.placed(worker, node, 3, 0.0)
        fleet.ready(worker, 0.0)
    assert fleet.to_let_go([1, 2, 4, 5, 6], ready=6, shards=0) == [4, 5, 6, 1, 2]
