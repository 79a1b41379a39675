"""Image bytes in, the RGB that a person sees out; or a BadImage with a stable code.

JPEG goes through simplejpeg (libjpeg-turbo) in strict mode: anything libjpeg merely warns about is refused, because the
warning may mean grey filler where the picture should be. The other formats, and the rare JPEG layouts that
simplejpeg does not know, go through Pillow, with exactly one of its parsers allowed: the one the magic bytes name.

What is seen:
- EXIF orientation is applied, whatever the format. XMP orientation is not, as in browsers.
- Transparency is composited over white.
- 16 bits a channel become 8 by dropping the low byte, grey or colour. Float TIFFs are read as [0, 1] or [0, 255].
- CMYK is taken as inverted ("Adobe") as in Pillow and browsers; ICC profiles are not applied, as in the preprocessing
  that the published weights were trained with.
- Of an animation, the first frame.
- Stray bytes between the segments of a JPEG and behind any picture, oversized metadata and wrong checksums of it are
  passed over, as viewers do: once a picture was refused, a tidy copy of it is decoded by the same strict rules.

Nothing global is changed here, and everything may be called from many threads at once.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

from workers.contract import USUAL_FORMATS
from workers.image.errors import MAX_PIXELS, BadImage, ErrorCode
from workers.image.formats import (
    exif_orientation,
    is_cut_short,
    jpeg_as_specified,
    jpeg_exif,
    jpeg_without,
    png_without_metadata,
    sniff,
    tiff_without_extra_planes,
    webp_as_specified,
)
from workers.image.plugins import MODULES, open_heif, open_jxl

ImageArray = npt.NDArray[np.uint8]

MAX_ASPECT = 100
"""Longer side ÷ shorter side. The reference resize fixes the shorter side: 1x60000 would become 256x15 million."""

STRIP_PIXELS = 2**20
"""A decoded picture becomes RGB so much at a time: a large one is in memory once and a half, not four times."""

ROOM_BYTES_A_PIXEL = 16
"""What decoders may allocate; asked for, and given back untouched, after one has refused an image."""

_STRAY_BYTES, _AT_END = re.compile("([0-9]+) extraneous bytes before marker 0x(..)"), "d9"
"""libjpeg's warning JWRN_EXTRANEOUS_DATA, and the marker at the end of an image in it."""


# What Pillow raises for content that it cannot read. Its parsers index, unpack, divide and assert their way through
# untrusted bytes, so this is the list of what that can raise, and is used around calls into Pillow only. Warning is
# there for programs run with -W error. MemoryError is not: it says something about this host, not about the image.
_PILLOW_FAULTS = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError),
    *(AttributeError, AssertionError, RuntimeError, struct.error, zlib.error, Warning),
)

# EXIF 2.32, 4.6.4 A: where row 0 and column 0 of the stored picture belong.
LEFT, UP = (2, 3, 7, 8), (3, 4, 6, 7)
"""Orientations in which the stored columns, or rows, come in the opposite order."""
ON_ITS_SIDE = 5
"""From this one on the stored rows are the columns that a person sees."""

_BITS, _PHOTOMETRIC, _PLANAR, _EXTRA_SAMPLES = 258, 262, 284, 338  # tags of TIFF
_TIDY = {"PNG": png_without_metadata, "WEBP": webp_as_specified, "TIFF": tiff_without_extra_planes}
"""By kind: the same picture without what decoders refuse it for, and viewers do not; tried once it was refused."""

SizeKnown: TypeAlias = Callable[[int], object]
"""Called with the number of an image's pixels before they are decoded; it may wait."""


class Stored(NamedTuple):
    """A decoded picture, the way up that it is stored."""

    image_HWC: ImageArray
    """RGB, uint8, C-contiguous, writable."""
    height: int
    """Of the picture. Where it was made smaller, the image has a `shrunk`th of the rows, rounded up."""
    width: int
    shrunk: int
    """1, 2, 4 or 8."""
    orientation: int
    """EXIF's, 1 to 8: how a person is to see it."""


