"""Rows of predictions that fulfil a condition in SQL: a few of them, or how many, in one pass over a stream.

The condition is an expression and nothing else: DuckDB parses it as one, in a database of its own that may read no
file, load no extension and see no variable of ours. Rows are chosen by a hash of seed and place, so that the same seed
chooses the same rows of the same predictions, in whatever order they come.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from jobs.errors import RunFailed, SpecError
from workers.output import OWN_COLUMNS
from workers.storage.errors import StoreDenied, StoreError

_PLACE = '"source_uri", "source_version", "row_group", "row"'
LOCKED: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "threads": "2",
}


@dataclass(frozen=True)
class Chosen:
    rows: pa.Table
    """At most as many as asked for, in the order asked for; columns as they came."""
    matching: int
    """Rows that fulfil the condition."""
    read: int
    """Rows looked at."""


@dataclass
class _Counted:
    """A stream that knows what it gave, and what went wrong in it: DuckDB keeps an error's text alone."""

    reader: pa.RecordBatchReader
    rows: int = 0
    fault: Exception | None = None

    def batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self.reader:
                self.rows += batch.num_rows
                yield batch
        except Exception as error:
            self.fault = error
            raise


def choose(reader: pa.RecordBatchReader, where: str | None, n: int, order: str = "random", seed: int = 0) -> Chosen:
    """At most `n` rows for which `where` is true; all are looked at, and few are in memory at once.

    `order` says which are taken: `random`, or those with the least `score`, or with the greatest, `-score`.

    Raises SpecError for a condition that is none, or without DuckDB; RunFailed, StoreError, StoreDenied when the stream
    breaks.
    """
    if order != "random" and "score" not in reader.schema.names:
        raise SpecError(f"--order {order}: embeddings have no score", "leave --order out")
    sign = "-" if order == "-score" else ""  # rows without a score come last
    first = "0.0" if order == "random" else f"coalesce({sign}score::DOUBLE, 'infinity'::DOUBLE)"
    by = f"min_by(matching, row({first}, hash({_PLACE}, {seed:d})), {n})"
    with _fulfilling(reader, where, "--where") as (rows, stream):
        (answer,) = rows.set_alias("matching").aggregate(f"count(*), {by}").to_arrow_table().to_batches()
    count, best = answer.columns
    best = pa.Table.from_struct_array(best.flatten()).rename_columns(reader.schema.names)
    return Chosen(best, count[0].as_py(), stream.rows)


def count_by(reader: pa.RecordBatchReader, where: str, column: str, *, option: str) -> dict[str, int]:
    """Rows for which `where` is true by the value of a column; `option` is what a person gave the condition by.

    Raises as `choose`.
    """
    with _fulfilling(reader, where, option) as (rows, _):
        return dict(rows.aggregate(f'"{column}", count(*)', f'"{column}"').order(f'"{column}"').fetchall())


@contextmanager
def _fulfilling(reader: pa.RecordBatchReader, where: str | None, option: str) -> Iterator[tuple[Any, _Counted]]:
    """The rows as a relation of DuckDB, which can be read within the context, and the stream that they come from."""
    try:
        import duckdb
    except ImportError as error:
        raise SpecError("conditions are evaluated by DuckDB, which is not installed", "pip install duckdb") from error
    # DuckDB folds case: a key `Label`, of an earlier release, would be taken for the prediction `label`.
    own = OWN_COLUMNS.intersection(reader.schema.names)
    names = [n if n in own or n.lower() not in own else f"input_{n}" for n in reader.schema.names]
    schema = pa.schema([field.with_name(name) for field, name in zip(reader.schema, names, strict=True)])
    stream = _Counted(reader)
    try:
        with duckdb.connect(":memory:", config=LOCKED) as database:
            batches = (batch.rename_columns(names) for batch in stream.batches())
            rows = database.from_arrow(pa.RecordBatchReader.from_batches(schema, batches))
            # Nothing can be set back from here on, and whatever is no expression is refused by the parser.
            database.execute("SET lock_configuration = true")
            yield rows.filter(f"({where or 'true'}\n)"), stream
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise _explained(error, stream, f"{option} {where!r}", schema) from error


def _explained(error: Exception, stream: _Counted, asked: str, schema: pa.Schema) -> Exception:
    """What a person needs to know of an error that ended the search."""
    if isinstance(stream.fault, StoreError | StoreDenied):
        return stream.fault
    if stream.fault is not None:
        return RunFailed(
            f"predictions cannot be read: {stream.fault}", "`stint verify` names the objects that are damaged"
        )
    # Without DuckDB's drawing of the query, which shows our half of it, too.
    said = " ".join(str(error).partition("\n\nLINE ")[0].split())
    columns = ", ".join(f"{column.name} ({column.type})" for column in schema)
    return SpecError(f"{asked}: {said}", f"a condition in SQL over {columns}")
