"""`jobs nightly` against a double of the API server and of Ray's head, through the real Kubernetes client."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

from jobs.errors import Interrupted, RunFailed, SpecError
from jobs.launch.kubernetes_api import SCHEDULED_AT, KubeApi, KubeRefused
from jobs.launch.nightly import MAX_TEMPLATE_CHARS, QUEUE_LABEL, NightlyRun, attempt_name, night_of, pause
from tests.k8s.kube_double import GONE, LOST, NAMESPACE, RAYJOBS, RESET, KubeDouble

ROOT = Path(__file__).parents[3]
TEMPLATE = "stint-nightly"
NIGHT = date(2026, 3, 1)
NAME = "stint-nightly-20260301"
CLOSED = "127.0.0.1:1"
"""Where no dashboard listens."""
TOKEN = "0123456789abcdef" * 2


@dataclass
class Creator:
    """A creator's pod: what it said, and its SIGTERM."""

    api: KubeApi
    stop: threading.Event = field(default_factory=threading.Event)
    said: list[str] = field(default_factory=list)

    def night(self) -> NightlyRun:
        until_stopped = partial(pause, interrupted=self.stop.is_set, check_s=0.005)
        api = replace(self.api, pause=until_stopped, say=self.said.append)
        return NightlyRun(api=api, template=TEMPLATE, as_of=NIGHT, poll_s=0.01, driver_patience_s=0.05)

    def complete(self) -> int:
        return self.night().complete()

    def log(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def server() -> Iterator[KubeDouble]:
    with KubeDouble() as double:
        double.rayjobs[TEMPLATE] = template()
        yield double


@pytest.fixture
def creator(server: KubeDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Creator]:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # JobServer sets it; restored after the test

    def make() -> Creator:
        api = connect()
        return Creator(api=replace(api, first_pause_s=0.001, patience_s=0.5))

    return make


def connect(namespace: str | None = None) -> KubeApi:
    return KubeApi.connect(namespace, pause=lambda _: None, say=lambda _: None)


def template(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": TEMPLATE,
            "namespace": NAMESPACE,
            "uid": "the-template",
            "resourceVersion": "77",
            "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "kubectl"}],
            "finalizers": ["ray.io/rayjob-finalizer"],
            "labels": {"app.kubernetes.io/instance": "tracked-by-a-deployment-tool"},
            "annotations": {"ray.io/ft-enabled": "false", "argocd.argoproj.io/tracking-id": "x"},
        },
        "spec": {
            "suspend": True,
            "entrypoint": "python -m jobs run /etc/stint/job.yaml",
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 300,
            "rayClusterSpec": {"rayVersion": "2.60.0"},
            **spec,
        },
        "status": {"jobDeploymentStatus": "Suspended"},
    }


def night_job(name: str, of: str = TEMPLATE, as_of: str = "2026-03-01", **status: str) -> dict[str, Any]:
    labels = {"stint.dev/template": of, "stint.dev/as-of": as_of}
    return {"metadata": {"name": name, "namespace": NAMESPACE, "labels": labels}, "spec": {}, "status": status}


def status(server: KubeDouble, deployment: str, job: str = "", **more: str) -> dict[str, str]:
    head = {"jobId": "night-x", "dashboardURL": server.address}
    return head | {"jobDeploymentStatus": deployment, "jobStatus": job} | more


def course(server: KubeDouble, *end: dict[str, str] | str) -> list[dict[str, str] | str]:
    return [{}, status(server, "Initializing"), status(server, "Running", "RUNNING"), *end]


def failed(server: KubeDouble, **more: str) -> dict[str, str]:
    return status(server, "Failed", "FAILED", reason="AppFailed", **more)


# ------------------------------------------------------------------------------------ making it, following it


