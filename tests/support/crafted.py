"""Image files that no encoder at hand writes: sizes that lie, rare variants of JPEG, PNG and TIFF."""

from __future__ import annotations

import struct
import zlib


def png(width: int, height: int, *, depth: int = 8, colour: int = 2, rows: bytes = b"") -> bytes:
    """A PNG of any size on paper, whatever `rows` (filter byte and samples, row by row) really hold."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(width: int, height: int, strip: bytes, *, bits: int, white: int) -> bytes:
    """An uncompressed little-endian greyscale TIFF; `white` 0: the largest sample is black."""
    tags = ((256, width), (257, height), (258, bits), (259, 1), (262, white), (273, 8), (277, 1), (278, height))
    entries = (*tags, (279, len(strip)))
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + struct.pack("<H", len(entries)) + directory + bytes(4)


def with_jpeg_size(jpeg: bytes, width: int, height: int) -> bytes:
    """The same JPEG, lying about its size."""
    frame = next(at for at in range(len(jpeg)) if jpeg[at] == 0xFF and jpeg[at + 1] in (0xC0, 0xC2))
    return jpeg[: frame + 5] + struct.pack(">HH", height, width) + jpeg[frame + 9 :]


def without_adobe_marker(jpeg: bytes) -> bytes:
    at = jpeg.index(b"\xff\xee\x00\x0eAdobe")
    return jpeg[:at] + jpeg[at + 16 :]


def with_samsung_scan_header(jpeg: bytes) -> bytes:
    """A baseline JPEG with zeros where the constant scan parameters belong."""
    at = jpeg.index(b"\xff\xda")
    stop = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return jpeg[: stop - 3] + b"\0\0\0" + jpeg[stop:]


def jpeg_410(base: bytes) -> bytes:
    """A JPEG of one grey, 142, with 4:1:0 sampling, which has no TurboJPEG name: one MCU, its scan written by hand.

    `base` lends the headers: a 32x16 JPEG, 4:4:4, quality 50. Codes are those of the standard tables (ITU T.81, K.3);
    the DC of the first luma block is 7 steps of 16 / 8 levels up from 128, and the others repeat it.
    """
    frame, scan = base.index(b"\xff\xc0"), base.index(b"\xff\xda") + 14
    luma, chroma = "100" + "111" + "1010" + 7 * "001010", 2 * "0000"
    bits = int(luma + chroma + "1111", 2).to_bytes(8, "big")
    return base[: frame + 11] + b"\x42" + base[frame + 12 : scan] + bits + b"\xff\xd9"
