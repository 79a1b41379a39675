"""Encoded images of a job's input to measure on: read from storage once, mapped from a file by every process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import feather

from workers.contract import InputSpec, SampleSlice
from workers.image.errors import BadImage
from workers.source.columns import binary_cells
from workers.source.rows import ImageCell
from workers.source.shard_reader import sample_cells

_MOST_BYTES = 256 * 2**20
"""The sample is cut short where images are so large that it would hold more."""


def read_images(slices: Sequence[SampleSlice], how: InputSpec) -> list[bytes]:
    """Encoded images of the job's own input, as they lie there. Raises what the reader raises."""
    images: list[bytes] = []
    total = 0
    for part in slices:
        for _, cell, _ in sample_cells(part, how):
            if not isinstance(cell, BadImage) and total < _MOST_BYTES:
                images.append(bytes(cell))
                total += len(images[-1])
    return images


def write_sample(path: Path, images: Sequence[bytes]) -> None:
    """An Arrow file, which processes map without copying."""
    table = pa.table({"image": pa.array(images, pa.large_binary())})
    feather.write_feather(table, str(path), compression="uncompressed")


def map_sample(path: str) -> list[ImageCell]:
    column = feather.read_table(path, memory_map=True).column("image")
    return [cell for chunk in column.chunks for cell in binary_cells(chunk)]
