"""Pages of a Parquet column chunk: where they lie, and how a few of them are read without those before them.

Arrow reads a column chunk from its beginning. But a page that needs no dictionary stands for itself. So Arrow is given
the very file with a footer in which the chunk is just the pages that are wanted; decompression, checksums and decoding
stay Arrow's. For columns that do not repeat within a row.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from workers.source.source_file import InputUnreadable, SourceFile, open_parquet

_FOOTER_MAX = 2**20  # a longer footer is not taken apart: it would take seconds
_HEADER_BYTES, _HEADER_MAX = 2**12, 2**24
"""Of a page header: read at first, and at most, as Arrow does. Statistics may make it long."""
_BY_DICTIONARY = (2, 8)  # encodings
_CODECS = {1: "snappy", 2: "gzip", 4: "brotli", 6: "zstd", 7: "lz4_raw"}
_FOOTERS: WeakKeyDictionary[SourceFile, dict[int, Any]] = WeakKeyDictionary()
"""Of files that are open: taking one apart costs as much as reading megabytes."""


class Page(NamedTuple):
    start: int
    """Byte in the file at which its header begins."""
    stop: int
    first_row: int
    stop_row: int
    by_dictionary: bool


class Chunk(NamedTuple):
    """A column chunk that can be read page by page."""

    footer: dict[int, Any]
    """The file's, as _read gives it."""
    group: int
    leaf: int
    name: str
    """Its path in the schema."""
    rows: int
    column: dict[int, Any]
    """Its ColumnChunk in the footer, and the ColumnMetaData in that."""
    meta: dict[int, Any]
    start: int
    stop: int
    codec: int
    """0: it is not compressed."""
    growth: float
    """Bytes in memory for a byte of the file, at least 1."""


def chunk_of(file: SourceFile, parquet: Any, group: int, name: str) -> Chunk | None:
    """The chunk of a column by its path in the schema; None where it has to be read from its beginning."""
    schema, size = parquet.metadata.schema, parquet.metadata.serialized_size
    leaves = [i for i in range(parquet.metadata.num_columns) if schema.column(i).path == name]
    # There may be a flat column and a field of a struct by the same name.
    if len(leaves) != 1 or schema.column(leaves[0]).max_repetition_level or size > _FOOTER_MAX:
        return None
    end = file.seek(-8 - size, 2)
    if file not in _FOOTERS:
        _FOOTERS[file], _ = _read(file.read(size), 0, _STRUCT)
    footer = _FOOTERS[file]
    column = _at(_at(footer, 4)[1][group], 1)[1][leaves[0]]
    meta = _at(column, 3)
    start, size = _at(meta, 11) or _at(meta, 9), _at(meta, 7)
    if not 0 < start <= end - size:
        raise InputUnreadable(f"row group {group} has a column outside of the file")
    rows, growth = parquet.metadata.row_group(group).num_rows, max(1.0, _at(meta, 6) / size)
    return Chunk(footer, group, leaves[0], name, rows, column, meta, start, start + size, _at(meta, 4), growth)


def pages_of(file: SourceFile, chunk: Chunk, rows: range, most_headers: int | None = None) -> list[Page]:
    """The pages of a chunk that hold `rows`, in order, and those before them whose headers were read.

    Headers are read one after the other: to the first page that needs no dictionary if the file has a page index that
    agrees, else to the end of `rows`, and only `most_headers` of them where there are more. Raises InputUnreadable.
    """
    stop_row = rows.stop
    if stop_row > chunk.rows:
        raise InputUnreadable(f"row group {chunk.group} ended at row {chunk.rows}, {stop_row} planned")
    pages: list[Page] = []
    at, row = chunk.start, 0
    while at < chunk.stop and row < stop_row and len(pages) != most_headers:
        header, body = _header(file, at, chunk.stop)
        try:
            stop, data = body + _at(header, 3), _data_header(header)
            count = _at(data, 1) if data else 0
            if not at < stop <= chunk.stop or count < 0:
                raise ValueError(f"it would end at byte {stop}, after {count} rows")
        except (ValueError, TypeError, IndexError) as error:
            raise InputUnreadable(f"the page header at byte {at} is damaged: {error}") from error
        if data:
            by_dictionary = _at(data, 2 if 5 in header else 4) in _BY_DICTIONARY
            pages.append(Page(at, stop, row, row + count, by_dictionary))
            row += count
            plain_from_here = not by_dictionary and (len(pages) == 1 or pages[-2].by_dictionary)
            if plain_from_here and (rest := _indexed(file, chunk, pages)):
                return pages + [page for page in rest if page.first_row < stop_row and page.stop_row > rows.start]
        at = stop
    if row > chunk.rows or (row < stop_row and len(pages) != most_headers):
        raise InputUnreadable(f"row group {chunk.group} ended at row {row}, {stop_row} planned")
    return pages


def _data_header(header: dict[int, Any]) -> dict[int, Any]:
    """Of a page of data, of version 1 or 2; empty for any other. Its first field is the number of rows."""
    return _at(header, 5) or _at(header, 8) or {}


