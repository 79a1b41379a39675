"""Rows without a prediction: why, and the end of a run that has too many of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pyarrow.compute as pc

from jobs.errors import BadRowsExceeded
from workers.output import OutputObject, describe_row, key_names, reasons_table, shown_keys


def bad_rows_error(
    rows_bad: int, rows_total: int, budget: float, by_code: Counter[str], samples: Mapping[str, str]
) -> BadRowsExceeded:
    """The end of a run whose input is too bad, with a table of error rows by code and a sample row of each."""
    lines = [f"{rows_bad:,} of {rows_total:,} rows are bad; limits.bad_rows allows {budget:.2%}"]
    lines += reasons_table(by_code, samples)
    return BadRowsExceeded(
        "\n".join(lines),
        "look at the rows named above; if they are to be expected, raise limits.bad_rows and run again",
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
