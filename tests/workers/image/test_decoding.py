"""Each kind of image comes out as a person sees it, each bad one as its code, and nothing else ever comes out."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.support.crafted import with_jpeg_size
from tests.support.images import ANY, corpus, decode, encode, photo, samples
from workers.image import decode as decoding
from workers.image.decode import MAX_ASPECT, decode_stored
from workers.image.errors import MAX_PIXELS, BadImage, ErrorCode

# Pillow warns of much that it then refuses.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

GOOD = {name: sample for name, sample in samples().items() if sample.code is None}
BAD = {name: sample for name, sample in samples().items() if sample.code not in (None, ANY)}
NOT_JPEG = (
    *("png", "png_palette", "png_animated", "gif", "gif_animated", "webp", "webp_lossless", "webp_animated"),
    *("bmp", "tiff", "tiff_deflate", "tiff_float_to_1", "avif"),
)


def outcome(data: bytes | memoryview) -> tuple[str, bytes]:
    try:
        image_HWC = decode(data)
    except BadImage as bad:
        return bad.code, bad.message.encode()
    return "ok", image_HWC.tobytes()


@pytest.mark.parametrize("name", GOOD)
def test_a_good_image_is_the_rgb_a_person_sees(name: str) -> None:
    sample = GOOD[name]
    image_HWC = decode(sample.data)
    assert image_HWC.dtype == np.uint8
    assert image_HWC.flags.c_contiguous
    assert image_HWC.flags.writeable
    assert sample.look_HWC is not None
    assert image_HWC.shape == sample.look_HWC.shape
    difference = np.abs(image_HWC.astype(int) - sample.look_HWC)
    assert difference.mean() <= sample.tolerance
    if sample.tolerance == 0:
        assert difference.max() == 0


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_its_code_and_a_message(name: str) -> None:
    sample = BAD[name]
    with pytest.raises(BadImage) as caught:
        decode(sample.data)
    assert caught.value.code == sample.code
    assert str(caught.value)
    assert " at 0x" not in str(caught.value), "a message must be the same in every attempt"


def test_views_decode_like_bytes() -> None:
    for name, (data, _) in corpus().items():
        assert outcome(memoryview(data)) == outcome(data), name
        assert outcome(memoryview(pa.py_buffer(data))) == outcome(data), f"{name}: an Arrow buffer, of signed bytes"


def test_damaged_entropy_data_decodes_or_is_corrupt() -> None:
    for data, code in corpus().values():
        if code == ANY:
            assert outcome(data)[0] in ("ok", "corrupt")


# ------------------------------------------------------------------------------------------ nothing but BadImage


@pytest.mark.parametrize(
    "name", ["jpeg_420", "jpeg_progressive", "jpeg_cmyk_adobe_inverted", "jpeg_restart_markers", "jpeg_410"]
)
def test_a_jpeg_cut_anywhere_is_truncated(name: str) -> None:
    data = samples()[name].data
    for stop in {*range(3, min(800, len(data)), 7), *range(800, len(data), 97), *range(len(data) - 40, len(data))}:
        assert outcome(data[:stop])[0] == "truncated", stop


@pytest.mark.parametrize("name", NOT_JPEG)
def test_a_file_cut_anywhere_is_refused_or_whole(name: str) -> None:
    """Some formats end in bytes that carry no pixels; what must not happen is filler."""
    data = samples()[name].data
    whole = decode(data).tobytes()
    for stop in {*range(1, 100, 3), *range(100, len(data), max(1, len(data) // 40)), *range(len(data) - 24, len(data))}:
        code, pixels = outcome(data[:stop])
        assert code in ("truncated", "corrupt", "unsupported_format") or pixels == whole, stop


def test_fuzzed_bytes_raise_nothing_but_bad_image() -> None:
    chance = random.Random(20240229)
    seeds = [sample.data for sample in samples().values() if 0 < len(sample.data) < 60_000]
    for _ in range(6000):
        data = bytearray(chance.choice(seeds))
        reach = len(data) if chance.random() < 0.5 else min(len(data), 200)  # headers deserve half of the attention
        for _ in range(chance.choice((1, 1, 2, 8))):
            match chance.randrange(4):
                case 0:
                    data[chance.randrange(reach)] ^= 1 << chance.randrange(8)
                case 1:
                    data[chance.randrange(reach)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
                case 2:
                    at = chance.randrange(reach)
                    data[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
                case 3:
                    del data[chance.randrange(len(data)) :]
            reach = min(reach, len(data))
            if reach == 0:
                break
        code, _ = outcome(bytes(data))
        assert code == "ok" or code in set(ErrorCode)


def test_threads_see_the_same_pixels() -> None:
    files = [data for data, _ in corpus().values()]
    alone = [outcome(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        for together in pool.map(lambda _: [outcome(data) for data in files], range(4)):
            assert together == alone


# ------------------------------------------------------------------------------------------ limits and contracts


def test_limits_hold_at_their_edge() -> None:
    wide = np.zeros((2, 2 * MAX_ASPECT, 3), np.uint8)
    assert decode(encode(wide, "PNG")).shape == wide.shape
    assert outcome(encode(np.zeros((2, 2 * MAX_ASPECT + 1, 3), np.uint8), "PNG"))[0] == "bad_size"
    jpeg = encode(photo(16, 16), "JPEG")
    side = int(MAX_PIXELS**0.5)
    assert outcome(with_jpeg_size(jpeg, side + 1, side + 1))[0] == "too_large"


def test_pillow_is_left_with_its_own_settings() -> None:
    program = (
        "import sys, PIL.Image, PIL.ImageFile; limit = PIL.Image.MAX_IMAGE_PIXELS; import workers.image.decode;"
        "assert limit and PIL.Image.MAX_IMAGE_PIXELS == limit and not PIL.ImageFile.LOAD_TRUNCATED_IMAGES;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_our_limit_holds_where_pillow_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert outcome(samples()["png_bomb"].data)[0] == "too_large"


@pytest.mark.filterwarnings("error")
def test_warnings_turned_into_errors_do_not_escape() -> None:
    for name in ("png_bomb", "png_palette_alpha", "tiff_nan", "cut_tiff_60"):
        code, _ = outcome(samples()[name].data)
        assert code == (samples()[name].code or "ok")


def test_memory_errors_are_not_blamed_on_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", no_memory)
    with pytest.raises(MemoryError):
        decode(samples()["png"].data)


IN_LITTLE_ROOM = """
import resource, sys
from pathlib import Path
from workers.image.decode import decode_stored
from workers.image.errors import BadImage
import PIL.AvifImagePlugin
data = Path(sys.argv[1]).read_bytes()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 30 * 2**20,) * 2)
try:
    decode_stored(data)
