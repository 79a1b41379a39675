"""How a run ended, in words for a person: a headline, what happened, and its tone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.progress.format import duration

COMPLETE = "complete"
UNFINISHED = "unfinished"
"""Has left no report: it died, or is under way."""
HEADLINES: Mapping[str, tuple[str, str]] = {
    COMPLETE: ("Complete", "good"),
    UNFINISHED: ("Unfinished", "warn"),
    "BadRowsExceeded": ("Too many bad rows", "bad"),
    "GateRefused": ("INT8 model refused", "bad"),
    "Interrupted": ("Interrupted", "warn"),
    "NothingThere": ("No input", "bad"),
    "SpecError": ("Cannot run as written", "bad"),
}
"""By the outcome in a report: title and tone; everything else has FAILED."""
FAILED = ("Failed", "bad")
SYMBOLS = {"good": "✓", "warn": "!", "bad": "✕"}
"""Besides the colour."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    title: str
    tone: str
    """`good`, `warn` or `bad`."""
    happened: str
    """One sentence."""
    details: str
    """The rest of what was told of an error; mostly empty."""

    @property
    def symbol(self) -> str:
        return SYMBOLS[self.tone]


def title_of(outcome: str) -> str:
    return HEADLINES.get(outcome, FAILED)[0]


def tone_of(outcome: str) -> str:
    """`good`, `warn` or `bad`."""
    return HEADLINES.get(outcome, FAILED)[1]


def ending(report: Mapping[str, Any]) -> Ending:
    """Of a report with all its fields, see jobs.pages.run_page.filled."""
    title, tone = title_of(report["outcome"]), tone_of(report["outcome"])
    first, _, details = report["error"].strip().partition("\n")
    if report["outcome"] == COMPLETE:
        first, details = _completed(report), ""
    elif not first:
        first = f"The run ended with {report['outcome'] or 'an error'}; nothing more was told."
    return Ending(title=title, tone=tone, happened=first, details=details)


def _completed(report: Mapping[str, Any]) -> str:
    if not report["plans"]:
        return "There was nothing new to score."
    rows = report["rows_ok"] + report["rows_bad"]
    text = f"{rows:,} rows have a prediction or a reason why not"
    here = report["rows_scored_here"]
    if here and here < rows:
        text += f"; {here:,} of them were scored by this run"
    return f"{text}, in {duration(report['elapsed_s'])}."
