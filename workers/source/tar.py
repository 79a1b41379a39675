"""The members of a tar file, read forwards from any member on; nothing is extracted.

The blocks are parsed by the standard library (`TarInfo.frombuf`), the walk over them is our own: ARCHITECTURE.md says
why. Every step goes forwards, every size is bounded by the file's, and an archive ends in its end marker or is refused.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from workers.source.source_file import InputUnreadable, SourceFile

BLOCK = tarfile.BLOCKSIZE
NEAR_BYTES = 2 * 2**20
"""A gap up to this size costs an object store about as much as another request: reading through it is no slower."""
MAX_EXTENDED_BYTES = 2**20
"""Of one extended header. Paths are bounded by 4 KiB, extended attributes by 64 KiB each."""
MAX_EXTENDED_HEADERS = 16
"""In a row, before one member."""
MAX_PADDING_BYTES = 2**20
"""Zeros behind the end marker, which fills the last record (10 KiB by default). More is a file that was made in its
full size and not filled."""

_PAX_TYPES = frozenset((tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE))
_EXTENDED_TYPES = _PAX_TYPES | {tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
_WITHOUT_CONTENT = frozenset(tarfile.SUPPORTED_TYPES) - frozenset(tarfile.REGULAR_TYPES)
"""Links, folders, devices: no data follows their header, whatever its size says."""
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}
_ZEROS = bytes(BLOCK)
_DECIMAL = re.compile(rb"[0-9]{1,19}")


class Member(NamedTuple):
    """One entry of an archive."""

    name: str
    """As UTF-8; bytes that are not become backslash escapes."""
    start: int
    """Byte of its first header block, extended headers included."""
    data_start: int
    size: int
    """Bytes of content."""
    stop: int
    """Byte of the next member's first header block."""
    is_file: bool
    link_to: str | None
    """Target of a hard or symbolic link."""


