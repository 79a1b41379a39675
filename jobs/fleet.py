"""The books on workers: who was asked for when and where, what is measured, and what that means for their number.

Time comes in as a number; nothing here waits, and nothing knows what a worker is made of. The loop reports events and
carries out what `decide` says; the decisions themselves are the pure functions of `sizing` and `groups`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jobs import groups, sizing
from jobs.policy import pool_target

CROWDED_S = 60.0
"""A worker that finds no node for so long would have one if the nodes that this run has were all its own."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What the spec asks of the fleet."""

    least: int
    most: int
    groups: Sequence[GroupTerms]
    """In the order of preference; one without labels where the spec names none."""


@dataclass(frozen=True, kw_only=True)
class GroupTerms:
    labels: Mapping[str, str] = field(default_factory=dict)
    most: int | None = None
    patience_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    wanted: int
    """Workers that the fleet should have, for a person."""
    start: Sequence[int]
    """A group for each worker to ask for."""
    end: Sequence[int]
    """Workers to end now: those asked for in vain, and idle ones too many."""
    release: frozenset[int]
    """Ready workers that get no more shards."""


@dataclass
class _Worker:
    group: int
    asked_at: float
    node: str | None = None
    ready: bool = False
    node_holds: int = 1
    since: float = 0.0
    """Since when its time counts as that of the shard it holds."""


@dataclass
class _StartFailures:
    """Workers that failed to start, in a row. Those that were asked for together count once: a node took them along."""

    count: int = 0
    last_at: float = -math.inf

    def add(self, asked_at: float, now: float) -> None:
        if asked_at >= self.last_at:
            self.count, self.last_at = self.count + 1, now


@dataclass
class _Group:
    terms: GroupTerms
    closed_until: float = 0.0
    placed_at: float = -math.inf
    """When a worker found a node the last time."""
    failures: _StartFailures = field(default_factory=_StartFailures)
    rate: sizing.Rate = field(default_factory=sizing.Rate)


