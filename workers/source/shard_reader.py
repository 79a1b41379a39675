"""From a shard to its rows: encoded images and key columns, in input order, read ahead within a byte bound.

Storage faults go up as StoreError and are retried elsewhere; they never become a row. What does become a row is a
cell that is null, a URI that points nowhere or outside the allowed roots. A source that vanished or changed since it
was claimed yields no rows: it is reported as gone.
"""

from __future__ import annotations

import queue
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from workers.contract import InputSpec, SampleSlice, Shard, Slice, TableOf
from workers.image.errors import MAX_IMAGE_BYTES, BadImage, ErrorCode
from workers.redaction import redacted
from workers.source import lance_rows, parquet, webdataset
from workers.source.rows import FETCHES, ImageCell, RowBlock, file_keys
from workers.source.source_file import InputDenied, InputUnreadable, SourceFile, open_parquet, opened
from workers.source.table_view import TableView
from workers.storage.errors import Cause, NotFound, StoreDenied, StoreError, cause_of
from workers.storage.filesystems import open_filesystem, version_of
from workers.storage.lookahead import ahead
from workers.storage.retries import retrying

READ_AHEAD_BYTES = 64 * 2**20
"""Encoded images waiting to be decoded, a shard."""


class SourceChanged(Exception):
    """The source was replaced while it was read. The next attempt finds it gone and says so."""


@dataclass
class ShardReader:
    """Reads one shard once. `gone` and `read_s` are complete when `blocks()` has ended."""

    shard: Shard
    input: InputSpec
    only: Container[int] | None = None
    """Numbers of the rows that are wanted, of whatever slice of its files; all of them by default."""
    gone: set[int] = field(default_factory=set)
    """Indices of slices whose source vanished or changed."""
    read_s: float = 0.0

    def blocks(self) -> Iterator[RowBlock]:
        """Rows in the order of the shard's slices. Raises StoreError, InputUnreadable, InputDenied, SourceChanged."""
        blocks = self._image_blocks() if self.input.format == "images" else self._file_blocks()
        while True:
            started = time.perf_counter()
            block = next(blocks, None)
            self.read_s += time.perf_counter() - started
            if block is None:
                return
            yield block

    def _file_blocks(self) -> Iterator[RowBlock]:
        slices, table = self.shard.slices, self.shard.table
        for _, indices in groupby(range(len(slices)), lambda index: (slices[index].uri, slices[index].version)):
            try:
                if self.input.format == "lance" and table is not None:
                    yield from self._lance_blocks(table, list(indices))
                else:
                    yield from self._source_blocks(list(indices))
            except StoreDenied as error:
                raise InputDenied(str(error)) from error

    def _lance_blocks(self, table: TableOf, indices: Sequence[int]) -> Iterator[RowBlock]:
        try:
            yield from self._together(partial(lance_rows.lance_blocks, table.url, table.version), indices)
        except NotFound:  # the version, or the file: cleaned up
            self.gone.update(indices)

    def _source_blocks(self, indices: Sequence[int]) -> Iterator[RowBlock]:
        """The slices of one file of many rows, which is opened once."""
        source = self.shard.slices[indices[0]]
        if (file := _opened_unchanged(source)) is None:
            self.gone.update(indices)
            return
        with file:
            try:
                if self.input.format == "webdataset":
                    blocks = partial(webdataset.sample_blocks, webdataset.streaming(file))
                    for index in indices:
                        yield from blocks(index, self.shard.slices[index], self.input, self.only)
                else:
                    opened_ = open_parquet(file)
                    view = TableView.of(opened_.schema_arrow, self.shard.table, source.uri)
                    yield from self._together(partial(parquet.row_group_blocks, file, opened_, view), indices)
            except (MemoryError, StoreDenied):  # of Arrow's memory, too: neither says anything about the file
                raise
            except Exception as error:
                # Arrow reports a damaged page as OSError; whether storage failed only the file itself can tell.
                if isinstance(file.fault, StoreDenied):
                    raise file.fault from error
                if file.fault is not None and cause_of(file.fault) is not Cause.OTHER:
                    raise StoreError(f"cannot read {source.uri}: {error}") from error
                if not isinstance(error, InputUnreadable | pa.ArrowException | OSError):
                    raise
                if not _unchanged(file.fs, file.path, source):
                    raise SourceChanged(f"{source.uri} changed while it was read") from error
                raise InputUnreadable(f"{source.uri}: {error}") from error
        if not _unchanged(file.fs, file.path, source):
            raise SourceChanged(f"{source.uri} changed while it was read")

    def _together(self, blocks: Callable[..., Iterator[RowBlock]], indices: Sequence[int]) -> Iterator[RowBlock]:
        """Slices of one row group are read in one go: between them lie deleted rows of a table."""
        slices = self.shard.slices
        for _, group in groupby(indices, lambda index: slices[index].row_group):
            first, *others = group
            if not others:
                yield from blocks(first, slices[first], self.input, self.only)
                continue
            here = [first, *others]
            wanted = {row for i in here for row in range(slices[i].row_start, slices[i].row_stop)}
            wanted = wanted if self.only is None else {row for row in wanted if row in self.only}
            whole = replace(slices[first], row_stop=slices[here[-1]].row_stop)
            for block in blocks(first, whole, self.input, wanted):
                ends = [bisect_left(block.rows, slices[index].row_stop) for index in here]
                for index, (start, stop) in zip(here, pairwise([0, *ends]), strict=True):
                    if start < stop:
                        keys = None if block.keys is None else block.keys.slice(start, stop - start)
                        size = block.bytes_read if stop == len(block.rows) else 0
                        yield RowBlock(index, block.rows[start:stop], block.images[start:stop], keys, size)

    def _image_blocks(self) -> Iterator[RowBlock]:
        """One file an image; a block is one file, so that order and `gone` stay simple."""
        fs, _ = open_filesystem(self.shard.slices[0].uri)
        images = ahead(partial(_fetch_pinned, fs), self.shard.slices, "fetch", at_once=FETCHES, a_thread=1)
        good = denied = None
        for index, image in enumerate(images):
            if isinstance(image, bytes):
                good = self.shard.slices[index]
            elif image is not None and image.code is ErrorCode.DENIED:
                denied = image
            if image is None:
                self.gone.add(index)
            else:
                keys = file_keys([self.shard.slices[index].uri], self.input.copied) if self.input.keys else None
                yield RowBlock(index, [0], [image], keys, 0 if isinstance(image, BadImage) else len(image))
        if good and denied and isinstance(_fetch_pinned(fs, good), BadImage):  # it is the right to read that has ended
            raise InputDenied(str(denied))


