"""A catalog of one Iceberg table that has no other: its folder, as Hadoop's tables are.

The table is `metadata/v<N>.metadata.json` with the highest N, and a commit creates the next one if it is absent. No
version is ever deleted, so that a writer who slept cannot create one that others have long gone past. The number in
`version-hint.text` is for readers of other libraries; it may lag until somebody writes again.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

from pyiceberg.catalog.noop import NoopCatalog
from pyiceberg.exceptions import CommitFailedException, NoSuchTableError, TableAlreadyExistsError
from pyiceberg.table import CommitTableResponse, Table
from pyiceberg.table.metadata import TableMetadata, TableMetadataUtil, new_table_metadata
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.table.update import update_table_metadata

from jobs.errors import SpecError
from jobs.tables.iceberg import CATALOG, METADATA_NAME
from jobs.tables.iceberg_files import StoreFiles
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.store import open_store

_HINT = "metadata/version-hint.text"
_OURS = re.compile(r"v(\d+)\.metadata\.json")


def _key(version: int) -> str:
    return f"metadata/v{version}.metadata.json"


class TableFolder(NoopCatalog):  # type: ignore[misc]
    """The catalog. Raises SpecError, StoreError, StoreDenied, and what pyiceberg's own do."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._store, self._files = open_store(url), StoreFiles()

    def load_table(self, identifier: Any) -> Table:
        names = (one.key.rpartition("/")[2] for one in self._store.list("metadata"))
        found = {one[0]: _OURS.fullmatch(one[0]) for one in map(METADATA_NAME.fullmatch, names) if one}
        if other := next((name for name, ours in found.items() if not ours), None):
            raise SpecError(
                f"{self._store.url}: metadata/{other} is there, which a catalog or a compressing writer made",
                f"write {CATALOG}<catalog>/<namespace>.<table>, or name another folder",
            )
        if not (version := max((int(ours[1]) for ours in found.values() if ours), default=0)):
            raise NoSuchTableError(self._store.url)
        with suppress(NotFound, StoreError, StoreDenied):
            if self._store.get(_HINT) != b"%d" % version:  # whoever made this version died before it could tell
                self._tell(version)
        metadata = TableMetadataUtil.parse_raw(self._store.get(_key(version)).decode())
        return self._table(identifier, version, metadata)

    def create_table(self, identifier: Any, schema: Any, *, partition_spec: Any, properties: Any) -> Table:
        metadata = new_table_metadata(schema, partition_spec, UNSORTED_SORT_ORDER, self._store.url, properties)
        if not self._create(1, metadata):
            raise TableAlreadyExistsError(self._store.url)
        return self._table(identifier, 1, metadata)

    def commit_table(self, table: Table, requirements: Any, updates: Any) -> CommitTableResponse:
        base = self.load_table(table.name())
        for one in requirements:
            one.validate(base.metadata)
        metadata = update_table_metadata(base.metadata, updates, metadata_location=base.metadata_location)
        version = 1 + int(_OURS.findall(base.metadata_location)[0])
        if not self._create(version, metadata):
            raise CommitFailedException(f"{self._store.url}: another writer was first with version {version}")
        return CommitTableResponse(metadata=metadata, metadata_location=f"{self._store.url}/{_key(version)}")

    def supports_server_side_planning(self) -> bool:
        return False

    def _table(self, identifier: Any, version: int, metadata: TableMetadata) -> Table:
        return Table(identifier, metadata, f"{self._store.url}/{_key(version)}", self._files, self)

    def _create(self, version: int, metadata: TableMetadata) -> bool:
        created = self._store.create(_key(version), metadata.model_dump_json(exclude_none=True).encode())
        if created:
            self._tell(version)
        return created

    def _tell(self, version: int) -> None:
        with suppress(StoreError, StoreDenied):
            self._files.write(f"{self._store.url}/{_HINT}", b"%d" % version)
