"""An Iceberg table of predictions: files are added where they lie, and each commit is one snapshot.

The edition stands in the summary of the snapshot that brought it, and is looked for along the line of the current one,
so that it goes back with the rows when somebody rolls back. Every commit makes a snapshot, also one that changes no
rows: that the branch still ends where it was read is what a catalog checks. pyiceberg stages what is committed; its own
way to commit is not taken: it tries again by itself, and deletes manifests when a catalog says that a commit failed,
though it may have gone through.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Container, Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.errors import SpecError
from jobs.tables.iceberg import CATALOG, IcebergTable, catalog_table, iceberg_errors
from jobs.tables.iceberg_deletes import table_columns
from jobs.tables.iceberg_files import ManifestEntry, StoreFiles
from jobs.tables.target import MODEL, PLAN, Change, Copy, Portion, RowFile, TableMoved
from workers.source.source_file import opened
from workers.storage.errors import StoreDenied, StoreError
from workers.storage.lookahead import ahead

_EDITION = "stint.edition"
_PARTS = (MODEL.name, PLAN.name)
_PLACES = ("source_uri", "source_version", "row_group", "row")
_KEPT = 100
"""Snapshots: where gc.enabled is false, nobody else expires them."""
_SETTINGS = {
    "format-version": "2",
    "gc.enabled": "false",
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.target-size-bytes": str(128 * 2**10),  # some 20,000 files, which takes a second to merge
    "write.metadata.previous-versions-max": str(_KEPT),
}
_OF_A_CATALOG = {"write.metadata.delete-after-commit.enabled": "true"}
_MISREAD = re.compile(r"\b(?:uint32|uint64|halffloat|dictionary)\b")
"""Types that pyiceberg takes, though the files are not read, or read as other values, by it or another engine."""


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
        name = metadata.schema().find_column_name
        parted = [(name(one.source_id), str(one.transform)) for one in metadata.spec().fields]
        if metadata.format_version != 2 or parted != [(column, "identity") for column in _PARTS]:
            raise SpecError(
                f"{self._uri} is not of format 2, or not partitioned by {' and '.join(_PARTS)}",
                "name a table that is not there yet: it is made",
            )
        return self._edition(metadata)

    def commit(self, edition: int, schema: pa.Schema, change: Change, copy: Copy) -> None:
        with iceberg_errors(self._uri):
            from jobs.tables.iceberg_snapshot import FilesSnapshot

            _refuse(self._uri, schema)
            if (table := self._table or self._new_table(schema)) is not None:
                transaction = table.transaction()
                self._widen(transaction, schema)
        if table is None:
            raise TableMoved(f"{self._uri}: another run has made the table")
        removed, copies, manifests = self._rest(table, change, copy)
        with iceberg_errors(self._uri):
            snapshot = FilesSnapshot(table, transaction, {_EDITION: str(edition)}, manifests if removed else ())
            for one in removed:
                snapshot.delete_data_file(snapshot.file(one.path, one.partition[1], one.rows, one.size))
            for file in (*change.added, *copies):
                if file.rows:
                    snapshot.append_data_file(snapshot.file(file.uri, file.part, file.rows, file.size))
            transaction.set_properties({_EDITION: f"{edition}@{table.metadata.next_sequence_number()}"})
            snapshot.commit()
        self._send(table, transaction, snapshot.snapshot_id)

    def rows(self) -> Mapping[Portion, int]:
        counted = Counter[Portion]()
        if self._table is None or (snapshot := self._table.current_snapshot()) is None:
            return counted
        with iceberg_errors(self._uri):
            metadata = self._table.metadata
            view, spec = IcebergTable(self._uri, metadata, self._files), metadata.default_spec_id
            of_one_part = _of_one_part(snapshot.manifests(self._files), spec)
            data, deletes = view.live(snapshot.snapshot_id, of_one_part)
            dead = view.dead(data, deletes)
        for part, rows in of_one_part.values():
            counted[part] += rows
        for path, one in data.items():
            if one.partition[0] == spec:
                counted[Portion._make(one.partition[1])] += one.rows - len(dead[path][0] if path in dead else ())
        return +counted

    def _load(self) -> Any:
        """The table as it is now, or None."""
        with iceberg_errors(self._uri):
            from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

            catalog, name = self._catalog()
            try:
                return catalog.load_table(name)
            except (NoSuchTableError, NoSuchNamespaceError):
                return None

    def _catalog(self) -> tuple[Any, Any]:
        if self._uri.startswith(CATALOG):
            return catalog_table(self._uri)
        from jobs.tables.folder_catalog import TableFolder

        return TableFolder(self._uri), (self._uri,)

    def _new_table(self, schema: pa.Schema) -> Any:
        """The table, without rows; None where another run has made it."""
        from pyiceberg.exceptions import TableAlreadyExistsError
        from pyiceberg.partitioning import PartitionField, PartitionSpec
        from pyiceberg.schema import assign_fresh_schema_ids
        from pyiceberg.transforms import IdentityTransform

        catalog, name = self._catalog()
        columns = pa.schema([one.with_nullable(True) for one in (*schema, MODEL, PLAN)])
        numbered = assign_fresh_schema_ids(catalog._convert_schema_if_needed(columns))
        numbers = [(numbered.find_field(column).field_id, 1000 + at, column) for at, column in enumerate(_PARTS)]
        spec = PartitionSpec(*(PartitionField(of, number, IdentityTransform(), one) for of, number, one in numbers))
        settings = _SETTINGS | (_OF_A_CATALOG if self._uri.startswith(CATALOG) else {})
        try:
            return catalog.create_table(name, numbered, partition_spec=spec, properties=settings)
        except TableAlreadyExistsError:
            return None

    def _widen(self, transaction: Any, schema: pa.Schema) -> None:
        """Adds columns that the table lacks. Objects have names and no numbers: a name is that of the column to which
        the table's name mapping leads it, whatever that is called by now."""
        from pyiceberg.exceptions import ResolveError, ValidationError

        metadata = transaction.table_metadata
        mapping = metadata.name_mapping() or metadata.schema().name_mapping
        transaction.set_properties({"schema.name-mapping.default": mapping.model_dump_json()})
        numbers = {name: one.field_id for one in mapping.root for name in one.names}
        present = {one.field_id: one for one in metadata.schema().fields}
        ours = []
        try:
            for column in schema:
                there = present.get(numbers.get(column.name))
                ours.append(column.with_nullable(True).with_name(there.name if there else column.name))
                if there and {str(there.field_type), str(column.type).removeprefix("large_")} == {"string", "binary"}:
                    raise ValueError(f"column {there.name} is {there.field_type} in the table, here {column.type}")
            with transaction.update_schema() as update:
                update.union_by_name(pa.schema(ours))
        except (ValidationError, ResolveError, ValueError, TypeError) as error:
            raise SpecError(f"{self._uri}: these rows do not fit: {error}", "name another output.table.uri") from error

    def _rest(
        self, table: Any, change: Change, copy: Copy
    ) -> tuple[Collection[ManifestEntry], list[RowFile], Container[str]]:
        """Files to remove of the parts that go or are trimmed, copies of the rows that stay of these, and paths of the
        manifests that may have files of such parts."""
        dropped = {*change.dropped}
        plans = {part.plan for part in (*dropped, *change.trimmed)}
        if not plans or table.current_snapshot() is None:
            return [], [], ()
        head, view = table.metadata.current_snapshot_id, IcebergTable(self._uri, table.metadata, self._files)
        with iceberg_errors(self._uri):
            manifests, other = _manifests(table, plans, self._files)
            data, deletes = view.live(head, other)
            trimmed = {path: one for path, one in data.items() if one.partition[1] in change.trimmed}
            dead = view.dead(trimmed, deletes if trimmed else ())
        removed, copies = [one for one in data.values() if one.partition[1] in dropped], []
        if not trimmed:
            return removed, [], manifests
        columns = [one for one in view.schema(head) if one.name not in _PARTS]
        places = [one for one in columns if one.name in _PLACES]
        if len(places) < len(_PLACES):
            raise SpecError(f"{self._uri} lacks one of {', '.join(_PLACES)}", "give the column back its name")
        plain = pa.schema([(one.name, _plain(one.type)) for one in columns])

        def left(one: ManifestEntry) -> pa.Table | None:
            """Rows that stay, where not all stay."""
            live, seen = np.ones(one.rows, np.bool_), change.trimmed[Portion._make(one.partition[1])]
            live[dead[one.path][0] if one.path in dead else []] = False
            with iceberg_errors(self._uri), opened(*self._files.place(one.path)) as file:
                there = table_columns(file, one.path, places, {}).filter(pa.array(live))
                if there.num_rows and seen(there).num_rows == there.num_rows:
                    return None
                if not there.num_rows or not seen(there).num_rows:
                    return there.slice(0, 0)
                return seen(table_columns(file, one.path, columns, {}).filter(pa.array(live)).cast(plain))

        for one, rest in zip(trimmed.values(), ahead(left, trimmed.values(), "trim", a_thread=1), strict=True):
            if rest is not None:
                removed.append(one)
                copies += [copy(Portion._make(one.partition[1]), rest)] if rest.num_rows else []
        return removed, copies, manifests

    def _send(self, table: Any, transaction: Any, snapshot: int) -> None:
        from pyiceberg.table import update

        metadata, updates = table.metadata, transaction._updates
        must_be = (
            *transaction._requirements,
            update.AssertTableUUID(uuid=metadata.table_uuid),
            update.AssertCurrentSchemaId(current_schema_id=metadata.current_schema_id),
            update.AssertDefaultSpecId(default_spec_id=metadata.default_spec_id),
        )
        named = {ref.snapshot_id for ref in metadata.refs.values()}
        old = sorted(metadata.snapshots, key=lambda one: one.sequence_number)[: -_KEPT + 1]
        if expired := [one.snapshot_id for one in old if one.snapshot_id not in named]:
            updates += (update.RemoveSnapshotsUpdate(snapshot_ids=expired),)
        try:
            with iceberg_errors(self._uri):
                table.catalog.commit_table(table, must_be, updates)
        except (SpecError, StoreError, StoreDenied) as error:  # whatever was said, what is there now tells
            now = self._load()
            if now is not None and now.metadata.snapshot_by_id(snapshot) is not None:
                return
            if isinstance(error, StoreError) or now is None or now.metadata_location != table.metadata_location:
                raise TableMoved(str(error)) from error
            raise

    def _edition(self, metadata: Any) -> int:
        snapshots = {one.snapshot_id: one for one in metadata.snapshots}
        current = last = metadata.current_snapshot()
        while last is not None:
            said = {} if last.summary is None else last.summary.additional_properties
            if _EDITION in said or last.sequence_number == 1:  # the first of the table
                return int(said.get(_EDITION, 0))
            last = snapshots.get(last.parent_snapshot_id)
        edition, _, sequence = metadata.properties.get(_EDITION, "0@0").partition("@")
        if current is not None and int(sequence) > current.sequence_number:
            raise SpecError(
                f"{self._uri} was rolled back to a snapshot whose history has expired: what it holds is not known",
                "roll it forward again, or name a table that is not there yet",
            )
        return int(edition) if current is not None else 0


