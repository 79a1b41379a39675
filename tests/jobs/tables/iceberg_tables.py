"""Iceberg tables for tests: by pyiceberg, and by hand, after https://iceberg.apache.org/spec/, where only Spark, Flink
or Trino write something: delete files, deletion vectors, compactions (`replace`)."""

from __future__ import annotations

import io
import json
import random
import struct
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.avro.file import AvroOutputFile
from pyiceberg.catalog import MetastoreCatalog, PropertiesUpdateSummary
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError
from pyiceberg.io.fsspec import FsspecFileIO
from pyiceberg.io.pyarrow import schema_to_pyarrow
from pyiceberg.manifest import (
    DATA_FILE_TYPE,
    ManifestContent,
    ManifestFile,
    PartitionFieldSummary,
    data_file_with_partition,
    manifest_entry_schema_with_data_file,
    write_manifest_list,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import new_table_metadata
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.typedef import EMPTY_DICT, Record
from pyroaring import BitMap64

from jobs.tables.state import TableState
from workers.source.table_view import TableView
from workers.storage.filesystems import open_filesystem, read_url

SCHEMA = pa.schema([("id", pa.int64()), ("image", pa.binary()), ("label", pa.int32())])
Row = tuple[int, bytes | None, int | None]


class FolderCatalog(MetastoreCatalog):
    """Catalog whose tables are folders of `warehouse`; which metadata is a table's stands in a file `current`."""

    def _current(self, identifier: Any) -> Path:
        *namespace, name = self.identifier_to_tuple(identifier)
        return Path(self.properties["warehouse"]).joinpath(*namespace, name) / "current"

    def create_table(
        self,
        identifier: Any,
        schema: Any,
        location: str | None = None,
        partition_spec: Any = UNPARTITIONED_PARTITION_SPEC,
        sort_order: Any = UNSORTED_SORT_ORDER,
        properties: Any = EMPTY_DICT,
    ) -> Table:
        current = self._current(identifier)
        location = location or str(current.parent)
        metadata = new_table_metadata(
            self._convert_schema_if_needed(schema), partition_spec, sort_order, location, dict(properties)
        )
        where = f"{location}/metadata/00000-{uuid.uuid4()}.metadata.json"
        self._write_metadata(metadata, self._load_file_io({}, where), where)
        current.parent.mkdir(parents=True, exist_ok=True)
        current.write_text(where)
        return self.load_table(identifier)

    def load_table(self, identifier: Any) -> Table:
        from pyiceberg.serializers import FromInputFile

        current = self._current(identifier)
        if not current.exists():
            raise NoSuchTableError(f"no table {identifier}")
        where = current.read_text()
        files = self._load_file_io({}, where)
        metadata = FromInputFile.table_metadata(files.new_input(where))
        return Table(self.identifier_to_tuple(identifier), metadata, where, files, self)

    def commit_table(self, table: Table, requirements: Any, updates: Any) -> CommitTableResponse:
        now = self.load_table(table.name())
        staged = self._update_and_stage_table(now, table.name(), requirements, updates)
        if staged.metadata != now.metadata:
            if self._current(table.name()).read_text() != now.metadata_location:
                raise CommitFailedException("another commit was first")
            self._write_metadata(staged.metadata, staged.io, staged.metadata_location)
            self._current(table.name()).write_text(staged.metadata_location)
            now = staged
        return CommitTableResponse(metadata=now.metadata, metadata_location=now.metadata_location)

    def load_namespace_properties(self, namespace: Any) -> Any:
        return {}

    def _not_here(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    create_namespace = drop_namespace = drop_table = drop_view = list_namespaces = list_tables = list_views = _not_here
    load_view = register_table = register_view = rename_table = view_exists = create_view = _not_here

    def update_namespace_properties(self, *_: Any, **__: Any) -> PropertiesUpdateSummary:
        raise NotImplementedError


def make_table(folder: Path, schema: pa.Schema = SCHEMA, **how: Any) -> Table:
    """A table at `folder`/shop/products."""
    catalog = FolderCatalog("folder", **{"warehouse": str(folder), "py-io-impl": "pyiceberg.io.fsspec.FsspecFileIO"})
    return catalog.create_table("shop.products", schema, **how)


def _write(path: str, data: bytes) -> None:
    fs, inner = open_filesystem(path)
    fs.makedirs(inner.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(inner, data)


def _size(path: str) -> int:
    fs, inner = open_filesystem(path)
    return int(fs.size(inner))


def hand_file(path: str, rows: int, **more: Any) -> dict[str, Any]:
    """A file for `hand_commit`: fields of `data_file` by the specification's names."""
    size = _size(path)
    known = {"content": 0, "file_path": path, "file_format": "PARQUET", "partition": Record(), "record_count": rows}
    return {**known, "file_size_in_bytes": size, "spec_id": 0, "sequence_number": None, **more}


def hand_commit(
    table: Table,
    added: Sequence[Mapping[str, Any]] = (),
    removed: Sequence[Mapping[str, Any]] = (),
    operation: str = "append",
    change: Callable[[dict[str, Any]], None] = lambda metadata: None,
) -> Table:
    """Commit a snapshot by hand: all that is there stays, and `added`; or, if some are `removed`, only what is `added`.

    `change` may change the metadata further.
    """
    metadata = json.loads(read_url(table.metadata_location))
    change(metadata)
    parent = table.current_snapshot()
    number, sequence = random.getrandbits(62), metadata["last-sequence-number"] + 1
    base, files = f"{metadata['location']}/metadata/{uuid.uuid4()}", FsspecFileIO({})
    manifests = [*parent.manifests(table.io)] if parent and not removed else []
    every = [(1, one) for one in added] + [(2, one) for one in removed]
    for kind, spec in sorted({(one["content"] > 0, one["spec_id"]) for _, one in every}):
        own = [(s, one) for s, one in every if (one["content"] > 0, one["spec_id"]) == (kind, spec)]
        path = f"{base}-m{int(kind)}{spec}.avro"
        _write_manifest(files.new_output(path), table, own, spec, number)
        parts = table.specs()[spec].fields
        manifests.append(
            ManifestFile.from_args(
                manifest_path=path, manifest_length=_size(path), partition_spec_id=spec,
                content=ManifestContent(int(kind)), sequence_number=sequence, min_sequence_number=0,
                added_snapshot_id=number, added_files_count=1, existing_files_count=0, deleted_files_count=1,
                added_rows_count=0, existing_rows_count=0, deleted_rows_count=0,
                partitions=[PartitionFieldSummary(True, False, None, None) for _ in parts], key_metadata=None,
            )
        )  # fmt: skip
    above = parent.snapshot_id if parent else None
    manifest_list = f"{base}-list.avro"
    with write_manifest_list(2, files.new_output(manifest_list), number, above, sequence, "null") as writer:
        writer.add_manifests(manifests)
    ms = max(int(time.time() * 1000), metadata["last-updated-ms"] + 1)
    snapshot = {"snapshot-id": number, "sequence-number": sequence, "timestamp-ms": ms, "manifest-list": manifest_list}
    snapshot |= {"summary": {"operation": operation}, "schema-id": metadata["current-schema-id"]}
    if above:
        snapshot["parent-snapshot-id"] = above
    metadata["metadata-log"] = [
        *metadata.get("metadata-log", []),
        {"timestamp-ms": metadata["last-updated-ms"], "metadata-file": table.metadata_location},
    ]
    log = [*metadata.get("snapshot-log", []), {"timestamp-ms": ms, "snapshot-id": number}]
    metadata |= {"last-sequence-number": sequence, "last-updated-ms": ms, "current-snapshot-id": number}
    metadata |= {"snapshots": [*metadata.get("snapshots", []), snapshot], "snapshot-log": log}
    metadata.setdefault("refs", {})["main"] = {"snapshot-id": number, "type": "branch"}
    return hand_metadata(table, metadata)


def hand_metadata(table: Table, metadata: Mapping[str, Any]) -> Table:
    """Write the next metadata as it is given."""
    version = int(Path(table.metadata_location).name.split("-")[0]) + 1
    where = f"{metadata['location']}/metadata/{version:05d}-{uuid.uuid4()}.metadata.json"
    _write(where, json.dumps(metadata).encode())
    table.catalog._current(table.name()).write_text(where)
    return table.catalog.load_table(table.name())


def _write_manifest(
    output: Any, table: Table, entries: Sequence[tuple[int, Mapping[str, Any]]], spec: int, snapshot: int
) -> None:
    kind = data_file_with_partition(table.specs()[spec].partition_type(table.schema()), 3)
    records = [
        Record(
            status, snapshot, one["sequence_number"], None, Record(*(one.get(f.name) for f in DATA_FILE_TYPE[3].fields))
        )
        for status, one in entries
    ]
    with AvroOutputFile(output, manifest_entry_schema_with_data_file(3, kind), "manifest_entry") as writer:
        writer.write_block(records)


def data_files(table: Table, kinds: Iterable[int] = (0,)) -> list[dict[str, Any]]:
    """What the newest snapshot holds, as `hand_commit` wants it."""
    found, snapshot = [], table.current_snapshot()
    for manifest in snapshot.manifests(table.io) if snapshot else []:
        for entry in manifest.fetch_manifest_entry(table.io):
            one = entry.data_file
            if one.content in kinds:
                found.append(
                    hand_file(
                        one.file_path, one.record_count, content=int(one.content), partition=one.partition,
                        file_format=one.file_format.value, spec_id=manifest.partition_spec_id,
                        sequence_number=entry.sequence_number, equality_ids=one.equality_ids,
                    )
                )  # fmt: skip
    return found


def write_rows(table: Table, rows: pa.Table, name: str = "hand", **more: Any) -> dict[str, Any]:
    """A Parquet file with the numbers of the table's columns that `rows` have."""
    fields = {field.name: field for field in schema_to_pyarrow(table.schema())}
    schema = pa.schema([fields.get(field.name, field) for field in rows.schema])
    path = f"{table.location()}/data/{name}-{uuid.uuid4()}.parquet"
    _write(path, _parquet(rows.cast(schema)))
    return hand_file(path, rows.num_rows, **more)


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out)
    return out.getvalue()


def equality_deletes(table: Table, keys: pa.Table, **more: Any) -> dict[str, Any]:
    numbers = [table.schema().find_field(name).field_id for name in keys.column_names]
    return write_rows(table, keys, "equality", content=2, equality_ids=numbers, **more)


def position_deletes(table: Table, where: Sequence[tuple[str, int]], **more: Any) -> dict[str, Any]:
    schema = pa.schema(
        [
            pa.field("file_path", pa.string(), metadata={"PARQUET:field_id": "2147483546"}),
            pa.field("pos", pa.int64(), metadata={"PARQUET:field_id": "2147483545"}),
        ]
    )
    paths, at = zip(*sorted(where), strict=True)
    path = f"{table.location()}/data/{uuid.uuid4()}-deletes.parquet"
    _write(path, _parquet(pa.table([pa.array(paths), pa.array(at)], schema=schema)))
    return hand_file(path, len(at), content=1, **more)


def deletion_vectors(table: Table, where: Mapping[str, Iterable[int]]) -> list[dict[str, Any]]:
    """All in one Puffin file. Its footer is left out: manifests say where each vector is."""
    path, blobs = f"{table.location()}/data/{uuid.uuid4()}-deletes.puffin", [b"PFA1"]
    found = []
    for of, at in where.items():
        body = b"\xd1\xd3\x39\x64" + BitMap64(at).serialize()
        blob = struct.pack(">I", len(body)) + body + struct.pack(">I", zlib.crc32(body))
        place = {"content_offset": sum(map(len, blobs)), "content_size_in_bytes": len(blob)}
        found.append({"referenced_data_file": of, "record_count": len({*at}), **place})
        blobs.append(blob)
    _write(path, b"".join(blobs))
    return [hand_file(path, 0, content=1, file_format="PUFFIN") | one for one in found]


def live_rows(state: TableState) -> list[dict[str, Any]]:
    """All live rows of a state, by the columns that its schema names."""
    rows: list[dict[str, Any]] = []
    for one in state.files:
        rows_of_file = pq.read_table(io.BytesIO(read_url(one.uri)))
        table = TableView(rows_of_file.schema, state.schema, one.constants).rows(rows_of_file)
        assert one.rows in (None, table.num_rows)
        keep = sorted({*range(table.num_rows)} - {*one.deleted.tolist()})
        rows += table.take(pa.array(keep, pa.int64())).to_pylist()
    return rows


class IcebergMaker:
    """A table with what its live rows are: `rows` by id; and by snapshot in `past`."""

    def __init__(self, folder: Path, **how: Any) -> None:
        self.table = make_table(folder, **how)
        self.url = self.table.location()
        self.rows: dict[int, tuple[bytes | None, int | None]] = {}
        self.past: dict[str, dict[int, tuple[bytes | None, int | None]]] = {}

    @property
    def version(self) -> str:
        now = self.table.current_snapshot()
        return str(now.snapshot_id) if now else "0"

    def _arrow(self, rows: Iterable[Row]) -> pa.Table:
        return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], SCHEMA)

    def _done(self) -> None:
        self.past[self.version] = dict(self.rows)

    def _readable(self) -> None:
        """pyiceberg reads no table with equality deletes: they are compacted away first."""
        if data_files(self.table, (2,)):
            self.compact()

    def append(self, rows: Sequence[Row]) -> None:
        self.table.append(self._arrow(rows))
        self.rows |= {i: (b, n) for i, b, n in rows}
        self._done()

    def delete(self, ids: Sequence[int]) -> None:
        """Copy on write."""
        from pyiceberg.expressions import In

        self._readable()
        self.table.delete(In("id", ids))
        self._dropped(ids)

    def _dropped(self, ids: Iterable[int]) -> None:
        for one in ids:
            self.rows.pop(one, None)
        self._done()

    def update(self, rows: Sequence[Row]) -> None:
        """Delete and append as one commit."""
        from pyiceberg.expressions import In

        self._readable()
        known = [row for row in rows if row[0] in self.rows]
        if known:
            self.table.overwrite(self._arrow(known), In("id", [row[0] for row in known]))
            self.rows |= {i: (b, n) for i, b, n in known}
            self._done()

    def upsert(self, rows: Sequence[Row]) -> None:
        self._readable()
        self.table.upsert(self._arrow(rows), join_cols=["id"])
        self.rows |= {i: (b, n) for i, b, n in rows}
        self._done()

    def overwrite(self, rows: Sequence[Row]) -> None:
        self._readable()
        self.table.overwrite(self._arrow(rows))
        self.rows = {i: (b, n) for i, b, n in rows}
        self._done()

    def flink_upsert(self, rows: Sequence[Row]) -> None:
        """An equality delete and an append in one snapshot, as Flink writes."""
        new = self._arrow(rows)
        keys = equality_deletes(self.table, new.select(["id"]))
        self.table = hand_commit(self.table, [write_rows(self.table, new), keys], operation="overwrite")
        self.rows |= {i: (b, n) for i, b, n in rows}
        self._done()

    def delete_positions(self, ids: Sequence[int]) -> None:
        """Merge on read, as Spark and Trino write: positions in every file that ever held one of the ids."""
        where = []
        for one in data_files(self.table):
            found = pq.read_table(io.BytesIO(read_url(one["file_path"])), columns=["id"])["id"].to_pylist()
            where += [(one["file_path"], at) for at, value in enumerate(found) if value in ids]
        if where:
            deletes = position_deletes(self.table, where)
            self.table = hand_commit(self.table, [deletes], operation="delete")
            self._dropped(ids)

    def compact(self) -> None:
        """All live rows in one new file, without delete files."""
        old = data_files(self.table, (0, 1, 2))
        if old:
            rows = self._arrow((i, b, n) for i, (b, n) in self.rows.items())
            added = [write_rows(self.table, rows, "compacted")] if self.rows else []
            self.table = hand_commit(self.table, added, old, "replace")
            self._done()

    def rollback(self, version: str) -> None:
        self.table.manage_snapshots().rollback_to_snapshot(int(version)).commit()
        self.rows = dict(self.past[version])

    def expire(self) -> None:
        """All snapshots but the newest."""
        old = [s.snapshot_id for s in self.table.snapshots() if str(s.snapshot_id) != self.version]
        self.table.maintenance.expire_snapshots().by_ids(old).commit()
        self.past = {self.version: dict(self.rows)}
