"""A Delta table of the predictions, whose log lies in the output itself: files are added where they are.

A commit is created if it is absent, as everything in the ledger is, under the number after the version that was read.
So it goes by that version or not at all, whoever else writes and by whatever rules, and where no answer came, the bytes
under the number are the answer. deltalake 1.6.6 lets commits follow those of others, cannot add columns and files in
one, and for any commit holds all files of a table in memory; here it only writes checkpoints.
"""

from __future__ import annotations

import json
import re
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from jobs.errors import NothingThere, SpecError
from jobs.tables.delta import TYPES, Unread, field_of, rows_told
from jobs.tables.delta_log import FILE_COLUMNS, TABLE_COLUMNS, DeltaLog, NoDeltaTable
from jobs.tables.target import MODEL, PLAN, Change, Copy, Portion, RowFile, TableMoved
from workers.output import SOURCE_FIELDS
from workers.source.source_file import open_parquet, opened
from workers.storage.access import object_store_url, storage_options
from workers.storage.errors import NotFound, StoreError
from workers.storage.filesystems import open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.store import open_store

_APP = "stint"
_EDITION = re.compile(r"Predictions of Stint, edition (\d+)\.")
"""In the table's description: of what Delta restores with the rows, all that may hold a number of ours. The application
transaction, which RESTORE leaves, counts where somebody has described the table anew."""
_COMMITS = 10
"""After how many a checkpoint is due."""
_KEPT = {"delta.deletedFileRetentionDuration": "interval 36500 days"}
"""No vacuum takes files that left the table; nor, of files that it does not know, those that are not in it yet."""
_DIVIDED = [MODEL.name, PLAN.name]
_NTZ = "timestampNtz"
_WRITTEN = frozenset(["appendOnly", "invariants", _NTZ])
"""Features that writers must know, and we do."""
_VERSIONS = ((1, 1), (1, 2), (1, 7), (3, 7))
"""Of what readers and writers must know."""
_ANEW = "move _delta_log/ away: the table is then made anew"
_NAMES = {kind: name for name, kind in TYPES.items() if name != "void"} | {
    **{pa.large_string(): "string", pa.large_binary(): "binary", pa.date64(): "date"},
    **{pa.uint8(): "short", pa.uint16(): "integer", pa.uint32(): "long"},
}


