"""k8s/components/monitoring: a dashboard that Grafana takes, and alerts that fire when they are to, and not else."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from jobs.progress.metrics import METRICS
from tests.jobs.progress.test_metrics import exported_name
from tests.k8s.k8s_rendering import compose, the
from tests.support.promql import GRAFANA, dashboard, expressions, named, rule_groups, selectors

COLUMNS = 24


# ------------------------------------------------------------------------------------------- dashboard


def lost(given: Any, kept: Any, where: str = "") -> Iterator[str]:
    """What of `given` is not in `kept`, or is another value there."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from lost(value, kept[key], f"{where}/{key}") if key in kept else [f"{where}/{key}"]
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{where}/{number}")
    elif given != kept:
        yield where


def unknown_to_grafana(made: dict[str, Any]) -> list[str]:
    """Fields that are lost on a way through the types that Grafana publishes of its dashboards, panels and queries."""
    plugins.register_default_plugins()
    return list(lost(made, json.loads(JSONEncoder().encode(Dashboard.from_json(copy.deepcopy(made))))))


def test_grafanas_own_types_know_every_field_of_the_dashboard() -> None:
    assert unknown_to_grafana(dashboard()) == []


@pytest.mark.parametrize(
    "path", [("title",), ("gridPos", "x"), ("fieldConfig", "defaults", "unit"), ("targets", 0, "expr")]
)
def test_a_misspelt_field_of_the_dashboard_is_found(path: tuple[str | int, ...]) -> None:
    made = dashboard()
    holder: Any = made["panels"][0]
    for key in path[:-1]:
        holder = holder[key]
    holder[f"{path[-1]}s"] = holder.pop(path[-1])
    assert len(unknown_to_grafana(made)) == 1


def test_panels_do_not_overlap_and_lie_on_the_grid() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= COLUMNS, panel["title"]
        for cell in itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])):
            assert taken.setdefault(cell, panel["title"]) == panel["title"]


def test_every_panel_has_a_title_a_description_and_the_datasource_that_is_chosen_above() -> None:
    made = dashboard()
    assert [variable["name"] for variable in made["templating"]["list"]] == ["datasource", "stint_job"]
    numbers = [panel["id"] for panel in made["panels"]]
    assert len(set(numbers)) == len(numbers)
    for panel in made["panels"]:
        assert panel["title"]
        assert panel["description"]
        assert [target["refId"] for target in panel["targets"]] == list("ABCD"[: len(panel["targets"])])
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, panel["title"]


def test_every_expression_is_promql_and_knows_the_dashboards_variables() -> None:
    for where, expression in expressions():
        assert "$" not in expression, f"{where}: a variable beside {', '.join(GRAFANA)}"
        assert selectors(where, expression), where


def test_every_metric_of_a_run_is_on_the_dashboard_and_none_is_asked_for_that_is_not_published() -> None:
    published = {exported_name(metric) for metric in METRICS}
    on_the_dashboard = {
        selector.name
        for where, expression in expressions()
        if where.startswith("panel ")
        for selector in selectors(where, expression)
        if selector.name.startswith("ray_stint_")
    }
    assert on_the_dashboard == published
    assert named(["ray_stint_"]) == published


def test_grafanas_sidecar_finds_the_dashboard_and_logs_are_json() -> None:
    objects = compose(["base"], ["components/monitoring"])
    config = the(objects, "ConfigMap", "stint-grafana")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["stint.json"]) == dashboard()
    environment = [o for o in objects if o["kind"] == "ConfigMap" and o["metadata"]["name"].startswith("stint-ray-env")]
    assert [o["data"]["RAY_LOGGING_CONFIG_ENCODING"] for o in environment] == ["JSON"]
    assert environment[0]["data"].keys() > {"RAY_AUTH_MODE"}  # merged, not replaced


# ---------------------------------------------------------------------------------------------- alerts


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Prometheus' own tool. Without it tests skip, under CI they fail."""
    if shutil.which("promtool") is None:
        missing = "promtool is not on PATH (Debian: the package prometheus): alerts cannot be tried"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def rules_file(folder: Path) -> Path:
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": rule_groups()}))
    return file


def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    checked = promtool("check", "rules", "--lint=all", "--lint-fatal", rules_file(tmp_path))
    assert checked.returncode == 0, checked.stdout + checked.stderr


