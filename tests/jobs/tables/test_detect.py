"""A folder that is a table is told by its log, also from a place inside of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import SpecError
from jobs.tables.detect import refuse_inside_table, refuse_tables

LOGS = {
    "delta": "_delta_log/00000000000000000000.json",
    "iceberg": "metadata/v3.metadata.json",
    "lance": "_versions/18446744073709551614.manifest",
    "hudi": ".hoodie/hoodie.properties",
}


@pytest.mark.parametrize("format", LOGS)
@pytest.mark.parametrize("inside", ["part-0.parquet", "day=1/hour=2", "day=1/hour=2/part-0.parquet", "data/"])
def test_a_place_inside_of_a_table_is_refused_with_the_lines_to_write(format: str, inside: str, tmp_path: Path) -> None:
    log = tmp_path / "products" / LOGS[format]
    log.parent.mkdir(parents=True)
    log.write_text("{}")
    with pytest.raises(SpecError, match=rf"input.uri: {tmp_path}/products is a table \({format}\)") as refused:
        refuse_inside_table(f"{tmp_path}/products/{inside}")
    lines = f"`uri: {tmp_path}/products` and `format: {format}`"
    assert (lines in refused.value.next_step) == (format != "hudi")
    refuse_inside_table(f"{tmp_path}/products")
    refuse_inside_table(f"{tmp_path}/others/{inside}")


def test_files_of_a_log_are_refused_and_none_that_are_called_almost_so() -> None:
    for log in LOGS.values():
        with pytest.raises(SpecError):
            refuse_tables(["s3://bucket/t/a.parquet", f"s3://bucket/t/{log}"])
    refuse_tables(["s3://b/_delta_log.parquet", "s3://b/metadata/a.parquet", "s3://b/t/_versions/a.txt", "/a/x.json"])
