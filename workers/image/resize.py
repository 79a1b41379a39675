"""From an image of any size to the square of uint8 pixels that the network sees.

The reference is torchvision's ImageClassification preset on a Pillow image: Resize on the shorter side, antialiased,
then CenterCrop. Normalisation is not done here: it is folded into the first convolution.

Against that reference, over photographs made smaller and larger (tests/workers/image/test_pixels.py holds these):
bilinear differs by at most 1 level, in under 0.5 % of values; bicubic by at most 2, in under 1 %; nearest not at all.

What the crop does not show is not resized: rows and columns behind it are left out. Those before it are resized
all the same, because torch's kernel begins to count its sample positions at the first pixel. A picture that is stored
lying on its side is resized as it lies, and only its crop is turned.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from workers.contract import USUAL_FORMATS, Decoding, Preprocess
from workers.image.decode import LEFT, ON_ITS_SIDE, UP, ImageArray, SizeKnown, Stored, decode_stored, upright

LARGE_PIXELS = 16_000_000
"""Images with more are decoded one at a time where there is a lock: the largest take over a GiB each."""

ROOM_BYTES = 6 * 2**20
"""RGB of two million pixels: pictures that are no larger are decoded into memory that a Preparer keeps."""

SCALED_MARGIN = 1.4
"""How many times the resize's target the shorter side still is after a scaled decode. Generated photographs then differ
by 1 level in the mean, and by 4 with no margin: what is left to the resize is too little to hide how libjpeg blurs."""

_KERNELS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.default,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.default,
}
"""What torch's `interpolate(antialias=True)` calls. They take scales beside the size of the output."""
_REACH = {"bilinear": 1, "bicubic": 2}  # of an output pixel, to each side, in output pixels


class Preparer:
    """Decodes and prepares images one after the other, in memory that it keeps. Use from one thread at a time."""

    def __init__(self, how: Preprocess, large: AbstractContextManager[object] | None = None) -> None:
        """`large`, a lock that one thread may take twice, is held from before to after a large image is in memory."""
        self._how = how
        self._large = large
        self._held = ExitStack()
        self._room = np.empty(ROOM_BYTES, np.uint8)

    def put(self, data: bytes | memoryview, out_HWC: ImageArray) -> None:
        """As `decode_into`."""
        try:
            decode_into(data, self._how, out_HWC, self._size_known, self._room)
        finally:
            self._held.close()

    def _size_known(self, pixels: int) -> None:
        if self._large is not None and pixels > LARGE_PIXELS:
            self._held.enter_context(self._large)


def decode_into(
    data: bytes | memoryview, how: Preprocess, out_HWC: ImageArray, size_known: SizeKnown = lambda _: None,
    room: ImageArray | None = None,
) -> None:  # fmt: skip
    """Decode one image and write what the network sees of it, its resized centre crop, into `out_HWC`.

    That is crop_px x crop_px x 3, uint8, and may be any strided view, say into a padded batch. Where the resized image
    is smaller than the crop, the rest is zero, as in torchvision. Runs on the threads that torch has been given.
    `size_known` and `room` are as in `decode_stored`. Raises as that does.
    """
    formats = how.formats if isinstance(how, Decoding) else USUAL_FORMATS
    least_px = int(SCALED_MARGIN * how.resize_px) if how.decode == "scaled" else 0
    place(decode_stored(data, size_known, least_px=least_px, room=room, formats=formats), how, out_HWC)


def decode_crop(image: bytes | memoryview, how: Preprocess) -> ImageArray:
    """What the network sees of an encoded image, crop_px x crop_px x 3, uint8. Raises BadImage."""
    crop_HWC = np.empty((how.crop_px, how.crop_px, 3), np.uint8)
    decode_into(image, how, crop_HWC)
    return crop_HWC


def resized_px(height: int, width: int, resize_px: int) -> tuple[int, int]:
    """(height, width) after the shorter side becomes `resize_px`: the longer one is cut down to a whole number.

    Source: torchvision.transforms.functional._compute_resized_output_size, whose truncation it shares.
    """
    if width <= height:
        return int(resize_px * height / width), resize_px
    return resize_px, int(resize_px * width / height)


def place(stored: Stored, how: Preprocess, out_HWC: ImageArray) -> None:
    """Write the resized centre crop of a decoded picture into `out_HWC`."""
    image_HWC, height, width, shrunk, orientation = stored
    view = _view(height, width, shrunk, orientation, how.resize_px, how.crop_px, how.interpolation)
    if how.interpolation == "nearest":
        crop_HWC = image_HWC[
            _nearest(height, view.size[0], orientation in UP)[view.rows][:, None] // shrunk,
            _nearest(width, view.size[1], orientation in LEFT)[view.columns] // shrunk,
        ]
    else:
        if view.scales is not None:
            image_HWC = _resized(image_HWC[: view.source_rows], view, how.interpolation)
        crop_HWC = image_HWC[view.rows, view.columns]
    if view.into is None:
        out_HWC[...] = upright(crop_HWC, orientation)
    else:
        out_HWC[...] = 0
        out_HWC[view.into] = upright(crop_HWC, orientation)