class Fleet:
    def __init__(
        self, terms: Terms, *, now: float, finish_at: float | None = None, rate_before: float | None = None
    ) -> None:
        """`rate_before` is that of a worker in an earlier run, in rows a second; all times are of one clock."""
        self._terms = terms
        self._began, self._finish_at = now, finish_at
        self._rate_before = rate_before
        self._workers: dict[int, _Worker] = {}
        self._leaving: dict[int, _Worker] = {}
        """Told to go: they finish what they hold and count as gone already."""
        self._groups = [_Group(group) for group in terms.groups]
        self._crowded: dict[str, int] = {}
        """Nodes that are shared with others, each with the workers of this run that fit it."""
        self._rate = sizing.Rate()
        self._delay = sizing.StartDelay()
        self._wanted: int | None = None
        self._losing = False
        self._failures = _StartFailures()

    # ------------------------------------------------------------------------------------------ events

    def asked(self, worker: int, group: int, now: float) -> None:
        self._workers[worker] = _Worker(group, now)

    def placed(self, worker: int, node: str, node_holds: int, now: float) -> None:
        """It has a node, with room for so many workers in all; its start is under way."""
        it = self._known(worker)
        it.node, it.node_holds = node, node_holds
        self._groups[it.group].placed_at = now
        self._crowded.pop(node, None)

    def ready(self, worker: int, now: float) -> None:
        it = self._known(worker)
        it.ready, it.since = True, now
        self._failures = _StartFailures()
        self._groups[it.group].failures = _StartFailures()
        self._delay.add(now - it.asked_at)

    def assigned(self, worker: int, held: int, now: float) -> None:
        """`held` shards it had before."""
        if not held:
            self._workers[worker].since = now

    def shard_ended(self, worker: int, rows: int, now: float) -> None:
        """An attempt came to its end, with so many rows committed."""
        it = self._known(worker)
        for rate in (self._rate, self._groups[it.group].rate):
            rate.add(rows, now - it.since)
        it.since = now

    def leaving(self, worker: int) -> None:
        """Its node is about to be taken away, or it is itself: no more shards for it, and another in its place."""
        if worker in self._workers:
            self._leaving[worker] = self._workers.pop(worker)
            self._losing |= self._leaving[worker].ready

    def gone(self, worker: int, now: float, *, held: int) -> None:
        """It failed to start, or died with `held` shards."""
        if held:
            self.shard_ended(worker, 0, now)
        if self._leaving.pop(worker, None):
            return
        it = self._workers.pop(worker)
        self._losing |= it.ready
        if not it.ready:
            group = self._groups[it.group]
            for failures in (group.failures, self._failures):
                failures.add(it.asked_at, now)
            if group.failures.count >= groups.START_FAILURES:
                group.closed_until = now + groups.REOPEN_S

    def labels(self, group: int) -> Mapping[str, str]:
        return self._groups[group].terms.labels

    def others_to_try(self) -> bool:
        """Whether a group that is asked next may start workers where another could not."""
        return any(g.failures.count < groups.START_FAILURES for g in self._groups) and len(self._groups) > 1

    @property
    def start_failures(self) -> int:
        """Times in a row that what was asked for failed to start."""
        return self._failures.count

    # ---------------------------------------------------------------------------------------- decision

    def decide(self, now: float, *, rows_left: int, shards_left: int, holding: Mapping[int, int]) -> Decision:
        """`holding` are the ready workers, each with the number of shards it holds."""
        leaving = {worker: holding.get(worker, 0) for worker in self._leaving}
        holding = self._staying(holding)
        self._close_groups(now)
        self._notice_crowds(now)
        outlook = self._outlook(now, rows_left, shards_left)
        self._wanted = sizing.workers_wanted(outlook, self._wanted, least=self._terms.least, most=self._terms.most)
        states = [self._state(index, now) for index in range(len(self._groups))]
        # A worker that changes groups must work long enough in the new one to be worth its start.
        lasts_s = rows_left / outlook.ready_rate if outlook.ready_rate else 0.0
        asked = groups.requests(self._wanted, states, replace=lasts_s > 4 * outlook.start_delay_s)
        start, end = [], []
        for index, number in enumerate(asked):
            pending = [w for w, it in self._workers.items() if it.group == index and it.node is None and not it.ready]
            start += [index] * (number - len(pending))
            end += pending[number:]  # the youngest: the oldest are nearest to a node
        release = self._released(states, holding)
        end += [worker for worker in release if not holding[worker]]
        end += [worker for worker, held in leaving.items() if not held]
        return Decision(wanted=self._wanted, start=start, end=end, release=frozenset(release) | leaving.keys())

    def idle(self, holding: Mapping[int, int], shards_left: int) -> list[int]:
        """Workers that hold nothing after all shards were handed out, beyond those that a lost shard could need."""
        holding = self._staying(holding)
        keep = pool_target(shards_left, least=self._terms.least, most=self._terms.most)
        spare = [worker for worker, held in holding.items() if not held]
        surplus = len(holding) - keep
        return groups.emptiest_first(spare, self._nodes())[:surplus] if spare and surplus > 0 else []

    def in_order(self, holding: Mapping[int, int]) -> list[int]:
        """Ready workers in the order in which they get shards: those with fewest, and of them those on full nodes."""
        rank = {w: index for index, w in enumerate(groups.emptiest_first(list(holding), self._nodes()))}
        return sorted(holding, key=lambda w: (holding[w], -rank[w]))

    def ended(self, worker: int) -> None:
        if not self._leaving.pop(worker, None):
            del self._workers[worker]

    def _known(self, worker: int) -> _Worker:
        return self._workers.get(worker) or self._leaving[worker]

    def _staying(self, holding: Mapping[int, int]) -> dict[int, int]:
        return {worker: held for worker, held in holding.items() if worker not in self._leaving}

    # ----------------------------------------------------------------------------------------- figures

    def _close_groups(self, now: float) -> None:
        for it in self._workers.values():
            patience_s = self._groups[it.group].terms.patience_s
            if it.node is None and not it.ready and patience_s is not None and now - it.asked_at > patience_s:
                self._groups[it.group].closed_until = now + groups.REOPEN_S

    def _notice_crowds(self, now: float) -> None:
        """Another run's workers on our nodes: to count on their places would bring up node after node to fill."""
        for index, group in enumerate(self._groups):
            members = [it for it in self._workers.values() if it.group == index]
            since = [max(it.asked_at, group.placed_at) for it in members if it.node is None and not it.ready]
            if since and now - min(since) > CROWDED_S:
                self._crowded |= Counter(it.node for it in members if it.node is not None)

    def _state(self, index: int, now: float) -> groups.GroupState:
        members = [it for it in self._workers.values() if it.group == index]
        group = self._groups[index]
        return groups.GroupState(
            most=group.terms.most,
            ready=sum(it.ready for it in members),
            starting=sum(it.node is not None and not it.ready for it in members),
            open=now >= group.closed_until,
            unfit=group.failures.count >= groups.START_FAILURES,
        )

    def _outlook(self, now: float, rows_left: int, shards_left: int) -> sizing.Outlook:
        mean = self._rate.value or self._rate_before
        rates = [group.rate.value or mean for group in self._groups]
        ready = [it for it in self._workers.values() if it.ready]
        placed = [it for it in self._workers.values() if it.node is not None]
        asked_next = next((i for i, group in enumerate(self._groups) if now >= group.closed_until), -1)
        return sizing.Outlook(
            rows_left=rows_left,
            shards_left=shards_left,
            time_left_s=None if self._finish_at is None else self._finish_at - now,
            waited_s=now - self._began,
            ready=len(ready),
            ready_rate=sum(rates[it.group] or 0.0 for it in ready),
            pending_s=[self._delay.still_s(now - it.asked_at) for it in self._workers.values() if not it.ready],
            rate=rates[asked_next],
            start_delay_s=self._delay.value_s,
            node_holds=max((it.node_holds for it in placed), default=1),
            nodes_hold=[self._room(index) for index in range(len(self._groups))],
            losing=self._losing,
        )

    def _room(self, index: int) -> int:
        """Workers of a group that fit the nodes on which this run has some."""
        members = (it for it in self._workers.values() if it.group == index)
        nodes = {it.node: it.node_holds for it in members if it.node is not None}
        return sum(self._crowded.get(node, holds) for node, holds in nodes.items())

    def _released(self, states: Sequence[groups.GroupState], holding: Mapping[int, int]) -> list[int]:
        assert self._wanted is not None, "decided before"
        released: list[int] = []
        for index, number in enumerate(groups.surplus(self._wanted, states)):
            if not number:
                continue
            members = [worker for worker in holding if self._workers[worker].group == index]
            emptiest = groups.emptiest_first(members, self._nodes())
            released += sorted(emptiest, key=lambda w: holding[w])[:number]
        return released

    def _nodes(self) -> dict[int, str]:
        return {worker: it.node or "" for worker, it in self._workers.items() if it.ready}
