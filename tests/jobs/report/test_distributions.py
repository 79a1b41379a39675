"""Rows by class and by score: from results, and from the objects of shards that other runs scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan
from jobs.plan.sharding import Bounds, cut
from jobs.report import drift
from jobs.report.drift import Distributions, of_object
from tests.support.fakes import RESULT, MemoryStore, object_of, opened
from workers.contract import Shard
from workers.image.errors import BadImage, ErrorCode
from workers.output import SCORE_BINS, Scored, by_score, encode

SURE = (0,) * (SCORE_BINS - 1) + (1,)
"""Of one row, with a score of 1."""


@pytest.fixture
def plan() -> Plan:
    """Of 4 shards of 10 rows."""
    content = cut([opened("a", 10, 10, 10, 10)], Bounds(10, 10, 2**20))
    claimed = Ledger(MemoryStore(), "model=net-1").claim(lambda plans: content)
    assert claimed is not None
    return claimed


def unread(shard: Shard) -> bytes:
    raise AssertionError(f"{shard.name} is read although its result is known")


def test_scores_fall_into_equal_bins_and_one_into_the_last() -> None:
    counted = by_score(np.array([0.0, 0.049, 0.05, 0.5, 0.999, 1.0], np.float32))
    assert {at: rows for at, rows in enumerate(counted.tolist()) if rows} == {0: 2, 1: 1, 10: 1, SCORE_BINS - 1: 2}


def test_results_are_summed_by_the_names_of_the_classes(plan: Plan) -> None:
    counted = Distributions()
    for shard in plan.shards:
        counted.add(
            shard, replace(RESULT, class_counts={0: 9, 2: 1}, score_counts=tuple(10 * n for n in SURE), labelled=(8, 6))
        )
    found = counted.of(plan, ["cat", "dog", "cat"], "", unread)  # two classes of one name, as ImageNet has
    assert found.classes == {"cat": 40}
    assert found.scores[-1] == found.rows == 40
    assert (found.labelled, found.right) == (32, 24)


def test_shards_without_a_result_are_read(plan: Plan) -> None:
    counted, shards = Distributions(), list(plan.shards)
    counted.add(shards[2], replace(RESULT, class_counts={1: 10}, score_counts=tuple(10 * n for n in SURE)))
    counted.add(shards[3], replace(RESULT, committed=False))  # another attempt's object stands, and says nothing here
    read: list[int] = []

    def read_one(shard: Shard) -> bytes:
        read.append(shard.index)
        return object_of(shard, bad=(0,))

    found = counted.of(plan, ["zero", "one"], "", read_one)
    assert sorted(read) == [0, 1, 3]
    assert found.classes == {"0": 27, "one": 10}  # objects hold names; these were written without any


def test_of_too_many_such_shards_some_spread_evenly_are_read(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "_READ_MOST", 2)
    read: list[int] = []

    def read_one(shard: Shard) -> bytes:
        read.append(shard.index)
        return object_of(shard)

    assert Distributions().of(plan, None, "", read_one).rows == 20
    assert sorted(read) == [0, 3]


def test_an_object_of_error_rows_alone_counts_nothing(plan: Plan) -> None:
    found = of_object(object_of(next(iter(plan.shards)), bad=tuple(range(10))))
    assert (found.rows, int(found.scores.sum())) == (0, 0)


def test_what_is_right_is_counted_from_an_object_that_holds_the_labels(plan: Plan) -> None:
    shard = next(iter(plan.shards))
    scored = Scored(np.full((10, 2), [1, 0], np.int32), np.full((10, 2), 0.5, np.float32), [0] * 10, [*range(10)])
    scored.keys = [pa.table({"truth": ["dog", "cat", None, "ox", "1", "dog", "dog", "dog", "dog", "dog"]})]
    scored.errors = {9: BadImage(ErrorCode.EMPTY, "no bytes")}
    data = encode(
        shard, scored, task="classify", labels=["cat", "dog"], keys=[pa.field("truth", pa.string())], outputs=2,
        named=True, metadata={}, gone=[],
    )  # fmt: skip
    found = of_object(data, ["cat", "dog"], "truth")
    assert (found.rows, found.labelled, found.right) == (9, 7, 6)
    assert of_object(data, ["cat", "dog"], "").labelled == of_object(data, ["cat", "dog"], "none such").labelled == 0
