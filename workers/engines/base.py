"""What every engine looks like to the predicting loop: uint8 pixels in, float32 logits out, one fixed shape.

Shape suffixes: N batch, H height, W width, C channels, K classes (or features, for embeddings).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class SilentFloatError(RuntimeError):
    """An artifact that calls itself INT8 computes in float where it should not."""


@dataclass(frozen=True, kw_only=True)
class InputLayout:
    """The pixels an engine reads: a square crop inside a frame of constant pixels.

    An engine whose first convolution takes uint8 has that convolution's padding done for it, in the buffer and once:
    zero after normalisation is the mean pixel before it. Engines that normalise by themselves have a frame of 0.
    """

    crop_px: int
    pad_px: tuple[int, int] = (0, 0)
    """Height of the frame's top and bottom, width of its sides."""
    pad_pixel: tuple[int, int, int] = (0, 0, 0)

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """Shape of a full buffer, N × H × W × C."""
        return (batch, self.crop_px + 2 * self.pad_px[0], self.crop_px + 2 * self.pad_px[1], 3)


@dataclass(frozen=True, kw_only=True)
class Buffer:
    """A batch of pixels in the one shape its engine takes."""

    full_NHWC: Pixels
    """What `Engine.predict` reads, frame included."""
    interior_NHWC: Pixels
    """View of the square of crop_px pixels inside the frame: decoded pixels are written here, and nowhere else."""


def new_buffer(layout: InputLayout, batch: int, room_NHWC: Pixels | None = None) -> Buffer:
    """A buffer whose frame is filled, and whose interior is the same constant until written; in memory of its own, or
    in `room_NHWC`, of a full buffer's shape."""
    full_NHWC = np.empty(layout.shape(batch), np.uint8) if room_NHWC is None else room_NHWC
    full_NHWC[:] = layout.pad_pixel
    top, left = layout.pad_px
    interior_NHWC = full_NHWC[:, top : top + layout.crop_px, left : left + layout.crop_px]
    return Buffer(full_NHWC=full_NHWC, interior_NHWC=interior_NHWC)


class LayerCounts(NamedTuple):
    """Convolutions and linear products of a network, as it is executed."""

    int8: int
    floats: int


class Engine:
    """One network, loaded and ready. `predict` is called by one thread at a time.

    It is made of an artifact's bytes and what is known of it, of the threads that it may have where it has threads of
    its own, and of torch's device for floats: workers.engines.artifact.
    """

    layers: LayerCounts
    """What it executes; of engines that run INT8."""
    fewer_floats = True
    """A library may compute more in INT8 by other operators than where the artifact was made, and so fewer layers in
    float."""

    def __init__(self, layout: InputLayout) -> None:
        self.layout = layout

    def check(self, expected: LayerCounts) -> None:
        """Raise SilentFloatError unless it executes the layers `expected` of an artifact that is to be INT8."""
        int8, floats = self.layers
        floats_fit = floats <= expected.floats if self.fewer_floats else floats == expected.floats
        if int8 != expected.int8 or not int8 or not floats_fit:
            raise SilentFloatError(
                f"an artifact of {expected.int8} INT8 and {expected.floats} float layers was expected, "
                f"but it executes {int8} INT8 and {floats} float ones"
            )

    def buffer(self, batch: int) -> Buffer:
        """New pixels for a batch. Batches of another size than the first cost a recompilation, or more at every call:
        pad the last one of a shard, and load an engine for each size."""
        return new_buffer(self.layout, batch)

    def predict(self, pixels_NHWC: Pixels) -> Logits:
        """Logits (or features) N × K of a full buffer. Raises ValueError for pixels of another shape or type."""
        expected = self.layout.shape(len(pixels_NHWC))
        if pixels_NHWC.dtype != np.uint8 or pixels_NHWC.shape != expected:
            raise ValueError(
                f"the engine takes uint8 pixels of shape {expected}, got {pixels_NHWC.dtype} {pixels_NHWC.shape}: "
                "write into Engine.buffer(batch).interior_NHWC and pass its full_NHWC"
            )
        return self._run(pixels_NHWC)

    def _run(self, pixels_NHWC: Pixels) -> Logits:
        raise NotImplementedError


def score_crops(engine: Engine, pixels_NHWC: Pixels, batch: int) -> Logits:
    """Logits of any number of plain crops, in batches of one fixed size. For comparing engines, not for shards."""
    buffer = engine.buffer(batch)
    parts: list[Logits] = []
    for start in range(0, len(pixels_NHWC), batch):
        rows = pixels_NHWC[start : start + batch]
        buffer.interior_NHWC[: len(rows)] = rows
        parts.append(engine.predict(buffer.full_NHWC)[: len(rows)])
    return np.concatenate(parts)
