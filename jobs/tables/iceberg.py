"""What an Iceberg table holds at a snapshot, from its metadata and manifests: pyiceberg parses, fsspec reads.

A table is named by its location, by one of its `….metadata.json`, or as `iceberg://<catalog>/<namespace>.<table>`, with
pyiceberg's own configuration of catalogs. Only a catalog knows for sure which metadata is the table's: at a location it
is that which `version-hint.text` names, or else the one with the highest number.
"""

from __future__ import annotations

import gzip
import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import groupby, takewhile
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.errors import NothingThere, SpecError
from jobs.tables.iceberg_deletes import dead_rows
from jobs.tables.iceberg_files import ADDED, DATA, DELETED, Manifest, ManifestEntry, StoreFiles, refuse_unreadable
from jobs.tables.state import (
    DEFAULT,
    FIELD_ID,
    NAMES_IN_FILES,
    NONE_DELETED,
    TableCommit,
    TableFile,
    TableState,
)  # fmt: skip
from workers.storage.errors import Cause, NotFound, StoreDenied, StoreError, cause_of
from workers.storage.filesystems import full_url, open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

NO_SNAPSHOT = "0"
"""The version of a table before its first snapshot."""

_SCHEME = "iceberg://"
_METADATA = re.compile(r"(?:v(\d+)|(\d+)-[^/]*?)(?:\.gz)?\.metadata\.json(?:\.gz)?")


def read_state(
    url: str, *, version: str = "", before: datetime | None = None, since: str = "", columns: Sequence[str] = ()
) -> TableState:
    """The table's current snapshot; the one that `version` names: an id, a tag or a branch; or the one that was current
    `before` a moment.

    `commits` are those after the snapshot `since`; snapshots of one change of the metadata are one commit. A way back
    (rollback) is one, too. Only features that touch the top-level `columns` (all, if none are named) are refused where
    the format keeps them apart. Raises SpecError, NothingThere, StoreError, StoreDenied.
    """
    files = StoreFiles()
    with _sorted_errors(url):
        return _Reader(_metadata(url, files), files, columns).state(url, version, before, since)


@contextmanager
def _sorted_errors(url: str) -> Iterator[None]:
    """What pyiceberg and the catalogs' libraries raise, as ours."""
    try:
        from pyiceberg import exceptions
        from pyiceberg_core import transform  # noqa: F401  (pyiceberg wants it for partitions)
    except ImportError as error:
        raise SpecError("Iceberg tables need pyiceberg", "pip install 'stint[iceberg]'") from error
    try:
        yield
    except (SpecError, StoreError, StoreDenied):
        raise
    except NotFound as error:
        raise SpecError(
            f"{url}: the table names {error}, which is not there",
            "its snapshot has expired meanwhile: run again; or the file was deleted by hand: roll the table back",
        ) from error
    except (exceptions.NoSuchTableError, exceptions.NoSuchNamespaceError, exceptions.NoSuchIdentifierError) as error:
        raise NothingThere(f"{url}: {error}", "check the names of the catalog, the namespace and the table") from error
    except (exceptions.UnauthorizedError, exceptions.ForbiddenError, exceptions.OAuthError) as error:
        raise StoreDenied(f"{url}: {error}") from error
    except exceptions.RESTError as error:
        raise StoreError(f"{url}: {error}") from error
    except (exceptions.ValidationError, exceptions.ResolveError, ValueError, TypeError, KeyError, EOFError) as error:
        raise SpecError(f"{url}: pyiceberg cannot read this: {error}") from error
    except (exceptions.NotInstalledError, ImportError) as error:
        raise SpecError(f"{url}: {error}", "install what pyiceberg needs for this catalog") from error
    except Exception as error:  # sorted by type: catalogs bring libraries of their own
        match cause_of(error):
            case Cause.OTHER:
                raise
            case Cause.DENIED:
                raise StoreDenied(f"{url}: {error}") from error
        raise StoreError(f"{url}: {error}") from error


def _metadata(url: str, files: StoreFiles) -> Any:
    from pyiceberg.table.metadata import TableMetadataUtil

    if url.startswith(_SCHEME):
        from pyiceberg.catalog import load_catalog

        catalog, _, name = url.removeprefix(_SCHEME).partition("/")
        if not catalog or "." not in name:
            raise SpecError(f"{url} names no table", f"write {_SCHEME}<catalog>/<namespace>.<table>")
        return load_catalog(catalog, **{"py-io-impl": f"{StoreFiles.__module__}.StoreFiles"}).load_table(name).metadata
    where = url if _METADATA.search(url.rpartition("/")[2]) or ".metadata.json" in url else _newest(url)
    try:
        data = files.read(where)
    except NotFound as error:
        raise NothingThere(f"there is nothing at {where}", "check the path") from error
    text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
    # pyiceberg knows no variants: where none is read, they are columns of another kind that is not read.
    return TableMetadataUtil.parse_raw(re.sub(r'("(?:type|element|key|value)"\s*:\s*)"variant"', r'\1"geometry"', text))


