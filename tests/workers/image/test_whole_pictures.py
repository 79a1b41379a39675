"""A picture that viewers show is one here, however untidy the file around it; what may be filler is still refused."""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tests.support.images import decode, encode, exif, photo, stored_as
from workers.image.decode import decode_stored
from workers.image.errors import BadImage

LOOK_HWC = photo()
BASE = encode(LOOK_HWC, "JPEG", quality=92)
PROGRESSIVE = encode(LOOK_HWC, "JPEG", quality=92, progressive=True)
PNG = encode(LOOK_HWC, "PNG")
WEBP = encode(LOOK_HWC, "WEBP", lossless=True)


def code_of(data: bytes) -> str:
    with pytest.raises(BadImage) as caught:
        decode(data)
    return caught.value.code


# ------------------------------------------------------------------------------------------ JPEG


def starts(jpeg: bytes, marker: int) -> Iterator[int]:
    at = jpeg.find(bytes([0xFF, marker]))
    while at >= 0:
        yield at
        at = jpeg.find(bytes([0xFF, marker]), at + 2)


STRAY = {"zeros": b"\0\0\0", "one zero": b"\0", "fill": b"\xff" * 9, "text": b"left over", "a stuffed FF": b"\xff\0\7"}
PLACES = {
    "before the tables": (BASE, 0xDB),
    "before the frame": (BASE, 0xC0),
    "before the codes": (BASE, 0xC4),
    "before the scan": (BASE, 0xDA),
    "before the end": (BASE, 0xD9),
    "before a progressive frame": (PROGRESSIVE, 0xC2),
    "before the codes of scans": (PROGRESSIVE, 0xC4),
    "before scans": (PROGRESSIVE, 0xDA),
    "before the end of a progressive one": (PROGRESSIVE, 0xD9),
}


PLACED = [(place, stray) for place in PLACES for stray in STRAY]
for end in ("before the end", "before the end of a progressive one"):
    PLACED.remove((end, "a stuffed FF"))  # there these are data of the scan, not bytes behind it


@pytest.mark.parametrize(("place", "stray"), PLACED)
def test_stray_bytes_between_the_segments_of_a_jpeg_are_passed_over(place: str, stray: str) -> None:
    jpeg, marker = PLACES[place]
    for at in list(starts(jpeg, marker)):
        found_HWC = decode(jpeg[:at] + STRAY[stray] + jpeg[at:])
        np.testing.assert_array_equal(found_HWC, decode(jpeg), f"at {at}")


@pytest.mark.parametrize("count", [1, 3, 6, 7, 8, 9, 60])
def test_stray_bytes_behind_any_scan_are_passed_over(count: int) -> None:
    for at in list(starts(PROGRESSIVE, 0xC4))[1:]:  # codes of the second scan, behind the data of the first, and so on
        found_HWC = decode(PROGRESSIVE[:at] + bytes(count) + PROGRESSIVE[at:])
        np.testing.assert_array_equal(found_HWC, decode(PROGRESSIVE))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_upright_though_stray_bytes_come_before_its_exif(orientation: int) -> None:
    jpeg = encode(stored_as(LOOK_HWC, orientation), "JPEG", quality=92, exif=exif(orientation))
    at = jpeg.index(b"\xff\xe1")
    found_HWC = decode(jpeg[:at] + b"\0\0" + jpeg[at:])
    np.testing.assert_array_equal(found_HWC, decode(jpeg))


