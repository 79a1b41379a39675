"""What the outer structure of an image file says before, or after, a decoder has looked at it.

Three questions, answered from bytes alone: which format is this (`sniff`), which way up is it shown
(`jpeg_exif`, `exif_orientation`), and, once a decoder has refused it, was it cut short or damaged (`is_cut_short`)?
The last is asked of the file and not of the decoder, because decoders tell the two apart only in prose.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

# How files begin, by Pillow's name of each format that may be decoded. TIFF has a 64-bit ("Big") header, too.
_MAGIC = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JPEG2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "JXL": (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"),
}
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_NEUTRAL_BRANDS = frozenset((b"mif1", b"msf1"))  # HEIF containers that say only in the brand list what is inside

_SOI, _SOS, _END, _COM, _EOI = 0xD8, 0xDA, 0xD9, 0xFE, b"\xff\xd9"
_SEQUENTIAL_SOF = frozenset((0xC0, 0xC1))
_PASSED_OVER = frozenset((0x00, 0x01, *range(0xD0, 0xD8), 0xFF))  # stuffing, TEM, RSTn, fill bytes

_WITHOUT_SEGMENTS = (_SOI, _END)  # behind them another image begins
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
_MOST_SCANS = 10  # more are not looked into for stray bytes: each takes a decoding

_WEBP_CHUNKS = frozenset((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP", b"EXIF", b"XMP "))

_JXL_RATIOS = ((0, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))

_TIFF_ORDER = {b"II*\0": "<", b"MM\0*": ">"}
_ORIENTATION, _SAMPLES, _PLANAR, _EXTRA_SAMPLES = 274, 277, 284, 338
_STRIPS = ((273, 279), (324, 325))  # offsets and byte counts, of strips and of tiles


def sniff(data: bytes | memoryview) -> str | None:
    """Pillow's name for the format of `data`, whether the job has it or not; None where no job may."""
    head = bytes(data[:64])
    for name, magics in _MAGIC.items():
        if head.startswith(magics):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        major, compatible = head[8:12], {head[i : i + 4] for i in range(16, min(len(head), _u32(head, 0)), 4)}
        if major in _AVIF_BRANDS or (major in _NEUTRAL_BRANDS and compatible & _AVIF_BRANDS):
            return "AVIF"
        if major in _HEIF_BRANDS | _NEUTRAL_BRANDS:
            return "HEIF"
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
        case "AVIF" | "HEIF":
            return _boxes_are_cut_short(data)
        case "JXL" | "JPEG2000":  # a bare codestream does not tell its length
            return data[:1] == b"\0" and _boxes_are_cut_short(data)
    return False