def _newest(url: str) -> str:
    """The metadata of the table at a location. Raises SpecError, NothingThere, StoreError, StoreDenied."""
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
    numbered: dict[int, list[str]] = {}
    kinds = set()
    for name in sorted(names):
        if found := _METADATA.fullmatch(name):
            numbered.setdefault(int(found[1] or found[2]), []).append(name)
            kinds.add(found[1] is None)
    if not numbered:
        if not retrying(lambda: fs.exists(path), url):
            raise NothingThere(f"there is nothing at {url}", "check the path")
        raise SpecError(
            f"{url} is no Iceberg table: there is no metadata/….metadata.json",
            f"name the folder that holds metadata/, a metadata.json, or {_SCHEME}<catalog>/<namespace>.<table>",
        )
    last = max(numbered)
    several = [*numbered[last], *numbered.get(0, ())] if len(numbered.get(0, ())) > 1 else numbered[last]
    if len(several) > 1 or len(kinds) > 1:
        several = several if len(several) > 1 else [numbered[n][0] for n in (min(numbered), last)]
        raise SpecError(
            f"{url}: {several[0]} and {several[-1]} are both there, and which is the table's now its catalog knows",
            f"write {_SCHEME}<catalog>/<namespace>.<table>, or the URL of the right metadata.json",
        )
    return f"{place}/{numbered[last][0]}"


