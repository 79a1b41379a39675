"""The days that a command is about: `--as-of`, `--backfill` and what `{as_of}` stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from jobs.errors import SpecError
from workers.contract import AS_OF, MOST_DAYS


@dataclass(frozen=True)
class Days:
    """The days from `first` to `last`, both included."""

    first: date
    last: date

    def __iter__(self) -> Iterator[date]:
        return (self.first + timedelta(n) for n in range((self.last - self.first).days + 1))

    def __len__(self) -> int:
        return (self.last - self.first).days + 1

    def __str__(self) -> str:
        return str(self.last) if self.first == self.last else f"{self.first}..{self.last}"

    def reaching_back(self, days: int) -> Days:
        """At least `days` days up to the same last one."""
        most = (self.last - date.min).days
        return replace(self, first=min(self.first, self.last - timedelta(min(days - 1, most))))


def today(timezone: str, now: datetime | None = None) -> Days:
    """The present date in a time zone."""
    day = (now or datetime.now(UTC)).astimezone(ZoneInfo(timezone)).date()
    return Days(day, day)


@dataclass(frozen=True)
class Ago:
    """A day, by how many before today it is: which that is only a time zone tells."""

    days: int


def days_in_zone(given: Days | Ago | None, timezone: str, now: datetime | None = None) -> Days | None:
    """What a command line names, as days."""
    if not isinstance(given, Ago):
        return given
    day = today(timezone, now).last - timedelta(given.days)
    return Days(day, day)


def parse_day(text: str) -> Days:
    """`2026-03-01`, also as `2026/3/1`. Raises ValueError."""
    day = _date(text)
    return Days(day, day)


def parse_as_of(text: str) -> Days | Ago:
    """As `parse_day`; or `today`, or `yesterday`. Raises ValueError."""
    return Ago(_AGO[text.lower()]) if text.lower() in _AGO else parse_day(text)


_AGO = {"today": 0, "yesterday": 1}


def _date(text: str) -> date:
    """Year, month and day, in that order alone: others have two meanings."""
    parts = re.fullmatch(r"\s*(\d{4})(?:(\d\d)(\d\d)|([-/.])(\d\d?)\4(\d\d?))\s*", text)
    if parts is None:
        raise ValueError(f"{text!r} is no day; write it as 2026-03-01")
    try:
        return date(int(parts[1]), int(parts[2] or parts[5]), int(parts[3] or parts[6]))
    except ValueError as error:
        raise ValueError(f"{text!r} is no day: {error}") from error


def parse_days(text: str) -> Days:
    """`2026-03-01..2026-03-07`. Raises ValueError."""
    first, dots, last = text.partition("..")
    if not dots:
        raise ValueError(f"{text!r}: FROM..TO is wanted, as 2026-03-01..2026-03-07")
    days = Days(_date(first), _date(last))
    if not timedelta(0) <= days.last - days.first < timedelta(MOST_DAYS):
        raise ValueError(f"{text!r}: FROM comes first, and {MOST_DAYS} days are the most")
    return days


def filled(template: str, days: Days) -> list[str]:
    """The template once a day, oldest first; once in all where it has no `{as_of}`."""
    if AS_OF not in template:
        return [template]
    return [template.replace(AS_OF, day.isoformat()) for day in days]


def day_in(template: str, uri: str) -> Days | None:
    """The day whose file or folder a URI lies in; None for one that the template, filled in, does not begin."""
    before, as_of, _ = template.partition(AS_OF)
    try:
        day = date.fromisoformat(uri[len(before) : len(before) + len("2026-03-01")])
    except ValueError:
        return None
    days = Days(day, day)
    return days if as_of and uri.startswith(filled(template, days)[0]) else None


def runs(days: Days | None, by_date_input: bool, output: str) -> list[Days | None]:
    """The runs that a backfill takes: one for all days, or one a day where each has an output of its own.

    Raises SpecError when nothing in the job depends on the date.
    """
    if days is None or len(days) == 1:
        return [days]
    if not by_date_input:
        raise SpecError(
            f"--backfill {days}: no {AS_OF} is in input.uri, so every day would score the same input",
            "one run scores everything that is new, whenever it came",
        )
    return [Days(day, day) for day in days] if AS_OF in output else [days]
