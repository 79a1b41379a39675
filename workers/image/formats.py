"""What the outer structure of an image file says before, or after, a decoder has looked at it.

Three questions, answered from bytes alone: which format is this (`sniff`), which way up is it shown
(`jpeg_exif`, `exif_orientation`), and, once a decoder has refused it, was it cut short or damaged (`is_cut_short`)?
The last is asked of the file and not of the decoder, because decoders tell the two apart only in prose.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

# Pillow's name of each format we decode, by how its files begin. TIFF has a classic and a 64-bit ("Big") header.
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_NEUTRAL_BRANDS = frozenset((b"mif1", b"msf1"))  # HEIF containers that say only in the brand list what is inside

_SOS, _EOI = 0xDA, b"\xff\xd9"
_SEQUENTIAL_SOF = frozenset((0xC0, 0xC1))
_WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))  # TEM and RSTn

_TIFF_ORDER = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION = 0x0112
_STRIPS = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles


def sniff(data: bytes | memoryview) -> str | None:
    """Pillow's name for the format of `data`, or None where it is none that we decode."""
    head = bytes(data[:64])
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        major, compatible = head[8:12], {head[i : i + 4] for i in range(16, min(len(head), _u32(head, 0)), 4)}
        if major in _AVIF_BRANDS or (major in _NEUTRAL_BRANDS and compatible & _AVIF_BRANDS):
            return "AVIF"
    return None


def is_cut_short(kind: str, data: bytes | memoryview) -> bool:
    """Whether a file that could not be decoded ends before its own structure says it does."""
    data = bytes(data)
    match kind:
        case "JPEG":
            # In entropy-coded data FF is always followed by 00 or RSTn, so FF D9 behind the scan header is the end.
            scan = next((stop for marker, _, stop in jpeg_segments(data) if marker == _SOS), len(data))
            return data.find(_EOI, scan) < 0
        case "PNG":
            return data.rfind(b"IEND") < 0
        case "GIF":
            return not data.endswith(b"\0;")  # the last block's terminator and the trailer
        case "WEBP":
            return len(data) < 12 or 8 + int.from_bytes(data[4:8], "little") > len(data)
        case "BMP":
            return len(data) < 26 or int.from_bytes(data[2:6], "little") > len(data)
        case "TIFF":
            return _tiff_is_cut_short(data)
        case "AVIF":
            return _boxes_are_cut_short(data)
    return False


def jpeg_segments(data: bytes | memoryview) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment's payload up to and with the first scan header (ITU T.81, B.1.1)."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        else:
            stop = position + 2 + (data[position + 2] << 8 | data[position + 3])
            if stop < position + 4:
                return
            yield marker, position + 4, min(stop, len(data))
            if marker == _SOS:
                return
            position = stop


def jpeg_exif(data: bytes | memoryview) -> bytes:
    """The first EXIF block of a JPEG, or nothing."""
    for marker, start, stop in jpeg_segments(data):
        if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            return bytes(data[start:stop])
    return b""


def with_valid_scan_header(data: bytes | memoryview) -> bytes | None:
    """A sequential JPEG with its constant scan parameters (spectral 0..63, no approximation) set right.

    Many Samsung phones wrote others there. The picture is whole and every viewer shows it, but a strict decoder stops.
    None if the scan header was right already, or if there is more than that to it.
    """
    sequential = False
    for marker, _, stop in jpeg_segments(data):
        sequential |= marker in _SEQUENTIAL_SOF
        if marker == _SOS and sequential and data[stop - 3 : stop] != b"\0\x3f\0":
            return bytes(data[: stop - 3]) + b"\0\x3f\0" + bytes(data[stop:])
    return None


def exif_orientation(exif: bytes) -> int:
    """EXIF orientation, 1..8. A block that is absent or damaged says nothing about the picture: 1, as stored."""
    values = _tiff_tag(exif.removeprefix(b"Exif\0\0"), _ORIENTATION)
    return values[0] if len(values) == 1 and 1 <= values[0] <= 8 else 1


def _tiff_tag(tiff: bytes, wanted: int) -> tuple[int, ...]:
    """Values of an integer tag in the first directory of a classic TIFF; none where absent or out of bounds."""
    order = _TIFF_ORDER.get(tiff[:4])
    if order is None:
        return ()
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, directory)
        for at in range(directory + 2, directory + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", tiff, at)
            if tag != wanted or kind not in (3, 4):  # SHORT, LONG
                continue
            values = f"{order}{count}{'H' if kind == 3 else 'I'}"
            inline = struct.calcsize(values) <= 4
            start = at + 8 if inline else struct.unpack_from(order + "I", tiff, at + 8)[0]
            return struct.unpack_from(values, tiff, start)
    except struct.error:
        pass  # reaches beyond the end
    return ()


def _tiff_is_cut_short(data: bytes) -> bool:
    if data[:4] not in _TIFF_ORDER:
        return False  # 64-bit TIFF, whose directory is not read here
    for offsets_tag, counts_tag in _STRIPS:
        offsets, counts = _tiff_tag(data, offsets_tag), _tiff_tag(data, counts_tag)
        if offsets and len(offsets) == len(counts):
            return any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=True))
    return True  # the directory itself, often the last thing in the file, cannot be read


def _boxes_are_cut_short(data: bytes) -> bool:
    position = 0
    while position + 8 <= len(data):
        size = _u32(data, position)
        if size == 0:  # up to the end of the file
            return False
        if size == 1:
            size = int.from_bytes(data[position + 8 : position + 16], "big")
        position += max(size, 8)
    return position != len(data)


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