def _at(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


class _Reader:
    """A table by one of its metadata files."""

    def __init__(self, table: Any, files: StoreFiles, columns: Sequence[str]) -> None:
        self._table, self._files, self._columns = table, files, columns
        self._snapshots = {one.snapshot_id: one for one in table.snapshots}
        if "encryption.key-id" in table.properties:
            raise SpecError(
                "the table is encrypted by its own keys, which are not read here", "copy it into a plain one"
            )
        mapping = table.name_mapping()
        self._names = None if mapping is None else dict(_names(mapping))

    def state(self, url: str, version: str, before: datetime | None, since: str) -> TableState:
        head = self._chosen(url, version, before)
        snapshot = self._snapshots.get(head)
        schema = self._schema(None if snapshot is None or self._is_head(head) else snapshot.schema_id)
        data, deletes = self._live(head)
        refuse_unreadable(data.values())
        constants = self._constants(entry.partition for entry in data.values())
        dead = self._dead(data, deletes, constants) if deletes else {}
        present = {int(field.metadata[FIELD_ID]): field for field in schema}
        said = {
            partition: {
                present[number].name: pa.scalar(value, present[number].type).as_py()
                for number, value in known.items()
                if number in present
            }
            for partition, known in constants.items()
        }
        found = [
            TableFile(
                self._files.uri(path),
                entry.size,
                entry.rows,
                dead[path][0] if path in dead else NONE_DELETED,
                said[entry.partition],
            )
            for path, entry in data.items()
        ]
        return TableState(
            version=str(head),
            at=_at(self._table.last_updated_ms if snapshot is None else snapshot.timestamp_ms),
            files=sorted(found, key=lambda one: one.uri),
            schema=schema,
            commits=self._commits(head, int(since), data, deletes)
            if re.fullmatch(r"\d+", since)
            else None
            if since
            else (),
        )

    def _chosen(self, url: str, version: str, before: datetime | None) -> int:
        """Id of a snapshot; 0 for none yet."""
        table = self._table
        if version:
            if version.isdecimal() and (int(version) in self._snapshots or version == NO_SNAPSHOT):
                return int(version)
            if (ref := table.refs.get(version)) is not None and ref.snapshot_id in self._snapshots:
                return int(ref.snapshot_id)
            raise SpecError(
                f"{url}: no snapshot, tag or branch {version} (it may have expired)",
                f"name one that there is, as {', '.join([*table.refs, *map(str, self._snapshots)][-4:])}",
            )
        if before is None:
            return int(table.current_snapshot_id or 0)
        moment = (before if before.tzinfo else before.replace(tzinfo=UTC)).timestamp() * 1000
        log = [(one.timestamp_ms, one.snapshot_id) for one in table.snapshot_log]
        if not log:  # it is optional
            log = [
                (self._snapshots[n].timestamp_ms, n)
                for n in reversed([*self._line(table.current_snapshot_id or 0)][:-1])
            ]
        steps = [[*step] for _, step in groupby(log, key=lambda one: self._step(*one))]
        earlier = [number for number, step in enumerate(steps) if step[-1][0] < moment]
        found, later = (int(steps[earlier[-1]][-1][1]), steps[earlier[-1] + 1 :]) if earlier else (-1, [])
        # pyiceberg's expiry leaves gaps in the log: what is left may have been current for a part of the time only.
        joined = not later or found in self._line(later[0][0][1]) or later[0][0][1] in self._line(found)
        if found not in self._snapshots or not joined:
            raise SpecError(
                f"{url}: the snapshot from before {before.isoformat()} is not kept"
                + (f"; the first is of {_at(log[0][0]).isoformat()}" if log else ""),
                "take a later date, or keep snapshots for longer (history.expire.max-snapshot-age-ms)",
            )
        return found

    def _is_head(self, snapshot: int) -> bool:
        heads = [ref.snapshot_id for ref in self._table.refs.values() if ref.snapshot_ref_type.value == "branch"]
        return snapshot in (self._table.current_snapshot_id, *heads)

    def _step(self, ms: int, snapshot: int) -> int:
        """Which change of the metadata made a snapshot: several may come of one (`overwrite` of pyiceberg). The log
        tells when each was made, but not how early the first that it still has began."""
        return bisect_left(self._changes, ms) or -snapshot

    @property
    def _changes(self) -> list[int]:
        return [one.timestamp_ms for one in self._table.metadata_log]

    def _live(self, snapshot: int) -> tuple[dict[str, ManifestEntry], list[ManifestEntry]]:
        """Data files by path, and delete files."""
        manifests = self._manifests(snapshot)
        entries = [one for found in self._files.entries(manifests) for one in found if one.status != DELETED]
        return {one.path: one for one in entries if one.content == DATA}, [
            one for one in entries if one.content != DATA
        ]

    def _manifests(self, snapshot: int) -> list[Manifest]:
        return self._files.manifests(self._snapshots[snapshot].manifest_list) if snapshot else []

    def _dead(self, data: Mapping[str, ManifestEntry], deletes: Iterable[ManifestEntry], constants: Any) -> Any:
        fields = {field.field_id: field for schema in self._table.schemas for field in schema.fields}
        fields |= {field.field_id: field for field in self._table.schema().fields}
        arrow = {number: self._field(field) for number, field in fields.items() if field.field_type.is_primitive}
        everywhere = frozenset(
            number
            for number, spec in self._table.specs().items()
            if all(str(f.transform) == "void" for f in spec.fields)
        )
        return dead_rows(self._files, data, deletes, arrow, everywhere, constants)

    def _constants(
        self, partitions: Iterable[tuple[int, tuple[object, ...]]]
    ) -> dict[tuple[int, tuple[object, ...]], dict[int, Any]]:
        """By partition, and by number of the column: what it is in all rows, where they are parted by its value."""
        places = {
            number: [(at, one.source_id) for at, one in enumerate(spec.fields) if str(one.transform) == "identity"]
            for number, spec in self._table.specs().items()
        }
        return {
            (spec, values): {source: getattr(values[at], "bytes", values[at]) for at, source in places[spec]}
            for spec, values in set(partitions)
        }

    def _schema(self, number: int | None) -> pa.Schema:
        schema = (None if number is None else self._table.schema_by_id(number)) or self._table.schema()
        fields = []
        for one in schema.fields:
            try:
                fields.append(self._field(one))
            except SpecError:
                if not self._columns or one.name in self._columns:
                    raise
        return pa.schema(fields)

    def _field(self, field: Any) -> pa.Field:
        about = {FIELD_ID: str(field.field_id).encode()}
        if self._names is not None:
            about[NAMES_IN_FILES] = json.dumps(self._names.get(field.field_id, [])).encode()
        if field.initial_default is not None:
            default = json.loads(field.model_dump_json())["initial-default"]
            about[DEFAULT] = json.dumps(
                default.replace("-", "") if str(field.field_type) == "uuid" else default
            ).encode()
        return pa.field(field.name, self._type(field.field_type, field.name), metadata=about)

    def _type(self, kind: Any, name: str) -> pa.DataType:
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        if kind.is_struct:
            return pa.struct([self._field(one) for one in kind.fields])
        if str(kind).startswith("list"):
            return pa.list_(self._field(kind.element_field))
        if str(kind).startswith("map"):
            return pa.map_(self._field(kind.key_field).with_nullable(False), self._field(kind.value_field))
        if str(kind).startswith("geo"):
            raise SpecError(
                f"column {name}: variants, geometries and geographies are not read", "leave it out of the spec"
            )
        known = {"uuid": pa.binary(16), "string": pa.string(), "binary": pa.binary()}
        return known.get(str(kind)) or schema_to_pyarrow(kind)

    def _line(self, snapshot: int) -> Iterator[int]:
        """A snapshot and those before it, to 0, or to the first that is not kept."""
        yield snapshot
        while snapshot in self._snapshots:
            snapshot = self._snapshots[snapshot].parent_snapshot_id or 0
            yield snapshot

    def _commits(
        self, head: int, version: str, data: Mapping[str, ManifestEntry], deletes: Sequence[ManifestEntry]
    ) -> list[TableCommit] | None:
        since = int(version) if version.isdecimal() else -1
        known = [*self._line(since)]
        forward = [*takewhile(lambda one: one not in known, self._line(head))][::-1]
        if not {*forward} <= {*self._snapshots}:
            return None
        base = (self._snapshots[forward[0]].parent_snapshot_id or 0) if forward else head
        back = known[: known.index(base)]
        if not {*back} <= {*self._snapshots}:
            return None
        try:
            return [*self._back(since, base, back), *self._forward(forward, data, deletes)]
        except (NotFound, _Expired):
            return None

    def _back(self, since: int, base: int, back: Sequence[int]) -> Iterator[TableCommit]:
        """The step from a snapshot to one before it."""
        if not back:
            return
        (then, then_deletes), (now, now_deletes) = self._live(since), self._live(base)
        stay = {path: entry for path, entry in then.items() if path in now}
        constants = self._constants(entry.partition for entry in stay.values())
        one, other = (self._dead(stay, deletes, constants) for deletes in (then_deletes, now_deletes))
        rows = [
            {path: dead[path][0] if path in dead else NONE_DELETED for path in {*one, *other}} for dead in (one, other)
        ]
        ms = max((x.timestamp_ms for x in self._table.snapshot_log if x.snapshot_id == base), default=None)
        yield TableCommit(
            version=str(base),
            at=_at(self._table.last_updated_ms if ms is None else ms),
            added=self._uris(now.keys() - then.keys()),
            removed=self._uris(then.keys() - now.keys()),
            changed=self._uris(path for path in rows[0] if not np.array_equal(rows[0][path], rows[1][path])),
            data_change=any(self._changes_data(one) for one in back),
        )

    def _forward(
        self, line: Sequence[int], data: Mapping[str, ManifestEntry], deletes: Sequence[ManifestEntry]
    ) -> Iterator[TableCommit]:
        """The steps by snapshots that follow each other."""
        if not line:
            return
        lists = ahead(self._manifests, line, "manifests")
        own = [[one for one in found if one.snapshot == number] for number, found in zip(line, lists, strict=True)]
        self._files.entries(one for found in own for one in found)
        steps: dict[int, list[ManifestEntry]] = {
            number: [
                one
                for entries in self._files.entries(found)
                for one in entries
                if one.status in (ADDED, DELETED) and one.snapshot == number
            ]
            for number, found in zip(line, own, strict=True)
        }
        every = [one for entries in steps.values() for one in entries]
        files = {**{one.path: one for one in every if one.content == DATA}, **data}
        taken: dict[int, set[str]] = {}
        if any(one.content != DATA and one.status == ADDED for one in every):
            known = {(one.path, one.offset): one for one in (*every, *deletes) if one.content != DATA}
            constants = self._constants(one.partition for one in files.values())
            for path, (_, since) in self._dead(files, known.values(), constants).items():
                for sequence in np.unique(since).tolist():
                    taken.setdefault(sequence, set()).add(path)
        first: dict[str, int] = {}
        for one in every:
            first.setdefault(one.path, one.status)
        there = {path for path in files if first.get(path) != ADDED}
        if there and not self._snapshots[line[0]].parent_snapshot_id:  # pyiceberg's expiry makes first ones of others
            raise _Expired
        for _, group in groupby(line, key=lambda one: self._step(self._snapshots[one].timestamp_ms, one)):
            snapshots = [self._snapshots[number] for number in group]
            now = there.copy()
            for one in (one for snapshot in snapshots for one in steps[snapshot.snapshot_id] if one.content == DATA):
                (now.add if one.status == ADDED else now.discard)(one.path)
            changed = set().union(*(taken.get(one.sequence_number, ()) for one in snapshots))
            yield TableCommit(
                version=str(snapshots[-1].snapshot_id),
                at=_at(snapshots[-1].timestamp_ms),
                added=self._uris(now - there),
                removed=self._uris(there - now),
                changed=self._uris(changed & there & now),
                data_change=any(self._changes_data(one.snapshot_id) for one in snapshots),
            )
            there = now

    def _changes_data(self, snapshot: int) -> bool:
        summary = self._snapshots[snapshot].summary
        return summary is None or summary.operation.value != "replace"

    def _uris(self, paths: Iterable[str]) -> frozenset[str]:
        return frozenset(map(self._files.uri, paths))


class _Expired(Exception):
    """The history begins later."""


def _names(fields: Iterable[Any]) -> Iterator[tuple[int, list[str]]]:
    """What files without numbers of columns call them, by number."""
    for one in fields:
        if one.field_id is not None:
            yield one.field_id, one.names
        yield from _names(one.fields)
