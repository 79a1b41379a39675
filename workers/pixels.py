"""From an image of any size to the square of uint8 pixels that the network sees.

The reference is torchvision's ImageClassification preset on a Pillow image: Resize on the shorter side, antialiased,
then CenterCrop. Normalisation is not done here: it is folded into the first convolution.

Against that reference, over photographs made smaller and larger (tests/test_pixels.py holds these): bilinear differs by
at most 1 level, in under 0.5 % of values; bicubic by at most 2, in under 1 %; nearest not at all.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from workers.contract import Preprocess
from workers.decoding import Pixels, decode

LARGE_PIXELS = 16_000_000
"""Images with more are decoded one at a time where `decode_into` is given a lock: the largest take over a GiB each."""


def decode_into(
    data: bytes | memoryview, how: Preprocess, out_HWC: Pixels, large: AbstractContextManager[object] | None = None
) -> None:
    """Decode one image and write what the network sees of it into `out_HWC`. Raises BadImage as `decode` does.

    `large`, a lock that may be taken twice by one thread, is held from before to after a large image is in memory.
    """
    if large is None:
        prepare(decode(data), how, out_HWC)
        return
    with ExitStack() as held:
        prepare(decode(data, lambda pixels: pixels > LARGE_PIXELS and held.enter_context(large)), how, out_HWC)


def prepare(image_HWC: Pixels, how: Preprocess, out_HWC: Pixels) -> None:
    """Write the resized centre crop of an RGB image into `out_HWC`, crop_px x crop_px x 3, uint8.

    `image_HWC` is what `decode` returns. `out_HWC` may be any strided view, say into a padded batch. Where the resized
    image is smaller than the crop, the rest is zero, as in torchvision. Runs on the threads that torch has been given.
    """
    image_HWC = _resize(image_HWC, how)
    top, rows, into_rows = _centre(image_HWC.shape[0], how.crop_px)
    left, columns, into_columns = _centre(image_HWC.shape[1], how.crop_px)
    if (rows, columns) != (how.crop_px, how.crop_px):
        out_HWC[...] = 0
    out_HWC[into_rows : into_rows + rows, into_columns : into_columns + columns] = image_HWC[
        top : top + rows, left : left + columns
    ]


def resized_px(height: int, width: int, resize_px: int) -> tuple[int, int]:
    """(height, width) after the shorter side becomes `resize_px`: the longer one is cut down to a whole number.

    Source: torchvision.transforms.functional._compute_resized_output_size, whose truncation it shares.
    """
    if width <= height:
        return int(resize_px * height / width), resize_px
    return resize_px, int(resize_px * width / height)


def _centre(length: int, crop: int) -> tuple[int, int, int]:
    """(first pixel taken, pixels taken, where they go) along one side.

    Source: torchvision.transforms.functional.center_crop. The two roundings differ: a crop rounds half to even, and
    padding puts the odd pixel behind.
    """
    if length >= crop:
        return round((length - crop) / 2), crop, 0
    return 0, length, (crop - length) // 2


def _resize(image_HWC: Pixels, how: Preprocess) -> Pixels:
    height, width, _ = image_HWC.shape
    size = resized_px(height, width, how.resize_px)
    if size == (height, width):
        return image_HWC
    if how.interpolation == "nearest":
        rows, columns = _nearest(height, size[0]), _nearest(width, size[1])
        return image_HWC[rows[:, None], columns]
    # The batch axis is added before the permutation: with strides (H·W·3, 1, W·3, 3) torch sees channels_last and takes
    # its interleaved kernel, a third faster, whose output is already in the order we want.
    image_NCHW = torch.from_numpy(image_HWC)[None].permute(0, 3, 1, 2)
    resized_NCHW = functional.interpolate(image_NCHW, size, mode=how.interpolation, antialias=True)
    resized_HWC: Pixels = resized_NCHW[0].permute(1, 2, 0).numpy()
    return resized_HWC


def _nearest(length: int, resized: int) -> npt.NDArray[np.intp]:
    """Which source pixel each resized one shows: the one under its centre.

    Steps are added up one by one in double precision, because Pillow's ImagingScaleAffine does; where a centre falls
    between two pixels, torch's `nearest-exact` (single precision, one multiplication) may show the other one.
    """
    step = length / resized
    centres = np.full(resized, step)
    centres[0] = step * 0.5
    return np.minimum(np.add.accumulate(centres).astype(np.intp), length - 1)