class _View(NamedTuple):
    """What of a stored picture the network sees. The same for all pictures of one size."""

    size: tuple[int, int]
    """Height and width of the whole picture after the resize."""
    rows: slice
    """Of those, the crop's."""
    columns: slice
    resized: tuple[int, int]
    """Rows and columns that are made: up to the last ones of the crop."""
    source_rows: int
    """Rows of the image that they are made of."""
    scales: tuple[float, float] | None
    """Resized pixels for each of the image's, down and across; None where nothing is resized."""
    on_its_side: bool
    """The stored rows are the columns that a person sees."""
    into: tuple[slice, slice] | None
    """Where the crop belongs, upright, in what the network sees; None where it is all of that."""


@lru_cache(maxsize=4096)
def _view(
    height: int, width: int, shrunk: int, orientation: int, resize_px: int, crop_px: int, interpolation: str
) -> _View:
    on_its_side = orientation >= ON_ITS_SIDE
    size = resized_px(height, width, resize_px)
    rows, into_rows = _centre(size[0], crop_px, orientation in UP)
    columns, into_columns = _centre(size[1], crop_px, orientation in LEFT)
    whole = into_rows == into_columns == slice(0, crop_px)
    image_rows, image_columns = -(-height // shrunk), -(-width // shrunk)
    step = height / shrunk / size[0]
    reach = _REACH.get(interpolation, 0) * max(step, 1.0)
    source_rows = min(image_rows, int((rows.stop - 0.5) * step + reach + 0.5) + 1)
    resized_rows, resized_columns = rows.stop, columns.stop
    # Torch leaves out a side that has as many pixels before as after. What is cut off must not make it so.
    if source_rows == resized_rows and size[0] != image_rows:
        if source_rows < image_rows:
            source_rows += 1
        else:
            resized_rows += 1
    if image_columns == resized_columns and size[1] != image_columns:
        resized_columns += 1
    return _View(
        size=size,
        rows=rows,
        columns=columns,
        resized=(resized_rows, resized_columns),
        source_rows=source_rows,
        scales=None if size == (height, width) and shrunk == 1 else (1 / step, size[1] * shrunk / width),
        on_its_side=on_its_side,
        into=None if whole else (into_columns, into_rows) if on_its_side else (into_rows, into_columns),
    )


def _centre(length: int, crop: int, opposite: bool) -> tuple[slice, slice]:
    """(pixels taken, where they go) along one side, which is stored in the opposite order or as it is seen.

    Source: torchvision.transforms.functional.center_crop. The two roundings differ: a crop rounds half to even, and
    padding puts the odd pixel behind.
    """
    if length < crop:
        before = (crop - length) // 2
        return slice(0, length), slice(before, before + length)
    first = round((length - crop) / 2)
    if opposite:
        first = length - crop - first
    return slice(first, first + crop), slice(0, crop)


def _resized(image_HWC: ImageArray, view: _View, interpolation: str) -> ImageArray:
    """Of the resized picture the first `view.resized` rows and columns."""
    # The batch axis is added before the permutation: with strides (H·W·3, 1, W·3, 3) torch sees channels_last and takes
    # its interleaved kernel, a third faster, whose output is already in the order we want. The scales are given: those
    # that follow from the sizes would stretch the picture for what was cut off and for what libjpeg rounded up.
    assert view.scales is not None
    resize, (down, across) = _KERNELS[interpolation], view.scales
    image_NCHW = torch.from_numpy(image_HWC)[None].permute(0, 3, 1, 2)
    if view.on_its_side:
        # Torch resizes each row, rounds, and then each column. Here a person's rows are the columns.
        image_NCHW = resize(image_NCHW, (view.resized[0], image_HWC.shape[1]), False, down, 1.0)
        down = 1.0
    resized_HWC: ImageArray = resize(image_NCHW, view.resized, False, down, across)[0].permute(1, 2, 0).numpy()
    return resized_HWC


def _nearest(length: int, resized: int, opposite: bool) -> npt.NDArray[np.intp]:
    """Which source pixel each resized one shows: the one under its centre.

    Steps are added up one by one in double precision, because Pillow's ImagingScaleAffine does; where a centre falls
    between two pixels, torch's `nearest-exact` (single precision, one multiplication) may show the other one.
    """
    step = length / resized
    centres = np.full(resized, step)
    centres[0] = step * 0.5
    shown = np.minimum(np.add.accumulate(centres).astype(np.intp), length - 1)
    return length - 1 - shown[::-1] if opposite else shown
