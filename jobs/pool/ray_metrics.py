"""Metrics of a run through Ray: the agent of the driver's node exports them to Prometheus, beside Ray's own.

Only the driver publishes, and Ray gives each process's series a label of its own: a driver that is started again has
new series, which begin at zero, as Prometheus wants it of counters. What is published reaches the agent every 10 s
(RAY_metrics_report_interval_ms) and when Ray is shut down; gauges are exported for twice as long after that, so they
vanish with the driver, while counters stay for as long as the node does.
"""

from __future__ import annotations

import logging
from typing import Any

from ray.util.metrics import Counter, Gauge

from jobs.progress.metrics import GAUGE, JOB, METRICS, Metric
from jobs.progress.snapshot import Snapshot

_logger = logging.getLogger("stint")


class RayMetrics:
    """Those of this process; they exist from the first snapshot on."""

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
