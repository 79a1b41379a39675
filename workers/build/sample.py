"""Read the sample of the job's own input that calibrates and judges the INT8 model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from workers.bundle.manifest import Manifest, RowRef
from workers.contract import BundleRequest
from workers.image.decode import ImageArray
from workers.image.errors import BadImage, ErrorCode
from workers.image.plugins import check_decoders
from workers.isolation.sample_decoder import SampleDecoder
from workers.model.load import LoadedModel
from workers.model.names import ModelError
from workers.output import NO_CLASS, UNKNOWN, describe_row, reasons_table, shown_keys, true_classes
from workers.source.shard_reader import sample_cells

MOST_LEFT_OUT = 32
"""More rows of one sample that kill whoever decodes them are not the rows' doing, and each takes up to a minute."""
_ROWS_NAMED = 8
"""Rows that an error names."""

_Labels = npt.NDArray[np.int64]


class SampleUnusable(Exception):
    """So many rows kill whoever decodes them that the reason lies elsewhere."""


@dataclass(frozen=True)
class Sample:
    """Rows that decoded, in an order drawn by the seed."""

    crops_NHWC: ImageArray
    """As the job decodes them: what calibrates, and what the network to be judged sees."""
    reference_NHWC: ImageArray
    """Exactly decoded: what the fp32 network sees that it is judged by. The same array where the job decodes so."""
    encoded: tuple[bytes, ...]
    """The same images as they lie in the input."""
    labels: _Labels | None
    """Class index a row, or UNKNOWN; None without a label column."""
    rows: tuple[RowRef, ...]
    bad_rows: int
    """Rows picked that did not decode, those that kill included."""
    left_out: tuple[str, ...] = ()
    """Rows that kill whoever decodes them, each with what it did, for a person."""

    def __len__(self) -> int:
        return len(self.rows)


def read_sample(request: BundleRequest, network: LoadedModel | Manifest, memory_bytes: int) -> Sample:
    """Read and decode the rows through the production path; exactly as well where the network's are decoded otherwise.

    `memory_bytes` is the most that the process which decodes may take. Raises ModelError when no row is of use, or none
    has a label though the gate asks for labels; SampleUnusable; DecoderMissing; what the reader raises and, but for
    BadImage, what SampleDecoder does.
    """
    how, column = network.preprocess.of(request.input.formats), request.gate.labels_column
    exact = replace(how, decode="exact")
    check_decoders(request.input.formats)
    taken: list[tuple[RowRef, bytes, object, ImageArray, ImageArray]] = []
    bad: Counter[str] = Counter()
    examples: dict[str, str] = {}
    left_out: list[str] = []
    with closing(SampleDecoder(memory_bytes)) as decoder:
        cells = ((part.rows, *found) for part in request.sample for found in sample_cells(part, request.input))
        for source, row, cell, block in cells:
            uri, row_group = source.uri, source.row_group
            try:
                if isinstance(cell, BadImage):
                    raise cell
                crop_HWC = decoder.decode(memoryview(cell), how)
                exact_HWC = crop_HWC if exact == how else decoder.decode(memoryview(cell), exact)
            except BadImage as error:
                keys = {} if block.keys is None else shown_keys(block.keys, block.rows.index(row))
                described = f"{describe_row(uri, row_group, row, keys)}: {error}"
                bad[error.code] += 1
                examples.setdefault(error.code, described)
                if error.code is ErrorCode.CRASHED_WORKER:
                    left_out.append(described)
                if len(left_out) > MOST_LEFT_OUT:
                    message = f"{len(left_out)} rows of the sample kill whoever decodes them, among them"
                    raise SampleUnusable("\n".join([message, *left_out[:_ROWS_NAMED]])) from error
                continue
            label = None
            if block.keys is not None and column is not None:
                label = block.keys.column(column)[block.rows.index(row)].as_py()
            taken.append((RowRef(uri=uri, row_group=row_group, row=row), bytes(cell), label, crop_HWC, exact_HWC))
    if not taken and not bad:
        raise ModelError("input: the files sampled to calibrate on are gone, or changed since they were listed")
    if not taken:
        message = f"input: none of the {bad.total():,} rows sampled to calibrate on is an image that can be decoded"
        raise ModelError("\n".join([message, *reasons_table(bad, examples)]))
    order = np.random.default_rng(request.model.calibration.seed).permutation(len(taken))
    rows, encoded, labels, crops, exact_crops = zip(*(taken[i] for i in order), strict=True)
    crops_NHWC = np.stack(crops)
    return Sample(
        crops_NHWC=crops_NHWC,
        reference_NHWC=crops_NHWC if exact == how else np.stack(exact_crops),
        encoded=encoded,
        labels=None if column is None else class_indices(labels, network.labels, network.outputs, column),
        rows=rows,
        bad_rows=bad.total(),
        left_out=tuple(left_out),
    )


def class_indices(values: Sequence[object], class_names: Sequence[str] | None, classes: int, column: str) -> _Labels:
    """Class index of each label: a name among the model's labels, or an index, also as text or as a whole float.

    Null, NaN, an empty text and what is below 0 are UNKNOWN. Raises ModelError for anything else, and where no row has
    a label.
    """
    indices = true_classes(values, class_names)
    if NO_CLASS in indices:
        odd = values[indices.index(NO_CLASS)]
        raise ModelError(
            f"gate.labels_column: {odd!r} in column {column!r} is neither a class index nor one of the "
            f"model's labels ({', '.join(list(class_names or ())[:5]) or 'none are known'}…)"
        )
    if (greatest := max(indices)) >= classes:
        raise ModelError(
            f"gate.labels_column: column {column!r} holds {greatest}, but the model's {classes} classes count from 0"
        )
    labels = np.array(indices, np.int64)
    check_labelled(labels, column)
    return labels


def check_labelled(labels: _Labels | None, column: str | None) -> None:
    """Raises ModelError where labels are wanted, and none of the rows has one."""
    if labels is not None and (labels == UNKNOWN).all():
        raise ModelError(
            f"gate.labels_column: none of {len(labels)} rows has a label in column {column!r}: all are empty or below "
            "0, as in a test split. Name a column with the true class, or leave gate.labels_column out"
        )


def split_rows(rows: int, calibration: int, comparison: int) -> tuple[slice, slice]:
    """Which rows of the sample calibrate and which are compared on: apart where there are enough of them.

    A short sample is shared in proportion; one of fewer than 8 rows serves for both.
    """
    if rows < 8:
        return slice(0, rows), slice(0, rows)
    if rows < calibration + comparison:
        calibration = max(1, min(rows - 1, rows * calibration // (calibration + comparison)))
    return slice(0, calibration), slice(calibration, min(rows, calibration + comparison))