def _indexed(file: SourceFile, chunk: Chunk, walked: Sequence[Page]) -> list[Page]:
    """The pages after those `walked`, from the page index; none where it is missing, damaged or wrong.

    An index has no checksum. It must agree with the pages walked and with the header of the last page, so that a shift
    of all rows from some page on is found; read_pages compares each page that it reads. Not found are two wrong pages
    that make up for each other, by slices that lie between them.
    """
    at, size = _at(chunk.column, 4) or 0, _at(chunk.column, 5) or 0
    if not 0 < at < at + size <= file.seek(0, 2) or size > _FOOTER_MAX:
        return []
    file.seek(at)
    try:
        places = [*_places(file.read(size)), (chunk.stop, chunk.rows)]
    except (IndexError, ValueError):
        return []
    found = [Page(a, b, row, end, False) for (a, row), (b, end) in pairwise(places)]
    same = [page[:4] for page in found[: len(walked)]] == [page[:4] for page in walked]
    ascending = all(page.start < page.stop and page.first_row <= page.stop_row for page in found)
    return found[len(walked) :] if same and ascending and _agrees(file, found[-1]) else []


def _agrees(file: Any, page: Page, base: int = 0) -> bool:
    """Whether the header of a page is as the page index says; `file` begins at the byte `base` of the whole file."""
    try:
        header, body = _header(file, page.start - base, page.stop - base)
        rows, stop = _at(_data_header(header), 1), body + _at(header, 3)
    except (InputUnreadable, TypeError, IndexError):
        return False
    return bool(rows == page.stop_row - page.first_row and stop == page.stop - base)


def _places(index: bytes) -> list[tuple[int, int]]:
    """First byte and first row of each page of an OffsetIndex; ValueError where it is written in an unusual form.

    There are tens of thousands. Each is seven numbers: kind of field and value, three times, and the end.
    """
    count, at = _varint(index, 2) if index[1] >> 4 == 15 else (index[1] >> 4, 2)
    data = np.frombuffer(index, np.uint8, offset=at)
    ends = np.flatnonzero(data < 128)[: 7 * count] + 1
    if index[0] != 0x19 or len(ends) < 7 * max(1, count):
        raise ValueError(count)
    starts = np.concatenate([[0], ends[:-1]])
    shifts = 7 * (np.arange(ends[-1]) - np.repeat(starts, ends - starts))
    numbers = np.add.reduceat((data[: ends[-1]] & 127).astype(np.int64) << shifts, starts).reshape(count, 7)
    if (numbers[:, ::2] != (0x16, 0x15, 0x16, 0)).any():
        raise ValueError(numbers)
    return list(zip((numbers[:, 1] >> 1).tolist(), (numbers[:, 5] >> 1).tolist(), strict=True))


def _header(file: SourceFile, at: int, end: int) -> tuple[dict[int, Any], int]:
    """The page header that begins at a byte, and where its page's data begin."""
    size = _HEADER_BYTES
    while size <= _HEADER_MAX:
        file.seek(at)
        data = file.read(min(size, end - at))
        try:
            header, length = _read(data, 0, _STRUCT)
            return header, at + length
        except IndexError:
            size *= 16
        except ValueError:
            break
    raise InputUnreadable(f"the page header at byte {at} is damaged")


def read_pages(
    file: SourceFile, chunk: Chunk, start: int, pages: Sequence[Page], rows_a_batch: int, buffer_size: int
) -> Iterator[pa.RecordBatch]:
    """The rows of neighbouring pages, as if the file had no other column.

    Reading begins at the byte `start`: the first of the pages, or the chunk's where one needs the dictionary there.
    With a `buffer_size` a page is in memory twice while it is unpacked, and once from then on; without one all that is
    read is held beside what was unpacked of it, but never copied. Raises InputUnreadable and what Arrow raises.
    """
    source: Any = file
    stop, codec, first, base = pages[-1].stop, chunk.codec, pages[0].start, 0
    if start == first and not buffer_size:
        file.seek(start)
        source, base = pa.BufferReader(file.read(stop - start)), start
    if start == first and 4 in chunk.column and not all(_agrees(source, page, base) for page in pages):
        raise InputUnreadable(f"the pages from byte {start} on are not what the page index says")
    if start < first and buffer_size and codec in _CODECS:
        parts = list(_unpacked(file, chunk, stop))
        start, first, stop, codec = 4, 4 + sum(map(len, parts[:3])), 4 + sum(map(len, parts)), 0
        source = _Once(parts, stop)
        del parts
    size, rows = (_I64, stop - start), (_I64, pages[-1].stop_row - pages[0].first_row)
    meta = {**chunk.meta, 4: (_I32, codec), 5: rows, 7: size, 9: (_I64, first - base), 11: (_I64, start)}
    if start == first:
        del meta[11]
    group = _at(chunk.footer, 4)[1][chunk.group]
    columns = list(_at(group, 1)[1])
    columns[chunk.leaf] = {**chunk.column, 3: (_STRUCT, meta)}
    group = {**group, 1: (_LIST, (_STRUCT, columns)), 3: rows}
    footer = _written(_STRUCT, {**chunk.footer, 3: rows, 4: (_LIST, (_STRUCT, [group]))})
    whole = b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1"
    reader = open_parquet(source, buffer_size=buffer_size, metadata=pq.read_metadata(pa.BufferReader(whole)))
    yield from reader.iter_batches(rows_a_batch, columns=[chunk.name], use_threads=False)


