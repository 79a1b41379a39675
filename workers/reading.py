"""From a shard to its rows: encoded images and key columns, in input order, read ahead within a byte bound.

Storage faults go up as StoreError and are retried elsewhere; they never become a row. What does become a row is a
cell that is null, a URI that points nowhere or outside the allowed roots. A source that vanished or changed since it
was claimed yields no rows: it is reported as gone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import pyarrow as pa

from workers import uris
from workers.contract import InputSpec, Shard, Slice
from workers.decoding import BadImage, ErrorCode
from workers.parquet import InputUnreadable, chunk_sizes, image_kind, open_parquet, opened
from workers.storage_errors import Cause, cause_of
from workers.store import NotFound, StoreError, open_filesystem, retrying, version_of

WHOLE_CHUNK_BYTES = 128 * 2**20
"""Column chunks up to this size are read in one request; larger ones are streamed, BUFFER_BYTES at a time."""
BUFFER_BYTES = 8 * 2**20
BLOCK_BYTES = 16 * 2**20
FETCHES = 16
"""Requests in flight when each image is an object of its own. Their threads wait; they do not compute."""

ImageCell: TypeAlias = pa.Buffer | bytes | BadImage


class SourceChanged(Exception):
    """The source was replaced while it was read. The next attempt finds it gone and says so."""


@dataclass(frozen=True)
class RowBlock:
    """Consecutive rows of one slice."""

    slice_index: int
    row_start: int
    images: Sequence[ImageCell]
    keys: pa.Table | None
    bytes_read: int


@dataclass
class ShardReader:
    """Reads one shard once. `gone` and `read_s` are complete when `blocks()` has ended."""

    shard: Shard
    input: InputSpec
    gone: set[int] = field(default_factory=set)
    """Indices of slices whose source vanished or changed."""
    read_s: float = 0.0

    def blocks(self) -> Iterator[RowBlock]:
        """Rows in the order of the shard's slices. Raises StoreError, StoreDenied, InputUnreadable, SourceChanged."""
        blocks = self._image_blocks() if self.input.format == "images" else self._parquet_blocks()
        while True:
            started = time.perf_counter()
            block = next(blocks, None)
            self.read_s += time.perf_counter() - started
            if block is None:
                return
            yield block

    def _parquet_blocks(self) -> Iterator[RowBlock]:
        index = 0
        slices = self.shard.slices
        while index < len(slices):
            last = index
            while last < len(slices) and (slices[last].uri, slices[last].version) == _identity(slices[index]):
                last += 1
            yield from self._source_blocks(range(index, last))
            index = last

    def _source_blocks(self, indices: range) -> Iterator[RowBlock]:
        """The slices of one Parquet file, which is opened once."""
        source = self.shard.slices[indices[0]]
        fs, path = open_filesystem(source.uri)
        if not _unchanged(fs, path, source):
            self.gone.update(indices)
            return
        try:
            file = opened(fs, path)
        except NotFound as error:
            raise SourceChanged(f"{source.uri} vanished before it was read") from error
        with file:
            try:
                parquet = open_parquet(file)
                for index in indices:
                    yield from _slice_blocks(file, parquet, index, self.shard.slices[index], self.input)
            except Exception as error:
                # Arrow reports a damaged page as OSError; whether storage failed only the file itself can tell.
                if file.fault is not None and cause_of(file.fault) is not Cause.OTHER:
                    raise StoreError(f"cannot read {source.uri}: {error}") from error
                if not isinstance(error, pa.ArrowException | OSError):
                    raise
                if not _unchanged(fs, path, source):
                    raise SourceChanged(f"{source.uri} changed while it was read") from error
                raise InputUnreadable(f"{source.uri}: {error}") from error
        if not _unchanged(fs, path, source):
            raise SourceChanged(f"{source.uri} changed while it was read")

    def _image_blocks(self) -> Iterator[RowBlock]:
        """One file an image; a block is one file, so that order and `gone` stay simple."""
        fs, _ = open_filesystem(self.shard.slices[0].uri)
        with ThreadPoolExecutor(FETCHES, "fetch") as pool:
            ahead: list[Any] = []
            for index, source in enumerate(self.shard.slices):
                ahead.append(pool.submit(_fetch_pinned, fs, source))
                if len(ahead) == FETCHES:
                    yield from self._fetched(index - FETCHES + 1, ahead.pop(0).result())
            for offset, future in enumerate(ahead):
                yield from self._fetched(len(self.shard.slices) - len(ahead) + offset, future.result())

    def _fetched(self, index: int, data: bytes | None) -> Iterator[RowBlock]:
        if data is None:
            self.gone.add(index)
        else:
            yield RowBlock(index, 0, [data], None, len(data))


