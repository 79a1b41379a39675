"""Input by manifest: a list of files, for inputs too large to list.

Its forms are in docs/INPUT.md. With version and size nothing is looked up, unless the file was claimed in another
version; but of the files that are new a few are, because versions that are not the store's would make every row a gone
one. An entry without a version is claimed once: as what is there at that time.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote_plus

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from jobs.errors import SpecError
from jobs.input.passed_over import COMMENT, OLD_VERSION, PassedOver
from jobs.ledger.plans import Source
from workers.redaction import credential_in, shown
from workers.source.uris import STORES, Refused, normalise, usual
from workers.storage.errors import NotFound, StoreDenied, StoreError
from workers.storage.filesystems import info_of, is_local, open_filesystem, read_url, version_of
from workers.storage.lookahead import ahead

_LOOKUPS_AT_ONCE = 32
_COMPARED = 16
"""Of the new files that a manifest names with version and size, so many are looked up all the same."""
_URI_NAMES = (
    *("uri", "url", "path", "file", "image", "s3_uri", "gcs_uri", "content", "gcsuri", "imagegcsuri", "source-ref"),
    *("image_uri", "image_url", "image_path", "file_path", "filepath", "file_name", "filename", "location"),
)
"""Of the column with URIs, in lower case: as Vertex AI, SageMaker and others call it. The first two go first."""
_VERSION_NAMES = ("version", "etag", "e_tag")
_COLUMNS = {*_URI_NAMES, *_VERSION_NAMES, "size", "bucket", "key", "is_latest", "is_delete_marker"}
_NAME = re.compile(r"[\w -]*")  # of a column; pandas' index has none


@dataclass(frozen=True)
class Entry:
    """A line of a manifest."""

    uri: str
    version: str | None = None
    size: int | None = None


def read_entries(url: str, passed: PassedOver | None = None) -> list[Entry]:
    """The manifest's entries, each URI absolute; those of what is not there any more are `passed` over. Raises
    NotFound, StoreError, StoreDenied, SpecError."""
    if is_local(url) and info_of(url)["type"] == "directory":
        raise SpecError(f"input.manifest: {url} is a folder", "name the list itself; a folder of data is input.uri")
    data, passed = read_url(url), PassedOver() if passed is None else passed
    try:
        table = _table(data, url)
        entries = _text_entries(data, url, passed) if table is None else _table_entries(table, url, passed)
    except (pa.ArrowException, KeyError) as error:  # KeyError: a column is there twice
        json = 'write a JSON object a line, as {"uri": "a.jpg"}'
        way_out = json if "JSON" in str(error) else "the columns are uri, version (text), size (bytes), each once"
        raise SpecError(f"input.manifest: {url}: {error.args[0]}", way_out) from error
    folder = url.rpartition("/")[0]
    folder = open_filesystem(folder)[1] if is_local(url) else usual(folder)
    try:
        # Before the check, so that file:/etc is no relative name. Azure's stay: earlier plans claim them as they stand.
        entries = [e if e.uri.startswith(("abfs:", "abfss:")) else replace(e, uri=usual(e.uri)) for e in entries]
        for entry in entries:
            _check(entry.uri, url)
        return [Entry(_absolute(e.uri, folder), e.version and e.version.strip('"'), e.size) for e in entries]
    except Refused as error:
        raise SpecError(f"input.manifest: {url}: {error}", "name the file by its whole URL") from error


def _check(uri: str, manifest: str) -> None:
    """A manifest says which files of the stores are input; it must not reach further. Raises SpecError.

    It may name any bucket that the job's credentials open, as `input.uri` may; but the web never, and files of this
    machine only when it is one of them itself.
    """
    reason = None
    if kind := credential_in(uri):
        reason = f"the URL carries {kind}, which would end up in the ledger"
    elif not is_local(uri) and uri.partition("://")[0].lower() not in STORES:
        reason = f"a manifest lists files of {', '.join(sorted(STORES))}"
    elif is_local(uri) and ("://" in uri or uri.startswith("/")) and not is_local(manifest):
        reason = "a manifest in a store cannot name files of the machine that reads it"
    if reason:
        raise SpecError(
            f"input.manifest: {manifest} names {shown(uri)}: {reason}",
            "write the manifest without it, or copy the file",
        )


def _table(data: bytes, url: str) -> pa.Table | None:
    """What Parquet, JSON Lines or CSV with a header hold of columns that are known; None for lines of text."""
    if data[:4] == b"PAR1":
        file = pq.ParquetFile(pa.BufferReader(data))
        known = [name for name in file.schema_arrow.names if name.lower() in _COLUMNS]
        return file.read(known) if known else file.schema_arrow.empty_table()
    first = data.removeprefix(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0].decode("utf-8", "replace").strip()
    if first.startswith("{"):
        return pa.json.read_json(pa.BufferReader(data))
    if re.match(r"\[\s*([\[{\"]|$)", first):
        raise SpecError(f"input.manifest: {url} is a JSON array", "write an object a line, as `jq -c '.[]'` does")
    cut = {mark: [name.strip().strip('"') for name in first.split(mark)] for mark in ",;\t"}
    mark = next((mark for mark, header in cut.items() if header[1:] and {*map(str.lower, header)} & _COLUMNS), ",")
    header = cut[mark]
    names = {name.lower() for name in header} & _COLUMNS
    if not all(map(_NAME.fullmatch, header)):
        if not first.startswith('"') or len(header) == 1:
            return None
        raise SpecError(
            f"input.manifest: {url} is CSV without a line that names its columns",
            "have the inventory written as Parquet, or put a line such as bucket,key,size,e_tag in front",
        )
    if not names and len(header) == 1:
        return None
    if len(names) == 1 and (mark == "\t" or len(header) == 1) and not url.lower().endswith((".csv", ".tsv")):
        fs, path = open_filesystem(url)
        if fs.exists(f"{path.rpartition('/')[0]}/{header[0]}"):  # of a text the first file, called like a column
            return None
    types = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=True)
    if not names:
        return pa.table({name: [] for name in header})
    table = pa.csv.read_csv(pa.BufferReader(data), None, pa.csv.ParseOptions(delimiter=mark), types)
    if names >= {"bucket", "key"}:  # inventories of S3 escape keys in CSV, and nowhere else
        place = next(place for place, name in enumerate(header) if name.lower() == "key")
        keys = [key and unquote_plus(key) for key in table.column(place).to_pylist()]
        table = table.set_column(place, "key", pa.array(keys, pa.string()))
    return table


def _table_entries(table: pa.Table, url: str, passed: PassedOver) -> list[Entry]:
    """Of the column `uri`, of those of an inventory of S3, or of one that is called as one of URIs is."""
    names = {name.lower(): name for name in table.column_names}
    if "uri" not in names and {"bucket", "key"} <= names.keys():
        key = table[names["key"]].cast(pa.string())
        uris = pc.binary_join_element_wise("s3:/", table[names["bucket"]].cast(pa.string()), key, "/")
    else:
        known = [name for name in table.column_names if name.lower() in _URI_NAMES]
        exact = ([name for name in known if name.lower() == one] for one in _URI_NAMES[:2])
        found = next(filter(None, exact), known)
        if len(found) != 1:
            has = f"several columns that may be 'uri': {', '.join(found)}" if found else "no column 'uri'"
            has += f"; it has {', '.join(map(repr, table.column_names))}"
            raise SpecError(f"input.manifest: {url} has {has}", "name the right column uri (others: version, size)")
        uris = table[found[0]].cast(pa.string())
    now = pa.chunked_array([np.ones(len(table), bool)]) if len(table) else pa.chunked_array([], pa.bool_())
    for name, gone in (("is_latest", "false"), ("is_delete_marker", "true")):
        if name in names:
            flag = pc.utf8_lower(table[names[name]].cast(pa.string()))
            now = pc.and_(now, pc.fill_null(pc.not_equal(flag, gone), True))
    for uri in uris.filter(pc.invert(now)).to_pylist():
        passed.add(OLD_VERSION, str(uri))
    version = next((table[names[name]].cast(pa.string()) for name in _VERSION_NAMES if name in names), None)
    size = table[names["size"]].cast(pa.int64()) if "size" in names else None
    columns = [None if column is None else column.filter(now).to_pylist() for column in (uris, version, size)]
    if (row := next((i for i, uri in enumerate(columns[0] or ()) if not uri), None)) is not None:
        raise SpecError(f"input.manifest: {url}: row {row} has no uri")
    nothing = [None] * len(columns[0] or ())
    return [Entry(*entry) for entry in zip(*(column or nothing for column in columns), strict=True)]


def _text_entries(data: bytes, url: str, passed: PassedOver) -> list[Entry]:
    entries = []
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        way_out = "unpack it, or write it as text or CSV in UTF-8"
        raise SpecError(f"input.manifest: {url} is neither Parquet nor text in UTF-8: {error}", way_out) from error
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            passed.add(COMMENT, shown(line))
        if not line.strip() or line.startswith("#"):
            continue
        uri, version, size, *rest = [*line.split("\t"), "", ""][: max(3, line.count("\t") + 1)]
        if rest or not uri.strip() or (size and not size.strip().isdigit()):
            raise SpecError(f"input.manifest: {url} line {number} is not URI, or URI, version and size apart by tabs")
        whole = "://" in uri or uri.lstrip().startswith("/")  # else white space in front is of the name
        uri = uri.strip() if whole else uri.rstrip()
        entries.append(Entry(uri, version.strip() or None, int(size) if size else None))
    return entries


def _absolute(uri: str, folder: str) -> str:
    """As a listing would name it, so that a file is the same source either way."""
    if not is_local(uri):
        return uri
    path = uri.partition("://")[2] if "://" in uri else uri
    return normalise(path if path.startswith("/") else f"{folder}/{path}")


def pin_entries(
    entries: Sequence[Entry], latest: Mapping[str, str], doubtful: Collection[str] = (), *, manifest: str = ""
) -> tuple[list[Source], dict[str, str]]:
    """Entries as sources; and those that cannot be pinned to a version, each with the reason.

    `latest` are the claimed versions by URI: an entry that does not name a version and was claimed is that source.
    What is there is looked up where the manifest may be wrong: of `doubtful` URIs, of those that it names in several
    versions, of those that were claimed in another version, because a list may be older than the last claim, and of a
    few that are new. Where none of these few is as the manifest says, no new one is taken at its word: that is told
    once, of the `manifest` itself.
    """
    pinned: dict[str, Source] = {}
    unknown: dict[str, list[Entry]] = {}
    for entry in entries:
        source = None if entry.uri in doubtful else _at_its_word(entry, latest.get(entry.uri))
        if source is None:
            unknown.setdefault(entry.uri, []).append(entry)
        elif (first := pinned.setdefault(entry.uri, source)) != source:
            unknown.setdefault(entry.uri, [Entry(first.uri, first.version, first.size)]).append(entry)
    new = [uri for uri in pinned if uri not in latest and uri not in unknown]
    compared = {uri: pinned[uri] for uri in new[:: -(-len(new) // _COMPARED) or 1]}
    unknown |= {uri: [Entry(uri, said.version, said.size)] for uri, said in compared.items()}
    found = ahead(lambda uri: _look_up(unknown[uri], latest.get(uri)), unknown, "manifest", _LOOKUPS_AT_ONCE)
    looked_up = dict(zip(unknown, found, strict=True))
    wrong: dict[str, str] = {uri: reason for uri, reason in looked_up.items() if isinstance(reason, str)}
    if len(new) > 1 and wrong.keys() >= compared.keys():
        uri = next(iter(compared))
        why = (
            f"of {len(new):,} new files {len(compared):,} were compared with the store, and none is as the manifest "
            f"says, as {uri}: {wrong[uri]}"
        )
        wrong = {manifest: why} | {uri: reason for uri, reason in wrong.items() if uri not in compared}
        pinned = {uri: source for uri, source in pinned.items() if uri in latest}
    sources = [source for uri, source in pinned.items() if uri not in unknown]
    sources += [source for source in looked_up.values() if isinstance(source, Source)]
    return sources, wrong


def _at_its_word(entry: Entry, claimed: str | None) -> Source | None:
    """The source that an entry names, where nothing needs to be looked up."""
    if claimed is not None and entry.version in (None, claimed):
        return Source(entry.uri, entry.size or 0, claimed)
    if claimed is None and entry.version is not None and entry.size is not None and "\0" not in entry.uri:
        return Source(entry.uri, entry.size, entry.version)
    return None


def source_at(uri: str, *versions: str | None) -> Source | None:
    """The file that there is now, in the first of these versions that is right; None where there is no file.

    Raises StoreError, StoreDenied.
    """
    try:
        info = info_of(uri)
    except NotFound:
        return None
    right = next((v for v in versions if v is not None and version_of(info, v) == v), "")
    return Source(uri, int(info["size"]), version_of(info, right)) if info["type"] == "file" else None


def _look_up(entries: Sequence[Entry], claimed: str | None) -> Source | str | None:
    """What is at the URI of the entries; None for what was scored and is not there any more; or what is wrong."""
    try:
        there = source_at(entries[0].uri, claimed, *(entry.version for entry in entries))
    except (StoreDenied, StoreError, ValueError) as error:  # ValueError: a zero byte in the name
        return str(error)
    if there is None:
        header = "; CSV needs a line in front that names its columns, parted by , ; or tabs"
        said = f"the manifest names it, and there is no such file{header if {*entries[0].uri} & {*',;|'} else ''}"
        return said if claimed is None else None
    if claimed == there.version or any(
        e.version in (None, there.version) and e.size in (None, there.size) for e in entries
    ):
        return there
    said = " and ".join(f"version {entry.version}, size {entry.size}" for entry in entries)
    return (
        f"the manifest says {said}; there is version {there.version}, size {there.size}; "
        "write what the store lists (for S3 the ETag), or leave both out"
    )