def test_the_night_is_copied_from_the_template_and_followed_to_its_end(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    server.courses["*"] = course(server, status(server, "Complete", "SUCCEEDED"))
    one = creator()
    assert one.complete() == 0
    copied = server.rayjobs[NAME]
    assert server.created == [NAME]
    assert copied["metadata"] == {
        "name": NAME,
        "namespace": NAMESPACE,
        "labels": {"stint.dev/template": TEMPLATE, "stint.dev/as-of": "2026-03-01"},
        "annotations": {"ray.io/ft-enabled": "false"},
        "uid": "uid-0",
        "resourceVersion": "1",
    }
    assert copied["spec"] == template()["spec"] | {
        "suspend": False,
        "entrypoint": "python -m jobs run /etc/stint/job.yaml --as-of 2026-03-01",
    }
    states = [line for line in one.said if line.startswith(f"RayJob {NAME}: ")]
    assert states == [
        f"RayJob {NAME}: new",
        f"RayJob {NAME}: Initializing",
        f"RayJob {NAME}: Running driver RUNNING",
        f"RayJob {NAME}: Complete driver SUCCEEDED",
    ]


@pytest.mark.parametrize(("driver_code", "exit_code"), [(c, c) for c in range(1, 6)] + [(137, 1), (-9, 1), (127, 1)])
def test_the_drivers_exit_code_becomes_the_nights(
    server: KubeDouble, creator: Callable[[], Creator], driver_code: int, exit_code: int
) -> None:
    server.courses["*"] = course(server, failed(server, message="one\nstint: more bad rows than the budget"))
    server.drivers["night-x"] = {"status": "FAILED", "driver_exit_code": driver_code}
    one = creator()
    assert one.complete() == exit_code
    assert "stint: more bad rows than the budget" in one.log()
    assert f"driver's exit code {driver_code}; exit code {exit_code}" in one.log()


@pytest.mark.parametrize(
    ("end", "exit_code"),
    [
        ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, 5),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed"}, 1),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "RUNNING", "reason": "DeadlineExceeded"}, 1),
        ({"jobDeploymentStatus": "Failed", "jobStatus": "", "reason": "SubmissionFailed"}, 1),
        ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed"}, 2),
    ],
    ids=["succeeded", "stopped", "failed", "deadline", "not-submitted", "refused-by-kuberay"],
)
def test_without_the_head_the_rayjobs_state_decides(
    server: KubeDouble, creator: Callable[[], Creator], end: dict[str, str], exit_code: int
) -> None:
    server.courses["*"] = course(server, {"jobId": "night-x", "dashboardURL": CLOSED} | end)
    assert creator().complete() == exit_code


