"""The output object of a shard, written and read: explicit schema, Parquet in memory, zstd, page checksums."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from workers.contract import Shard
from workers.image.errors import BadImage

SCORE_BINS = 20
"""Of the counts by score: equal ones from 0 to 1."""


@dataclass
class Scored:
    """Predictions of a shard's rows, in order. Row i of every column is the same input row.

    For embeddings `score_NK` holds the vectors and `label_NK` is empty.
    """

    label_NK: npt.NDArray[np.int32]
    score_NK: npt.NDArray[np.float32]
    slice_index: list[int] = field(default_factory=list)
    row: list[int] = field(default_factory=list)
    errors: dict[int, BadImage] = field(default_factory=dict)
    keys: list[pa.Table] = field(default_factory=list)
    hashes: list[bytes | None] = field(default_factory=list)
    """Of a table's rows: of the image, or None without one."""
    copied: int = 0
    """Rows of a table whose prediction is that of the same image elsewhere in it."""
    bytes_read: int = 0

    @property
    def rows(self) -> int:
        return len(self.row)

    @property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Which rows have a prediction."""
        ok = np.ones(self.rows, np.bool_)
        ok[list(self.errors)] = False
        return ok


SOURCE_FIELDS = (
    pa.field("source_uri", pa.string(), nullable=False),
    pa.field("source_version", pa.string(), nullable=False),
    pa.field("row_group", pa.int32(), nullable=False),
    pa.field("row", pa.int64(), nullable=False),
)
ERROR_FIELDS = (pa.field("error_code", pa.string()), pa.field("error_message", pa.string()))

IMAGE_HASH = "image_hash"
"""Of tables: a column by which a prediction is found again where the image is copied into another file."""

KEY_SHOWN = 80
"""Characters of a key's value."""


UNKNOWN, NO_CLASS = -1, -2
"""In place of a class index: a row without a label (test splits write -1), and a label that is no class."""


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of a key column that every reader knows: no dictionary, no view."""
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def cast_key(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A key column in another type. Raises ArrowInvalid for a value that is none of it, ArrowNotImplementedError."""
    if column.type == kind:
        return column
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(kind.value_type).cast(kind) if pa.types.is_dictionary(kind) else column.cast(kind)


def keys_together(blocks: Iterable[pa.Table], keys: Sequence[pa.Field]) -> pa.Table:
    """The key columns of blocks, whatever types their files have. Raises as `cast_key`."""
    schema = pa.schema(list(keys))
    tables = [pa.table([cast_key(block[key.name], key.type) for key in keys], schema=schema) for block in blocks]
    return pa.concat_tables([schema.empty_table(), *tables])


class NotOurs(ValueError):
    """The bytes at an output key are not an object that Stint wrote."""


def output_schema(task: str, keys: Sequence[pa.Field], *, named: bool = True, hashed: bool = False) -> pa.Schema:
    """Columns of a prediction; `topk_name` where it is `named`, as in every root that began with it; the image's hash
    where the input is a table."""
    if task == "embed":
        # Not of a fixed size: before 26, pyarrow cannot read (before 25, not even write) such a column with nulls.
        middle = [pa.field("embedding", pa.list_(pa.float32()))]
    else:
        middle = [
            pa.field("label", pa.string()),
            pa.field("score", pa.float32()),
            pa.field("topk_label", pa.list_(pa.int32())),
            pa.field("topk_score", pa.list_(pa.float32())),
            *([pa.field("topk_name", pa.list_(pa.string()))] if named else []),
        ]
    if hashed:
        middle.append(pa.field(IMAGE_HASH, pa.binary()))
    return pa.schema([*SOURCE_FIELDS, *keys, *middle, *ERROR_FIELDS])


OWN_COLUMNS = frozenset(name for task in ("classify", "embed") for name in output_schema(task, (), hashed=True).names)
"""Columns of an output object, of any task, that are not keys of the input."""


def key_names(schema: pa.Schema) -> list[str]:
    """The key columns of an output object."""
    return [name for name in schema.names if name not in OWN_COLUMNS]


