"""Seven nights of one job: what each finds, what it scores, what readers see afterwards; each ends in verify."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem

from jobs.cli import main
from jobs.errors import Interrupted, RunFailed, SpecError
from jobs.plan.discovery import Discovery, discover
from jobs.plan.job import Job
from jobs.reader import done
from jobs.run.loop import Loop
from tests.support.digits_job import Digits
from tests.whole.nights import ROWS, Nights, WriteSpec, check_figures, without_images
from workers.storage.filesystems import version_of

pytestmark = pytest.mark.usefixtures("decodes_here")


@pytest.fixture(scope="module")
def digits(quantized_digits: Digits) -> Digits:
    return quantized_digits


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
    shown = check(3)
    assert "240 rows claimed by 3 plans" in shown
    assert "readers of this model see 200 of them" in shown
    assert len(nights.check_readers().superseded.claims) == 1

    # The fourth: a file is half copied. Everything else is scored; the night ends with code 1 and names the file.
    half = nights.put("2026-03-04/half.parquet")
    whole = half.read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    rows = nights.expected.pop("2026-03-04/half.parquet")
    nights.put("2026-03-04/a.parquet")
    assert f"1 source or shard could not be read or scored and got no predictions: {half}" in nights.run(4, code=1)
    assert f"{half} (version " in check(4, code=1)

    # The fifth: the copy is whole now; a file that was scored is deleted, and its predictions stay. No folder of today.
    half.write_bytes(whole)
    nights.expected["2026-03-04/half.parquet"] = rows
    (nights.folder / "in/2026-03-03/a.parquet").unlink()
    assert "not there (yet): " in nights.run(5)
    assert "not in the input now; the predictions stay" in check(5)

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
    assert "has no predictions for 2 files" in nights.capsys.readouterr().err
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


def test_a_missed_night_is_told_until_it_is_scored(nights: Nights) -> None:
    """With days: 1, the default, nothing else would: the nights after it end with 0."""
    nights.raw["input"]["days"] = 1
    nights.spec = nights.write_spec(nights.raw)
    for day in (1, 2, 4, 5):
        nights.put(f"2026-03-{day:02d}/a.parquet")
    warning = "warning: no run has looked at 2026-03-02 (files: 1); --backfill 2026-03-02..2026-03-02 scores them"
    assert "no run has looked at" not in nights.run(1)
    assert warning in nights.run(4)  # the third was no working day: there is no folder
    assert warning in nights.run(5)
    reports = sorted(nights.out.glob("_stint/runs/*/report.json"))
    assert [json.loads(file.read_text())["overlooked"] for file in reports] == [{}, *[{"2026-03-02": 1}] * 2]
    assert main(["run", nights.spec, "--pool=local", "--backfill", "2026-03-02..2026-03-02"]) == 0
    nights.check_readers()
    nights.capsys.readouterr()
    assert "no run has looked at" not in nights.run(5)


def test_folders_by_year_month_and_day_are_scored_night_by_night(nights: Nights) -> None:
    nights.raw["input"] |= {
        "days": 2,
        "uri": f"{nights.folder}/in/year={{as_of:%Y}}/month={{as_of:%-m}}/day={{as_of:%d}}/",
    }
    nights.spec = nights.write_spec(nights.raw)
    nights.put("year=2026/month=3/day=01/hour=07/a.parquet")
    nights.run(1)
    nights.put("year=2026/month=3/day=01/hour=23/late.parquet")
    nights.put("year=2026/month=3/day=02/hour=00/a.parquet")
    assert "2 new with 80 rows" in nights.run(2)
    nights.check_readers()
    nights.verify(2)


def test_a_backfill_into_an_output_a_day_is_one_run_a_day(nights: Nights, tmp_path: Path) -> None:
    for day in (1, 3):
        nights.put(f"2026-03-{day:02d}/a.parquet")
    nights.raw["input"]["days"] = 1
    nights.raw["output"]["uri"] = str(tmp_path / "daily" / "{as_of}")
    nights.spec = nights.write_spec(nights.raw)
    assert main(["run", nights.spec, "--pool=local", "--backfill", "2026-02-28..2026-03-03"]) == 0
    said = nights.capsys.readouterr().err
    for day in ("2026-02-28", "2026-03-02"):  # nothing was delivered then
        assert f"{day} is passed over: input.uri: there is nothing at " in said
    for day in ("2026-03-01", "2026-03-03"):
        assert done(str(tmp_path / "daily" / day)).table().num_rows == ROWS
    assert main(["verify", nights.spec, "--backfill", "2026-02-28..2026-03-03"]) == 0
    assert main(["run", nights.spec, "--pool=local", "--backfill", "2026-02-01..2026-02-03"]) == 2


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


def test_a_day_without_the_rows_that_it_should_bring_ends_with_1_and_its_page_says_what_was_looked_at(
    nights: Nights,
) -> None:
    nights.raw["input"]["min_new_rows"] = 2 * ROWS
    nights.spec = nights.write_spec(nights.raw)
    said = nights.run(1, code=1)  # not even the folder is there
    assert "0 new rows for 2026-03-01, where input.min_new_rows wants 80: the delivery is missing" in said
    assert "there is nothing at" in said
    nights.put("2026-03-01/a.parquet")
    said = nights.run(1, code=1)
    assert "40 new rows for 2026-03-01" in said
    assert "scored here: 40 rows" in said
    assert "\nreport: " in said
    nights.check_readers()  # what has come is scored all the same
    nights.put("2026-03-01/b.parquet")
    nights.run(1)
    said = nights.run(1)  # again: the day has brought what it should
    assert "nothing new to score in digits" in said
    assert "2 sources there, 2 claimed by earlier plans" in said
    quiet = max(nights.out.glob("_stint/runs/*/report.html")).read_text()
    assert "There was nothing new to score: 2 sources there, 2 claimed by earlier plans." in quiet
    nights.run(2, code=1)
    nights.verify(2)
    nights.run(2, "--again", "2026-03-01")  # what a person asks for is no delivery
    del nights.raw["input"]["min_new_rows"]
    nights.spec = nights.write_spec(nights.raw)
    nights.put("2026-03-03/a.parquet")
    nights.run(3)
    nights.raw["input"]["min_new_rows"] = ROWS
    nights.spec = nights.write_spec(nights.raw)
    nights.run(3)


def test_a_delivery_is_whole_whichever_run_has_claimed_it_and_late_files_of_another_day_are_no_part_of_it(
    nights: Nights,
) -> None:
    nights.put("2026-03-01/a.parquet")
    nights.run(2)
    nights.raw["input"]["min_new_rows"] = ROWS
    nights.spec = nights.write_spec(nights.raw)
    nights.run(1)  # the second night has its rows
    nights.put("2026-03-01/late.parquet")
    assert "0 new rows for 2026-03-02, where input.min_new_rows wants 40" in nights.run(2, code=1)
    nights.put("2026-03-02/a.parquet")
    nights.run(2)
    nights.put("2026-03-02/a.parquet")
    nights.raw["input"]["min_new_rows"] = 2 * ROWS
    nights.spec = nights.write_spec(nights.raw)
    assert "40 new rows for 2026-03-02" in nights.run(2, code=1)  # one that is rewritten counts once


def test_a_backfill_into_an_output_a_day_passes_over_days_that_lack_rows_and_ends_with_1(nights: Nights) -> None:
    nights.raw["input"] |= {"min_new_rows": ROWS, "days": 1}
    nights.raw["output"]["uri"] += "/{as_of}"
    nights.spec = nights.write_spec(nights.raw)
    for day in (2, 3):
        nights.put(f"2026-03-{day:02d}/a.parquet")
    assert main(["run", nights.spec, "--pool=local", "--backfill", "2026-03-01..2026-03-04"]) == 1
    said = nights.capsys.readouterr().err
    assert "2026-03-01 is short: 0 new rows for 2026-03-01, where input.min_new_rows wants 40" in said
    assert said.endswith(
        "stint: 2 days of 4 had fewer new rows than input.min_new_rows wants: 2026-03-01, 2026-03-04\n"
        "next: see to the deliveries, then run again; what has come is scored\n"
    )
    assert all(done(f"{nights.out}/2026-03-{day:02d}").table(["id"]).num_rows == ROWS for day in (2, 3))


def test_a_bad_manifest_of_one_day_keeps_neither_the_other_day_nor_verify_from_being_done(nights: Nights) -> None:
    def write(day: int, version: str = "") -> None:
        files = [nights.put(f"2026-03-{day:02d}/{name}.parquet") for name in "ab"]
        lines = (
            f"{file}\t{version or version_of(LocalFileSystem().info(str(file)))}\t{file.stat().st_size}\n"
            for file in files
        )
        (nights.folder / f"list-2026-03-{day:02d}").write_text("".join(lines))

    del nights.raw["input"]["uri"]
    nights.raw["input"]["manifest"] = f"{nights.folder}/list-{{as_of}}"
    nights.spec = nights.write_spec(nights.raw)
    write(1)
    write(2, "md5")
    said = nights.run(2, code=1)
    assert "list-2026-03-02: of 2 new files 2 were compared with the store, and none is as the manifest says, " in said
    lacking = [nights.expected.pop(f"2026-03-02/{name}.parquet") for name in "ab"]
    nights.check_readers()
    assert "verified" not in nights.verify(2, code=1)
    nights.raw["input"]["min_new_rows"] = 2 * ROWS
    nights.spec = nights.write_spec(nights.raw)
    assert "0 new rows for 2026-03-02" in nights.run(2, code=1)
    nights.run(1)
    write(2)
    nights.run(2)
    nights.verify(2)
    assert lacking


def test_a_file_that_was_moved_away_during_its_turn_is_scored_when_it_is_back(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = nights.put("2026-03-01/a.parquet")
    nights.put("2026-03-01/b.parquet")

    def moved_away(loop: Any) -> Any:
        shutil.move(file, nights.folder / "away")
        monkeypatch.undo()
        return loop.run()

    monkeypatch.setattr("jobs.run.loop.Loop.run", moved_away)
    said = nights.run(1)
    assert "gone: 40 rows" in said
    assert f"after it was claimed: {file}\n" in said
    nights.verify(1)
    shutil.move(nights.folder / "away", file)
    assert "rows gone when it was their turn, and the file is there" in nights.verify(1, code=1)
    said = nights.run(2)
    assert "back again after they were gone" in said
    nights.verify(2)
    nights.check_readers()
    assert "nothing new to score" in nights.run(2)


def test_an_input_that_is_gone_altogether_at_the_end_of_a_run_is_told_and_fails_the_next_one(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = nights.put("2026-03-01/a.parquet")

    def moved_away(loop: Any) -> Any:
        shutil.move(file, nights.folder / "away")
        file.parent.rmdir()
        monkeypatch.undo()
        return loop.run()

    monkeypatch.setattr("jobs.run.loop.Loop.run", moved_away)
    told = "could not be looked for again: "
    said = nights.run(1, code=1)
    assert told in said
    assert (
        "more rows are gone than limits.gone_rows allows (50.00%): plan 1 (2026-03-01): 40 of 40 rows are gone" in said
    )
    assert f"{file}: it was claimed in version " in said
    assert told not in nights.run(1, code=2)


def test_a_file_that_is_back_before_its_plan_is_done_is_scored_by_the_run_that_finishes_the_plan(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = nights.put("2026-03-01/a.parquet")
    nights.put("2026-03-01/b.parquet")

    right = Loop.run

    def moved_away(loop: Loop) -> Any:
        shutil.move(file, nights.folder / "away")
        return right(loop)

    def died(run: Any, plans: Any) -> None:
        monkeypatch.undo()
        raise RunFailed("the driver died after the last shard")

    monkeypatch.setattr(Loop, "run", moved_away)
    monkeypatch.setattr("jobs.run.run.Run._finish", died)
    nights.run(1, code=1)
    shutil.move(nights.folder / "away", file)
    assert "back again after they were gone" in nights.run(2)
    report = json.loads(max(nights.out.glob("_stint/runs/*/report.json")).read_text())
    assert (report["plans"], report["rows_scored_here"]) == ([1, 2], ROWS)
    assert report["accuracy"]["rows"]  # whoever scores, however late in a run, does so past the gate
    nights.verify(2)
    nights.check_readers()


def test_a_missing_delivery_does_not_keep_what_an_earlier_night_left_from_being_finished(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.raw["input"]["days"] = 1
    nights.spec = nights.write_spec(nights.raw)
    nights.put("2026-03-01/a.parquet")

    class Killed(BaseException):
        pass

    def killed(_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("jobs.run.loop.Loop.run", killed)
        with pytest.raises(Killed):
            nights.run(1)
    assert "there is nothing at" in nights.run(2, code=2)
    nights.verify(1)
    nights.check_readers()


def test_a_run_that_looked_before_a_file_changed_does_not_claim_it_after_one_that_looked_later(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.put("2026-03-01/a.parquet")
    looked = discover

    def look_and_wait(job: Job, again: str = "") -> Discovery:
        """Between this run's look and its claim the file is overwritten, and another run scores it."""
        found = looked(job)
        monkeypatch.undo()
        nights.put("2026-03-01/a.parquet")
        nights.put("2026-03-01/b.parquet")
        nights.run(1)
        return found

    monkeypatch.setattr("jobs.run.run.discover", look_and_wait)
    nights.run(1)
    nights.verify(1)
    nights.check_readers()
    assert "nothing new to score" in nights.run(1)


