"""Drift measures against values worked out by hand, and what is flagged."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.report.drift import class_distance, compare_nights, distance

LIMITS = {"max_psi": 0.2, "max_js": 0.1}


def test_two_distributions_worked_out_by_hand() -> None:
    # p = (40.5, 60.5) / 101, q = (1/2, 1/2): PSI = 0.09901 · (0.22067 + 0.18067)
    # p = (0.4, 0.6), q = (0.5, 0.5), m = (0.45, 0.55): JSD = (0.0073486 + 0.0072497) / 2
    found = distance([40, 60], [50, 50])
    assert found.psi == pytest.approx(0.039737, abs=1e-6)
    assert found.js == pytest.approx(0.0072992, abs=1e-6)
    # χ² with one degree of freedom exceeds 10.83 once in a thousand times; the approximation gives 11.16.
    assert found.chance == pytest.approx(10.83 * (1 / 100 + 1 / 100), rel=0.05)


def test_the_same_distribution_is_at_no_distance_and_disjoint_ones_are_at_one() -> None:
    assert distance([10, 30], [100, 300]).js == pytest.approx(0)
    assert distance([10, 0], [0, 10]).js == pytest.approx(1)


def test_bins_that_nobody_fills_do_not_count() -> None:
    assert distance([40, 0, 60], [50, 0, 50]) == distance([40, 60], [50, 50])


@pytest.mark.parametrize(("now", "before"), [([0, 0], [1, 1]), ([1], [0])])
def test_a_distribution_of_no_rows_is_refused(now: list[int], before: list[int]) -> None:
    with pytest.raises(ValueError, match="no rows"):
        distance(now, before)


def test_counts_over_different_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="different bins"):
        distance([1, 2], [1, 2, 3])


def test_rare_classes_are_one_bin_so_that_a_thousand_of_them_do_not_look_like_drift() -> None:
    common = {"cat": 5000, "dog": 5000}
    now = {**common, **{f"rare{n}": 1 for n in range(0, 400)}}
    before = {**common, **{f"rare{n}": 1 for n in range(400, 800)}}
    found = class_distance(now, before)
    assert found.bins == 3
    assert found.psi < 1e-6


def test_nights_of_one_distribution_are_flagged_about_never_and_a_shifted_one_is() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(10))
    flagged = 0
    for _ in range(200):
        now, before = rng.multinomial(60, shares), rng.multinomial(300, shares)
        found = compare_nights(
            {str(n): int(rows) for n, rows in enumerate(now)}, [60], [
                ("a", {str(n): int(rows) for n, rows in enumerate(before)}, [300])
            ], **LIMITS,
        )  # fmt: skip
        flagged += bool(found and found.flags)
    assert flagged <= 2
    found = compare_nights({"a": 90, "b": 10}, [100], [("a", {"a": 50, "b": 50}, [100])], **LIMITS)
    assert found is not None
    assert [flag.partition(":")[0] for flag in found.flags] == ["predicted classes", "predicted classes"]


def test_nights_before_are_taken_together_and_the_classes_that_moved_most_are_named() -> None:
    before = [("one", {"a": 30, "b": 70}, [0, 100]), ("two", {"a": 50, "b": 50}, [100, 0]), ("none", {}, [0, 0])]
    found = compare_nights({"a": 80, "c": 20}, [50, 50], before, **LIMITS)
    assert found is not None
    assert found.against == ("one", "two")
    assert (found.rows_before, found.scores_before, found.classes_before) == (200, (100, 100), {"a": 80, "b": 120})
    assert [(it.label, it.share, it.share_before) for it in found.moved] == [
        ("b", 0.0, 0.6), ("a", 0.8, 0.4), ("c", 0.2, 0.0),
    ]  # fmt: skip
    assert found.scores is not None
    assert found.scores.psi == pytest.approx(0)


@pytest.mark.parametrize("before", [[], [("none", {}, [0, 0])], [("other bins", {"a": 1}, [1])]])
def test_without_a_night_before_there_is_no_drift(before: list[tuple[str, dict[str, int], list[int]]]) -> None:
    assert compare_nights({"a": 1}, [1, 0], before, **LIMITS) is None


def test_a_night_too_small_to_tell_is_not_flagged() -> None:
    found = compare_nights({"a": 9, "b": 1}, [10], [("a", {"a": 5, "b": 5}, [10])], **LIMITS)
    assert found is not None
    assert found.classes is not None
    assert found.classes.psi > 0.2
    assert found.flags == ()
