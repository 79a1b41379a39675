"""Delta tables for tests: logs written by hand after the protocol, tables that deltalake writes, and what is live."""

from __future__ import annotations

import base64
import json
import struct
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable, write_deltalake

from jobs.tables.bitmaps import _B85, _Z85
from jobs.tables.delta import read_state
from jobs.tables.delta_log import FILE_COLUMNS, DeltaLog
from jobs.tables.state import TableState
from workers.contract import FIELD_ID, NAMES_IN_FILES
from workers.storage.filesystems import open_filesystem

SCHEMA = pa.schema([("id", pa.int64()), ("image", pa.binary()), ("label", pa.int32())])
Row = dict[str, Any]


def live_rows(state: TableState) -> list[Row]:
    """Every live row by the table's present names, read by pyarrow alone."""
    found: list[Row] = []
    for file in state.files:
        fs, path = open_filesystem(file.uri)
        with fs.open(path) as opened:
            rows = pq.ParquetFile(opened).read()
        assert file.rows in (None, len(rows))
        assert len(file.deleted) == len(set(file.deleted.tolist()))
        assert sorted(file.deleted.tolist()) == file.deleted.tolist()
        alive = np.delete(np.arange(len(rows)), file.deleted)
        columns = {}
        for field in state.schema:
            if field.name in file.constants:
                columns[field.name] = pa.array([file.constants[field.name]] * len(rows), field.type)
            else:
                columns[field.name] = _column(rows, field)
        found += pa.table(columns).take(alive).to_pylist()
    return found


def _column(rows: pa.Table, field: pa.Field) -> Any:
    known = field.metadata or {}
    numbers = {(one.metadata or {}).get(FIELD_ID): one.name for one in rows.schema}
    names = json.loads(known[NAMES_IN_FILES]) if NAMES_IN_FILES in known else [field.name]
    name = numbers.get(known.get(FIELD_ID)) if known.get(FIELD_ID) else None
    name = name or next((one for one in names if one in rows.column_names), None)
    return pa.nulls(len(rows), field.type) if name is None else rows[name].combine_chunks().cast(field.type)


def commit(table: Path, version: int, *actions: Mapping[str, Any]) -> None:
    """A version of the log, written by hand."""
    (table / "_delta_log").mkdir(parents=True, exist_ok=True)
    lines = "\n".join(json.dumps(one) for one in actions)
    (table / "_delta_log" / f"{version:020}.json").write_text(lines)


def noted(**info: Any) -> Row:
    return {"commitInfo": info}


def protocol(*features: str, reader: int = 3) -> Row:
    listed = {"readerFeatures": list(features)} if reader == 3 else {}
    writers = {"writerFeatures": list(features)} if reader > 1 else {}
    return {"protocol": {"minReaderVersion": reader, "minWriterVersion": 7 if writers else 2, **listed, **writers}}


def column(name: str, kind: Any = "long", **metadata: Any) -> Row:
    return {"name": name, "type": kind, "nullable": True, "metadata": metadata}


def mapped(name: str, physical: str, number: int, kind: Any = "long") -> Row:
    return column(
        name, kind, **{"delta.columnMapping.id": number, "delta.columnMapping.physicalName": physical}
    )  # fmt: skip


def metadata(*columns: Row, by: Sequence[str] = (), table: str = "the-table", **configuration: str) -> Row:
    settings = {f"delta.{name}".replace("__", "."): value for name, value in configuration.items()}
    return {
        "metaData": {
            "id": table,
            "format": {"provider": "parquet", "options": {}},
            "schemaString": json.dumps({"type": "struct", "fields": columns}),
            "partitionColumns": list(by),
            "configuration": settings,
        }
    }


def added(path: str, size: int = 1, *, data_change: bool = True, rows: int | None = None, **more: Any) -> Row:
    stats = {} if rows is None else {"stats": json.dumps({"numRecords": rows})}
    values = more.pop("values", {})
    return {
        "add": {"path": path, "size": size, "partitionValues": values, "dataChange": data_change, **stats, **more}
    }  # fmt: skip


def removed(path: str, *, data_change: bool = True, **more: Any) -> Row:
    return {"remove": {"path": path, "dataChange": data_change, **more}}


def parquet(file: Path, rows: Mapping[str, Any] | pa.Table, path: str = "") -> Row:
    """A file of rows, and the action that adds it."""
    table = rows if isinstance(rows, pa.Table) else pa.table(dict(rows))
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return added(path or file.name, file.stat().st_size, rows=len(table))


