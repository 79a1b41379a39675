"""Images to decode, good and bad, each with what should come of it.

They are made from crops of scikit-learn's two sample photographs, so that nothing is downloaded.
"""

from __future__ import annotations

import functools
import io
import struct
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image

from jobs.measure.bench_images import photo
from jobs.measure.bench_images import photographs as photographs
from tests.support.crafted import jpeg_410, png, tiff, with_jpeg_size, with_samsung_scan_header, without_adobe_marker
from workers.image.decode import ImageArray, SizeKnown, decode_stored, upright

LOSSLESS, LOSSY = 0.0, 6.0
ANY = "any"
"""In place of an error code: may decode or not, but must not do anything else."""


def decode(data: bytes | memoryview, size_known: SizeKnown = lambda _: None) -> ImageArray:
    """An image as a person sees it: HWC, uint8, C-contiguous. Raises as decode_stored does."""
    stored = decode_stored(data, size_known)
    return np.ascontiguousarray(upright(stored.image_HWC, stored.orientation))


@dataclass(frozen=True, kw_only=True)
class Sample:
    data: bytes
    code: str | None = None
    """Expected error code, None if it decodes, ANY if either will do."""
    look_HWC: np.ndarray | None = None
    """What a person sees, where that is known."""
    tolerance: float = LOSSLESS
    """Largest mean difference from the look, in levels."""


def encode(image: np.ndarray | Image.Image, kind: str, **options: object) -> bytes:
    """As a file in one of Pillow's formats."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def stored_as(look_HWC: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels to store so that a viewer that obeys the orientation shows the look."""
    row_0, column_0 = _SIDES[orientation]
    image_HWC = look_HWC.transpose(1, 0, 2) if row_0 in ("left", "right") else look_HWC
    image_HWC = image_HWC[::-1] if row_0 in ("bottom", "right") else image_HWC
    return np.ascontiguousarray(image_HWC[:, ::-1] if column_0 in ("bottom", "right") else image_HWC)


# EXIF 2.32, 4.6.4 A, Orientation: the side of the visible picture on which stored row 0, and stored column 0, lie.
_SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x010F] = "a maker whose name does not fit into an entry"
    block[0x0112] = orientation
    return block


def _grey(image_HWC: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image_HWC).convert("L"))


def _repeat(grey_HW: np.ndarray) -> np.ndarray:
    return np.repeat(grey_HW[:, :, None], 3, axis=2)


