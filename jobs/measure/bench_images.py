"""What `stint bench` measures on: a sample of the job's own images or photographs made for it, as local Parquet.

Photographs are made where nobody has given any: nothing is downloaded. They are crops of scikit-learn's two sample
photographs; where it is not installed, of two pictures made of noise at several scales, which take as long to decode
but show nothing.
"""

from __future__ import annotations

import functools
import io
import os
import random
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jobs.errors import SpecError
from jobs.input.footers import open_sources
from jobs.plan.discovery import discover
from jobs.plan.job import Job
from jobs.plan.sample import choose_sample
from workers.image.decode import decode_stored
from workers.image.errors import BadImage
from workers.measure.sample_file import read_images

_Pixels = npt.NDArray[np.uint8]

HEIGHT_PX, WIDTH_PX = 427, 640
"""Of the two pictures that everything is cut from."""


def photographs(count: int, height: int = 375, width: int = 500, quality: int = 90) -> list[bytes]:
    """`count` different JPEG photographs: crops that slide over the two pictures."""
    jpegs = []
    for i in range(count):
        out = io.BytesIO()
        image_HWC = photo(height, width, which=i, top=(37 * i) % HEIGHT_PX, left=(61 * i) % WIDTH_PX)
        Image.fromarray(image_HWC).save(out, "JPEG", quality=quality)
        jpegs.append(out.getvalue())
    return jpegs


def photo(height: int = 120, width: int = 160, which: int = 0, top: int = 150, left: int = 200) -> _Pixels:
    """A crop (HWC, uint8) of one of the pictures, the even or the odd one. Beyond the edge it is mirrored."""
    image_HWC = _pictures()[which % 2]
    rows, columns = (np.arange(start, start + n) for start, n in ((top, height), (left, width)))
    fold = [np.minimum(i % (2 * n), 2 * n - 1 - i % (2 * n)) for i, n in ((rows, HEIGHT_PX), (columns, WIDTH_PX))]
    return np.ascontiguousarray(image_HWC[np.ix_(*fold)])


@functools.cache
def _pictures() -> tuple[_Pixels, _Pixels]:
    """Each HEIGHT_PX by WIDTH_PX: a temple and a flower, or noise."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError:
        return noise(0), noise(1)
    temple_HWC, flower_HWC = load_sample_images().images
    return temple_HWC, flower_HWC


def noise(seed: int) -> _Pixels:
    """Noise at six scales, each weaker than the next coarser one, as in pictures of the world."""
    rng = np.random.default_rng(seed)
    sum_HWC = np.zeros((HEIGHT_PX, WIDTH_PX, 3))
    for octave in range(6):
        cells = rng.integers(0, 256, (2 + HEIGHT_PX * 2**octave // 64, 2 + WIDTH_PX * 2**octave // 64, 3), np.uint8)
        layer = Image.fromarray(cells).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
        sum_HWC += (np.asarray(layer) - 127.5) / 1.6**octave
    return (127.5 + sum_HWC).clip(0, 255).astype(np.uint8)


IMAGES = 64
"""Different ones; a row of them is measured again and again."""
_SOURCES = 64
"""Files of the job's input at most whose footers are read."""


def images_of(job: Job) -> list[bytes]:
    """About 64 images of the job's input that decode, spread over it. Raises SpecError where there are none."""
    found = discover(job)
    sources = random.Random(0).sample(found.sources, min(_SOURCES, len(found.sources)))  # noqa: S311  (reproducible)
    opened, _ = open_sources(sources, job.spec.input)
    input_spec = job.input_spec(uris=[source.uri for source in sources])
    images: list[bytes] = []
    for image in read_images(choose_sample(opened, IMAGES, seed=0), input_spec):
        with suppress(BadImage):
            decode_stored(image)
            images.append(image)
    if not images:
        raise SpecError("input: none of the images sampled can be decoded, so there is nothing to measure on")
    return images[:IMAGES]


def write_files(folder: Path, images: Sequence[bytes], rows: int, rows_a_group: int, groups_a_file: int = 4) -> int:
    """Write Parquet files of at least so many rows, in columns `id` and `image`, and return how many there are.

    Rows repeat the images; on disk the files are one, by hard links.
    """
    folder.mkdir(parents=True)
    rows_a_file = rows_a_group * groups_a_file
    first = folder / "00000.parquet"
    cells = [images[row % len(images)] for row in range(rows_a_file)]
    table = pa.table({"id": pa.array(range(rows_a_file), pa.int64()), "image": pa.array(cells, pa.binary())})
    # Neither compressed nor as a dictionary: rows that are different images would not shrink either.
    options = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    pq.write_table(table, first, row_group_size=rows_a_group, **options)
    files = -(-rows // rows_a_file)
    for number in range(1, files):
        os.link(first, folder / f"{number:05d}.parquet")
    return files * rows_a_file
