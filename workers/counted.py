"""What a shard's predictions are like, as counts that fit into its result: rows by class and by score."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SCORE_BINS = 20
"""Equal ones from 0 to 1."""


def by_score(scores_N: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Rows in each bin [i, i + 1) / SCORE_BINS; the last one holds 1 too. NaN, which no shard has, is in none."""
    finite = scores_N[np.isfinite(scores_N)]
    return np.histogram(finite, bins=SCORE_BINS, range=(0.0, 1.0))[0].astype(np.int64)


def by_class(classes_N: npt.NDArray[np.int32]) -> dict[int, int]:
    """Rows by class index; classes without any are left out."""
    found, rows = np.unique(classes_N, return_counts=True)
    return dict(zip(found.tolist(), rows.tolist(), strict=True))