def _refuse(uri: str, schema: pa.Schema) -> None:
    """Raises SpecError for a column that an Iceberg table cannot have."""
    from pyiceberg.catalog import Catalog
    from pyiceberg.io.pyarrow import UnsupportedPyArrowTypeException

    for column in schema:
        try:
            if column.name in _PARTS or _MISREAD.search(str(column.type)):
                raise ValueError("the table has this column itself" if column.name in _PARTS else "no such type")
            Catalog._convert_schema_if_needed(pa.schema([column]))
        except (ValueError, TypeError, UnsupportedPyArrowTypeException) as error:
            raise SpecError(
                f"{uri}: an Iceberg table cannot have the column {column.name} ({column.type}): {error}",
                "leave it out of input.keys, or cast it in the input",
            ) from error


def _plain(kind: pa.DataType) -> pa.DataType:
    """A type without numbers of columns inside: objects have none, and files with some are read by these alone."""
    if pa.types.is_struct(kind):
        return pa.struct([(one.name, _plain(one.type)) for one in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    return pa.list_(_plain(kind.value_type)) if pa.types.is_list(kind) else kind


def _of_one_part(manifests: Iterable[Any], spec: int) -> dict[str, tuple[Portion, int]]:
    """Rows of manifests all whose files are of one part, by path; of none where there are deletes: a year of nights has
    millions of files, and the list of manifests says as much."""
    found = {}
    for one in manifests:
        if one.content != 0:
            return {}
        alike = [field for field in one.partitions or () if field.lower_bound == field.upper_bound]
        if one.partition_spec_id == spec and len(alike) == len(_PARTS) and not any(f.contains_null for f in alike):
            model, plan = (field.lower_bound for field in alike)
            part = Portion(model.decode(), int.from_bytes(plan, "little", signed=True))
            found[one.manifest_path] = part, one.added_rows_count + one.existing_rows_count
    return found


def _manifests(table: Any, plans: Iterable[int], files: StoreFiles) -> tuple[set[str], set[str]]:
    """Paths of manifests of data: which may have files of these plans, and which have none."""
    from pyiceberg.expressions import In
    from pyiceberg.expressions.visitors import manifest_evaluator
    from pyiceberg.manifest import ManifestContent

    metadata, found = table.metadata, (set[str](), set[str]())
    wanted = In(metadata.spec().fields[1].name, plans)
    may_have = manifest_evaluator(metadata.spec(), metadata.schema(), wanted)
    for one in table.current_snapshot().manifests(files):
        if one.content == ManifestContent.DATA:
            live = one.has_added_files() or one.has_existing_files()
            if live and one.partition_spec_id != metadata.default_spec_id:
                raise ValueError(f"{one.manifest_path} is of another partitioning: rewrite the table's data files")
            found[0 if live and may_have(one) else 1].add(one.manifest_path)
    return found
