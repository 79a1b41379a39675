"""Free ports of loopback, for the servers that the tests start."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress

PORTS = 20_000, 32_000
"""Above those of Ray's workers, below those that Linux gives to connections."""
_chance = random.SystemRandom()


def free_ports(count: int) -> list[int]:
    """`count` different ones, none of those that the kernel gives to connections: until a server listens, one of its
    own might get it. Drawn from the machine's chance: Hypothesis seeds `random` alike in every process of the suite.
    """
    ports: list[int] = []
    with ExitStack() as held:  # each is held until all are drawn, so that none is drawn twice
        while len(ports) < count:
            with suppress(OSError):
                s = held.enter_context(socket.socket())
                s.bind(("127.0.0.1", port := _chance.randrange(*PORTS)))
                ports.append(port)
    return ports
