"""Types of key columns that differ from file to file: the common one, and whether a value would change in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from workers.output import cast_key, plain_type

_UNITS = ("s", "ms", "us", "ns")


def common_keys(schemas: Iterable[pa.Schema]) -> pa.Schema | None:
    """The types that most files have, widened for as many of the others as have one in common; None of no schema."""
    common: pa.Schema | None = None
    for schema, _ in Counter(schemas).most_common():
        types = [f.type for f in schema] if common is None else map(common_type, common.types, schema.types)
        found = [None if kind is None else plain_type(kind) for kind in types]
        if None not in found:
            common = pa.schema(list(zip(schema.names, found, strict=True)))
    if common is None:
        return None
    # A column without a value in any file: text, because a column of no type is one of whole numbers for Spark.
    return pa.schema([(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in common])


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """What values of both can be in, as far as their types tell; None for types of another kind."""
    one, other = plain_type(one), plain_type(other)
    if pa.types.is_timestamp(one) and pa.types.is_timestamp(other):
        # One moment, whatever its zone is called; without a zone it is another thing.
        finer = max(one.unit, other.unit, key=_UNITS.index)
        return pa.timestamp(finer, one.tz) if (one.tz is None) == (other.tz is None) else None
    if pa.types.is_null(one) or pa.types.is_null(other):
        return other if pa.types.is_null(one) else one
    if {(pa.types.is_integer(t), pa.types.is_floating(t)) for t in (one, other)} == {(True, False), (False, True)}:
        return one  # whole numbers, as pandas writes a column with a null: which they are, values tell
    # Bytes are no text, and a decimal that becomes a float is another number.
    if _is_text(one) != _is_text(other) or (
        pa.types.is_decimal(one) != pa.types.is_decimal(other) and any(map(pa.types.is_floating, (one, other)))
    ):
        return None
    try:
        both = [pa.schema([("key", kind)]) for kind in (one, other)]
        return pa.unify_schemas(both, promote_options="permissive").field(0).type
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def holds_all(wide: pa.DataType, narrow: pa.DataType) -> bool:
    """Whether every value of a type is one of another, as types tell; some that are are left to be looked at."""
    wide, narrow = plain_type(wide), plain_type(narrow)
    if pa.types.is_timestamp(wide) and pa.types.is_timestamp(narrow):
        return wide.unit == narrow.unit and (wide.tz is None) == (narrow.tz is None)
    alike = any(is_one(wide) and is_one(narrow) for is_one in (_is_text, pa.types.is_integer, pa.types.is_decimal))
    is_wider = alike and narrow != pa.uint64() and common_type(wide, narrow) == wide
    return wide == narrow or pa.types.is_null(narrow) or is_wider or (_is_text(wide) and _is_text(narrow))


def changed_by_cast(column: pa.ChunkedArray, kind: pa.DataType) -> str:
    """What goes wrong with values in another type; nothing where all stay what they are."""
    try:
        given = cast_key(column, plain_type(column.type))
        back = cast_key(cast_key(given, kind), given.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        return str(error)
    if pa.types.is_floating(given.type):
        same = np.array_equal(back.to_numpy(), given.to_numpy(), equal_nan=True)
    else:
        same = back.equals(given)
    return "" if same else "values would be rounded"
