"""What a run publishes, as Prometheus gets it from a real Ray; and the logs of the same Ray's processes, as JSON."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray._common.formatters import JSONFormatter

from jobs.pool.local import LocalCluster
from jobs.pool.ray_cluster import RayMetrics
from jobs.progress.metrics import CODES, COUNTER, GAUGE, JOB, METRIC_STAGES, METRICS, OTHER, REASONS, Metric
from jobs.progress.snapshot import PHASES, WORKER_STATES, Snapshot
from tests.support.digits_job import PYTHON, ROOT, Digits
from tests.support.fakes import INFO
from tests.support.promql import OF_THE_SCRAPE, all_selectors
from tests.support.ray_heads import SECRET, Head, await_true
from workers import logs
from workers.outcomes import Failure, FailureCode, FailureKind

QUICK = {"RAY_metrics_report_interval_ms": "1000"}
"""For drivers: how often they tell the agent, in place of every 10 s."""

EARLY = Snapshot(
    run_id="1", job="products", root="model=m", at="2026-03-01T01:00:00", elapsed_s=60, rows_total=1000,
    rows_ok=300, rows_bad=7, rows_gone=2, rows_elsewhere=100, shards_total=10, shards_done=4,
    bad_by_code={"truncated": 4, "empty": 3},
    rate=5.5, eta_s=(100.0, 140.0), late_s=-30.0, deadline_in_s=150.0, workers_wanted=4,
    workers={"starting": 1, "scoring": 2, "idle": 1}, stage_s={"read": 1.0, "decode": 20.5, "predict": 40.0},
    core_hours=0.25, cost=0.5, failures_by_code={"crashed": 1, "infra": 1},
)  # fmt: skip
LATER = replace(
    EARLY, elapsed_s=200, rows_ok=880, rows_bad=18, rows_elsewhere=100, shards_done=10, rate=4.25, eta_s=(0.0, 0.0),
    bad_by_code={"truncated": 9, "empty": 3, "crashed_worker": 5, "of_a_later_version": 1}, late_s=12.0,
    stage_s={"read": 3.0, "decode": 60.5, "predict": 120.25, "write": 0.5, "wait": 7.0, "throttled": 0.0, "idle": 9.0},
    workers={"scoring": 3}, core_hours=0.75, cost=1.5, failures_by_code={"crashed": 2, "infra": 1, "odd": 1},
)  # fmt: skip
OTHER_JOB = replace(EARLY, run_id="2", job="thumbnails", eta_s=None, late_s=None, deadline_in_s=None, cost=None)


def exported_name(metric: Metric) -> str:
    """As Prometheus has it: Ray puts its name in front, OpenTelemetry marks counters."""
    return f"ray_{metric.name}" + ("_total" if metric.kind == COUNTER else "")


# ----------------------------------------------------------------------------------------- definitions


def by_name(name: str) -> Metric:
    return next(metric for metric in METRICS if metric.name == name)


def test_labels_have_values_from_closed_lists_whatever_a_snapshot_says() -> None:
    closed = {
        "stint_rows": {"ok", "bad", "gone", "elsewhere"},
        "stint_bad_rows": {*REASONS, OTHER},
        "stint_stage_seconds": {*METRIC_STAGES, OTHER},
        "stint_failed_attempts": {*CODES, OTHER},
        "stint_workers": set(WORKER_STATES),
        "stint_eta_seconds": {"best", "worst"},
        "stint_phase": set(PHASES),
    }
    strange = {"anything": 1, "at all": 2}
    odd = replace(EARLY, bad_by_code=strange, stage_s=strange, failures_by_code=strange, workers=strange)
    assert {metric.name for metric in METRICS if metric.label} == set(closed)
    for name, values in closed.items():
        assert set(by_name(name).values(odd)) == values
    for name in ("stint_bad_rows", "stint_stage_seconds", "stint_failed_attempts"):
        assert by_name(name).values(odd)[OTHER] == 3


def test_what_is_not_known_is_left_out() -> None:
    absent = {"stint_eta_seconds", "stint_late_seconds", "stint_deadline_seconds", "stint_cost"}
    assert {metric.name for metric in METRICS if not metric.values(OTHER_JOB)} == absent


def test_a_local_pool_publishes_nothing_and_no_snapshot_raises(caplog: pytest.LogCaptureFixture) -> None:
    LocalCluster().show(EARLY)
    RayMetrics().publish(replace(EARLY, job=5))  # type: ignore[arg-type]
    assert "metrics could not be published" in caplog.text


def test_the_document_has_every_metric_and_no_other() -> None:
    rows = {
        tuple(cell.strip(" `") for cell in line.split("|")[1:4])
        for line in (ROOT / "docs/MONITORING.md").read_text().splitlines()
        if line.startswith("| `ray_stint_")
    }
    assert rows == {(exported_name(metric), metric.label, metric.meaning) for metric in METRICS}


# --------------------------------------------------------------------------------------------- scraped

PUBLISH = """
import sys
import ray
from jobs.pool.ray_cluster import RayCluster
from jobs.progress.snapshot import Snapshot

