"""Input by manifest: a list of files, for inputs too large to list.

A Parquet file with a column `uri` and optionally `version` (etag) and `size` in bytes, as a storage inventory gives
them; or a text file with a URI a line, followed by a tab and the version, and a tab and the size, where they are known.
With version and size nothing is looked up. An entry without a version is claimed once: as what is there at that time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import SpecError
from jobs.sources import Source
from workers.store import NotFound, StoreDenied, StoreError, open_filesystem, read_url, retrying, version_of

LOOKUPS_AT_ONCE = 32
PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Entry:
    """A line of a manifest."""

    uri: str
    version: str | None = None
    size: int | None = None


def read_entries(url: str) -> list[Entry]:
    """The manifest's entries, each URI absolute. Raises NotFound, StoreError, StoreDenied, SpecError."""
    data = read_url(url)
    entries = _parquet_entries(data, url) if data[:4] == PARQUET_MAGIC else _text_entries(data, url)
    folder = url.rpartition("/")[0]
    return [Entry(_absolute(e.uri, folder), e.version and e.version.strip('"'), e.size) for e in entries]


def _parquet_entries(data: bytes, url: str) -> list[Entry]:
    try:
        table = pq.read_table(pa.BufferReader(data))
        if "uri" not in table.column_names:
            raise SpecError(
                f"input.manifest: {url} has no column 'uri'; it has {', '.join(table.column_names)}",
                "name its columns uri and, where they are known, version and size",
            )
        uris = table.column("uri").cast(pa.string()).to_pylist()
        versions, sizes = (
            table.column(name).cast(kind).to_pylist() if name in table.column_names else [None] * len(uris)
            for name, kind in (("version", pa.string()), ("size", pa.int64()))
        )
    except pa.ArrowException as error:
        raise SpecError(
            f"input.manifest: {url}: {error}", "the columns are uri, version (text), size (bytes)"
        ) from error
    if (row := next((i for i, uri in enumerate(uris) if not uri), None)) is not None:
        raise SpecError(f"input.manifest: {url}: row {row} has no uri")
    return [Entry(*entry) for entry in zip(uris, versions, sizes, strict=True)]


def _text_entries(data: bytes, url: str) -> list[Entry]:
    entries = []
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise SpecError(f"input.manifest: {url} is neither Parquet nor text in UTF-8: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        uri, version, size, *rest = [*line.split("\t"), "", ""][: max(3, line.count("\t") + 1)]
        if rest or not uri.strip() or (size and not size.strip().isdigit()):
            raise SpecError(f"input.manifest: {url} line {number} is not URI, or URI, version and size apart by tabs")
        entries.append(Entry(uri.strip(), version.strip() or None, int(size) if size else None))
    return entries


def _absolute(uri: str, folder: str) -> str:
    """As a listing would name it, so that a file is the same source either way."""
    scheme, separator, rest = uri.partition("://")
    if separator and scheme not in ("file", "local"):
        return uri
    path = rest if separator else uri
    if not separator and not path.startswith("/") and "://" in folder:
        return f"{folder}/{path}"
    return str(Path(folder, path).expanduser().absolute())


def resolve(entries: Sequence[Entry], latest: Mapping[str, str]) -> tuple[list[Source], dict[str, str]]:
    """Entries as sources; and those that cannot be pinned to a version, each with the reason.

    `latest` are the claimed versions by URI: an entry that does not name a version and was claimed is that source.
    """
    pinned: dict[str, Source] = {}
    unknown: dict[str, Entry] = {}
    for entry in entries:
        claimed = latest.get(entry.uri)
        if entry.version is not None and entry.size is not None:
            pinned[entry.uri] = Source(entry.uri, entry.size, entry.version)
        elif claimed is not None and entry.version in (None, claimed):
            pinned[entry.uri] = Source(entry.uri, entry.size or 0, claimed)
        else:
            unknown[entry.uri] = entry
    with ThreadPoolExecutor(LOOKUPS_AT_ONCE, "manifest") as pool:
        looked_up = dict(zip(unknown, pool.map(_look_up, unknown.values()), strict=True))
    pinned |= {uri: found for uri, found in looked_up.items() if isinstance(found, Source)}
    return list(pinned.values()), {uri: reason for uri, reason in looked_up.items() if isinstance(reason, str)}


def _look_up(entry: Entry) -> Source | str:
    try:
        fs, path = open_filesystem(entry.uri)
        info = retrying(lambda: fs.info(path), entry.uri)
    except NotFound:
        return "the manifest names it, and it does not exist"
    except (StoreDenied, StoreError) as error:
        return str(error)
    there = Source(entry.uri, int(info["size"]), version_of(info))
    if info["type"] != "file":
        return "the manifest names it, and it is a folder"
    if entry.version not in (None, there.version) or entry.size not in (None, there.size):
        return (
            f"the manifest says version {entry.version}, size {entry.size}; "
            f"there is version {there.version}, size {there.size}"
        )
    return there
