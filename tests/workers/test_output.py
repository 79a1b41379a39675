"""Output objects as they are read back: whatever was damaged is said to be, by one error."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.fakes import object_of
from workers.contract import Shard, Slice
from workers.image.errors import BadImage, ErrorCode
from workers.output import NotOurs, Scored, encode, object_facts, right_ones, true_classes

PIECE = Slice(uri="a.parquet", size=1, version="v", row_group=0, row_start=0, row_stop=3)
SHARD = Shard(plan=1, plan_token="t", index=0, slices=(PIECE,))


def test_an_object_tells_its_shard_and_rows() -> None:
    facts = object_facts(object_of(SHARD, bad=(1,)))
    assert (facts.shard, facts.plan_token, facts.rows_ok, facts.rows_bad) == ("00000001/00000000", "t", 2, 1)


@pytest.mark.parametrize(
    ("labels", "named", "best"),
    [(("cat", "dog", "emu"), True, ["emu", "dog"]), (None, True, ["2", "1"]), (("cat", "dog", "emu"), False, None)],
)
def test_the_best_classes_have_names_beside_their_indices_where_the_root_has_the_column(
    labels: Sequence[str] | None, named: bool, best: list[str] | None
) -> None:
    scored = Scored(np.array([[2, 1], [0, 0]], np.int32), np.array([[0.75, 0.25], [0, 0]], np.float32), [0, 0], [0, 1])
    scored.errors = {1: BadImage(ErrorCode.EMPTY, "no bytes")}
    data = encode(
        SHARD, scored, task="classify", labels=labels, keys=[], outputs=3, named=named, metadata={}, gone=[]
    )  # fmt: skip
    rows = pq.read_table(pa.BufferReader(data)).to_pylist()
    assert [row["topk_label"] for row in rows] == [[2, 1], None]
    assert [row.get("topk_name") for row in rows] == [best, None]
    assert [row["label"] for row in rows] == ["emu" if labels else "2", None]


@pytest.mark.parametrize("labels", [["emu", "dog", None, "cat", "ox"], [2, 1, -1, 0, 9.5], ["2", "1", "", "0", "1.5"]])
def test_predictions_are_held_to_the_labels_that_are_there(labels: list[object]) -> None:
    assert right_ones(true_classes(labels, ("cat", "dog", "emu")), [2, 0, 0, 0, 0]) == (3, 2)


def test_an_object_whose_schema_is_damaged_at_any_bit_is_not_ours_or_has_another_digest() -> None:
    """Among others text becomes no UTF-8, and a number no number."""
    data = object_of(SHARD)
    facts, refused = object_facts(data), 0
    first = data.index(b"ARROW:schema")
    for bit in range(8 * first, 8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        refused += 1
        with contextlib.suppress(NotOurs):
            assert object_facts(bytes(damaged)).sha256 != facts.sha256
            refused -= 1
    assert refused > 1000


@pytest.mark.parametrize("value", [b"three", b"\xff", b""])
@pytest.mark.parametrize("name", [b"stint.rows_ok", b"stint.gone"])
def test_a_count_that_is_none_is_not_ours(name: bytes, value: bytes) -> None:
    table = pq.read_table(pa.BufferReader(object_of(SHARD)))
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, name: value}), sink)
    with pytest.raises(NotOurs, match="damaged metadata"):
        object_facts(sink.getvalue())