def bitmap(positions: Iterable[int]) -> bytes:
    """A 64-bit Roaring bitmap of array containers, as Spark writes small ones."""
    containers: dict[int, dict[int, list[int]]] = {}
    for position in sorted(set(positions)):
        containers.setdefault(position >> 32, {}).setdefault(position >> 16 & 0xFFFF, []).append(position & 0xFFFF)
    written = struct.pack("<IQ", 1681511377, len(containers))
    for high, some in containers.items():
        written += struct.pack("<III", high, 12346, len(some))
        written += b"".join(struct.pack("<HH", key, len(low) - 1) for key, low in some.items())
        offset = 8 + 8 * len(some)
        for low in some.values():
            written += struct.pack("<I", offset)
            offset += 2 * len(low)
        written += b"".join(struct.pack(f"<{len(low)}H", *low) for low in some.values())
    return written


def z85(raw: bytes) -> str:
    padded = raw + bytes(-len(raw) % 4)
    return base64.b85encode(padded).translate(bytes.maketrans(_B85, _Z85)).decode()


def inline_vector(positions: Sequence[int]) -> Row:
    raw = bitmap(positions)
    return {
        "storageType": "i", "pathOrInlineDv": z85(raw), "sizeInBytes": len(raw), "cardinality": len(set(positions))
    }  # fmt: skip


def stored_vectors(folder: Path, every: Sequence[Sequence[int]], *, prefix: str = "", absolute: str = "") -> list[Row]:
    """Deletion vectors in one file in a table's folder, or at an absolute place, with what adds say of each."""
    name, body, found = uuid.uuid4(), b"\x01", []
    for positions in every:
        raw = bitmap(positions)
        place = {"storageType": "u", "pathOrInlineDv": prefix + z85(name.bytes)}
        if absolute:
            place = {"storageType": "p", "pathOrInlineDv": f"{absolute}deletion_vector_{name}.bin"}
        found.append({**place, "offset": len(body), "sizeInBytes": len(raw), "cardinality": len(set(positions))})
        body += struct.pack(">I", len(raw)) + raw + struct.pack(">I", zlib.crc32(raw))
    (folder / prefix).mkdir(parents=True, exist_ok=True)
    (folder / prefix / f"deletion_vector_{name}.bin").write_bytes(body)
    return found


def checkpoint(table: Path, version: int, actions: Sequence[Row], *, parts: int = 1, sidecars: str = "") -> None:
    """A checkpoint of these actions: in one file, in parts, or of the second kind, with its file actions beside it;
    `sidecars` is the suffix of its main file."""
    log, stem = table / "_delta_log", f"{version:020}.checkpoint"
    if sidecars:
        aside = [one for one in actions if "add" in one or "remove" in one]
        name = f"{uuid.uuid4()}.parquet"
        (log / "_sidecars").mkdir(exist_ok=True)
        _write_actions(log / "_sidecars" / name, aside)
        main = [
            {"checkpointMetadata": {"version": version}},
            *(one for one in actions if one not in aside),
            {"sidecar": {"path": name, "sizeInBytes": 1, "modificationTime": 1}},
        ]
        path = log / f"{stem}.{uuid.uuid4()}.{sidecars}"
        if sidecars == "json":
            path.write_text("\n".join(json.dumps(one) for one in main))
        else:
            _write_actions(path, main)
        return
    for part in range(parts):
        name = f"{stem}.{part + 1:010}.{parts:010}.parquet" if parts > 1 else f"{stem}.parquet"
        _write_actions(log / name, actions[part::parts])


def _write_actions(path: Path, actions: Sequence[Row]) -> None:
    text, number, small = pa.string(), pa.int64(), pa.int32()
    texts, names = pa.map_(text, text), pa.list_(text)
    where = {"storageType": text, "pathOrInlineDv": text, "offset": small}
    vector = pa.struct({**where, "sizeInBytes": small, "cardinality": number})
    of_add = {"path": text, "partitionValues": texts, "size": number, "dataChange": pa.bool_(), "stats": text}
    versions = {"minReaderVersion": small, "minWriterVersion": small}
    of_table = {"id": text, "schemaString": text, "partitionColumns": names, "configuration": texts}
    types = {
        "add": pa.struct({**of_add, "deletionVector": vector}),
        "remove": pa.struct({"path": text, "dataChange": pa.bool_()}),
        "protocol": pa.struct({**versions, "readerFeatures": names, "writerFeatures": names}),
        "metaData": pa.struct(of_table),
        "sidecar": pa.struct({"path": text, "sizeInBytes": number}),
        "checkpointMetadata": pa.struct({"version": number}),
    }

    def as_pairs(one: Any) -> Any:
        maps = ("partitionValues", "configuration")
        return one and {name: list(value.items()) if name in maps else value for name, value in one.items()}

    pq.write_table(
        pa.table({kind: pa.array([as_pairs(one.get(kind)) for one in actions], t) for kind, t in types.items()}), path
    )


