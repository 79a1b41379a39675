"""The books on workers: who was asked for when and where, what is measured, and what that means for their number.

Time comes in as a number; nothing here waits, and nothing knows what a worker is made of. The loop reports events and
carries out what `decide` says; the decisions themselves are the pure functions of `sizing` and `groups`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.fleet import groups, sizing
from jobs.fleet.sizing import pool_target
from jobs.spec.schema import Workers

# ----------------------------------------------------------------------------------------------------
# The fleet's list of workers: how many of each group are asked for, starting and ready, and on which nodes.
# Everything that is asked often is counted when a worker changes rather than when it is asked, because ten thousand
# workers are asked about many times a second. Time comes in as a number.


@dataclass
class Member:
    """One worker."""

    group: int
    asked_at: float
    node: str | None = None
    ready: bool = False
    node_holds: int = 1
    since: float = 0.0
    """Since when its time counts as that of the shard it holds."""
    rate: sizing.Rate = field(default_factory=sizing.Rate)
    """Of attempts that ended well."""


@dataclass
class Crew:
    """The workers of one group, each in one of three states; the one asked for first comes first."""

    pending: dict[int, Member] = field(default_factory=dict)
    """Asked for, without a node."""
    starting: dict[int, Member] = field(default_factory=dict)
    """On a node, not yet ready."""
    ready: dict[int, Member] = field(default_factory=dict)

    def of(self, it: Member) -> dict[int, Member]:
        """Where a worker in this state belongs."""
        if it.ready:
            return self.ready
        return self.pending if it.node is None else self.starting


@dataclass(frozen=True)
class Places:
    """What the nodes hold on which this run has workers."""

    node_holds: int
    """Workers that fit the largest of them."""
    rooms: tuple[int, ...]
    """For each group, workers that fit its nodes; of a crowded node those count that this run has there."""


class Roster:
    """Workers that are asked for or up, but for those that are told to go."""

    def __init__(self, number_of_groups: int) -> None:
        self.crews = [Crew() for _ in range(number_of_groups)]
        self._members: dict[int, Member] = {}
        self._on_node: Counter[str] = Counter()
        """Ready workers by node, the empty name for those of which none is known."""
        self._crowded: Counter[str] = Counter()
        """Nodes that are shared with others, each with the workers of this run that fit it."""
        self._places: Places | None = None

    def __contains__(self, worker: int) -> bool:
        return worker in self._members

    def __getitem__(self, worker: int) -> Member:
        return self._members[worker]

    def get(self, worker: int) -> Member | None:
        return self._members.get(worker)

    # ------------------------------------------------------------------------------------------ changes

    def add(self, worker: int, it: Member) -> None:
        self._members[worker] = it
        self._enter(worker, it)

    def placed(self, worker: int, node: str, node_holds: int) -> None:
        it = self._members[worker]
        self._leave(worker, it)
        it.node, it.node_holds = node, node_holds
        self._enter(worker, it)
        self._crowded.pop(node, None)

    def ready(self, worker: int, now: float) -> None:
        it = self._members[worker]
        self._leave(worker, it)
        it.ready, it.since = True, now
        self._enter(worker, it)

    def remove(self, worker: int) -> Member:
        it = self._members.pop(worker)
        self._leave(worker, it)
        return it

    def crowd(self, group: int) -> None:
        """Others have the room that is left on the group's nodes."""
        self._crowded |= Counter(it.node for it in self._placed(group) if it.node is not None)
        self._places = None

    def _enter(self, worker: int, it: Member) -> None:
        self.crews[it.group].of(it)[worker] = it
        if it.ready:
            self._on_node[it.node or ""] += 1
        self._places = None

    def _leave(self, worker: int, it: Member) -> None:
        del self.crews[it.group].of(it)[worker]
        if it.ready:
            self._on_node[it.node or ""] -= 1
        self._places = None

    # ---------------------------------------------------------------------------------------- questions

    @property
    def places(self) -> Places:
        if self._places is None:
            nodes = [
                {it.node: it.node_holds for it in self._placed(group) if it.node is not None}
                for group in range(len(self.crews))
            ]
            self._places = Places(
                node_holds=max((holds for held in nodes for holds in held.values()), default=1),
                rooms=tuple(sum(self._crowded.get(node, holds) for node, holds in held.items()) for held in nodes),
            )
        return self._places

    def emptiest_first(self, workers: Collection[int]) -> list[int]:
        """See groups.emptiest_first; of ready workers."""
        node_of = {worker: self._members[worker].node or "" for worker in workers}
        return groups.emptiest_first(list(workers), node_of, self._on_node)

    def in_order(self, holding: Mapping[int, int]) -> list[int]:
        """Ready workers in the order in which they get shards: those with fewest, and of them those on full nodes."""
        fullest_first = self.emptiest_first(holding.keys())[::-1]
        return sorted(fullest_first, key=lambda worker: holding[worker])

    def _placed(self, group: int) -> list[Member]:
        crew = self.crews[group]
        return [*crew.starting.values(), *crew.ready.values()]


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