def jpeg_segments(data: bytes | memoryview, *, scans: bool = False) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of each segment's payload up to and with the first scan header (ITU T.81, B.1.1).

    With `scans` of all of them, and the end of the image; the payload of a scan header is then that with all up to the
    next marker. Bytes between segments are passed over, as libjpeg does; a second image that begins there ends it.
    """
    position = 2
    if scans:
        data = bytes(data) + b"\0\0"  # the end has no length
    while position + 4 <= len(data):
        marker = data[position + 1]
        if data[position] != 0xFF or marker in _PASSED_OVER:
            data = bytes(data)
            position = _next_marker(data, position)
        else:
            stop = position + 2 + (data[position + 2] << 8 | data[position + 3])
            if marker == _END and scans:
                yield marker, position + 4, position + 2
            if stop < position + 4 or marker in _WITHOUT_SEGMENTS:
                return
            if marker == _SOS and scans:
                stop = _next_marker(bytes(data), stop)
            yield marker, position + 4, min(stop, len(data))
            if marker == _SOS and not scans:
                return
            position = stop


def _next_marker(data: bytes, position: int) -> int:
    """Where the first marker lies that is none of those within a scan."""
    found = _MARKER.search(data, position)
    return found.start() if found else len(data)


def jpeg_exif(data: bytes | memoryview) -> bytes:
    """The first EXIF block of a JPEG, or nothing."""
    for marker, start, stop in jpeg_segments(data):
        if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            return bytes(data[start:stop])
    return b""


def jpeg_as_specified(data: bytes | memoryview) -> bytes | None:
    """A JPEG without what a strict decoder stops at though the picture is whole, and viewers show it; None where there
    is nothing of the kind. The picture's own bytes stay as they are.

    That is stray bytes between segments, as some cameras and scanners leave there; metadata, such as a damaged ICC
    profile; and scan parameters of a sequential JPEG other than the constant ones (spectral 0..63, no approximation),
    as many Samsung phones wrote them.
    """
    data = bytes(data)
    sequential, stop, parts = False, 2, [data[:2]]
    for marker, start, stop in jpeg_segments(data, scans=True):
        segment = data[start - 4 : stop] if marker != _END else _EOI
        sequential |= marker in _SEQUENTIAL_SOF
        if marker == _SOS and sequential:
            length = 2 + int.from_bytes(segment[2:4], "big")
            segment = segment[: length - 3] + b"\0\x3f\0" + segment[length:]
        if not (0xE1 <= marker <= 0xED or marker == _COM):
            parts.append(segment)
    whole = b"".join(parts) + (b"" if parts[-1] == _EOI else data[stop:])
    return None if whole == data else whole


def jpeg_without(data: bytes | memoryview, count: int) -> Iterator[bytes]:
    """The JPEG without the `count` bytes that end one of its scans, for one scan after the other."""
    data = bytes(data)
    for stop in [stop for marker, _, stop in jpeg_segments(data, scans=True) if marker == _SOS][:_MOST_SCANS]:
        yield data[: stop - count] + data[stop:]


def png_without_metadata(data: bytes | memoryview) -> bytes | None:
    """A PNG with what makes the picture alone: no text, no profile, no chunk that may be left out and has a wrong CRC.

    Decoders bound what they read of those, and refuse the picture with them. None if there is nothing of the kind.
    """
    data = bytes(data)
    parts, position = [data[:8]], 8
    while position + 12 <= len(data):
        name, stop = data[position + 4 : position + 8], position + 12 + _u32(data, position)
        if stop > len(data):
            break
        if not name[:1].islower() or (
            name in (b"tRNS", b"eXIf", b"gAMA") and zlib.crc32(data[position + 4 : stop - 4]) == _u32(data, stop - 4)
        ):
            parts.append(data[position:stop])
        position = stop
    whole = b"".join(parts) + data[position:]
    return None if whole == data else whole


def webp_as_specified(data: bytes | memoryview) -> bytes | None:
    """A WebP whose header tells another length than its chunks have, as they have it; None where it tells no other, or
    where a chunk is cut short."""
    data = bytes(data)
    stop = 12
    while data[stop : stop + 4] in _WEBP_CHUNKS:
        stop += 8 + int.from_bytes(data[stop + 4 : stop + 8], "little")
        if stop > len(data):
            return None
        stop += stop % 2
    chunks = data[12:stop].ljust(stop - 12, b"\0")
    whole = b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks
    return None if whole == data[: len(whole)] else whole


def exif_orientation(exif: bytes) -> int:
    """EXIF orientation, 1..8. A block that is absent or damaged says nothing about the picture: 1, as stored."""
    values = _tiff_tag(exif.removeprefix(b"Exif\0\0"), _ORIENTATION)
    return values[0] if len(values) == 1 and 1 <= values[0] <= 8 else 1


def tiff_without_extra_planes(data: bytes | memoryview) -> bytes | None:
    """A colour TIFF whose channels lie apart, without those behind the colours that no tag calls alpha: Pillow knows to
    pass over them, and then trips over where they lie. None for any other."""
    data = bytes(data)
    tags = dict(_tiff_entries(data))
    samples, extra = sum(_tiff_tag(data, _SAMPLES)), _tiff_tag(data, _EXTRA_SAMPLES)
    if _tiff_tag(data, _PLANAR) != (2,) or not extra or any(extra) or samples - len(extra) < 3:
        return None
    fewer = bytearray(data)
    for tag in {tag for pair in _STRIPS for tag in pair} & tags.keys():
        _, count = struct.unpack_from(_TIFF_ORDER[data[:4]] + "HI", data, tags[tag] + 2)
        struct.pack_into(_TIFF_ORDER[data[:4]] + "I", fewer, tags[tag] + 4, count * (samples - len(extra)) // samples)
    return bytes(fewer)


def _tiff_entries(tiff: bytes) -> Iterator[tuple[int, int]]:
    """Tag and place of each entry in the first directory of a classic TIFF, as far as they are in bounds."""
    order = _TIFF_ORDER.get(tiff[:4])
    try:
        if order is not None:
            (directory,) = struct.unpack_from(order + "I", tiff, 4)
            (entries,) = struct.unpack_from(order + "H", tiff, directory)
            for at in range(directory + 2, directory + 2 + 12 * entries, 12):
                yield struct.unpack_from(order + "H", tiff, at)[0], at
    except struct.error:
        pass  # reaches beyond the end


def _tiff_tag(tiff: bytes, wanted: int) -> tuple[int, ...]:
    """Values of an integer tag in the first directory of a classic TIFF; none where absent or out of bounds."""
    for tag, at in _tiff_entries(tiff):
        order = _TIFF_ORDER[tiff[:4]]
        try:
            kind, count = struct.unpack_from(order + "HI", tiff, at + 2)
            if tag != wanted or kind not in (3, 4):  # SHORT, LONG
                continue
            values = f"{order}{count}{'H' if kind == 3 else 'I'}"
            inline = struct.calcsize(values) <= 4
            start = at + 8 if inline else struct.unpack_from(order + "I", tiff, at + 8)[0]
            return struct.unpack_from(values, tiff, start)
        except struct.error:
            break  # reaches beyond the end
    return ()


def _tiff_is_cut_short(data: bytes) -> bool:
    if data[:4] not in _TIFF_ORDER:
        return False  # 64-bit TIFF, whose directory is not read here
    for offsets_tag, counts_tag in _STRIPS:
        offsets, counts = _tiff_tag(data, offsets_tag), _tiff_tag(data, counts_tag)
        if offsets and len(offsets) == len(counts):
            return any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=True))
    return True  # the directory itself, often the last thing in the file, cannot be read


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, start, stop) of the contents of each box of an ISO media file; the last may reach beyond the end."""
    position = 0
    while position + 8 <= len(data):
        size, start = _u32(data, position), position + 8
        if size == 1:
            size, start = int.from_bytes(data[position + 8 : position + 16], "big"), position + 16
        stop = position + max(size, 8) if size else len(data)  # 0: up to the end of the file
        yield data[position + 4 : position + 8], start, stop
        position = stop


