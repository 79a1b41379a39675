"""What an Iceberg table holds at a snapshot, from its metadata and manifests: pyiceberg parses, fsspec reads.

A table is named by its location, by one of its `….metadata.json`, or as `iceberg://<catalog>/<namespace>.<table>`, with
pyiceberg's own configuration of catalogs. Only a catalog knows for sure which metadata is the table's: at a location
it is what `version-hint.text` names, or else what has the highest number.
"""

from __future__ import annotations

import gzip
import json
import re
from bisect import bisect_left
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby, takewhile
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.errors import NothingThere, SpecError
from jobs.ledger.table_files import NONE_DELETED
from jobs.tables.iceberg_deletes import DeadRows, dead_rows
from jobs.tables.iceberg_files import ADDED, DATA, DELETED, ManifestEntry, Partition, StoreFiles, refuse_unreadable
from jobs.tables.state import TableCommit, TableFile, TableState
from workers.contract import DEFAULT, FIELD_ID, NAMES_IN_FILES
from workers.storage.errors import Cause, NotFound, StoreDenied, StoreError, cause_of
from workers.storage.filesystems import full_url, open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

CATALOG = "iceberg://"
METADATA_NAME = re.compile(r"(?:v(\d+)|(\d+)-[^/]*?)(?:\.gz)?\.metadata\.json(?:\.gz)?")


def read_state(
    url: str, *, version: str = "", before: datetime | None = None, since: str = "", columns: Sequence[str] = ()
) -> TableState:
    """The table's current snapshot; the one that `version` names: its id, a tag or a branch; or the one that was
    current `before` a moment. Version 0 is a table before its first snapshot.

    Present names are those of the table now, or those of an older snapshot when that was made. `commits` are those
    after the snapshot `since`: what one change of the metadata brought is one; a way back (rollback) is one, too. Of
    columns, only top-level `columns` (all, if none are named) must be of a type that is read. Raises SpecError,
    NothingThere, StoreError, StoreDenied.
    """
    files = StoreFiles()
    try:
        return IcebergTable(url, _metadata(url, files), files).state(version, before, since, columns)
    except NotFound as error:
        raise SpecError(
            f"{url}: the table names {error}, which is not there",
            "if its snapshot has expired just now, run again; if somebody deleted the file, roll the table back",
        ) from error


@contextmanager
def iceberg_errors(url: str) -> Iterator[None]:
    """What pyiceberg, a catalog and its libraries raise, as SpecError, NothingThere, StoreError, StoreDenied."""
    try:
        from pyiceberg import exceptions
    except ImportError as error:
        raise SpecError(f"{url}: Iceberg tables need pyiceberg", "pip install 'stint[iceberg]'") from error
    not_to_be = (exceptions.ValidationError, exceptions.ResolveError, exceptions.BadRequestError, ValueError, TypeError)
    try:
        yield
    except (SpecError, StoreError, StoreDenied):
        raise
    except (NotFound, exceptions.NoSuchTableError, exceptions.NoSuchNamespaceError) as error:
        raise NothingThere(f"{url}: there is no such table ({error})", "check the name or the path") from error
    except (*not_to_be, exceptions.NotInstalledError, ImportError) as error:
        raise SpecError(
            f"{url}: pyiceberg cannot do this: {error}",
            "configure the catalog, or name a whole metadata.json",
        ) from error
    except Exception as error:
        refusals = (exceptions.UnauthorizedError, exceptions.ForbiddenError, exceptions.OAuthError)
        denied = isinstance(error, refusals) or cause_of(error) is Cause.DENIED
        raise (StoreDenied if denied else StoreError)(f"{url}: {error}") from error


