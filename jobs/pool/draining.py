"""Which nodes Ray is draining, and what workers on them have to be told: a node that is preempted, or scaled down.

A drained node takes no new workers; the old ones go on until it is shut down, and Ray tells them nothing. `ray start
--block` drains its own node for `RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S` when it gets SIGTERM, hence whenever Kubernetes
takes its pod away; it ends early once the node's workers are gone.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)

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