class DeltaOutput:
    """An OutputTable."""

    def __init__(self, uri: str) -> None:
        """`uri` is the output's: files that are added lie below it. Raises SpecError without the library; StoreDenied
        where create-if-absent cannot be had."""
        try:
            import deltalake  # noqa: F401  (told before anything is written)
        except ImportError as error:
            raise SpecError("output.table: Delta tables need deltalake", "pip install 'stint[delta]'") from error
        self._store = open_store(uri)
        self._told = f"output.table: {self._store.url}"

    def read(self) -> int:
        self._log: DeltaLog | None = None
        self._version, edition = -1, 0
        self._table: dict[str, Any] = {}
        try:
            self._log = DeltaLog(self._store.url, "output.table")
        except (NothingThere, NoDeltaTable):
            return 0
        self._version = self._log.versions[-1]
        for kind, said in self._log.actions(self._version, TABLE_COLUMNS):
            if kind in ("protocol", "metaData"):
                self._table[kind] = {name: value for name, value in said.items() if value is not None}
            elif kind == "txn" and said["appId"] == _APP:
                edition = int(said["version"])
        metadata, protocol = self._table["metaData"], self._table["protocol"]
        if number := _EDITION.search(metadata.get("description", "")):  # which RESTORE takes back with the rows
            edition = int(number[1])
        metadata["configuration"] = dict(metadata.get("configuration", ()))
        metadata["format"] = {"provider": "parquet", "options": {}}
        features = {*protocol.get("readerFeatures", ()), *protocol.get("writerFeatures", ())}
        versions = protocol["minReaderVersion"], protocol["minWriterVersion"]
        takes = sorted(features - _WRITTEN) or ([f"versions {versions}"] if versions not in _VERSIONS else [])
        takes += ["delta.appendOnly"] if metadata["configuration"].get("delta.appendOnly") == "true" else []
        takes += ["delta.invariants"] if "delta.invariants" in metadata["schemaString"] else []
        if metadata["partitionColumns"] != _DIVIDED:
            takes.append(f"partitions by {metadata['partitionColumns']}")
        if takes:
            raise SpecError(
                f"{self._told}: writing to this Delta table takes {', '.join(takes)}, which is not supported",
                f"take that from the table (`ALTER TABLE … DROP FEATURE …`), or {_ANEW}",
            )
        return edition

    def commit(self, edition: int, schema: pa.Schema, change: Change, copy: Copy) -> None:
        actions = self._of_table(schema, edition)
        added = {self._path(file): file for file in change.added}
        live = self._live({*change.dropped, *change.trimmed})
        removed = {path: file for path, file in live.items() if file.part in change.dropped}
        trimmed = [path for path, file in live.items() if file.part in change.trimmed]
        sources = ahead(lambda path: self._rows(path, [field.name for field in SOURCE_FIELDS]), trimmed, "trim")
        for path, found in zip(trimmed, sources, strict=True):
            seen = change.trimmed[part := live[path].part]
            if (stay := seen(found).num_rows) < found.num_rows:
                removed[path] = live[path]
                if stay:
                    file = copy(part, seen(self._rows(path)))
                    added[self._path(file)] = file
        now = int(time.time() * 1000)
        info = {"timestamp": now, "operation": "WRITE", "operationParameters": {}, "engineInfo": _APP}
        actions = [
            {"commitInfo": {**info, "txnId": str(uuid.uuid4())}},  # no other commit has these bytes
            *actions,
            {"txn": {"appId": _APP, "version": edition}},  # without a time, so that it never expires
        ]
        left = {"deletionTimestamp": now, "extendedFileMetadata": True}
        actions += [{"remove": _of_file(path, one) | left} for path, one in removed.items() if path not in added]
        for path, file in added.items():
            came = {"modificationTime": now, "stats": json.dumps({"numRecords": file.rows})}
            actions.append({"add": _of_file(path, file) | came})
        data = "\n".join(json.dumps(action, separators=(",", ":")) for action in actions).encode()
        version = self._version + 1
        if not self._store.create(f"_delta_log/{version:020}.json", data):
            raise TableMoved(f"{self._told}: another one made version {version}")
        if self._log and version - self._log.base(version) >= _COMMITS:
            self._write_checkpoint(version)

    def rows(self) -> Mapping[Portion, int]:
        found = dict[Portion, int]()
        for path, file in self._live().items():
            found[file.part] = found.get(file.part, 0) + (file.rows or self._rows(path).num_rows)
        return found

    def _live(self, parts: Collection[Portion] | None = None) -> dict[str, RowFile]:
        """Files of these parts, or of all, by their paths in the log; with 0 rows where it does not tell."""
        live = dict[str, RowFile]()
        if self._log is None or parts == set():
            return live
        plans = pa.array({str(part.plan) for part in parts or ()}, pa.string())

        def wanted(adds: pa.StructArray) -> pa.BooleanArray:
            return pc.is_in(pc.map_lookup(adds.field("partitionValues"), PLAN.name, "first"), plans)

        for kind, one in self._log.actions(self._version, FILE_COLUMNS, None if parts is None else wanted):
            if kind == "add" and (values := dict(one["partitionValues"]))[PLAN.name]:
                part = Portion(values[MODEL.name], int(values[PLAN.name]))
                if parts is None or part in parts:
                    live[one["path"]] = RowFile(one["path"], part, rows_told(one) or 0, int(one["size"]))
            elif kind == "remove":
                live.pop(one["path"], None)
        return live

    def _rows(self, path: str, names: Sequence[str] | None = None) -> pa.Table:
        """Of a live file, these columns or all, in the table's types: deltalake's files have views, which Arrow cannot
        filter. Those of the source are always there."""
        assert self._log is not None
        uri = self._log.uri(path)
        types = {
            one["name"]: field_of(one, "none").type
            for one in json.loads(self._table["metaData"]["schemaString"])["fields"]
        }
        try:
            with opened(*open_filesystem(uri)) as file:
                found = open_parquet(file).read(names)
            columns = {one.name: pa.nulls(found.num_rows, one.type) for one in SOURCE_FIELDS}
            columns |= {name: found[name].cast(types[name]) for name in found.column_names if name in types}
        except (NotFound, pa.ArrowException, OSError) as error:
            raise StoreError(f"{self._told}: {uri} of the table cannot be read: {error}") from error
        return pa.table(columns)

    def _of_table(self, schema: pa.Schema, edition: int) -> list[dict[str, Any]]:
        """Actions that let the table have these columns, say the edition and be kept. Raises SpecError."""
        metadata = self._table.get("metaData") or {
            **{"id": str(uuid.uuid4()), "format": {"provider": "parquet", "options": {}}},
            **{"schemaString": "", "partitionColumns": _DIVIDED, "createdTime": int(time.time() * 1000)},
            "configuration": {"delta.checkpointInterval": str(_COMMITS)},
        }
        protocol = self._table.get("protocol") or {"minReaderVersion": 1, "minWriterVersion": 2}
        text = metadata["schemaString"]
        fields = json.loads(text)["fields"] if text else [_field(one) | {"nullable": False} for one in (MODEL, PLAN)]
        for field in schema:
            try:
                one = _field(field)
            except Unread as error:
                raise SpecError(
                    f"{self._told}: Delta has no type for the key {field.name}, which is {error}",
                    "drop it from input.keys, or cast it in the input",
                ) from error
            held = next((held for held in fields if held["name"].lower() == field.name.lower()), one)
            if (held["name"], held["type"]) != (one["name"], one["type"]) or field.name in _DIVIDED:
                raise SpecError(
                    f"{self._told}: {field.name} is {one['type']}, and the table has {held['name']} as {held['type']}",
                    f"drop the key from input.keys, write to another output, or {_ANEW}",
                )
            if held is one:
                fields.append(one)
                text = ""
        text = text or json.dumps({"type": "struct", "fields": fields})
        before, sentence = metadata.get("description", ""), f"Predictions of Stint, edition {edition}."
        described = _EDITION.sub(sentence, before) if _EDITION.search(before) else f"{before} {sentence}".strip()
        metadata = {
            **metadata,
            "description": described,
            "schemaString": text,
            "configuration": {**metadata["configuration"], **_KEPT},
        }
        if "timestamp_ntz" in text and _NTZ not in protocol.get("readerFeatures", ()):
            features = sorted({*protocol.get("writerFeatures", ("appendOnly", "invariants")), _NTZ})
            versions = {"minReaderVersion": 3, "minWriterVersion": 7}
            protocol = {**versions, "readerFeatures": [_NTZ], "writerFeatures": features}
        said = {"protocol": protocol, "metaData": metadata}
        return [{kind: value} for kind, value in said.items() if value != self._table.get(kind)]

    def _write_checkpoint(self, version: int) -> None:
        """So that readers need not go through more commits than some; one that fails is tried again after the next.
        Raises StoreError."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            options = storage_options(self._store.url)
            table = DeltaTable(object_store_url(self._store.url), version=version, storage_options=options)
            table.create_checkpoint()
            table.cleanup_metadata()
        except (DeltaError, OSError) as error:
            raise StoreError(f"{self._told}: no checkpoint can be written: {error}") from error

    def _path(self, file: RowFile) -> str:
        """As the log has it. Polars 2.1 reads the part from it, whatever else the log says."""
        below = file.uri.removeprefix(f"{self._store.url}/")
        if below == file.uri or f"/model={file.part.model}/plan={file.part.plan:08}/" not in f"/{below}":
            raise ValueError(f"{file.uri} does not lie below {self._store.url} in a folder of {file.part}")
        return quote(below, safe="/=")


def _of_file(path: str, file: RowFile) -> dict[str, Any]:
    values = {MODEL.name: file.part.model, PLAN.name: str(file.part.plan)}
    # Of removes that say no data changed deltalake takes no notice: its compactions would bring the rows back.
    return {"path": path, "partitionValues": values, "size": file.size, "dataChange": True}


def _field(field: pa.Field) -> dict[str, Any]:
    return {"name": field.name, "type": _named(field.type), "nullable": True, "metadata": {}}


def _named(kind: pa.DataType) -> Any:
    """A type as Delta calls it. Raises Unread."""
    if kind in _NAMES:
        return _NAMES[kind]
    if pa.types.is_timestamp(kind) and kind.unit != "ns":
        return "timestamp" if kind.tz else "timestamp_ntz"
    if pa.types.is_fixed_size_binary(kind):
        return "binary"
    if pa.types.is_decimal(kind) and 0 <= kind.scale <= kind.precision <= 38:
        return f"decimal({kind.precision},{kind.scale})"
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return {"type": "array", "elementType": _named(kind.value_type), "containsNull": True}
    if pa.types.is_map(kind):
        key, value = _named(kind.key_type), _named(kind.item_type)
        return {"type": "map", "keyType": key, "valueType": value, "valueContainsNull": True}
    if pa.types.is_struct(kind):
        return {"type": "struct", "fields": [_field(one) for one in kind]}
    raise Unread(str(kind))