def catalog_table(url: str) -> tuple[Any, str]:
    """The catalog of `iceberg://<catalog>/<namespace>.<table>`, and the table's name in it. Raises what they raise."""
    from pyiceberg.catalog import load_catalog

    catalog, _, name = url.removeprefix(CATALOG).partition("/")
    if not catalog or "." not in name:
        raise SpecError(f"{url} names no table", f"write {CATALOG}<catalog>/<namespace>.<table>")
    ours = f"{StoreFiles.__module__}.{StoreFiles.__name__}"  # what workers read with must find the table, too
    return load_catalog(catalog, **{"py-io-impl": ours}), name


def _metadata(url: str, files: StoreFiles) -> Any:
    with iceberg_errors(url):
        from pyiceberg.table.metadata import TableMetadataUtil

        if url.startswith(CATALOG):
            catalog, name = catalog_table(url)
            return catalog.load_table(name).metadata
        data = files.read(url if ".metadata.json" in url.rpartition("/")[2] else _newest(url))
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
        # pyiceberg knows no variants. Where none is read, any other type will do that is not read here either.
        return TableMetadataUtil.parse_raw(re.sub(r'("(?:type|element|value)"\s*:\s*)"variant"', r'\1"geometry"', text))


def _newest(url: str) -> str:
    """The metadata of the table at a location."""
    fs, path = open_filesystem(url)
    folder = f"{path.rstrip('/')}/metadata"
    try:
        names = {str(one).rpartition("/")[2] for one in retrying(lambda: fs.ls(folder, detail=False), url)}
    except NotFound:
        names = set()
    place = full_url(fs, folder)
    if "version-hint.text" in names:
        hint = retrying(lambda: fs.cat_file(f"{folder}/version-hint.text"), url).decode().strip()
        if (name := f"{hint.removesuffix('.metadata.json')}.metadata.json") in names:
            return f"{place}/{name}"
    numbered = sorted((int(one[1] or one[2]), one[0]) for one in map(METADATA_NAME.fullmatch, names) if one)
    if not numbered:
        if not retrying(lambda: fs.exists(path), url):
            raise NothingThere(f"there is nothing at {url}", "check the path")
        raise SpecError(
            f"{url} is no Iceberg table: there is no metadata/….metadata.json",
            f"name the folder that holds metadata/, a metadata.json, or {CATALOG}<catalog>/<namespace>.<table>",
        )
    last = [name for number, name in numbered if number == numbered[-1][0]]
    first = [name for number, name in numbered if number == 0]  # two are of two tables, one after the other
    kinds = [*{name.startswith("v"): name for _, name in numbered}.values()]  # a catalog that takes over counts anew
    if rivals := next((some for some in (last, first, kinds) if len(some) > 1), None):
        raise SpecError(
            f"{url}: {rivals[0]} and {rivals[1]} are both there, and only a catalog knows which is the table's now",
            f"write {CATALOG}<catalog>/<namespace>.<table>, or the URL of the right metadata.json",
        )
    return f"{place}/{last[0]}"


