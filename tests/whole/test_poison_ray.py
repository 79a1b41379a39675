"""A real run on Ray over images that kill whoever decodes them, in the bundle's sample as well: it ends, and only these
have no prediction."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from tests.support import poison
from tests.support.digits_job import ROOT, Digits, predictions, stint

KILLERS = {101: "crash", 104: "hog"}


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_over_images_that_kill_workers_ends_well_and_exactly_these_are_error_rows(
    digits: Digits, tmp_path: Path, write_spec: Callable[[dict[str, Any]], str]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    table = pq.read_table(sorted(digits.images.glob("*.parquet"))[0])
    good = [row for row in table.to_pylist() if row["image"] and row["image"][-2:] == b"\xff\xd9"][:24]
    pq.write_table(pa.Table.from_pylist(good, table.schema), data / "a.parquet")
    spec = write_spec(
        digits.spec(
            tmp_path / "out",
            input={"uri": str(data), "keys": ["id"], "shard_rows": 6},
            model__calibration={"rows": 8},
            gate={"min_agreement": 0, "rows": len(good)},  # together more than there are: all rows are in the sample
            workers={"max": 1, "memory": "768MiB"},
            limits={"bad_rows": 0.1, "crash_retries": 1},
        )
    )
    bad = [{**row, "id": 100 + n, "image": _poisoned(100 + n, row["image"])} for n, row in enumerate(good[:6])]
    pq.write_table(pa.Table.from_pylist(bad, table.schema), data / "b.parquet")

    path = os.pathsep.join([str(poison.hooked(tmp_path / "hook")), str(ROOT)])
    run = stint("run", spec, env={"PYTHONPATH": path}, timeout=800)

    assert run.returncode == 0, run.stderr
    rows = predictions(tmp_path / "out").to_pylist()
    assert len(rows) == len(good) + len(bad)
    blamed = {row["id"]: (row["error_code"], row["error_message"]) for row in rows if row["error_code"]}
    assert blamed == {
        101: ("crashed_worker", "killed the process that scored it: SIGSEGV"),
        104: ("crashed_worker", "took more than 0.75 GiB of memory"),
    }
    assert all(row["label"] is not None for row in rows if row["id"] not in KILLERS)
    assert "making the bundle again" not in run.stderr
    warning, place = "warning: left out of the sample:", f"{data / 'b.parquet'} row group 0 row"
    assert f"{warning} id=101 ({place} 1): killed the process that decoded it: SIGSEGV" in run.stderr
    assert f"{warning} id=104 ({place} 4): took more than 0.75 GiB of memory" in run.stderr
    assert "isolated" in run.stderr
    assert main(["verify", spec]) == 0


def _poisoned(number: int, image: bytes) -> bytes:
    return image + poison.mark(KILLERS[number]) if number in KILLERS else image
