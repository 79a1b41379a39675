"""How a run stands, in words that job logs and the live view share."""

from __future__ import annotations

from jobs.progress.format import duration
from jobs.progress.snapshot import Snapshot


def printable(text: str) -> str:
    """On one line, and with nothing in it that a terminal would take for a command."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def eta_told(eta_s: tuple[float, float]) -> str:
    """`40s`; `36–44s` or `8m20s–9m05s` where the ends differ."""
    low, high = map(duration, eta_s)
    if low == high:
        return low
    if eta_s[1] < 59.5:  # one unit for both
        low = low.removesuffix("s")
    return f"{low}\N{EN DASH}{high}"


def deadline_told(snapshot: Snapshot) -> str:
    """How far the likely end is from the deadline; before there is a rate, how far away the deadline is. Empty without
    one."""
    if snapshot.late_s is not None:
        late_s = snapshot.late_s
        return f"LATE by {duration(late_s)}" if late_s > 0 else f"{duration(-late_s)} to spare"
    if (left_s := snapshot.deadline_in_s) is not None:
        return f"deadline in {duration(left_s)}" if left_s > 0 else f"LATE by {duration(-left_s)}"
    return ""


def waiting_told(snapshot: Snapshot) -> str:
    """What stands in place of an ETA before there are workers; empty once there are."""
    if snapshot.workers_ready or snapshot.rows_done >= snapshot.rows_total or snapshot.ended:
        return ""
    return f"waiting for workers (0 of {snapshot.workers_wanted} ready)"


def amount(value: float) -> str:
    """Costs and core-hours: `0.42`, `0.0042` of little, and never nothing for something."""
    if 0 < value < 0.0001:
        return "<0.0001"
    return f"{value:.4f}" if 0 < value < 0.1 else f"{value:,.2f}"