def upright(image_HWC: ImageArray, orientation: int) -> ImageArray:
    """A view of a stored picture, or of a part of one, as a person is to see it."""
    if orientation == 1:
        return image_HWC
    turned_HWC = image_HWC[:: -1 if orientation in UP else 1, :: -1 if orientation in LEFT else 1]
    return turned_HWC.transpose(1, 0, 2) if orientation >= ON_ITS_SIDE else turned_HWC


def decode_stored(
    data: bytes | memoryview,
    size_known: SizeKnown = lambda _: None,
    *,
    least_px: int = 0,
    room: ImageArray | None = None,
    formats: Collection[str] = USUAL_FORMATS,
) -> Stored:
    """Decode one image, of one of the job's formats, and leave it as it lies.

    Raises BadImage, and nothing else, whatever the bytes hold; MemoryError where the host has no room; DecoderMissing
    where `formats` names one whose library is not here.

    JPEGs come out a half, a quarter or an eighth of their size where their shorter side still has `least_px`; 0 leaves
    all as they are. `room` is flat memory of the caller's: where an image fits, it may be given back lying in it.
    """
    if isinstance(data, memoryview):
        data = data.cast("B")  # Arrow's buffers hold signed bytes, among which there is no 0xFF
    if len(data) == 0:
        raise BadImage(ErrorCode.EMPTY, "zero bytes")
    kind = sniff(data)
    if kind is None:
        raise BadImage(ErrorCode.UNSUPPORTED_FORMAT, f"no supported image begins with {bytes(data[:12])!r}")
    if kind.lower() not in formats:
        name = kind.lower()
        install = f" and pip install 'stint[{name}]'" if name in MODULES else ""
        write = f"write `formats: [{', '.join((*formats, name))}]` below input{install}"
        raise BadImage(ErrorCode.UNSUPPORTED_FORMAT, f"{name} is not among input.formats: {write}")
    if kind == "JPEG":
        stored, exif = _decode_jpeg(data, size_known, least_px, room), jpeg_exif(data)
    else:
        stored, exif = _decode_with_pillow(kind, data, size_known)
    return stored._replace(orientation=exif_orientation(exif)) if exif else stored


