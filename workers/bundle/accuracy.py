"""How far a network of less precision is from its fp32 original: measured on images, as plain numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from workers.engines.base import Logits

_PAIRS_KEPT = 200
MATRIX_CLASSES = 12


@dataclass(frozen=True, kw_only=True)
class AccuracyReport:
    """Plain values, JSON-able. Shares and errors are over `rows` images that both networks scored."""

    rows: int
    top1_agreement: float
    """Share of rows on which both choose the same class. Of no meaning for embeddings."""
    logit_error: float
    """Mean absolute difference of logits ÷ standard deviation of the fp32 ones."""
    logit_error_max: float
    """The same for the greatest difference."""
    mean_cosine: float
    """Mean cosine similarity of the two vectors of a row."""
    nonfinite_rows: int
    """Rows for which either network returned NaN or infinity; they count as disagreement."""
    top1_fp32: float | None = None
    """True top-1 accuracy of the original, where labels were given."""
    top1: float | None = None
    """The same of the network that is judged."""
    labelled_rows: int = 0
    calibration_rows: int = 0
    calibration_bad_rows: int = 0
    """Rows picked for calibration or comparison that could not be decoded."""
    shared_rows: int = 0
    """Rows compared on that were also calibrated on, where the input was too small to keep them apart."""
    confusion: tuple[tuple[int, int, int], ...] = ()
    """True class, class that the judged network says, rows: the most frequent first, at most _PAIRS_KEPT. Those where
    both are the same are among them only while there are no more than MATRIX_CLASSES classes."""
    disagreements: tuple[tuple[int, int, int], ...] = ()
    """Class that fp32 says, class that the judged network says, rows; likewise, only where they differ."""


def compare_logits(
    reference_NK: Logits, judged_NK: Logits, labels: npt.NDArray[np.int64] | None = None, *, task: str = "classify"
) -> AccuracyReport:
    """Compare what two networks said of the same rows. Labels are class indices, −1 where unknown.

    `task` is `classify` or `embed`, whose features are no classes. Raises ValueError without rows.
    """
    if len(reference_NK) == 0:
        raise ValueError("there are no rows to compare a network with the fp32 one on")
    finite = np.isfinite(reference_NK).all(axis=1) & np.isfinite(judged_NK).all(axis=1)
    same = finite & (reference_NK.argmax(axis=1) == judged_NK.argmax(axis=1))
    nothing_NK = np.zeros((1, reference_NK.shape[1]))  # what is left to compare where no row is finite
    a, b = (all_NK[finite].astype(np.float64) if finite.any() else nothing_NK for all_NK in (reference_NK, judged_NK))
    error, spread = np.abs(a - b), float(a.std())
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    report = AccuracyReport(
        rows=len(reference_NK),
        top1_agreement=float(same.mean()),
        logit_error=_ratio(float(error.mean()), spread),
        logit_error_max=_ratio(float(error.max()), spread),
        mean_cosine=float(np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0).mean()),
        nonfinite_rows=int((~finite).sum()),
        disagreements=_pairs(a.argmax(axis=1), b.argmax(axis=1), same_too=False) if task == "classify" else (),
    )
    if labels is None or not (labels >= 0).any():
        return report
    known = labels >= 0
    return replace(
        report,
        top1_fp32=_top1(reference_NK[known], labels[known]),
        top1=_top1(judged_NK[known], labels[known]),
        labelled_rows=int(known.sum()),
        confusion=_pairs(
            labels[known & finite],
            judged_NK[known & finite].argmax(axis=1),
            same_too=reference_NK.shape[1] <= MATRIX_CLASSES,
        ),
    )


def _pairs(
    first_N: npt.NDArray[np.int64], second_N: npt.NDArray[np.int64], *, same_too: bool
) -> tuple[tuple[int, int, int], ...]:
    counts = Counter(zip(first_N.tolist(), second_N.tolist(), strict=True))
    pairs = [(a, b, rows) for (a, b), rows in counts.items() if same_too or a != b]
    return tuple(sorted(pairs, key=lambda pair: (-pair[2], pair))[:_PAIRS_KEPT])


def _top1(logits_NK: Logits, labels: npt.NDArray[np.int64]) -> float:
    right = np.isfinite(logits_NK).all(axis=1) & (logits_NK.argmax(axis=1) == labels)
    return float(right.mean())


def _ratio(error: float, spread: float) -> float:
    # A network that answers every image alike has no spread; any error is then boundless.
    return error / spread if spread > 0 else (0.0 if error == 0 else float(np.finfo(np.float64).max))
