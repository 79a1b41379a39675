"""Columns of a table's Parquet files by their present names, whatever a file calls them or lacks."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.tables.state import DEFAULT, FIELD_ID, NAMES_IN_FILES


def present_columns(parquet: Any, fields: Sequence[pa.Field], constants: Mapping[str, object]) -> pa.Table:
    """Columns of all rows of an open file. `fields` are of `TableState.schema`, and `constants` of its `TableFile`.

    Raises what Arrow raises, where a column of the file is of a type that the table's does not hold.
    """
    in_file, rows = parquet.schema_arrow, parquet.metadata.num_rows
    numbered = any(FIELD_ID in (one.metadata or {}) for one in _below(in_file))
    found = {field.name: _found(in_file, field, numbered) for field in fields}
    table = parquet.read(columns=[one.name for one in found.values() if one is not None])
    columns = []
    for field in fields:
        if (one := found[field.name]) is not None:
            columns.append(_present(table[one.name], field, numbered))
        elif field.name in constants:
            columns.append(_filled(pa.scalar(constants[field.name], field.type), rows))
        else:
            columns.append(_filled(default_of(field), rows))
    return pa.table(columns, schema=pa.schema(list(fields)))


def default_of(field: pa.Field) -> pa.Scalar:
    """What rows of files that lack the column hold."""
    value = json.loads((field.metadata or {}).get(DEFAULT, b"null"))
    if isinstance(value, str) and (pa.types.is_fixed_size_binary(field.type) or pa.types.is_binary(field.type)):
        value = bytes.fromhex(value)
    elif isinstance(value, str) and pa.types.is_time(field.type):
        value = time.fromisoformat(value)
    return pa.scalar(None, field.type) if value is None else pa.scalar(value).cast(field.type)


def _filled(value: pa.Scalar, rows: int) -> pa.Array:
    return pa.repeat(value, rows) if value.is_valid else pa.nulls(rows, value.type)


def _below(fields: Iterable[pa.Field]) -> Iterable[pa.Field]:
    for one in fields:
        yield one
        yield from _below(one.type.field(number) for number in range(one.type.num_fields))


def _found(fields: Iterable[pa.Field], field: pa.Field, numbered: bool) -> pa.Field | None:
    about = field.metadata or {}
    if numbered and FIELD_ID in about:
        return next((one for one in fields if (one.metadata or {}).get(FIELD_ID) == about[FIELD_ID]), None)
    names = json.loads(about[NAMES_IN_FILES]) if NAMES_IN_FILES in about else [field.name]
    return next((one for one in fields if one.name in names), None)


def _present(column: Any, field: pa.Field, numbered: bool) -> Any:
    """A column as the table has it: a struct by its fields, anything else by a cast that loses nothing."""
    if isinstance(column, pa.ChunkedArray):
        return pa.chunked_array([_present(chunk, field, numbered) for chunk in column.chunks], field.type)
    if not pa.types.is_struct(field.type):
        return column.cast(field.type)
    fields, parts = list(field.type), []
    for one in fields:
        inner = _found(column.type, one, numbered)
        if inner is None:
            parts.append(_filled(default_of(one), len(column)))
        else:
            parts.append(_present(pc.struct_field(column, column.type.get_field_index(inner.name)), one, numbered))
    return pa.StructArray.from_arrays(parts, fields=fields, mask=column.is_null())