class DeltaMaker:
    """A Delta table of id, image, label, and beside it what its live rows are, by version."""

    def __init__(self, table: Path) -> None:
        self.path, self.url = table, str(table)
        self._last = 1000
        self.rows: dict[int, int] = {}
        """Labels by id: the model of what is live. The image is made of both."""
        self.history: dict[int, dict[int, int]] = {}
        """The model at each version that can still be restored."""
        write_deltalake(self.url, _table({}), configuration={"delta.enableDeletionVectors": "true"})
        self._done({})

    @property
    def version(self) -> int:
        return int(DeltaTable(self.url).version())

    def live(self) -> list[Row]:
        return rows_of(self.rows)

    def _done(self, rows: Mapping[int, int]) -> None:
        self.rows = dict(rows)
        self.history[self.version] = dict(rows)

    def fresh(self) -> int:
        """An id that no row had."""
        self._last += 1
        return self._last

    def append(self, rows: Mapping[int, int]) -> None:
        """Rows, by id, that are not there yet."""
        write_deltalake(self.url, _table(rows), mode="append")
        self._done(self.rows | dict(rows))

    def overwrite(self, rows: Mapping[int, int]) -> None:
        write_deltalake(self.url, _table(rows), mode="overwrite")
        self._done(rows)

    def delete(self, ids: Iterable[int]) -> None:
        DeltaTable(self.url).delete(_among(ids))
        self._done({one: label for one, label in self.rows.items() if one not in set(ids)})

    def update(self, ids: Iterable[int], label: int) -> None:
        """Rows with another label, and another image: nothing where there are none."""
        rows = {one: label if one in set(ids) else old for one, old in self.rows.items()}
        self.merge({one: label for one in ids if one in rows})

    def merge(self, rows: Mapping[int, int]) -> None:
        """Rows that replace those of the same id or are new."""
        merger = DeltaTable(self.url).merge(_table(rows), "s.id = t.id", source_alias="s", target_alias="t")
        merger.when_matched_update_all().when_not_matched_insert_all().execute()
        self._done(self.rows | dict(rows))

    def delete_by_vector(self, ids: Iterable[int]) -> None:
        """As Spark does it: files stay, and vectors say which of their rows are dead."""
        state, gone, actions, vectors = read_state(self.url), set(ids), [], []
        for file in state.files:
            held = pq.read_table(file.uri)["id"].to_pylist()
            dead = sorted({*file.deleted.tolist(), *(at for at, one in enumerate(held) if one in gone)})
            if dead != file.deleted.tolist():
                vectors.append((file, len(held), dead))
        log = DeltaLog(self.url)
        known = {one["path"]: one for kind, one in log.actions(self.version, FILE_COLUMNS) if kind == "add"}
        stored = stored_vectors(self.path, [dead for _, _, dead in vectors])
        for (file, held, _), vector in zip(vectors, stored, strict=True):
            name = file.uri.rpartition("/")[2]
            old = {"deletionVector": known[name]["deletionVector"]} if known[name].get("deletionVector") else {}
            actions += [removed(name, **old), added(name, file.size, rows=held, deletionVector=vector)]
            actions[-1]["add"]["modificationTime"] = 1
        commit(self.path, self.version + 1, noted(timestamp=1_800_000_000_000, operation="DELETE"), *actions)
        self._done({one: label for one, label in self.rows.items() if one not in gone})

    def compact(self) -> None:
        DeltaTable(self.url).optimize.compact()
        self._done(self.rows)

    def nothing(self) -> None:
        """A commit that changes no row."""
        DeltaTable(self.url).alter.set_table_properties({"delta.appendOnly": "false"})
        self._done(self.rows)

    def restore(self, version: int) -> None:
        rows = self.history[version]
        if version != self.version:
            DeltaTable(self.url).restore(version)
        self._done(rows)

    def vacuum(self) -> None:
        """Files of earlier versions are gone."""
        DeltaTable(self.url).vacuum(0, dry_run=False, enforce_retention_duration=False)
        self.history.clear()
        self._done(self.rows)

    def checkpoint(self) -> None:
        DeltaTable(self.url).create_checkpoint()

    def expire(self) -> None:
        """The log goes back to the newest version alone."""
        self.checkpoint()
        for file in (self.path / "_delta_log").glob("*[0-9].json"):
            if int(file.stem) < self.version:
                file.unlink()
        self.history = {self.version: dict(self.rows)}


def rows_of(rows: Mapping[int, int]) -> list[Row]:
    """The rows of a model."""
    return [{"id": one, "image": b"%d %d" % (one, label), "label": label} for one, label in sorted(rows.items())]


def _table(rows: Mapping[int, int]) -> pa.Table:
    return pa.Table.from_pylist(rows_of(rows), SCHEMA)


def _among(ids: Iterable[int]) -> str:
    return f"id IN ({', '.join(map(str, ids))})"
