"""The output as a Lance table. Lance takes no Parquet in: the rows are copied into fragments of its own.

None of its operations knows a key, and of most of them two at once both go through. One is strict: a `Merge` names all
fragments of the table and its whole schema, so it is refused where any row, column or schema metadata has changed
since. So each edition is one `Merge`, with its number in the schema's metadata.
"""

from __future__ import annotations

import json
import re
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import SpecError
from jobs.tables.lance import deleted_rows
from jobs.tables.target import MODEL, PLAN, Change, Copy, Portion, RowFile, Seen, TableMoved
from workers.output import SOURCE_FIELDS, cast_key
from workers.source.lance_rows import lance_dataset
from workers.source.source_file import InputUnreadable, open_parquet
from workers.storage.access import object_store_url, storage_options
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import full_url, is_local, open_filesystem, read_url
from workers.storage.lookahead import ahead

EDITION = "stint.edition"
HELD_BYTES = 64 * 2**20
"""Of objects that are fetched and not written yet."""
BATCH_ROWS = 1024
LOOKS = 20
"""While others change the table between our last look and the commit."""
_DENIED = re.compile(r"lacked (the necessary privileges|valid authentication)|Permission denied")
"""What `object_store` says of a refusal; Lance has no type for it."""


class LanceOutput:
    """A Lance table, as `OutputTable`."""

    def __init__(self, uri: str) -> None:
        self._url = full_url(*open_filesystem(uri.rstrip("/")))
        self._table: Any = None
        self._at = 0, 0
        """Edition and version, as last read."""

    def read(self) -> int:
        if not is_local(self._url) and {*self._url} & {*"#?%"}:
            why = f"output.table.uri: Lance takes #, ? and % in {self._url} for parts of a URL"
            raise SpecError(why, "name a place without them")
        try:
            self._table = lance_dataset(self._url)
        except ImportError as error:
            raise SpecError("output.table: lance needs Lance's library", "pip install 'stint[lance]'") from error
        except InputUnreadable as error:
            raise SpecError(f"output.table.uri: {error}", "a newer pylance may open it, or name another") from error
        except NotFound:
            self._table = None
        found = None if self._table is None else self._table.schema.metadata  # an empty table is false
        number = (found or {}).get(EDITION.encode())
        self._at = int(number or 0), 0 if self._table is None else self._table.version
        if number is None and self.rows():
            why = f"{self._url} has rows of plans, but lost the number that says which (schema metadata {EDITION})"
            raise SpecError(f"output.table.uri: {why}", "restore a version that has it, or name another place")
        return self._at[0]

    def rows(self) -> Mapping[Portion, int]:
        counts: Counter[Portion] = Counter()
        if self._table is not None and {MODEL.name, PLAN.name} <= {*self._table.schema.names}:
            scan = self._table.scanner([MODEL.name, PLAN.name], filter=f"{PLAN.name} IS NOT NULL")
            with self._telling():
                for part, rows in _by_part(scan.to_batches()):
                    counts[part] += len(rows)
        return counts

    def commit(self, edition: int, schema: pa.Schema, change: Change, copy: Copy) -> None:  # noqa: ARG002
        from lance import LanceDataset, LanceOperation
        from lance.commit import CommitConflictError

        with self._telling(held := self._at[0]):
            self._make_columns(schema, held)
            make, (_, *columns) = self._table.lance_schema.__reduce__()
            added = self._written([*schema.names, MODEL.name, PLAN.name], change)
            for _ in range(LOOKS):
                self._look_again(held)
                _, (metadata, *fields) = self._table.lance_schema.__reduce__()
                if fields != columns:  # their numbers, by which fragments name them, are others
                    break
                # Of its own parts: a schema made of Arrow's would have columns of other numbers.
                numbered = make(json.dumps(json.loads(metadata) | {EDITION: [*str(edition).encode()]}), *fields)
                merge = LanceOperation.Merge([*self._kept(change), *added], numbered, preserves_nullability=True)
                # Lance compares with the versions since, but not with those that somebody has cleaned up.
                if self._table.latest_version == self._table.version:
                    with suppress(CommitConflictError):
                        LanceDataset.commit(self._table, merge, self._table.version)
                        return
            raise TableMoved(f"{self._url} is changed by others all the time")

    @contextmanager
    def _telling(self, held: int | None = None) -> Iterator[None]:
        """Sorts what Lance raises, which has few types."""
        from lance.commit import CommitConflictError

        try:
            yield
        except (OSError, ValueError) as error:
            before = held, self._at[1]
            if held is not None and (isinstance(error, CommitConflictError) or (self.read(), self._at[1]) != before):
                raise TableMoved(f"{self._url}: {error}") from error
            raise (StoreDenied if _DENIED.search(str(error)) else StoreError)(f"{self._url}: {error}") from error

    def _look_again(self, held: int) -> None:
        if self.read() != held:
            raise TableMoved(f"{self._url} holds edition {self._at[0]} in place of {held}")

    def _make_columns(self, schema: pa.Schema, held: int) -> None:
        """Make the table, without rows, and columns that it lacks, with nulls."""
        from lance import LanceDataset, LanceOperation, write_dataset
        from lance.schema import LanceSchema

        wanted = {field.name: field.remove_metadata().with_nullable(True) for field in (*schema, MODEL, PLAN)}
        for field in wanted.values():
            try:
                write_dataset(pa.schema([field]).empty_table(), "memory://column")
            except (OSError, ValueError) as error:
                why = f"output.table: Lance has no column {field.name!r} of type {field.type}: {error}"
                raise SpecError(why, "leave it out of input.keys, or give it another name or type there") from error
        if self._table is None:
            # With neither a version nor tries it makes a table or fails; `write_dataset` may overwrite one.
            make = LanceOperation.Overwrite(LanceSchema.from_pyarrow(pa.schema(wanted.values(), {EDITION: "0"})), [])
            options = {"storage_options": storage_options(self._url), "enable_stable_row_ids": True}
            LanceDataset.commit(object_store_url(self._url), make, read_version=0, max_retries=0, **options)
            self._look_again(held)
        for one in (there := self._table.schema):
            if not (_widens(wanted[one.name].type, one.type) if one.name in wanted else one.nullable):
                why = f"output.table: {self._url} has {one.name}: {one.type}, which predictions do not fill"
                raise SpecError(why, "name another output.table.uri")
        if new := [field for field in wanted.values() if field.name not in there.names]:
            self._table.add_columns(pa.schema(new))
            self._look_again(held)

    def _written(self, columns: list[str], change: Change) -> list[Any]:
        """Fragments of the rows that are added, which are no part of the table yet."""
        from lance.fragment import write_fragments

        failed: list[Exception] = []
        schema = pa.schema([self._table.schema.field(name) for name in columns])
        at_once = max(1, min(16, HELD_BYTES // max([1, *(file.size for file in change.added)])))

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                objects = ahead(_opened, change.added, "table", at_once, a_thread=1)
                for file, opened in zip(change.added, objects, strict=True):
                    yield from _batches(file, opened, schema, change.trimmed.get(file.part))
            except Exception as error:  # of which Lance would keep the text alone
                failed.append(error)
                raise

        try:
            return list(write_fragments(pa.RecordBatchReader.from_batches(schema, batches()), self._table))
        except OSError as error:
            raise (failed or [error])[0] from error

    def _kept(self, change: Change) -> list[Any]:
        """The table's fragments, without rows that go."""
        from lance.bitmap import Bitmap

        dead = defaultdict[int, Any](Bitmap)
        plans = str([plan for _, plan in (*change.dropped, *change.trimmed)])[1:-1]
        columns = [MODEL.name, PLAN.name, *(field.name for field in SOURCE_FIELDS if change.trimmed)]
        which = f"{PLAN.name} IN ({plans})" if plans else "false"
        for part, rows in _by_part(self._table.scanner(columns, which, with_row_address=True).to_batches()):
            seen = change.trimmed[part](rows) if part in change.trimmed else rows
            seen = seen.slice(0, 0) if part in change.dropped else seen
            addresses = np.setdiff1d(rows["_rowaddr"], seen["_rowaddr"])
            for one in np.unique(addresses >> 32).tolist():
                dead[one].update((addresses[addresses >> 32 == one] - (one << 32)).tolist())
        fragments = [one.metadata for one in self._table.get_fragments()]
        touched = [one for one in fragments if one.id in dead]
        earlier = deleted_rows(self._table, [one for one in touched if one.num_deletions])
        for number, positions in earlier.items():
            dead[number].update(positions.tolist())
        left = ahead(lambda one: self._without(one, dead[one.id]), touched, "deletions")
        changed = {one.id: one for one in left}
        return [changed.get(one.id, one) for one in fragments]

    def _without(self, fragment: Any, dead: Any) -> Any:
        """A fragment with these rows deleted, and no others."""
        from lance.fragment import DeletionFile

        file = DeletionFile(self._table.version, secrets.randbits(63), "bitmap", len(dead), None)
        with NamedTemporaryFile() as bitmap:  # put where Lance, which reads a URL in its own way, will look for it
            bitmap.write(dead.__reduce__()[1][0])
            bitmap.flush()
            self._table.new_file_session().upload_file(bitmap.name, file.path(fragment.id))
        return replace(fragment, deletion_file=file)


def _widens(kind: pa.DataType, into: pa.DataType) -> bool:
    """Whether a column takes values of this type as they are."""
    both = [pa.schema([pa.field("", one)]) for one in (kind, into)]
    try:
        return kind == into or bool(pa.unify_schemas(both, promote_options="permissive").field(0).type == into)
    except pa.ArrowException:
        return False


def _opened(file: RowFile) -> pq.ParquetFile:
    try:
        opened = open_parquet(pa.BufferReader(read_url(file.uri)))
    except (NotFound, pa.ArrowException) as error:
        raise StoreError(f"{file.uri} is gone or damaged, although its plan is done: {error}") from error
    if opened.metadata.num_rows != file.rows:
        raise StoreError(f"{file.uri} has {opened.metadata.num_rows} rows in place of {file.rows}")
    return opened


def _batches(file: RowFile, opened: pq.ParquetFile, schema: pa.Schema, seen: Seen | None) -> Iterator[pa.RecordBatch]:
    for batch in opened.iter_batches(BATCH_ROWS):
        rows = pa.Table.from_batches([batch])
        for field, value in ((MODEL, file.part.model), (PLAN, file.part.plan)):
            rows = rows.append_column(field, pa.repeat(pa.scalar(value, field.type), len(rows)))
        rows = seen(rows) if seen else rows
        yield from pa.table([cast_key(rows[field.name], field.type) for field in schema], schema).to_batches()


def _by_part(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Portion, pa.Table]]:
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        for one in rows.group_by([MODEL.name, PLAN.name]).aggregate([]).to_pylist():
            part = Portion(one[MODEL.name], one[PLAN.name])
            yield part, rows.filter((pc.field(MODEL.name) == part.model) & (pc.field(PLAN.name) == part.plan))
