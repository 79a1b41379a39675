"""The node that a driver is connected to. Once Ray has given it up, the driver is an owner that is dead to the cluster:
its actors are ended and no new one is ever placed, yet no call fails and the driver would wait for workers for ever.

Seen with Ray 2.60 when the head's raylet is killed while its GCS lives; a driver that loses the GCS is ended by Ray.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from jobs.errors import RunFailed
from jobs.losses import NodeState, node_state

ASK_S = 2.0
CLOSE_S = 1.0


class HomeWatch:
    """Looks at the node in a thread of its own, because Ray waits without end for a GCS that does not answer."""

    def __init__(self, node: str, nodes: Callable[[], Iterable[Mapping[str, Any]]], ask_s: float = ASK_S) -> None:
        """`node` is the id of the driver's node, `nodes` is `ray.nodes`; when that raises, nothing is known."""
        self._node, self._nodes, self._ask_s = node, nodes, ask_s
        self._lost, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="home-watch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Does not wait. Raises RunFailed once the node is lost: another run, connected anew, goes on."""
        if self._lost.is_set():
            raise RunFailed(
                "the Ray node that this run is connected to is lost, and with it all of its workers",
                "run the same command again once the cluster is up: everything committed so far stays",
            )

    def close(self) -> None:
        self._closed.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not (self._closed.wait(self._ask_s) or self._lost.is_set()):
            with suppress(Exception):  # whatever Ray raises: the look is repeated, and a dead node does not come back
                if node_state(self._node, self._nodes()) is not NodeState.ALIVE:
                    self._lost.set()
