"""Rows without a prediction: why, and the end of a run that has too many of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow.compute as pc

from jobs.errors import BadRowsExceeded
from jobs.ledger.plans import Plan
from workers.counted import counted
from workers.outcomes import samples_of, tells_more
from workers.output import OutputObject, describe_row, key_names, reasons_table, shown_keys


@dataclass
class Reasons:
    """Bad rows by code, and one row of each for a person."""

    by_code: Counter[str] = field(default_factory=Counter)
    samples: dict[str, str] = field(default_factory=dict)

    def add(self, by_code: Mapping[str, int], samples: Mapping[str, str]) -> None:
        self.by_code.update(by_code)
        self.samples = samples_of(self.samples, samples)


@dataclass(frozen=True)
class OverBudget:
    """A plan that stays open, because more of its rows are bad than limits.bad_rows allows."""

    plan: Plan
    reasons: Reasons

    def describe(self) -> str:
        rows = counted(self.plan.rows, "row is", "rows are")
        return f"{self.plan.name}: {self.reasons.by_code.total():,} of {rows} bad"


def bad_rows_error(over: Sequence[OverBudget], allowed: str) -> BadRowsExceeded:
    """The end of a run with these plans: for each a table of its error rows by code, with a sample row of each."""
    lines = list[str]()
    for one in over:
        lines += [f"{one.describe()}; limits.bad_rows allows {allowed}"]
        lines += reasons_table(one.reasons.by_code, one.reasons.samples)
    numbers = " or ".join(f"--plan {one.plan.number}" for one in over)
    codes = dict.fromkeys(f"'{code}'" for one in over for code, _ in one.reasons.by_code.most_common())
    again = f"error_code = {', '.join(codes)}" if len(codes) == 1 else f"error_code in ({', '.join(codes)})"
    return BadRowsExceeded(
        "\n".join(lines),
        "look at the rows named above. Once their files are replaced, removed from the store, or left out by a pattern "
        "with ! in input.uri, a run closes the plan by itself. If the reason lay elsewhere and is mended: stint run "
        f'SPEC --again "{again}". To close it with its bad rows: stint accept SPEC {numbers} --why TEXT. If so many '
        "are to be expected every night, raise limits.bad_rows",
    )


_COLUMNS = ("error_code", "error_message", "source_uri", "source_version", "row_group", "row")
_FIELDS = ("code", "message", "uri", "version", "row_group", "row")
"""Of ErrorRow, in the order of the columns."""


@dataclass(frozen=True)
class ErrorRow:
    """An input row without a prediction, as its output object has it."""

    code: str
    message: str
    uri: str
    version: str
    row_group: int
    row: int
    keys: dict[str, str]
    """Values of the job's key columns, for a person."""

    def describe(self) -> str:
        return f"{describe_row(self.uri, self.row_group, self.row, self.keys)}: {self.message}"


def error_rows(data: bytes) -> Iterator[ErrorRow]:
    """In the order of the object's rows. Raises NotOurs for what is no output object."""
    opened = OutputObject(data)
    names = key_names(opened.schema)
    table = opened.table([*_COLUMNS, *names])
    bad = table.filter(pc.is_valid(table["error_code"]))
    keys = bad.select(names)
    for number, row in enumerate(bad.select(_COLUMNS).rename_columns(_FIELDS).to_pylist()):
        yield ErrorRow(**row, keys=shown_keys(keys, number))


def by_source(rows: Iterable[ErrorRow]) -> dict[tuple[str, str], Reasons]:
    """By (uri, version) of their source."""
    found: defaultdict[tuple[str, str], Reasons] = defaultdict(Reasons)
    for row in rows:
        reasons = found[row.uri, row.version]
        reasons.by_code[row.code] += 1
        if tells_more(row.message, reasons.samples.get(row.code)):
            reasons.samples[row.code] = row.describe()
    return dict(found)