def _see(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def _over_white(image_HWC: np.ndarray, alpha_HW: np.ndarray) -> np.ndarray:
    alpha = alpha_HW[:, :, None] / 255.0
    return np.rint(image_HWC * alpha + 255 * (1 - alpha)).astype(np.uint8)


def _jpegs(look_HWC: np.ndarray) -> dict[str, Sample]:
    def seen(data: bytes) -> Sample:
        return Sample(data=data, look_HWC=look_HWC, tolerance=LOSSY)

    grey_HW = _grey(look_HWC)
    cmyk = Image.fromarray(look_HWC).convert("CMYK")
    base = encode(look_HWC, "JPEG", quality=92)
    progressive = encode(look_HWC, "JPEG", quality=92, progressive=True)
    ycck = simplejpeg.encode_jpeg(255 - np.asarray(cmyk), quality=92, colorspace="CMYK")
    return {
        "jpeg_420": seen(base),
        "jpeg_444": seen(encode(look_HWC, "JPEG", quality=92, subsampling=0)),
        "jpeg_422": seen(encode(look_HWC, "JPEG", quality=92, subsampling=1)),
        "jpeg_progressive": seen(progressive),
        "jpeg_restart_markers": seen(encode(look_HWC, "JPEG", quality=92, restart_marker_rows=2)),
        "jpeg_grey": Sample(data=encode(grey_HW, "JPEG", quality=92), look_HWC=_repeat(grey_HW), tolerance=LOSSY),
        "jpeg_cmyk_adobe_inverted": seen(encode(cmyk, "JPEG", quality=92)),
        "jpeg_cmyk_inverted_without_adobe_marker": seen(without_adobe_marker(encode(cmyk, "JPEG", quality=92))),
        "jpeg_ycck": seen(ycck),
        "jpeg_samsung_scan_header": seen(with_samsung_scan_header(base)),
        "jpeg_410": Sample(
            data=jpeg_410(encode(np.full((16, 32, 3), 128, np.uint8), "JPEG", quality=50, subsampling=0)),
            look_HWC=np.full((16, 32, 3), 142, np.uint8),
        ),
        "jpeg_stray_bytes_before_end": seen(base[:-2] + b"stray bytes" + base[-2:]),
        "jpeg_progressive_stray_bytes_before_end": seen(progressive[:-2] + b"stray bytes" + progressive[-2:]),
        "jpeg_trailing_garbage": seen(base + b"\0" * 100 + b"leftovers"),
        "jpeg_trailing_jpeg": seen(base + encode(255 - look_HWC, "JPEG")),
        "jpeg_damaged_exif": seen(encode(look_HWC, "JPEG", quality=92, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")),
    }


def _orientations(look_HWC: np.ndarray) -> dict[str, Sample]:
    samples = {}
    for k in range(1, 9):
        image_HWC, block = stored_as(look_HWC, k), exif(k)
        jpeg = encode(image_HWC, "JPEG", quality=92, exif=block)
        webp = encode(image_HWC, "WEBP", quality=95, exif=block)
        samples[f"jpeg_orientation_{k}"] = Sample(data=jpeg, look_HWC=look_HWC, tolerance=LOSSY)
        samples[f"webp_orientation_{k}"] = Sample(data=webp, look_HWC=look_HWC, tolerance=LOSSY)
        samples[f"png_orientation_{k}"] = Sample(data=encode(image_HWC, "PNG", exif=block), look_HWC=look_HWC)
        for how in ("raw", "tiff_lzw"):
            data = encode(image_HWC, "TIFF", compression=how, tiffinfo={0x0112: k})
            samples[f"tiff_{how}_orientation_{k}"] = Sample(data=data, look_HWC=look_HWC)
        if k in (3, 6):  # AVIF stores them as its own rotation; encoding it is slow
            data = encode(image_HWC, "AVIF", quality=90, exif=block)
            samples[f"avif_orientation_{k}"] = Sample(data=data, look_HWC=look_HWC, tolerance=LOSSY)
    return samples


def _others(look_HWC: np.ndarray) -> dict[str, Sample]:
    height, width, _ = look_HWC.shape
    image, grey_HW = Image.fromarray(look_HWC), _grey(look_HWC)
    palette, bilevel = image.quantize(64), image.convert("1")
    alpha_HW = np.tile(np.linspace(0, 255, width).astype(np.uint8), (height, 1))
    rgba = Image.fromarray(np.dstack([look_HWC, alpha_HW]))
    holes_HWC = _see(palette).copy()
    holes_HWC[np.asarray(palette) == 5] = 255
    wide_HW = grey_HW.astype(np.uint16) * 256 + np.arange(width, dtype=np.uint16)  # low bytes that must not matter
    sixteen_rows = b"".join(b"\0" + (row.astype(">u2") * 257).tobytes() for row in look_HWC.reshape(height, -1))
    pairs = grey_HW.astype(np.uint32).reshape(-1, 2) << 4  # two 12-bit samples in three bytes
    packed = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    negative = Image.fromarray(255 - look_HWC)
    frames = {"save_all": True, "append_images": [negative, image], "duration": 40}

    def seen(data: bytes, look: np.ndarray = look_HWC, tolerance: float = LOSSLESS) -> Sample:
        return Sample(data=data, look_HWC=look, tolerance=tolerance)

    return {
        "png": seen(encode(image, "PNG")),
        "png_grey": seen(encode(grey_HW, "PNG"), _repeat(grey_HW)),
        "png_bilevel": seen(encode(bilevel, "PNG"), _see(bilevel)),
        "png_palette": seen(encode(palette, "PNG"), _see(palette)),
        "png_palette_alpha": seen(encode(palette, "PNG", transparency=5), holes_HWC),
        "png_grey_alpha": seen(
            encode(Image.fromarray(np.dstack([grey_HW, alpha_HW])), "PNG"), _over_white(_repeat(grey_HW), alpha_HW), 0.6
        ),
        "png_rgba": seen(encode(rgba, "PNG"), _over_white(look_HWC, alpha_HW), 0.6),
        "png_rgba_opaque": seen(encode(image.convert("RGBA"), "PNG")),
        "png_grey_16_bit": seen(encode(Image.fromarray(wide_HW), "PNG"), _repeat(grey_HW)),
        "png_rgb_16_bit": seen(png(width, height, depth=16, rows=sixteen_rows)),
        "png_animated": seen(encode(image, "PNG", **frames)),
        "gif": seen(encode(palette, "GIF"), _see(palette)),
        "gif_animated": seen(encode(palette, "GIF", save_all=True, append_images=[negative]), _see(palette)),
        "gif_transparent": seen(encode(palette, "GIF", transparency=5), holes_HWC),
        "webp": seen(encode(image, "WEBP", quality=95), tolerance=LOSSY),
        "webp_lossless": seen(encode(image, "WEBP", lossless=True)),
        "webp_animated": seen(encode(image, "WEBP", lossless=True, **frames)),
        "webp_rgba": seen(encode(rgba, "WEBP", lossless=True, exact=True), _over_white(look_HWC, alpha_HW), 0.6),
        "avif": seen(encode(image, "AVIF", quality=90), tolerance=LOSSY),
        "bmp": seen(encode(image, "BMP")),
        "bmp_palette": seen(encode(palette, "BMP"), _see(palette)),
        "tiff": seen(encode(image, "TIFF")),
        "tiff_deflate": seen(encode(image, "TIFF", compression="tiff_deflate")),
        "tiff_cmyk": seen(encode(image.convert("CMYK"), "TIFF")),
        "tiff_grey_16_bit": seen(encode(Image.fromarray(wide_HW), "TIFF"), _repeat(grey_HW)),
        "tiff_grey_16_bit_white_is_zero": seen(
            tiff(width, height, (65535 - wide_HW).astype("<u2").tobytes(), bits=16, white=0), _repeat(grey_HW)
        ),
        "tiff_grey_12_bit": seen(tiff(width, height, packed, bits=12, white=1), _repeat(grey_HW)),
        "tiff_float_to_1": seen(encode(Image.fromarray(grey_HW / np.float32(255)), "TIFF"), _repeat(grey_HW)),
        "tiff_float_to_255": seen(encode(Image.fromarray(grey_HW.astype(np.float32)), "TIFF"), _repeat(grey_HW)),
        "one_pixel": seen(encode(look_HWC[:1, :1], "PNG"), look_HWC[:1, :1]),
        "one_column": seen(encode(look_HWC[:100, :1], "PNG"), look_HWC[:100, :1]),
    }


def _cut(samples: dict[str, Sample]) -> dict[str, Sample]:
    jpeg, progressive = samples["jpeg_420"].data, samples["jpeg_progressive"].data
    after_frame = jpeg.index(b"\xff\xc0") + 19
    cut = {f"cut_jpeg_{percent}": jpeg[: len(jpeg) * percent // 100] for percent in (1, 10, 50, 90, 95, 99)}
    cut |= {f"cut_jpeg_progressive_{percent}": progressive[: len(progressive) * percent // 100] for percent in (30, 95)}
    cut |= {"cut_jpeg_magic": jpeg[:3], "cut_jpeg_frame_header": jpeg[:after_frame], "cut_jpeg_end": jpeg[:-2]}
    for name in ("png", "png_palette", "gif", "webp", "avif", "bmp", "tiff", "tiff_deflate"):
        data = samples[name].data
        cut |= {f"cut_{name}_{percent}": data[: len(data) * percent // 100] for percent in (20, 60, 90)}
    return {name: Sample(data=data, code="truncated") for name, data in cut.items()}


def _bad(samples: dict[str, Sample]) -> dict[str, Sample]:
    jpeg, cmyk = samples["jpeg_420"].data, samples["jpeg_cmyk_adobe_inverted"].data
    half = len(jpeg) // 2
    flipped = bytearray(jpeg)
    for at in range(half, half + 40, 7):
        flipped[at] ^= 0x55
    damaged_png = bytearray(samples["png"].data)
    damaged_png[len(damaged_png) // 2] ^= 0xFF
    nan = np.full((8, 8), np.nan, dtype=np.float32)

    def bad(data: bytes, code: str) -> Sample:
        return Sample(data=data, code=code)

    return {
        "empty": bad(b"", "empty"),
        "text": bad(b"<html><body>404 Not Found</body></html>", "unsupported_format"),
        "svg": bad(b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>', "unsupported_format"),
        "pdf": bad(b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n", "unsupported_format"),
        "zip": bad(b"PK\x03\x04" + bytes(40), "unsupported_format"),
        "heic": bad(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "unsupported_format"),
        "heif_neutral_brand": bad(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(100), "unsupported_format"),
        "wrong_magic": bad(b"\0" + jpeg[1:], "unsupported_format"),
        "zeros": bad(bytes(1000), "unsupported_format"),
        "png_magic_then_jpeg": bad(b"\x89PNG\r\n\x1a\n" + jpeg, "truncated"),
        "jpeg_cut_and_ended": bad(jpeg[:half] + b"\xff\xd9", "corrupt"),
        "jpeg_cmyk_cut_and_ended": bad(cmyk[: len(cmyk) // 2] + b"\xff\xd9", "corrupt"),
        "jpeg_flipped_bits": bad(bytes(flipped), ANY),
        "jpeg_hole": bad(jpeg[:half] + bytes(200) + jpeg[half + 200 :], ANY),
        "png_damaged": bad(bytes(damaged_png), "corrupt"),
        "png_bomb": bad(png(30_000, 30_000, depth=1, colour=0, rows=bytes(3_751 * 64)), "too_large"),
        "png_over_twice_the_limit": bad(png(60_000, 60_000, rows=bytes(100)), "too_large"),
        "jpeg_bomb": bad(with_jpeg_size(jpeg, 65_500, 65_500), "too_large"),
        "gif_bomb": bad(b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + samples["gif"].data[10:], "too_large"),
        "strip": bad(encode(np.zeros((1, 60_000, 3), np.uint8), "PNG"), "bad_size"),
        "strip_jpeg": bad(encode(np.zeros((60_000, 1, 3), np.uint8), "JPEG"), "bad_size"),
        "png_zero_width": bad(png(0, 100, rows=bytes(100)), "corrupt"),
        "jpeg_zero_height": bad(with_jpeg_size(jpeg, 100, 0), "corrupt"),
        "tiff_nan": bad(encode(Image.fromarray(nan), "TIFF"), "unsupported_format"),
        "tiff_int32": bad(encode(Image.fromarray(np.zeros((8, 8), np.int32)), "TIFF"), "unsupported_format"),
    }


@functools.cache
def samples() -> dict[str, Sample]:
    """Every kind of image, by name. The look is a 120x160 photograph unless it cannot be."""
    look_HWC = photo()
    good = _jpegs(look_HWC) | _orientations(look_HWC) | _others(look_HWC)
    return good | _cut(good) | _bad(good)


def corpus() -> dict[str, tuple[bytes, str | None]]:
    """Name to (file, expected error code): None if it decodes, ANY if either will do."""
    return {name: (sample.data, sample.code) for name, sample in samples().items()}
