"""An Iceberg table of predictions: files are added where they lie, and each commit is one snapshot.

The edition stands in the summary of the snapshot that brought it, and is looked for along the line of the current one,
so that it goes back with the rows when somebody rolls back. Every commit makes a snapshot, also one that changes no
rows: that main still points where it was read is what a catalog checks. The library's own way to commit is not taken:
it tries again by itself, and deletes manifests when a catalog says that a commit failed, though it may have gone
through.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.errors import NothingThere, SpecError
from jobs.tables.iceberg import CATALOG, IcebergTable, catalog_table, iceberg_errors
from jobs.tables.iceberg_deletes import columns_of
from jobs.tables.iceberg_files import ManifestEntry, StoreFiles
from jobs.tables.target import MODEL, PLAN, Change, Copy, Part, RowFile, TableMoved
from workers.source.source_file import opened
from workers.storage.errors import StoreDenied, StoreError
from workers.storage.lookahead import ahead

EDITION = "stint.edition"
_PARTS = (MODEL.name, PLAN.name)
_PLACES = ("source_uri", "source_version", "row_group", "row")
_KEPT = 100
"""Snapshots: with gc.enabled false nobody else expires them."""
_SETTINGS = {
    "format-version": "2",
    "gc.enabled": "false",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.target-size-bytes": str(128 * 2**10),  # some 20,000 files: merging them takes a second
    "write.metadata.previous-versions-max": str(_KEPT),
}
_OF_A_CATALOG = {"write.metadata.delete-after-commit.enabled": "true"}
_BLOCK = 2000
"""Files in a block of a manifest."""


class IcebergOutput:
    """The table in a folder, or `iceberg://<catalog>/<namespace>.<table>`."""

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        self._files = StoreFiles()
        self._table: Any = None

    def read(self) -> int:
        self._table = self._load()
        if self._table is None:
            return 0
        metadata = self._table.metadata
        name_of = metadata.schema().find_column_name
        parted = [(name_of(one.source_id), str(one.transform)) for one in metadata.spec().fields]
        if metadata.format_version != 2 or parted != [(name, "identity") for name in _PARTS]:
            raise SpecError(
                f"{self._uri} is not of format 2, or not partitioned by the values of {' and '.join(_PARTS)}",
                "name a table that is not there yet: it is made",
            )
        return self._edition(metadata)

    def commit(self, edition: int, schema: pa.Schema, change: Change, copy: Copy) -> None:
        refuse_columns(self._uri, schema)
        with iceberg_errors(self._uri):
            table = self._table or self._made(schema)
        if table is None:
            raise TableMoved(f"{self._uri}: another run has made the table")
        with iceberg_errors(self._uri):
            transaction = table.transaction()
            self._widen(transaction, schema)
            removed, copies, manifests = self._rest(table, change, copy)
            snapshot = transaction.update_snapshot(snapshot_properties={EDITION: str(edition)})
            producer = snapshot.overwrite() if removed else snapshot.merge_append()
            write_in_blocks(producer)
            # pyiceberg's own evaluator keeps what it is looking at in itself, and is asked by several threads at once.
            producer._build_manifest_evaluator = lambda _: lambda one: one.manifest_path in manifests
            for one in removed:
                producer.delete_data_file(_data_file(one.path, one.partition[1], one.rows, one.size, one.partition[0]))
            spec = table.metadata.default_spec_id
            for file in (*change.added, *copies):
                if file.rows:
                    producer.append_data_file(_data_file(file.uri, file.part, file.rows, file.size, spec))
            sequence = table.metadata.next_sequence_number()
            transaction.set_properties({EDITION: f"{edition}@{sequence}"})
            producer.commit()
        self._send(table, transaction, producer.snapshot_id)

    def rows(self) -> Mapping[Part, int]:
        counted = Counter[Part]()
        if self._table is not None:
            with iceberg_errors(self._uri):
                state = IcebergTable(self._uri, self._table.metadata, self._files).state("", None, "", _PARTS)
            for one in state.files:
                model, plan = (one.constants.get(name) for name in _PARTS)
                if isinstance(model, str) and isinstance(plan, int) and (one.rows or 0) > len(one.deleted):
                    counted[Part(model, plan)] += (one.rows or 0) - len(one.deleted)
        return counted

    def _load(self) -> Any:
        """The table as it is now, or None."""
        try:
            with iceberg_errors(self._uri):
                catalog, name = self._catalog()
                return catalog.load_table(name)
        except NothingThere:
            return None

    def _catalog(self) -> tuple[Any, Any]:
        if self._uri.startswith(CATALOG):
            return catalog_table(self._uri)
        from jobs.tables.folder_catalog import TableFolder

        return TableFolder(self._uri), (self._uri,)

    def _made(self, schema: pa.Schema) -> Any:
        """The table, without rows; None where another run has made it."""
        from pyiceberg.exceptions import TableAlreadyExistsError
        from pyiceberg.partitioning import PartitionField, PartitionSpec
        from pyiceberg.schema import assign_fresh_schema_ids
        from pyiceberg.transforms import IdentityTransform

        catalog, name = self._catalog()
        columns = [one.with_nullable(True) for one in (*schema, MODEL, PLAN)]
        iceberg = assign_fresh_schema_ids(catalog._convert_schema_if_needed(pa.schema(columns)))
        spec = PartitionSpec(
            *(
                PartitionField(iceberg.find_field(column).field_id, 1000 + at, IdentityTransform(), column)
                for at, column in enumerate(_PARTS)
            )
        )
        settings = _SETTINGS | (_OF_A_CATALOG if self._uri.startswith(CATALOG) else {})
        try:
            return catalog.create_table(name, iceberg, partition_spec=spec, properties=settings)
        except TableAlreadyExistsError:
            return None

    def _widen(self, transaction: Any, schema: pa.Schema) -> None:
        """Adds columns that the table lacks. Objects have names and no numbers: a name is that of the column to which
        the table's name mapping leads it, whatever that is called by now."""
        metadata = transaction.table_metadata
        mapping = metadata.name_mapping() or metadata.schema().name_mapping
        transaction.set_properties({"schema.name-mapping.default": mapping.model_dump_json()})
        numbers = {name: one.field_id for one in mapping.root for name in one.names}
        present = {one.field_id: one for one in metadata.schema().fields}
        ours = []
        for column in schema:
            there = present.get(numbers.get(column.name))
            ours.append(column.with_nullable(True).with_name(there.name if there else column.name))
            if there and {str(there.field_type), str(column.type).removeprefix("large_")} == {"string", "binary"}:
                raise ValueError(f"column {there.name} is {there.field_type} in the table, here {column.type}")
        with transaction.update_schema() as update:
            update.union_by_name(pa.schema(ours))

    def _rest(
        self, table: Any, change: Change, copy: Copy
    ) -> tuple[list[ManifestEntry], list[RowFile], Container[str]]:
        """Of the parts that go or are trimmed, files to remove, and copies of the rows that stay of these; and paths of
        the manifests that may have files of such parts."""
        parts = {*change.dropped, *change.trimmed}
        if not parts or table.current_snapshot() is None:
            return [], [], ()
        wanted, other = _manifests(table, parts, self._files)
        head, view = table.metadata.current_snapshot_id, IcebergTable(self._uri, table.metadata, self._files)
        data, deletes = view.live(head, other)
        files = {path: one for path, one in data.items() if Part._make(one.partition[1]) in parts}
        trimmed = {path: one for path, one in files.items() if Part._make(one.partition[1]) in change.trimmed}
        dead = view.dead(trimmed, deletes)
        columns = [one for one in view.schema(head) if one.name not in _PARTS]
        if lacking := {*_PLACES} - {one.name for one in columns}:
            raise ValueError(f"the table has no column {', '.join(lacking)} any more: give it back its name")
        plain = pa.schema([(one.name, _plain(one.type)) for one in columns])
        places = [one for one in columns if one.name in _PLACES]

        def left(one: ManifestEntry) -> pa.Table | None:
            """Rows that stay, where not all stay."""
            live = np.ones(one.rows, np.bool_)
            live[dead[one.path][0] if one.path in dead else []] = False
            seen = change.trimmed[Part._make(one.partition[1])]
            with opened(*self._files.place(one.path)) as file:
                there = columns_of(file, one.path, places, {}).filter(pa.array(live))
                stay = seen(there)
                if stay.num_rows == there.num_rows or not stay.num_rows:
                    return None if there.num_rows and stay.num_rows else stay
                return seen(columns_of(file, one.path, columns, {}).filter(pa.array(live)).cast(plain))

        removed, copies = [one for path, one in files.items() if path not in trimmed], []
        for one, rest in zip(trimmed.values(), ahead(left, trimmed.values(), "trim", a_thread=1), strict=True):
            if rest is not None:
                removed.append(one)
                if rest.num_rows:
                    copies.append(copy(Part._make(one.partition[1]), rest))
        return removed, copies, wanted

    def _send(self, table: Any, transaction: Any, snapshot: int) -> None:
        from pyiceberg.table.update import (
            AssertCurrentSchemaId,
            AssertDefaultSpecId,
            AssertTableUUID,
            RemoveSnapshotsUpdate,
        )

        metadata, updates, must_be = (
            table.metadata,
            transaction._updates,
            {type(one): one for one in transaction._requirements},
        )
        for one in (
            AssertTableUUID(uuid=metadata.table_uuid),
            AssertCurrentSchemaId(current_schema_id=metadata.current_schema_id),
            AssertDefaultSpecId(default_spec_id=metadata.default_spec_id),
        ):
            must_be.setdefault(type(one), one)
        named = {ref.snapshot_id for ref in metadata.refs.values()}
        old = sorted(metadata.snapshots, key=lambda one: one.sequence_number)[: -_KEPT + 1]
        if expired := [one.snapshot_id for one in old if one.snapshot_id not in named]:
            updates += (RemoveSnapshotsUpdate(snapshot_ids=expired),)
        try:
            with iceberg_errors(self._uri):
                table.catalog.commit_table(table, tuple(must_be.values()), updates)
        except (SpecError, StoreError, StoreDenied) as error:
            # Whatever the catalog said: what it has now tells.
            now = self._load()
            if now is not None and now.metadata.snapshot_by_id(snapshot) is not None:
                return
            if isinstance(error, StoreError) or now is None or now.metadata_location != table.metadata_location:
                raise TableMoved(f"{self._uri}: {error}") from error
            raise

    def _edition(self, metadata: Any) -> int:
        snapshots = {one.snapshot_id: one for one in metadata.snapshots}
        one = current = metadata.current_snapshot()
        while one is not None:
            if one.summary is not None and EDITION in one.summary.additional_properties:
                return int(one.summary.additional_properties[EDITION])
            first, one = one, snapshots.get(one.parent_snapshot_id)
        if current is None or first.sequence_number == 1:  # the first of the table
            return 0
        edition, _, sequence = metadata.properties.get(EDITION, "0@0").partition("@")
        if int(sequence) > current.sequence_number:
            raise SpecError(
                f"{self._uri} was rolled back to a snapshot whose history has expired: what it holds is not known",
                "roll it forward again, or name a table that is not there yet",
            )
        return int(edition)


