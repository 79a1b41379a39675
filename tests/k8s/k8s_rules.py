"""What schemas cannot see: the rules of KubeRay 1.7, Ray's autoscaler v2, Kueue, Pod Security's restricted profile, and
of this project's creator, each as a function from rendered objects to problems.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Any

import ray
import yaml
from ray.autoscaler._private.kuberay.utils import parse_quantity

from jobs.errors import StintError
from jobs.launch.nightly import MAX_ATTEMPTS, QUEUE_LABEL, attempt_name, loses_exit_codes, nightly_copy
from tests.k8s.k8s_rendering import Manifest, clusters, of_kind, pod_templates

Rule = Callable[[Sequence[Manifest]], Iterator[str]]
NIGHT = date(2026, 3, 1)
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
RAYCLUSTER_MAX, RAYJOB_MAX = 53, 47
WRITABLE = ("/tmp", "/dev/shm", "/home/stint")  # what Ray, torch and Python write to
VOLUMES_OF_RESTRICTED = {"configMap", "downwardAPI", "emptyDir", "projected", "secret", "csi", "ephemeral"}
CLUSTER_SCOPED = {"Namespace"}
DRAIN_VARIABLE = "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
STOP_S = 10  # for Ray's processes to end in, once the node is drained
SPOT_NOTICE_S = 120  # the longest that a cloud gives
DRAIN_LEAST_S = 15  # a shard that is nearly done still ends in it


def rule_problems(objects: Sequence[Manifest]) -> list[str]:
    return [problem for rule in RULES for problem in rule(objects)]


def autoscaler_v2_makes_new_pods(objects: Sequence[Manifest]) -> Iterator[str]:
    for where, spec in clusters(objects):
        if not spec.get("enableInTreeAutoscaling"):
            continue
        if spec.get("autoscalerOptions", {}).get("version") != "v2":
            yield f"{where}: autoscaler v2 is wanted"
        for template in (spec["headGroupSpec"]["template"], *(g["template"] for g in spec["workerGroupSpecs"])):
            if template["spec"].get("restartPolicy") != "Never":
                yield f"{where}: autoscaler v2 needs restartPolicy Never"
        for group in spec["workerGroupSpecs"]:
            if group["minReplicas"] != 0 or group["replicas"] != 0:
                yield f"{where}: group {group['groupName']} does not start at zero"


def workers_own_whole_cpus(objects: Sequence[Manifest]) -> Iterator[str]:
    for where, spec in clusters(objects):
        for group in spec["workerGroupSpecs"]:
            for container in group["template"]["spec"]["containers"]:
                limits, requests = (container.get("resources", {}).get(k, {}) for k in ("limits", "requests"))
                if not all(limits.get(k) and limits.get(k) == requests.get(k) for k in ("cpu", "memory")):
                    yield f"{where}: group {group['groupName']} is not of Guaranteed QoS"
                if not re.fullmatch(r"[1-9]\d*", str(limits.get("cpu"))):
                    yield f"{where}: group {group['groupName']}: Ray would round {limits.get('cpu')} CPUs up"


def workers_are_drained_before_they_are_killed(objects: Sequence[Manifest]) -> Iterator[str]:
    """`ray start --block` drains its node on SIGTERM, if nothing has killed it before and the kubelet waits for it."""
    for where, spec in clusters(objects):
        for group in spec["workerGroupSpecs"]:
            pod, name = group["template"]["spec"], f"{where}: group {group['groupName']}"
            container = pod["containers"][0]
            if container.get("lifecycle", {}).get("preStop"):
                yield f"{name}: preStop comes before SIGTERM, on which Ray drains the node"
            grace_s = pod.get("terminationGracePeriodSeconds", 30)
            variables = {v["name"]: v.get("value", "") for v in container.get("env", [])}
            drain_s = float(variables.get(DRAIN_VARIABLE, 0))
            if not DRAIN_LEAST_S <= drain_s <= grace_s - STOP_S or grace_s > SPOT_NOTICE_S:
                yield f"{name}: drains for {drain_s:.0f} s of the {grace_s} s that it has to end"


def heads_take_no_work(objects: Sequence[Manifest]) -> Iterator[str]:
    for where, spec in clusters(objects):
        params = spec["headGroupSpec"]["rayStartParams"]
        if params.get("num-cpus") != "0":
            yield f"{where}: the head's num-cpus is {params.get('num-cpus')!r}, not '0'"
        if params.get("dashboard-host") != "0.0.0.0":
            yield f"{where}: operator and submitter cannot reach a dashboard on {params.get('dashboard-host')}"


def groups_are_as_kuberay_wants_them(objects: Sequence[Manifest]) -> Iterator[str]:
    for where, spec in clusters(objects):
        names = [group["groupName"] for group in spec["workerGroupSpecs"]]
        if len(set(names)) != len(names) or "head" in names or "headgroup" in names:
            yield f"{where}: group names {names}"
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            if "labels" in group["rayStartParams"]:
                yield f"{where}: labels belong into the group, not into rayStartParams"
            if group.get("resources") and {"num-cpus", "memory", "resources"} & group["rayStartParams"].keys():
                yield f"{where}: resources both in the group and in rayStartParams"
        for group in spec["workerGroupSpecs"]:
            if group["maxReplicas"] < max(1, group["minReplicas"]):
                yield f"{where}: group {group['groupName']} can have no pod"
        if spec.get("rayVersion") != ray.__version__:
            yield f"{where}: rayVersion {spec.get('rayVersion')}, the image has {ray.__version__}"


def object_store_fits_shared_memory(objects: Sequence[Manifest]) -> Iterator[str]:
    for where, spec in clusters(objects):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
            ray_container = group["template"]["spec"]["containers"][0]
            mounted = [m["name"] for m in ray_container["volumeMounts"] if m["mountPath"] == "/dev/shm"]
            shm = volumes.get(mounted[0], {}).get("emptyDir", {}) if mounted else {}
            room = parse_quantity(shm["sizeLimit"]) if shm.get("medium") == "Memory" else 0
            if int(group["rayStartParams"].get("object-store-memory", 2**62)) > room:
                yield f"{where}: the object store is larger than /dev/shm ({room} bytes)"


def tokens_are_not_switched_off(objects: Sequence[Manifest]) -> Iterator[str]:
    """KubeRay sets RAY_AUTH_MODE only where env does not name it, so an explicit `disabled` would win in silence."""
    with_token = [(w, s) for w, s in clusters(objects) if s.get("authOptions", {}).get("mode") == "token"]
    for where, spec in with_token:
        if not spec["authOptions"].get("secretName"):
            yield f"{where}: without secretName each cluster has a token of its own, which the creator does not know"
        for template in (spec["headGroupSpec"]["template"], *(g["template"] for g in spec["workerGroupSpecs"])):
            for variable in template["spec"]["containers"][0].get("env", []):
                if variable["name"] == "RAY_AUTH_MODE" and variable.get("value") != "token":
                    yield f"{where}: RAY_AUTH_MODE={variable.get('value')} beside authOptions.mode token"
    for cron in of_kind(objects, "CronJob"):
        container = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
        has_token = "RAY_AUTH_TOKEN" in {variable["name"] for variable in container["env"]}
        if has_token != bool([w for w, _ in with_token if w.startswith("RayJob")]):
            yield f"CronJob {cron['metadata']['name']}: the creator and its RayJobs do not agree on a token"


def names_fit(objects: Sequence[Manifest]) -> Iterator[str]:
    for kind, longest in (("RayCluster", RAYCLUSTER_MAX), ("RayJob", RAYJOB_MAX)):
        for obj in of_kind(objects, kind):
            name = obj["metadata"]["name"]
            if obj["spec"].get("suspend") and kind == "RayJob":
                name = attempt_name(name, NIGHT, MAX_ATTEMPTS)
            if len(name) > longest or not DNS_1035.fullmatch(name):
                yield f"{kind} {name}: longer than {longest} characters, or no DNS-1035 label"


def entrypoints_are_one_plain_command(objects: Sequence[Manifest]) -> Iterator[str]:
    files = {f"/etc/stint/{key}" for c in of_kind(objects, "ConfigMap") for key in c["data"]}
    for obj in of_kind(objects, "RayJob"):
        where, spec = f"RayJob {obj['metadata']['name']}", obj["spec"]
        words = spec["entrypoint"].split()
        if shlex.join(words) != spec["entrypoint"].strip():
            yield f"{where}: the submitter's shell would not take {spec['entrypoint']!r} as one plain command"
        if words[:4] != ["python", "-m", "jobs", "run"] or words[4] not in files:
            yield f"{where}: {spec['entrypoint']!r} runs no job spec that the head has"
        if {"entrypointNumCpus", "entrypointNumGpus", "entrypointResources"} & spec.keys():
            yield f"{where}: entrypoint resources let Ray place the driver on a worker"
        environment = yaml.safe_load(spec.get("runtimeEnvYAML", "")) or {}
        stop_s = environment.get("env_vars", {}).get("RAY_JOB_STOP_WAIT_TIME_S")
        grace_s = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        if not isinstance(stop_s, str) or not 3 < int(stop_s) < grace_s:
            yield f"{where}: RAY_JOB_STOP_WAIT_TIME_S {stop_s!r}, the head has {grace_s} s to end"


def rayjobs_end_in_good_order(objects: Sequence[Manifest]) -> Iterator[str]:
    for obj in of_kind(objects, "RayJob"):
        where, spec = f"RayJob {obj['metadata']['name']}", obj["spec"]
        shuts_down = spec.get("shutdownAfterJobFinishes", False)
        if "deletionStrategy" in spec and shuts_down:
            yield f"{where}: deletionStrategy and shutdownAfterJobFinishes exclude each other"
        if spec.get("suspend") and not shuts_down:
            yield f"{where}: KubeRay refuses to suspend a job without shutdownAfterJobFinishes"
        if not shuts_down or loses_exit_codes(spec):
            yield f"{where}: the cluster stays for ever, or goes before the driver's exit code can be asked for"
        if spec.get("backoffLimit", 0) != 0:
            yield f"{where}: backoffLimit {spec['backoffLimit']}: each retry is a new cluster, also for a bad spec"
        if spec.get("submissionMode") != "K8sJobMode":
            yield f"{where}: submissionMode {spec.get('submissionMode')}"
        if spec["submitterPodTemplate"]["spec"].get("restartPolicy") != "Never":
            yield f"{where}: the submitter's restartPolicy"
        if spec.get("preRunningDeadlineSeconds", 0) >= spec.get("activeDeadlineSeconds", 0):
            yield f"{where}: preRunningDeadlineSeconds is no shorter than activeDeadlineSeconds, or one is missing"


def kueue_can_admit(objects: Sequence[Manifest]) -> Iterator[str]:
    for queue in of_kind(objects, "LocalQueue"):
        if queue["metadata"]["name"] == "default":
            yield "LocalQueue default: Kueue would start the suspended template"
    for obj in of_kind(objects, "RayJob"):
        try:
            job = nightly_copy(obj, "copy", NIGHT) if obj["spec"].get("suspend") else obj
        except StintError:  # nights_are_made_once says why
            continue
        if QUEUE_LABEL not in (job["metadata"].get("labels") or {}):
            continue
        where, spec = f"RayJob {obj['metadata']['name']}", job["spec"]
        groups = spec["rayClusterSpec"]["workerGroupSpecs"]
        if spec["rayClusterSpec"].get("enableInTreeAutoscaling"):
            yield f"{where}: Kueue refuses Ray's autoscaler"
        if not spec.get("shutdownAfterJobFinishes") or "deletionStrategy" in spec:
            yield f"{where}: Kueue wants the cluster gone after the job"
        if len(groups) > 7:
            yield f"{where}: Kueue takes seven groups at most"
        if not all(group["replicas"] >= 1 for group in groups):
            yield f"{where}: without an autoscaler a group of no replicas never gets any"


def nights_are_made_once(objects: Sequence[Manifest]) -> Iterator[str]:
    for cron in of_kind(objects, "CronJob"):
        where, spec = f"CronJob {cron['metadata']['name']}", cron["spec"]
        job = spec["jobTemplate"]["spec"]
        container = job["template"]["spec"]["containers"][0]
        if not spec.get("timeZone") or spec.get("concurrencyPolicy") != "Forbid":
            yield f"{where}: timeZone and concurrencyPolicy: Forbid are wanted"
        if spec.get("startingDeadlineSeconds", 0) < 600:
            yield f"{where}: startingDeadlineSeconds: a short absence of the controller would lose the night"
        if job["template"]["spec"].get("restartPolicy") != "Never":
            yield f"{where}: podFailurePolicy needs restartPolicy Never"
        for policy in job["podFailurePolicy"]["rules"]:
            codes = policy.get("onExitCodes", {"containerName": container["name"]})
            if codes["containerName"] != container["name"]:
                yield f"{where}: podFailurePolicy names no container {codes['containerName']}"
        options = dict(zip(container["args"], container["args"][1:], strict=False))
        templates = of_kind(objects, "RayJob", options.get("--template"))
        if not templates or container["args"][:4] != ["python", "-m", "jobs", "nightly"]:
            yield f"{where}: no RayJob {options.get('--template')} to copy"
        for template in templates:
            if job["activeDeadlineSeconds"] <= template["spec"]["activeDeadlineSeconds"]:
                yield f"{where}: the creator gives up before its RayJob may"
            try:
                nightly_copy(template, attempt_name(template["metadata"]["name"], NIGHT, MAX_ATTEMPTS), NIGHT)
            except StintError as error:
                yield f"{where}: the creator refuses its template: {error}"


def pods_are_restricted(objects: Sequence[Manifest]) -> Iterator[str]:
    """Pod Security's restricted profile; besides, a read-only root, bounded resources, and no token without use."""
    bound = {s["name"] for b in of_kind(objects, "RoleBinding") for s in b["subjects"]}
    for where, template in pod_templates(objects):
        pod = template["spec"]
        context = pod.get("securityContext", {})
        if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{where}: shares something of the node"
        if context.get("runAsUser") == 0 or not context.get("runAsNonRoot"):
            yield f"{where}: may run as root"
        if pod.get("automountServiceAccountToken", True) and pod.get("serviceAccountName") not in bound:
            yield f"{where}: has an API token without rights to use it for"
        for volume in pod["volumes"]:
            if not (volume.keys() - {"name"}) <= VOLUMES_OF_RESTRICTED:
                yield f"{where}: volume {volume['name']}"
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{where}: emptyDir {volume['name']} may fill the node"
        for container in pod["containers"]:
            yield from _container_problems(f"{where}: {container['name']}", container, pod)


