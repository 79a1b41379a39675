"""k8s/: every overlay and component as rendered, against KubeRay's CRDs, Kubernetes' schemas and the rules beyond them.

That the checks have teeth is tested as well: manifests made wrong on purpose must be refused.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import fillout_defaults, validate_config
from ray.scripts.scripts import drain_node

from jobs.arguments import parser
from jobs.errors import BAD_ROWS, BAD_SPEC, GATE_REFUSED, MEANING
from jobs.launch.nightly import COPY_LABELS, QUEUE_LABEL, attempt_name, nightly_copy
from jobs.spec.load import parse_spec
from jobs.spec.schema import JobSpec
from tests.k8s.k8s_network import Peer, passes
from tests.k8s.k8s_rendering import (
    K8S,
    OVERLAYS,
    ROOT,
    Manifest,
    build,
    clusters,
    command,
    compose,
    of_kind,
    pod_templates,
    the,
)  # fmt: skip
from tests.k8s.k8s_rules import NIGHT, rule_problems
from tests.k8s.k8s_schemas import needs_crds, schema_problems
from tests.support.ray_heads import await_true

COMPONENTS = sorted(folder.name for folder in (K8S / "components").iterdir())
# Each component once, with what it needs and does not exclude; the overlays cover the usual mixtures.
COMPOSED = {
    "nightly": (["base"], ["components/nightly"]),
    "everything": (
        ["base", "raycluster", "rayjob"],
        [f"components/{name}" for name in ("nightly", "monitoring", "token-auth", "instance-identity", "spot")],
    ),
    "queued": (["base", "rayjob"], ["components/nightly", "components/token-auth", "components/kueue"]),
}


def problems(objects: Sequence[Manifest]) -> list[str]:
    # Rules read fields that only a valid object has.
    return [p for obj in objects for p in schema_problems(obj)] or rule_problems(objects)


@pytest.fixture(params=[*OVERLAYS, *COMPOSED])
def rendered(request: pytest.FixtureRequest) -> list[Manifest]:
    return build(request.param) if request.param in OVERLAYS else compose(*COMPOSED[request.param])


def test_what_is_rendered_breaks_no_schema_and_no_rule(rendered: list[Manifest]) -> None:
    assert problems(rendered) == []
    needs_crds()  # all else was checked


def test_every_overlay_and_component_is_among_those_tested() -> None:
    overlays = {
        str(file.parent.relative_to(K8S))
        for file in (K8S / "overlays").rglob("kustomization.yaml")
        if yaml.safe_load(file.read_text())["kind"] == "Kustomization"
    }
    assert overlays == set(OVERLAYS)
    assert {Path(c).name for _, components in COMPOSED.values() for c in components} == set(COMPONENTS)


def test_the_manifests_have_parts_of_each_kind_that_is_checked() -> None:
    kinds = {obj["kind"] for obj in compose(*COMPOSED["everything"])}
    assert {"Namespace", "RayCluster", "RayJob", "CronJob", "NetworkPolicy", "PodDisruptionBudget", "Role"} <= kinds


# ------------------------------------------------------------------------------------------------ teeth


def _head(objects: Sequence[Manifest]) -> dict[str, Any]:
    return next(spec for _, spec in clusters(objects))["headGroupSpec"]["template"]["spec"]


def _group(objects: Sequence[Manifest]) -> dict[str, Any]:
    return next(spec for _, spec in clusters(objects))["workerGroupSpecs"][0]


def _job(objects: Sequence[Manifest]) -> dict[str, Any]:
    return the(objects, "RayJob", "stint-nightly")["spec"]


def _cron(objects: Sequence[Manifest]) -> dict[str, Any]:
    return the(objects, "CronJob")["spec"]


def _both(resources: dict[str, Any], name: str, quantity: str) -> None:
    resources["limits"][name] = resources["requests"][name] = quantity


MUTANTS: dict[str, tuple[Callable[[list[Manifest]], Any], str]] = {
    # What the schemas must see
    "unknown field of a RayJob": (lambda o: _job(o).update(retries=2), "'retries' was unexpected"),
    "misspelt field deep in a pod": (
        lambda o: _head(o)["containers"][0]["resources"].update(limit={}),
        "'limit' was unexpected",
    ),
    "wrong type in a CRD": (lambda o: _group(o).update(maxReplicas="many"), "not of type 'integer'"),
    "unknown autoscaler": (
        lambda o: next(s for _, s in clusters(o))["autoscalerOptions"].update(version="v3"),
        "'v3' is not one of",
    ),
    "unknown field of a CronJob": (lambda o: _cron(o).update(timezone="UTC"), "'timezone' was unexpected"),
    "misspelt policy type": (
        lambda o: the(o, "NetworkPolicy", "stint-ray")["spec"].update(policyType=["Ingress"]),
        "'policyType' was unexpected",
    ),
    "misspelt endpoint": (
        lambda o: the(o, "PodMonitor")["spec"].update(podMetricsEndpoint=[]),
        "'podMetricsEndpoint' was unexpected",
    ),
    # What only the rules see
    "a worker pod that restarts": (lambda o: _group(o)["template"]["spec"].update(restartPolicy="Always"), "Never"),
    "a fraction of a CPU": (
        lambda o: _both(_group(o)["template"]["spec"]["containers"][0]["resources"], "cpu", "3500m"),
        "round 3500m CPUs up",
    ),
    "limits above requests": (
        lambda o: _group(o)["template"]["spec"]["containers"][0]["resources"]["requests"].update(cpu="2"),
        "Guaranteed",
    ),
    "workers killed before they are drained": (
        lambda o: _group(o)["template"]["spec"]["containers"][0].update(
            lifecycle={"preStop": {"exec": {"command": ["ray", "stop"]}}}
        ),
        "preStop comes before SIGTERM",
    ),
    "no time to drain": (
        lambda o: _group(o)["template"]["spec"].update(terminationGracePeriodSeconds=60),
        "drains for 85 s of the 60 s",
    ),
    "a drain shorter than a worker takes to leave": (
        lambda o: _group(o)["template"]["spec"]["containers"][0]["env"][0].update(value="10"),
        "drains for 10 s",
    ),
    "a head that takes work": (
        lambda o: next(s for _, s in clusters(o))["headGroupSpec"]["rayStartParams"].pop("num-cpus"),
        "num-cpus",
    ),
    "workers that never leave": (lambda o: _group(o).update(minReplicas=1), "start at zero"),
    "another Ray": (lambda o: next(s for _, s in clusters(o)).update(rayVersion="2.9.0"), "rayVersion"),
    "labels in rayStartParams": (lambda o: _group(o)["rayStartParams"].update(labels="a=b"), "rayStartParams"),
    "an object store beyond /dev/shm": (
        lambda o: _group(o)["rayStartParams"].update({"object-store-memory": str(2**30)}),
        "larger than /dev/shm",
    ),
    "a token switched off": (
        lambda o: _head(o)["containers"][0].update(env=[{"name": "RAY_AUTH_MODE", "value": "disabled"}]),
        "beside authOptions.mode token",
    ),
    "a creator without the token": (
        lambda o: _cron(o)["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["env"].pop(),
        "do not agree on a token",
    ),
    "two commands": (lambda o: _job(o).update(entrypoint=_job(o)["entrypoint"] + " && date"), "one plain command"),
    "a spec that the head has not": (
        lambda o: _job(o).update(entrypoint="python -m jobs run /etc/stint/other.yaml"),
        "no job spec",
    ),
    "a driver on a worker": (lambda o: _job(o).update(entrypointNumCpus=1), "on a worker"),
    "no time to stop": (lambda o: _job(o).update(runtimeEnvYAML=""), "STOP_WAIT"),
    "a template that cannot be suspended": (lambda o: _job(o).update(shutdownAfterJobFinishes=False), "suspend"),
    "two ways to delete": (
        lambda o: _job(o).update(
            deletionStrategy={"onSuccess": {"policy": "DeleteSelf"}, "onFailure": {"policy": "DeleteSelf"}}
        ),
        "exclude each other",
    ),
    "exit codes lost": (lambda o: _job(o).update(ttlSecondsAfterFinished=10), "exit code"),
    "a cluster for each retry": (lambda o: _job(o).update(backoffLimit=3), "backoffLimit"),
    "a name too long": (
        lambda o: the(o, "RayCluster")["metadata"].update(name="s" * 54),
        "longer than 53 characters",
    ),
    "a template that runs": (lambda o: _job(o).update(suspend=False), "not suspended"),
    "a template that Kueue starts": (
        lambda o: the(o, "RayJob", "stint-nightly")["metadata"]["labels"].update({QUEUE_LABEL: "nightly"}),
        "Kueue would start the template",
    ),
    "a queue for an autoscaling night": (
        lambda o: the(o, "RayJob", "stint-nightly")["metadata"].update(
            annotations={COPY_LABELS: f'{{"{QUEUE_LABEL}": "nightly"}}'}
        ),
        "Kueue refuses",
    ),
    "overlapping nights": (lambda o: _cron(o).update(concurrencyPolicy="Allow"), "Forbid"),
    "no time zone": (lambda o: _cron(o).pop("timeZone"), "timeZone"),
    "a creator that gives up early": (
        lambda o: _cron(o)["jobTemplate"]["spec"].update(activeDeadlineSeconds=600),
        "gives up before",
    ),
    "a writable image": (
        lambda o: _head(o)["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
        "writes to its image",
    ),
    "an autoscaler with capabilities": (
        lambda o: next(s for _, s in clusters(o))["autoscalerOptions"]["securityContext"].pop("capabilities"),
        "autoscaler: keeps capabilities",
    ),
    "root": (lambda o: _group(o)["template"]["spec"]["securityContext"].update(runAsUser=0), "root"),
    "a volume of the node": (
        lambda o: _head(o)["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        "volume host",
    ),
    "a token for workers": (
        lambda o: _group(o)["template"]["spec"].update(automountServiceAccountToken=True),
        "without rights",
    ),
    "nowhere to write": (lambda o: _head(o)["containers"][0]["volumeMounts"].pop(0), "cannot write to /tmp"),
    "an account that is not there": (lambda o: _head(o).update(serviceAccountName="ray"), "no service account ray"),
    "a ConfigMap without its hash": (
        lambda o: _head(o)["containers"][0]["envFrom"][0]["configMapRef"].update(name="stint-ray-env"),
        "no ConfigMap stint-ray-env",
    ),
    "an image of no fixed tag": (
        lambda o: _head(o)["containers"][0].update(image="registry.test/stint:latest"),
        "no fixed tag",
    ),
    "another namespace": (lambda o: the(o, "RayCluster")["metadata"].update(namespace="x"), "in namespace x"),
    "more rights": (lambda o: the(o, "Role")["rules"][0]["verbs"].append("patch"), "patch"),
    "heads that may be evicted": (
        lambda o: the(o, "PodDisruptionBudget")["spec"].update(minAvailable=1),
        "heads be evicted",
    ),
}

ONLY_CRDS_SEE = {
    "unknown field of a RayJob",
    "misspelt field deep in a pod",
    "wrong type in a CRD",
    "unknown autoscaler",
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_manifest_made_wrong_is_refused(mutant: str) -> None:
    break_it, complaint = MUTANTS[mutant]
    if mutant in ONLY_CRDS_SEE:
        needs_crds()
    objects = compose(*COMPOSED["everything"])
    break_it(objects)
    assert any(complaint in problem for problem in problems(objects))


# ------------------------------------------------------------------------------------------- the night


@pytest.mark.parametrize("overlay", ["overlays/dev", "overlays/prod"])
def test_the_night_that_the_creator_makes_of_the_template_is_valid(overlay: str) -> None:
    objects = build(overlay)
    template = the(objects, "RayJob", "stint-nightly")
    night = nightly_copy(template, attempt_name("stint-nightly", NIGHT, 1), NIGHT)
    objects[objects.index(template)] = night
    night["metadata"]["labels"]["app.kubernetes.io/part-of"] = "stint"
    left = [p for p in problems(objects) if not p.startswith("CronJob")]  # whose template was replaced
    assert left == []
    assert night["spec"]["suspend"] is False
    assert night["spec"]["entrypoint"].endswith(" --as-of 2026-03-01")


def test_a_queued_night_waits_for_kueue_with_all_its_workers() -> None:
    objects = compose(*COMPOSED["queued"])
    template = the(objects, "RayJob", "stint-nightly")
    night = nightly_copy(template, "stint-nightly-20260301", NIGHT)
    assert QUEUE_LABEL not in template["metadata"]["labels"]
    queue = the(objects, "LocalQueue")["metadata"]["name"]
    assert (night["metadata"]["labels"][QUEUE_LABEL], night["spec"]["suspend"]) == (queue, True)
    assert the(objects, "RayJob", "stint-adhoc")["metadata"]["labels"][QUEUE_LABEL] == queue
    for job in of_kind(objects, "RayJob"):
        group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0


def test_only_results_that_another_try_may_better_are_tried_again() -> None:
    rules = the(build("overlays/prod"), "CronJob")["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"]
    final = next(rule["onExitCodes"]["values"] for rule in rules if rule["action"] == "FailJob")
    assert set(final) == {BAD_SPEC, BAD_ROWS, GATE_REFUSED} < set(MEANING)


def specs_of(objects: Sequence[Manifest]) -> dict[str, JobSpec]:
    maps = [o for o in of_kind(objects, "ConfigMap") if o["metadata"]["name"].startswith("stint-jobs-")]
    return {key: parse_spec(yaml.safe_load(text), key) for o in maps for key, text in o["data"].items()}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_job_specs_are_valid_and_ask_only_for_groups_that_are_there(overlay: str) -> None:
    objects = build(overlay)
    specs = specs_of(objects)
    for job in of_kind(objects, "RayJob"):
        spec = specs[Path(job["spec"]["entrypoint"].split()[4]).name]
        offered = [group.get("labels", {}) for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
        for group in spec.workers.groups:
            assert any(group.labels.items() <= labels.items() for labels in offered), group.labels


def test_a_night_that_was_missed_is_found_by_the_next_one() -> None:
    for key, spec in specs_of(build("overlays/prod")).items():
        raw = yaml.safe_load((ROOT / "conf" / key).read_text())
        assert "{as_of}" not in raw["input"]["uri"], "a folder of each night would hide the images of a missed one"
        assert spec.schedule.timezone == the(build("overlays/prod"), "CronJob")["spec"]["timeZone"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_commands_in_the_manifests_are_understood(overlay: str) -> None:
    objects = build(overlay)
    for job in of_kind(objects, "RayJob"):
        words = f"{job['spec']['entrypoint']} --as-of {NIGHT}".split()
        assert parser().parse_args(words[3:]).spec.startswith("/etc/stint/")
    for cron in of_kind(objects, "CronJob"):
        container = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
        assert "STINT_JOB_NAME" in {variable["name"] for variable in container["env"]}
        assert parser().parse_args(container["args"][3:]).template == "stint-nightly"


def test_pods_run_as_the_user_and_in_the_folder_of_the_image() -> None:
    image = dict(
        line.split(" ", 1)
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith(("USER ", "WORKDIR ", "ENTRYPOINT "))
    )
    assert image["ENTRYPOINT"] == '["tini", "--"]'  # in front of the creator's args
    for where, template in pod_templates(build("overlays/prod")):
        context = template["spec"]["securityContext"]
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == image["USER"], where
        for container in template["spec"]["containers"]:
            assert container.get("workingDir", image["WORKDIR"]) == image["WORKDIR"], where


# ------------------------------------------------------------------------------------------ connections

OPERATOR = Peer(namespace="kuberay-operator", labels={"app.kubernetes.io/component": "kuberay-operator"})
STRANGER = Peer(namespace="elsewhere", labels={"app.kubernetes.io/component": "kuberay-operator"})
NEIGHBOUR = Peer(namespace="stint", labels={"app": "other"})
DNS = Peer(namespace="kube-system", labels={"k8s-app": "kube-dns"})
PROMETHEUS = Peer(namespace="monitoring", labels={"app.kubernetes.io/name": "prometheus"})
API_SERVER, S3 = Peer(address="10.0.0.1"), Peer(address="52.92.1.1")
INSTANCE_ROLE, POD_IDENTITY = Peer(address="169.254.169.254"), Peer(address="169.254.170.23")


def pod(component: str) -> Peer:
    """A pod with the labels that the manifests give to that component."""
    found = [t for _, t in pod_templates(build("overlays/prod"))]
    labels = next(
        t["metadata"]["labels"] for t in found if t["metadata"]["labels"]["app.kubernetes.io/component"] == component
    )
    return Peer(namespace="stint", labels=labels)


@pytest.mark.parametrize(
    ("source", "target", "port", "through"),
    [
        (OPERATOR, "head", 8265, True),
        (OPERATOR, "head", 6379, False),
        (STRANGER, "head", 8265, False),
        (NEIGHBOUR, "head", 8265, False),
        ("submitter", "head", 8265, True),
        ("submitter", "head", 6379, False),
        ("nightly", "head", 8265, True),
        ("nightly", "worker", 8265, False),
        ("worker", "head", 6379, True),
        ("worker", "worker", 31234, True),
        ("head", "worker", 31234, True),
        ("head", API_SERVER, 6443, True),
        ("head", API_SERVER, 443, True),
        ("nightly", API_SERVER, 6443, True),
        ("worker", API_SERVER, 6443, False),
        ("submitter", API_SERVER, 443, False),
        ("head", S3, 443, True),
        ("worker", S3, 443, True),
        ("worker", S3, 80, False),
        ("worker", INSTANCE_ROLE, 80, False),
        ("worker", INSTANCE_ROLE, 443, False),
        ("head", Peer(address="fd00:ec2::254"), 443, False),
        (PROMETHEUS, "worker", 8080, True),
        (PROMETHEUS, "head", 44217, True),
        (PROMETHEUS, "head", 8265, False),
        (S3, "head", 8265, False),
    ],
)
def test_connections(source: Peer | str, target: Peer | str, port: int, through: bool) -> None:
    ends = [pod(end) if isinstance(end, str) else end for end in (source, target)]
    assert passes(build("overlays/prod"), *ends, port) is through


@pytest.mark.parametrize("component", ["head", "worker", "submitter", "nightly"])
def test_every_pod_resolves_names(component: str) -> None:
    assert passes(build("overlays/prod"), pod(component), DNS, 53, "UDP")


def test_an_identity_of_the_instance_is_a_component_of_its_own() -> None:
    objects = compose(["base"], ["components/instance-identity"])
    worker = Peer(namespace="composed", labels=pod("worker").labels)
    assert passes(objects, worker, INSTANCE_ROLE, 80)
    assert passes(objects, worker, POD_IDENTITY, 80)
    assert not passes(objects, Peer(namespace="composed", labels=pod("nightly").labels), INSTANCE_ROLE, 80)


# ---------------------------------------------------------------------------------- documents, machines


def test_commands_and_paths_of_the_readme_are_there() -> None:
    text = (K8S / "README.md").read_text()
    for path in re.findall(r"-k (k8s/[\w/-]+)", text):
        assert path.removeprefix("k8s/") in OVERLAYS, path
    for path in re.findall(r"`((?:k8s|conf|components|overlays|base|raycluster|rayjob|ray-up)/[\w./-]*)`", text):
        assert (K8S / path).exists() or (ROOT / path).exists(), path
    assert all(f"`components/{name}`" in text for name in COMPONENTS)


def test_the_entrypoint_gets_the_options_that_the_readme_adds_and_they_reach_the_run_whole() -> None:
    text = (K8S / "README.md").read_text()
    (folder, added), *others = re.findall(r"kubectl kustomize (\S+) \| (sed .*) \| kubectl apply", text)
    assert not others
    shown = subprocess.run([*command(), folder], cwd=ROOT, capture_output=True, check=True).stdout
    changed = subprocess.run(added, shell=True, input=shown, capture_output=True, check=True).stdout
    objects = [made for made in yaml.safe_load_all(changed) if made]
    words = shlex.split(the(objects, "RayJob")["spec"]["entrypoint"])  # KubeRay's submitter pastes it into a shell
    words = shlex.split(shlex.join(words))  # then `ray job submit` quotes, and the head's shell reads
    assert parser().parse_args(words[3:]).again == "error_code = 'not_found'"


def test_the_operator_and_the_node_pools_of_the_readme_suit_the_manifests() -> None:
    text, objects = (K8S / "README.md").read_text(), build("overlays/prod")
    ((version, namespace),) = re.findall(r"helm install \S+ \S+ --version (\S+) --namespace (\S+)", text)
    assert version.startswith("1.7.")
    operator = Peer(namespace=namespace, labels={"app.kubernetes.io/component": "kuberay-operator"})
    assert passes(objects, operator, pod("head"), 8265)
    groups = next(spec for _, spec in clusters(objects))["workerGroupSpecs"]
    most = {str(group["maxReplicas"]) for group in groups}
    assert set(re.findall(r"-max-nodes (\d+)|--nodes-max (\d+)|--max-count (\d+)", text)) == {
        *((m, "", "") for m in most), *(("", m, "") for m in most), *(("", "", m) for m in most)
    }  # fmt: skip
    asked = groups[0]["template"]["spec"]["containers"][0]["resources"]["requests"]
    assert f"has {asked['cpu']} CPUs and {asked['memory'].removesuffix('Gi')} GiB" in text


IMDS = {
    # By cloud: what the metadata service answers to these words, before there is a notice and after it.
    "aws": ("spot/instance-action", "X-aws-ec2-metadata-token: TOKEN ", "exit 22", "exit 0"),
    "gcp": ("instance/preempted?wait_for_change=true", "Metadata-Flavor: Google ", "echo FALSE", "echo TRUE"),
    "azure": (
        "scheduledevents?api-version=2020-07-01", "Metadata:true ",
        """echo '{"Events": []}'""", """echo '{"Events": [{"EventType": "Preempt"}]}'""",
    ),
}  # fmt: skip


@pytest.mark.parametrize("cloud", IMDS)
def test_a_spot_notice_on_a_machine_drains_its_node(cloud: str, tmp_path: Path) -> None:
    command = yaml.safe_load((K8S / f"ray-up/{cloud}.yaml").read_text())["worker_start_ray_commands"][-1]
    told = tmp_path / "told"
    path, header, before, after = IMDS[cloud]
    # AWS says 404, by curl's exit code 22, until there is a notice; it wants a token each time.
    curl = f"""#!/bin/sh