def describe_row(uri: str, row_group: int, row: int, keys: Mapping[str, object]) -> str:
    """An input row for a person: by its keys, where the job has some, and by its place."""
    where = f"{uri} row group {row_group} row {row}"
    named = " ".join(f"{name}={str(value)[:KEY_SHOWN]}" for name, value in keys.items())
    return f"{named} ({where})" if named else where


def reasons_table(by_code: Counter[str], samples: Mapping[str, str]) -> list[str]:
    """Lines for a person: how many rows have no prediction for which reason, and a row of each."""
    return [f"  {rows:>8,}  {code:<20} e.g. {samples.get(code, '')}" for code, rows in by_code.most_common()]


def shown_keys(keys: pa.Table, row: int) -> dict[str, str]:
    """The key columns' values in one row, for `describe_row`.

    A key may be what Python has no value for: nanoseconds, years after 9999, text that is not UTF-8.
    """
    shown = {}
    for name, column in zip(keys.column_names, keys.columns, strict=True):
        try:
            shown[name] = str(column[row].as_py())
        except (ValueError, OverflowError):
            shown[name] = column.slice(row, 1).combine_chunks().to_string(skip_new_lines=True).strip("[]")
    return shown


def encode(
    shard: Shard, scored: Scored, *, task: str, labels: Sequence[str] | None, keys: Sequence[pa.Field], outputs: int,
    named: bool, metadata: Mapping[str, str], gone: Sequence[int],
) -> bytes:  # fmt: skip
    """The shard's rows as one Parquet file.

    `metadata` goes into the file's key-value metadata as `stint.<name>`, beside the row counts and the slices that
    are gone, so that a reader can tell from the footer alone what the object holds.
    """
    rows = scored.rows
    ok = scored.ok
    slices = [shard.slices[i] for i in scored.slice_index]
    columns: list[pa.Array | pa.ChunkedArray] = [
        pa.array([s.uri for s in slices], pa.string()),
        pa.array([s.version for s in slices], pa.string()),
        pa.array([s.row_group for s in slices], pa.int32()),
        pa.array(scored.row, pa.int64()),
    ]
    if keys:
        columns += keys_together(scored.keys, keys).columns
    if task == "embed":
        columns.append(_lists(scored.score_NK[:rows], ok, outputs, pa.float32()))
    else:
        columns += _classes(scored, ok, labels, named=named)
    if shard.table is not None:
        columns.append(pa.array(scored.hashes, pa.binary()))
    errors = [scored.errors.get(row) for row in range(rows)]
    columns.append(pa.array([bad.code if bad else None for bad in errors], pa.string()))
    columns.append(pa.array([str(bad) if bad else None for bad in errors], pa.string()))
    counts = {"rows_ok": int(ok.sum()), "rows_bad": rows - int(ok.sum()), "gone": json.dumps(list(gone))}
    schema = output_schema(task, keys, named=named, hashed=shard.table is not None).with_metadata(
        {f"stint.{name}": str(value) for name, value in {**metadata, **counts, "shard": shard.name}.items()}
    )
    sink = pa.BufferOutputStream()
    table = pa.Table.from_arrays(columns, schema=schema)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True, store_schema=True)
    return bytes(sink.getvalue())


def _classes(scored: Scored, ok: np.ndarray, labels: Sequence[str] | None, *, named: bool) -> list[pa.Array]:
    rows, k = scored.rows, scored.label_NK.shape[1]
    top = scored.label_NK[:rows]
    score = scored.score_NK[:rows]
    index = _lists(top, ok, k, pa.int32())
    names = pa.array([str(label) for label in labels], pa.string()) if labels else None
    named_rows = index.values.cast(pa.string()) if names is None else names.take(index.values)
    return [
        pa.array([str(labels[i]) if labels else str(i) for i in top[:, 0]], pa.string(), mask=~ok),
        pa.array(score[:, 0], pa.float32(), mask=~ok),
        index,
        _lists(score, ok, k, pa.float32()),
        *([pa.ListArray.from_arrays(index.offsets, named_rows, mask=pa.array(~ok))] if named else []),
    ]


