"""Nights of one job, one after the other, and whether everything that tells of them tells the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

from jobs.cli import main
from jobs.pages.history import nights as history
from jobs.reader import Predictions, done
from jobs.report.report import accounts, read_report
from tests.support.digits_job import Digits
from workers.counted import counted
from workers.outcomes import NO_ROWS
from workers.storage.store import open_store

WriteSpec = Callable[[dict[str, Any]], str]
ROWS = 40
"""Of a file."""


class Nights:
    """A job with a folder a day, and what its readers ought to see."""

    def __init__(self, digits: Digits, folder: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys, self.write_spec = folder, capsys, write_spec
        self.out = folder / "out"
        self._rows = pq.read_table(digits.images)
        self._next = 0
        self.expected: dict[str, list[int]] = {}
        """By file, the ids of the rows that readers ought to see."""
        self.raw = digits.spec(
            self.out, input__uri=str(folder / "in" / "{as_of}"), input__days=3, input__on_change="rescore"
        )
        self.spec = write_spec(self.raw)

    def put(self, name: str) -> Path:
        """A file of rows that no other file has; written over what is there."""
        file = self.folder / "in" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = self._rows.slice(self._next, ROWS)
        self._next += ROWS
        pq.write_table(rows, file)
        self.expected[name] = rows["id"].to_pylist()
        return file

    def run(self, day: int, *more: str, code: int = 0) -> str:
        """The night's run; returns what it said."""
        assert main(["run", self.spec, "--pool=local", "--as-of", f"2026-03-{day:02d}", *more]) == code
        shown = self.capsys.readouterr()
        return shown.out + shown.err

    def verify(self, day: int, code: int = 0) -> str:
        assert main(["verify", self.spec, "--as-of", f"2026-03-{day:02d}"]) == code
        return self.capsys.readouterr().out

    def change_model(self, **schedule: str) -> None:
        """Other weights from here on, that make every prediction a little surer; on purpose, unless said otherwise."""
        self.raw["schedule"] = schedule or {"on_new_model": "score"}
        tensors = load_file(self.raw["model"]["weights"])
        self.raw["model"]["weights"] = str(self.folder / "new.safetensors")
        save_file(
            {name: value * 1.25 if name[:3] == "10." else value for name, value in tensors.items()},
            self.raw["model"]["weights"],
        )
        self.spec = self.write_spec(self.raw)

    def check_readers(self) -> Predictions:
        """Exactly the rows that ought to be seen, each once."""
        predictions = done(str(self.out))
        seen = predictions.table(["id"])["id"].to_pylist()
        assert sorted(seen) == sorted(row for rows in self.expected.values() for row in rows)
        return predictions


def without_images(file: Path) -> None:
    table = pq.read_table(file)
    column = table.schema.get_field_index("image")
    pq.write_table(table.set_column(column, "image", pa.array([b"no image"] * len(table))), file)


def check_figures(nights: Nights, day: int, code: int = 0) -> dict[str, Any]:
    """The last report, its page, the terminal, the history and `verify` tell of the same rows; returns the report."""
    file = max(nights.out.glob("_stint/runs/*/report.json"))
    report = read_report(json.loads(file.read_text()))
    assert sum((left.rows for left in report.of_plans), NO_ROWS).scored >= report.scored.scored
    assert sum(report.bad_by_code.values()) == report.rows_bad
    rows = report.data_set
    verified = nights.verify(day, code)
    assert f"{counted(rows.total, 'row')} claimed by {counted(report.data_set_plans, 'plan')} in" in verified
    if not rows.missing:  # of a run that was stopped, workers may have ended what they had begun
        assert f"({rows.ok:,} ok + {rows.bad:,} bad) + {rows.gone:,} whose source is gone" in verified
    assert main(["report", nights.spec]) == 0
    shown = nights.capsys.readouterr().out
    page = file.with_name("report.html").read_text()
    same = len({its for _, its in accounts(report)}) == 1
    for name, its in accounts(report) if report.plans or report.outcome != "complete" else ():
        assert f"{name}: {its.describe()}" in shown or (same and f": {replace(its, gone=0).describe()}, plan" in shown)
    for name, its in accounts(report):
        cells = "".join(f'<td class="num">{n:,}</td>' for n in (its.total, its.ok, its.bad))
        assert f"{name}</th>{cells}".lower() in page.lower()
    (night,) = [night for night in history(open_store(str(nights.out)), report.root) if night.run_id == report.run_id]
    assert (night.rows, night.bad_share) == (report.rows_ok + report.rows_bad, report.scored.bad_share)
    return asdict(report)
