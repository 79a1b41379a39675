"""Seven nights of one job: what each finds, what it scores, what readers see afterwards; each ends in verify."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.demo import load_digits, train_weights
from jobs.discovery import Discovery, discover
from jobs.job import Job
from jobs.reader import Predictions, done
from tests.digits_job import Digits

WriteSpec = Callable[[dict[str, Any]], str]
ROWS = 40


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

    def change_model(self) -> None:
        """Other weights from here on."""
        pictures, labels = load_digits()
        train_weights(self.folder / "new.safetensors", pictures[:600], labels[:600], seed=1, copies=2)
        self.raw["model"]["weights"] = str(self.folder / "new.safetensors")
        self.raw["gate"]["max_top1_drop"] = 0.1
        self.spec = self.write_spec(self.raw)

    def check_readers(self) -> Predictions:
        """Exactly the rows that ought to be seen, each once."""
        predictions = done(str(self.out))
        seen = predictions.table(["id"])["id"].to_pylist()
        assert sorted(seen) == sorted(row for rows in self.expected.values() for row in rows)
        return predictions


@pytest.fixture
def nights(digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]) -> Nights:
    return Nights(digits, tmp_path, write_spec, capsys)


def objects(folder: Path) -> dict[Path, tuple[int, int]]:
    """Predictions, plans and done records, each with what would change if it were written again."""
    files = [file for file in folder.glob("model=*/**/*.parquet") if file.is_file()]
    return {file: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


def test_seven_nights(nights: Nights) -> None:
    before: dict[Path, tuple[int, int]] = {}

    def check(day: int, code: int = 0) -> str:
        """The end of each night: verified, nothing rewritten, readers see what they ought to."""
        nonlocal before
        now = objects(nights.out)
        assert {file: now[file] for file in before} == before
        before = now
        nights.check_readers()
        return nights.verify(day, code)

    nights.put("2026-03-01/a.parquet")
    nights.put("2026-03-01/b.parquet")
    nights.run(1)
    check(1)

    # The second night: a late file is in yesterday's folder, beside today's own.
    nights.put("2026-03-01/late.parquet")
    nights.put("2026-03-02/a.parquet")
    assert "2 new with 80 rows" in nights.run(2)
    check(2)

    # The third: a file was overwritten. Its old rows stay where they are, and strict readers no longer see them.
    nights.put("2026-03-01/b.parquet")
    nights.put("2026-03-03/a.parquet")
    assert "changed, scored again in place of what was there" in nights.run(3)
    check(3)
    assert len(nights.check_readers().superseded) == 1

    # The fourth: a file is half copied. Everything else is scored; the night ends with code 1 and names the file.
    half = nights.put("2026-03-04/half.parquet")
    whole = half.read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    rows = nights.expected.pop("2026-03-04/half.parquet")
    nights.put("2026-03-04/a.parquet")
    assert f"1 source(s) could not be read and have no predictions: {half}" in nights.run(4, code=1)
    assert f"{half} (version " in check(4, code=1)

    # The fifth: the copy is whole now; a file that was scored is deleted, and its predictions stay. No folder of today.
    half.write_bytes(whole)
    nights.expected["2026-03-04/half.parquet"] = rows
    (nights.folder / "in/2026-03-03/a.parquet").unlink()
    assert "not there (yet): " in nights.run(5)
    assert "are not in the input now; their predictions stay" in check(5)

    # The same night once more: nothing is new.
    assert "nothing new to score" in nights.run(5)
    written = objects(nights.out)
    assert written == before
    check(5)

    # The sixth is missed entirely; the seventh scores both folders.
    nights.put("2026-03-06/a.parquet")
    nights.put("2026-03-07/a.parquet")
    assert "2 new with 80 rows" in nights.run(7)
    check(7)
    assert main(["promote", nights.spec, "--as-of", "2026-03-07"]) == 0

    # And then the model changes: a root of its own, which readers do not see before it is promoted.
    old = nights.check_readers().root
    nights.change_model()
    nights.run(7)
    check(7)
    assert nights.check_readers().root == old
    assert main(["run", nights.spec, "--pool=local", "--backfill", "2026-03-01..2026-03-07"]) == 0
    assert main(["promote", nights.spec, "--as-of", "2026-03-07", "--allow-fewer"]) == 0  # one file is deleted
    del nights.expected["2026-03-03/a.parquet"]
    check(7)
    assert nights.check_readers().root != old


def test_a_new_model_is_scored_beside_the_old_one_and_readers_move_over_when_it_is_whole(
    nights: Nights,
) -> None:
    for day in (1, 2, 5):
        nights.put(f"2026-03-{day:02d}/a.parquet")
        nights.run(day)
    assert main(["promote", nights.spec, "--as-of", "2026-03-05"]) == 0
    old = nights.check_readers().root

    nights.change_model()
    nights.run(5)
    nights.verify(5)
    assert nights.check_readers().root == old  # half of a new model is nobody's business

    assert main(["promote", nights.spec, "--as-of", "2026-03-05"]) == 1
    assert "has no predictions for 2 file(s)" in nights.capsys.readouterr().err
    assert "2 new with 80 rows" in nights.run(5, "--as-of=2026-03-02")  # as --backfill would, day by day
    assert main(["run", nights.spec, "--pool=local", "--backfill", "2026-03-01..2026-03-05"]) == 0
    assert main(["promote", nights.spec, "--as-of", "2026-03-05"]) == 0
    new = nights.check_readers().root
    assert new != old

    assert main(["promote", nights.spec, "--to", old]) == 0  # and back
    assert nights.check_readers().root == old
    nights.capsys.readouterr()
    assert main(["status", nights.spec]) == 0
    assert f"readers follow {old}" in nights.capsys.readouterr().out


def test_a_backfill_scores_every_day_in_one_plan(nights: Nights) -> None:
    for day in (1, 2, 3, 9):
        nights.put(f"2026-03-{day:02d}/a.parquet")
    nights.raw["input"]["days"] = 1
    nights.spec = nights.write_spec(nights.raw)
    assert main(["run", nights.spec, "--pool=local", "--backfill", "2026-03-01..2026-03-09"]) == 0
    assert len(list(nights.out.glob("model=*/_stint/plans/*"))) == 1
    nights.check_readers()
    assert main(["verify", nights.spec, "--backfill", "2026-03-01..2026-03-09"]) == 0


def test_a_backfill_into_an_output_a_day_is_one_run_a_day(nights: Nights, tmp_path: Path) -> None:
    for day in (1, 2):
        nights.put(f"2026-03-{day:02d}/a.parquet")
    nights.raw["input"]["days"] = 1
    nights.raw["output"]["uri"] = str(tmp_path / "daily" / "{as_of}")
    nights.spec = nights.write_spec(nights.raw)
    assert main(["run", nights.spec, "--pool=local", "--backfill", "2026-03-01..2026-03-02"]) == 0
    for day in ("2026-03-01", "2026-03-02"):
        assert done(str(tmp_path / "daily" / day)).table().num_rows == ROWS


def test_by_default_a_changed_file_is_named_every_night_and_its_predictions_stay(nights: Nights) -> None:
    nights.raw["input"]["on_change"] = "report"
    nights.spec = nights.write_spec(nights.raw)
    nights.put("2026-03-01/a.parquet")
    nights.run(1)
    first = dict(nights.expected)
    nights.put("2026-03-01/a.parquet")
    nights.expected = first
    said = nights.run(2)
    assert "changed since they were scored, predictions kept" in said
    assert "nothing new to score" in said
    assert "another content than the one scored" in nights.verify(2)
    nights.check_readers()
    reports = [json.loads(file.read_text()) for file in nights.out.glob("_stint/runs/*/report.json")]
    assert sorted(len(report["changed"]) for report in reports) == [0, 1]


def test_a_file_that_was_moved_away_during_its_turn_is_scored_when_it_is_back(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = nights.put("2026-03-01/a.parquet")
    nights.put("2026-03-01/b.parquet")

    def moved_away(loop: Any) -> Any:
        shutil.move(file, nights.folder / "away")
        monkeypatch.undo()
        return loop.run()

    monkeypatch.setattr("jobs.loop.Loop.run", moved_away)
    assert "gone: 40 rows" in nights.run(1)
    nights.verify(1)
    shutil.move(nights.folder / "away", file)
    assert "rows are back that were gone when it was their turn" in nights.verify(1, code=1)
    said = nights.run(2)
    assert "back again after they were gone" in said
    nights.verify(2)
    nights.check_readers()
    assert "nothing new to score" in nights.run(2)


def test_a_run_that_looked_before_a_file_changed_does_not_claim_it_after_one_that_looked_later(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.put("2026-03-01/a.parquet")
    looked = discover

    def look_and_wait(job: Job) -> Discovery:
        """Between this run's look and its claim the file is overwritten, and another run scores it."""
        found = looked(job)
        monkeypatch.undo()
        nights.put("2026-03-01/a.parquet")
        nights.put("2026-03-01/b.parquet")
        nights.run(1)
        return found

    monkeypatch.setattr("jobs.running.discover", look_and_wait)
    nights.run(1)
    nights.verify(1)
    nights.check_readers()
    assert "nothing new to score" in nights.run(1)


