"""What a person is told of bad rows: examples that show the way out, and the codes to score again by."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from jobs.ledger.bad_rows import ErrorRow, OverBudget, Reasons, bad_rows_error, by_source
from tests.support.small_ledger import SmallLedger

WAY_OUT = "heif is not among input.formats: write `formats: [jpeg, heif]` below input"


def test_the_example_of_a_code_is_the_first_row_whose_message_has_a_line_to_write() -> None:
    def row(message: str, row: int) -> ErrorRow:
        return ErrorRow("unsupported_format", message, "u", "v", 0, row, {})

    (found,) = by_source([row("no image", 0), row(WAY_OUT, 1), row(WAY_OUT, 2)]).values()
    assert found.samples == {"unsupported_format": row(WAY_OUT, 1).describe()}
    reasons = Reasons()
    for said in ("first", WAY_OUT, "second"):
        reasons.add({"unsupported_format": 1}, {"unsupported_format": said})
    assert (reasons.by_code.total(), reasons.samples) == (3, {"unsupported_format": WAY_OUT})


def test_all_codes_can_be_scored_again_by_the_condition_that_is_told(tmp_path: Path) -> None:
    small = SmallLedger(tmp_path)
    small.put("a.parquet", [1], lambda _: b"1")
    plan = small.claim()
    one, two = (OverBudget(plan, Reasons(Counter(codes))) for codes in (["empty"], ["empty", "denied", "denied"]))
    assert "--again \"error_code = 'empty'\"" in bad_rows_error([one], "1%").next_step
    assert "--again \"error_code in ('empty', 'denied')\"" in bad_rows_error([one, two], "1%").next_step
