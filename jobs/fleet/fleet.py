"""The fleet: who was asked for when and where, what has been measured, and how many workers that makes.

Time comes in as a number; nothing here waits, and nothing knows what a worker is made of. The loop reports events and
carries out what `decide` says; the decisions themselves are the pure functions of `sizing` and `groups`. Ten thousand
workers are asked about many times a second, so what is asked often is counted when a worker changes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from jobs.fleet import groups, sizing
from jobs.spec.schema import Group, Workers

CROWDED_S = 60.0
"""A worker that finds no node for so long would have one if the nodes that this run has were all its own."""
ANY_NODE = Group.model_construct(labels={})
"""The group of a spec that names none; a spec cannot name a group without labels itself."""


def groups_of(workers: Workers) -> Sequence[Group]:
    """The spec's groups of nodes in the order of preference; without any there is one, of any node."""
    return workers.groups or (ANY_NODE,)


@dataclass(frozen=True, kw_only=True)
class Decision:
    wanted: int
    """Workers that the fleet should have, for a person."""
    start: Sequence[int]
    """A group for each worker to ask for."""
    end: Sequence[int]
    """Workers to end now: those asked for in vain, and idle ones too many."""
    release: frozenset[int]
    """Ready workers that get no more shards, those that are leaving included."""


@dataclass
class _StartFailures:
    """Workers that failed to start, in a row. Those that were asked for together count once: a node took them along."""

    count: int = 0
    last_at: float = -math.inf

    def add(self, asked_at: float, now: float) -> None:
        if asked_at >= self.last_at:
            self.count, self.last_at = self.count + 1, now


@dataclass(eq=False)
class _Group:
    """A group of nodes, and its workers but for those that are leaving; the one asked for first comes first."""

    spec: Group
    pending: dict[int, _Worker] = field(default_factory=dict)
    """Asked for, without a node."""
    starting: dict[int, _Worker] = field(default_factory=dict)
    """On a node, not yet ready."""
    ready: dict[int, _Worker] = field(default_factory=dict)
    closed_until: float = 0.0
    placed_at: float = -math.inf
    """When a worker found a node the last time."""
    failures: _StartFailures = field(default_factory=_StartFailures)
    rate: sizing.RecentRate = field(default_factory=sizing.RecentRate)

    @property
    def unfit(self) -> bool:
        return self.failures.count >= groups.GROUP_START_FAILURES

    def state(self, now: float) -> groups.GroupState:
        return groups.GroupState(
            most=self.spec.max,
            ready=len(self.ready),
            starting=len(self.starting),
            open=now >= self.closed_until,
            unfit=self.unfit,
        )

    def on_nodes(self) -> list[tuple[str, int]]:
        """For each worker of which it is known: its node, and how many workers fit that."""
        placed = (*self.starting.values(), *self.ready.values())
        return [(worker.node, worker.node_holds) for worker in placed if worker.node is not None]