except (BadImage, MemoryError) as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("kind", ["JPEG", "JPEG progressive", "PNG", "WEBP", "AVIF", "TIFF", "GIF"])
def test_a_decoder_without_memory_does_not_make_the_image_a_bad_one(kind: str, tmp_path: Path) -> None:
    options = {"JPEG progressive": {"progressive": True}, "TIFF": {"compression": "tiff_lzw"}}.get(kind, {})
    file = tmp_path / "image"
    file.write_bytes(encode(np.zeros((4000, 5000, 3), np.uint8), kind.split()[0], **options))
    assert decode(file.read_bytes()).shape == (4000, 5000, 3)
    command = [sys.executable, "-c", IN_LITTLE_ROOM, str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env={"OPENBLAS_NUM_THREADS": "1"})
    assert told.stdout.strip() == "MemoryError"


STRIPED = (
    *("png_rgba", "png_palette", "png_palette_alpha", "png_grey_alpha", "png_grey_16_bit", "tiff_grey_12_bit"),
    *("tiff_grey_16_bit_white_is_zero", "tiff_float_to_1", "tiff_float_to_255", "tiff_cmyk", "gif_transparent"),
    *("jpeg_cmyk_adobe_inverted", "webp_rgba", "png_bilevel"),
)


@pytest.mark.parametrize("name", STRIPED)
def test_a_picture_converted_in_strips_is_the_same_as_in_one_piece(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_HWC = decode(GOOD[name].data)
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 7 * whole_HWC.shape[1] + 3)
    np.testing.assert_array_equal(decode(GOOD[name].data), whole_HWC)


def test_a_float_picture_that_is_bad_in_a_later_strip_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.zeros((64, 64), np.float32)
    values[63, 63] = np.nan
    data = encode(Image.fromarray(values), "TIFF")
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 64 * 5)
    assert outcome(data)[0] == "unsupported_format"


def test_the_size_is_told_before_the_pixels_are_decoded() -> None:
    told: list[int] = []
    for name in ("jpeg_420", "png", "jpeg_410"):
        image_HWC = decode(GOOD[name].data, told.append)
        assert told[-1] == image_HWC.shape[0] * image_HWC.shape[1]
    with pytest.raises(BadImage):
        decode(BAD["png_bomb"].data, told.append)
    assert len(told) == 3


def test_bad_image_survives_pickling() -> None:
    bad = pickle.loads(pickle.dumps(BadImage(ErrorCode.CORRUPT, "why")))
    assert (bad.code, bad.message, str(bad)) == ("corrupt", "why", "why")


def test_codes_are_the_documented_ones() -> None:
    seen_here = {"empty", "unsupported_format", "truncated", "corrupt", "too_large", "bad_size"}
    assert set(ErrorCode) == seen_here | {"null", "uri_refused", "not_found", "denied", "crashed_worker"}
    assert {sample.code for sample in BAD.values()} == seen_here


@pytest.mark.parametrize(
    ("height", "width", "least_px", "shrunk"),
    [
        (400, 600, 0, 1),
        (400, 600, 201, 1),
        (400, 600, 200, 2),
        (600, 401, 101, 2),
        (401, 600, 100, 4),
        (400, 403, 50, 8),
    ],
)
def test_jpegs_shrink_while_they_are_decoded_as_far_as_asked(
    height: int, width: int, least_px: int, shrunk: int
) -> None:
    stored = decode_stored(encode(photo(height, width), "JPEG"), least_px=least_px)
    assert (stored.height, stored.width, stored.shrunk) == (height, width, shrunk)
    assert stored.image_HWC.shape == (-(-height // shrunk), -(-width // shrunk), 3)


def test_a_picture_lies_in_the_room_that_is_given_where_it_fits() -> None:
    room = np.empty(120 * 160 * 3, np.uint8)
    assert np.shares_memory(decode_stored(encode(photo(120, 160), "JPEG"), room=room).image_HWC, room)
    assert not np.shares_memory(decode_stored(encode(photo(120, 161), "JPEG"), room=room).image_HWC, room)
