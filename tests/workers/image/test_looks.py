"""Each line of the table in docs/INPUT.md, "How images are decoded": what is seen where decoders could disagree."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageCms

from tests.support.images import encode, exif, photo, samples, stored_as
from tests.workers.image.test_whole_pictures import BASE, PNG, bmp, chunk, tiff
from workers.contract import ALL_FORMATS
from workers.image.decode import decode_stored, upright
from workers.image.errors import BadImage

LOOK_HWC = photo()
INPUT_PAGE = Path(__file__).parents[3] / "docs/INPUT.md"


def seen(data: bytes) -> np.ndarray:
    stored = decode_stored(data, formats=ALL_FORMATS)
    return np.ascontiguousarray(upright(stored.image_HWC, stored.orientation))


def same(data: bytes, look_HWC: np.ndarray = LOOK_HWC, *, levels: float = 0) -> None:
    found_HWC = seen(data)
    assert found_HWC.shape == look_HWC.shape
    assert np.abs(found_HWC.astype(int) - look_HWC).mean() <= levels


def refused(data: bytes, code: str) -> None:
    with pytest.raises(BadImage) as caught:
        seen(data)
    assert caught.value.code == code


def plugin(name: str) -> None:
    if name == "heif":
        pytest.importorskip("pillow_heif").register_heif_opener()  # to write such files
    else:
        pytest.importorskip("pillow_jxl")


def orientation() -> None:
    turned = Image.fromarray(stored_as(LOOK_HWC, 6))
    for kind in ("JPEG", "PNG", "WEBP", "AVIF"):
        same(encode(turned, kind, exif=exif(6), quality=92), levels=6)
    same(encode(turned, "TIFF", tiffinfo={0x0112: 6}))
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    same(encode(LOOK_HWC, "JPEG", quality=92, xmp=xmp), seen(BASE))
    text = b"Raw profile type exif\0\0" + exif(6).tobytes().hex().encode()
    same(PNG[:33] + chunk(b"tEXt", text) + PNG[33:])


def profile() -> None:
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    same(encode(LOOK_HWC, "JPEG", quality=92, icc_profile=swapped), seen(BASE))
    same(encode(LOOK_HWC, "PNG", icc_profile=swapped))
    same(PNG[:33] + chunk(b"gAMA", (10_000).to_bytes(4, "big")) + PNG[33:])


def transparency() -> None:
    alpha_HW = np.full(LOOK_HWC.shape[:2], 128, np.uint8)
    over_white_HWC = np.rint(LOOK_HWC * (128 / 255) + 127)
    for kind in ("PNG", "TIFF", "WEBP"):
        rgba = Image.fromarray(np.dstack([LOOK_HWC, alpha_HW]))
        same(encode(rgba, kind, **({"lossless": True} if kind == "WEBP" else {})), over_white_HWC, levels=1)
    same(bmp(0))


def fourth_band() -> None:
    bands_HWC = np.dstack([LOOK_HWC, np.full(LOOK_HWC.shape[:2], 7, np.uint8)])
    same(tiff(bands_HWC))
    same(tiff(bands_HWC, extra=(0,)))


def cmyk_jpeg() -> None:
    for name in ("jpeg_cmyk_adobe_inverted", "jpeg_cmyk_inverted_without_adobe_marker", "jpeg_ycck"):
        same(samples()[name].data, levels=6)


def cmyk_tiff() -> None:
    same(encode(Image.fromarray(LOOK_HWC).convert("CMYK"), "TIFF"))


def chroma() -> None:
    half = encode(LOOK_HWC, "JPEG", quality=92, subsampling=2)
    same(half, np.asarray(Image.open(io.BytesIO(half))))
    rough_HWC = simplejpeg.decode_jpeg(half, fastupsample=True)
    assert np.abs(seen(half).astype(int) - rough_HWC).max() > 0


def sixteen_bits() -> None:
    for name in ("png_grey_16_bit", "png_rgb_16_bit", "tiff_grey_16_bit"):
        same(samples()[name].data, samples()[name].look_HWC)
    same(tiff(LOOK_HWC.astype(np.uint16) * 256 + np.uint16(255)))


def ten_bits() -> None:
    plugin("heif")
    import pillow_heif

    wide = (LOOK_HWC.astype(np.uint16) << 8).tobytes()
    height, width, _ = LOOK_HWC.shape
    for more in (False, True):
        pillow_heif.options.SAVE_HDR_TO_12_BIT = more
        out = io.BytesIO()
        pillow_heif.from_bytes("RGB;16", (width, height), wide).save(out, quality=90)
        pillow_heif.options.SAVE_HDR_TO_12_BIT = False
        assert pillow_heif.open_heif(out, convert_hdr_to_8bit=False).info["bit_depth"] == (12 if more else 10)
        same(out.getvalue(), levels=6)
    same(samples()["tiff_grey_12_bit"].data, samples()["tiff_grey_12_bit"].look_HWC)


def twelve_bit_jpeg() -> None:
    frame = BASE.index(b"\xff\xc0")
    refused(BASE[:frame] + b"\xff\xc1" + BASE[frame + 2 : frame + 4] + b"\x0c" + BASE[frame + 5 :], "corrupt")


def floats() -> None:
    grey_HW = np.asarray(Image.fromarray(LOOK_HWC).convert("L"))
    for values, look in ((grey_HW / np.float32(255), grey_HW), (grey_HW.astype(np.float32), grey_HW)):
        same(encode(Image.fromarray(values), "TIFF"), np.repeat(look[:, :, None], 3, axis=2))
    for odd in (-1.0, 256.0, np.nan):
        refused(encode(Image.fromarray(np.full((8, 8), odd, np.float32)), "TIFF"), "unsupported_format")


def integers() -> None:
    refused(encode(Image.fromarray(np.zeros((8, 8), np.int32)), "TIFF"), "unsupported_format")
    signed = encode(Image.fromarray(np.zeros((8, 8), np.uint16)), "TIFF", tiffinfo={339: 2})
    refused(signed, "unsupported_format")
    refused(encode(Image.new("LAB", (8, 8)), "TIFF"), "unsupported_format")


def white_is_zero() -> None:
    for name in ("tiff_grey_16_bit_white_is_zero", "tiff_float_to_1"):
        same(samples()[name].data, samples()[name].look_HWC)
    black = encode(Image.new("L", (8, 8), 255), "TIFF", tiffinfo={262: 0})
    assert len(np.unique(seen(black))) == 1


def animation() -> None:
    more = {"save_all": True, "append_images": [Image.fromarray(255 - LOOK_HWC)], "duration": 40}
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("AVIF", {"quality": 100})):
        same(encode(Image.fromarray(LOOK_HWC), kind, **more, **options), levels=4)
    # The head of a codestream, last bit first: 8 by 8 pixels, fields beside the usual ones, of those: animated.
    bits = 1 | 1 << 6 | 1 << 10 | 1 << 16
    plugin("jxl")
    refused(b"\xff\x0a" + bits.to_bytes(8, "little"), "unsupported_format")


def several() -> None:
    other = Image.fromarray(255 - LOOK_HWC)
    for kind, options in (("MPO", {"quality": 92}), ("TIFF", {})):
        more = {"save_all": True, "append_images": [other.copy()], **options}
        same(encode(Image.fromarray(LOOK_HWC), kind, **more), levels=6)
    plugin("heif")
    both = {"save_all": True, "append_images": [Image.fromarray(LOOK_HWC)], "primary_index": 1, "quality": 90}
    same(encode(other, "HEIF", **both), levels=6)


LINES: dict[str, Callable[[], None]] = {
    "EXIF orientation": orientation,
    "ICC profile, gamma": profile,
    "transparency": transparency,
    "fourth band of a TIFF that no tag calls alpha": fourth_band,
    "CMYK in a JPEG": cmyk_jpeg,
    "CMYK in a TIFF": cmyk_tiff,
    "chroma at half resolution in a JPEG": chroma,
    "16 bits a channel": sixteen_bits,
    "10 or 12 bits a channel in HEIF, 12 in a grey TIFF": ten_bits,
    "12 bits in a JPEG": twelve_bit_jpeg,
    "float in a TIFF": floats,
    "32-bit or signed 16-bit integers, Lab": integers,
    "white is zero in a TIFF": white_is_zero,
    "animation": animation,
    "several pictures in a JPEG (MPO), TIFF or HEIF": several,
}


@pytest.mark.parametrize("line", LINES)
def test_a_picture_is_seen_as_its_line_says(line: str) -> None:
    LINES[line]()


def test_the_page_has_these_lines_and_no_others() -> None:
    table = INPUT_PAGE.read_text().partition("| in the file | seen |\n|---|---|\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| (.*?) \|", table, re.MULTILINE) == list(LINES)