RUN = '{namespace="stint", stint_job="products"%s}'
HEALTHY = {
    "ray_stint_run_active" + RUN % "": "1x90",
    "ray_stint_late_seconds" + RUN % "": "-600x90",
    "ray_stint_rows_total" + RUN % ', outcome="ok"': "0+3000x90",
    "ray_stint_rows_total" + RUN % ', outcome="bad"': "0+30x90",
    "ray_stint_workers_wanted" + RUN % "": "4x90",
    "ray_stint_workers" + RUN % ', state="starting"': "2x90",
    "ray_stint_workers" + RUN % ', state="scoring"': "2x90",
    "ray_stint_workers" + RUN % ', state="idle"': "0x90",
    "ray_stint_stage_seconds_total" + RUN % ', stage="decode"': "0+40x90",
    "ray_stint_stage_seconds_total" + RUN % ', stage="predict"': "0+60x90",
    "ray_stint_stage_seconds_total" + RUN % ', stage="wait"': "0+10x90",
    "ray_stint_stage_seconds_total" + RUN % ', stage="read"': "0+100x90",
    "ray_stint_stage_seconds_total" + RUN % ', stage="idle"': "0+10x90",
    'kube_job_failed{condition="true", job_name="stint-nightly-1", namespace="stint"}': "0x90",
    'kube_job_status_start_time{job_name="stint-nightly-1", namespace="stint"}': "600x90",
    # A night that succeeded five minutes before the series begin, as promtool's clock has it.
    'kube_cronjob_status_last_successful_time{cronjob="stint-nightly", namespace="stint"}': "0x2000",
}
"""A sample a minute: rows are done at 50 a second, one of a hundred is bad, and nobody is late."""
NIGHT = 'kube_cronjob_status_last_successful_time{cronjob="stint-nightly", namespace="stint"}'
CASES: dict[str, tuple[dict[str, str], str, str]] = {
    # What is other than healthy, when the alert is not there yet, and when it is.
    "StintRunLate": ({"ray_stint_late_seconds" + RUN % "": "-600x30 600x60"}, "34m", "37m"),
    "StintManyBadRows": ({"ray_stint_rows_total" + RUN % ', outcome="bad"': "0+30x30 900+300x60"}, "30m", "50m"),
    "StintNoProgress": (
        {
            "ray_stint_rows_total" + RUN % ', outcome="ok"': "0+3000x30 90000x60",
            "ray_stint_rows_total" + RUN % ', outcome="bad"': "0+30x30 900x60",
        },
        "43m",
        "47m",
    ),
    "StintNoWorkers": (
        {
            "ray_stint_workers" + RUN % ', state="scoring"': "0x90",
            "ray_stint_rows_total" + RUN % ', outcome="ok"': "0x90",
            "ray_stint_rows_total" + RUN % ', outcome="bad"': "0x90",
            "ray_stint_stage_seconds_total" + RUN % ', stage="idle"': "0x90",
        },
        "14m",
        "16m",
    ),
    "StintWorkersIdle": (
        {"ray_stint_stage_seconds_total" + RUN % ', stage="idle"': "0+10x30 300+240x60"},
        "40m",
        "70m",
    ),
    "StintNightFailed": (
        {'kube_job_failed{condition="true", job_name="stint-nightly-1", namespace="stint"}': "0x30 1x60"},
        "29m",
        "32m",
    ),
    "StintNightMissing": ({}, "1565m", "1575m"),
}


def alerts() -> list[str]:
    return [rule["alert"] for group in rule_groups() for rule in group["rules"]]


def test_every_alert_is_tried() -> None:
    assert sorted(CASES) == sorted(alerts())


def tried(folder: Path, series: Mapping[str, str], **checks: Any) -> None:
    """promtool's unit test of the rules: `checks` as it has them, over these series with a sample a minute."""
    values = [{"series": name, "values": values} for name, values in series.items()]
    test = {
        "rule_files": [str(rules_file(folder))],
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": values, **checks}],
    }
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump(test))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def firing(folder: Path, series: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """At each time only this alert fires; none where it is empty."""
    checks = [
        {
            "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
            "eval_time": at,
            "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1}] if alert else [],
        }
        for at, alert in expected.items()
    ]
    tried(folder, series, promql_expr_test=checks)


def test_no_alert_fires_of_a_healthy_run(tmp_path: Path) -> None:
    firing(tmp_path, HEALTHY, {"1m": "", "20m": "", "60m": "", "89m": ""})


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_in_its_case_when_that_has_lasted_and_alone(alert: str, tmp_path: Path) -> None:
    other, before, after = CASES[alert]
    firing(tmp_path, {**HEALTHY, **other}, {before: "", after: alert})


def test_no_alert_fires_of_a_run_that_has_ended(tmp_path: Path) -> None:
    """Gauges are gone with the driver, counters stay as they were."""
    nights = {name: values for name, values in HEALTHY.items() if name.startswith("kube_")}
    firing(tmp_path, nights | {name: "90000x90" for name in HEALTHY if "_total" in name}, {"20m": "", "60m": ""})


def test_a_night_that_failed_is_told_until_one_succeeds(tmp_path: Path) -> None:
    """Also one of a Job by another name: for kube-state-metrics the time is the CronJob's."""
    failed = {**HEALTHY, **CASES["StintNightFailed"][0], NIGHT: "0x44 2700x2000"}
    firing(tmp_path, failed, {"29m": "", "32m": "StintNightFailed", "44m": "StintNightFailed", "46m": "", "80m": ""})
    never = {name: values for name, values in failed.items() if name != NIGHT}
    firing(tmp_path, never, {"80m": "StintNightFailed"})


def test_a_driver_that_is_started_again_sets_off_nothing(tmp_path: Path) -> None:
    """Its series begin at zero, beside those of the one before, whose gauges are gone."""
    again = dict(HEALTHY)
    for name, values in HEALTHY.items():
        if name.startswith("ray_"):
            again[name] = values.replace("x90", "x30") + (" _x60" if "_total" not in name else "")
            again[name.replace("}", ', WorkerId="02"}')] = "_x31 " + values.replace("x90", "x59")
    firing(tmp_path, again, {"25m": "", "35m": "", "60m": "", "85m": ""})


def test_an_alert_says_which_job_and_how_much(tmp_path: Path) -> None:
    late = next(rule for group in rule_groups() for rule in group["rules"] if rule["alert"] == "StintRunLate")
    alert = {
        "exp_labels": {**late["labels"], "namespace": "stint", "stint_job": "products"},
        "exp_annotations": {**late["annotations"], "summary": "The run of products will be 10m 0s late."},
    }
    check = {"eval_time": "40m", "alertname": "StintRunLate", "exp_alerts": [alert]}
    tried(tmp_path, {**HEALTHY, **CASES["StintRunLate"][0]}, alert_rule_test=[check])
