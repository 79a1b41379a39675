"""A file of a table by the table's present names: columns that were renamed, added, or are the same in all its rows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    table: pa.Schema
    """Of the table, with the metadata of workers.contract."""
    constants: Mapping[str, str | None]

    @classmethod
    def of(cls, file: pa.Schema, table: TableOf, uri: str) -> TableView:
        """`uri` is that of the file."""
        return cls(file, pa.ipc.read_schema(pa.py_buffer(table.schema)), table.constants.get(uri, {}))

    @cached_property
    def schema(self) -> pa.Schema:
        """What `rows` makes of a file's rows: all columns of the table."""
        return self.rows(self.file.empty_table()).schema

    def in_file(self, columns: Iterable[str]) -> list[str]:
        """What the file calls columns of the table, or fields of structs; those that it lacks are left out."""
        paths = [_path_in(self.file, column_path(self.table, column), self.table) for column in columns]
        return [".".join(path) for path in paths if path]

    def rows(self, rows: Any) -> Any:
        """Rows of the file, with some of its columns or all, by the table's names and types; with what it lacks.

        Raises InputUnreadable for a value that is none of the table's type.
        """
        columns: dict[str, Any] = {}
        for field in self.table:
            place = _place_in(self.file, field)
            if place is None:
                columns[field.name] = pa.repeat(self._lacking(field), rows.num_rows)
            elif (name := self.file.field(place).name) in rows.schema.names:
                columns[field.name] = _as(rows.column(name), field)
        return type(rows).from_arrays(list(columns.values()), names=list(columns))

    def _lacking(self, field: pa.Field) -> pa.Scalar:
        value = self.constants.get(field.name, _default(field))
        return _as(pa.array([value], pa.string()), field)[0]


def _default(field: pa.Field) -> str | None:
    return value.decode() if (value := (field.metadata or {}).get(DEFAULT)) is not None else None


def _place_in(fields: Any, wanted: pa.Field) -> int | None:
    """Where a field of the table is among those of a file, or of a struct in it: by its number, or else by its name."""
    there = [fields.field(at) for at in range(fields.num_fields if isinstance(fields, pa.DataType) else len(fields))]
    metadata = wanted.metadata or {}
    numbers = [(one.metadata or {}).get(FIELD_ID) for one in there]
    if FIELD_ID in metadata and any(numbers):
        return numbers.index(metadata[FIELD_ID]) if metadata[FIELD_ID] in numbers else None
    names = json.loads(metadata.get(NAMES_IN_FILES, json.dumps([wanted.name])))
    return next((at for at, one in enumerate(there) if one.name in names), None)


def _path_in(fields: Any, path: Sequence[str], table: Any) -> tuple[str, ...]:
    """Of a path in the table that in the file; () where the file lacks it."""
    if not path:
        return ()
    wanted = table.field(path[0])
    if (place := _place_in(fields, wanted)) is None:
        return ()
    found = fields.field(place)
    if len(path) == 1:
        return (found.name,)
    inside = _path_in(found.type, path[1:], wanted.type)
    return (found.name, *inside) if inside else ()


def _as(column: Any, field: pa.Field) -> Any:
    """A column as a field of the table: fields of structs by its names, values in its type."""
    kind = field.type
    if pa.types.is_struct(kind) and pa.types.is_struct(column.type):
        if isinstance(column, pa.ChunkedArray):
            return pa.chunked_array([_as(chunk, field) for chunk in column.chunks], kind)
        parts = {}
        for inner in kind:
            place = _place_in(column.type, inner)
            if place is None:
                parts[inner.name] = pa.repeat(_as(pa.array([_default(inner)], pa.string()), inner)[0], len(column))
            else:
                parts[inner.name] = _as(pc.struct_field(column, [place]), inner)
        return pa.StructArray.from_arrays(list(parts.values()), list(parts), mask=column.is_null())
    if column.type == kind:
        return column
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        wrong = f"column {field.name!r} is {column.type} in the file, and {kind} in the table: {error}"
        raise InputUnreadable(wrong) from error