@dataclass(eq=False)
class _Worker:
    group: _Group
    asked_at: float
    node: str | None = None
    node_holds: int = 1
    ready: bool = False
    leaving: bool = False
    """It finishes what it holds and counts as gone already."""
    since: float = 0.0
    """Since when its time counts as that of the shard it holds."""
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
        self._groups = [_Group(group) for group in groups_of(workers)]
        self._workers: dict[int, _Worker] = {}
        self._leaving: dict[int, _Worker] = {}
        self._ready_on: Counter[str] = Counter()
        """Ready workers that stay, by node; the empty name is for those of which none is known."""
        self._crowded: Counter[str] = Counter()
        """Nodes that are shared with others, each with the workers of this run that fit it."""
        self._node_holds, self._nodes_hold = 1, [0] * len(self._groups)
        """As sizing.Outlook has them, unless a worker has changed since."""
        self._nodes_changed = False
        self._rate = sizing.RecentRate()
        self._delay = sizing.StartDelay()
        self._wanted: int | None = None
        self._losing = False
        self._failures = _StartFailures()

    def asked(self, worker: int, group: int, now: float) -> None:
        self._workers[worker] = _Worker(self._groups[group], now)
        self._file(worker, 1)

    def placed(self, worker: int, node: str, node_holds: int, now: float) -> None:
        """It has a node, with room for so many workers in all; its start is under way."""
        self._workers[worker].group.placed_at = now
        if self.stays(worker):
            with self._changing(worker) as changed:
                changed.node, changed.node_holds = node, node_holds
            self._crowded.pop(node, None)

    def ready(self, worker: int, now: float) -> None:
        with self._changing(worker) as changed:
            changed.ready, changed.since = True, now
        self._failures = _StartFailures()
        changed.group.failures = _StartFailures()
        self._delay.add(now - changed.asked_at)

    def assigned(self, worker: int, held: int, now: float) -> None:
        """`held` shards it had before."""
        if not held:
            self._workers[worker].since = now

    def shard_ended(self, worker: int, rows: int, now: float) -> None:
        """An attempt came to its end, with so many rows committed."""
        by = self._workers[worker]
        for rate in (self._rate, by.group.rate):
            rate.add(rows, now - by.since)
        if rows:
            by.rate.add(rows, now - by.since)
        by.since = now

    def leaving(self, worker: int) -> None:
        """Its node is about to be taken away, or it is itself: no more shards for it, and another in its place."""
        if self.stays(worker):
            with self._changing(worker) as changed:
                changed.leaving = True
            self._losing |= changed.ready

    def gone(self, worker: int, now: float, *, held: int) -> None:
        """It failed to start, or died with `held` shards."""
        if held:
            self.shard_ended(worker, 0, now)
        lost = self._workers[worker]
        self.ended(worker)
        if lost.leaving:
            return
        self._losing |= lost.ready
        if not lost.ready:
            for failures in (lost.group.failures, self._failures):
                failures.add(lost.asked_at, now)
            if lost.group.unfit:
                lost.group.closed_until = now + groups.REOPEN_S

    def ended(self, worker: int) -> None:
        """The loop has ended it."""
        self._file(worker, -1)
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
            alike[number] = worker
        else:
            del alike[number]
        self._nodes_changed = True

    def labels(self, group: int) -> Mapping[str, str]:
        return self._groups[group].spec.labels

    def others_to_try(self) -> bool:
        """Whether a group that is asked next may start workers where another could not."""
        return len(self._groups) > 1 and not all(group.unfit for group in self._groups)

    @property
    def coming_up(self) -> int:
        """Workers that have a node and are about to be ready."""
        return sum(len(group.starting) for group in self._groups)

    @property
    def start_failures(self) -> int:
        """Times in a row that what was asked for failed to start."""
        return self._failures.count

    def stays(self, worker: int) -> bool:
        """It is not leaving."""
        return not self._workers[worker].leaving

    def s_a_row(self, worker: int) -> float | None:
        """Seconds that a worker takes for a row: as it has shown, or else its group, or all; None if nobody knows."""
        of = self._workers[worker]
        rate = of.rate.value or of.group.rate.value or self._rate.value or self._rate_before
        return 1 / rate if rate else None

    def in_order(self, holding: Mapping[int, int]) -> list[int]:
        """Ready workers in the order in which they get shards: those with fewest, and of them those on full nodes."""
        fullest_first = self._emptiest_first(holding.keys())[::-1]
        return sorted(fullest_first, key=lambda worker: holding[worker])

    def to_let_go(self, idle: Collection[int], ready: int, shards: int) -> list[int]:
        """Which of the workers that hold nothing to let go, of so many that are ready and stay, for so many shards."""
        surplus = ready - sizing.pool_target(shards, least=self._bounds.min, most=self._bounds.max)
        return self._emptiest_first(idle)[:surplus] if idle and surplus > 0 else []

    def _emptiest_first(self, workers: Collection[int]) -> list[int]:
        """Ready workers in the order in which to let them go, so that whole nodes fall idle: those with fewest
        neighbours first."""
        node_of = {worker: self._workers[worker].node or "" for worker in workers}
        return sorted(node_of, key=lambda worker: (self._ready_on[node_of[worker]], node_of[worker], worker))

    def decide(self, now: float, *, rows_left: int, shards_left: int, holding: Mapping[int, int]) -> Decision:
        """`holding` are the ready workers, each with the number of shards it holds."""
        self._check_pending(now)
        outlook = self._outlook(now, rows_left, shards_left)
        self._wanted = sizing.workers_wanted(outlook, self._wanted, least=self._bounds.min, most=self._bounds.max)
        states = [group.state(now) for group in self._groups]
        # A worker that changes groups must work long enough in the new one to be worth its start.
        lasts_s = rows_left / outlook.ready_rate if outlook.ready_rate else 0.0
        asked = groups.requests(self._wanted, states, replace=lasts_s > 4 * outlook.start_delay_s)
        start, end = [], []
        for index, number in enumerate(asked):
            pending = list(self._groups[index].pending)
            start += [index] * (number - len(pending))
            end += pending[number:]  # the youngest: the oldest are nearest to a node
        release: list[int] = []
        for group, number in zip(self._groups, groups.surplus(self._wanted, states), strict=True):
            if number:
                emptiest = self._emptiest_first([worker for worker in group.ready if worker in holding])
                release += sorted(emptiest, key=lambda worker: holding[worker])[:number]
        end += [worker for worker in release if not holding[worker]]
        end += [worker for worker in self._leaving if not holding.get(worker)]
        return Decision(wanted=self._wanted, start=start, end=end, release=frozenset(release) | self._leaving.keys())

    def _check_pending(self, now: float) -> None:
        """Close groups whose nodes do not come, and notice another run's workers on our nodes.

        To count on the places of those others would bring up node after node to fill.
        """
        for group in self._groups:
            if not group.pending:
                continue
            oldest = next(iter(group.pending.values()))
            if now - oldest.asked_at > group.spec.patience_s:
                group.closed_until = now + groups.REOPEN_S
            if now - max(oldest.asked_at, group.placed_at) > CROWDED_S:
                self._crowded |= Counter(node for node, _ in group.on_nodes())
                self._nodes_changed = True

    def _outlook(self, now: float, rows_left: int, shards_left: int) -> sizing.Outlook:
        mean = self._rate.value or self._rate_before
        rates = [group.rate.value or mean for group in self._groups]
        ready = [len(group.ready) for group in self._groups]
        asked_next = next((i for i, group in enumerate(self._groups) if now >= group.closed_until), -1)
        on_their_way = (w for g in self._groups for w in (*g.pending.values(), *g.starting.values()))
        if self._nodes_changed:
            nodes = [dict(group.on_nodes()) for group in self._groups]
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
