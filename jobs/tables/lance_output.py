"""The output as a Lance table. Lance takes no Parquet in: the rows are copied into fragments of its own.

None of its operations knows a key, and of most of them two at once both go through. One is strict: a `Merge` names all
fragments of the table and its whole schema, so it is refused where any row, fragment, column or schema metadata has
changed since. So each edition is one `Merge`, with its number in the schema's metadata.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import SpecError
from jobs.tables.lance import deleted_rows
from jobs.tables.target import MODEL, PLAN, Change, Copy, Part, RowFile, TableMoved
from workers.output import cast_key
from workers.source.lance_rows import lance_dataset
from workers.source.source_file import InputUnreadable
from workers.storage.access import object_store_url, storage_options
from workers.storage.errors import NotFound, StoreError
from workers.storage.filesystems import full_url, open_filesystem, read_url
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

EDITION = "stint.edition"
PLACE = ("source_uri", "source_version", "row_group", "row")
HELD_BYTES = 64 * 2**20
"""Of objects that are fetched and not written yet."""
BATCH_ROWS = 1024
TRIES = 20
"""Where others change the table between our last look and the commit."""
_OFFSET = 2**32 - 1
"""The part of a row's address that is its number in the fragment."""


class LanceOutput:
    """A Lance table, as `OutputTable`."""

    def __init__(self, uri: str) -> None:
        self._fs, self._path = open_filesystem(uri.rstrip("/"))
        self._url = full_url(self._fs, self._path)
        self._table: Any = None
        self._held = 0

    def read(self) -> int:
        try:
            self._table = lance_dataset(self._url)
            self._held = self._edition()
        except ImportError as error:
            raise SpecError("output.table: lance needs Lance's library", "pip install 'stint[lance]'") from error
        except NotFound:
            self._table, self._held = None, 0
        except InputUnreadable as error:
            raise SpecError(f"output.table.uri: {error}", "a newer pylance may open it, or name another") from error
        except (OSError, ValueError) as error:
            raise StoreError(f"{self._url}: {error}") from error
        return self._held

    def _edition(self) -> int:
        if (number := (self._table.schema.metadata or {}).get(EDITION.encode())) is not None:
            return int(number)
        if {MODEL.name, PLAN.name} <= {*self._table.schema.names} and self._table.count_rows("plan IS NOT NULL"):
            why = f"{self._url} has rows of plans, but has lost the number that says which (schema metadata {EDITION})"
            raise SpecError(f"output.table.uri: {why}", "restore a version that has it, or name another place")
        return 0

    def rows(self) -> Mapping[Part, int]:
        counts: Counter[Part] = Counter()
        if self._table is not None and {MODEL.name, PLAN.name} <= {*self._table.schema.names}:
            with self._telling(self._held):
                scan = self._table.scanner(columns=[MODEL.name, PLAN.name], filter="plan IS NOT NULL")
                for part, rows in _by_part(scan.to_batches()):
                    counts[part] += len(rows)
        return counts

    def commit(self, edition: int, schema: pa.Schema, change: Change, copy: Copy) -> None:  # noqa: ARG002
        from lance import LanceDataset, LanceOperation
        from lance.commit import CommitConflictError

        with self._telling(held := self._held):
            self._make_columns(schema, held)
            columns = _columns(self._table)
            added = self._written(schema, change.added)
            for _ in range(TRIES):
                self._look_again(held)
                table = self._table
                if _columns(table) != columns:
                    break
                fragments = [*self._kept(table, change), *added]
                merge = LanceOperation.Merge(fragments, _numbered(table, edition), preserves_nullability=True)
                # Lance compares with the versions between, as long as nobody has cleaned them up.
                if table.latest_version != table.version:
                    continue
                try:
                    LanceDataset.commit(table, merge, table.version, commit_message=f"stint edition {edition}")
                except CommitConflictError:
                    continue
                return
            raise TableMoved(f"{self._url} is changed by others all the time")

    @contextmanager
    def _telling(self, held: int) -> Iterator[None]:
        """Sorts what Lance raises, which for most of it has no types."""
        from lance.commit import CommitConflictError

        try:
            yield
        except (OSError, ValueError) as error:
            seen = self._table
            moved = self.read() != held or (seen is not None and self._table.version != seen.version)
            if moved or isinstance(error, CommitConflictError):
                raise TableMoved(f"{self._url}: {error}") from error
            raise StoreError(f"{self._url}: {error}") from error

    def _look_again(self, held: int) -> None:
        if self.read() != held:
            raise TableMoved(f"{self._url} holds edition {self._held} in place of {held}")

    def _make_columns(self, schema: pa.Schema, held: int) -> None:
        """Make the table, without rows, and columns that it lacks, with nulls."""
        from lance import LanceDataset, LanceOperation, write_dataset
        from lance.schema import LanceSchema

        wanted = [field.remove_metadata().with_nullable(True) for field in (*schema, MODEL, PLAN)]
        for field in wanted:
            try:
                write_dataset(pa.schema([field]).empty_table(), "memory://column")
            except (OSError, ValueError) as error:
                why = f"output.table: Lance has no column {field.name!r} of type {field.type}: {error}"
                raise SpecError(why, "leave it out of input.keys, or give it another name or type there") from error
        if self._table is None:
            # With neither a version nor tries it makes a table or fails; `write_dataset` may overwrite one.
            make = LanceOperation.Overwrite(LanceSchema.from_pyarrow(pa.schema(wanted, {EDITION: "0"})), [])
            options = {"storage_options": storage_options(self._url), "enable_stable_row_ids": True}
            try:
                LanceDataset.commit(object_store_url(self._url), make, read_version=0, max_retries=0, **options)
            except OSError:
                self._look_again(held)
                if self._table is None:
                    raise
            self._look_again(held)
        there = self._table.schema
        for field in wanted:
            if field.name in there.names and not _widens(field.type, there.field(field.name).type):
                why = f"{self._url} has {there.field(field.name)}, and what is to be added {field.type}"
                raise SpecError(f"output.table: {why}", "name another output.table.uri")
        if foreign := [one.name for one in there if not one.nullable and one.name not in pa.schema(wanted).names]:
            why = f"{self._url} allows no nulls in {', '.join(foreign)}, which predictions do not have"
            raise SpecError(f"output.table: {why}", "name another output.table.uri")
        if new := [field for field in wanted if field.name not in there.names]:
            self._table.add_columns(pa.schema(new))
            self._look_again(held)

    def _written(self, schema: pa.Schema, files: Sequence[RowFile]) -> list[Any]:
        """Fragments of the rows of these files, which are no part of the table yet."""
        from lance.fragment import write_fragments

        if not (rows := sum(file.rows for file in files)):
            return []
        failed: list[Exception] = []
        target = pa.schema([self._table.schema.field(name) for name in (*schema.names, MODEL.name, PLAN.name)])
        at_once = max(1, min(16, HELD_BYTES // max(file.size for file in files)))

        def batches() -> Iterator[pa.RecordBatch]:
            try:
                objects = ahead(lambda file: read_url(file.uri), files, "table", at_once, a_thread=1)
                for file, data in zip(files, objects, strict=True):
                    yield from _batches(file, data, target)
            except NotFound as error:
                failed.append(StoreError(f"{error} is not there, although its plan is done"))
                raise
            except Exception as error:
                failed.append(error)
                raise

        try:
            written = write_fragments(pa.RecordBatchReader.from_batches(target, batches()), self._table)
        except OSError as error:
            raise (failed or [error])[0] from error
        if (found := sum(one.physical_rows for one in written)) != rows:
            raise StoreError(f"{self._url}: {found} rows were written in place of {rows}")
        return list(written)

    def _kept(self, table: Any, change: Change) -> list[Any]:
        """The table's fragments, without rows that go."""
        from lance.bitmap import Bitmap

        fragments = [one.metadata for one in table.get_fragments()]
        dead: dict[int, Any] = defaultdict(Bitmap)
        if parts := {*change.dropped, *change.trimmed}:
            columns = [MODEL.name, PLAN.name, *(PLACE if change.trimmed else ())]
            scan = table.scanner(columns=columns, filter=_among(parts), with_row_address=True)
            for part, rows in _by_part(scan.to_batches()):
                address = rows["_rowaddr"]
                if part in change.trimmed:
                    address = address.filter(pc.invert(pc.is_in(address, change.trimmed[part](rows)["_rowaddr"])))
                numbers = address.to_numpy()
                for one in np.unique(numbers >> 32).tolist():
                    dead[one].update((numbers[numbers >> 32 == one] & _OFFSET).tolist())
        touched = {one.id: one for one in fragments if one.id in dead}
        earlier = deleted_rows(table, [one for one in touched.values() if one.num_deletions])
        for number, positions in earlier.items():
            dead[number].update(positions.tolist())
        return [self._without(one, dead[one.id], table.version) if one.id in touched else one for one in fragments]

    def _without(self, fragment: Any, dead: Any, version: int) -> Any:
        """A fragment with these rows deleted, and no others."""
        from lance.fragment import DeletionFile

        file = DeletionFile(version, secrets.randbits(63), "bitmap", len(dead), None)
        path, (_, (bitmap,)) = f"{self._path}/{file.path(fragment.id)}", dead.__reduce__()
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        retrying(lambda: self._fs.pipe_file(path, bitmap), path)
        return replace(fragment, deletion_file=file)


def _columns(table: Any) -> list[tuple[str, int, pa.DataType]]:
    return [(one.name(), one.id(), table.schema.field(one.name()).type) for one in table.lance_schema.fields()]


def _numbered(table: Any, edition: int) -> Any:
    """Its schema with this number: of its own parts, as Arrow's does not have the numbers of columns."""
    make, (metadata, *fields) = table.lance_schema.__reduce__()
    return make(json.dumps(json.loads(metadata) | {EDITION: [*str(edition).encode()]}), *fields)


def _widens(kind: pa.DataType, into: pa.DataType) -> bool:
    """Whether a column takes values of this type as they are."""
    both = [pa.schema([pa.field("", one)]) for one in (kind, into)]
    try:
        return kind == into or bool(pa.unify_schemas(both, promote_options="permissive").field(0).type == into)
    except pa.ArrowException:
        return False


def _batches(file: RowFile, data: bytes, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    known = {MODEL.name: file.part.model, PLAN.name: file.part.plan}
    for batch in pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).iter_batches(BATCH_ROWS):
        columns = [
            pa.repeat(pa.scalar(known[field.name], field.type), len(batch))
            if field.name in known
            else cast_key(batch.column(field.name), field.type)
            if field.name in batch.schema.names
            else pa.nulls(len(batch), field.type)
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _among(parts: Collection[Part]) -> str:
    plans = defaultdict[str, list[int]](list)
    for model, plan in parts:
        plans[model.replace("'", "''")].append(plan)
    return " OR ".join(f"(model = '{model}' AND plan IN ({str(numbers)[1:-1]}))" for model, numbers in plans.items())


def _by_part(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[Part, pa.Table]]:
    for batch in batches:
        rows = pa.Table.from_batches([batch])
        for one in rows.group_by([MODEL.name, PLAN.name]).aggregate([]).to_pylist():
            part = Part(one[MODEL.name], one[PLAN.name])
            yield part, rows.filter((pc.field(MODEL.name) == part.model) & (pc.field(PLAN.name) == part.plan))
