"""Data and delete files of an Iceberg table, as its manifests name them, read with fsspec as everything else is."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jobs.errors import SpecError
from workers.storage.filesystems import full_url, open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

DATA, POSITION_DELETES, EQUALITY_DELETES = 0, 1, 2
EXISTING, ADDED, DELETED = 0, 1, 2
_ENTRY = (0, 1, 3, 134, 100, 101, 102, 103, 104, 131, 135, 143, 144, 145)
"""Field ids of the specification, in the order of what `_entry` takes."""
_MANIFEST = (500, 502, 517, 515, 503)
_ALIASES = {"s3n": "s3", "wasb": "abfs", "wasbs": "abfss"}


class ManifestEntry(NamedTuple):
    """A file in a manifest, and what a snapshot did with it."""

    status: int
    snapshot: int
    sequence: int
    content: int
    path: str
    """As the manifest has it, by which position deletes name it."""
    format: str
    partition: tuple[int, tuple[object, ...]]
    """Number of the partition spec, and the values: whole numbers for dates and times, as Avro has them."""
    rows: int
    size: int
    encrypted: bool
    equality: tuple[int, ...]
    """Numbers of the columns that an equality delete compares."""
    referenced: str | None
    """The one data file that a position delete or deletion vector is about, where it says so."""
    offset: int
    """Of a deletion vector in its file."""
    length: int


class Manifest(NamedTuple):
    path: str
    spec: int
    content: int
    sequence: int
    snapshot: int
    """That added it."""


class StoreFiles:
    """Files of any store by fsspec and its configuration, as pyiceberg wants them (`py-io-impl`), or as bytes."""

    def __init__(self, properties: Mapping[str, str] | None = None) -> None:
        self.properties = properties or {}
        self._roots: dict[str, tuple[Any, str, str]] = {}
        self._readers: dict[str, tuple[Any, list[Any]]] = {}
        self._manifests: dict[str, list[ManifestEntry]] = {}

    def new_input(self, location: str) -> Any:
        return _Input(self, location)

    def uri(self, path: str) -> str:
        """What a table calls a file, as a source's URI."""
        path = re.sub("^file:/+", "/", path)
        if "://" not in path:
            return os.path.abspath(path)  # noqa: PTH100  (as for other sources)
        _, root, above = self._root(path)
        return above + path[len(root) :]

    def open_path(self, path: str) -> tuple[Any, str]:
        """The file system, and the path in it."""
        uri = self.uri(path)
        if "://" not in uri:
            return open_filesystem(uri)
        fs = self._root(path)[0]
        return fs, fs._strip_protocol(uri)

    def read(self, path: str) -> bytes:
        """A whole file. Raises NotFound, StoreError, StoreDenied."""
        fs, inner = self.open_path(path)
        return bytes(retrying(lambda: fs.cat_file(inner), path))

    def _root(self, path: str) -> tuple[Any, str, str]:
        """Of a bucket: its file system, how the table begins its paths, and how URIs begin."""
        scheme, _, rest = path.partition("://")
        root = f"{scheme}://{rest.partition('/')[0]}/"
        if root not in self._roots:
            fs, inner = open_filesystem(f"{_ALIASES.get(scheme, scheme)}{root.removeprefix(scheme)}x")
            self._roots[root] = fs, root, full_url(fs, inner)[:-1]
        return self._roots[root]

    def manifests(self, manifest_list: str) -> list[Manifest]:
        """The manifests of a snapshot."""
        found = (Manifest(*record) for record in self._records(self.read(manifest_list), _MANIFEST))
        return [one._replace(content=one.content or 0, sequence=one.sequence or 0) for one in found]

    def entries(self, manifests: Iterable[Manifest]) -> Sequence[list[ManifestEntry]]:
        """What is in each of the manifests; each is read once. Raises NotFound, StoreError, StoreDenied."""
        manifests = list(manifests)
        new = list({one.path: one for one in manifests if one.path not in self._manifests}.values())
        for one, data in zip(new, ahead(lambda one: self.read(one.path), new, "manifests"), strict=True):
            self._manifests[one.path] = [_entry(record, one) for record in self._records(data, _ENTRY)]
        return [self._manifests[one.path] for one in manifests]

    def _records(self, data: bytes, wanted: tuple[int, ...]) -> Iterable[list[Any]]:
        """The wanted fields of each record of an Avro file. Schemas are resolved once: tables have thousands of files.

        Everything is decoded: pyiceberg cannot pass over lists.
        """
        from pyiceberg.avro.decoder import new_decoder
        from pyiceberg.avro.file import META_SCHEMA, SYNC_SIZE, AvroFileHeader
        from pyiceberg.avro.resolver import construct_reader

        decoder = new_decoder(data)
        if "" not in self._readers:
            self._readers[""] = construct_reader(META_SCHEMA, {-1: AvroFileHeader}), []
        header = self._readers[""][0].read(decoder)
        if (text := header.meta.get("avro.schema", "")) not in self._readers:
            schema = header.get_schema()
            at: dict[int, tuple[int, ...]] = {}
            for number, field in enumerate(schema.fields):
                at[field.field_id] = (number,)
                if field.field_id == 2:  # data_file
                    at |= {one.field_id: (number, inner) for inner, one in enumerate(field.field_type.fields)}
            self._readers[text] = construct_reader(schema), [at.get(field_id) for field_id in wanted]
        reader, places = self._readers[text]
        codec = header.compression_codec()
        while decoder.tell() < len(data):
            count, block = decoder.read_int(), decoder.read_bytes()
            records = new_decoder(codec.decompress(block) if codec else block)
            for _ in range(count):
                record = reader.read(records)
                yield [None if not p else record[p[0]] if len(p) == 1 else record[p[0]][p[1]] for p in places]
            if decoder.read(SYNC_SIZE) != header.sync:
                raise ValueError("a damaged Avro file")


class _Input:
    def __init__(self, files: StoreFiles, location: str) -> None:
        self._files, self.location = files, location

    def open(self, seekable: bool = True) -> io.BytesIO:  # noqa: ARG002  (pyiceberg's)
        return io.BytesIO(self._files.read(self.location))


def _entry(record: Sequence[Any], of: Manifest) -> ManifestEntry:
    status, snapshot, sequence, content, path, format, partition, rows, size, key, equality, about, offset, length = (
        record
    )
    return ManifestEntry(
        status=status,
        snapshot=of.snapshot if snapshot is None else snapshot,
        sequence=of.sequence if sequence is None else sequence,
        content=content or 0,
        path=path,
        format=format.upper(),
        partition=(of.spec, tuple(partition[number] for number in range(len(partition)))),
        rows=rows,
        size=size,
        encrypted=key is not None,
        equality=tuple(ids or ()),
        referenced=about,
        offset=offset or 0,
        length=length or 0,
    )


def refuse_unreadable(entries: Iterable[ManifestEntry]) -> None:
    """Raises SpecError where a file is of a format that is not read here, or encrypted."""
    for one in entries:
        if one.encrypted:
            raise SpecError(
                f"{one.path} is encrypted by the table's own keys, which are not read here",
                "copy the table into one without `encryption.key-id`, or write plain Parquet files",
            )
        if one.format not in (("PARQUET",) if one.content != POSITION_DELETES else ("PARQUET", "PUFFIN")):
            what = ("data", "position delete", "equality delete")[one.content]
            raise SpecError(
                f"{one.path}: a {what} file in {one.format}, of which only Parquet is read",
                "set the table property write.format.default to parquet and rewrite it "
                "(CALL system.rewrite_data_files(table => …, options => map('rewrite-all', 'true')))",
            )
