"""Where the workers of a command run: a Ray cluster, a Ray of this machine's own, or the command's process."""

from __future__ import annotations

import os

from jobs.interrupt import InterruptFlag
from jobs.pool.contract import Cluster


def in_cluster(address: str | None) -> bool:
    """Whether workers run in a cluster that is there, and not on this machine alone."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def connect(pool: str, address: str | None, flag: InterruptFlag) -> Cluster:
    """`pool` is `ray` or `local`. Raises what connecting to Ray does, see jobs.pool.ray_cluster."""
    cluster: Cluster
    if pool == "local":
        from jobs.pool.local import LocalCluster

        cluster = LocalCluster()
    else:
        from jobs.pool.ray_cluster import RayCluster

        cluster = RayCluster(address)
    flag.install()  # ray.init puts its own handlers in place
    return cluster
