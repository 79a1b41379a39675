"""Which group of nodes workers are asked for in: the preferred one while it delivers, else the next. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, kw_only=True)
class GroupState:
    """One group, in the order of preference."""

    most: int | None = None
    """Workers at most; None where only the spec's max counts."""
    ready: int = 0
    starting: int = 0
    """On a node, not yet ready."""
    open: bool = True
    """False while the group is known to have no nodes, or none where workers start."""
    unfit: bool = False
    """Workers that got a node did not start on it."""

    @property
    def held(self) -> int:
        return self.ready + self.starting

    def room(self, wanted: int) -> int:
        return wanted if self.most is None else max(0, min(wanted, self.most - self.held))


def requests(wanted: int, groups: Sequence[GroupState], *, replace: bool) -> list[int]:
    """How many workers each group should be asked for, beyond those that have a node.

    The last group is never closed, and those without nodes are asked for what no other may take: nobody else is left.
    With `replace`, an open group is also asked for as many as work in groups less preferred: when they are ready,
    `surplus` lets those go.
    """
    short = max(0, wanted - sum(group.held for group in groups))
    asked = []
    for index, group in enumerate(groups):
        is_last = index == len(groups) - 1
        take = group.room(short) if group.open or is_last else 0
        short -= take
        if replace and group.open and not is_last:
            others = sum(other.ready for other in groups[index + 1 :])
            take = group.room(min(take + others, max(0, wanted - group.held)))
        asked.append(take)
    for index, group in enumerate(groups[:-1]):
        if not group.open and not group.unfit:
            asked[index] = group.room(short)
            short -= asked[index]
    return asked


def surplus(wanted: int, groups: Sequence[GroupState]) -> list[int]:
    """How many ready workers each group should let go: those beyond `wanted` of less preferred groups.

    Within the most preferred group that works none is: the rows that it would not score cost as much elsewhere.
    """
    over = sum(group.ready for group in groups) - wanted
    preferred = next((index for index, group in enumerate(groups) if group.ready), 0)
    released = [0] * len(groups)
    for index in range(len(groups) - 1, preferred, -1):
        released[index] = max(0, min(over, groups[index].ready))
        over -= released[index]
    return released