def _unpacked(file: SourceFile, chunk: Chunk, end: int) -> Iterator[memoryview]:
    """The pages of a chunk up to a byte, without compression: header, levels if they lie apart, and the rest of each.

    Arrow holds a dictionary that it has unpacked itself twice, for as long as it reads the chunk.
    """
    at, codec = chunk.start, pa.Codec(_CODECS[chunk.codec])
    while at < end:
        header, body = _header(file, at, end)
        file.seek(body)
        data = memoryview(file.read(_at(header, 3)))
        if 4 in header and zlib.crc32(data) != _at(header, 4) & 0xFFFFFFFF:
            raise InputUnreadable(f"the page at byte {at} is damaged: its checksum differs")
        at = body + len(data)
        version_2 = _at(header, 8) or {}
        apart = (_at(version_2, 5) or 0) + (_at(version_2, 6) or 0)
        size = _at(header, 2)
        rest = data[apart:]
        if version_2.get(7, (_TRUE,))[0] == _TRUE:
            rest = memoryview(codec.decompress(rest, size - apart))
        yield memoryview(_written(_STRUCT, {n: field for n, field in header.items() if n != 4} | {3: (_I32, size)}))
        yield data[:apart]
        yield rest


class _Once(io.RawIOBase):
    """Bytes that are read once, from the first to the last, and not held any longer."""

    def __init__(self, parts: list[memoryview], size: int) -> None:
        self._parts, self._size, self._at = parts[::-1], size, 0

    def read(self, size: int = -1) -> Any:
        found: list[memoryview] = []
        while self._parts and size:
            part = self._parts.pop()
            found.append(part[:size])
            size -= len(found[-1])
            if len(part) > len(found[-1]):
                self._parts.append(part[len(found[-1]) :])
        self._at += sum(map(len, found))
        return found[0] if len(found) == 1 else b"".join(found)

    def seek(self, offset: int, whence: int = 0) -> int:
        """To what Arrow reads next, or to the end for the size."""
        self._at = offset + (self._size if whence == 2 else 0)
        return self._at

    def tell(self) -> int:
        return self._at

    def readable(self) -> bool:
        return True


# ---------------------------------------- Thrift's compact protocol: a struct is (type, value) by number of the field

_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _, _STRUCT = range(1, 13)


def _at(struct: dict[int, Any], number: int) -> Any:
    return struct[number][1] if number in struct else None


def _read(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    """A value, and where it ends. Raises IndexError where the data end before it, ValueError for what is no value."""
    if kind in (_I16, _I32, _I64):
        value, at = _varint(data, at)
        return (value >> 1) ^ -(value & 1), at
    if kind == _STRUCT:
        fields: dict[int, Any] = {}
        number = 0
        while head := data[at]:
            step, of, at = head >> 4, head & 15, at + 1
            if not step:
                number, at = _read(data, at, _I16)
            number += step
            fields[number] = (of, b"")
            if of not in (_TRUE, _FALSE):
                value, at = _read(data, at, of)
                fields[number] = (of, value)
        return fields, at + 1
    if kind in (_LIST, _SET):
        count, of, at = data[at] >> 4, data[at] & 15, at + 1
        if count == 15:
            count, at = _varint(data, at)
        items = []
        for _ in range(count):
            item, at = _read(data, at, of)
            items.append(item)
        return (of, items), at
    if kind == _BINARY:
        size, at = _varint(data, at)
    elif kind in (_TRUE, _FALSE, _BYTE, _DOUBLE):
        size = 8 if kind == _DOUBLE else 1
    else:
        raise ValueError(kind)
    if at + size > len(data):
        raise IndexError(at)
    return data[at : at + size], at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) > 127:
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
    return value | byte << shift, at + 1


def _written(kind: int, value: Any) -> bytes:
    """What _read has read."""
    if kind in (_I16, _I32, _I64):
        return _written_varint(value << 1 ^ value >> 63)
    if kind == _BINARY:
        return _written_varint(len(value)) + bytes(value)
    if kind in (_LIST, _SET):
        of, items = value
        return bytes([0xF0 | of]) + _written_varint(len(items)) + b"".join(_written(of, item) for item in items)
    if kind != _STRUCT:
        return bytes(value)
    # Numbers of fields in full: the short form is for steps below 16.
    fields = (bytes([of]) + _written(_I16, number) + _written(of, field) for number, (of, field) in value.items())
    return b"".join(fields) + b"\0"


def _written_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])
