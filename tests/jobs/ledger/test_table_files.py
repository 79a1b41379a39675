"""What plans say of a table's files is read as it was written, and the last word counts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from jobs.ledger.table_files import FileStands, Standing, TablePart, known_files
from workers.contract import TableOf


def deleted(*rows: int) -> np.ndarray:
    return np.array(rows, np.int64)


def test_a_plan_says_of_a_table_what_it_was_given() -> None:
    files = {
        "s3://b/t/0.parquet": FileStands(Standing.LIVE, deleted(3, 7), group_rows=(5, 5)),
        "s3://b/t/1.parquet": FileStands(Standing.CARRIED, group="s3://b/t/1.parquet"),
        "s3://b/t/2.parquet": FileStands(Standing.OUT, group_rows=(8,)),
    }
    of = TableOf(
        url="s3://b/t", version="7", schema=pa.schema([("id", pa.int64())]).serialize().to_pybytes(),
        constants={"s3://b/t/0.parquet": {"day": "2026-03-01", "shop": None}},
        copies=("plan=00000001/00000000.parquet",),
    )  # fmt: skip
    read = TablePart.decode(TablePart(of=of, format="delta", files=files).encode())
    assert (read.of, read.format) == (of, "delta")
    assert read.files.keys() == files.keys()
    for uri, file in files.items():
        one = read.files[uri]
        assert (one.standing, one.group, one.group_rows) == (file.standing, file.group, file.group_rows)
        assert one.deleted.tolist() == file.deleted.tolist()


def test_the_last_word_of_a_file_counts_and_what_was_never_claimed_is_kept_in_mind() -> None:
    known = known_files(
        [
            {"a": FileStands(Standing.LIVE, deleted(1, 2)), "b": FileStands(Standing.CARRIED, group="b")},
            {"a": FileStands(Standing.LIVE, deleted(2, 5))},
            {"a": FileStands(Standing.OUT), "b": FileStands(Standing.OUT)},
        ]
    )
    assert [known[uri].now.standing for uri in "ab"] == [Standing.OUT, Standing.OUT]
    never = known["a"].unscored
    assert never is not None
    assert never.tolist() == [2]
    assert known["b"].unscored is None
