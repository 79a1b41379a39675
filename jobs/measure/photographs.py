"""Photographs to measure with, where nobody has given any: nothing is downloaded.

They are crops of scikit-learn's two sample photographs; where it is not installed, of two pictures made of noise at
several scales, which are as dear to decode but show nothing.
"""

from __future__ import annotations

import functools
import io

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

HEIGHT_PX, WIDTH_PX = 427, 640
"""Of the two pictures that everything is cut from."""


def photographs(count: int, height: int = 375, width: int = 500, quality: int = 90) -> list[bytes]:
    """`count` different JPEG photographs: crops that slide over the two pictures."""
    return [
        _jpeg(photo(height, width, which=i, top=(37 * i) % HEIGHT_PX, left=(61 * i) % WIDTH_PX), quality)
        for i in range(count)
    ]


def photo(height: int = 120, width: int = 160, which: int = 0, top: int = 150, left: int = 200) -> Pixels:
    """A crop (HWC, uint8) of one of the pictures, the even or the odd one. Beyond the edge it is mirrored."""
    image_HWC = _pictures()[which % 2]
    rows, columns = (np.arange(start, start + n) for start, n in ((top, height), (left, width)))
    fold = [np.minimum(i % (2 * n), 2 * n - 1 - i % (2 * n)) for i, n in ((rows, HEIGHT_PX), (columns, WIDTH_PX))]
    return np.ascontiguousarray(image_HWC[np.ix_(*fold)])


@functools.cache
def _pictures() -> tuple[Pixels, Pixels]:
    """Each HEIGHT_PX by WIDTH_PX: a temple and a flower, or noise."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        return noise(0), noise(1)
    temple_HWC, flower_HWC = load_sample_images().images
    return temple_HWC, flower_HWC


def noise(seed: int) -> Pixels:
    """Noise at six scales, each weaker than the next coarser one, as in pictures of the world."""
    rng = np.random.default_rng(seed)
    sum_HWC = np.zeros((HEIGHT_PX, WIDTH_PX, 3))
    for octave in range(6):
        cells = rng.integers(0, 256, (2 + HEIGHT_PX * 2**octave // 64, 2 + WIDTH_PX * 2**octave // 64, 3), np.uint8)
        layer = Image.fromarray(cells).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
        sum_HWC += (np.asarray(layer) - 127.5) / 1.6**octave
    return (127.5 + sum_HWC).clip(0, 255).astype(np.uint8)


def _jpeg(image_HWC: Pixels, quality: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image_HWC).save(out, "JPEG", quality=quality)
    return out.getvalue()
