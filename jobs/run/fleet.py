"""The fleet: the workers, from being asked for to their end, with the shards that they hold and what they have shown.

Time comes in as a number; nothing here waits, and nothing knows what a worker is made of. The loop reports events and
carries out what `decide` says; the decisions themselves are the pure functions of `sizing`, `groups` and `policy`. Ten
thousand workers are asked about many times a second, so what is asked often is kept up when a worker changes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from jobs.pool.contract import MAX_HELD_SHARDS
from jobs.run import policy
from jobs.run.policy import Manner
from jobs.scaling import groups, sizing
from jobs.scaling.speculation import left_s
from jobs.spec.schema import Workers
from workers.contract import Shard
from workers.outcomes import Failure

CROWDED_S = 60.0
"""A worker that finds no node for so long would have one if the nodes that this run has were all its own."""


@dataclass
class HeldShard:
    shard: Shard
    manner: Manner
    since: float
    """Since when nothing that was given before it is under way."""
    isolated_s: float = 0.0
    second: bool = False
    """Another worker had the shard already."""

    @property
    def isolated(self) -> bool:
        return self.manner is Manner.ISOLATED


@dataclass(eq=False)
class _Worker:
    group: groups.NodeGroup
    asked_at: float
    node: str | None = None
    node_holds: int = 1
    ready: bool = False
    host: str = ""
    leaving: bool = False
    """It finishes what it holds and counts as gone already."""
    since: float = 0.0
    """Since when its time counts as that of the shard it holds; before it is ready, since when it has its node."""
    held: list[HeldShard] = field(default_factory=list)
    """In the order in which they were given."""
    rate: sizing.RecentRate = field(default_factory=sizing.RecentRate)
    """Of attempts that ended well."""


class Fleet:
    def __init__(
        self, workers: Workers, *, now: float, finish_at: float | None = None, rate_before: float | None = None
    ) -> None:
        """`rate_before` is that of a worker in an earlier run, in rows a second; all times are of one clock."""
        self._bounds = workers
        self._began, self._finish_at = now, finish_at
        self._rate_before = rate_before
        self._groups = [groups.NodeGroup(group) for group in groups.groups_of(workers)]
        self._workers: dict[int, _Worker] = {}
        self._leaving: dict[int, None] = {}
        self._released: frozenset[int] = frozenset()
        """Ready workers that get no more shards, beside those that are leaving."""
        self.able: dict[int, str] = {}
        """Ready workers that shards go to or may wait for, with their hosts: they stay, and none isolates, which may
        take hours."""
        self.holding: list[set[int]] = [set() for _ in range(MAX_HELD_SHARDS)]
        """Those that take more shards now, by how many they hold: none, one, and so on."""
        self.busy: dict[int, None] = {}
        """Workers that hold something: the one that has been longest with what it was given first comes first."""
        self._ready_on: Counter[str] = Counter()
        """Ready workers that stay, by node; the empty name is for those of which none is known."""
        self._crowded: Counter[str] = Counter()
        """Nodes that are shared with others, each with the workers of this run that fit it."""
        self._node_holds, self._nodes_hold = 1, [0] * len(self._groups)
        """As sizing.Outlook has them, unless a worker has changed since."""
        self._nodes_changed = False
        self._rate = sizing.RecentRate()
        self._delay = sizing.StartDelay()
        self.wanted: int | None = None
        self._losing = False
        self.failures = groups.StartFailures()

    def asked(self, worker: int, group: groups.NodeGroup, now: float) -> None:
        self._workers[worker] = _Worker(group, now)
        self._file(worker, 1)

    def placed(self, worker: int, node: str, node_holds: int, now: float) -> None:
        """It has a node, with room for so many workers in all; its start is under way, or, heard of late, over."""
        self._workers[worker].group.placed_at = now
        if self.stays(worker):
            with self._changing(worker) as changed:
                changed.node, changed.node_holds = node, node_holds
                changed.since = changed.since if changed.ready else now
            self._crowded.pop(node, None)

    def ready(self, worker: int, now: float, host: str = "") -> None:
        with self._changing(worker) as changed:
            changed.ready, changed.since, changed.host = True, now, host
        self.failures = groups.StartFailures()
        changed.group.failures = groups.StartFailures()
        self._delay.add(now - changed.asked_at)

    def assigned(self, worker: int, given: HeldShard) -> None:
        to = self._workers[worker]
        if not to.held:
            to.since = given.since
            self.busy[worker] = None
        to.held.append(given)
        self._file_room(worker)

    def shard_ended(self, worker: int, shard: Shard, rows: int, now: float) -> HeldShard:
        """An attempt came to its end, with so many rows committed; how the shard was held."""
        by = self._workers[worker]
        self._count(by, rows, now)
        if rows:
            by.rate.add(rows, now - by.since)
        by.since = now
        index = next(i for i, other in enumerate(by.held) if other.shard.key == shard.key)
        ended = by.held.pop(index)
        self._file_room(worker)
        if index == 0:
            del self.busy[worker]
            if by.held:
                by.held[0].since = now
                self.busy[worker] = None
        return ended

    def _count(self, by: _Worker, rows: int, now: float) -> None:
        for rate in (self._rate, by.group.rate):
            rate.add(rows, now - by.since)

    def leaving(self, worker: int) -> None:
        """Its node is about to be taken away, or it is itself: no more shards for it, and another in its place."""
        if self.stays(worker):
            with self._changing(worker) as changed:
                changed.leaving = True
            self._losing |= changed.ready

    def gone(self, worker: int, now: float) -> tuple[bool, list[HeldShard]]:
        """It failed to start, or died: whether it had been ready, and what it held."""
        lost = self._workers[worker]
        if lost.held:
            self._count(lost, 0, now)
        self.ended(worker)
        if not lost.leaving:
            self._losing |= lost.ready
            if not lost.ready:
                for failures in (lost.group.failures, self.failures):
                    failures.add(lost.asked_at, now)
                if lost.group.unfit:
                    lost.group.closed_until = now + groups.REOPEN_S
        return lost.ready, lost.held

    def ended(self, worker: int) -> None:
        self._file(worker, -1)
        self.busy.pop(worker, None)
        del self._workers[worker]

    @contextmanager
    def _changing(self, worker: int) -> Iterator[_Worker]:
        self._file(worker, -1)
        yield self._workers[worker]
        self._file(worker, 1)

    def _file(self, number: int, change: int) -> None:
        """Add a worker to those of its kind, or take it out (-1)."""
        worker = self._workers[number]
        if worker.leaving:
            alike = self._leaving
        elif worker.ready:
            alike = worker.group.ready
            self._ready_on[worker.node or ""] += change
        else:
            alike = worker.group.pending if worker.node is None else worker.group.starting
        if change > 0:
            alike[number] = None
        else:
            del alike[number]
        self._nodes_changed = True
        self._file_room(number, gone=change < 0)

    def _file_room(self, number: int, *, gone: bool = False) -> None:
        """Note whether shards go to a worker, and how many it holds."""
        worker = self._workers[number]
        self.able.pop(number, None)
        for workers in self.holding:
            workers.discard(number)
        if gone or not worker.ready or worker.leaving or number in self._released:
            return
        manner = worker.held[0].manner if worker.held else Manner.BESIDE
        if manner is not Manner.ISOLATED:
            self.able[number] = worker.host
        if manner is Manner.BESIDE and len(worker.held) < MAX_HELD_SHARDS:
            self.holding[len(worker.held)].add(number)

    @property
    def coming_up(self) -> int:
        """Workers that have a node and are about to be ready."""
        return sum(len(group.starting) for group in self._groups)

    def others_to_try(self) -> bool:
        """Whether a group that is asked next may start workers where another could not."""
        return len(self._groups) > 1 and not all(group.unfit for group in self._groups)

    def stays(self, worker: int) -> bool:
        return not self._workers[worker].leaving

    @property
    def released(self) -> frozenset[int]:
        """Workers that get no more shards, those that are leaving included."""
        return self._released.union(self._leaving)

    def s_a_row(self, worker: int) -> float | None:
        """Seconds that a worker takes for a row: as it has shown, or else its group, or all; None if nobody knows."""
        of = self._workers[worker]
        rate = of.rate.value or of.group.rate.value or self._rate.value or self._rate_before
        return 1 / rate if rate else None

    def fullest_first(self, held: int) -> list[int]:
        """Workers that take more shards and hold so many now, in the order in which they get them."""
        return self._emptiest_first(self.holding[held])[::-1]

    def to_let_go(self, idle: Collection[int], ready: int, shards: int) -> list[int]:
        """Which of the workers that hold nothing to let go, of so many that are ready and stay, for so many shards."""
        surplus = ready - sizing.pool_target(shards, least=self._bounds.min, most=self._bounds.max)
        return self._emptiest_first(idle)[:surplus] if idle and surplus > 0 else []

    def _emptiest_first(self, workers: Collection[int]) -> list[int]:
        """Ready workers in the order in which to let them go, so that whole nodes fall idle: those with fewest
        neighbours first."""
        node_of = {worker: self._workers[worker].node or "" for worker in workers}
        return sorted(node_of, key=lambda worker: (self._ready_on[node_of[worker]], node_of[worker], worker))

    def longest(self, number: int) -> Iterator[tuple[int, HeldShard]]:
        """Workers that have been longest with what they are at, each with that."""
        for worker in islice(self.busy, number):
            yield worker, self._workers[worker].held[0]

    def running(self, now: float) -> Iterator[tuple[Shard, float]]:
        """First attempts that were made beside others, each with the seconds in which it is expected to end; of workers
        of which is known how long a row takes them."""
        for worker in self.busy:
            pace = self.s_a_row(worker)
            if pace is None:
                continue
            ends_in_s = 0.0
            for number, held in enumerate(self._workers[worker].held):
                ends_in_s += left_s(held.shard.rows, pace, 0.0 if number else now - held.since)
                if held.manner is Manner.BESIDE and not held.second:
                    yield held.shard, ends_in_s

    def overdue(
        self, now: float, stall_s: float | Literal["auto"], s_a_row: float | None
    ) -> Iterator[tuple[int, Failure]]:
        """Workers to be ended, and why. `stall_s` is the spec's, `s_a_row` what a row has taken on average in this
        run."""
        for worker in (worker for group in self._groups for worker in group.starting):
            if (placed_s := now - self._workers[worker].since) > policy.PLACED_LIMIT_S:
                yield worker, policy.stuck(f"worker {worker} has had its node for {placed_s:.0f} s and is not ready")
        least_s = policy.stall_after_s(stall_s, s_a_row, rows=0)
        for worker in self.busy:
            held = self._workers[worker].held
            oldest = held[0]  # what was given first is worked on first, or is at least being read
            if now - oldest.since <= (least_s or 0.0):
                return  # nor are those that follow
            if oldest.isolated:
                limit_s: float | None = policy.ISOLATED_TIMES * oldest.isolated_s
            else:
                limit_s = policy.stall_after_s(stall_s, s_a_row, sum(each.shard.rows for each in held))
            if limit_s is not None and now - oldest.since > limit_s:
                message = (
                    f"worker {worker} has been with {oldest.shard.describe()} for {now - oldest.since:.0f} s, "
                    f"longer than {limit_s:.0f} s (limits.stall_s)"
                )
                yield worker, policy.stuck(message)

    def decide(self, now: float, *, rows_left: int, shards_left: int) -> tuple[list[groups.NodeGroup], list[int]]:
        """A group for each worker to ask for, and the workers to end now: those asked for in vain, and idle ones too
        many. The others that are too many get no more shards."""
        self._check_pending(now)
        outlook = self._outlook(now, rows_left, shards_left)
        self.wanted = sizing.workers_wanted(outlook, self.wanted, least=self._bounds.min, most=self._bounds.max)
        # A worker that changes groups must work long enough in the new one to be worth its start.
        lasts_s = rows_left / outlook.ready_rate if outlook.ready_rate else 0.0
        asked = groups.requests(self.wanted, self._groups, now, replace=lasts_s > 4 * outlook.start_delay_s)
        start, end, release = list[groups.NodeGroup](), list[int](), list[int]()
        for group, most, surplus in zip(self._groups, asked, groups.surplus(self.wanted, self._groups), strict=True):
            pending = list(group.pending)
            start += [group] * (most - len(pending))
            end += pending[most:]  # the youngest: the oldest are nearest to a node
            if surplus:
                emptiest = self._emptiest_first(group.ready)
                release += sorted(emptiest, key=lambda worker: len(self._workers[worker].held))[:surplus]
        before, self._released = self._released, frozenset(release)
        for worker in (before ^ self._released) & self._workers.keys():
            self._file_room(worker)
        end += [worker for worker in self.released if not self._workers[worker].held]
        return start, end

    def _check_pending(self, now: float) -> None:
        """Close groups whose nodes do not come, and notice another run's workers on our nodes.

        To count on the places of those others would bring up node after node to fill.
        """
        for group in self._groups:
            if not group.pending:
                continue
            oldest_at = self._workers[next(iter(group.pending))].asked_at
            if now - oldest_at > group.spec.patience_s:
                group.closed_until = now + groups.REOPEN_S
            if now - max(oldest_at, group.placed_at) > CROWDED_S:
                self._crowded |= Counter(node for node, _ in self._on_nodes(group))
                self._nodes_changed = True

    def _on_nodes(self, group: groups.NodeGroup) -> list[tuple[str, int]]:
        """For each worker of which it is known: its node, and how many workers fit that."""
        placed = (self._workers[worker] for worker in (*group.starting, *group.ready))
        return [(worker.node, worker.node_holds) for worker in placed if worker.node is not None]

    def _outlook(self, now: float, rows_left: int, shards_left: int) -> sizing.Outlook:
        mean = self._rate.value or self._rate_before
        rates = [group.rate.value or mean for group in self._groups]
        ready = [len(group.ready) for group in self._groups]
        asked_next = next((i for i, group in enumerate(self._groups) if group.open(now)), -1)
        on_their_way = (self._workers[worker] for g in self._groups for worker in (*g.pending, *g.starting))
        if self._nodes_changed:
            nodes = [dict(self._on_nodes(group)) for group in self._groups]
            self._node_holds = max((holds for group in nodes for holds in group.values()), default=1)
            self._nodes_hold = [sum(self._crowded.get(n, holds) for n, holds in group.items()) for group in nodes]
            self._nodes_changed = False
        return sizing.Outlook(
            rows_left=rows_left,
            shards_left=shards_left,
            time_left_s=None if self._finish_at is None else self._finish_at - now,
            waited_s=now - self._began,
            ready=sum(ready),
            ready_rate=sum(number * (rate or 0.0) for number, rate in zip(ready, rates, strict=True)),
            pending_s=self._delay.still_s(now - worker.asked_at for worker in on_their_way),
            rate=rates[asked_next],
            start_delay_s=self._delay.value_s,
            node_holds=self._node_holds,
            nodes_hold=self._nodes_hold,
            losing=self._losing,
        )