case "$*" in
  *api/token) echo "$*" | grep -q "PUT" && echo TOKEN ;;
  *"{header}"*"{path}")
    test -e {tmp_path}/asked || {{ touch {tmp_path}/asked; {before}; exit; }}; {after} ;;
  *) echo "$*" > {told}; exit 0 ;;
esac
"""
    for file, script in {
        "bin/curl": curl,
        "bin/sleep": "#!/bin/sh\n",
        "stint/bin/ray": f'#!/bin/sh\necho "$RAY_AUTH_MODE $*" > {told}.part && mv {told}.part {told}\n',
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(script)
        (tmp_path / file).chmod(0o755)
    search = f"{tmp_path}/bin:{os.environ['PATH']}"
    command = command.replace("/tmp/spot-notice.log", str(tmp_path / "log"))
    subprocess.run(
        ["bash", "-c", command], env={"HOME": str(tmp_path), "PATH": search, "RAY_HEAD_IP": "10.0.0.1"}, check=True
    )
    await_true(told.exists, "the drain", 10)
    mode, *words = told.read_text().split()
    assert (mode, words[0]) == ("disabled", "drain-node")
    assert (tmp_path / "asked").exists()
    parsed = drain_node.make_context("drain-node", words[1:]).params
    assert parsed["address"] == "10.0.0.1:6379"
    assert parsed["reason"] == "DRAIN_NODE_REASON_PREEMPTION"
    leaves_s = 120 if cloud == "aws" else 30
    assert leaves_s / 2 < parsed["deadline_remaining_seconds"] < leaves_s


@pytest.mark.parametrize("file", sorted((K8S / "ray-up").glob("*.yaml")), ids=lambda f: f.stem)
def test_a_cluster_of_machines_is_valid_to_ray_and_installs_what_the_project_pins(file: Path) -> None:
    text = file.read_text()
    config = fillout_defaults(yaml.safe_load(text))
    validate_config(config)
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert all(t.get("min_workers", 0) == 0 for t in config["available_node_types"].values())
    assert set(config["setup_commands"]) == set(yaml.safe_load(text)["setup_commands"]), "Ray's own would install Ray"
    pinned = set(re.findall(r'"(torch\w*==[\d.]+)"', (ROOT / "pyproject.toml").read_text()))
    assert set(re.findall(r"torch\w*==[\d.]+", text)) == pinned
    store = {"aws": "s3", "gcp": "gcs", "azure": "azure"}[config["provider"]["type"]]
    assert f"stint-src[{store},look]" in text
    markets = {
        name: node.get("labels", {}).get("ray.io/market-type") for name, node in config["available_node_types"].items()
    }
    assert markets == {"head": None, "spot": "spot", "on-demand": "on-demand"}