def _lists(values_NK: np.ndarray, ok: np.ndarray, k: int, item: pa.DataType) -> pa.Array:
    """One list of k values a good row, null for a bad one."""
    offsets = np.concatenate([[0], np.cumsum(np.where(ok, k, 0))]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values_NK[ok].reshape(-1), item), type=pa.list_(item), mask=pa.array(~ok)
    )


class OutputObject:
    """An output object that is read: its footer at once, its columns when they are asked for."""

    def __init__(self, data: bytes) -> None:
        """Raises NotOurs for bytes that are no Parquet file, or whose metadata is damaged."""
        try:
            self._file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            self.schema = self._file.schema_arrow
            self.rows = int(self._file.metadata.num_rows)
            found = (self.schema.metadata or {}).items()  # in the order in which they were written
            self.metadata = {k.decode().removeprefix("stint."): v.decode() for k, v in found if k.startswith(b"stint.")}
            """What `encode` was given and what it counted, by name."""
        except (pa.ArrowException, OSError) as error:
            raise NotOurs(f"not a Parquet file: {error}") from error
        except UnicodeDecodeError as error:
            raise NotOurs(f"damaged metadata: {error}") from error

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """These columns, all by default. Raises NotOurs where one is missing or the checksum of a page is wrong."""
        lacking = [name for name in columns or () if name not in self.schema.names]
        if lacking:
            raise NotOurs(f"no column {', '.join(lacking)}; the file has {', '.join(self.schema.names)}")
        try:
            return self._file.read(columns)
        except (pa.ArrowException, OSError) as error:
            raise NotOurs(f"damaged: {error}") from error


@dataclass(frozen=True)
class ObjectFacts:
    """What an output object's own footer and bytes say of it."""

    shard: str
    plan_token: str
    rows_ok: int
    rows_bad: int
    gone: tuple[int, ...]
    """Slices of the shard, by index, that have no rows because their source vanished or changed."""
    sha256: str
    size: int


def object_facts(data: bytes) -> ObjectFacts:
    """Raises NotOurs when the bytes are not a complete object that Stint wrote."""
    opened = OutputObject(data)
    try:
        facts = ObjectFacts(
            shard=opened.metadata["shard"],
            plan_token=opened.metadata["plan_token"],
            rows_ok=int(opened.metadata["rows_ok"]),
            rows_bad=int(opened.metadata["rows_bad"]),
            gone=tuple(json.loads(opened.metadata["gone"])),
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise NotOurs(f"lacking or damaged metadata: {error}") from error
    if facts.rows_ok + facts.rows_bad != opened.rows:
        raise NotOurs(f"metadata counts {facts.rows_ok} + {facts.rows_bad} rows, the file has {opened.rows}")
    return facts


def by_score(scores_N: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Rows in each bin [i, i + 1) / SCORE_BINS; the last one holds 1 too. NaN, which no shard has, is in none."""
    finite = scores_N[np.isfinite(scores_N)]
    return np.histogram(finite, bins=SCORE_BINS, range=(0.0, 1.0))[0].astype(np.int64)


def true_classes(values: Iterable[object], class_names: Sequence[str] | None) -> list[int]:
    """Class index of each label: a name among the model's labels, or an index, also as text or as a whole float.

    UNKNOWN for null, NaN, an empty text and what is below 0; NO_CLASS for anything else.
    """
    by_name = {name: index for index, name in enumerate(class_names or ())}

    def index(value: object) -> int:
        if isinstance(value, str) and value in by_name:
            return by_name[value]
        if value is None or value == "":
            return UNKNOWN
        try:
            number = float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return NO_CLASS
        if number.is_integer():
            return max(int(number), UNKNOWN)
        return UNKNOWN if math.isnan(number) else NO_CLASS

    return [index(value) for value in values]


def right_ones(truth: Iterable[int], predicted: Iterable[int]) -> tuple[int, int]:
    """Rows with a true class, and those of them that are predicted so; both arguments hold class indices of rows."""
    right = [true == said for true, said in zip(truth, predicted, strict=True) if true >= 0]
    return len(right), sum(right)
