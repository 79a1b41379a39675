"""A Ray cluster as the place where workers run: one that exists, or one started on this machine."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import replace
from typing import Any

import ray
from ray._private.state import state
from ray.exceptions import RayError
from ray.util.metrics import Counter, Gauge

from jobs.errors import RunFailed, SpecError
from jobs.pool import ray_local
from jobs.pool.contract import Pool
from jobs.pool.nodes import NodeWatch
from jobs.pool.ray_pool import RayPool
from jobs.progress.metrics import GAUGE, JOB, METRICS, Metric
from jobs.progress.snapshot import Snapshot
from workers import logs
from workers.contract import BundleRequest, WorkerSpec
from workers.host.cores import read_topology

_logger = logging.getLogger("stint")
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

    every_s = 5.0

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
        home = ray.get_runtime_context().get_node_id()
        self._nodes = NodeWatch(home, ray.nodes, state.get_draining_nodes)  # which Ray offers nowhere else

    def most_workers(self, threads: int) -> int | None:
        return None if self._address else read_topology().budget // threads

    def workers_there(self, threads: int) -> int:
        return sum(cores // threads for cores in self._cores_of_nodes())

    def most_threads(self) -> int | None:
        return max(self._cores_of_nodes(), default=None)

    def _cores_of_nodes(self) -> list[int]:
        """Of each node with CPUs for workers, at least one."""
        listing = self._nodes.since(0.0)
        nodes = ray.nodes() if listing is None else listing.nodes  # it answers: this process has only just connected
        cpus = (int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"])
        return [max(1, number // self._threads_per_core) for number in cpus if number]

    def gpus(self) -> int:
        return int(ray.cluster_resources().get("GPU", 0))

    def pool(self, spec: WorkerSpec | BundleRequest) -> Pool:
        """Calibration in float is the slow part of making a bundle, so its maker takes several cores of a node."""
        if isinstance(spec, BundleRequest):
            spec = replace(spec, threads=min(MAKER_CORES, self.most_threads() or 1))
        return RayPool(spec, self._threads_per_core, self._nodes, any_process=self._address is None)

    def describe(self) -> str:
        resources = ray.cluster_resources()
        free = ray.available_resources().get("CPU", 0)
        where = f"Ray at {self._address}" if self._address else "local Ray"
        return f"{where}: {resources.get('CPU', 0):.0f} CPUs, {free:.0f} free"

    def show(self, snapshot: Snapshot) -> None:
        self._metrics.publish(snapshot)

    def close(self) -> None:
        self._nodes.close()
        ray.shutdown()


class RayMetrics:
    """Metrics of a run through Ray: the agent of the driver's node exports them to Prometheus, beside Ray's own.

    Only the driver publishes, and Ray gives each process's series a label of its own: a driver that is started again
    has new series, which begin at zero, as Prometheus wants it of counters. What is published reaches the agent every
    10 s (RAY_metrics_report_interval_ms) and when Ray is shut down; gauges are exported for twice as long after that,
    so they vanish with the driver, while counters stay for as long as the node does.
    """

    def __init__(self) -> None:
        self._metrics: dict[str, Any] = {}
        """Of Ray, by name."""
        self._run_id = ""
        self._counted: dict[tuple[str, str], float] = {}
        """What the counters have counted of the run so far, by metric and label."""

    def publish(self, snapshot: Snapshot) -> None:
        """Note how the run stands, in this process's memory. Raises nothing: a run goes on, watched or not."""
        if snapshot.run_id != self._run_id:  # whose counts begin at zero again
            self._run_id = snapshot.run_id
            self._counted.clear()
        try:
            for metric in METRICS:
                for value, number in metric.values(snapshot).items():
                    tags = {JOB: snapshot.job, **({metric.label: value} if metric.label else {})}
                    if metric.kind == GAUGE:
                        self._of(metric).set(number, tags)
                    else:
                        self._count(metric, value, number, tags)
        except Exception as error:  # noqa: BLE001  (whatever Ray's metrics may raise)
            _logger.warning("metrics could not be published: %s", error)

    def _count(self, metric: Metric, value: str, number: float, tags: dict[str, str]) -> None:
        key = metric.name, value
        before = self._counted.get(key)
        if before is None:
            # From zero on, or the first bad row would be no increase; Counter.inc refuses to say so.
            self._of(metric)._record(0.0, tags)
        if (more := number - (before or 0.0)) > 0:
            self._of(metric).inc(more, tags)
        self._counted[key] = max(number, before or 0.0)

    def _of(self, metric: Metric) -> Any:
        if metric.name not in self._metrics:
            kind = Gauge if metric.kind == GAUGE else Counter
            self._metrics[metric.name] = kind(metric.name, metric.meaning, metric.labels)
        return self._metrics[metric.name]
