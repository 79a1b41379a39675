"""How a worker was lost, from facts rather than from what an error says. Pure.

What Ray 2.60 does, as tried on several raylets:
- A worker's process that dies (kill -9, a segfault): ActorDiedError within milliseconds, its node stays alive.
- A raylet that gets SIGTERM, with or without its workers: ActorDiedError within milliseconds; the node is dead by then,
  with the reason EXPECTED_TERMINATION.
- A raylet that is killed, or a machine that vanishes: ActorDiedError after the health check has given the node up, 15 s
  with Ray's settings; the node is dead by then, with the reason UNSPECIFIED or UNEXPECTED_TERMINATION.
- A worker that dies some milliseconds before its raylet: ActorDiedError at once, and nothing tells that the node is
  going too for as long as the health check takes. It counts as crashed, which is harmless: its shards go alone.
- ActorDiedError.preempted only after a drain by the autoscaler; OutOfMemoryError by Ray's memory monitor.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import Any

from workers.outcomes import FailureCode

NOTICED_DEATHS = frozenset({1, 3, 4})
"""Of Ray's NodeDeathInfo.Reason: EXPECTED_TERMINATION, AUTOSCALER_DRAIN_PREEMPTED, AUTOSCALER_DRAIN_IDLE."""

HOW_LOST = {
    FailureCode.PREEMPTED: "it was taken away with notice",
    FailureCode.NODE_LOST: "its node is gone, or cannot be reached",
    FailureCode.MEMORY: "Ray's memory monitor ended it",
    FailureCode.CRASHED: "its process died, and its node lives on",
}
"""For a person; what Ray says of it takes many lines."""


class NodeState(enum.Enum):
    ALIVE = "alive"
    TAKEN = "taken"
    """Shut down in order, as nodes are that somebody wants back."""
    LOST = "lost"


def node_state(node: str | None, nodes: Iterable[Mapping[str, Any]]) -> NodeState:
    """Of a node id, from `ray.nodes()`. A node that is not known there, or None, is lost."""
    for info in nodes:
        if info["NodeID"] == node:
            if info["Alive"]:
                return NodeState.ALIVE
            return NodeState.TAKEN if info.get("DeathReason") in NOTICED_DEATHS else NodeState.LOST
    return NodeState.LOST


def loss_code(*, preempted: bool, out_of_memory: bool, unavailable: bool, node: NodeState) -> FailureCode:
    """`preempted` and `unavailable` (nobody can reach it, it may well live) are what Ray says of the actor."""
    if preempted or node is NodeState.TAKEN:
        return FailureCode.PREEMPTED
    if out_of_memory:
        return FailureCode.MEMORY
    return FailureCode.CRASHED if node is NodeState.ALIVE and not unavailable else FailureCode.NODE_LOST