cluster = RayCluster(sys.argv[1] or None)
print(ray.nodes()[0]["MetricsExportPort"], flush=True)
for line in sys.stdin:
    cluster.show(Snapshot.from_json(line))
    print("published", flush=True)
cluster.close()
"""


@dataclass(frozen=True)
class Sample:
    name: str
    labels: Mapping[str, str]
    value: float


def scraped(port: int) -> list[Sample]:
    """Empty while the agent does not listen yet."""
    try:
        text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    except requests.ConnectionError:
        return []
    return [
        Sample(s.name, s.labels, s.value) for family in text_string_to_metric_families(text) for s in family.samples
    ]


def values(samples: Sequence[Sample], job: str, metric: Metric) -> dict[str, float]:
    """By the metric's label, summed over drivers: what `sum by (stint_job, …)` gives."""
    found: dict[str, float] = {}
    for sample in samples:
        if sample.name == exported_name(metric) and sample.labels[JOB] == job:
            value = sample.labels.get(metric.label, "")
            found[value] = found.get(value, 0.0) + sample.value
    return found


@contextmanager
def publishing(address: str, **env: str) -> Iterator[tuple[int, Callable[[Snapshot], None]]]:
    """A driver in a process of its own: the port of its node's metrics, and a way to have it publish. Left, it ends."""
    process = subprocess.Popen(
        [PYTHON, "-c", PUBLISH, address],
        cwd=ROOT, env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin
    assert process.stdout

    def publish(snapshot: Snapshot) -> None:
        print(snapshot.to_json(), file=process.stdin, flush=True)
        assert process.stdout
        assert process.stdout.readline() == "published\n"

    try:
        yield int(process.stdout.readline()), publish
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


@pytest.fixture(scope="module")
def export(ray_head: Head) -> list[Sample]:
    """What the agent exports just after two drivers of a job have ended, one of which had another job, too."""
    with publishing(ray_head.address) as (port, publish), publishing(ray_head.address) as (_, publish_beside):
        for snapshot in (EARLY, LATER, replace(LATER, ended=True)):
            publish(snapshot)
        publish(OTHER_JOB)
        publish_beside(replace(EARLY, run_id="3"))
    active = by_name("stint_run_active")

    def complete() -> list[Sample]:
        samples = scraped(port)
        done = values(samples, "products", active) == {"": 1.0}
        return samples if done and any(s.name == "ray_node_cpu_utilization" for s in samples) else []

    return list(await_true(complete, "everything to be exported", 30))


@pytest.mark.ray
def test_exactly_what_is_defined_is_exported_with_these_labels_and_types(export: list[Sample]) -> None:
    exported = {sample.name for sample in export if sample.name.startswith("ray_stint_")}
    assert exported == {exported_name(metric) for metric in METRICS}
    for metric in METRICS:
        for sample in export:
            if sample.name == exported_name(metric):
                assert set(metric.labels) <= sample.labels.keys()
                assert not {"job", "instance"} & sample.labels.keys()  # which Prometheus would rename


@pytest.mark.ray
def test_counters_are_what_all_drivers_have_added(export: list[Sample]) -> None:
    for metric in METRICS:
        if metric.kind == COUNTER:
            first, second = metric.values(LATER), metric.values(EARLY)
            expected = {value: number + second[value] for value, number in first.items()}
            assert values(export, "products", metric) == pytest.approx(expected), metric.name
            assert values(export, "thumbnails", metric) == pytest.approx(dict(metric.values(OTHER_JOB))), metric.name


@pytest.mark.ray
def test_gauges_are_what_each_driver_said_last(export: list[Sample]) -> None:
    for metric in METRICS:
        if metric.kind == GAUGE:
            assert values(export, "thumbnails", metric) == pytest.approx(dict(metric.values(OTHER_JOB))), metric.name
            said = (replace(LATER, ended=True), EARLY)
            expected = {value: sum(metric.values(at)[value] for at in said) for value in metric.values(EARLY)}
            assert values(export, "products", metric) == pytest.approx(expected), metric.name


@pytest.mark.ray
def test_a_reason_that_has_not_come_up_is_zero_so_that_its_first_row_is_an_increase(export: list[Sample]) -> None:
    assert values(export, "thumbnails", by_name("stint_bad_rows"))["corrupt"] == 0.0


@pytest.mark.ray
def test_dashboard_and_alerts_ask_for_series_that_are_exported(export: list[Sample]) -> None:
    """For names, for labels that they group and join by, and for values of labels."""
    asked = [selector for selector in all_selectors() if selector.name.startswith("ray_")]
    assert {selector.name.split("_")[1] for selector in asked} == {"stint", "node"}
    for it in asked:
        series = [sample for sample in export if sample.name == it.name]
        assert series, f"{it.where}: no {it.name}"
        assert it.grouped - OF_THE_SCRAPE <= series[0].labels.keys(), f"{it.where}: {it.name} by {it.grouped}"
        assert any(it.takes(sample.labels) for sample in series), f"{it.where}: no {it.name} with {it.matchers}"


@pytest.mark.ray
def test_a_ray_that_a_run_starts_for_itself_exports_too() -> None:
    """It has no API server, and an agent all the same."""
    with publishing("", **QUICK) as (port, publish):
        publish(EARLY)
        await_true(lambda: values(scraped(port), "products", by_name("stint_rows")).get("ok") == EARLY.rows_ok, "rows")


# ------------------------------------------------------------------------------------ a run, end to end


@dataclass(frozen=True)
class Ended:
    """A run that is over: what was exported while it went on and after it, and what it left."""

    during: list[Sample]
    after: list[Sample]
    report: dict[str, Any]
    stderr: str
    logs: dict[str, str]
    """Of Ray's processes, by file name."""


@pytest.fixture(scope="module")
def ended(ray_head: Head, digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """A real run with logs as JSON, scraped from its beginning to after its end."""
    folder = tmp_path_factory.mktemp("run")
    spec = folder / "job.yaml"
    spec.write_text(yaml.safe_dump(digits.spec(folder / "out", name="ended", cost={"per_cpu_hour": 3600})))
    port = next(
        int(str(word).partition("=")[2]) for word in ray_head.process.args if "metrics-export-port" in str(word)
    )
    env = {**os.environ, **QUICK, "RAY_LOGGING_CONFIG_ENCODING": "JSON", "AWS_SECRET_ACCESS_KEY": SECRET}
    command = [PYTHON, "-m", "jobs", "run", str(spec), "--address", ray_head.address]
    with (folder / "stderr").open("w") as stderr:
        driver = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=stderr)

    def active() -> list[Sample]:
        assert driver.poll() is None, (folder / "stderr").read_text()
        samples = scraped(port)
        wanted = values(samples, "ended", by_name("stint_workers_wanted"))
        return samples if wanted.get("") else []

    try:
        during = await_true(active, "the run to be seen at work", 60)
        assert driver.wait(100) == 0, (folder / "stderr").read_text()
    finally:
        driver.kill()
        driver.wait()
    report = json.loads(next((folder / "out").glob("_stint/runs/*/report.json")).read_text())
    written = {file.name: file.read_text() for file in ray_head.folder.glob("session_2*/logs/*") if file.is_file()}
    return Ended(during, scraped(port), report, (folder / "stderr").read_text(), written)


@pytest.mark.ray
def test_a_run_is_seen_at_work_and_its_counters_end_as_its_report(ended: Ended) -> None:
    assert values(ended.during, "ended", by_name("stint_plan_rows")) == {"": ended.report["rows_ok"] + 9}
    assert values(ended.during, "ended", by_name("stint_workers_wanted"))[""] > 0
    rows = values(ended.after, "ended", by_name("stint_rows"))
    assert rows == {"ok": ended.report["rows_ok"], "bad": ended.report["rows_bad"], "gone": 0, "elsewhere": 0}
    bad = values(ended.after, "ended", by_name("stint_bad_rows"))
    assert {reason: number for reason, number in bad.items() if number} == ended.report["bad_by_code"]
    stages = values(ended.after, "ended", by_name("stint_stage_seconds"))
    for stage, seconds in ended.report["stage_s"].items():
        assert stages[stage] == pytest.approx(seconds, abs=0.1), stage
    assert values(ended.after, "ended", by_name("stint_core_hours"))[""] > 0
    assert values(ended.after, "ended", by_name("stint_cost"))[""] > 0
    assert values(ended.after, "ended", by_name("stint_run_active")) in ({"": 0.0}, {})  # gone after a while


# ------------------------------------------------------------------------------------------------ logs


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@pytest.mark.ray
def test_workers_log_json_lines_that_name_node_and_actor(ended: Ended) -> None:
    ready = [
        line
        for name, text in ended.logs.items()
        if name.startswith("worker-") and name.endswith(".err")
        for line in lines(text)
        if line["message"].startswith("ready: ")
    ]
    workers = {w["pid"]: w for w in ended.report["workers"]}
    assert sorted(line["process"] for line in ready) == sorted(workers)
    for line in ready:
        assert (line["levelname"], line["batch"]) == ("INFO", workers[line["process"]]["batch"])
        assert line["engine"] == workers[line["process"]]["engine"]
        assert line["task_name"] == "Worker.start"
        assert all(line[key] for key in ("asctime", "job_id", "worker_id", "node_id", "actor_id"))
    assert len({line["actor_id"] for line in ready}) == len(ready)
    assert len({line["node_id"] for line in ready}) == 1


@pytest.mark.ray
def test_the_driver_logs_json_lines_and_repeats_none_of_its_workers(ended: Ended) -> None:
    said = lines(ended.stderr)
    assert any("Ray cluster" in line["message"] for line in said)
    assert not any("actor_id" in line or line["message"].startswith("ready: ") for line in said)


@pytest.mark.ray
def test_no_credential_is_in_what_such_a_run_says_and_what_ray_leaves(ended: Ended) -> None:
    assert any(name.startswith("python-core-driver") for name in ended.logs)  # those of the driver are among them
    assert SECRET not in ended.stderr
    assert [name for name, text in ended.logs.items() if SECRET in text] == []


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What this process logs as Ray's JSON lines, with the filter of workers over it."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [handler])
    level = root.level
    root.setLevel(logging.INFO)  # loggers remember what they were asked, until a level is set
    logs.keep_clean()
    logs.keep_clean()  # a process that is asked twice
    assert len(handler.filters) == 1
    yield lambda: lines(stream.getvalue())
    root.setLevel(level)


def test_a_failure_is_logged_with_its_code_and_without_credentials(written: Callable[[], list[dict[str, Any]]]) -> None:
    gone = Failure(kind=FailureKind.INFRA, code=FailureCode.PREEMPTED, message="has to go")
    logs.failed("00000001/00000002", Failure(kind=FailureKind.TASK, message=f"GET s3://u:p@host/a?sig=1 with {SECRET}"))
    logs.failed("start", gone)
    failed, preempted = written()
    assert failed["message"] == "00000001/00000002: GET s3://…@host/a?… with …"
    assert (failed["levelname"], failed["doing"], failed["kind"]) == ("WARNING", "00000001/00000002", "task")
    assert (preempted["levelname"], preempted["code"]) == ("INFO", "preempted")


def test_what_libraries_log_is_redacted_and_their_chatter_dropped(written: Callable[[], list[dict[str, Any]]]) -> None:
    library = logging.getLogger("botocore.auth")
    library.info("signing with %s", SECRET)
    try:
        raise ConnectionError(f"https://host/a?X-Amz-Signature={SECRET}")
    except ConnectionError:
        library.warning("again: %s", SECRET, exc_info=True)
    logging.getLogger("jobs.pool.nodes").info("Connected")
    warned, connected = written()
    assert (warned["message"], connected["message"]) == ("again: …", "Connected")
    assert "ConnectionError: https://host/a?…" in warned["exc_text"]
    assert SECRET not in json.dumps(warned)


def test_a_worker_says_that_it_is_ready_and_that_it_has_to_go(written: Callable[[], list[dict[str, Any]]]) -> None:
    logs.ready(INFO)
    logs.leaving(12.0)
    logs.leaving(float("inf"))
    ready, soon, some_time = written()
    assert (ready["engine"], ready["batch"], ready["threads"]) == (INFO.engine, INFO.batch, 1)
    assert [soon["message"], some_time["message"]] == ["has to go within 12 s", "has to go"]