def _boxes_are_cut_short(data: bytes) -> bool:
    return max((stop for _, _, stop in _boxes(data)), default=0) != len(data)


class JxlHeader(NamedTuple):
    """Of a JPEG XL codestream: the picture as its decoder turns it, and how that was stored."""

    width: int
    height: int
    orientation: int
    animated: bool


def jxl_header(data: bytes | memoryview) -> JxlHeader | None:
    """Read before anything is decoded (ISO/IEC 18181-1, D.2 and D.3); None where there is none."""
    stream = bytes(data[:64])
    if stream[:1] == b"\0":
        stream, data = b"", bytes(data)
        for name, start, stop in _boxes(data):
            if name in (b"jxlp", b"jxlc") and len(stream) < 64:
                stream += data[start + 4 * (name == b"jxlp") : min(stop, start + 64)]
    if stream[:2] != b"\xff\x0a":
        return None
    bits = int.from_bytes(stream[2:64], "little")

    def read(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    def size() -> tuple[int, int]:
        small = read(1)
        sides = (8 * (read(5) + 1) if small else read((9, 13, 18, 30)[read(2)]) + 1 for _ in range(2))
        height = next(sides)
        times, over = _JXL_RATIOS[read(3)]
        return (height * times // over if times else next(sides)), height

    width, height = size()
    orientation, animated = 1, False
    if not read(1) and read(1):  # not all as usual, and there are extra fields
        orientation = read(3) + 1
        if read(1):
            size()  # intrinsic
        animated = not read(1) and bool(read(1))  # behind the header of a preview nothing is looked for
    return JxlHeader(*((height, width) if orientation >= 5 else (width, height)), orientation, animated)


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "big")