def with_bytes(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


ICC = encode(LOOK_HWC, "JPEG", quality=92, icc_profile=bytes(70_000))
ADOBE = encode(Image.fromarray(LOOK_HWC).convert("CMYK"), "JPEG", quality=92)
UNTIDY = {
    "a profile with a piece missing": (with_bytes(ICC, ICC.index(b"ICC_PROFILE\0") + 12, b"\7"), BASE),
    "a version of JFIF that nobody knows": (with_bytes(BASE, 11, b"\7"), BASE),
    "a colour transform that nobody knows": (with_bytes(ADOBE, ADOBE.index(b"Adobe") + 11, b"\7"), None),
    "a whole picture behind it": (BASE + PROGRESSIVE, BASE),
    "bytes behind it": (BASE + b"\0leftovers\xff\xd8", BASE),
    "megabytes of metadata": (BASE[:2] + 90 * (b"\xff\xe4\xff\xff" + bytes(65_533)) + BASE[2:], BASE),
}  # fmt: skip


@pytest.mark.parametrize("name", UNTIDY)
def test_an_untidy_jpeg_is_the_picture_that_viewers_show(name: str) -> None:
    jpeg, tidy = UNTIDY[name]
    expected_HWC = decode(tidy) if tidy else np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
    difference = np.abs(decode(jpeg).astype(int) - expected_HWC)
    assert difference.max() == 0 if tidy else difference.mean() < 1


def test_of_a_phone_s_jpeg_with_more_pictures_the_first_counts() -> None:
    others = [Image.fromarray(np.flipud(LOOK_HWC)), Image.fromarray(LOOK_HWC[:60])]
    mpo = encode(Image.fromarray(LOOK_HWC), "MPO", save_all=True, append_images=others, quality=92)
    np.testing.assert_array_equal(decode(mpo), np.asarray(Image.open(io.BytesIO(mpo))))


@pytest.mark.parametrize("jpeg", [BASE, PROGRESSIVE], ids=["sequential", "progressive"])
def test_a_repair_never_brings_filler(jpeg: bytes) -> None:
    """Cut, and with stray bytes on top of it: still truncated. With a hole in a scan: corrupt."""
    first = jpeg.index(b"\xff\xdb")
    stray = jpeg[:first] + b"\0\0" + jpeg[first:]
    for stop in range(first + 4, len(stray) - 1, 131):
        assert code_of(stray[:stop]) == "truncated", stop
    scan = jpeg.index(b"\xff\xda") + 40
    assert code_of(stray[: scan + 500] + b"\xff\xd9") == "corrupt"
    assert code_of(stray[:scan] + stray[scan + 400 : -2] + b"\0" * 40 + b"\xff\xc4\0\x03" + b"\xff\xd9") == "corrupt"


def test_bytes_before_a_jpeg_make_it_none_as_in_browsers() -> None:
    assert code_of(b"\0" + BASE) == "unsupported_format"


# ------------------------------------------------------------------------------------------ PNG


def chunk(name: bytes, body: bytes, *, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body) if crc is None else crc)
    )


def text(**options: object) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for n in range(3):
        (info.add_itxt if options.get("lang") else info.add_text)(f"workflow {n}", "x" * 30_000_000, **options)
    return info


def test_megabytes_of_text_or_profile_leave_a_png_as_it_is() -> None:
    noise = random.Random(1).randbytes(1_500_000)
    files = {
        "tEXt": encode(LOOK_HWC, "PNG", pnginfo=text()),
        "zTXt": encode(LOOK_HWC, "PNG", pnginfo=text(zip=True)),
        "iTXt": encode(LOOK_HWC, "PNG", pnginfo=text(zip=True, lang="en")),
        "iCCP": encode(LOOK_HWC, "PNG", icc_profile=noise),
        "iCCP of a gigabyte": PNG[:33] + chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(2**28), 1)) + PNG[33:],
        "behind the pixels": PNG[:-12] + chunk(b"zTXt", b"w\0\0" + zlib.compress(bytes(2**27), 1)) + PNG[-12:],
    }
    for name, data in files.items():
        np.testing.assert_array_equal(decode(data), LOOK_HWC, name)


@pytest.mark.parametrize("name", [b"tEXt", b"gAMA", b"pHYs", b"iCCP", b"eXIf", b"acTL", b"sRGB", b"vpAg"])
def test_a_chunk_that_may_be_left_out_is_when_its_checksum_is_wrong(name: bytes) -> None:
    for at in (33, len(PNG) - 12):
        data = PNG[:at] + chunk(name, b"\0\0\xb1\x8f", crc=1) + PNG[at:]
        np.testing.assert_array_equal(decode(data), LOOK_HWC)


def test_a_header_or_palette_with_a_wrong_checksum_is_damage() -> None:
    palette = encode(Image.fromarray(LOOK_HWC).quantize(64), "PNG")
    for data, name in ((PNG, b"IHDR"), (palette, b"PLTE")):
        at = data.index(name)
        stop = at + 4 + int.from_bytes(data[at - 4 : at], "big")
        assert code_of(data[:stop] + b"none" + data[stop + 4 :]) == "corrupt"


