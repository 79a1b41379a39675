"""What `stint bench` measures on: a sample of the job's own images or photographs made for it, as local Parquet."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.errors import SpecError
from jobs.input.footers import open_sources
from jobs.measure.photographs import photographs
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from jobs.plan.sample import choose_sample
from workers.contract import SampleSlice, Shard
from workers.image.decode import decode
from workers.image.errors import BadImage
from workers.source.shard_reader import ShardReader

IMAGES = 64
"""Different ones; a row of them is measured again and again."""
SOURCES = 64
"""Files of the job's input at most whose footers are read."""


def made_images() -> list[bytes]:
    """Photographs of 500 by 375, as those of ImageNet are on average: about 85 KB each."""
    return photographs(IMAGES, quality=95)


def images_of(job: Job) -> list[bytes]:
    """About IMAGES images of the job's input that decode, spread over it. Raises SpecError where there are none."""
    found = discover(job)
    sources = random.Random(0).sample(found.sources, min(SOURCES, len(found.sources)))  # noqa: S311  (reproducible)
    opened, _ = open_sources(sources, job.spec.input)
    how = job.input_spec(uris=[source.uri for source in sources])
    images: list[bytes] = []
    for part in choose_sample(opened, IMAGES, seed=0):
        shard = Shard(plan=0, plan_token="sample", index=0, slices=(part.rows,))  # noqa: S106
        for block in ShardReader(shard, how).blocks():
            images += _good(block.images, block.row_start, part)
    if not images:
        raise SpecError("input: none of the images sampled can be decoded, so there is nothing to measure on")
    return images[:IMAGES]


def _good(cells: Sequence[object], row_start: int, part: SampleSlice) -> Iterator[bytes]:
    wanted = set(np.linspace(part.rows.row_start, part.rows.row_stop - 1, part.take).round().astype(int).tolist())
    for row, cell in enumerate(cells, row_start):
        if row not in wanted or isinstance(cell, BadImage):
            continue
        image = bytes(memoryview(cell))  # type: ignore[arg-type]
        try:
            decode(image)
        except BadImage:
            continue
        yield image


@dataclass(frozen=True)
class Files:
    """Parquet files of rows that repeat some images; on disk they are one, by hard links."""

    folder: Path
    images: Sequence[bytes]

    def write(self, rows: int, rows_a_group: int, groups_a_file: int = 4) -> int:
        """Make at least so many rows, in columns `id` and `image`, and return how many there are."""
        self.folder.mkdir(parents=True)
        rows_a_file = rows_a_group * groups_a_file
        first = self.folder / "00000.parquet"
        cells = [self.images[row % len(self.images)] for row in range(rows_a_file)]
        table = pa.table({"id": pa.array(range(rows_a_file), pa.int64()), "image": pa.array(cells, pa.binary())})
        # Neither compressed nor as a dictionary: rows that are different images would not shrink either.
        options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
        pq.write_table(table, first, row_group_size=rows_a_group, **options)
        files = -(-rows // rows_a_file)
        for number in range(1, files):
            os.link(first, self.folder / f"{number:05d}.parquet")
        return files * rows_a_file
