"""Delta tables, by their log, replayed from its newest checkpoint on.

The log is read here and not by deltalake, which cannot name the files of shallow clones, gives deletion vectors as a
list of all rows, and refuses whole tables for a column of a type that nobody reads.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa

from jobs.errors import NothingThere, SpecError
from jobs.ledger.table_files import NONE_DELETED
from jobs.tables.delta_log import Action, DeltaLog, StoredVector
from jobs.tables.state import TableCommit, TableFile, TableState
from workers.contract import FIELD_ID, NAMES_IN_FILES

_READ = frozenset(
    [
        *("columnMapping", "deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"),
        *("typeWidening", "typeWidening-preview"),
        # These concern columns of that type alone, which are refused where they are to be read.
        *("variantType", "variantType-preview", "variantShredding", "variantShredding-preview"),
    ]
)
"""Features that readers must know, and we do."""
TYPES = {
    **{"string": pa.string(), "binary": pa.binary(), "boolean": pa.bool_(), "date": pa.date32(), "void": pa.null()},
    **{"byte": pa.int8(), "short": pa.int16(), "integer": pa.int32(), "long": pa.int64()},
    **{"float": pa.float32(), "double": pa.float64()},
    **{"timestamp": pa.timestamp("us", "UTC"), "timestamp_ntz": pa.timestamp("us")},
}

_NUMBER = re.compile(r"byte|short|integer|long|float|double|decimal\(.*\)")

_Partition = tuple[tuple[str, str | None], ...]


class _File(NamedTuple):
    size: int
    rows: int | None
    partition: _Partition
    vector: StoredVector | None


_Files = dict[str, _File]


def read_state(
    url: str, *, version: str = "", before: datetime | None = None, since: str = "", columns: Sequence[str] = ()
) -> TableState:
    """What a Delta table holds: at its newest version, at the one with the number `version`, or at the last one
    committed before a moment; with the commits after `since`. All but the `columns` may be of types that are not read.

    Commits are timed by their writers, where these say when it was. Partitions that are timestamps without a zone are
    taken as UTC. Raises SpecError: no Delta table, no such version, a feature or type that is not read; NothingThere;
    StoreError; StoreDenied.
    """
    log = DeltaLog(url)
    number = _chosen(log, version, before)
    base = log.base(number)
    if not log.commits.issuperset(range(base + 1, number + 1)):
        raise SpecError(
            f"input.version: {url}: version {number} cannot be put together: parts of its log were cleaned up",
            f"take a later one: the newest is {log.versions[-1]}",
        )
    first = int(since) if since.isdecimal() else number + 1
    known = first <= number and log.commits.issuperset(range(first + 1, number + 1))
    table: dict[str, Any] = {}
    files: _Files = {}
    _fold(log, log.checkpoint(base), table, files)
    commits = []
    past: _Files = {}  # of the time before the checkpoint: what is known of it by the commits after `since`
    for commit, actions in log.committed(range(min(first if known else base, base) + 1, number + 1)):
        step = _fold(log, actions, *((table, files) if commit > base else ({}, past)), partial=commit <= base)
        info = step.pop("info")
        if commit > first:
            commits.append(TableCommit(version=str(commit), at=log.time(commit, info), **step))
    if not {"protocol", "metaData"} <= table.keys():
        raise SpecError(f"input.uri: {url}: the log of the Delta table says neither its schema nor its protocol")
    fields, partitions = _schema(url, table["protocol"], table["metaData"], columns)
    deleted = log.deleted({file.vector for file in files.values() if file.vector})
    constants = {one: _constants(url, one, partitions) for one in {file.partition for file in files.values()}}
    return TableState(
        version=str(number),
        at=commits[-1].at if commits else log.at(number),
        id=str(table["metaData"]["id"]),
        files=[
            TableFile(
                uri, one.size, one.rows, deleted[one.vector] if one.vector else NONE_DELETED, constants[one.partition]
            )
            for uri, one in sorted(files.items())
        ],
        schema=pa.schema(fields),
        commits=tuple(commits) if known or not since else None,
    )


def _chosen(log: DeltaLog, version: str, before: datetime | None) -> int:
    every = log.versions
    if version:
        if not version.isdecimal() or int(version) > every[-1]:
            raise SpecError(
                f"input.version: {log.url} has no version {version}", f"take a number: the newest is {every[-1]}"
            )
        return int(version)
    if before is None or log.at(every[-1]) < before:
        return every[-1]
    if not (place := bisect_left(every, before, key=log.at)):
        raise NothingThere(
            f"input.uri: {log.url} has no version from before {before:%Y-%m-%d %H:%M} UTC",
            f"its log begins with version {every[0]}, of {log.at(every[0]):%Y-%m-%d %H:%M} UTC",
        )
    return every[place - 1]


def _fold(
    log: DeltaLog, actions: Iterable[Action], table: dict[str, Any], files: _Files, *, partial: bool = False
) -> dict[str, Any]:
    """Apply the actions of a commit or a checkpoint, in whatever order they come. What became of which files, as in a
    TableCommit, and what its writer noted. In `partial` files one that is removed may be missing."""
    info: Mapping[str, Any] = {}
    leave: dict[str, tuple[StoredVector | None, bool]] = {}
    come: dict[str, tuple[_File, bool]] = {}
    for kind, one in actions:
        if kind == "add":
            partition = tuple(sorted(dict(one["partitionValues"] or ()).items()))
            file = _File(int(one["size"]), rows_told(one), partition, _vector(one))
            come[log.uri(one["path"])] = file, bool(one.get("dataChange", True))
        elif kind == "remove":
            leave[log.uri(one["path"])] = _vector(one), bool(one.get("dataChange", True))
        elif kind in ("protocol", "metaData"):
            table[kind] = one
        elif kind == "commitInfo":
            info = one
    old = {uri: files[uri].vector for uri in come if uri in files}
    for uri, (vector, _) in leave.items():
        if files[uri].vector == vector if uri in files else partial:
            old[uri] = vector
            files.pop(uri, None)
    added = frozenset(uri for uri in come if uri not in old)
    removed = frozenset(uri for uri in old if uri not in come)
    changed = frozenset(uri for uri, (file, _) in come.items() if uri in old and file.vector != old[uri])
    files.update((uri, file) for uri, (file, _) in come.items())
    flags = (side[uri][1] for uri in added | removed | changed for side in (leave, come) if uri in side)
    return {"info": info, "added": added, "removed": removed, "changed": changed, "data_change": any(flags)}


def rows_told(add: Mapping[str, Any]) -> int | None:
    try:
        known = json.loads(add.get("stats") or "{}")
    except ValueError:
        known = {}
    rows = known.get("numRecords", (add.get("stats_parsed") or {}).get("numRecords"))
    return None if rows is None else int(rows)


def _vector(action: Mapping[str, Any]) -> StoredVector | None:
    if not (one := action.get("deletionVector")):
        return None
    return StoredVector(
        one["storageType"], one["pathOrInlineDv"], one.get("offset") or 0, one["sizeInBytes"], one["cardinality"]
    )


class Unread(Exception):
    """A type that we do not read."""


def _schema(
    url: str, protocol: Mapping[str, Any], metadata: Mapping[str, Any], columns: Sequence[str]
) -> tuple[list[pa.Field], dict[str, tuple[str, pa.DataType]]]:
    """The columns; those by which the table is partitioned, by the names that the log has for them, with their types.

    Raises SpecError for what readers must know and we do not.
    """
    reader, features = int(protocol["minReaderVersion"]), set(protocol.get("readerFeatures") or ())
    unknown = sorted(features - _READ) or ([f"reader version {reader}"] if reader > 3 else [])
    mode = dict(metadata["configuration"] or ()).get("delta.columnMapping.mode", "none")
    mode = mode if reader == 2 or "columnMapping" in features else "none"
    if mode not in ("none", "name", "id"):
        unknown.append(f"column mapping by {mode}")
    if (provider := (metadata.get("format") or {}).get("provider") or "parquet") != "parquet":
        unknown.append(f"files of {provider}")
    if unknown:
        raise SpecError(
            f"input.uri: {url}: reading this Delta table takes {', '.join(unknown)}, which is not supported",
            "drop the feature (`ALTER TABLE … DROP FEATURE …`), or read a copy of the table without it",
        )
    fields, partitions = [], {}
    # Columns of nothing but nulls, of no type yet, are none for readers.
    for one in (one for one in json.loads(metadata["schemaString"])["fields"] if one["type"] != "void"):
        divides = one["name"] in metadata["partitionColumns"]
        try:
            if divides and one["type"] == "binary":  # writers do not agree on how to write its bytes as text
                raise Unread("binary, by which the table is partitioned")
            fields.append(field := field_of(one, mode))
            if divides:
                partitions[_physical(one, mode)] = field.name, field.type
        except Unread as error:
            if not columns or one["name"] in columns:
                raise SpecError(
                    f"input.uri: {url}: the column {one['name']} is of type {error}, which is not read",
                    "leave it out of the spec's columns, or write it as another type",
                ) from error
    return fields, partitions


def _physical(one: Mapping[str, Any], mode: str) -> str:
    return str(one["name"] if mode == "none" else one["metadata"]["delta.columnMapping.physicalName"])


def field_of(one: Mapping[str, Any], mode: str) -> pa.Field:
    known = {} if mode == "none" else {NAMES_IN_FILES: json.dumps([_physical(one, mode)])}
    if mode == "id":
        known[FIELD_ID] = str(one["metadata"]["delta.columnMapping.id"])
    for change in (one.get("metadata") or {}).get("delta.typeChanges", ()):
        was, now = change["fromType"], change["toType"]
        if (was, now) != ("date", "timestamp_ntz") and not (_NUMBER.fullmatch(was) and _NUMBER.fullmatch(now)):
            raise Unread(f"{now} that was {was}")
    return pa.field(one["name"], _type(one["type"], mode), one["nullable"], known)


def _type(said: Any, mode: str) -> pa.DataType:
    if isinstance(said, str):
        if decimal := re.fullmatch(r"decimal\((\d+), *(-?\d+)\)", said):
            return pa.decimal128(int(decimal[1]), int(decimal[2]))
        if said not in TYPES:
            raise Unread(said)
        return TYPES[said]
    if said["type"] == "struct":
        return pa.struct([field_of(one, mode) for one in said["fields"]])
    if said["type"] == "array":
        return pa.list_(pa.field("element", _type(said["elementType"], mode), said["containsNull"]))
    if said["type"] == "map":
        value = pa.field("value", _type(said["valueType"], mode), said["valueContainsNull"])
        return pa.map_(_type(said["keyType"], mode), value)
    raise Unread(said["type"])


def _constants(
    url: str, values: Iterable[tuple[str, str | None]], partitions: Mapping[str, tuple[str, pa.DataType]]
) -> dict[str, object]:
    found = dict[str, object]()
    for physical, text in values:
        if physical in partitions:
            name, kind = partitions[physical]
            try:
                found[name] = _typed(text, kind)
            except (ValueError, OverflowError, pa.ArrowException) as error:
                raise SpecError(f"input.uri: {url}: {text!r} in the partition column {name} is no {kind}") from error
    return found


def _typed(text: str | None, kind: pa.DataType) -> object:
    if not text:
        return None
    if pa.types.is_timestamp(kind):
        moment: datetime = pa.scalar(text.removesuffix("Z")).cast(pa.timestamp("us")).as_py()
        return moment.replace(tzinfo=UTC) if kind.tz else moment
    return pa.scalar(text).cast(kind).as_py()
