"""Groups of nodes with the workers in each, and which one is asked next: the preferred one while it delivers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from jobs.scaling.sizing import RecentRate
from jobs.spec.schema import Group, Workers

REOPEN_S = 900.0
"""After this a group that had no nodes is asked again."""
GROUP_START_FAILURES = 3
"""Workers that may fail to start in a row in one group before the next is asked."""
ANY_NODE = Group.model_construct(labels={})
"""The group of a spec that names none; a spec cannot name a group without labels itself."""


def groups_of(workers: Workers) -> Sequence[Group]:
    """The spec's groups of nodes in the order of preference; without any there is one, of any node."""
    return workers.groups or (ANY_NODE,)


@dataclass
class StartFailures:
    """Workers that failed to start, in a row. Those that were asked for together count once: a node took them along."""

    count: int = 0
    last_at: float = -math.inf

    def add(self, asked_at: float, now: float) -> None:
        if asked_at >= self.last_at:
            self.count, self.last_at = self.count + 1, now


@dataclass(eq=False)
class NodeGroup:
    """A group of nodes, and its workers but for those that are leaving; the one asked for first comes first."""

    spec: Group = ANY_NODE
    pending: dict[int, None] = field(default_factory=dict)
    """Asked for, without a node."""
    starting: dict[int, None] = field(default_factory=dict)
    """On a node, not yet ready."""
    ready: dict[int, None] = field(default_factory=dict)
    closed_until: float = 0.0
    """The group is known to have no nodes, or none where workers start."""
    placed_at: float = -math.inf
    """When a worker found a node the last time."""
    failures: StartFailures = field(default_factory=StartFailures)
    rate: RecentRate = field(default_factory=RecentRate)

    @property
    def placed(self) -> int:
        return len(self.ready) + len(self.starting)

    @property
    def unfit(self) -> bool:
        """Workers that got a node did not start on it."""
        return self.failures.count >= GROUP_START_FAILURES

    def open(self, now: float) -> bool:
        return now >= self.closed_until

    def room(self, wanted: int) -> int:
        return wanted if self.spec.max is None else max(0, min(wanted, self.spec.max - self.placed))


def requests(wanted: int, groups: Sequence[NodeGroup], now: float, *, replace: bool) -> list[int]:
    """How many workers each group should be asked for, beyond those that have a node.

    The last group is never closed, and those without nodes are asked for what no other may take: nobody else is left.
    With `replace`, an open group is also asked for as many as work in groups less preferred: when they are ready,
    `surplus` lets those go.
    """
    short = max(0, wanted - sum(group.placed for group in groups))
    asked = []
    for index, group in enumerate(groups):
        is_last = index == len(groups) - 1
        take = group.room(short) if group.open(now) or is_last else 0
        short -= take
        if replace and group.open(now) and not is_last:
            others = sum(len(other.ready) for other in groups[index + 1 :])
            take = group.room(min(take + others, max(0, wanted - group.placed)))
        asked.append(take)
    for index, group in enumerate(groups[:-1]):
        if not group.open(now) and not group.unfit:
            asked[index] = group.room(short)
            short -= asked[index]
    return asked


def surplus(wanted: int, groups: Sequence[NodeGroup]) -> list[int]:
    """How many ready workers each group should let go: those beyond `wanted` of less preferred groups.

    Within the most preferred group that works none is: the rows that it would not score cost as much elsewhere.
    """
    over = sum(len(group.ready) for group in groups) - wanted
    preferred = next((index for index, group in enumerate(groups) if group.ready), 0)
    released = [0] * len(groups)
    for index in range(len(groups) - 1, preferred, -1):
        released[index] = max(0, min(over, len(groups[index].ready)))
        over -= released[index]
    return released
