"""Columns of a table: every shape that holds encoded images, or tells where they are."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workers.contract import InputSpec
from workers.image.errors import BadImage, ErrorCode
from workers.source.rows import ImageCell
from workers.source.source_file import InputUnreadable

_NULL = BadImage(ErrorCode.NULL, "the image cell is null")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # null, as Hive and Spark name a folder
_LIKE_A_URI = re.compile(r"ur[il]|path|file|im(g|age)|photo|pic", re.IGNORECASE)
"""Names of columns that may hold URIs."""
_NAMED = 8  # columns, in a message


def column_path(fields: Any, name: str) -> tuple[str, ...]:
    """Where a column of a schema (or struct) is: a flat one of that name, dots or not, else a field of a struct, step
    by step; () if nowhere. Raises InputUnreadable where several have the name."""
    for end in (len(name), *(dot.start() for dot in re.finditer(r"\.", name))):
        head, rest = name[:end], name[end + 1 :]
        if not (found := fields.get_all_field_indices(head)):
            continue
        kind = fields.field(found[0]).type
        inside = column_path(kind, rest) if rest and pa.types.is_struct(kind) else ()
        if len(found) > 1 and (inside or not rest):
            raise InputUnreadable(f"several columns are called {head!r}; give each a name of its own")
        if inside or not rest:
            return (head, *inside)
    return ()


def column_at(rows: Any, path: Sequence[str]) -> Any:
    """The column of a batch or table at a place of `column_path`; null where a struct around it is."""
    column = rows.column(path[0])
    return pc.struct_field(column, list(path[1:])) if path[1:] else column


def without_views(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with views as plain bytes and texts: Arrow cannot pick rows of views."""
    fields = [field.with_type(_no_view(field.type)) for field in rows.schema]
    return rows if pa.schema(fields) == rows.schema else rows.cast(pa.schema(fields))


def _no_view(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_no_view(field.type)) for field in kind])
    if pa.types.is_binary_view(kind):
        return pa.large_binary()
    return pa.large_string() if pa.types.is_string_view(kind) else kind


def type_at(fields: Any, path: Sequence[str]) -> pa.DataType:
    for name in path:
        fields = fields.field(name).type
    return fields


def _below(fields: Iterable[pa.Field]) -> Iterator[tuple[str, pa.DataType]]:
    for field in fields:
        yield field.name, field.type
        if pa.types.is_struct(field.type):
            yield from ((f"{field.name}.{name}", kind) for name, kind in _below(field.type))