def _time(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


class IcebergTable:
    """A table by one of its metadata files. Snapshots go by their ids, and 0 is that before the first."""

    def __init__(self, url: str, metadata: Any, files: StoreFiles) -> None:
        self._url, self._metadata, self._files = url, metadata, files
        self._snapshots = {one.snapshot_id: one for one in metadata.snapshots}
        self._changed_ms = sorted([*(one.timestamp_ms for one in metadata.metadata_log), metadata.last_updated_ms])
        self._names = None if (mapping := metadata.name_mapping()) is None else dict(_names(mapping))
        if "encryption.key-id" in metadata.properties:
            raise SpecError(f"{url} is encrypted by the table, which is not read", "copy it into a plain table")

    def state(self, version: str, before: datetime | None, since: str, columns: Sequence[str]) -> TableState:
        head = self._named(version) if version else int(self._metadata.current_snapshot_id or 0)
        head = head if version or before is None else self._current_at(before)
        data, deletes = self.live(head)
        refuse_unreadable(data.values())
        dead = self.dead(data, deletes)
        schema = self.schema(head, columns)
        constants = {one: self.constants(one, schema) for one in {file.partition for file in data.values()}}
        found = [
            TableFile(
                uri=self._files.uri(path),
                size=one.size,
                rows=one.rows,
                deleted=dead[path][0] if path in dead else NONE_DELETED,
                constants=constants[one.partition],
            )
            for path, one in data.items()
        ]
        return TableState(
            version=str(head),
            at=_time(self._snapshots[head].timestamp_ms if head else self._metadata.last_updated_ms),
            files=sorted(found, key=lambda one: one.uri),
            schema=schema,
            commits=self._commits(head, int(since) if since.isdecimal() else -1, data, deletes) if since else (),
        )

    def _named(self, version: str) -> int:
        names: dict[str, int] = {name: ref.snapshot_id for name, ref in self._metadata.refs.items()}
        names |= {"0": 0} | {str(one): one for one in self._snapshots}
        if version not in names:
            there = ", ".join([*names][:4])
            raise SpecError(f"{self._url}: no snapshot, tag or branch {version} is kept", f"name one of those: {there}")
        return names[version]

    def _current_at(self, before: datetime) -> int:
        """The last snapshot before a moment, by the log of what was current when."""
        log = [(one.timestamp_ms, one.snapshot_id) for one in self._metadata.snapshot_log]
        if not log:  # it need not be there
            line = [*self._line(self._metadata.current_snapshot_id or 0)][-2::-1]
            log = [(self._snapshots[one].timestamp_ms, one) for one in line]
        steps = [[*step] for _, step in groupby(log, key=lambda one: self._change(*one))]
        moment = before.replace(tzinfo=before.tzinfo or UTC)
        at = max((number for number, step in enumerate(steps, 1) if _time(step[-1][0]) < moment), default=0)
        found, later = (steps[at - 1][-1][1] if at else -1), (steps[at][0][1] if at < len(steps) else None)
        # pyiceberg's expiry leaves gaps in the log: another one may have been current since, and then until later.
        if found not in self._snapshots or (
            later and found not in self._line(later) and later not in self._line(found)
        ):
            raise SpecError(
                f"{self._url}: what the table held before {before.isoformat()} is not kept",
                f"take a later day: its history begins at {_time(log[0][0] if log else 0).isoformat()}",
            )
        return found

    def _change(self, ms: int, snapshot: int) -> int:
        """Which change of the metadata brought a snapshot: several may come by one (`overwrite` of pyiceberg). The log
        has when each was made; what is from before it stays by itself."""
        return bisect_left(self._changed_ms, ms) or -snapshot

    def _line(self, snapshot: int) -> Iterator[int]:
        """A snapshot and those before it, down to 0 or to the first that is not kept."""
        yield snapshot
        while snapshot in self._snapshots:
            snapshot = self._snapshots[snapshot].parent_snapshot_id or 0
            yield snapshot

    def live(self, snapshot: int, other: Container[str] = ()) -> tuple[dict[str, ManifestEntry], list[ManifestEntry]]:
        """Data files by path, and delete files, without those that manifests `other` name."""
        manifests = self._files.manifests(self._snapshots[snapshot].manifest_list) if snapshot else ()
        entries = self._files.entries(one for one in manifests if one.path not in other)
        entries = [one for one in entries if one.status != DELETED]
        return {one.path: one for one in entries if one.content == DATA}, [e for e in entries if e.content != DATA]

    def dead(self, data: Mapping[str, ManifestEntry], deletes: Sequence[ManifestEntry]) -> DeadRows:
        """Rows that these delete files took of the data files."""
        if not deletes:
            return {}
        schemas = [*self._metadata.schemas, self._metadata.schema()]
        fields = {field.field_id: field for schema in schemas for field in schema.fields}
        arrow = {
            number: self._field(one)
            for number, one in fields.items()
            if one.field_type.is_primitive and _is_read(one.field_type)
        }
        transforms = {
            number: {str(one.transform) for one in spec.fields} for number, spec in self._metadata.specs().items()
        }
        everywhere = frozenset(number for number, some in transforms.items() if some <= {"void"})
        return dead_rows(self._files, data, deletes, arrow, everywhere, self.constants)

    def constants(self, partition: Partition, columns: Iterable[pa.Field]) -> dict[str, Any]:
        """What columns of a table are in all rows of a partition, where that is parted by their very values."""
        number, values = partition
        parted = zip(self._metadata.specs()[number].fields, values, strict=True)
        known = {one.source_id: value for one, value in parted if str(one.transform) == "identity"}
        return {
            column.name: pa.scalar(getattr(known[at], "bytes", known[at]), column.type).as_py()
            for column in columns
            if (at := int(column.metadata[FIELD_ID])) in known
        }

    def schema(self, head: int, columns: Sequence[str] = ()) -> pa.Schema:
        """As in TableState, of a snapshot; `columns` as in `read_state`."""
        branches = {ref.snapshot_id for ref in self._metadata.refs.values() if ref.snapshot_ref_type.value == "branch"}
        now = not head or head in branches
        older = None if now else self._metadata.schema_by_id(self._snapshots[head].schema_id)
        schema = older or self._metadata.schema()
        unread = [one.name for one in schema.fields if not _is_read(one.field_type)]
        if touched := [name for name in unread if not columns or name in columns]:
            why = f"{self._url}: column {touched[0]} is a variant or a geometry, which is not read"
            raise SpecError(why, "leave it out")
        return pa.schema([self._field(one) for one in schema.fields if one.name not in unread])

    def _field(self, field: Any) -> pa.Field:
        about = {FIELD_ID: str(field.field_id)}
        if self._names is not None:
            about[NAMES_IN_FILES] = json.dumps(self._names.get(field.field_id, []))
        if field.initial_default is not None:
            default = json.loads(field.model_dump_json())["initial-default"]
            about[DEFAULT] = json.dumps(default.replace("-", "") if str(field.field_type) == "uuid" else default)
        return pa.field(field.name, self._type(field.field_type), metadata=about)

    def _type(self, kind: Any) -> pa.DataType:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        if kind.is_struct:
            return pa.struct([self._field(one) for one in kind.fields])
        if str(kind).startswith("list"):
            return pa.list_(self._field(kind.element_field))
        if str(kind).startswith("map"):
            return pa.map_(self._field(kind.key_field).with_nullable(False), self._field(kind.value_field))
        known = {"uuid": pa.binary(16), "string": pa.string(), "binary": pa.binary()}
        return known.get(str(kind)) or schema_to_pyarrow(kind)

    def _commits(
        self, head: int, since: int, data: Mapping[str, ManifestEntry], deletes: Sequence[ManifestEntry]
    ) -> list[TableCommit] | None:
        earlier = {one: steps for steps, one in enumerate(self._line(since))}
        forward = [*takewhile(lambda one: one not in earlier, self._line(head))][::-1]
        if not self._snapshots.keys() >= {*forward}:
            return None
        base = (self._snapshots[forward[0]].parent_snapshot_id or 0) if forward else head
        back = [*earlier][: earlier[base]]
        if not self._snapshots.keys() >= {*back}:
            return None
        try:
            return [*self._back(since, base, back), *self._forward(forward, data, deletes)]
        except (NotFound, SpecError, _HistoryCut):  # what the table holds now was read
            return None

    def _back(self, since: int, base: int, back: Sequence[int]) -> Iterator[TableCommit]:
        """The step from a snapshot to an earlier one, if it is one: by what they hold."""
        if not back:
            return
        (then, then_deletes), (now, now_deletes) = self.live(since), self.live(base)
        stay = {path: one for path, one in then.items() if path in now}
        dead_then, dead_now = self.dead(stay, then_deletes), self.dead(stay, now_deletes)
        none = (NONE_DELETED, NONE_DELETED)
        differs = [p for p in stay if not np.array_equal(dead_then.get(p, none)[0], dead_now.get(p, none)[0])]
        log = self._metadata.snapshot_log
        ms = max((one.timestamp_ms for one in log if one.snapshot_id == base), default=self._metadata.last_updated_ms)
        yield self._commit(base, ms, (now.keys() - then.keys(), then.keys() - now.keys(), differs), back)

    def _forward(
        self, line: Sequence[int], data: Mapping[str, ManifestEntry], deletes: Sequence[ManifestEntry]
    ) -> Iterator[TableCommit]:
        """The steps by snapshots that follow each other, the last of which holds `data` and `deletes`."""
        lists = ahead(lambda one: self._files.manifests(self._snapshots[one].manifest_list), line, "manifests")
        found = zip(line, lists, strict=True)
        own = {number: [one for one in manifests if one.snapshot == number] for number, manifests in found}
        self._files.entries(one for manifests in own.values() for one in manifests)  # many at a time
        steps = {
            number: [e for e in self._files.entries(some) if e.snapshot == number and e.status in (ADDED, DELETED)]
            for number, some in own.items()
        }
        every = [one for number in line for one in steps[number]]
        files = {one.path: one for one in every if one.content == DATA} | dict(data)
        taken: dict[int, set[str]] = {}
        if any(one.content != DATA and one.status == ADDED for one in every):
            known = {(one.path, one.offset): one for one in (*every, *deletes) if one.content != DATA}
            for path, (_, sequences) in self.dead(files, [*known.values()]).items():
                for sequence in np.unique(sequences).tolist():
                    taken.setdefault(sequence, set()).add(path)
        begins: dict[str, int] = {}
        for one in every:
            begins.setdefault(one.path, one.status)
        there = {path for path in files if begins.get(path) != ADDED}
        if line and there and not self._snapshots[line[0]].parent_snapshot_id:
            raise _HistoryCut
        for _, group in groupby(line, key=lambda one: self._change(self._snapshots[one].timestamp_ms, one)):
            snapshots = [*group]
            added, removed = set[str](), set[str]()
            for one in (one for number in snapshots for one in steps[number] if one.content == DATA):
                came, went = (added, removed) if one.status == ADDED else (removed, added)
                (went.discard if one.path in went else came.add)(one.path)
            there -= removed
            there |= added
            changed = set[str]().union(*(taken.get(self._snapshots[one].sequence_number, ()) for one in snapshots))
            ms = self._snapshots[snapshots[-1]].timestamp_ms
            yield self._commit(snapshots[-1], ms, (added, removed, (changed & there) - added), snapshots)

    def _commit(self, snapshot: int, ms: int, files: Sequence[Iterable[str]], by: Iterable[int]) -> TableCommit:
        """What several snapshots did: files added, removed and changed."""
        added, removed, changed = (frozenset(map(self._files.uri, paths)) for paths in files)
        summaries = [self._snapshots[one].summary for one in by]
        rewrite = all(one is not None and one.operation.value == "replace" for one in summaries)
        return TableCommit(str(snapshot), _time(ms), added, removed, changed, data_change=not rewrite)


class _HistoryCut(Exception):
    """The first snapshot that is kept is not the table's first: pyiceberg's expiry makes it look so."""


def _names(fields: Iterable[Any]) -> Iterator[tuple[int, list[str]]]:
    """What files without numbers of columns call them, by number."""
    for one in fields:
        if one.field_id is not None:
            yield one.field_id, one.names
        yield from _names(one.fields)


def _is_read(kind: Any) -> bool:
    """Whether a column is of a type that is read, to its innermost fields."""
    lists_and_maps = [getattr(kind, name, None) for name in ("element_field", "key_field", "value_field")]
    inner = [one.field_type for one in (*getattr(kind, "fields", ()), *lists_and_maps) if one is not None]
    return all(map(_is_read, inner)) and not str(kind).startswith("geo")
