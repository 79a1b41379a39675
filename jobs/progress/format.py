"""Figures in words, for terminals and pages: durations, shares, sizes, costs, moments; a dash for what is not known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from jobs.progress.snapshot import Snapshot

NONE = "\N{EN DASH}"
SPACE = "\N{NO-BREAK SPACE}"
"""Between a figure and its unit: they stay on one line."""
_PHASES = {
    "listing": "listing input and ledger",
    "ray": "connecting to Ray",
    "bundle": "making the bundle",
    "workers": "waiting for workers",
}
"""In words, where its name alone does not say it."""
LINES_SHOWN = 5
"""Of many that say the same of one thing each."""
_BOUNDLESS = 1e15
"""What an error is called that has nothing to be measured by, see workers.bundle.accuracy."""


def duration(seconds: float) -> str:
    """`8m33s`, `2h05m`, `12s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"


def printable(text: str) -> str:
    """On one line, and with nothing in it that a terminal would take for a command."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def first_few(lines: Sequence[str], more: str, shown: int = LINES_SHOWN) -> list[str]:
    """All of a few lines; or the first of many, and how many `more` there are: `and 1,495 more stray objects`."""
    left = len(lines) - shown
    return [*lines] if left <= 1 else [*lines[:shown], f"and {left:,} more {more}"]


def describe_eta(eta_s: tuple[float, float]) -> str:
    """`40s`; `36–44s` or `8m20s–9m05s` where the ends differ."""
    low, high = map(duration, eta_s)
    return low if low == high else f"{low}\N{EN DASH}{high}"


def describe_deadline(snapshot: Snapshot) -> str:
    """How far the likely end is from the deadline; before there is a rate, how far away the deadline is. Empty without
    one."""
    if snapshot.late_s is not None:
        late_s = snapshot.late_s
        return f"LATE by {duration(late_s)}" if late_s > 0 else f"{duration(-late_s)} to spare"
    if (left_s := snapshot.deadline_in_s) is not None:
        return f"deadline in {duration(left_s)}" if left_s > 0 else f"LATE by {duration(-left_s)}"
    return ""


def describe_waiting(snapshot: Snapshot) -> str:
    """What stands in place of an ETA before there are workers; empty once there are."""
    if snapshot.workers_ready or snapshot.rows_done >= snapshot.rows_total or snapshot.ended:
        return ""
    cores = "" if snapshot.no_cores_s is None else f", {duration(snapshot.no_cores_s)} for cores that others hold"
    return f"waiting for workers (0 of {snapshot.workers_wanted} ready){cores}"


def describe_phase(snapshot: Snapshot) -> str:
    """What a run is at that does not score now, and for how long it has been; empty of one that does, or is over."""
    if snapshot.ended or snapshot.phase in ("workers", "scoring"):  # that its rows and workers tell
        return ""
    return f"{phase_in_words(snapshot.phase, snapshot.step)}, {duration(snapshot.phase_s)}"


def phase_in_words(phase: str, step: str) -> str:
    """`making the bundle: calibrating`."""
    return ": ".join(filter(None, [_PHASES.get(phase, phase), step]))


def number(value: float | None, digits: int = 0) -> str:
    """`1,234`, or `1,234.50` with two digits."""
    if value is None or math.isnan(value):
        return NONE
    return "boundless" if abs(value) > _BOUNDLESS else f"{value:,.{digits}f}"


def significant(value: float | None) -> str:
    """With three digits that count, whatever its size: `0.0123`, `4.56`, `1,230`."""
    if value is None or not math.isfinite(value) or abs(value) >= 100:
        return number(value)
    return f"{value:.3g}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share as `12.3%`; one that is more than nothing is never shown as 0, nor one that is not all as 100."""
    if value is None or not math.isfinite(value):
        return NONE
    least = 10.0 ** -(digits + 2)
    if 0 < value < least / 2:
        return f"<{least:.{digits}%}"
    if 1 - least / 2 <= value < 1:
        return f">{1 - least:.{digits}%}"
    return f"{value:,.{digits}%}"


def money(value: float | None) -> str:
    """Costs and core-hours: `2.89`, `0.0042` of little, and never nothing for something."""
    if value is None or not math.isfinite(value):
        return NONE
    if 0 < value < 0.0001:
        return "<0.0001"
    return f"{value:.4f}" if 0 < value < 0.1 else f"{value:,.2f}"


def seconds(value: float | None) -> str:
    """`8m33s` from a minute on, `12 s`, `2.5 s` and `45 ms` below."""
    if value is None or not math.isfinite(value):
        return NONE
    if value >= 60:
        return duration(value)
    if value >= 0.9995 or value == 0:
        return f"{_short(value)}{SPACE}s"
    return f"{_short(value * 1000)}{SPACE}ms"


def points(value: float) -> str:
    """A difference of two shares in percentage points: `+3.1 pp`."""
    text = f"{value * 100:+.2f}".replace("-", "\N{MINUS SIGN}")
    return f"{'0.00' if text[1:] == '0.00' else text}{SPACE}pp"


def _short(value: float) -> str:
    """One place below 10, two below 1, none where they are 0."""
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.{1 if value >= 1 else 2}f}".rstrip("0").rstrip(".") or "0"


def size(value: float | None) -> str:
    if value is None:
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f}{SPACE}{unit}" if unit == "B" or value >= 100 else f"{value:.1f}{SPACE}{unit}"
        value /= 1024
    return f"{value:,.1f}{SPACE}TiB"


def moment(text: str) -> str:
    """A time of the ledger as `2026-03-01 02:00 UTC`; what is no time stays as it is."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return text or NONE
    return f"{(at if at.tzinfo is None else at.astimezone(UTC)):%Y-%m-%d %H:%M} UTC"
