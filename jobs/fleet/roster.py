"""The fleet's list of workers: how many of each group are asked for, starting and ready, and on which nodes.

Everything that is asked often is counted when a worker changes rather than when it is asked, because ten thousand
workers are asked about many times a second. Time comes in as a number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from jobs.fleet import groups, sizing


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