def holds(kind: pa.DataType) -> str:
    """What the cells of a column are: `bytes`, `text`, `struct` with bytes or path in it, `` for anything else."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return holds(kind.storage_type)
    if types.is_dictionary(kind):
        return holds(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return "text"
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "bytes" if types.is_uint8(kind.value_type) else ""
    if types.is_struct(kind):
        inside = [holds(field.type) for field in kind if field.name in ("bytes", "path")]
        return "struct" if inside and all(each in ("bytes", "text") for each in inside) else ""
    is_binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return "bytes" if is_binary or types.is_fixed_size_binary(kind) or types.is_null(kind) else ""


def image_columns(schema: pa.Schema, column: str) -> list[str]:
    """What to read of a column for its images: the column, or of a struct its fields `bytes` and `path`. Raises
    InputUnreadable when there is no such column or it holds something else, with the line that works."""
    path = column_path(schema, column)
    kind = type_at(schema, path) if path else None
    if kind is not None and (held := holds(kind)):
        fields = ("bytes", "path") if held == "struct" else ()
        return [f"{column}.{name}" for name in fields if kind.get_field_index(name) >= 0] or [column]
    wrong = f"no column {column!r}" if kind is None else f"column {column!r} is {kind}, which holds no image"
    usable = _usable(schema)
    near = difflib.get_close_matches(column, usable, n=1, cutoff=0.7) or usable
    line = f"write `image: {near[0]}`" if near else "no column of it holds bytes, or texts that look like URIs"
    raise InputUnreadable(f"{wrong}; {line} ({_has([name for name, _ in _below(schema)])})")


def _usable(fields: Iterable[pa.Field]) -> list[str]:
    """Columns that `input.image` may name, those with bytes first."""
    kinds = {name: "" if pa.types.is_null(kind) else holds(kind) for name, kind in _below(fields)}
    kinds = {name: kind for name, kind in kinds.items() if kinds.get(name.rpartition(".")[0]) != "struct"}
    uris = [name for name, kind in kinds.items() if kind == "text" and _LIKE_A_URI.search(name)]
    return [name for wanted in ("struct", "bytes") for name, kind in kinds.items() if kind == wanted] + uris


def _has(names: Sequence[str]) -> str:
    return f"it has {', '.join(names[:_NAMED])}{'…' if len(names) > _NAMED else ''}"


def folder_values(uri: str) -> dict[str, str | None]:
    """What folders named `column=value` say of a file, as text."""
    pairs = [part.partition("=") for part in uri.split("/")[:-1]]
    return {unquote(name): None if value == _NO_VALUE else unquote(value) for name, equals, value in pairs if equals}


Places: TypeAlias = Mapping[str, tuple[str, ...] | pa.Scalar]
"""By the name of a key in the output, where a file has it, or the value that all of its rows have."""


def key_places(schema: pa.Schema, how: InputSpec, uri: str) -> Places:
    """Where the keys of a file are; without those that are nowhere. Raises InputUnreadable as `column_path`."""
    folders = {name: pa.scalar(value, pa.string()) for name, value in folder_values(uri).items()}
    places = {name: column_path(schema, column) or folders.get(column) for name, column in how.copied.items()}
    return {name: place for name, place in places.items() if place is not None}


def columns_of(places: Places) -> list[str]:
    """The columns to read of a file for its keys."""
    return [".".join(place) for place in places.values() if isinstance(place, tuple)]


def keys_of(rows: Any, places: Places) -> pa.Table:
    """The key columns of a batch or table of a file, under their names in the output."""
    columns = [column_at(rows, at) if isinstance(at, tuple) else pa.repeat(at, rows.num_rows) for at in places.values()]
    return pa.table(columns, list(places))


def file_columns(schema: pa.Schema, how: InputSpec, uri: str) -> tuple[list[str], pa.Schema, tuple[str, ...]]:
    """What to read of a file, its keys under their names in the output as the file has them, and the names of all that
    is there, with the fields of structs and the folders of Hive.

    Raises InputUnreadable for a column that is not there or not what it should be, with the line to write.
    """
    key = "input.image"
    try:
        images = image_columns(schema, how.image)
        key, path = "input.keys", column_path(schema, how.image)
        places, types = key_places(schema, how, uri), list[pa.Field]()
        there = (*(name for name, _ in _below(schema)), *folder_values(uri))
        for name, column in how.copied.items():
            if (at := places.get(name)) is None:
                same = [one for one in there if one.rpartition(".")[2].lower() == column.lower()]
                line = ""
                for near in (same or difflib.get_close_matches(column, there, n=1, cutoff=0.6))[:1]:
                    line = near if name == column and "." not in near else f"{{{name}: {near}}}"
                raise InputUnreadable(f"no column {column!r}{line and f'; write `keys: [{line}]`'} ({_has(there)})")
            kind = type_at(schema, at) if isinstance(at, tuple) else at.type
            if isinstance(at, tuple) and at in (path[: len(at)], (*path, "bytes")) and holds(kind) != "text":
                raise InputUnreadable(f"{column!r} is the image itself, which is not copied; take it out of input.keys")
            types.append(pa.field(name, kind))
    except InputUnreadable as error:
        raise InputUnreadable(f"{key}: {error}") from error
    return [*images, *columns_of(places)], pa.schema(types), there


class Link(NamedTuple):
    """In place of an image: where it is."""

    value: str | None


def cells_of(column: pa.Array) -> Sequence[ImageCell | Link]:
    """The images of a column's cells, or where they are."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return cells_of(column.storage)
    if pa.types.is_dictionary(kind):
        values = cells_of(column.dictionary)  # each once, however often it stands
        return [_NULL if index is None else values[index] for index in column.indices.to_pylist()]
    if pa.types.is_struct(kind):
        # flatten() carries the nulls of the struct itself over to its fields.
        parts = zip(kind, column.flatten(), strict=True)
        fields = {f.name: cells_of(part) for f, part in parts if f.name in ("bytes", "path")}
        images = fields.get("bytes", [_NULL] * len(column))
        paths = fields.get("path", images)
        # Hugging Face stores either the bytes or, when they were not embedded, the path.
        return [
            path if isinstance(path, Link) and path.value and (isinstance(cell, BadImage) or cell == (None,)) else cell
            for cell, path in zip(images, paths, strict=True)
        ]
    if holds(kind) == "text":
        # Parquet's writers may put any bytes into it: those become lone surrogates, which no URI has.
        texts = column.cast(pa.large_binary()).to_pylist()
        return [Link(None if text is None else text.decode("utf-8", "surrogateescape")) for text in texts]
    return binary_cells(_binary(column))


def _binary(column: pa.Array) -> pa.Array:
    """Bytes of any kind as (large) binary; lists of bytes lie in memory as these do, and are not copied."""
    if not pa.types.is_nested(column.type):
        plain = pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)
        return column if plain else column.cast(pa.large_binary())
    column = column.cast(pa.large_list(pa.uint8()))
    if column.values.null_count:  # such a cell is none
        holes = np.flatnonzero(column.values.is_null().to_numpy(zero_copy_only=False))
        broken = np.diff(np.searchsorted(holes, column.offsets.to_numpy())) > 0
        column = pc.if_else(pa.array(broken), pa.scalar(None, column.type), column)
    validity, offsets, *_, data = column.buffers()
    data = None if data is None else data.slice(column.values.offset)
    return pa.Array.from_buffers(pa.large_binary(), len(column), [validity, offsets, data], offset=column.offset)


def binary_cells(column: pa.Array) -> list[ImageCell]:
    """Each cell of a (large) binary column as it lies in Arrow's memory, or the error row's code for a null.

    By the column's offsets, because pyarrow's own access to one cell copies it.
    """
    _, offsets, data = column.buffers()
    if data is None:  # not one byte in the column
        data = pa.py_buffer(b"")
    width = np.int64 if pa.types.is_large_binary(column.type) else np.int32
    ends = np.frombuffer(offsets, width, len(column) + 1, column.offset * width().itemsize).tolist()
    bytes_of_all = memoryview(data).cast("B")
    cells: list[ImageCell] = [bytes_of_all[start:stop] for start, stop in pairwise(ends)]
    if column.null_count:
        for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
            cells[row] = _NULL
    return cells
