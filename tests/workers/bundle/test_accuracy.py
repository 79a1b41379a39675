"""Which classes are taken for which: pairs of an accuracy report, worked out by hand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from workers.bundle.accuracy import MATRIX_CLASSES, compare_logits


def logits(chosen: list[int], classes: int = 3) -> npt.NDArray[np.float32]:
    """Of rows for which a network chooses these classes."""
    return np.eye(classes, dtype=np.float32)[chosen] + np.arange(classes, dtype=np.float32) * 1e-3


def test_disagreements_with_fp32_are_counted_most_frequent_first() -> None:
    report = compare_logits(logits([0, 0, 1, 2, 2]), logits([1, 1, 1, 2, 0]))
    assert report.disagreements == ((0, 1, 2), (2, 0, 1))
    assert report.confusion == ()
    assert report.top1_agreement == 2 / 5


def test_of_few_classes_the_whole_matrix_is_kept_and_rows_without_a_label_are_not_in_it() -> None:
    labels = np.array([0, 0, 1, -1, 2])
    report = compare_logits(logits([0, 0, 1, 2, 2]), logits([0, 1, 1, 2, 0]), labels)
    assert report.confusion == ((0, 0, 1), (0, 1, 1), (1, 1, 1), (2, 0, 1))
    assert (report.top1_fp32, report.top1) == (1.0, 0.5)


def test_of_many_classes_only_the_errors_are_kept() -> None:
    many = MATRIX_CLASSES + 1
    labels = np.array([3, 3, 4])
    report = compare_logits(logits([3, 3, 4], many), logits([3, 5, 4], many), labels)
    assert report.confusion == ((3, 5, 1),)


def test_rows_with_nan_are_in_no_pair() -> None:
    judged = logits([0, 1])
    judged[1] = np.nan
    report = compare_logits(logits([0, 1]), judged, np.array([0, 1]))
    assert report.confusion == ((0, 0, 1),)
    assert report.disagreements == ()


def test_features_of_embeddings_are_no_classes() -> None:
    assert compare_logits(logits([0, 1]), logits([1, 0]), task="embed").disagreements == ()
