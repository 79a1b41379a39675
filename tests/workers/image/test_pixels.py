"""What the network sees is what torchvision's ImageClassification preset shows it, for every shape of image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from tests.support.images import decode, encode, photo, samples, stored_as
from workers.contract import Preprocess
from workers.image.decode import ImageArray, Stored
from workers.image.errors import BadImage
from workers.image.resize import Preparer, decode_into, place, resized_px
from workers.model.torchvision_import import import_torchvision

import_torchvision()

from torchvision.transforms import InterpolationMode  # noqa: E402
from torchvision.transforms._presets import ImageClassification  # noqa: E402

# (height, width, resize_px, crop_px)
SHAPES = {
    "landscape": (375, 500, 256, 224),
    "portrait": (427, 300, 256, 224),
    "odd sides": (333, 501, 256, 224),
    "resize to 232": (427, 640, 232, 224),
    "resize is crop": (427, 640, 380, 380),
    "square": (300, 300, 256, 224),
    "size unchanged": (256, 300, 256, 224),
    "crop unchanged": (224, 224, 224, 224),
    "enlarged": (100, 80, 256, 224),
    "enlarged a little": (427, 640, 600, 600),
    "enlarged, crop ends where the source does": (240, 320, 256, 224),
    "enlarged, rows needed as many as made": (254, 320, 256, 224),
    "enlarged, columns needed as many as made": (300, 240, 256, 224),
    "thumbnail": (37, 53, 256, 224),
    "smaller than the crop": (300, 300, 201, 224),
    "narrower than the crop": (200, 400, 200, 225),
    "longer crop than resize": (150, 600, 100, 333),
    "panorama": (30, 427, 256, 224),
    "tower": (427, 5, 64, 64),
    "one pixel": (1, 1, 256, 224),
    "half-way crop": (203, 260, 203, 200),
}
# Most levels of difference, and the largest share of values that differ at all.
TOLERANCE = {"bilinear": (1, 0.005), "bicubic": (2, 0.01), "nearest": (0, 0.0)}


def preprocess(resize_px: int, crop_px: int, interpolation: str) -> Preprocess:
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Preprocess(resize_px=resize_px, crop_px=crop_px, mean=zero, std=one, interpolation=interpolation)


def reference(image_HWC: np.ndarray, how: Preprocess) -> np.ndarray:
    """torchvision's own preset on a Pillow image; mean 0 and std 1 leave it in levels ÷ 255."""
    preset = ImageClassification(
        crop_size=how.crop_px,
        resize_size=how.resize_px,
        mean=how.mean,
        std=how.std,
        interpolation=InterpolationMode(how.interpolation),
    )
    scaled_CHW = preset(Image.fromarray(image_HWC))
    return (scaled_CHW * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def assert_close(seen_HWC: np.ndarray, expected_HWC: np.ndarray, interpolation: str) -> None:
    levels, share = TOLERANCE[interpolation]
    difference = np.abs(seen_HWC.astype(int) - expected_HWC)
    assert difference.max() <= levels
    assert (difference > 0).mean() <= share


def prepared(image_HWC: ImageArray, how: Preprocess, out_HWC: ImageArray) -> None:
    """The crop of a picture that is decoded already."""
    place(Stored(image_HWC, *image_HWC.shape[:2], shrunk=1, orientation=1), how, out_HWC)


@pytest.mark.parametrize("interpolation", TOLERANCE)
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_of_torchvision(shape: str, interpolation: str) -> None:
    height, width, resize_px, crop_px = SHAPES[shape]
    how = preprocess(resize_px, crop_px, interpolation)
    image_HWC = photo(height, width, which=1, top=0, left=0)
    seen_HWC = np.full((crop_px, crop_px, 3), 99, np.uint8)
    prepared(image_HWC, how, seen_HWC)
    assert_close(seen_HWC, reference(image_HWC, how), interpolation)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_to_resize_what_the_crop_shows_is_to_resize_all_and_crop(interpolation: str) -> None:
    """Every size around the target's: where as many pixels go in as come out, torch would leave a side as it is."""
    differing = 0
    for height in range(20, 60):
        for width in (height, height + 1, height + 7, 40):
            how = preprocess(32, 28, interpolation)
            image_HWC = photo(height, width)
            seen_HWC = np.empty((28, 28, 3), np.uint8)
            prepared(image_HWC, how, seen_HWC)
            rows, columns = resized_px(height, width, 32)
            image_NCHW = torch.from_numpy(image_HWC)[None].permute(0, 3, 1, 2)
            all_NCHW = functional.interpolate(image_NCHW, (rows, columns), mode=interpolation, antialias=True)
            top, left = round((rows - 28) / 2), round((columns - 28) / 2)
            expected_HWC = all_NCHW[0].permute(1, 2, 0).numpy()[top : top + 28, left : left + 28]
            difference = np.abs(seen_HWC.astype(int) - expected_HWC)
            assert difference.max() <= 1, (height, width)
            differing += int((difference > 0).sum())
    assert differing < 0.0005 * 160 * seen_HWC.size  # the scales, given, may differ in their last bit


def test_only_the_view_in_a_padded_batch_is_written() -> None:
    how = preprocess(256, 224, "bilinear")
    batch_NHWC = np.full((3, 230, 230, 3), 99, np.uint8)
    image_HWC = photo(375, 500)
    prepared(image_HWC, how, batch_NHWC[1, 3:-3, 3:-3])
    assert_close(batch_NHWC[1, 3:-3, 3:-3], reference(image_HWC, how), "bilinear")
    batch_NHWC[1, 3:-3, 3:-3] = 99
    assert (batch_NHWC == 99).all()


def test_the_source_is_left_alone() -> None:
    image_HWC = photo(256, 300)
    before = image_HWC.copy()
    out_HWC = np.empty((224, 224, 3), np.uint8)
    prepared(image_HWC, preprocess(256, 224, "bilinear"), out_HWC)
    out_HWC[...] = 0
    assert (image_HWC == before).all()


def test_the_longest_image_decoded_stays_small_when_resized() -> None:
    height, width = resized_px(1, 100, 256)
    assert height * width * 3 < 32 * 2**20
    out_HWC = np.empty((224, 224, 3), np.uint8)
    decode_into(samples()["one_column"].data, preprocess(256, 224, "bilinear"), out_HWC)
    assert out_HWC.any()


def test_decode_into_is_decode_then_prepare() -> None:
    how = preprocess(64, 56, "bicubic")
    data = encode(photo(), "JPEG")
    direct_HWC, steps_HWC = np.empty((56, 56, 3), np.uint8), np.empty((56, 56, 3), np.uint8)
    decode_into(data, how, direct_HWC)
    prepared(decode(data), how, steps_HWC)
    assert (direct_HWC == steps_HWC).all()


def test_a_bad_image_leaves_the_batch_alone() -> None:
    out_HWC = np.full((56, 56, 3), 99, np.uint8)
    with pytest.raises(BadImage):
        decode_into(samples()["cut_jpeg_90"].data, preprocess(64, 56, "bilinear"), out_HWC)
    assert (out_HWC == 99).all()


# Odd rests to crop away on each side, to fill up on one, and a picture that is not resized at all.
TURNED_SHAPES = (
    "odd sides",
    "half-way crop",
    "narrower than the crop",
    "crop unchanged",
    "enlarged, crop ends where the source does",
)


@pytest.mark.parametrize("interpolation", TOLERANCE)
@pytest.mark.parametrize("shape", TURNED_SHAPES)
def test_a_picture_stored_on_its_side_or_mirrored_is_shown_upright(shape: str, interpolation: str) -> None:
    height, width, resize_px, crop_px = SHAPES[shape]
    how = preprocess(resize_px, crop_px, interpolation)
    look_HWC = photo(height, width, which=1, top=0, left=0)
    expected_HWC = reference(look_HWC, how)
    seen_HWC = np.full((crop_px, crop_px, 3), 99, np.uint8)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(stored_as(look_HWC, orientation), "PNG", exif=exif, compress_level=0)
        decode_into(data, how, seen_HWC)
        assert_close(seen_HWC, expected_HWC, interpolation)


def test_memory_that_is_kept_shows_nothing_of_the_image_before() -> None:
    how = preprocess(64, 56, "bilinear")
    preparer = Preparer(how)
    kept_HWC, fresh_HWC = np.empty((56, 56, 3), np.uint8), np.empty((56, 56, 3), np.uint8)
    for name in ("jpeg_420", "jpeg_grey", "png", "jpeg_cmyk_adobe_inverted", "jpeg_orientation_6", "jpeg_420"):
        preparer.put(samples()[name].data, kept_HWC)
        decode_into(samples()[name].data, how, fresh_HWC)
        assert (kept_HWC == fresh_HWC).all(), name
        with pytest.raises(BadImage):
            preparer.put(samples()["cut_jpeg_90"].data, kept_HWC)
        assert (kept_HWC == fresh_HWC).all(), name


# ------------------------------------------------------------------------------------- scaled decoding


def scaled(resize_px: int, crop_px: int, interpolation: str = "bilinear") -> Preprocess:
    return replace(preprocess(resize_px, crop_px, interpolation), decode="scaled")


@pytest.mark.parametrize("interpolation", TOLERANCE)
@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("height", "width"), [(400, 560), (381, 637), (427, 425)])
def test_a_scaled_decode_shows_nearly_the_same(height: int, width: int, orientation: int, interpolation: str) -> None:
    """Sides that no power of two divides, too: a shift by half a pixel would show in the mean."""
    look_HWC = photo(height, width, which=1, top=0, left=0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored_as(look_HWC, orientation), "JPEG", quality=95, exif=exif)
    exact_HWC, scaled_HWC = np.empty((56, 56, 3), np.uint8), np.empty((56, 56, 3), np.uint8)
    decode_into(data, preprocess(64, 56, interpolation), exact_HWC)
    decode_into(data, scaled(64, 56, interpolation), scaled_HWC)
    difference = np.abs(scaled_HWC.astype(int) - exact_HWC).mean()
    assert 0 < difference < (1.5 if interpolation != "nearest" else 10.0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_only_large_jpegs_are_decoded_scaled(kind: str) -> None:
    data = encode(photo(120, 160), kind)
    exact_HWC, scaled_HWC = np.empty((56, 56, 3), np.uint8), np.empty((56, 56, 3), np.uint8)
    resize_px = 64 if kind == "JPEG" else 16  # a JPEG of twice the target is left alone, a PNG of any size
    how = preprocess(resize_px, 56, "bilinear")
    decode_into(data, how, exact_HWC)
    decode_into(data, replace(how, decode="scaled"), scaled_HWC)
    assert (exact_HWC == scaled_HWC).all()


@pytest.mark.parametrize("name", sorted(samples()))
def test_scaled_decoding_refuses_what_exact_decoding_refuses(name: str) -> None:
    def outcome(decode: str) -> str:
        try:
            how = replace(preprocess(8, 8, "bilinear"), decode=decode)
            decode_into(samples()[name].data, how, np.empty((8, 8, 3), np.uint8))
        except BadImage as bad:
            return bad.code
        return "ok"

    assert outcome("scaled") == outcome("exact")
