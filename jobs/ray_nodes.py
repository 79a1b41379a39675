"""The nodes of a Ray cluster, as they were when last asked for, and the one of them that this driver is connected to.

Ray waits without end for a GCS that does not answer, so it is asked in a thread of its own. (`ray.nodes()` alone waits:
calls of actors, their creation and their end go on.)

Once Ray has given up the driver's own node, the driver is an owner that is dead to the cluster: its actors are ended
and no new one is ever placed, yet no call fails and the driver would wait for workers for ever. Seen with Ray 2.60 when
the head's raylet is killed while its GCS lives. A driver whose GCS is gone for a minute is ended by Ray, with code 1.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from jobs.errors import RunFailed
from jobs.losses import NodeState, node_state

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
        while True:
            self._soon.clear()  # before all that it stands for is looked at: what is set later is heard below
            if self._closed.is_set() or self._lost.is_set():
                return
            began = time.monotonic()
            with suppress(Exception):  # whatever Ray raises: the look is repeated, and a dead node does not come back
                self._look = look = Look(began, list(self._ask()))
                self._answered_at = time.monotonic()
                if node_state(self._home, look.nodes) is not NodeState.ALIVE:
                    self._lost.set()
            self._soon.wait(self._every_s)
