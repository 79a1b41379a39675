"""Slices in columns are the slices that went in."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.ledger import plans
from jobs.ledger.plans import Content, Plan, Source, decode_plan, encode_plan
from tests.support.slices import slices_of
from workers.contract import Slice

SHARDS = st.lists(
    st.lists(
        st.builds(
            Slice,
            uri=st.sampled_from(["a", "b", "c"]),
            size=st.just(7),
            version=st.sampled_from(["v1", "v2"]),
            row_group=st.integers(0, 3),
            row_start=st.integers(0, 10),
            row_stop=st.integers(11, 2**40),
            byte_start=st.integers(0, 2**40),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
    max_size=9,
)


@settings(deadline=None)
@given(SHARDS)
def test_shards_come_out_as_they_went_in(shards: list[tuple[Slice, ...]]) -> None:
    made = slices_of(shards)
    of_plan = Plan(1, "token", None, made).shards
    assert list(made) == [shard.slices for shard in of_plan] == shards
    assert len(made) == len(of_plan) == len(shards)
    assert made.rows.tolist() == [sum(piece.rows for piece in of_shard) for of_shard in shards]
    assert [of_plan[i].slices for i in range(-len(shards), 0)] == shards
    assert [shard.slices for shard in of_plan[1:-1:2]] == shards[1:-1:2]
    with pytest.raises(IndexError):
        of_plan[len(shards)]


@settings(deadline=None)
@given(shards=SHARDS, together=st.integers(1, 5))
def test_a_plan_comes_back_from_its_bytes_however_many_rows_are_written_at_once(
    shards: list[tuple[Slice, ...]], together: int
) -> None:
    content = Content(slices_of(shards), (Source("empty", 1, "v"),), supersedes={"a": "v0"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "ROWS_TOGETHER", together)
        patch.setattr(plans, "_TOGETHER", together)
        data = encode_plan(content, "token")
        plan = decode_plan(5, data)
        assert [shard.slices for shard in plan.shards] == shards
    assert plan.claimed == {(piece.uri, piece.version) for shard in shards for piece in shard} | {("empty", "v")}
    supersedes = pq.read_table(pa.BufferReader(data), columns=["uri", "supersedes"]).to_pylist()
    assert all(row["supersedes"] == ("v0" if row["uri"] == "a" else None) for row in supersedes)


@pytest.mark.parametrize("column", ["byte_start", "version", "shard"])
def test_a_plan_without_one_of_its_columns_is_refused(column: str) -> None:
    piece = Slice(uri="a", size=7, version="v", row_group=1, row_start=2, row_stop=3, byte_start=4)
    data = encode_plan(Content(slices_of([(piece,)])), "token")
    table = pq.read_table(pa.BufferReader(data)).drop_columns([column])
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    with pytest.raises(KeyError, match=column):
        decode_plan(1, sink.getvalue().to_pybytes())