@pytest.mark.parametrize("orientation", [3, 6])
def test_what_shows_of_a_png_s_metadata_outlives_the_rest(orientation: int) -> None:
    """Which way up it is, and what of it is seen through."""
    palette = Image.fromarray(LOOK_HWC).quantize(64)
    seen = encode(palette, "PNG", transparency=5, exif=exif(orientation))
    at = seen.index(b"IDAT") - 4
    np.testing.assert_array_equal(decode(seen[:at] + chunk(b"pHYs", b"", crc=1) + seen[at:]), decode(seen))
    assert decode(seen).shape[0] == (LOOK_HWC.shape[0] if orientation == 3 else LOOK_HWC.shape[1])


def test_a_png_that_is_cut_short_stays_so_whatever_else_is_wrong_with_it() -> None:
    data = PNG[:33] + chunk(b"tEXt", b"a\0b", crc=1) + PNG[33:]
    for stop in range(40, len(data) - 20, 997):
        assert code_of(data[:stop]) == "truncated"


def test_a_grey_png_of_16_bits_may_have_a_value_that_is_seen_through() -> None:
    """By all its bits: other values of the same upper byte are as they are."""
    wide_HW = np.full((8, 8), 0x1234, np.uint16)
    wide_HW[4:] = 0x1235
    png = encode(Image.fromarray(wide_HW), "PNG")
    found_HWC = decode(png[:33] + chunk(b"tRNS", b"\x12\x34") + png[33:])
    assert (found_HWC[:4] == 255).all()
    assert (found_HWC[4:] == 0x12).all()


# ------------------------------------------------------------------------------------------ the others


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"])
def test_a_file_may_be_longer_than_its_picture(kind: str) -> None:
    data = encode(LOOK_HWC, kind)
    for more in (b"\0" * 4096, b"junk", data):
        np.testing.assert_array_equal(decode(data + more), decode(data))


@pytest.mark.parametrize("off", [-500, -2, -1, 1, 2, 12, 2**20])
@pytest.mark.parametrize("options", [{}, {"exif": exif(1)}, {"icc_profile": bytes(501)}], ids=["plain", "exif", "icc"])
def test_a_webp_may_tell_another_length_than_it_has(off: int, options: dict[str, object]) -> None:
    webp = encode(LOOK_HWC, "WEBP", lossless=True, **options)
    length = struct.pack("<I", len(webp) - 8 + off)
    np.testing.assert_array_equal(decode(webp[:4] + length + webp[8:]), LOOK_HWC)


def test_a_webp_that_is_cut_short_stays_so() -> None:
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - LOOK_HWC)]}
    for webp in (WEBP, encode(LOOK_HWC, "WEBP", lossless=True, **frames)):
        for stop in range(40, len(webp) - 2, 997):
            assert code_of(webp[:stop]) == "truncated", stop


def test_a_gif_may_lack_its_last_bytes() -> None:
    gif = encode(Image.fromarray(LOOK_HWC).quantize(64), "GIF")
    np.testing.assert_array_equal(decode(gif[:-1]), decode(gif))


