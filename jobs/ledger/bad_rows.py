"""Rows without a prediction: why, and the end of a run that has too many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from jobs.errors import BadRowsExceeded


@dataclass
class BadRows:
    """Error rows by code, with one row of each for a person."""

    counts: Counter[str] = field(default_factory=Counter)
    samples: dict[str, str] = field(default_factory=dict)

    def add(self, counts: Mapping[str, int], samples: Mapping[str, str]) -> None:
        self.counts.update(counts)
        self.samples = {**samples, **self.samples}


def bad_rows_error(rows_bad: int, rows_total: int, budget: float, reasons: BadRows) -> BadRowsExceeded:
    """The end of a run whose input is too bad, with a table of reasons and a sample row of each."""
    lines = [f"{rows_bad:,} of {rows_total:,} rows are bad; limits.bad_rows allows {budget:.2%}"]
    lines += [f"  {n:>8,}  {code:<20} e.g. {reasons.samples[code]}" for code, n in reasons.counts.most_common()]
    return BadRowsExceeded(
        "\n".join(lines),
        "look at the rows named above; if they are to be expected, raise limits.bad_rows and run again",
    )
