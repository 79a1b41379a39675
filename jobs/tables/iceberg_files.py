"""Data and delete files of an Iceberg table, as its manifests name them, read with fsspec as everything else is."""

from __future__ import annotations

import io
import json
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, NamedTuple

from fsspec.implementations.local import LocalFileSystem

from jobs.errors import SpecError
from workers.storage.filesystems import full_url, open_filesystem
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

DATA, POSITION_DELETES, EQUALITY_DELETES = 0, 1, 2
ADDED, DELETED = 1, 2
_DATA_FILE = 2
_ALIASES = {"s3n": "s3", "wasb": "abfs", "wasbs": "abfss"}

Partition = tuple[int, tuple[object, ...]]
"""Number of the partition spec, and its values: of dates and times the whole numbers that Avro has."""


class TableManifest(NamedTuple):
    path: str
    spec: int
    snapshot: int
    """That added it."""
    sequence: int


class ManifestEntry(NamedTuple):
    """A file, and what a snapshot did with it."""

    status: int
    snapshot: int
    sequence: int
    content: int
    path: str
    """As the table has it, by which position deletes name it."""
    format: str
    partition: Partition
    rows: int
    size: int
    key: bytes | None
    """Where it is encrypted."""
    columns: Sequence[int] | None
    """Numbers of those that an equality delete compares."""
    about: str | None
    """The one data file whose rows a position delete names, where that is said."""
    offset: int | None
    """Of a deletion vector in its file."""
    length: int | None


_MANIFEST = (500, 502, 503, 515)
_ENTRY = (0, 1, 3, 134, 100, 101, 102, 103, 104, 131, 135, 143, 144, 145)
"""Numbers that the specification gives to these fields."""


class StoreFiles:
    """A table's files on any store that fsspec reads: as bytes; or as pyiceberg wants them (`py-io-impl`)."""

    def __init__(self, properties: Mapping[str, str] | None = None) -> None:
        self.properties = properties or {}
        self._roots: dict[str, tuple[Any, str]] = {}
        self._entries: dict[str, list[ManifestEntry]] = {}

    def uri(self, path: str) -> str:
        """What a table calls a file, as sources are named."""
        scheme, host, key = _parts(path)
        return self._root(scheme, host)[1] + key if scheme else os.path.abspath(key)  # noqa: PTH100

    def place(self, path: str) -> tuple[Any, str]:
        """The file system of a file, and the path in it."""
        scheme, host, key = _parts(path)
        fs = self._root(scheme, host)[0] if scheme else None
        return (fs, fs._strip_protocol(f"{scheme}://{host}{key}")) if fs is not None else open_filesystem(key)

    def _root(self, scheme: str, host: str) -> tuple[Any, str]:
        """The file system of a bucket, and how URIs in it begin: opened once, not for every file."""
        if (root := f"{scheme}://{host}") not in self._roots:
            fs, inner = open_filesystem(f"{root}/x")
            self._roots[root] = fs, full_url(fs, inner)[: -len("/x")]
        return self._roots[root]

    def read(self, path: str) -> bytes:
        """A whole file. Raises NotFound, StoreError, StoreDenied."""
        fs, inner = self.place(path)
        return bytes(retrying(lambda: fs.cat_file(inner), path))

    def write(self, path: str, data: bytes) -> None:
        """A whole file, in place of what is there, never half of it. Raises StoreError, StoreDenied."""
        fs, inner = self.place(path)
        if not isinstance(fs, LocalFileSystem):
            retrying(lambda: fs.pipe_file(inner, data), path)
            return

        def put() -> None:
            fs.makedirs(os.path.dirname(inner), exist_ok=True)  # noqa: PTH120
            with open(temporary := f"{inner}.{uuid.uuid4().hex}", "xb") as file:  # noqa: PTH123
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, inner)  # noqa: PTH105

        retrying(put, path)

    def new_input(self, location: str) -> Any:
        return SimpleNamespace(location=location, open=lambda seekable=True: io.BytesIO(self.read(location)))  # noqa: ARG005

    def new_output(self, location: str) -> Any:
        return _Output(self, location)

    def manifests(self, manifest_list: str) -> list[TableManifest]:
        """Of a snapshot. Raises SpecError, NotFound, StoreError, StoreDenied."""
        records = _records(manifest_list, self.read(manifest_list), _MANIFEST)
        # There are no sequence numbers in the first format.
        return [TableManifest(path, spec, snapshot, number or 0) for path, spec, snapshot, number in records]

    def entries(self, manifests: Iterable[TableManifest]) -> list[ManifestEntry]:
        """Of all these manifests, each of which is read once. Raises SpecError, NotFound, StoreError, StoreDenied."""
        manifests = list(manifests)
        new = list({one.path: one for one in manifests if one.path not in self._entries}.values())
        for of, data in zip(new, ahead(lambda one: self.read(one.path), new, "manifests"), strict=True):
            self._entries[of.path] = [
                one._replace(
                    snapshot=of.snapshot if one.snapshot is None else one.snapshot,
                    sequence=of.sequence if one.sequence is None else one.sequence,
                    content=one.content or DATA,
                    format=one.format.upper(),
                    partition=(of.spec, (*one.partition,)),
                )
                for one in map(ManifestEntry._make, _records(of.path, data, _ENTRY))
            ]
        return [entry for one in manifests for entry in self._entries[one.path]]


