"""The oracle's view of claims: rows scored twice and rows left out are found, whatever the history."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import pytest

from jobs.ledger.plans import Content, Plan, Source, decode_plan, encode_plan
from jobs.ledger.superseded import OutOfDate, less_rows
from jobs.ledger.table_files import FileStands, Standing
from jobs.plan import claims
from tests.support.slices import slices_of
from workers.contract import Slice


def rows(uri: str, start: int, stop: int, version: str = "v1") -> Slice:
    return Slice(uri=uri, size=10, version=version, row_group=0, row_start=start, row_stop=stop)


def plan(number: int, *slices: Slice, supersedes: Mapping[str, str] | None = None) -> Plan:
    content = Content(slices_of([slices]), supersedes=supersedes or {})
    return decode_plan(number, encode_plan(content, f"token-{number}"))


def faults(plans: Sequence[Plan], gone: Sequence[tuple[int, Slice]], sources: Sequence[Source]) -> list[str]:
    return list(chain.from_iterable(claims.faults(plans, gone, sources, OutOfDate()).values()))


A = Source("a", 10, "v1")


def test_each_file_claimed_once_is_as_it_should_be() -> None:
    plans = [plan(1, rows("a", 0, 5)), plan(2, rows("b", 0, 5))]
    assert faults(plans, [], [A]) == []
    assert list(claims.notes(plans, [A, Source("b", 10, "v1")], rescore=False)) == []
    assert claims.unclaimed(plans, [A, Source("c", 1, "v1")]) == [Source("c", 1, "v1")]


def test_rows_that_two_plans_score_are_named() -> None:
    plans = [plan(1, rows("a", 0, 5), rows("a", 5, 9)), plan(2, rows("a", 3, 4))]
    assert faults(plans, [], [A]) == ["a (version v1): row group 0 row 3 is scored by plans 1 and 2"]


def test_rows_that_were_gone_and_are_scored_by_a_later_plan_are_as_they_should_be() -> None:
    plans = [plan(1, rows("a", 0, 5), rows("a", 5, 9)), plan(2, rows("a", 5, 9))]
    assert faults(plans, [(1, rows("a", 5, 9))], [A]) == []


def test_rows_of_a_table_that_were_gone_need_nothing_once_they_are_deleted() -> None:
    plans = [plan(1, rows("a", 0, 9)), plan(2, rows("a", 0, 3), rows("a", 5, 8))]
    gone = [(1, rows("a", 0, 9))]
    assert len(faults(plans, gone, [A])) == 1
    stands = FileStands(Standing.LIVE, np.array([3, 4, 8]), group_rows=(9,))
    assert claims.faults(plans, gone, [A], OutOfDate(deleted={"a": stands})) == {}
    assert less_rows([rows("a", 0, 9)], [rows("a", 5, 8), rows("a", 0, 3)]) == {
        rows("a", 3, 5),
        rows("a", 8, 9),
    }
    assert less_rows([rows("a", 2, 4), rows("b", 0, 2)], [rows("a", 0, 9), rows("b", 0, 1)]) == {rows("b", 1, 2)}


@pytest.mark.parametrize(("present", "count"), [([A], 1), ([], 0)])
def test_rows_that_were_gone_matter_only_when_they_are_back(present: list[Source], count: int) -> None:
    plans = [plan(1, rows("a", 0, 5), rows("a", 5, 9))]
    found = faults(plans, [(1, rows("a", 5, 9))], present)
    assert len(found) == count
    assert all("4 rows gone when it was their turn" in fault for fault in found)


def test_a_file_that_changed_before_its_turn_is_told_until_it_is_claimed_as_it_is_now() -> None:
    """A claim made before the change may come to light after it; the file would have no predictions and no fault."""
    changed = Source("a", 10, "v2")
    plans = [plan(1, rows("a", 0, 5))]
    (fault,) = faults(plans, [(1, rows("a", 0, 5))], [changed])
    assert "5 rows gone when it was their turn, and the file is there in version v2: run the job again" in fault
    plans.append(plan(2, rows("a", 0, 5, "v2"), supersedes={"a": "v1"}))
    assert faults(plans, [(1, rows("a", 0, 5))], [changed]) == []


def test_rows_that_were_gone_twice_are_still_missing() -> None:
    plans = [plan(1, rows("a", 0, 5)), plan(2, rows("a", 0, 5))]
    assert len(faults(plans, [(1, rows("a", 0, 5)), (2, rows("a", 0, 5))], [A])) == 1


def test_rows_that_were_scored_again_count_once_and_what_was_gone_before_no_more() -> None:
    first = plan(1, rows("a", 0, 5), rows("a", 5, 9))
    afresh = plan(2, rows("a", 0, 4), rows("a", 4, 9), supersedes={"a": "v1"})
    assert afresh.afresh == {("a", "v1")}
    assert faults([first, afresh], [(1, rows("a", 5, 9))], [A]) == []
    gone = [(2, rows("a", 4, 9))]
    (fault,) = faults([first, afresh], gone, [A])
    assert "5 rows gone when it was their turn" in fault
    assert faults([first, afresh, plan(3, rows("a", 4, 9))], gone, [A]) == []
    (fault,) = faults([first, afresh, plan(3, rows("a", 0, 4))], [], [A])
    assert fault == "a (version v1): row group 0 row 0 is scored by plans 2 and 3"


def test_changed_and_vanished_files_are_noted() -> None:
    plans = [plan(1, rows("a", 0, 5), rows("b", 0, 5))]
    now = [Source("a", 10, "v2")]
    changed, past = claims.notes(plans, now, rescore=False)
    assert "1 source with another content than the one scored, as a" in changed
    assert "1 claimed source not in the input now" in past
    assert list(claims.notes(plans, now, rescore=True)) == [past]
    assert claims.changed(plans, [*now, Source("b", 10, "v1"), Source("c", 1, "v1")]) == now


def test_predictions_stay_only_of_files_that_have_some() -> None:
    plans = [plan(1, rows("a", 0, 5), rows("b", 0, 5), rows("c", 0, 5)), plan(2, rows("b", 0, 5, "v2"))]
    gone = [(1, rows("a", 0, 5)), (2, rows("b", 0, 5, "v2"))]
    kept, without = claims.notes(plans, [], gone, rescore=False)
    assert kept == "2 claimed sources not in the input now; the predictions stay"
    assert without == "1 claimed source gone when it was their turn, without any prediction: a"


def test_many_files_that_were_gone_are_told_in_time_that_grows_with_their_number() -> None:
    """A folder that was cleaned up during a night: looking through the plan for each of its files took hours."""
    count = 20_000
    pieces = [rows(f"f{i:06d}", 0, 1) for i in range(count)]
    present = [Source(piece.uri, 10, "v1") for piece in pieces]
    began = time.perf_counter()
    assert len(faults([plan(1, *pieces)], [(1, piece) for piece in pieces], present)) == count
    assert time.perf_counter() - began < 10  # 0.3 s; for each file on its own it was 45 s
