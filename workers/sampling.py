"""Read the sample of the job's own input that calibrates and judges the INT8 model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workers.contract import InputSpec, Preprocess, SampleSlice, Shard
from workers.decoding import BadImage
from workers.model_names import ModelError
from workers.pixels import decode_into
from workers.reading import ShardReader

UNKNOWN = -1
"""Label of a row whose label column is null."""

Labels: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sample:
    """Rows that decoded, in an order drawn by the seed."""

    crops_NHWC: npt.NDArray[np.uint8]
    encoded: list[bytes]
    """The same images as they lie in the input."""
    labels: Labels | None
    """Class index a row, UNKNOWN where null; None without a label column."""
    rows: list[tuple[str, int, int]]
    """Source URI, row group and row of each, for the manifest."""
    bad_rows: int

    def __len__(self) -> int:
        return len(self.rows)


def read_sample(
    slices: Sequence[SampleSlice], how: InputSpec, preprocess: Preprocess, *, labels_column: str | None,
    class_names: Sequence[str] | None, classes: int, seed: int,
) -> Sample:  # fmt: skip
    """Read and decode the rows through the production path. Raises ModelError when no row is of use."""
    encoded: list[bytes] = []
    rows: list[tuple[str, int, int]] = []
    values: list[object] = []
    crops: list[npt.NDArray[np.uint8]] = []
    bad_rows = 0
    for part in slices:
        shard = Shard(plan=0, plan_token="sample", index=0, slices=(part.rows,))  # noqa: S106
        wanted = set(np.linspace(part.rows.row_start, part.rows.row_stop - 1, part.take).round().astype(int).tolist())
        for block in ShardReader(shard, how).blocks():
            for offset, cell in enumerate(block.images):
                row = block.row_start + offset
                if row not in wanted:
                    continue
                crop = np.empty((preprocess.crop_px, preprocess.crop_px, 3), np.uint8)
                try:
                    if isinstance(cell, BadImage):
                        raise cell
                    decode_into(memoryview(cell), preprocess, crop)
                except BadImage:
                    bad_rows += 1
                    continue
                crops.append(crop)
                encoded.append(bytes(cell))
                rows.append((part.rows.uri, part.rows.row_group, row))
                values.append(_value(block.keys, labels_column, offset))
    if not crops:
        raise ModelError(f"input: none of the {bad_rows} rows sampled to calibrate on is an image that can be decoded")
    order = np.random.default_rng(seed).permutation(len(crops))
    labels = None if labels_column is None else class_indices(values, class_names, classes, labels_column)
    return Sample(
        crops_NHWC=np.stack([crops[i] for i in order]),
        encoded=[encoded[i] for i in order],
        labels=None if labels is None else labels[order],
        rows=[rows[i] for i in order],
        bad_rows=bad_rows,
    )


def _value(keys: pa.Table | None, column: str | None, offset: int) -> object:
    return keys.column(column)[offset].as_py() if keys is not None and column is not None else None


def class_indices(values: Sequence[object], class_names: Sequence[str] | None, classes: int, column: str) -> Labels:
    """Class index of each label: a name among the model's labels, or an index. Raises ModelError for anything else."""
    by_name = {name: index for index, name in enumerate(class_names or ())}
    indices = np.full(len(values), UNKNOWN, np.int64)
    for at, value in enumerate(values):
        if value is None:
            continue
        if isinstance(value, str) and value in by_name:
            indices[at] = by_name[value]
        elif isinstance(value, int) or (isinstance(value, str) and value.isdigit()):
            indices[at] = int(value)
        else:
            raise ModelError(
                f"gate.labels_column: {value!r} in column {column!r} is neither a class index nor one of the "
                f"model's labels ({', '.join(list(by_name)[:5]) or 'none are known'}…)"
            )
    if (indices >= classes).any():
        raise ModelError(
            f"gate.labels_column: column {column!r} holds {indices.max()}, "
            f"but the model's {classes} classes count from 0"
        )
    return indices


def split_rows(rows: int, calibration: int, comparison: int) -> tuple[slice, slice]:
    """Which rows of the sample calibrate and which are compared on: apart where there are enough of them.

    A short sample is shared in proportion; one of fewer than 8 rows serves for both.
    """
    if rows < 8:
        return slice(0, rows), slice(0, rows)
    if rows < calibration + comparison:
        calibration = max(1, min(rows - 1, rows * calibration // (calibration + comparison)))
    return slice(0, calibration), slice(calibration, min(rows, calibration + comparison))