def test_the_sql_of_the_documents_gives_the_same_rows_as_the_reader(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file that was scored again, one whose new version is not done, and one whose new version vanished."""
    import duckdb

    nights.put("2026-03-01/a.parquet")
    nights.put("2026-03-01/b.parquet")
    nights.put("2026-03-01/c.parquet")
    nights.run(1)
    scored = nights.expected["2026-03-01/c.parquet"]
    vanishing = nights.put("2026-03-01/c.parquet")
    nights.expected["2026-03-01/c.parquet"] = scored

    def vanish(loop: Any) -> Any:
        vanishing.unlink()
        monkeypatch.undo()
        return loop.run()

    monkeypatch.setattr("jobs.run.loop.Loop.run", vanish)
    said = nights.run(1, code=1)
    assert "40 of 40 rows are gone" in said
    assert f"gone: 40 rows whose source vanished or changed after it was claimed: {vanishing}\n" in said
    nights.verify(1)
    nights.check_readers()
    nights.put("2026-03-01/a.parquet")
    nights.run(2)
    first = nights.expected["2026-03-01/b.parquet"]
    nights.put("2026-03-01/b.parquet")
    nights.expected["2026-03-01/b.parquet"] = first  # its new version is scored, and not done
    nights.run(3)
    newest = max(nights.out.glob("model=*/_stint/done/*"))
    newest.unlink()
    nights.put("2026-03-04/d.parquet")
    nights.run(4)
    assert "scored again, in place of what was there" in nights.run(4, "--again", "d.parquet")
    assert "scored again, in place of what was there" in nights.run(4, "--again", "2026-03-04")
    newest.unlink()  # those runs have completed it
    predictions = nights.check_readers()
    text = (Path(__file__).parents[2] / "docs/RESULTS.md").read_text()
    sql = text.partition("```sql\n")[2].partition("```")[0]
    root = f"{nights.out}/{predictions.root}"
    found = duckdb.sql(sql.replace("s3://my-bucket/predictions/model=resnet50-0123456789abcdef", root).strip("; \n"))
    ids = sorted(predictions.table(["id"])["id"].to_pylist())
    assert sorted(row[0] for row in found.select("id").fetchall()) == ids
    assert duckdb.from_arrow(predictions.reader(["label"])).aggregate("count(*)").fetchall() == [(len(ids),)]


def test_a_plan_with_too_many_bad_rows_does_not_hold_up_others_and_is_done_once_its_files_are_replaced(
    nights: Nights,
) -> None:
    good = nights.put("2026-03-01/a.parquet")
    nights.run(1)
    bad = nights.put("2026-03-02/bad.parquet")
    table = pq.read_table(bad)
    column = table.schema.get_field_index("image")
    pq.write_table(table.set_column(column, "image", pa.array([b"no image"] * ROWS)), bad)
    del nights.expected["2026-03-02/bad.parquet"]
    assert "40 of 40 rows are bad" in nights.run(2, code=3)

    nights.put("2026-03-03/a.parquet")
    assert "40 of 40 rows are bad" in nights.run(3, code=3)
    nights.check_readers()  # of the good delivery too

    shutil.copy(good, bad)  # the bad one is replaced
    nights.expected["2026-03-02/bad.parquet"] = nights.expected["2026-03-01/a.parquet"]
    nights.run(3)
    nights.check_readers()
    nights.verify(3)
    assert "nothing new to score" in nights.run(3)


def test_a_large_bad_delivery_beside_a_good_one_is_given_up_early_and_closes_once_it_is_taken_away(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.raw["input"]["shard_rows"] = 10
    nights.spec = nights.write_spec(nights.raw)
    bad = [nights.put(f"2026-03-01/{name}.parquet") for name in "abc"]
    for file in bad:
        without_images(file)

    def killed(loop: Any) -> Any:
        raise RunFailed("killed", "")

    with monkeypatch.context() as patched:
        patched.setattr("jobs.run.loop.Loop.run", killed)
        nights.run(1, code=1)
    for file in bad:
        del nights.expected[f"2026-03-01/{file.name}"]
    nights.put("2026-03-02/good.parquet")
    said = nights.run(2, code=3)  # both plans in one run
    assert re.search(r"plan 1 \(2026-03-01\): [1-6]0 of 120 rows are bad", said)
    assert "what it still lacks is left unscored" in said
    nights.check_readers()  # of the good one
    report = check_figures(nights, 2, code=1)
    assert [left["state"] for left in report["of_plans"]] == ["open, with too many bad rows", "done"]
    assert report["of_plans"][0]["rows"]["missing"] >= 60

    for file in bad:
        file.unlink()
    said = nights.run(2)
    assert re.search(
        r"plan 1 .*: 120 rows = 0 ok \+ [1-6]0 bad \+ .* gone; its bad rows are replaced or taken away: done", said
    )
    nights.verify(2)
    assert "nothing new to score" in nights.run(2)


def test_rows_that_are_gone_are_told_beside_a_plan_with_too_many_bad_rows(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_images(nights.put("2026-03-01/bad.parquet"))
    nights.run(1, code=3)
    file = nights.put("2026-03-02/a.parquet")

    def moved_away(loop: Any) -> Any:
        file.unlink()
        monkeypatch.undo()
        return loop.run()

    monkeypatch.setattr("jobs.run.loop.Loop.run", moved_away)
    said = nights.run(2, code=3)
    assert "plan 1 (2026-03-01): 40 of 40 rows are bad" in said
    assert "plan 2 (2026-03-02): 40 of 40 rows are gone" in said
    assert "a file is gone when it was removed or changed after it was listed" in said


def test_a_damaged_record_of_an_accepted_plan_costs_the_report_no_other_part(nights: Nights) -> None:
    nights.put("2026-03-01/a.parquet")
    nights.run(1)
    (root,) = nights.out.glob("model=*")
    (root / "_stint/accepted").mkdir()
    (root / "_stint/accepted/00000001.json").write_text("{")
    nights.put("2026-03-02/a.parquet")
    assert "the run's report is not whole" in nights.run(2)
    report = json.loads(max(nights.out.glob("_stint/runs/*/report.json")).read_text())
    assert report["distribution_rows"]


@pytest.mark.parametrize("names", ["", "/**/*.parquet"])
def test_an_open_plan_of_an_earlier_day_may_follow_the_uris_in_its_own_folder(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, names: str
) -> None:
    nights.raw["input"]["days"] = 1
    nights.raw["input"]["uri"] += names
    nights.raw["input"]["keys"] = ["id"]
    nights.raw["gate"] = {"rows": 20}
    nights.raw["model"]["calibration"]["rows"] = 10
    nights.spec = nights.write_spec(nights.raw)
    for day in (1, 2):
        file = nights.put(f"2026-03-{day:02d}/tables/a.parquet")
        table = pq.read_table(file)
        images = file.parent.parent / "images"
        images.mkdir()
        for row in table.to_pylist():
            (images / f"{row['id']}.jpg").write_bytes(row["image"] or b"")
        column = table.schema.get_field_index("image")
        paths = pa.array([f"{images}/{row['id']}.jpg" for row in table.to_pylist()])
        pq.write_table(table.set_column(column, "image", paths), file)

    def killed(loop: Any) -> Any:
        raise RunFailed("killed", "")

    with monkeypatch.context() as patched:
        patched.setattr("jobs.run.loop.Loop.run", killed)
        nights.run(1, code=1)
    nights.run(2)
    nights.check_readers()
    assert set(done(str(nights.out)).table()["error_code"].to_pylist()) <= {None, "empty", "truncated"}


def test_a_model_that_lacks_rows_of_a_file_that_vanished_is_not_promoted(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.put("2026-03-01/a.parquet")
    file = nights.put("2026-03-01/b.parquet")
    nights.run(1)
    assert main(["promote", nights.spec, "--as-of", "2026-03-01"]) == 0
    nights.change_model()

    def vanished(loop: Any) -> Any:
        file.unlink()
        monkeypatch.undo()
        return loop.run()

    monkeypatch.setattr("jobs.run.loop.Loop.run", vanished)
    assert "gone: 40 rows" in nights.run(1)
    nights.capsys.readouterr()
    assert main(["promote", nights.spec, "--as-of", "2026-03-01"]) == 1
    assert f"has no predictions for 1 file that {nights.check_readers().root} has" in nights.capsys.readouterr().err


def test_a_second_model_leaves_readers_where_they_are_until_somebody_promotes_it(nights: Nights) -> None:
    nights.put("2026-03-01/a.parquet")
    nights.run(1)
    old = nights.check_readers().root
    nights.change_model()
    assert f"readers go on with {old}, until `stint promote` moves them" in nights.run(1)
    assert nights.check_readers().root == old
    assert "readers go on" not in nights.run(1)
    assert main(["promote", nights.spec, "--as-of", "2026-03-01"]) == 0
    assert nights.check_readers().root != old


def test_a_night_with_another_model_stops_and_asks_before_it_makes_or_claims_anything(nights: Nights) -> None:
    nights.put("2026-03-01/a.parquet")
    nights.put("2026-03-01/b.parquet")
    nights.run(1)
    old = nights.check_readers().root
    nights.put("2026-03-02/a.parquet")
    before = {file for file in nights.out.rglob("*") if "/_stint/runs/" not in f"{file}/"}
    nights.change_model(on_new_model="ask")
    asked = nights.run(2, code=2)
    assert re.search(rf"the model is another one than before: model=digits_cnn-\w+ in place of {old}\n", asked)
    assert "\nchanged: weights\n" in asked
    assert (
        "scored from the beginning: 3 files with 120 rows; the model before has scored 2 of the files\ntime: " in asked
    )
    assert "next: if that is meant, run it once with --set schedule.on_new_model=score, or put that" in asked
    assert f"then the nights go on with {old}" in asked
    assert {file for file in nights.out.rglob("*") if "/_stint/runs/" not in f"{file}/"} == before
    # The dry run tells the same.
    assert main(["plan", nights.spec, "--as-of", "2026-03-02"]) == 0
    assert "changed: weights\nscored from the beginning: 3 files with 120 rows" in nights.capsys.readouterr().out
    # Nobody is asked twice.
    said = nights.run(2, "--set=schedule.on_new_model=score")
    assert "changed: weights" in said
    assert "complete: 120 rows" in said
    nights.put("2026-03-03/a.parquet")
    assert "another one than before" not in nights.run(3)


def test_who_runs_it_by_hand_is_told_and_not_asked(nights: Nights) -> None:
    nights.raw["input"] = {**nights.raw["input"], "uri": str(nights.folder / "in"), "days": 1}
    nights.change_model(on_new_model="ask")
    nights.put("a.parquet")
    assert "another one than before" not in nights.run(1), "a first model takes nobody's place"
    other = nights.write_spec({**nights.raw, "name": "another-job", "output": {**nights.raw["output"], "topk": 1}})
    assert main(["run", other, "--pool=local", "--as-of", "2026-03-01"]) == 0, "nor does another job's"
    nights.raw["model"]["preprocess"]["resize"] = 40
    nights.spec = nights.write_spec(nights.raw)
    nights.capsys.readouterr()
    assert main(["run", nights.spec, "--pool=local"]) == 0
    assert "changed: preprocess\n" in nights.capsys.readouterr().err


def test_what_was_scored_is_verified_and_promoted_without_a_folder_of_today(nights: Nights) -> None:
    nights.put("2026-03-01/a.parquet")
    nights.run(1)
    nights.capsys.readouterr()
    assert main(["verify", nights.spec]) == 0
    shown = nights.capsys.readouterr().out
    assert "note: not there (yet): " in shown
    assert "verified: 40 rows claimed by 1 plan" in shown
    assert main(["promote", nights.spec]) == 0
    assert main(["plan", nights.spec]) == 2, "what a run of today would end with"


def test_a_root_is_promoted_by_its_plain_name(nights: Nights) -> None:
    """A shell completes names of folders with a slash."""
    nights.put("2026-03-01/a.parquet")
    nights.run(1)
    (root,) = (path.name for path in nights.out.glob("model=*"))
    assert main(["promote", nights.spec, "--to", f"{root}/"]) == 0
    assert nights.check_readers().root == root


def test_readers_of_files_without_rows_are_told_so(nights: Nights) -> None:
    file = nights.put("2026-03-01/a.parquet")
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    nights.run(1)
    nights.verify(1)
    with pytest.raises(SpecError, match="holds no rows: all files that were scored are empty"):
        done(str(nights.out))
    nights.expected.clear()
    nights.put("2026-03-01/b.parquet")
    nights.run(1)
    nights.check_readers()


def test_every_plan_over_the_budget_is_told_until_it_is_mended_or_accepted_and_all_pages_agree(nights: Nights) -> None:
    nights.raw["input"]["shard_rows"] = 100
    nights.raw["limits"]["bad_rows"] = 0.06  # two of the first forty are
    nights.spec = nights.write_spec(nights.raw)
    nights.put("2026-03-01/a.parquet")
    nights.run(1)
    check_figures(nights, 1)
    bad = [nights.put(f"2026-03-{day:02d}/bad.parquet") for day in (2, 3)]
    for file in bad:
        without_images(file)
    hidden = [nights.expected.pop(f"2026-03-{day:02d}/bad.parquet") for day in (2, 3)]
    bad[1].rename(nights.folder / "later")
    assert "plan 2 (2026-03-02): 40 of 40 rows are bad; limits.bad_rows allows 6.00%" in nights.run(2, code=3)
    report = check_figures(nights, 2, code=1)
    assert (report["rows_ok"], report["rows_bad"], report["data_set"]["bad"]) == (0, 40, 40)

    (nights.folder / "later").rename(bad[1])
    nights.put("2026-03-03/good.parquet")
    nights.raw["limits"]["bad_rows"] = {"share": 0.06, "at_least": 5}
    nights.spec = nights.write_spec(nights.raw)
    said = nights.run(3, code=3)
    allowed = "limits.bad_rows allows 6.00%, and up to 4 rows"
    assert f"plan 2 (2026-03-02): 40 of 40 rows are bad; {allowed}\n        40  " in said
    assert "stint accept SPEC --plan 2 or --plan 3 --why TEXT" in said
    report = check_figures(nights, 3, code=1)
    number = report["rows_bad"]
    assert (report["rows_ok"] + number, number >= 40) == (80, True)
    assert f"plan 3 (2026-03-03): {number} of 80 rows are bad; {allowed}\n        40  " in said
    del nights.expected["2026-03-03/good.parquet"]  # its plan is open
    nights.check_readers()

    # Of the second night the file is taken away: its plan closes. The third night's stays, until somebody says so.
    bad[0].unlink()
    said = nights.run(4, code=3)
    assert "plan 2 (2026-03-02): 40 rows = 0 ok + 40 bad; its bad rows are replaced or taken away: done" in said
    assert f"plan 3 (2026-03-03): {number} of 80 rows are bad" in said
    assert "2 plans" not in said
    check_figures(nights, 4, code=1)
    nights.expected["2026-03-02/bad.parquet"] = hidden[0]
    nights.check_readers()
    assert main(["status", nights.spec]) == 0
    assert f"too many bad rows: 80 rows = {80 - number} ok + {number} bad" in nights.capsys.readouterr().out

    def accept(number: int, why: str, code: int) -> str:
        assert main(["accept", nights.spec, "--plan", str(number), "--why", why]) == code
        shown = nights.capsys.readouterr()
        return shown.out + shown.err

    assert "--plan 9: there is no such plan" in accept(9, "known", 2)
    assert "--plan 1: it is done, there is nothing to accept\nnext: open plans: plan 3 (2026-03-03)" in accept(
        1, "known", 2
    )
    assert "--why: a reason is wanted" in accept(3, " ", 2)
    assert f"it is done: 80 rows = {80 - number} ok + {number} bad" in accept(3, "the shop says so", 0)
    nights.expected["2026-03-03/bad.parquet"] = hidden[1]
    nights.expected["2026-03-03/good.parquet"] = [
        row for row in done(str(nights.out)).table(["id"])["id"].to_pylist()
        if all(row not in rows for rows in nights.expected.values())
    ]  # fmt: skip
    assert len(nights.expected["2026-03-03/good.parquet"]) == ROWS
    nights.check_readers()
    nights.run(4)
    report = check_figures(nights, 4)
    assert report["accepted"] == {"plan 3 (2026-03-03)": "the shop says so"}
    assert "plan 3 was accepted with its bad rows, at 20" in nights.verify(4)
    assert main(["status", nights.spec]) == 0
    assert "; accepted: the shop says so" in nights.capsys.readouterr().out


def test_a_bad_file_that_is_replaced_is_scored_whatever_on_change_says_because_nobody_has_seen_its_rows(
    nights: Nights,
) -> None:
    nights.raw["input"]["on_change"] = "report"
    nights.spec = nights.write_spec(nights.raw)
    nights.put("2026-03-01/a.parquet")
    file = nights.put("2026-03-01/b.parquet")
    without_images(file)
    assert "40 of 80 rows are bad" in nights.run(1, code=3)
    nights.put("2026-03-01/b.parquet")
    assert "plan 1 (2026-03-01): 80 rows = 40 ok + 40 bad; its bad rows are replaced or taken away: done" in nights.run(
        2
    )
    nights.check_readers()
    check_figures(nights, 2)
    nights.run(2)


def test_a_plan_that_is_accepted_before_it_is_whole_is_scored_to_its_end(nights: Nights) -> None:
    nights.raw["input"]["shard_rows"] = 10
    nights.spec = nights.write_spec(nights.raw)
    without_images(nights.put("2026-03-01/a.parquet"))
    assert "plan 1 (2026-03-01): 10 of 40 rows are bad" in nights.run(1, code=3)  # which ends it early
    report = check_figures(nights, 1, code=1)
    assert report["rows_bad"] == report["data_set"]["bad"] < 40
    assert main(["accept", nights.spec, "--plan", "1", "--why", "known"]) == 0
    assert "the next run scores what is missing and closes it" in nights.capsys.readouterr().out
    assert "plan 1 (2026-03-01), done, accepted with its bad rows: known: 40 rows = 0 ok + 40 bad" in nights.run(1)
    nights.check_readers()
    check_figures(nights, 1)


def test_a_run_that_is_interrupted_and_the_one_that_goes_on_count_each_row_once(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    nights.raw["input"]["shard_rows"] = 10
    nights.spec = nights.write_spec(nights.raw)
    nights.put("2026-03-01/a.parquet")
    right = Loop._committed

    def interrupted(loop: Loop, result: Any) -> None:
        right(loop, result)
        if loop.tally.shards == 2:
            raise Interrupted("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_committed", interrupted)
        nights.run(1, code=5)
    first = check_figures(nights, 1, code=1)
    assert first["rows_ok"] + first["rows_bad"] == 20
    (left,) = first["of_plans"]
    assert (left["state"], left["rows"]["missing"]) == ("open", 20)
    nights.run(1)
    second = check_figures(nights, 1)
    assert 0 < second["rows_ok"] + second["rows_bad"] <= 20  # a worker may have ended what it had begun
    assert second["of_plans"][0]["rows"] == second["data_set"]
    assert second["data_set"]["ok"] + second["data_set"]["bad"] == 40


def test_a_plan_of_another_day_is_done_once_its_bad_files_are_replaced_where_they_lie_or_left_out(
    nights: Nights,
) -> None:
    nights.raw["input"] |= {"days": 1, "on_change": "report"}
    nights.spec = nights.write_spec(nights.raw)
    for day in (1, 2):
        nights.put(f"2026-03-{day:02d}/a.parquet")
        without_images(nights.put(f"2026-03-{day:02d}/b.parquet"))
        assert "40 of 80 rows are bad" in nights.run(day, code=3)
    nights.put("2026-03-03/a.parquet")
    nights.put("2026-03-01/b.parquet")
    said = nights.run(3, code=3)
    assert "plan 1 (2026-03-01): 80 rows = 40 ok + 40 bad; its bad rows are replaced or taken away: done" in said
    assert "plan 2 (2026-03-02): 40 of 80 rows are bad" in said
    folder = nights.folder / "in"
    nights.raw["input"]["uri"] = [f"{folder}/{{as_of}}", f"!{folder}/2026-03-02/b.parquet"]
    nights.spec = nights.write_spec(nights.raw)
    assert "plan 2 (2026-03-02): 80 rows = 40 ok + 40 bad; its bad rows are replaced or taken away: done" in nights.run(
        3
    )
    nights.check_readers()
