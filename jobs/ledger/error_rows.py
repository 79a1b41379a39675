"""Error rows of an output object: which input row has no prediction, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from workers.output import describe_row, key_names, shown_keys

COLUMNS = ["source_uri", "source_version", "row_group", "row", "error_code", "error_message"]


@dataclass(frozen=True)
class ErrorRow:
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
    """In the order of the object's rows. Raises pyarrow.ArrowException for what is no output object."""
    file = pq.ParquetFile(pa.BufferReader(data))
    names = key_names(file.schema_arrow)
    table = file.read(COLUMNS + names)
    bad = table.filter(pc.is_valid(table["error_code"]))
    keys = bad.select(names)
    for number, row in enumerate(bad.select(COLUMNS).to_pylist()):
        yield ErrorRow(
            code=row["error_code"],
            message=row["error_message"],
            uri=row["source_uri"],
            version=row["source_version"],
            row_group=row["row_group"],
            row=row["row"],
            keys=shown_keys(keys, number),
        )
