"""The nodes of a Ray cluster, as they were when last asked for, and the one of them that this driver is connected to.

Ray waits without end for a GCS that does not answer, so it is asked in a thread of its own. (`ray.nodes()` alone waits:
calls of actors, their creation and their end go on.)

Once Ray has given up the driver's own node, the driver is an owner that is dead to the cluster: its actors are ended
and no new one is ever placed, yet no call fails and the driver would wait for workers for ever. Seen with Ray 2.60 when
the head's raylet is killed while its GCS lives. A driver whose GCS is gone for a minute is ended by Ray, with code 1.
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

# ----------------------------------------------------------------------------------------------------
# How a worker was lost, from facts rather than from what an error says. Pure. What Ray 2.60 does, as tried on several
# raylets: - A worker's process that dies (kill -9, a segfault): ActorDiedError within milliseconds, its node stays
# alive. - A raylet that gets SIGTERM, with or without its workers: ActorDiedError within milliseconds; the node is
# dead by then, with the reason EXPECTED_TERMINATION. - A raylet that is killed, or a machine that vanishes:
# ActorDiedError after the health check has given the node up, 15 s with Ray's settings; the node is dead by then,
# with the reason UNSPECIFIED or UNEXPECTED_TERMINATION. - A worker that dies some milliseconds before its raylet:
# ActorDiedError at once, and nothing tells that the node is going too for as long as the health check takes. It
# counts as crashed, which is harmless: its shards go alone. - ActorDiedError.preempted only after a drain by the
# autoscaler; OutOfMemoryError by Ray's memory monitor.

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


logger = logging.getLogger(__name__)

ASK_S = 2.0
SILENT_S = 15.0
CLOSE_S = 1.0


@dataclass(frozen=True)
class Look:
    began: float
    """By time.monotonic."""
    nodes: Sequence[Mapping[str, Any]]
    """As `ray.nodes()` tells them."""

    def cpus(self, node: str) -> float | None:
        """Logical CPUs of a node; None where it is not known, or gone."""
        return self._resource(node, "CPU")

    def gpus(self, node: str) -> float | None:
        """GPUs of a node; None where it is not known, or gone."""
        return self._resource(node, "GPU")

    def _resource(self, node: str, name: str) -> float | None:
        return next((n["Resources"].get(name, 0) for n in self.nodes if n["NodeID"] == node and n["Alive"]), None)


class NodeWatch:
    def __init__(self, home: str, ask: Callable[[], Iterable[Mapping[str, Any]]], every_s: float = ASK_S) -> None:
        """`home` is the id of the driver's node, `ask` is `ray.nodes`; when that raises, nothing is known."""
        self._home, self._ask, self._every_s = home, ask, every_s
        self._look: Look | None = None
        self._answered_at = time.monotonic()
        self._told_silent = False
        self._lost, self._closed, self._soon = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-watch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Does not wait. Raises RunFailed once the driver's node is lost: another run, connected anew, goes on."""
        if self._lost.is_set():
            raise RunFailed(
                "the Ray node that this run is connected to is lost, and with it all of its workers",
                "run the same command again once the cluster is up: everything committed so far stays",
            )
        silent = time.monotonic() - self._answered_at > SILENT_S
        if silent and not self._told_silent:
            logger.warning(
                "the Ray cluster has not answered for %.0f s. If it stays away Ray ends this run, and everything "
                "committed so far stays: run the same command again once the cluster is up",
                SILENT_S,
            )
        self._told_silent = silent

    def since(self, at: float) -> Look | None:
        """The last look, if it began after `at` (time.monotonic). Does not wait; None asks for another look soon."""
        look = self._look
        if look is not None and look.began > at:
            return look
        self._soon.set()
        return None

    def close(self) -> None:
        self._closed.set()
        self._soon.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not (self._closed.is_set() or self._lost.is_set()):
            self._soon.clear()
            began = time.monotonic()
            with suppress(Exception):  # whatever Ray raises: the look is repeated, and a dead node does not come back
                self._look = look = Look(began, list(self._ask()))
                self._answered_at = time.monotonic()
                if node_state(self._home, look.nodes) is not NodeState.ALIVE:
                    self._lost.set()
            self._soon.wait(self._every_s)


# ----------------------------------------------------------------------------------------------------
# Which nodes Ray is draining, and what workers on them have to be told: a node that is preempted, or scaled down. A
# drained node takes no new workers; the old ones go on until it is shut down, and Ray tells them nothing. `ray start
# --block` drains its own node for `RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S` when it gets SIGTERM, hence whenever
# Kubernetes takes its pod away; it ends early once the node's workers are gone.


DRAIN_ASK_S = 1.0
"""Between two looks at the cluster; a node has tens of seconds, and a look takes about a millisecond."""
EARLIER_S = 1.0
"""A deadline that moved up by less is no news."""
CLOSE_S = 1.0


def news(
    deadlines_ms: Mapping[str, int], nodes: Mapping[int, str], told_ms: Mapping[int, float], now_ms: float
) -> dict[int, tuple[float, float]]:
    """Workers that have to be told, each with its deadline and the seconds that are left to it; both may be infinite.

    `deadlines_ms` are those of draining nodes, in Unix time, 0 for none, as Ray has them; `nodes` where each worker is,
    `told_ms` the deadlines that workers know of. A worker is told once, and again if its time becomes shorter.
    """
    found = {}
    for worker, node in nodes.items():
        if node in deadlines_ms:
            deadline_ms = deadlines_ms[node] or math.inf
            known_ms = told_ms.get(worker)
            if known_ms is None or deadline_ms < known_ms - EARLIER_S * 1000:
                found[worker] = deadline_ms, max(0.0, (deadline_ms - now_ms) / 1000)
    return found


class DrainWatch:
    """Asks for draining nodes in a thread of its own, because Ray waits without end for a GCS that does not answer."""

    def __init__(self, ask: Callable[[], Mapping[str, int]], wall: Callable[[], float] = time.time) -> None:
        """`ask` returns the draining nodes with their deadlines. It may raise anything: nothing is known then."""
        self._ask, self._wall = ask, wall
        self._deadlines_ms: Mapping[str, int] = {}
        self._told_ms: dict[int, float] = {}
        self._closed = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="drain-watch", daemon=True)
        self._thread.start()

    def news(self, nodes: Mapping[int, str]) -> dict[int, float]:
        """Workers whose node drains and that have not been told, each with the seconds left. Does not wait."""
        if not self._deadlines_ms:
            return {}  # as nearly always
        found = news(self._deadlines_ms, nodes, self._told_ms, self._wall() * 1000)
        self._told_ms |= {worker: deadline_ms for worker, (deadline_ms, _) in found.items()}
        return {worker: left_s for worker, (_, left_s) in found.items()}

    def close(self) -> None:
        self._closed.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                self._deadlines_ms = self._ask()
                self._failing = False
            except Exception as error:  # noqa: BLE001  (a Ray without it, or a cluster on its way out, costs the notice only)
                if not self._failing and not self._closed.is_set():
                    logger.warning("draining nodes are not known, their workers are lost without notice: %r", error)
                self._failing = True
            self._closed.wait(DRAIN_ASK_S)