def _container_problems(where: str, container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        yield f"{where}: may gain privileges"
    if context.get("capabilities") != {"drop": ["ALL"]}:
        yield f"{where}: keeps capabilities"
    if not context.get("runAsNonRoot") or context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield f"{where}: runAsNonRoot or seccompProfile"
    if not context.get("readOnlyRootFilesystem"):
        yield f"{where}: writes to its image"
    if not all(container.get("resources", {}).get("limits", {}).get(k) for k in ("cpu", "memory")):
        yield f"{where}: has no limits"
    mounts = {mount["mountPath"]: mount for mount in container.get("volumeMounts", [])}
    known = {volume["name"] for volume in pod["volumes"]}
    for path, mount in mounts.items():
        if mount["name"] not in known:
            yield f"{where}: mounts {mount['name']}, which is no volume"
        if path.startswith("/var/run/secrets") and container["name"] != "autoscaler":
            yield f"{where}: only the autoscaler speaks to the API server"
    wanted = (
        WRITABLE if container["name"].startswith("ray-") and "submitter" not in container["name"] else WRITABLE[::2]
    )
    missing = [path for path in wanted if path not in mounts]
    if missing:
        yield f"{where}: cannot write to {', '.join(missing)}"


def references_resolve(objects: Sequence[Manifest]) -> Iterator[str]:
    names = {kind: {o["metadata"]["name"] for o in of_kind(objects, kind)} for kind in ("ConfigMap", "ServiceAccount")}
    for where, template in pod_templates(objects):
        pod = template["spec"]
        if pod.get("serviceAccountName") not in names["ServiceAccount"]:
            yield f"{where}: no service account {pod.get('serviceAccountName')}"
        maps = {v["configMap"]["name"] for v in pod["volumes"] if "configMap" in v}
        for container in pod["containers"]:
            maps |= {source["configMapRef"]["name"] for source in container.get("envFrom", [])}
            if not re.fullmatch(r".+/stint:(?!latest).+", container["image"]):
                yield f"{where}: image {container['image']} has no registry, or no fixed tag"
        if maps - names["ConfigMap"]:
            yield f"{where}: no ConfigMap {', '.join(sorted(maps - names['ConfigMap']))}"


def everything_is_in_one_namespace(objects: Sequence[Manifest]) -> Iterator[str]:
    namespace = of_kind(objects, "Namespace")[0]["metadata"]
    if namespace["labels"].get("pod-security.kubernetes.io/enforce") != "restricted":
        yield "Namespace: pod security is not enforced"
    for obj in objects:
        if obj["kind"] not in CLUSTER_SCOPED and obj["metadata"].get("namespace") != namespace["name"]:
            yield f"{obj['kind']} {obj['metadata']['name']} is in namespace {obj['metadata'].get('namespace')}"
        if obj["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") != "stint":
            yield f"{obj['kind']} {obj['metadata']['name']} has no label app.kubernetes.io/part-of"
    for binding in of_kind(objects, "RoleBinding"):
        for subject in binding["subjects"]:
            if subject.get("namespace") != namespace["name"]:
                yield f"RoleBinding {binding['metadata']['name']} binds an account of {subject.get('namespace')}"


def rights_are_least(objects: Sequence[Manifest]) -> Iterator[str]:
    allowed = {"rayjobs": {"get", "list", "watch", "create", "delete"}, "jobs": {"get"}, "cronjobs": {"get"}}
    for kind in ("ClusterRole", "ClusterRoleBinding"):
        for obj in of_kind(objects, kind):
            yield f"{kind} {obj['metadata']['name']}: rights beyond the namespace"
    for role in of_kind(objects, "Role"):
        for line in role["rules"]:
            for resource in line["resources"]:
                if set(line["verbs"]) - allowed.get(resource, set()):
                    yield f"Role {role['metadata']['name']}: {line['verbs']} on {resource}"


def heads_are_not_evicted(objects: Sequence[Manifest]) -> Iterator[str]:
    """For pods of a custom owner Kubernetes takes an integer minAvailable alone; below it nothing may be evicted."""
    budgets = of_kind(objects, "PodDisruptionBudget")
    for where, template in pod_templates(objects):
        labels = template["metadata"]["labels"]
        covering = [b["spec"] for b in budgets if b["spec"]["selector"]["matchLabels"].items() <= labels.items()]
        if where.endswith(": head") != bool(covering):
            yield f"{where}: disruption budgets {len(covering)}"
        for spec in covering:
            if not isinstance(spec.get("minAvailable"), int) or spec["minAvailable"] < 100 or "maxUnavailable" in spec:
                yield f"{where}: the budget lets heads be evicted"


RULES: tuple[Rule, ...] = (
    autoscaler_v2_makes_new_pods,
    workers_own_whole_cpus,
    workers_are_drained_before_they_are_killed,
    heads_take_no_work,
    groups_are_as_kuberay_wants_them,
    object_store_fits_shared_memory,
    tokens_are_not_switched_off,
    names_fit,
    entrypoints_are_one_plain_command,
    rayjobs_end_in_good_order,
    kueue_can_admit,
    nights_are_made_once,
    pods_are_restricted,
    references_resolve,
    everything_is_in_one_namespace,
    rights_are_least,
    heads_are_not_evicted,
)
