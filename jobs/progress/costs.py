"""What workers' time costs: one formula, for the live view, metrics and the report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Price:
    threads: int = 1
    """Physical cores of a worker."""
    per_cpu_hour: float | None = None
    """Of one logical CPU; None where the spec does not say."""

    def core_hours(self, worker_s: float) -> float:
        """Physical ones, of so many seconds of a worker."""
        return worker_s * self.threads / 3600

    def cost(self, worker_s: float, threads_per_core: int) -> float | None:
        """In the price's currency; a worker is charged every logical CPU of its cores."""
        if self.per_cpu_hour is None:
            return None
        return self.core_hours(worker_s) * threads_per_core * self.per_cpu_hour