class ReadAhead:
    """Iterates `reader.blocks()` from a thread of its own, never holding more than `max_bytes` that nobody took yet.

    A block larger than the bound passes alone. Errors of the reader come out of the iteration.
    """

    def __init__(self, reader: ShardReader, max_bytes: int = READ_AHEAD_BYTES) -> None:
        self.reader = reader
        self._max_bytes = max_bytes
        self._held = 0
        self._room = threading.Condition()
        self._closed = False
        self._queue: queue.SimpleQueue[RowBlock | BaseException | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for block in self.reader.blocks():
                with self._room:
                    while not self._closed and self._held and self._held + block.bytes_read > self._max_bytes:
                        self._room.wait()
                    if self._closed:
                        return
                    self._held += block.bytes_read
                self._queue.put(block)
        except BaseException as error:  # noqa: BLE001  (handed over to the iterating thread, whatever it is)
            self._queue.put(error)
        else:
            self._queue.put(None)

    def __iter__(self) -> Iterator[RowBlock]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            with self._room:
                self._held -= item.bytes_read
                self._room.notify()
            yield item

    def close(self) -> None:
        """Stop reading and wait for the thread."""
        with self._room:
            self._closed = True
            self._room.notify()
        self._thread.join()


def sample_cells(part: SampleSlice, how: InputSpec) -> Iterator[tuple[int, ImageCell, RowBlock]]:
    """The rows that a slice gives to a sample: number in its row group, image, and the block that it lies in. Raises
    what `ShardReader.blocks` raises. A source that is gone gives none."""
    chosen = set(np.linspace(part.rows.row_start, part.rows.row_stop - 1, part.take).round().astype(int).tolist())
    shard = Shard(plan=0, plan_token="sample", index=0, slices=(part.rows,), table=part.table)  # noqa: S106
    for block in ShardReader(shard, how, chosen).blocks():
        for row, cell in zip(block.rows, block.images, strict=True):
            yield row, cell, block


def key_columns(part: Slice, how: InputSpec, table: TableOf | None = None) -> pa.Table | None:
    """The key columns of a slice's rows, without their images; None where its source is not what was claimed any more.
    Raises InputUnreadable, StoreError, StoreDenied, and what Arrow raises."""
    if how.format == "images":
        return file_keys([part.uri], how.copied)
    if how.format == "lance" and table is not None:
        with suppress(NotFound):
            return lance_rows.lance_keys(table.url, table.version, part, how)[1]
        return None
    if (file := _opened_unchanged(part)) is None:
        return None
    with file:
        if how.format == "webdataset":
            return webdataset.sample_keys(file, part.byte_start, part.rows, how)
        keys = parquet.read_keys(open_parquet(file), how, part.uri, part.row_group, table)
        return keys.slice(part.row_start, part.rows)


def _opened_unchanged(source: Slice) -> SourceFile | None:
    """The source's file; None where it is not what was claimed any more."""
    fs, path = open_filesystem(source.uri)
    with suppress(NotFound):
        if _unchanged(fs, path, source):
            return opened(fs, path)
    return None


def _unchanged(fs: Any, path: str, source: Slice) -> bool:
    """Whether the source is still the version that was claimed."""
    try:
        info = retrying(lambda: fs.info(path), source.uri)
    except NotFound:
        return False
    return int(info["size"]) == source.size and version_of(info, source.version) == source.version


def _fetch_pinned(fs: Any, source: Slice) -> bytes | BadImage | None:
    """A whole file, or None when it is no longer the version that was claimed. One that is no image is not read.

    Checking after the read is enough: the version that is there now was there then.
    """
    path = str(fs._strip_protocol(source.uri))
    data: bytes | BadImage = BadImage(ErrorCode.TOO_LARGE, f"{source.size} bytes, more than {MAX_IMAGE_BYTES}")
    try:
        if source.size <= MAX_IMAGE_BYTES:
            data = bytes(retrying(lambda: fs.cat_file(path), source.uri))
        return data if _unchanged(fs, path, source) else None
    except NotFound:
        return None
    except StoreDenied as error:
        return BadImage(ErrorCode.DENIED, redacted(str(error), {}))
