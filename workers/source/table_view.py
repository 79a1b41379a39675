"""A file of a table by the table's present names: columns that were renamed, added, or are the same in all its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import time
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from workers.contract import DEFAULT, FIELD_ID, NAMES_IN_FILES, TableOf
from workers.source.columns import column_path
from workers.source.source_file import InputUnreadable


@dataclass(frozen=True)
class TableView:
    """How one file's columns are the table's."""

    file: pa.Schema
    table: pa.Schema | None = None
    """Columns of the table, with the metadata of workers.contract; None for a file that is of none."""
    constants: Mapping[str, object] = field(default_factory=dict)
    """As in TableOf, or as Python has them."""

    @classmethod
    def of(cls, file: pa.Schema, table: TableOf | None, uri: str) -> TableView:
        """`uri` is that of the file."""
        if table is None:
            return cls(file)
        return cls(file, pa.ipc.read_schema(pa.py_buffer(table.schema)), table.constants.get(uri, {}))

    @cached_property
    def schema(self) -> pa.Schema:
        """What `rows` makes of a file's rows: all columns of the table."""
        found: pa.Schema = self.rows(self.file.empty_table()).schema
        return found

    @cached_property
    def _numbered(self) -> bool:
        return any(FIELD_ID in (one.metadata or {}) for one in _below(self.file))

    def in_file(self, columns: Iterable[str]) -> list[str]:
        """What the file calls columns of the table, or fields of structs; those that it lacks are left out."""
        if self.table is None:
            return list(columns)
        paths = [self._path(list(self.file), column_path(self.table, column), self.table) for column in columns]
        return [".".join(path) for path in paths if path]

    def rows(self, rows: Any) -> Any:
        """Rows of the file, with some of its columns or all, by the table's names and types; with what it lacks.

        Raises InputUnreadable for a value that is none of the table's type.
        """
        if self.table is None:
            return rows
        columns: dict[str, Any] = {}
        for column in self.table:
            if (found := self._found(list(self.file), column)) is None:
                value = self.constants[column.name] if column.name in self.constants else _default(column)
                columns[column.name] = _filled(value, column.type, rows.num_rows)
            elif found.name in rows.schema.names:
                columns[column.name] = self._present(rows.column(found.name), column)
        return type(rows).from_arrays(list(columns.values()), names=list(columns))

    def _found(self, fields: Iterable[pa.Field], wanted: pa.Field) -> pa.Field | None:
        """What a field of the table is among those of the file, or of a struct: by its number, or else by its name."""
        about = wanted.metadata or {}
        if self._numbered and FIELD_ID in about:
            return next((one for one in fields if (one.metadata or {}).get(FIELD_ID) == about[FIELD_ID]), None)
        names = json.loads(about[NAMES_IN_FILES]) if NAMES_IN_FILES in about else [wanted.name]
        return next((one for one in fields if one.name in names), None)

    def _path(self, fields: Iterable[pa.Field], path: Sequence[str], table: Any) -> tuple[str, ...]:
        """Of a path in the table that in the file; () where the file lacks it."""
        wanted = table.field(path[0]) if path else None
        if wanted is None or (found := self._found(fields, wanted)) is None:
            return ()
        inside = self._path(list(found.type), path[1:], wanted.type) if path[1:] else ()
        return (found.name, *inside) if inside or not path[1:] else ()

    def _present(self, column: Any, field: pa.Field) -> Any:
        """A column as a field of the table: a struct by its fields, anything else by a cast that loses nothing."""
        if isinstance(column, pa.ChunkedArray):
            return pa.chunked_array([self._present(chunk, field) for chunk in column.chunks], field.type)
        if not (pa.types.is_struct(field.type) and pa.types.is_struct(column.type)):
            try:
                return column if column.type == field.type else column.cast(field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                wrong = f"column {field.name!r} is {column.type} in the file, and {field.type} in the table: {error}"
                raise InputUnreadable(wrong) from error
        parts = []
        for one in field.type:
            if (inner := self._found(list(column.type), one)) is None:
                parts.append(_filled(_default(one), one.type, len(column)))
            else:
                at = column.type.get_field_index(inner.name)
                parts.append(self._present(pc.struct_field(column, [at]), one))
        return pa.StructArray.from_arrays(parts, fields=list(field.type), mask=column.is_null())


def _below(fields: Iterable[pa.Field]) -> Iterable[pa.Field]:
    for one in fields:
        yield one
        yield from _below(one.type.field(number) for number in range(one.type.num_fields))


def _default(field: pa.Field) -> object:
    return json.loads((field.metadata or {}).get(DEFAULT, b"null"))


def _filled(value: object, kind: pa.DataType, rows: int) -> pa.Array:
    """A value, written as DEFAULT is or as Python has it, in every row."""
    if value is None:
        return pa.nulls(rows, kind)
    if isinstance(value, str) and (pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind)):
        value = bytes.fromhex(value)
    elif isinstance(value, str) and pa.types.is_time(kind):
        value = time.fromisoformat(value)
    return pa.repeat(pa.scalar(value).cast(kind), rows)
