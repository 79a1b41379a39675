"""The nodes of a Ray cluster, as they were when last asked for: which are alive, which drain, how a worker was lost.

Ray waits without end for a GCS that does not answer, so it is asked in a thread of its own. (`ray.nodes()` alone waits:
calls of actors, their creation and their end go on.) What Ray says of nodes and workers that are lost, as it was tried,
is in ARCHITECTURE.md, Errors.

A drained node (preempted, or scaled down) takes no new workers; the old ones go on until it is shut down, and Ray tells
them nothing. `ray start --block` drains its own node for `RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S` when it gets SIGTERM,
hence whenever Kubernetes takes its pod away; it ends early once the node's workers are gone.
"""

from __future__ import annotations

import enum
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jobs.errors import RunFailed
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
DRAIN_ASK_S = 1.0
"""How often draining nodes are asked for: one has tens of seconds, and an answer takes about a millisecond."""
ASK_S = 2.0
"""How often all nodes are asked for."""
CLUSTER_SILENT_S = 15.0
JOIN_S = 1.0
EARLIER_S = 1.0
"""A deadline that moved up by less is no news."""
_logger = logging.getLogger(__name__)


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


def drain_notice(deadline_ms: int, known_ms: float | None, now_ms: float) -> tuple[float, float] | None:
    """The deadline of which a worker is to be given notice, and the seconds left to it; both may be infinite.

    `deadline_ms` is that of its draining node, in Unix time, 0 for none, as Ray has it; `known_ms` the one that the
    worker knows of. It gets notice once, and again if its time becomes shorter.
    """
    by_ms = deadline_ms or math.inf
    if known_ms is not None and by_ms >= known_ms - EARLIER_S * 1000:
        return None
    return by_ms, max(0.0, (by_ms - now_ms) / 1000)


@dataclass(frozen=True)
class NodeListing:
    """An answer of `ray.nodes()`."""

    began: float
    """When it was asked for, by time.monotonic."""
    nodes: Sequence[Mapping[str, Any]]

    def resource(self, node: str, name: str) -> float | None:
        """How much of `CPU` (logical ones) or `GPU` a node has; None where it is not known, or gone."""
        return next((n["Resources"].get(name, 0) for n in self.nodes if n["NodeID"] == node and n["Alive"]), None)


class NodeWatch:
    """Asks for the cluster's nodes, and for those that drain, in a thread of its own. Nothing here waits for Ray."""

    def __init__(
        self,
        home: str,
        ask: Callable[[], Iterable[Mapping[str, Any]]],
        ask_draining: Callable[[], Mapping[str, int]] = dict,
        *,
        every_s: float = ASK_S,
    ) -> None:
        """`home` is the id of the driver's node. When `ask` (`ray.nodes`) or `ask_draining` raises, nothing is known.

        `ask_draining` gives the ids of draining nodes, each with its deadline in Unix milliseconds, 0 for none.
        """
        self.draining: Mapping[str, int] = {}
        self._home, self._ask, self._ask_draining, self._every_s = home, ask, ask_draining, every_s
        self._listing: NodeListing | None = None
        self._answered_at = time.monotonic()
        self._warned_silent = self._warned_draining = False
        self._lost, self._closed, self._soon = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-watch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises RunFailed once the driver's node is lost: another run, connected anew, goes on."""
        if self._lost.is_set():
            raise RunFailed(
                "the Ray node that this run is connected to is lost, and with it all of its workers",
                "run the same command again once the cluster is up: everything committed so far stays",
            )
        silent = time.monotonic() - self._answered_at > CLUSTER_SILENT_S
        if silent and not self._warned_silent:
            _logger.warning(
                "the Ray cluster has not answered for %.0f s. If it stays away Ray ends this run, and everything "
                "committed so far stays: run the same command again once the cluster is up",
                CLUSTER_SILENT_S,
            )
        self._warned_silent = silent

    def since(self, at: float) -> NodeListing | None:
        """The last listing, if it was asked for after `at` (time.monotonic); None asks for another one soon."""
        listing = self._listing
        if listing is not None and listing.began > at:
            return listing
        self._soon.set()
        return None

    def close(self) -> None:
        self._closed.set()
        self._soon.set()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        due = -math.inf
        while True:
            wanted = self._soon.is_set()
            self._soon.clear()  # before what it stands for is looked at: whatever is set later ends the wait below
            if self._closed.is_set() or self._lost.is_set():
                return
            began = time.monotonic()
            if wanted or began >= due:
                due = began + self._every_s
                with suppress(Exception):  # whatever Ray raises: it is asked again, and a dead node does not come back
                    self._listing = listing = NodeListing(began, list(self._ask()))
                    self._answered_at = time.monotonic()
                    if node_state(self._home, listing.nodes) is not NodeState.ALIVE:
                        self._lost.set()
            try:
                self.draining = self._ask_draining()
                self._warned_draining = False
            except Exception as error:  # noqa: BLE001  (a Ray without it, or a cluster on its way out, costs the notice only)
                if not self._warned_draining and not self._closed.is_set():
                    _logger.warning("draining nodes are not known, their workers are lost without notice: %r", error)
                self._warned_draining = True
            self._soon.wait(min(self._every_s, DRAIN_ASK_S))