def in_a_usual_format(data: bytes, formats: Collection[str], least_px: int) -> bytes:
    """The same picture for a job without `input.formats`: as it is, or else as a PNG, made smaller as far as its
    shorter side still has `least_px`. Raises as decode_stored does."""
    if (sniff(data) or "").lower() in USUAL_FORMATS:
        return data
    stored, out = decode_stored(data, formats=formats), io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(upright(stored.image_HWC, stored.orientation)))
    image.reduce(max(1, min(image.size) // least_px)).save(out, "PNG")
    return out.getvalue()


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BadImage(ErrorCode.TOO_LARGE, f"{width}x{height} is more than {MAX_PIXELS} pixels")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(ErrorCode.BAD_SIZE, f"{width}x{height}: a side is more than {MAX_ASPECT} times the other")


def _undecodable(kind: str, data: bytes | memoryview, reason: object, pixels: int = MAX_PIXELS) -> BadImage:
    """What to raise for an image that a decoder refused. Raises MemoryError where it may have had no room.

    Decoders report a failed allocation like any damage, libjpeg and Pillow by text alone. So the question is put to
    the host instead: whether it would give them what they may have asked for.
    """
    np.empty(pixels * ROOM_BYTES_A_PIXEL, np.uint8)
    code = ErrorCode.TRUNCATED if is_cut_short(kind, data) else ErrorCode.CORRUPT
    return BadImage(code, f"{kind}: {reason}")


def _decode_jpeg(
    data: bytes | memoryview, size_known: SizeKnown, least_px: int, room: ImageArray | None, *, mended: bool = False
) -> Stored:
    """Strict: libjpeg's warnings are errors. Orientation is not asked for."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        if not mended and (tidy := jpeg_as_specified(data)):
            return _decode_jpeg(tidy, size_known, least_px, room, mended=True)
        if is_cut_short("JPEG", data):
            raise BadImage(ErrorCode.TRUNCATED, f"JPEG: {error}") from None
        # Sampling factors without a TurboJPEG name (4:1:0 and stranger).
        return _decode_with_pillow("JPEG", data, size_known)[0]
    _check_size(width, height)
    size_known(width * height)
    shrunk = next((n for n in (8, 4, 2) if 0 < n * least_px <= min(width, height)), 1)
    layout = "CMYK" if colorspace in ("CMYK", "YCCK") else "RGB"
    if room is not None and (layout == "CMYK" or 3 * width * height > len(room)):
        room = None
    try:
        image_HWC = _decode_pixels(data, layout, -(-height // shrunk), -(-width // shrunk), room)
    except ValueError as error:
        if not mended and (tidy := jpeg_as_specified(data)):
            return _decode_jpeg(tidy, size_known, least_px, room, mended=True)
        raise _undecodable("JPEG", data, error, width * height) from None
    if layout == "CMYK":
        inverted = np.invert(image_HWC, out=image_HWC)
        image_HWC = _rgb8(Image.frombuffer("CMYK", inverted.shape[1::-1], inverted, "raw", "CMYK", 0, 1))
    return Stored(image_HWC, height, width, shrunk, 1)


def _decode_pixels(
    data: bytes | memoryview, layout: str, height: int, width: int, room: ImageArray | None
) -> ImageArray:
    """An image of that size, which libjpeg can make. Raises ValueError for every warning of libjpeg's but one."""
    options = {"colorspace": layout, "min_height": height, "min_width": width, "buffer": room}
    try:
        image_HWC: ImageArray = simplejpeg.decode_jpeg(data, **options)
    except ValueError as error:
        # Strict decoding ends at the first warning. If that is about bytes between a scan and what follows, the scan
        # came whole before it: at the end of the file that is all; elsewhere only another strict look tells that what
        # follows is sound. libjpeg tells its warnings apart by nothing but their text.
        stray = _STRAY_BYTES.search(str(error))
        if stray is None:
            raise
        if stray[2] == _AT_END:
            return cast(ImageArray, simplejpeg.decode_jpeg(data, **options, strict=False))
        for less in jpeg_without(data, int(stray[1])):
            with suppress(ValueError):
                return cast(ImageArray, simplejpeg.decode_jpeg(less, **options))
        raise
    return image_HWC


def _decode_with_pillow(
    kind: str, data: bytes | memoryview, size_known: SizeKnown, *, mended: bool = False
) -> tuple[Stored, bytes]:
    """The picture, and the EXIF block that still has to be obeyed."""
    pixels = MAX_PIXELS

    def known(width: int, height: int) -> None:
        nonlocal pixels
        _check_size(width, height)
        pixels = width * height
        size_known(pixels)

    try:
        with _opened(kind, data, known) as image:
            image.load()
            _check_size(*image.size)  # of a HEIF it may be another one than the header told
            image_HWC = _rgb8(image)
            # A TIFF and a HEIF are upright by now. A PNG may carry its EXIF behind the pixels: ask after loading.
            exif = b"" if kind in ("TIFF", "HEIF") else image.info.get("exif", b"")
            return Stored(image_HWC, image_HWC.shape[0], image_HWC.shape[1], 1, 1), exif
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(ErrorCode.TOO_LARGE, f"{kind}: {error}") from None
    except _PILLOW_FAULTS as error:
        if not mended and kind in _TIDY and (tidy := _TIDY[kind](data)):
            return _decode_with_pillow(kind, tidy, size_known, mended=True)
        unknown = isinstance(error, UnidentifiedImageError)  # whose text holds a memory address
        reason = "the header is damaged, or of a kind that Pillow does not read" if unknown else error
        raise _undecodable(kind, data, reason, pixels) from None


def _opened(kind: str, data: bytes | memoryview, size_known: Callable[[int, int], object]) -> Image.Image:
    """With Pillow's parser of that kind, or a plugin's, and no other."""
    if kind == "JXL":
        return open_jxl(data, size_known)
    image = open_heif(data) if kind == "HEIF" else Image.open(io.BytesIO(data), formats=(kind,))
    size_known(*image.size)
    if _tag(image, _PLANAR) == 2 and _deepest(image) == 16:
        # Where channels lie apart and are not compressed, Pillow 13.0 reads their first half as if they had 8 bits.
        order = "L" if data[:1] == b"I" else "B"
        planes: list[tuple[Any, Any]] = [(tile, tile.args) for tile in image.tile if tile.codec_name == "raw"]
        if planes and len(planes[0][1][0]) == 1:
            image.tile = [tile._replace(args=(f"{args[0]};16{order}", *args[1:])) for tile, args in planes]
    return image


def _strips(width: int, height: int) -> Iterator[slice]:
    """All rows of an image, about STRIP_PIXELS at a time."""
    rows = max(1, STRIP_PIXELS // width)
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def _rgb8(image: Image.Image) -> ImageArray:
    """Any mode that Pillow's readers produce, as RGB bytes."""
    width, height = image.size
    to_rgb = _conversion(image)
    if width * height <= STRIP_PIXELS:
        return to_rgb(image)
    image_HWC = np.empty((height, width, 3), np.uint8)
    for rows in _strips(width, height):
        image_HWC[rows] = to_rgb(image.crop((0, rows.start, width, rows.stop)))
    return image_HWC


def _conversion(image: Image.Image) -> Callable[[Image.Image], ImageArray]:
    """How the image, or a part of it, becomes RGB bytes."""
    levels: Callable[[Image.Image], npt.NDArray[np.generic]]
    if image.mode.startswith("I;16"):
        unused = (_deepest(image) or 16) - 8  # 12-bit samples keep their values in Pillow's 16
        levels = lambda part: np.asarray(part) >> unused  # noqa: E731
    elif image.mode == "F":
        low, high = _range(image)
        if not (low >= 0 and high <= 255):  # also refuses NaN
            raise BadImage(ErrorCode.UNSUPPORTED_FORMAT, f"float values in [{low:g}, {high:g}] have no defined look")
        levels = lambda part: np.rint(np.asarray(part) * (255 if high <= 1 else 1))  # noqa: E731
    elif image.mode in ("I", "LAB"):
        raise BadImage(ErrorCode.UNSUPPORTED_FORMAT, f"pixels of mode {image.mode} have no defined look")
    else:
        return _over_white if _is_seen_through(image) else lambda part: np.array(part.convert("RGB"))
    clear = image.info.get("transparency")  # of a 16-bit PNG, the value that is seen through
    white_is_zero = _tag(image, _PHOTOMETRIC) == 0  # Pillow undoes it for 8 bits only.

    def convert(part: Image.Image) -> ImageArray:
        grey_HW = levels(part).astype(np.uint8)
        if clear is not None:
            grey_HW[np.asarray(part) == clear] = 255
        return np.repeat((255 - grey_HW if white_is_zero else grey_HW)[:, :, None], 3, axis=2)

    return convert


def _is_seen_through(image: Image.Image) -> bool:
    """Whether there is an alpha channel, and it is meant as one.

    Writers of BMP leave the fourth byte at zero, and in a TIFF a band that no tag calls alpha is something else, often
    near infrared.
    """
    if image.format == "BMP" and image.mode == "RGBA":
        return image.getchannel("A").getextrema() != (0, 0)
    if image.format == "TIFF" and image.mode in ("RGBA", "LA") and not _tag(image, _EXTRA_SAMPLES):
        return False
    return image.has_transparency_data


def _over_white(part: Image.Image) -> ImageArray:
    seen_through = part.convert("RGBA")
    canvas = Image.new("RGB", part.size, "white")
    canvas.paste(seen_through, mask=seen_through)
    return np.array(canvas)


def _range(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest value of a float image; NaN where there is one."""
    width, height = image.size
    strips = (np.asarray(image.crop((0, rows.start, width, rows.stop))) for rows in _strips(width, height))
    ends = np.array([(strip.min(), strip.max()) for strip in strips])
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def _tag(image: Image.Image, tag: int) -> object:
    return getattr(image, "tag_v2", {}).get(tag)


def _deepest(image: Image.Image) -> int:
    """Bits of a TIFF's samples; 0 for what is none."""
    bits = _tag(image, _BITS)
    return max(bits) if isinstance(bits, tuple) and bits else 0
