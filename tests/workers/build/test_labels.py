"""Labels of the gate, however a column writes them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from workers.build.sample import UNKNOWN, class_indices
from workers.model.names import ModelError

NAMES = ("cat", "dog", "7")


def indices(*values: Any) -> list[int]:
    return class_indices(values, NAMES, len(NAMES), "label").tolist()


@pytest.mark.parametrize(
    "value", [1, 1.0, "1", " 1\n", "1.0", b"1", Decimal(1), True, "dog"], ids=lambda it: f"{type(it).__name__} {it!r}"
)
def test_an_index_is_one_in_any_type_and_so_is_a_name(value: Any) -> None:
    assert indices(value) == [1]


def test_a_name_goes_before_a_number() -> None:
    assert indices("7") == [2]


@pytest.mark.parametrize("value", [None, float("nan"), "", "nan", -1, -1.0, "-1", -100], ids=repr)
def test_rows_without_a_label_are_those_of_gaps_and_of_test_splits(value: Any) -> None:
    assert indices(value, 2) == [UNKNOWN, 2]


@pytest.mark.parametrize("value", [1.5, "cow", "1.5", float("inf"), [1], {"label": 1}], ids=repr)
def test_what_is_neither_is_refused(value: Any) -> None:
    with pytest.raises(ModelError, match=r"is neither a class index nor one of the model's labels \(cat, dog, 7"):
        indices(0, value)


@pytest.mark.parametrize("value", [3, 3.0, 1e300], ids=repr)
def test_an_index_beyond_the_classes_is_refused(value: float) -> None:
    with pytest.raises(ModelError, match=r"holds \d+, but the model's 3 classes count from 0"):
        indices(value)


@pytest.mark.parametrize("value", [None, -1, float("nan")], ids=repr)
def test_a_column_without_any_label_is_refused(value: Any) -> None:
    with pytest.raises(ModelError, match="none of 2 rows has a label in column 'label'"):
        indices(value, value)