def test_a_driver_that_ended_well_goes_before_a_state_that_the_operator_could_not_see(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    server.courses["*"] = course(server, status(server, "Failed", "RUNNING", reason="DeadlineExceeded"))
    server.drivers["night-x"] = {"status": "SUCCEEDED", "driver_exit_code": 0}
    assert creator().complete() == 0


def test_the_exit_code_is_asked_for_before_the_cluster_is_gone(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    gone = failed(server) | {"dashboardURL": CLOSED}
    server.courses["*"] = course(server, status(server, "Running", "FAILED"), gone)
    server.drivers["night-x"] = {"status": "FAILED", "driver_exit_code": 4}
    assert creator().complete() == 4


@pytest.fixture
def guarded(server: KubeDouble, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeDouble]:
    """A head with RAY_AUTH_MODE=token, and a night whose result only it can give."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    server.courses["*"] = course(server, failed(server))
    server.drivers["night-x"] = {"status": "FAILED", "driver_exit_code": 3}
    server.token = TOKEN
    yield server
    monkeypatch.undo()
    reset_auth_token_state()


@pytest.mark.parametrize("given", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_head_with_token_authentication_is_asked_with_the_token_where_ray_looks_for_it(
    guarded: KubeDouble, creator: Callable[[], Creator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv(given, str(tmp_path / "token") if given.endswith("PATH") else TOKEN)
    reset_auth_token_state()
    one = creator()
    assert one.complete() == 3
    assert TOKEN not in one.log()


@pytest.mark.parametrize(
    ("mode", "given", "value"),
    [
        ("token", "RAY_AUTH_TOKEN", "w" * 32),
        ("token", "RAY_AUTH_TOKEN_PATH", "/none"),
        ("disabled", "RAY_AUTH_TOKEN", TOKEN),
    ],
    ids=["wrong", "none", "not in use"],
)
def test_without_the_right_token_it_says_so_and_goes_by_the_state(
    guarded: KubeDouble,
    creator: Callable[[], Creator],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    given: str,
    value: str,
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv(given, value)
    reset_auth_token_state()
    one = creator()
    assert one.complete() == 1
    assert f"the token for the cluster at http://{guarded.address} is missing or wrong" in one.log()
    assert "going by the RayJob's state" in one.log()


# ------------------------------------------------------------------------------------ what is asked


def test_nothing_is_discovered_and_no_file_keeps_what_was(
    server: KubeDouble, creator: Callable[[], Creator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client's discovery would ask without a time limit, and believe a file of the temporary folder for ever."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = sorted(tmp_path.iterdir())
    server.courses["*"] = course(server, status(server, "Complete", "SUCCEEDED"))
    one = creator()
    assert one.complete() == 0
    one.night().prune(3)
    assert {path for _, path in server.seen} == {RAYJOBS, f"{RAYJOBS}/{TEMPLATE}", f"{RAYJOBS}/{NAME}"}
    assert sorted(tmp_path.iterdir()) == before


# ------------------------------------------------------------------------------------ never a second one


def test_a_rayjob_that_runs_already_is_followed(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    server.rayjobs[NAME] = night_job(NAME, jobDeploymentStatus="Running")
    server.courses[NAME] = course(server, failed(server))
    server.drivers["night-x"] = {"status": "FAILED", "driver_exit_code": 3}
    assert creator().complete() == 3
    assert ("POST", RAYJOBS) not in server.seen


def test_a_rayjob_that_somebody_creates_in_the_same_moment_is_followed(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    server.before_create = lambda _: server.rayjobs.setdefault(NAME, night_job(NAME))
    server.courses[NAME] = course(server, status(server, "Complete", "SUCCEEDED"))
    one = creator()
    assert one.complete() == 0
    assert server.created == []
    assert "created by somebody else" in one.log()


def test_a_lost_answer_to_the_creation_makes_no_second_rayjob(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    server.courses["*"] = course(server, status(server, "Complete", "SUCCEEDED"))
    server.faults.extend([None, None, LOST])  # two GETs come before the creation: is it there, and the template
    one = creator()
    assert one.complete() == 0
    assert server.created == [NAME]
    assert server.seen.count(("POST", RAYJOBS)) == 2


def test_a_creator_restarted_in_the_middle_follows_the_same_rayjob(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    server.courses["*"] = [status(server, "Running", "RUNNING")]
    first = creator()
    ended: list[int] = []

    def run_until_stopped() -> None:
        try:
            first.complete()
        except Interrupted as interrupted:
            ended.append(interrupted.exit_code)

    thread = threading.Thread(target=run_until_stopped)
    thread.start()
    server.wait_for(lambda: server.polls(NAME) >= 3)
    first.stop.set()
    thread.join()
    assert ended == [5]
    server.courses[NAME] = [status(server, "Running", "RUNNING"), failed(server)]
    server.drivers["night-x"] = {"status": "FAILED", "driver_exit_code": 3}
    assert creator().complete() == 3
    assert server.created == [NAME]


def test_creators_at_once_make_one_rayjob_and_return_the_same(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    server.drivers["night-x"] = {"status": "FAILED", "driver_exit_code": 4}
    # Kept running until both have come to the RayJob: one that has ended would be a reason for another attempt.
    server.courses["*"] = [status(server, "Running", "RUNNING")]
    both = [creator(), creator()]
    codes: list[int] = []
    threads = [threading.Thread(target=lambda one=one: codes.append(one.complete())) for one in both]
    for thread in threads:
        thread.start()
    server.wait_for(lambda: all(f"RayJob {NAME}: Running" in one.log() for one in both))
    server.courses[NAME] = [failed(server)]
    for thread in threads:
        thread.join()
    assert codes == [4, 4]
    assert server.created == [NAME]


def test_what_has_succeeded_is_not_run_again(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    server.rayjobs[NAME] = night_job(NAME, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert creator().complete() == 0
    assert server.created == []


def test_after_failures_the_next_attempt_is_made_and_only_one(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    for name in (NAME, f"{NAME}-a2"):
        server.rayjobs[name] = night_job(name, jobDeploymentStatus="Failed", jobStatus="FAILED")
    server.courses["*"] = course(server, failed(server))
    server.drivers["night-x"] = {"status": "FAILED", "driver_exit_code": 2}
    assert creator().complete() == 2
    assert server.created == [f"{NAME}-a3"]


def test_a_second_attempt_that_runs_is_followed(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    server.rayjobs[NAME] = night_job(NAME, jobDeploymentStatus="Complete", jobStatus="STOPPED")
    server.rayjobs[f"{NAME}-a2"] = night_job(f"{NAME}-a2", jobDeploymentStatus="Running", jobStatus="RUNNING")
    server.courses[f"{NAME}-a2"] = course(server, status(server, "Complete", "SUCCEEDED"))
    assert creator().complete() == 0
    assert server.created == []


def test_a_rayjob_that_is_being_deleted_is_waited_for_and_replaced(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    dying = night_job(NAME)
    dying["metadata"]["deletionTimestamp"] = "2026-03-01T01:00:00Z"
    server.rayjobs[NAME] = dying
    server.courses[NAME] = [{}, {}, GONE, *course(server, status(server, "Complete", "SUCCEEDED"))]
    one = creator()
    assert one.complete() == 0
    assert server.created == [NAME]
    assert one.log().count("is being deleted") == 1


def test_a_rayjob_deleted_before_its_end_is_a_failure(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    server.courses["*"] = course(server, GONE)
    with pytest.raises(RunFailed, match="was deleted before its end"):
        creator().complete()


def test_a_rayjob_deleted_after_its_drivers_end_keeps_its_result(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    server.courses["*"] = course(server, status(server, "Running", "FAILED"), GONE)
    server.drivers["night-x"] = {"status": "FAILED", "driver_exit_code": 3}
    assert creator().complete() == 3


def test_a_rayjob_of_that_name_from_elsewhere_is_left_alone(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    server.rayjobs[NAME] = night_job(NAME, of="another")
    with pytest.raises(SpecError, match="was not made from stint-nightly"):
        creator().complete()


# ------------------------------------------------------------------------------------ trouble with the API server


def test_trouble_that_passes_is_waited_out(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    server.courses["*"] = course(server, status(server, "Complete", "SUCCEEDED"))
    server.faults.extend([(500, {}), RESET, (429, {"Retry-After": "0"}), (503, {}), (504, {})])
    one = creator()
    assert one.complete() == 0
    assert one.log().count("trying again") == 5
    assert server.created == [NAME]


def test_trouble_that_stays_ends_with_code_1_and_the_way_on(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    server.denied["GET"] = 500
    with pytest.raises(RunFailed, match="has not answered") as failure:
        creator().complete()
    assert "run again to follow it" in failure.value.next_step


def test_a_server_that_is_not_there_ends_with_code_1(
    server: KubeDouble, creator: Callable[[], Creator], tmp_path: Path
) -> None:
    server.kubeconfig(tmp_path, CLOSED)
    with pytest.raises(RunFailed, match="get RayJob"):
        creator().complete()


def test_sigterm_during_trouble_ends_the_wait(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    server.denied["GET"] = 500
    one = creator()
    one.stop.set()
    with pytest.raises(Interrupted):
        one.complete()


@pytest.mark.parametrize(("method", "code"), [("GET", 401), ("GET", 403), ("POST", 403), ("POST", 422)])
def test_a_refusal_is_reported_at_once_with_what_the_server_said(
    server: KubeDouble, creator: Callable[[], Creator], method: str, code: int
) -> None:
    server.denied[method] = code
    with pytest.raises(KubeRefused, match=f"refused with {code}: refused by the test") as refusal:
        creator().complete()
    assert refusal.value.exit_code == 2
    assert refusal.value.next_step
    assert server.seen[-1][0] == method


# ------------------------------------------------------------------------------------ the template


def test_a_missing_template_is_named(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    del server.rayjobs[TEMPLATE]
    with pytest.raises(SpecError, match="no RayJob stint-nightly in namespace stint") as refusal:
        creator().complete()
    assert "CRD" in refusal.value.next_step


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"spec": {"suspend": False}}, "is not suspended"),
        ({"spec": {"entrypoint": ""}}, "no entrypoint"),
        ({"metadata": {"labels": {QUEUE_LABEL: "nightly"}}}, "Kueue would start the template"),
        ({"metadata": {"annotations": {"stint.dev/copy-labels": "queue: nightly"}}}, "not a JSON object"),
        ({"metadata": {"annotations": {"stint.dev/copy-labels": '{"a": 1}'}}}, "not a JSON object of strings"),
    ],
)
def test_what_is_no_template_is_refused(
    server: KubeDouble, creator: Callable[[], Creator], change: dict[str, Any], said: str
) -> None:
    for part, fields in change.items():
        server.rayjobs[TEMPLATE][part] |= fields
    with pytest.raises(SpecError, match=said):
        creator().complete()
    assert server.created == []


def test_with_a_queue_among_the_copied_labels_kueue_starts_the_night(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    labels = '{"kueue.x-k8s.io/queue-name": "nightly", "team": "vision"}'
    server.rayjobs[TEMPLATE]["metadata"]["annotations"]["stint.dev/copy-labels"] = labels
    suspended = status(server, "Suspended")
    server.courses["*"] = [{}, suspended, *course(server, suspended, status(server, "Complete", "SUCCEEDED"))]
    assert creator().complete() == 0
    copied = server.rayjobs[NAME]
    assert copied["spec"]["suspend"] is True
    assert copied["metadata"]["labels"] | {QUEUE_LABEL: "nightly", "team": "vision"} == copied["metadata"]["labels"]
    assert "stint.dev/copy-labels" not in copied["metadata"]["annotations"]


def test_a_cluster_that_goes_at_once_is_warned_about(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    server.rayjobs[TEMPLATE] = template(ttlSecondsAfterFinished=0)
    server.courses["*"] = course(server, status(server, "Complete", "SUCCEEDED"))
    one = creator()
    assert one.complete() == 0
    assert "ttlSecondsAfterFinished is below 60" in one.log()


def test_names_fit_kuberays_limit_with_every_attempt() -> None:
    longest = "s" * MAX_TEMPLATE_CHARS
    assert len(attempt_name(longest, NIGHT, 99)) == 47
    with pytest.raises(SpecError, match="cannot name RayJobs: with date and attempt KubeRay allows 47 characters"):
        attempt_name(longest + "s", NIGHT, 1)


@pytest.mark.parametrize("name", ["Nightly", "1-nightly", "nightly-", "night.ly", ""])
def test_names_that_are_no_dns_labels_are_refused(name: str) -> None:
    with pytest.raises(SpecError, match="cannot name RayJobs"):
        attempt_name(name, NIGHT, 1)


# ------------------------------------------------------------------------------------ which night


@pytest.mark.parametrize(
    ("scheduled", "zone", "night"),
    [
        ("2026-03-01T23:30:00+00:00", None, "2026-03-01"),
        ("2026-03-02T00:30:00+01:00", None, "2026-03-02"),
        ("2026-03-01T23:30:00+00:00", "Europe/Berlin", "2026-03-02"),
        ("2026-03-01T02:00:00+00:00", "America/Los_Angeles", "2026-02-28"),
        (None, None, "2026-07-09"),
        (None, "Asia/Tokyo", "2026-07-10"),
    ],
)
def test_the_night_is_the_date_of_the_scheduled_time(scheduled: str | None, zone: str | None, night: str) -> None:
    now = datetime(2026, 7, 9, 20, tzinfo=UTC)
    assert str(night_of(zone, datetime.fromisoformat(scheduled) if scheduled else None, now)) == night


def test_an_unknown_zone_is_named() -> None:
    with pytest.raises(SpecError, match="Europe/Atlantis"):
        night_of("Europe/Atlantis", None)


def test_a_pod_learns_its_night_from_the_cronjobs_job(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    created = "2026-03-02T00:10:00Z"
    server.jobs["scheduled"] = {"metadata": {"annotations": {SCHEDULED_AT: "2026-03-01T23:55:00+01:00"}}}
    server.jobs["by-hand"] = {"metadata": {"creationTimestamp": created}}
    api = creator().api
    assert api.scheduled_at("scheduled") == datetime.fromisoformat("2026-03-01T23:55:00+01:00")
    assert str(night_of(None, api.scheduled_at("scheduled"))) == "2026-03-01"
    assert api.scheduled_at("by-hand") == datetime.fromisoformat(created)
    with pytest.raises(KubeRefused, match="no Job elsewhere"):
        api.scheduled_at("elsewhere")


@pytest.mark.parametrize(
    ("zone", "night"), [("America/Los_Angeles", "2026-03-01"), ("Asia/Tokyo", "2026-03-02"), (None, "2026-03-02")]
)
def test_the_night_of_a_job_made_by_hand_is_the_date_in_the_zone_of_its_cronjob(
    server: KubeDouble, creator: Callable[[], Creator], zone: str | None, night: str
) -> None:
    """At four in the afternoon UTC's date may be tomorrow's, whose own night would then find itself done already."""
    owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": "stint-nightly", "uid": "u", "controller": True}
    server.jobs["by-hand"] = {"metadata": {"creationTimestamp": "2026-03-02T00:10:00Z", "ownerReferences": [owner]}}
    server.cronjobs["stint-nightly"] = {
        "spec": {"schedule": "0 1 * * *", "jobTemplate": {}, **({"timeZone": zone} if zone else {})}
    }
    assert str(night_of(None, creator().api.scheduled_at("by-hand"))) == night


# ------------------------------------------------------------------------------------ history


def test_old_nights_are_deleted_but_nothing_that_runs(server: KubeDouble, creator: Callable[[], Creator]) -> None:
    ended = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    for name, night, now in [
        ("t-20260226", "2026-02-26", {"jobDeploymentStatus": "Running"}),
        ("t-20260227", "2026-02-27", ended),
        ("t-20260227-a2", "2026-02-27", ended),
        ("t-20260228", "2026-02-28", ended),
        ("t-20260301", "2026-03-01", ended),
    ]:
        server.rayjobs[name] = night_job(name, as_of=night, **now)
    server.rayjobs["not-ours"] = night_job("not-ours", of="another", as_of="2020-01-01", **ended)
    creator().night().prune(2)
    assert set(server.rayjobs) == {TEMPLATE, "t-20260226", "t-20260228", "t-20260301", "not-ours"}


def test_a_history_that_may_not_be_deleted_is_only_mentioned(
    server: KubeDouble, creator: Callable[[], Creator]
) -> None:
    server.rayjobs["t-20200101"] = night_job("t-20200101", as_of="2020-01-01", jobDeploymentStatus="Failed")
    server.rayjobs[NAME] = night_job(NAME, jobDeploymentStatus="Complete")
    server.denied["DELETE"] = 403
    one = creator()
    one.night().prune(1)
    assert "old RayJobs stay" in one.log()


# ------------------------------------------------------------------------------------ the command


@pytest.fixture
def command(server: KubeDouble, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = os.environ | {"KUBECONFIG": str(server.kubeconfig(tmp_path)), "PYTHONPATH": str(ROOT)}
        environment.pop("TZ", None)
        return subprocess.Popen(
            [sys.executable, "-m", "jobs", "nightly", "--template", TEMPLATE, *arguments],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_the_process_exits_with_the_nights_code(
    server: KubeDouble, command: Callable[..., subprocess.Popen[str]]
) -> None:
    server.jobs["cron-1"] = {"metadata": {"annotations": {SCHEDULED_AT: "2026-03-01T02:00:00Z"}}}
    server.courses["*"] = [failed(server)]
    server.drivers["night-x"] = {"status": "FAILED", "driver_exit_code": 3}
    process = command("--namespace", NAMESPACE, "--job", "cron-1")
    _, log = process.communicate(timeout=60)
    assert process.returncode == 3, log
    assert server.created == [NAME]
    assert f"kubectl -n stint logs job/{NAME}" in log


def test_sigterm_ends_the_process_with_code_5_and_leaves_the_rayjob(
    server: KubeDouble, command: Callable[..., subprocess.Popen[str]]
) -> None:
    server.courses["*"] = [status(server, "Running", "RUNNING")]
    process = command("--as-of", "2026-03-01")
    server.wait_for(lambda: NAME in server.created and server.polls(NAME) >= 2)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=60)
    assert process.returncode == 5, log
    assert "run again to follow it" in log
    assert NAME in server.rayjobs
    assert not [request for request in server.seen if request[0] == "DELETE"]


def test_in_a_pod_it_uses_the_service_account_and_its_namespace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.config import incluster_config

    for name, text in {"token": "t0ken", "ca.crt": "-", "namespace": "nights\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr("jobs.launch.kubernetes_api.SERVICE_ACCOUNT_NAMESPACE", tmp_path / "namespace")
    # The authority is read when the first connection is set up, and there is none in a test.
    monkeypatch.setattr("kubernetes.client.rest.RESTClientObject.__init__", lambda *_: None)
    api = connect()
    settings = api.client.api_client.configuration
    assert (settings.host, api.namespace) == ("https://10.0.0.1:443", "nights")
    assert settings.ssl_ca_cert == str(tmp_path / "ca.crt")
    assert settings.auth_settings()["BearerToken"]["value"] == "bearer t0ken"
    assert connect("other").namespace == "other"


def test_without_the_client_or_a_cluster_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(SpecError, match="no way to a Kubernetes API server"):
        connect()
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(SpecError, match="not installed") as refusal:
        connect()
    assert "stint[k8s]" in refusal.value.next_step


def test_the_client_is_imported_by_nobody_who_does_not_connect() -> None:
    code = "import sys, jobs.cli, jobs.launch.nightly; print({'kubernetes', 'ray', 'torch'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
