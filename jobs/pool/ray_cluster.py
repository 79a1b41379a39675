"""A Ray cluster as the place where workers run: one that exists, or one started on this machine."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError

from jobs.errors import RunFailed, SpecError
from jobs.pool import ray_local
from jobs.pool.contract import Pool
from jobs.pool.nodes import NodeWatch
from jobs.pool.ray_metrics import RayMetrics
from jobs.pool.ray_pool import LOST, RayPool, loss, start_actor
from jobs.progress.snapshot import Snapshot
from workers import logs
from workers.contract import BundleRequest, WorkerSpec
from workers.host.cores import read_topology
from workers.maker import Maker
from workers.outcomes import BundleOutcome, Failure, FailureKind

GCS_CONNECT_S = 10.0
MAKER_CORES = 8
"""More would wait longer for a node with room than they save."""


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes. Raises SpecError for another kind of address, RunFailed if nobody listens."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in address or not host or not port.isdigit():
        raise SpecError(
            f"--address {address}: HOST:PORT of the cluster's GCS is wanted, as 10.0.0.1:6379, or auto",
            "the driver must run in the cluster: from outside, use ray job submit",
        )
    try:
        socket.create_connection((host, int(port)), GCS_CONNECT_S).close()
    except OSError as error:
        raise RunFailed(
            f"no Ray cluster answers at {address}: {error}",
            "check --address or RAY_ADDRESS, and that the cluster is up",
        ) from error


class RayCluster:
    """A cluster that exists (`address`, or RAY_ADDRESS as `ray job submit` sets it), or one started on this machine."""

    def __init__(self, address: str | None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS")
        if self._address:
            _check_reachable(self._address)
        topology = read_topology()
        self._threads_per_core = topology.threads_per_core
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if self._address:
                ray.init(self._address, **options)
            else:
                ray_local.start(topology.budget * topology.threads_per_core, **options)
        except (ConnectionError, RayError, ValueError, RuntimeError) as error:
            raise RunFailed(
                f"cannot reach Ray at {self._address or 'this machine'}: {error}",
                "check --address or RAY_ADDRESS, and that the cluster is up",
            ) from error
        logs.keep_clean()
        self._metrics = RayMetrics()
        self._nodes = NodeWatch(ray.get_runtime_context().get_node_id(), ray.nodes, _draining_nodes)
        self._maker: Any = None
        self._bundle: Any = None
        self._bundle_placing: Any = None
        self._maker_died_at: float | None = None
        """What became of its node is not known yet."""

    def most_workers(self, threads: int) -> int | None:
        return None if self._address else read_topology().budget // threads

    def most_threads(self) -> int | None:
        listing = self._nodes.since(0.0)
        nodes = ray.nodes() if listing is None else listing.nodes  # it answers: this process has only just connected
        cpus = max((int(n["Resources"].get("CPU", 0)) for n in nodes if n["Alive"]), default=0)
        return max(1, cpus // self._threads_per_core) if cpus else None

    def gpus(self) -> int:
        return int(ray.cluster_resources().get("GPU", 0))

    def start_bundle(self, request: BundleRequest, labels: Mapping[str, str]) -> None:
        """Calibration in float is the slow part of making a bundle, so the maker takes several cores of a node."""
        self._end_maker()
        threads = min(MAKER_CORES, self.most_threads() or 1)
        self._maker, self._bundle_placing = start_actor(
            ray.remote(Maker),
            replace(request, threads=threads),
            cpus=threads * self._threads_per_core,
            threads=threads,
            labels=labels,
            any_process=self._address is None,
        )
        self._maker_died_at = None
        self._bundle = self._maker.make.remote()

    def bundle_has_node(self) -> bool:
        return bool(ray.wait([self._bundle_placing], timeout=0)[0])

    def poll_bundle(self, timeout_s: float) -> BundleOutcome | Failure | None:
        self._nodes.check()
        ended, _ = ray.wait([self._bundle], timeout=timeout_s)
        if not ended:
            return None
        try:
            outcome: BundleOutcome | Failure = ray.get(self._bundle)
        except LOST as error:
            self._maker_died_at = self._maker_died_at or time.monotonic()
            what = "the worker that makes the bundle was"
            failure = loss(what, error, self._maker_died_at, self._maker_node(), self._nodes)
            if failure is None:
                time.sleep(timeout_s)
                return None
            outcome = failure
        except RayError as error:
            outcome = Failure(kind=FailureKind.TASK, message=f"{type(error).__name__}: {error}")
        self._end_maker()
        return outcome

    def _maker_node(self) -> str | None:
        """Its id; None where the maker was lost before it had one."""
        if not self.bundle_has_node():
            return None
        try:
            node: str = ray.get(self._bundle_placing)
        except RayError:
            return None
        return node

    def _end_maker(self) -> None:
        if self._maker is not None:
            ray.kill(self._maker)
            self._maker = None

    def pool(self, spec: WorkerSpec) -> Pool:
        return RayPool(spec, self._threads_per_core, self._nodes, any_process=self._address is None)

    def describe(self) -> str:
        resources = ray.cluster_resources()
        free = ray.available_resources().get("CPU", 0)
        where = f"Ray at {self._address}" if self._address else "local Ray"
        return f"{where}: {resources.get('CPU', 0):.0f} CPUs, {free:.0f} free"

    def publish(self, snapshot: Snapshot) -> None:
        self._metrics.publish(snapshot)

    def close(self) -> None:
        self._nodes.close()
        ray.shutdown()


def _draining_nodes() -> Mapping[str, int]:
    from ray._private.state import state  # Ray offers it nowhere else

    deadlines_ms: Mapping[str, int] = state.get_draining_nodes()
    return deadlines_ms