def _identity(source: Slice) -> tuple[str, str]:
    return source.uri, source.version


def _unchanged(fs: Any, path: str, source: Slice) -> bool:
    """Whether the source is still the version that was claimed."""
    try:
        info = retrying(lambda: fs.info(path), source.uri)
    except NotFound:
        return False
    return int(info["size"]) == source.size and version_of(info) == source.version


def _fetch_pinned(fs: Any, source: Slice) -> bytes | None:
    """A whole file, or None when it is no longer the version that was claimed.

    Checking after the read is enough: the version that is there now was there then.
    """
    path = str(fs._strip_protocol(source.uri))
    try:
        data = bytes(retrying(lambda: fs.cat_file(path), source.uri))
    except NotFound:
        return None
    return data if _unchanged(fs, path, source) else None


# ------------------------------------------------------------------------------------------- Parquet


def _slice_blocks(file: Any, parquet: Any, index: int, rows: Slice, how: InputSpec) -> Iterator[RowBlock]:
    schema = parquet.schema_arrow
    kind = image_kind(schema, how.image)
    columns = {"struct": [f"{how.image}.bytes", f"{how.image}.path"], "struct_bytes": [f"{how.image}.bytes"]}
    group = parquet.metadata.row_group(rows.row_group)
    bytes_a_row = max(1, group.total_byte_size // max(1, group.num_rows))
    if max(chunk_sizes(group, (how.image, *how.keys))) > WHOLE_CHUNK_BYTES:
        parquet = open_parquet(file, buffer_size=BUFFER_BYTES)
    batches = parquet.iter_batches(
        batch_size=min(1024, max(16, BLOCK_BYTES // bytes_a_row)),
        row_groups=[rows.row_group],
        columns=[*columns.get(kind, [how.image]), *how.keys],
        use_threads=False,
    )
    position = 0
    for batch in batches:
        start, stop = max(rows.row_start, position), min(rows.row_stop, position + batch.num_rows)
        if start < stop:
            yield _block(batch.slice(start - position, stop - start), index, start, kind, rows.uri, how)
        position += batch.num_rows
        if position >= rows.row_stop:
            return
    raise InputUnreadable(f"{rows.uri}: row group {rows.row_group} ended at row {position}, {rows.row_stop} planned")


def _block(batch: pa.RecordBatch, index: int, start: int, kind: str, source: str, how: InputSpec) -> RowBlock:
    column = batch.column(how.image)
    if kind == "binary":
        images: list[ImageCell] = _cells(column)
    elif kind == "uri":
        images = _fetch_uris(column.to_pylist(), source, how)
    else:
        # flatten() carries the nulls of the struct itself over to its fields.
        fields = dict(zip((f.name for f in column.type), column.flatten(), strict=True))
        images = _cells(fields["bytes"])
        paths = fields["path"].to_pylist() if kind == "struct" else [None] * len(column)
        # Hugging Face stores either the bytes or, when they were not embedded, the path.
        missing = [i for i, cell in enumerate(images) if isinstance(cell, BadImage) and paths[i]]
        for i, cell in zip(missing, _fetch_uris([paths[i] for i in missing], source, how), strict=True):
            images[i] = cell
    keys = pa.Table.from_batches([batch.select(list(how.keys))]) if how.keys else None
    return RowBlock(index, start, images, keys, sum(_size(cell) for cell in images))


def _cells(column: pa.Array) -> list[ImageCell]:
    """Each cell's bytes without a copy, or the error row's code for a null."""
    null = BadImage(ErrorCode.NULL, "the image cell is null")
    return [cell.as_buffer() if cell.is_valid else null for cell in column]


def _size(cell: ImageCell) -> int:
    return 0 if isinstance(cell, BadImage) else len(cell) if isinstance(cell, bytes) else cell.size


def _fetch_uris(values: list[str | None], source: str, how: InputSpec) -> list[ImageCell]:
    """The images that URIs point to, many requests at a time, each checked against the allowed roots first."""

    def fetch(value: str | None) -> ImageCell:
        if value is None:
            return BadImage(ErrorCode.NULL, "the image cell is null")
        try:
            url = uris.resolve(value, source, how.uri_roots)
        except uris.Refused as error:
            return BadImage(ErrorCode.URI_REFUSED, str(error))
        fs, path = open_filesystem(url)
        try:
            return bytes(retrying(lambda: fs.cat_file(path), url))
        except NotFound:
            return BadImage(ErrorCode.NOT_FOUND, f"{value}: no such object")

    with ThreadPoolExecutor(FETCHES, "fetch") as pool:
        return list(pool.map(fetch, values))