def bmp(alpha: int, *, header: int = 124) -> bytes:
    """With a mask for alpha, as screenshots of Windows have it."""
    height, width, _ = LOOK_HWC.shape
    pixels = np.dstack([LOOK_HWC[::-1, :, ::-1], np.full((height, width), alpha, np.uint8)]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    head = head.ljust(header, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + header + len(pixels), 0, 0, 14 + header) + head + pixels


@pytest.mark.parametrize("header", [56, 108, 124])
def test_an_alpha_of_zeros_is_none_in_a_bmp(header: int) -> None:
    np.testing.assert_array_equal(decode(bmp(0, header=header)), LOOK_HWC)
    np.testing.assert_array_equal(decode(bmp(255, header=header)), LOOK_HWC)
    half_HWC = np.rint(127.5 + LOOK_HWC / 2)
    assert np.abs(decode(bmp(128, header=header)) - half_HWC).max() <= 2


@pytest.mark.parametrize("size", [0, 1, 54, 2**31])
def test_a_bmp_may_tell_any_length(size: int) -> None:
    data = encode(LOOK_HWC, "BMP")
    np.testing.assert_array_equal(decode(with_bytes(data, 2, struct.pack("<I", size))), LOOK_HWC)


def tiff(bands_HWC: np.ndarray, *, extra: tuple[int, ...] = (), apart: bool = False, order: str = "<") -> bytes:
    """Not compressed; `apart`: one channel after the other."""
    height, width, count = bands_HWC.shape
    bits, stored = 8 * bands_HWC.itemsize, bands_HWC.astype(bands_HWC.dtype.newbyteorder(order))
    strips = [stored[:, :, n].tobytes() for n in range(count)] if apart else [stored.tobytes()]
    tags = {
        256: [width],
        257: [height],
        258: [bits] * count,
        259: [1],
        262: [2],
        273: strips,
        277: [count],
        278: [height],
    }
    tags |= {279: [len(strip) for strip in strips], 284: [2 if apart else 1]} | ({338: list(extra)} if extra else {})
    data, heap = b"", 8 + 2 + 12 * len(tags) + 4
    at = heap + sum(4 * len(values) for values in tags.values() if len(values) > 1)
    entries, long = b"", b""
    for tag, values in sorted(tags.items()):
        if tag == 273:
            values, data = [at + sum(map(len, strips[:n])) for n in range(len(strips))], b"".join(strips)
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            long, packed = long + packed, struct.pack(order + "I", heap + len(long))
        entries += struct.pack(order + "HHI", tag, 4, len(values)) + packed
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8) + struct.pack(order + "H", len(tags))
    return head + entries + bytes(4) + long + data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("bits", [8, 16])
def test_channels_of_a_tiff_may_lie_apart_and_have_16_bits(bits: int, apart: bool, order: str) -> None:
    look_HWC = LOOK_HWC if bits == 8 else LOOK_HWC.astype(np.uint16) * 256 + np.uint16(99)
    np.testing.assert_array_equal(decode(tiff(look_HWC, apart=apart, order=order)), LOOK_HWC)


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_fourth_band_that_no_tag_calls_alpha_hides_nothing(bits: int, apart: bool) -> None:
    infrared_HW = np.linspace(0, 255, LOOK_HWC.shape[1]).astype(np.uint8) * np.ones((LOOK_HWC.shape[0], 1), np.uint8)
    bands_HWC = np.dstack([LOOK_HWC, infrared_HW])
    bands_HWC = bands_HWC if bits == 8 else bands_HWC.astype(np.uint16) * 257
    np.testing.assert_array_equal(decode(tiff(bands_HWC, apart=apart)), LOOK_HWC)
    np.testing.assert_array_equal(decode(tiff(bands_HWC, extra=(0,), apart=apart)), LOOK_HWC)
    five_HWC = np.dstack([bands_HWC, bands_HWC[:, :, :1]])
    if bits == 8 or apart:  # Pillow does not read five bands of 16 bits that lie together
        np.testing.assert_array_equal(decode(tiff(five_HWC, extra=(0, 0), apart=apart)), LOOK_HWC)
    seen_through_HWC = decode(tiff(bands_HWC, extra=(2,), apart=apart))
    assert (seen_through_HWC[:, 0] == 255).all()
    np.testing.assert_array_equal(seen_through_HWC[:, -1], LOOK_HWC[:, -1])


def test_of_an_animation_the_first_frame_counts() -> None:
    others = {"save_all": True, "append_images": [Image.fromarray(255 - LOOK_HWC)], "duration": 40}
    for kind, options in (
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("AVIF", {"quality": 100, "subsampling": "4:4:4"}),
    ):
        found_HWC = decode(encode(Image.fromarray(LOOK_HWC), kind, **others, **options))
        assert np.abs(found_HWC.astype(int) - LOOK_HWC).mean() < 2, kind


def test_scaled_decoding_repairs_as_well() -> None:
    at = BASE.index(b"\xff\xdb")
    stored = decode_stored(BASE[:at] + b"\0\0\0" + BASE[at:], least_px=60)
    assert stored.shrunk == 2
    np.testing.assert_array_equal(stored.image_HWC, decode_stored(BASE, least_px=60).image_HWC)