def refuse_columns(uri: str, schema: pa.Schema) -> None:
    """Raises SpecError for a column that an Iceberg table cannot have, or that not every engine would read right."""
    from pyiceberg.catalog import Catalog
    from pyiceberg.io.pyarrow import UnsupportedPyArrowTypeException

    misread = (pa.types.is_uint32, pa.types.is_uint64, pa.types.is_float16, pa.types.is_dictionary)
    for column in schema:
        try:
            if column.name in _PARTS:
                raise ValueError("it has one of this name itself")
            if any(is_it(kind) for kind in _innermost(column.type) for is_it in misread):
                raise ValueError("Iceberg has no such type")
            Catalog._convert_schema_if_needed(pa.schema([column]))
        except (ValueError, TypeError, UnsupportedPyArrowTypeException) as error:
            raise SpecError(
                f"{uri}: an Iceberg table cannot have the column {column.name} ({column.type}): {error}",
                "leave it out of input.keys, or cast it in the input",
            ) from error


def _innermost(kind: pa.DataType) -> list[pa.DataType]:
    inner = [kind.field(at).type for at in range(kind.num_fields)]
    return [one for some in map(_innermost, inner) for one in some] if inner else [kind]


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without numbers of columns in it: objects have none, and half of them would be worse."""
    if pa.types.is_struct(kind):
        return pa.struct([(one.name, _plain(one.type)) for one in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    return pa.list_(_plain(kind.value_type)) if pa.types.is_list(kind) else kind


def _manifests(table: Any, parts: Iterable[Part], files: StoreFiles) -> tuple[set[str], set[str]]:
    """Paths of manifests of data: which may have files of these parts, and which have none."""
    from pyiceberg.expressions import In
    from pyiceberg.expressions.visitors import manifest_evaluator
    from pyiceberg.manifest import ManifestContent

    metadata, found = table.metadata, (set[str](), set[str]())
    wanted = In(metadata.spec().fields[1].name, {part.plan for part in parts})
    may_have = manifest_evaluator(metadata.spec(), metadata.schema(), wanted)
    for one in table.current_snapshot().manifests(files):
        if one.content == ManifestContent.DATA:
            live = one.has_added_files() or one.has_existing_files()
            if live and one.partition_spec_id != metadata.default_spec_id:
                raise ValueError(f"{one.manifest_path} is of another partitioning: rewrite the table's data files")
            found[0 if live and may_have(one) else 1].add(one.manifest_path)
    return found


def _data_file(path: str, parted: Iterable[object], rows: int, size: int, spec: int) -> Any:
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
    from pyiceberg.typedef import Record

    made = DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(*parted),
        record_count=rows,
        file_size_in_bytes=size,
    )
    made.spec_id = spec
    return made


def write_in_blocks(producer: Any) -> None:
    """Let a snapshot's manifests have many files in a block: pyiceberg makes one of each, which takes 25 times the
    bytes, and 3 times as long to read."""
    new_manifest_writer = producer.new_manifest_writer

    def manifest_writer(spec: Any) -> Any:
        manifest = new_manifest_writer(spec)
        new_writer = manifest.new_writer

        def writer() -> Any:
            avro, entries = new_writer(), list[Any]()
            put, end = avro.write_block, avro.__exit__

            def finish(*error: Any) -> None:
                for at in range(0, len(entries), _BLOCK):
                    put(entries[at : at + _BLOCK])
                end(*error)

            avro.write_block, avro.__exit__ = entries.extend, finish
            return avro

        manifest.new_writer = writer
        return manifest

    producer.new_manifest_writer = manifest_writer
