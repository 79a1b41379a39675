"""Images made into pictures for a person."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from jobs.report.thumbnails import thumbnail
from tests.support import images


def seen(uri: str) -> np.ndarray:
    """The pixels of a data: URI."""
    assert uri.startswith("data:image/jpeg;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


@pytest.mark.parametrize("name", [name for name, sample in images.samples().items() if sample.code is None])
def test_every_image_that_decodes_has_a_picture_as_a_person_sees_it(name: str) -> None:
    sample = images.samples()[name]
    picture = seen(thumbnail(sample.data, 64))
    assert max(picture.shape[:2]) <= 64
    if sample.look_HWC is not None and min(sample.look_HWC.shape[:2]) > 50:
        look = Image.fromarray(sample.look_HWC)
        look.thumbnail((64, 64), Image.Resampling.LANCZOS)
        assert picture.shape == np.asarray(look).shape
        assert np.abs(picture.astype(int) - np.asarray(look).astype(int)).mean() < 12


@pytest.mark.parametrize(
    "name", ["cut_jpeg_50", "cut_jpeg_progressive_95", "cut_png_60", "cut_png_palette_60", "jpeg_cut_and_ended"]
)
def test_of_a_damaged_file_the_part_that_is_there_is_shown(name: str) -> None:
    look_HWC = images.photo()
    picture = seen(thumbnail(images.samples()[name].data, 160))
    assert picture.shape == look_HWC.shape
    assert np.abs(picture[:40].astype(int) - look_HWC[:40].astype(int)).mean() < 20


@pytest.mark.parametrize(
    "name", ["empty", "text", "svg", "png_bomb", "png_over_twice_the_limit", "jpeg_bomb", "gif_bomb", "cut_jpeg_1"]
)
def test_what_is_no_picture_or_would_be_too_large_a_one_has_none(name: str) -> None:
    assert thumbnail(images.samples()[name].data) == ""


def test_a_strip_is_shown_as_one() -> None:
    assert seen(thumbnail(images.samples()["strip"].data, 64)).shape[1] == 64


def test_a_large_photograph_becomes_a_few_kilobytes() -> None:
    large = np.tile(images.photo(), (20, 20, 1))
    uri = thumbnail(images.encode(large, "JPEG", quality=95), 200)
    assert seen(uri).shape == (150, 200, 3)
    assert len(uri) < 40_000
