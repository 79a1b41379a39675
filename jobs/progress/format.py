"""Durations as a person says them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """`8m33s`, `2h05m`, `12s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"
