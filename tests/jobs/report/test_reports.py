"""Reports of real runs: what they say is what the predictions and the journal hold."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs.cli import main
from jobs.plan.job import Job
from jobs.report import journal
from jobs.report.bad_examples import with_pictures
from jobs.spec.load import load_spec
from tests.support.digits_job import DEAR, PYTHON, ROOT, Digits, predictions
from tests.support.ray_heads import await_true
from workers.storage.store import open_store

WriteSpec = Callable[[dict[str, Any]], str]


def report_of(out: Path) -> dict[str, Any]:
    """The newest one."""
    file = max(out.glob("_stint/runs/*/report.json"))
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def ok(table: pa.Table) -> pa.Table:
    return table.filter(pc.is_null(table["error_code"]))


@pytest.fixture(scope="module")
def first_night(quantized_digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The output of a run over all digits, and its spec."""
    folder = tmp_path_factory.mktemp("nights")
    (folder / "in").mkdir()
    for file in quantized_digits.images.glob("*.parquet"):
        (folder / "in" / file.name).write_bytes(file.read_bytes())
    spec = quantized_digits.spec(folder / "out", input__uri=str(folder / "in"), cost__per_cpu_hour=0.034)
    (folder / "job.yaml").write_text(json.dumps(spec))
    assert main(["run", str(folder / "job.yaml"), "--pool=local"]) == 0
    return folder, spec


def test_classes_and_scores_are_those_of_the_predictions(first_night: tuple[Path, dict[str, Any]]) -> None:
    out = first_night[0] / "out"
    report, rows = report_of(out), ok(predictions(out))
    counts = pc.value_counts(rows["label"].combine_chunks()).to_pylist()
    assert report["classes"] == {it["values"]: it["counts"] for it in counts}
    assert sum(report["scores"]) == report["distribution_rows"] == report["rows_ok"] == rows.num_rows
    sure = pc.sum(pc.greater_equal(rows["score"], 0.95).cast(pa.int64())).as_py()
    assert report["scores"][-1] == sure
    assert report["drift"] == {}  # there is no night before


def test_time_cost_and_workers_add_up(first_night: tuple[Path, dict[str, Any]]) -> None:
    report = report_of(first_night[0] / "out")
    (worker,) = report["workers"]
    total = report["rows_ok"] + report["rows_bad"]
    assert sum(report["throughput"]["rows"]) == worker["rows"] == total
    assert sum(report["shard_times"]["shards"]) == worker["shards"] == report["shards_scored_here"]
    cpus = worker["plan"]["threads_per_core"]
    assert report["cost"] == pytest.approx(report["core_hours"] * cpus * 0.034)
    assert report["cost_per_million"] == pytest.approx(report["cost"] / total * 1e6)
    assert 0 <= report["cost_idle"] <= report["cost"]
    assert report["idle_core_hours"] == pytest.approx((report["stage_s"]["idle"] + report["stage_s"]["wait"]) / 3600)


def test_a_few_bad_rows_of_each_reason_are_named_by_their_keys(first_night: tuple[Path, dict[str, Any]]) -> None:
    out = first_night[0] / "out"
    report, rows = report_of(out), predictions(out)
    assert {it["code"] for it in report["bad_examples"]} == set(report["bad_by_code"])
    why = dict(zip(rows["id"].to_pylist(), rows["error_code"].to_pylist(), strict=True))
    assert all(why[int(it["keys"]["id"])] == it["code"] for it in report["bad_examples"])
    (page,) = out.glob("_stint/runs/*/report.html")
    assert page.read_text().count("data:image/") >= 1  # of truncated photographs something is to be seen


def test_an_image_that_killed_a_worker_is_not_decoded_for_the_page(first_night: tuple[Path, dict[str, Any]]) -> None:
    folder = first_night[0]
    job = Job.open(load_spec(str(folder / "job.yaml"), []), writing=False)
    row = next(it for it in report_of(folder / "out")["bad_examples"] if it["code"] == "truncated")
    truncated, killer = with_pictures(job, [row, {**row, "code": "crashed_worker"}])
    assert truncated["picture"].startswith("data:image/")
    assert killer["picture"] == ""


def test_what_the_gate_confused_is_told_by_label(first_night: tuple[Path, dict[str, Any]]) -> None:
    report = report_of(first_night[0] / "out")
    confusion = {(true, said): rows for true, said, rows in report["confusion"]}
    assert sum(confusion.values()) == report["accuracy"]["labelled_rows"]
    right = sum(rows for (true, said), rows in confusion.items() if true == said)
    assert right / report["accuracy"]["labelled_rows"] == pytest.approx(report["accuracy"]["top1"])


def test_a_night_of_other_images_is_flagged_and_the_class_that_moved_is_named(
    first_night: tuple[Path, dict[str, Any]], digits: Digits, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = first_night[0]
    rows = pq.read_table(digits.images)
    pq.write_table(rows.filter(pc.equal(rows["digit"], 3)), folder / "in" / "z-threes.parquet")
    assert main(["run", str(folder / "job.yaml"), "--pool=local"]) == 0
    report = report_of(folder / "out")
    assert report["drift"]["flags"]
    assert report["drift"]["moved"][0]["label"] == "3"
    assert len(report["drift"]["against"]) == 1
    assert "DRIFT: predicted classes: PSI" in capsys.readouterr().out


def test_of_a_run_that_was_killed_the_journal_tells_and_the_next_one_finishes_it(
    quantized_digits: Digits, tmp_path: Path, write_spec: WriteSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    spec = write_spec(quantized_digits.spec(out, **DEAR))
    driver = subprocess.Popen([PYTHON, "-m", "jobs", "run", spec, "--pool=local"], cwd=ROOT, stderr=subprocess.DEVNULL)
    store = open_store(str(out))

    def noted_attempts(run_id: str) -> int:
        return journal.read_journal(store, run_id).attempts.num_rows

    try:
        await_true(lambda: any(map(noted_attempts, journal.run_ids(store))), "a first part", 60)
    finally:
        driver.kill()
        driver.wait()
    (run_id,) = journal.run_ids(store)
    noted = noted_attempts(run_id)
    assert main(["report", spec]) == 0
    shown = capsys.readouterr().out
    assert run_id in shown
    assert "unfinished" in shown
    assert main(["run", spec, "--pool=local"]) == 0
    reports = list(out.glob("_stint/runs/*/report.json"))
    assert len(reports) == 1
    finished = json.loads(reports[0].read_text())
    objects = len(list(out.glob("model=*/plan=*/*.parquet")))
    assert finished["shards_scored_here"] <= objects - noted
    assert finished["distribution_rows"] == finished["data_set"]["ok"]  # what the other run scored is counted, too
    assert main(["verify", spec]) == 0
