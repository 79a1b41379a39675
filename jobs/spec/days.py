"""The days that a command is about: `--as-of`, `--backfill` and what `{as_of}` stands for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from functools import cache
from zoneinfo import ZoneInfo

from jobs.errors import SpecError
from jobs.spec.patterns import covering
from workers.contract import AS_OF, MOST_DAYS


@dataclass(frozen=True)
class Days:
    """The days from `first` to `last`, both included."""

    first: date
    last: date
    backfill: bool = field(default=False, compare=False)
    """Whether a person has named them one by one, as no schedule does."""

    def __iter__(self) -> Iterator[date]:
        return (self.first + timedelta(n) for n in range((self.last - self.first).days + 1))

    def __len__(self) -> int:
        return (self.last - self.first).days + 1

    def __str__(self) -> str:
        return str(self.last) if self.first == self.last else f"{self.first}..{self.last}"

    def before(self, days: int) -> Iterator[date]:
        """The `days` days before the first, oldest first."""
        return (self.first - timedelta(n) for n in range(days, 0, -1))

    def reaching_back(self, days: int) -> Days:
        """At least `days` days up to the same last one."""
        return replace(self, first=min(self.first, self.last - timedelta(days - 1)))


def today(timezone: str, now: datetime | None = None) -> Days:
    day = (now or datetime.now(UTC)).astimezone(ZoneInfo(timezone)).date()
    return Days(day, day)


def days_in_zone(given: Days | int | None, timezone: str, now: datetime | None = None) -> Days | None:
    """What a command line names, as days; a number is how many before today, which that is only a time zone tells."""
    if not isinstance(given, int):
        return given
    day = today(timezone, now).last - timedelta(given)
    return Days(day, day)


def parse_day(text: str) -> Days:
    """`2026-03-01`, also as `2026/3/1`: year, month, day, as others have two meanings. Raises ValueError."""
    parts = re.fullmatch(r"\s*([1-9]\d{3})(?:(\d\d)(\d\d)|([-/.])(\d\d?)\4(\d\d?))\s*", text)
    if parts is None:
        raise ValueError(f"{text!r} is no day; write it as 2026-03-01")
    try:
        day = date(int(parts[1]), int(parts[2] or parts[5]), int(parts[3] or parts[6]))
    except ValueError as error:
        raise ValueError(f"{text!r} is no day: {error}") from error
    return Days(day, day)


def parse_as_of(text: str) -> Days | int:
    """As `parse_day`; or `today`, or `yesterday`, as how many days ago that is. Raises ValueError."""
    ago = {"today": 0, "yesterday": 1}.get(text.lower())
    return parse_day(text) if ago is None else ago


def parse_days(text: str) -> Days:
    """`2026-03-01..2026-03-07`. Raises ValueError."""
    first, dots, last = text.partition("..")
    if not dots:
        raise ValueError(f"{text!r}: FROM..TO is wanted, as 2026-03-01..2026-03-07")
    days = Days(parse_day(first).first, parse_day(last).last, backfill=True)
    if not timedelta(0) <= days.last - days.first < timedelta(MOST_DAYS):
        raise ValueError(f"{text!r}: FROM comes first, and {MOST_DAYS} days are the most")
    return days


_PLAIN = "%Y-%m-%d"
_MONTH, _DAY, _HOUR = "0[1-9]|1[0-2]", "0[1-9]|[12][0-9]|3[01]", "[01][0-9]|2[0-3]"
_CODES = {
    "Y": "[0-9]{4}", "y": "[0-9]{2}", "j": "[0-9]{3}", "m": _MONTH, "d": _DAY, "H": _HOUR,
    "-m": "[1-9]|1[0-2]", "-d": "[1-9]|[12][0-9]|3[01]", "-H": "[0-9]|1[0-9]|2[0-3]",
}  # fmt: skip
"""What may stand in `{as_of:…}`, after a per cent sign each, and what it may be filled with. `-`: without a zero."""
_CODE = re.compile(r"%(-?.?)")


def filled(template: str, days: Days) -> list[str]:
    """The template once a day, oldest first, or once an hour where it has `%H`; each once where days share it."""
    if not AS_OF.search(template):
        return [template]
    hours = range(24) if {"H", "-H"}.intersection(_codes(template)) else range(1)
    moments = (datetime.combine(day, time(hour)) for day in days for hour in hours)
    return list(dict.fromkeys(_filled(template, at) for at in moments))


def _filled(template: str, at: datetime) -> str:
    return AS_OF.sub(lambda place: at.date().isoformat() if place[1] is None else at.strftime(place[1]), template)


def _codes(template: str) -> list[str]:
    """Of all places of a template."""
    return [code for place in AS_OF.finditer(template) for code in _CODE.findall(place[1] or _PLAIN)]


def check_template(template: str, *, hours: bool = True) -> None:
    """Raises ValueError for places of the day that cannot be filled."""
    for place in AS_OF.finditer(template):
        codes = _CODE.findall(place[1] if place[1] is not None else _PLAIN)
        if not codes:
            raise ValueError(f"{place[0]} names no part of the date; write {{as_of}}, or {{as_of:%Y/%m/%d}}")
        if unknown := [code for code in codes if code not in _CODES]:
            known = ", ".join(f"%{code}" for code in _CODES)
            raise ValueError(f"{place[0]}: %{unknown[0]} is no part of the date; there are {known}")
        if not hours and {"H", "-H"}.intersection(codes):
            raise ValueError(f"{place[0]}: a run is of whole days, so its output cannot depend on the hour")


def filled_in(template: str, uri: str) -> str | None:
    """The template with its wildcards, filled in for a day on which a URI is what it names or lies in that; None where
    there is no such day."""
    if not AS_OF.search(template) or (found := re.fullmatch(_on_any_day(template), uri, re.DOTALL)) is None:
        return None
    return AS_OF.sub(lambda place: _CODE.sub(lambda code: found[_group(code[1])], place[1] or _PLAIN), template)


_PLACE = "\2-\1"
"""In place of a day while wildcards are told from names; no range, so that brackets around it are part of a name."""


@cache
def _on_any_day(template: str) -> str:
    """The regular expression of what a template covers; what a day is written with are its groups."""
    seen = set[str]()

    def group(code: str) -> str:
        if code in seen:
            return f"(?P={_group(code)})"  # the same day in all places
        seen.add(code)
        return f"(?P<{_group(code)}>{_CODES[code]})"

    pattern = covering(AS_OF.sub(_PLACE, template))
    for place in AS_OF.finditer(template):
        parts = _CODE.split(place[1] or _PLAIN)  # codes, and between them what is written as it is
        written = "".join(group(part) if n % 2 else re.escape(part) for n, part in enumerate(parts))
        pattern = pattern.replace(re.escape(_PLACE), written, 1)
    return pattern


def _group(code: str) -> str:
    return code.replace("-", "without_zero_")


def runs(days: Days | None, by_date_input: bool, output: str) -> list[Days | None]:
    """The runs that a backfill takes: one for all days, or one a day where each has an output of its own.

    Raises SpecError when nothing in the job depends on the date.
    """
    if days is None or len(days) == 1:
        return [days]
    if not by_date_input:
        raise SpecError(
            f"--backfill {days}: no {{as_of}} is in input.uri, so every day would score the same input",
            "one run scores everything that is new, whenever it came",
        )
    return [Days(day, day) for day in days] if AS_OF.search(output) else [days]