def _records(path: str, data: bytes, numbers: Sequence[int]) -> list[list[Any]]:
    """Fields of each record of an Avro file, by number. Raises SpecError, also for a file that is cut short, which
    pyiceberg's own reader takes for a whole one."""
    from pyiceberg.avro.decoder import new_decoder
    from pyiceberg.avro.file import SYNC_SIZE

    decoder, found = new_decoder(data), list[list[Any]]()
    try:
        header = _reader("")[0].read(decoder)
        reader, outer, inner = _reader(header.meta["avro.schema"])
        codec = header.compression_codec()
        while decoder.tell() < len(data):
            count, block = decoder.read_int(), decoder.read_bytes()
            block_decoder = new_decoder(codec.decompress(block) if codec else block)
            for _ in range(count):
                record = dict(zip(outer, reader.read(block_decoder), strict=True))
                record |= zip(inner, record.get(_DATA_FILE, ()), strict=True)
                found.append([record.get(number) for number in numbers])
            if decoder.read(SYNC_SIZE) != header.sync:
                raise ValueError("the end of a block is not one")
    except Exception as error:  # damaged bytes raise anything
        raise SpecError(f"{path} is no whole Avro file ({error!r})", "roll the table back") from error
    return found


@lru_cache(maxsize=256)
def _reader(schema: str) -> tuple[Any, Sequence[int], Sequence[int]]:
    """Of records, or of a file's header (""); and the numbers of their fields, and of those of a data file in them.

    To make one takes milliseconds, and a table may have a manifest for every commit."""
    from pyiceberg.avro.file import META_SCHEMA, AvroFileHeader
    from pyiceberg.avro.resolver import construct_reader
    from pyiceberg.utils.schema_conversion import AvroSchemaConversion

    if not schema:
        return construct_reader(META_SCHEMA, {-1: AvroFileHeader}), (), ()
    read = AvroSchemaConversion().avro_to_iceberg(json.loads(schema))
    fields = {one.field_id: one.field_type for one in read.fields}
    inner = fields[_DATA_FILE].fields if _DATA_FILE in fields else ()
    return construct_reader(read), [*fields], [one.field_id for one in inner]


def _parts(path: str) -> tuple[str, str, str]:
    """Scheme, bucket, and the rest; of a local file the path alone."""
    scheme, there, rest = path.partition("://")
    if not there or scheme == "file":
        return "", "", re.sub("^file:/+", "/", path)
    host, slash, key = rest.partition("/")
    return _ALIASES.get(scheme, scheme), host, slash + key


class _Output:
    def __init__(self, files: StoreFiles, location: str) -> None:
        self._files, self.location, self._size = files, location, 0

    def create(self, overwrite: bool = False) -> io.BytesIO:  # noqa: ARG002  (pyiceberg's: every name is a new one)
        class Written(io.BytesIO):
            def close(stream) -> None:
                if not stream.closed:
                    self._size = len(data := stream.getvalue())
                    self._files.write(self.location, data)
                super().close()

        return Written()

    def __len__(self) -> int:
        return self._size


def refuse_unreadable(entries: Iterable[ManifestEntry]) -> None:
    """Raises SpecError where a file is encrypted, or of a format that is not read here."""
    for one in entries:
        if one.key is not None:
            raise SpecError(f"{one.path} is encrypted by the table, which is not read", "copy it into a plain table")
        if one.format != "PARQUET" and (one.format != "PUFFIN" or one.content != POSITION_DELETES):
            what = ("data", "position deletes", "equality deletes")[one.content]
            raise SpecError(
                f"{one.path}: {what} in {one.format}, of which only Parquet is read",
                "set write.format.default of the table to parquet and rewrite it (CALL system.rewrite_data_files("
                "table => …, options => map('rewrite-all', 'true')))",
            )