def test_the_sql_of_the_documents_gives_the_same_rows_as_the_reader(nights: Nights) -> None:
    import duckdb

    nights.put("2026-03-01/a.parquet")
    nights.put("2026-03-01/b.parquet")
    nights.run(1)
    nights.put("2026-03-01/a.parquet")
    nights.run(2)
    first = nights.expected["2026-03-01/b.parquet"]
    nights.put("2026-03-01/b.parquet")
    nights.expected["2026-03-01/b.parquet"] = first  # its new version is scored, and not done
    nights.run(3)
    newest = max(nights.out.glob("model=*/_stint/done/*"))
    newest.unlink()
    predictions = nights.check_readers()
    text = (Path(__file__).parent.parent / "docs/OPERATIONS.md").read_text()
    sql = text.partition("```sql\n")[2].partition("```")[0]
    root = f"{nights.out}/{predictions.root}"
    found = duckdb.sql(sql.replace("s3://my-bucket/predictions/model=resnet50-0123456789abcdef", root).strip("; \n"))
    ids = sorted(predictions.table(["id"])["id"].to_pylist())
    assert sorted(row[0] for row in found.select("id").fetchall()) == ids
    assert duckdb.from_arrow(predictions.reader(["label"])).aggregate("count(*)").fetchall() == [(len(ids),)]
