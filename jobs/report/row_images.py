"""Input rows as small pictures for a person: their encoded images found again, and made small.

Whatever is wrong with one row, or with its source, stands in its place and is never raised: a page that lacks a picture
is still a page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from workers.contract import InputSpec, Slice
from workers.image.decode import ImageArray, decode_stored, upright
from workers.image.errors import MAX_IMAGE_BYTES, MAX_PIXELS, BadImage, ErrorCode
from workers.image.formats import exif_orientation, jpeg_exif, sniff
from workers.redaction import redacted
from workers.source import parquet_rows, webdataset
from workers.source.parquet import open_parquet
from workers.source.rows import ImageCell, RowBlock
from workers.source.source_file import SourceFile, opened
from workers.storage.errors import NotFound
from workers.storage.filesystems import open_filesystem, version_of
from workers.storage.retries import retrying

SOURCES_AT_ONCE = 8
GONE = "the file is gone"
CHANGED = "the file has changed since it was scored"
PARTLY_SEEN = frozenset([ErrorCode.TRUNCATED, ErrorCode.CORRUPT, ErrorCode.BAD_SIZE])
"""What a person may still see something of. The others have no pixels, or too many."""
QUALITY = 82
END_OF_JPEG = b"\xff\xd9"
"""Of a progressive one that is cut short nothing is shown before its end is there."""


@dataclass(frozen=True, order=True, slots=True)
class RowAt:
    """An input row, as the first four columns of the output name it."""

    uri: str
    version: str
    row_group: int
    row: int


@dataclass(frozen=True)
class Fetched:
    """The encoded image of a row, or why there is none, for a person."""

    data: bytes | None
    problem: str = ""


def fetch_images(given: InputSpec, rows: Sequence[RowAt], pieces: Iterable[Slice] = ()) -> list[Fetched]:
    """The images of the rows, in their order; all of them are held in memory. Raises nothing for a row's sake.

    Rows of one source are read together. `pieces` are slices of plans that hold the rows: in a tar they tell from which
    byte to read, and without them it is read from its beginning; other formats need none.
    """
    spec = replace(given, keys=())
    sources: dict[tuple[str, str], list[RowAt]] = {}
    for row in sorted(set(rows)):
        sources.setdefault((row.uri, row.version), []).append(row)
    begins: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for piece in pieces:
        begins.setdefault((piece.uri, piece.version), set()).add((piece.row_start, piece.byte_start))
    with ThreadPoolExecutor(SOURCES_AT_ONCE, "rows") as pool:
        parts = pool.map(lambda source: _of_source(spec, sources[source], begins.get(source, set())), sources)
        found = {row: fetched for part in parts for row, fetched in part.items()}
    return [found[row] for row in rows]


def _of_source(spec: InputSpec, rows: Sequence[RowAt], begins: set[tuple[int, int]]) -> dict[RowAt, Fetched]:
    """Rows of one source in one version, in ascending order."""
    source = rows[0]
    found: dict[RowAt, Fetched] = {}
    problem = "the file has no such row"
    try:
        fs, path = open_filesystem(source.uri)
        if problem_now := _problem(fs, path, source):
            return dict.fromkeys(rows, Fetched(None, problem_now))
        for row, cell in _cells(spec, fs, path, rows, begins):
            found[row] = Fetched(None, str(cell)) if isinstance(cell, BadImage) else Fetched(bytes(cell))
        if problem_now := _problem(fs, path, source):
            return dict.fromkeys(rows, Fetched(None, problem_now))
    except NotFound:
        problem = GONE
    except Exception as error:  # noqa: BLE001  (each library has its own; whatever it is, it concerns this source alone)
        problem = redacted(f"cannot be read: {error}")
    return {row: found.get(row, Fetched(None, problem)) for row in rows}


def _problem(fs: Any, path: str, source: RowAt) -> str:
    """Why what is there is not what was scored; empty where it is."""
    try:
        info = retrying(lambda: fs.info(path), source.uri)
    except NotFound:
        return GONE
    return "" if version_of(info) == source.version else CHANGED


def _cells(
    spec: InputSpec, fs: Any, path: str, rows: Sequence[RowAt], begins: set[tuple[int, int]]
) -> Iterator[tuple[RowAt, ImageCell]]:
    if spec.format == "images":
        yield rows[0], _whole_file(fs, path, rows[0].uri)
        return
    with opened(fs, path) as file:
        yield from (
            _samples(spec, file, rows, begins) if spec.format == "webdataset" else _parquet_cells(spec, file, rows)
        )


def _whole_file(fs: Any, path: str, uri: str) -> ImageCell:
    size = int(retrying(lambda: fs.info(path), uri)["size"])
    if size > MAX_IMAGE_BYTES:
        return BadImage(ErrorCode.TOO_LARGE, f"{size} bytes, more than {MAX_IMAGE_BYTES}")
    return bytes(retrying(lambda: fs.cat_file(path), uri))


def _parquet_cells(spec: InputSpec, file: SourceFile, rows: Sequence[RowAt]) -> Iterator[tuple[RowAt, ImageCell]]:
    # Streamed: of a large row group a few rows are wanted.
    parquet = open_parquet(file, buffer_size=parquet_rows.BUFFER_BYTES)
    for group, of_group in groupby(rows, lambda row: row.row_group):
        wanted = list(of_group)
        # A file of these rows alone: they are read by what reads shards, and no other row's URI is followed.
        table = _rows_of_group(parquet, group, [row.row for row in wanted], spec.image)
        if not table.num_rows:
            continue
        file_of_these = pa.BufferOutputStream()
        pq.write_table(table, file_of_these, compression="none")
        alone = pq.ParquetFile(pa.BufferReader(file_of_these.getvalue()))
        piece = _slice(wanted[0], 0, table.num_rows, 0)
        cells = _in_order(parquet_rows.row_group_blocks(None, alone, 0, piece, spec))
        yield from zip(wanted, (cell for _, cell in cells), strict=False)


def _rows_of_group(parquet: pq.ParquetFile, group: int, rows: Sequence[int], column: str) -> pa.Table:
    """These rows of a row group, in ascending order; those beyond its end are left out."""
    together = parquet_rows.rows_a_batch(parquet.metadata.row_group(group))
    taken, position = [], 0
    for batch in parquet.iter_batches(together, row_groups=[group], columns=[column], use_threads=False):
        here = [row - position for row in rows if position <= row < position + batch.num_rows]
        if here:
            taken.append(batch.take(pa.array(here)))
        position += batch.num_rows
        if position > rows[-1]:
            break
    return pa.Table.from_batches(taken, pa.schema([parquet.schema_arrow.field(column)]))


def _samples(
    spec: InputSpec, file: SourceFile, rows: Sequence[RowAt], begins: set[tuple[int, int]]
) -> Iterator[tuple[RowAt, ImageCell]]:
    """From the nearest place before each row that is known: a tar has no index."""
    window = webdataset.streaming(file)
    known = sorted({*begins, (0, 0)})
    for (row_start, byte_start), together in groupby(rows, lambda row: max(at for at in known if at[0] <= row.row)):
        wanted = {row.row: row for row in together}
        piece = _slice(rows[0], row_start, max(wanted) + 1, byte_start)
        for number, cell in _in_order(webdataset.sample_blocks(window, 0, piece, spec)):
            if number in wanted:
                yield wanted[number], cell


def _in_order(blocks: Iterable[RowBlock]) -> Iterator[tuple[int, ImageCell]]:
    for block in blocks:
        yield from enumerate(block.images, block.row_start)


def _slice(source: RowAt, row_start: int, row_stop: int, byte_start: int) -> Slice:
    return Slice(
        uri=source.uri, size=0, version=source.version, row_group=0,
        row_start=row_start, row_stop=row_stop, byte_start=byte_start,
    )  # fmt: skip


def thumbnail(data: bytes, px: int = 160) -> str:
    """A JPEG of at most `px` on its longer side as a `data:` URI, upright; of a damaged file what can be seen.

    Empty where nothing can be: then nothing of it was decoded, or more than the decoder's bounds allow. Not for images
    that kill the process which decodes them (`crashed_worker`): they would kill this one, too.
    """
    try:
        image_HWC = _seen(data, px)
        if image_HWC is None:
            return ""
        image = Image.fromarray(np.ascontiguousarray(image_HWC))
        image.thumbnail((px, px), Image.Resampling.LANCZOS)
        out = io.BytesIO()
        image.save(out, "JPEG", quality=QUALITY, optimize=True)
    except Exception:  # noqa: BLE001  (Pillow's parsers raise whatever untrusted bytes lead them to)
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _seen(data: bytes, px: int) -> ImageArray | None:
    """The picture as the network sees it, or what there is of it. Raises what Pillow raises."""
    try:
        stored = decode_stored(data, least_px=px)
    except BadImage as bad:
        return _part_of(data, px) if bad.code in PARTLY_SEEN else None
    return upright(stored.image_HWC, stored.orientation)


def _part_of(data: bytes, px: int) -> ImageArray | None:
    kind = sniff(data)
    if kind is None:
        return None
    if kind == "JPEG":
        data += END_OF_JPEG
    with Image.open(io.BytesIO(data), formats=(kind,)) as image:
        if image.width * image.height > MAX_PIXELS:
            return None
        image.draft("RGB", (px, px))
        whole = _loaded(image.load)
        # Without tiles Pillow takes the pixels that it has for all there are. Its own switch for that is a global one,
        # and workers may decode in this process.
        image.tile = []
        image_HWC = np.asarray(image.convert("RGB"))
        if not whole and not image_HWC.any():
            return None
        exif = jpeg_exif(data) if kind == "JPEG" else b"" if kind == "TIFF" else image.info.get("exif", b"")
    return upright(image_HWC, exif_orientation(exif))


def _loaded(load: Callable[[], object]) -> bool:
    try:
        load()
    except Exception:  # noqa: BLE001  (as above; what was decoded before that is in the image)
        return False
    return True