class Window:
    """Reads a source forwards through a buffer. The pieces double while they follow each other and start small again
    behind a gap, so that what is read too much stays in proportion to what is read."""

    def __init__(self, file: SourceFile, *, first_bytes: int, most_bytes: int) -> None:
        self._file = file
        self._first_bytes = first_bytes
        self._most_bytes = most_bytes
        self._piece_bytes = first_bytes
        self._start = 0
        self._data = b""
        self.size = int(file.seek(0, 2))

    def at(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset` on. Raises InputUnreadable where the file ends before, StoreError."""
        begin = offset - self._start
        if begin >= 0 and begin + count <= len(self._data):
            return self._data[begin : begin + count]
        if offset + count > self.size:
            raise _cut_off(f"bytes {offset} to {offset + count} are wanted", self.size)
        # The buffer is to begin at `offset` and to hold `count` bytes or more; what it holds of them is not read again.
        end = self._start + len(self._data)
        kept = self._data[offset - self._start :] if self._start <= offset < end else b""
        if self._data and -2 * len(self._data) <= offset - end <= NEAR_BYTES:
            self._piece_bytes = min(self._most_bytes, 2 * self._piece_bytes)
        else:
            self._piece_bytes = self._first_bytes
        self._file.seek(offset + len(kept))
        self._data = kept + self._file.read(max(self._piece_bytes, count - len(kept)))
        self._start = offset
        if len(self._data) < count:
            raise _cut_off(f"{count} bytes at {offset} are wanted", offset + len(self._data))
        return self._data[:count]


def members(window: Window, start: int = 0) -> Iterator[Member]:
    """Every member from the one at byte `start` on, folders and links included. Raises InputUnreadable for anything but
    a whole, plain tar; StoreError."""
    while (member := _member_at(window, start)) is not None:
        yield member
        start = member.stop


def _member_at(window: Window, start: int) -> Member | None:
    """The member whose headers begin at `start`, or None at the end of the archive."""
    at = start
    given: dict[bytes, bytes] = {}  # of the member, by its extended headers
    for _ in range(MAX_EXTENDED_HEADERS + 1):
        header = _header_at(window, at)
        if header is None:
            if at != start:
                raise InputUnreadable(f"damaged tar: the extended header at byte {start} belongs to no member")
            _check_end(window, at)
            return None
        data_start = at + BLOCK
        if header.type not in _EXTENDED_TYPES:
            return _member(window, header, start, data_start, given)
        if not 0 <= header.size <= MAX_EXTENDED_BYTES:
            raise InputUnreadable(
                f"damaged tar: the extended header at byte {at} has {header.size} bytes ({MAX_EXTENDED_BYTES} at most)"
            )
        body = window.at(data_start, header.size)
        records = _pax_records(body, at) if header.type in _PAX_TYPES else {}
        if header.type == tarfile.GNUTYPE_LONGNAME:
            records[b"path"] = body.split(b"\0", 1)[0]
        if header.type == tarfile.XGLTYPE and records.keys() & {b"path", b"size"}:
            raise InputUnreadable(f"unusual tar: the global header at byte {at} sets the path or size of all members")
        if not _DECIMAL.fullmatch(size := records.get(b"size", b"0")):
            raise InputUnreadable(f"damaged tar: the extended header at byte {at} gives a size of {size[:32]!r}")
        given |= records
        at = data_start + padded(header.size)
    raise InputUnreadable(f"damaged tar: more than {MAX_EXTENDED_HEADERS} extended headers from byte {start} on")


def _member(
    window: Window, header: tarfile.TarInfo, start: int, data_start: int, given: Mapping[bytes, bytes]
) -> Member:
    name = _text(given[b"path"]) if b"path" in given else header.name
    if header.type == tarfile.GNUTYPE_SPARSE:
        raise _sparse(name)
    size = 0 if header.type in _WITHOUT_CONTENT else int(given.get(b"size", header.size))
    if size < 0:
        raise InputUnreadable(f"damaged tar: {name} has a negative size (header at byte {start})")
    if data_start + size > window.size:
        raise _cut_off(f"{name} should end at byte {data_start + size}", window.size)
    return Member(
        name=name,
        start=start,
        data_start=data_start,
        size=size,
        stop=data_start + padded(size),
        is_file=header.type in tarfile.REGULAR_TYPES,
        link_to=header.linkname if header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE) else None,
    )


def padded(size: int) -> int:
    """Bytes that content of `size` takes in a tar."""
    return -(-size // BLOCK) * BLOCK


def _header_at(window: Window, at: int) -> tarfile.TarInfo | None:
    """One header block, parsed; None if it is all zeros."""
    if at == 0 and window.size < BLOCK:
        raise InputUnreadable(f"not a tar file: {window.size} bytes are no header" if window.size else "an empty file")
    block = window.at(at, BLOCK)
    if block == _ZEROS:
        return None
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.HeaderError as error:
        if kind := next((kind for magic, kind in COMPRESSED.items() if at == 0 and block.startswith(magic)), None):
            why = f"compressed with {kind}: decompress it, because rows in the middle can be read only from a plain tar"
            raise InputUnreadable(f"{why} (images hardly shrink)") from error
        why = (
            f"damaged tar: no header at byte {at} ({error})" if at else f"not a tar file: it begins with {block[:16]!r}"
        )
        raise InputUnreadable(why) from error
    if block[257:265] == tarfile.GNU_MAGIC:  # where ustar keeps the first part of a name, GNU tar may keep times
        header.name = _text(block[:100].split(b"\0", 1)[0])
    return header


def _pax_records(body: bytes, at: int) -> dict[bytes, bytes]:
    """Records `<length> <keyword>=<value>` of a PAX header (POSIX.1-2001, pax, Extended Header)."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(body) and body[position]:
        digits = body[position : position + 8].partition(b" ")[0]
        stop = position + int(digits) if _DECIMAL.fullmatch(digits) else 0
        keyword, equals, value = body[position + len(digits) + 1 : max(0, stop - 1)].partition(b"=")
        if not equals or stop > len(body) or body[stop - 1 : stop] != b"\n":
            raise InputUnreadable(f"damaged tar: a record of the extended header at byte {at} cannot be read")
        if keyword.startswith(b"GNU.sparse."):
            raise _sparse(f"the member at byte {at}")
        records[keyword] = value
        position = stop
    return records


def _check_end(window: Window, at: int) -> None:
    """Two blocks of zeros end an archive, more may fill its last record, and nothing else may follow."""
    if at + 2 * BLOCK > window.size:
        raise _cut_off("its end marker is not whole", window.size)
    if window.at(at + BLOCK, BLOCK) != _ZEROS:
        raise InputUnreadable(f"damaged tar: a block of zeros where a header belongs, at byte {at}")
    rest = window.size - at
    if rest > MAX_PADDING_BYTES:
        raise InputUnreadable(f"cut off: the archive ends at byte {at}, and {rest} bytes follow that hold none of it")
    if window.at(at, rest).strip(b"\0"):
        raise InputUnreadable(
            f"there is more behind its end marker at byte {at}, which readers pass over: "
            "join archives with `tar --concatenate`, not with `cat`"
        )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _cut_off(what: str, size: int) -> InputUnreadable:
    return InputUnreadable(f"cut off, perhaps not copied whole: {what}, and the file ends at byte {size}")


def _sparse(name: str) -> InputUnreadable:
    return InputUnreadable(f"{name} is stored sparse: make the archive without `--sparse`")