def terms_of(workers: Workers) -> Terms:
    """What the spec's section says, for the fleet. Without groups there is one, of any node."""
    groups = [GroupTerms(labels=g.labels, most=g.max, patience_s=g.patience_s) for g in workers.groups]
    return Terms(least=workers.min, most=workers.max, groups=groups or [GroupTerms()])


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
        self._roster = Roster(len(terms.groups))
        self._leaving: dict[int, Member] = {}
        """Told to go: they finish what they hold and count as gone already."""
        self._groups = [_Group(group) for group in terms.groups]
        self._rate = sizing.Rate()
        self._delay = sizing.StartDelay()
        self._wanted: int | None = None
        self._losing = False
        self._failures = _StartFailures()

    # ------------------------------------------------------------------------------------------ events

    def asked(self, worker: int, group: int, now: float) -> None:
        self._roster.add(worker, Member(group, now))

    def placed(self, worker: int, node: str, node_holds: int, now: float) -> None:
        """It has a node, with room for so many workers in all; its start is under way."""
        self._groups[self._known(worker).group].placed_at = now
        if worker in self._roster:
            self._roster.placed(worker, node, node_holds)

    def ready(self, worker: int, now: float) -> None:
        it = self._known(worker)
        if worker in self._roster:
            self._roster.ready(worker, now)
        else:
            it.ready, it.since = True, now
        self._failures = _StartFailures()
        self._groups[it.group].failures = _StartFailures()
        self._delay.add(now - it.asked_at)

    def assigned(self, worker: int, held: int, now: float) -> None:
        """`held` shards it had before."""
        if not held:
            self._roster[worker].since = now

    def shard_ended(self, worker: int, rows: int, now: float) -> None:
        """An attempt came to its end, with so many rows committed."""
        it = self._known(worker)
        for rate in (self._rate, self._groups[it.group].rate):
            rate.add(rows, now - it.since)
        if rows:
            it.rate.add(rows, now - it.since)
        it.since = now

    def leaving(self, worker: int) -> None:
        """Its node is about to be taken away, or it is itself: no more shards for it, and another in its place."""
        if worker in self._roster:
            self._leaving[worker] = self._roster.remove(worker)
            self._losing |= self._leaving[worker].ready

    def gone(self, worker: int, now: float, *, held: int) -> None:
        """It failed to start, or died with `held` shards."""
        if held:
            self.shard_ended(worker, 0, now)
        if self._leaving.pop(worker, None):
            return
        it = self._roster.remove(worker)
        self._losing |= it.ready
        if not it.ready:
            group = self._groups[it.group]
            for failures in (group.failures, self._failures):
                failures.add(it.asked_at, now)
            if group.failures.count >= groups.START_FAILURES:
                group.closed_until = now + groups.REOPEN_S

    def ended(self, worker: int) -> None:
        if not self._leaving.pop(worker, None):
            self._roster.remove(worker)

    # --------------------------------------------------------------------------------------- questions

    def labels(self, group: int) -> Mapping[str, str]:
        return self._groups[group].terms.labels

    def others_to_try(self) -> bool:
        """Whether a group that is asked next may start workers where another could not."""
        return any(g.failures.count < groups.START_FAILURES for g in self._groups) and len(self._groups) > 1

    @property
    def start_failures(self) -> int:
        """Times in a row that what was asked for failed to start."""
        return self._failures.count

    def stays(self, worker: int) -> bool:
        """It is not told to go."""
        return worker in self._roster

    def s_a_row(self, worker: int) -> float | None:
        """Seconds that a worker takes for a row: as it has shown, or else its group, or all; None if nobody knows."""
        it = self._known(worker)
        rate = it.rate.value or self._groups[it.group].rate.value or self._rate.value or self._rate_before
        return 1 / rate if rate else None

    def in_order(self, holding: Mapping[int, int]) -> list[int]:
        """Ready workers in the order in which they get shards: those with fewest, and of them those on full nodes."""
        return self._roster.in_order(holding)

    def to_let_go(self, idle: Collection[int], ready: int, shards: int) -> list[int]:
        """Which of the workers that hold nothing to let go, of so many that are ready and stay, for so many shards."""
        surplus = ready - pool_target(shards, least=self._terms.least, most=self._terms.most)
        return self._roster.emptiest_first(idle)[:surplus] if idle and surplus > 0 else []

    # ---------------------------------------------------------------------------------------- decision

    def decide(self, now: float, *, rows_left: int, shards_left: int, holding: Mapping[int, int]) -> Decision:
        """`holding` are the ready workers, each with the number of shards it holds."""
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
            pending = list(self._roster.crews[index].pending)
            start += [index] * (number - len(pending))
            end += pending[number:]  # the youngest: the oldest are nearest to a node
        release = self._released(states, holding)
        end += [worker for worker in release if not holding[worker]]
        end += [worker for worker in self._leaving if not holding.get(worker)]
        return Decision(wanted=self._wanted, start=start, end=end, release=frozenset(release) | self._leaving.keys())

    def _known(self, worker: int) -> Member:
        return self._roster.get(worker) or self._leaving[worker]

    # ----------------------------------------------------------------------------------------- figures

    def _close_groups(self, now: float) -> None:
        for group, crew in zip(self._groups, self._roster.crews, strict=True):
            oldest, patience_s = next(iter(crew.pending.values()), None), group.terms.patience_s
            if oldest is not None and patience_s is not None and now - oldest.asked_at > patience_s:
                group.closed_until = now + groups.REOPEN_S

    def _notice_crowds(self, now: float) -> None:
        """Another run's workers on our nodes: to count on their places would bring up node after node to fill."""
        for index, group in enumerate(self._groups):
            oldest = next(iter(self._roster.crews[index].pending.values()), None)
            if oldest is not None and now - max(oldest.asked_at, group.placed_at) > CROWDED_S:
                self._roster.crowd(index)

    def _state(self, index: int, now: float) -> groups.GroupState:
        group, crew = self._groups[index], self._roster.crews[index]
        return groups.GroupState(
            most=group.terms.most,
            ready=len(crew.ready),
            starting=len(crew.starting),
            open=now >= group.closed_until,
            unfit=group.failures.count >= groups.START_FAILURES,
        )

    def _outlook(self, now: float, rows_left: int, shards_left: int) -> sizing.Outlook:
        mean = self._rate.value or self._rate_before
        rates = [group.rate.value or mean for group in self._groups]
        crews, places = self._roster.crews, self._roster.places
        asked_next = next((i for i, group in enumerate(self._groups) if now >= group.closed_until), -1)
        on_their_way = (it for crew in crews for state in (crew.pending, crew.starting) for it in state.values())
        return sizing.Outlook(
            rows_left=rows_left,
            shards_left=shards_left,
            time_left_s=None if self._finish_at is None else self._finish_at - now,
            waited_s=now - self._began,
            ready=sum(len(crew.ready) for crew in crews),
            ready_rate=sum(len(crew.ready) * (rate or 0.0) for crew, rate in zip(crews, rates, strict=True)),
            pending_s=self._delay.still_s(now - it.asked_at for it in on_their_way),
            rate=rates[asked_next],
            start_delay_s=self._delay.value_s,
            node_holds=places.node_holds,
            nodes_hold=places.rooms,
            losing=self._losing,
        )

    def _released(self, states: Sequence[groups.GroupState], holding: Mapping[int, int]) -> list[int]:
        assert self._wanted is not None, "decided before"
        released: list[int] = []
        for index, number in enumerate(groups.surplus(self._wanted, states)):
            if number:
                members = [worker for worker in self._roster.crews[index].ready if worker in holding]
                emptiest = self._roster.emptiest_first(members)
                released += sorted(emptiest, key=lambda w: holding[w])[:number]
        return released
