"""The few calls to the Kubernetes API server that a night needs, through the official client.

Trouble that passes (429, 5xx, resets, timeouts) is retried with growing pauses; what stays is a StintError that says
what to change. The client is an extra (`pip install 'stint[k8s]'`) and imported by `connect` alone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from zoneinfo import ZoneInfo

from jobs.errors import RunFailed, SpecError, StintError
from jobs.launch.rayjob import TEMPLATE_LABEL, RayJob

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

PATIENCE_S = 600.0
"""How long an API server may be away, at one stretch, before a night gives up on it."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
REQUEST_TIMEOUT_S = 30
SCHEDULED_AT = "batch.kubernetes.io/cronjob-scheduled-timestamp"
"""Annotation that the CronJob controller puts on each Job, RFC 3339 in the CronJob's own time zone."""
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
RAYJOBS = ("ray.io", "v1", "rayjobs")

T = TypeVar("T")


class KubeRefused(SpecError):
    """The API server refused for good: credentials, permissions, or an object that it does not accept."""


@dataclass(frozen=True, kw_only=True)
class KubeApi:
    """RayJobs and Jobs of one namespace. Every call may raise KubeRefused, RunFailed, or what `pause` raises."""

    client: ApiClient
    namespace: str
    pause: Callable[[float], None]
    """Waits that many seconds; may raise to end everything."""
    say: Callable[[str], None]
    patience_s: float = PATIENCE_S
    first_pause_s: float = FIRST_PAUSE_S

    def rayjob(self, name: str) -> RayJob | None:
        """None: there is no such RayJob (or KubeRay's CRD is not installed, which answers alike)."""
        from kubernetes.client import CustomObjectsApi
        from kubernetes.client.exceptions import NotFoundException

        group, version, plural = RAYJOBS
        api = CustomObjectsApi(self.client)
        try:
            return self._call(
                f"get RayJob {name}",
                lambda: _fields(
                    api.get_namespaced_custom_object(
                        group, version, self.namespace, plural, name, _request_timeout=REQUEST_TIMEOUT_S
                    )
                ),
            )
        except NotFoundException:
            return None

    def create_rayjob(self, rayjob: RayJob) -> bool:
        """False: one of that name exists, created by somebody else, or by a request of ours whose answer was lost."""
        from kubernetes.client import CustomObjectsApi
        from kubernetes.client.exceptions import ConflictException, NotFoundException

        group, version, plural = RAYJOBS
        api = CustomObjectsApi(self.client)
        name = rayjob["metadata"]["name"]
        try:
            self._call(
                f"create RayJob {name}",
                lambda: api.create_namespaced_custom_object(
                    group,
                    version,
                    self.namespace,
                    plural,
                    rayjob,
                    field_manager="stint-nightly",
                    _request_timeout=REQUEST_TIMEOUT_S,
                ),
            )
        except ConflictException:
            return False
        except NotFoundException as error:
            raise KubeRefused(
                f"namespace {self.namespace} or the kind RayJob (ray.io/v1) went away while {name} was created",
                "install KubeRay's CRDs and create the namespace, then run again",
            ) from error
        return True

    def rayjobs_of(self, template: str) -> list[RayJob]:
        """Every RayJob that was made from a template."""
        from kubernetes.client import CustomObjectsApi

        group, version, plural = RAYJOBS
        api = CustomObjectsApi(self.client)
        listed = self._call(
            "list RayJobs",
            lambda: _fields(
                api.list_namespaced_custom_object(
                    group,
                    version,
                    self.namespace,
                    plural,
                    label_selector=f"{TEMPLATE_LABEL}={template}",
                    _request_timeout=REQUEST_TIMEOUT_S,
                )
            ),
        )
        items: list[RayJob] = listed["items"]
        return items

    def delete_rayjob(self, name: str) -> None:
        """Its submitter Job and pods go with it. No error if it is gone already."""
        from kubernetes.client import CustomObjectsApi
        from kubernetes.client.exceptions import NotFoundException

        group, version, plural = RAYJOBS
        api = CustomObjectsApi(self.client)
        try:
            self._call(
                f"delete RayJob {name}",
                lambda: api.delete_namespaced_custom_object(
                    group, version, self.namespace, plural, name, _request_timeout=REQUEST_TIMEOUT_S
                ),
            )
        except NotFoundException:
            return

    def scheduled_at(self, job: str) -> datetime:
        """When a CronJob meant its Job to start, or else when the Job was made; in the CronJob's zone.

        A Job that somebody made of a CronJob by hand is owned by it, but has no scheduled time.
        """
        from kubernetes.client import BatchV1Api
        from kubernetes.client.exceptions import NotFoundException

        api = BatchV1Api(self.client)
        try:
            found = self._call(
                f"get Job {job}",
                lambda: api.read_namespaced_job(job, self.namespace, _request_timeout=REQUEST_TIMEOUT_S),
            )
        except NotFoundException as error:
            raise KubeRefused(
                f"no Job {job} in namespace {self.namespace}, so the night is not known", "give --as-of DATE"
            ) from error
        metadata: Any = found.metadata  # all optional in the client's types; a stored Job has them
        if written := (metadata.annotations or {}).get(SCHEDULED_AT):
            return datetime.fromisoformat(written)
        made = cast(datetime, metadata.creation_timestamp)
        owners = [owner.name for owner in metadata.owner_references or () if owner.kind == "CronJob"]
        zone = self._zone_of(owners[0]) if owners else None
        return made.astimezone(ZoneInfo(zone)) if zone else made

    def _zone_of(self, cronjob: str) -> str | None:
        """The zone that a CronJob's schedule is in; None where it names none."""
        from kubernetes.client import BatchV1Api
        from kubernetes.client.exceptions import NotFoundException

        api = BatchV1Api(self.client)
        try:
            found = self._call(
                f"get CronJob {cronjob}",
                lambda: api.read_namespaced_cron_job(cronjob, self.namespace, _request_timeout=REQUEST_TIMEOUT_S),
            )
        except NotFoundException:
            return None  # deleted since, with its Jobs to follow
        spec: Any = found.spec
        return cast("str | None", spec.time_zone)

    def _call(self, what: str, request: Callable[[], T]) -> T:
        """Raises NotFoundException and ConflictException as they are; they are answers rather than trouble."""
        from kubernetes.client.exceptions import ApiException, ConflictException, NotFoundException
        from urllib3.exceptions import HTTPError

        started_s, pause_s = time.monotonic(), self.first_pause_s
        while True:
            try:
                return request()
            except (NotFoundException, ConflictException):
                raise
            except ApiException as error:
                if not _passes(error.status):
                    raise _refused(what, self.namespace, error) from error
                trouble, asked_s = f"HTTP {error.status}", _retry_after_s(error)
            except HTTPError as error:
                trouble, asked_s = f"{type(error).__name__}: {error}", 0.0
            away_s = time.monotonic() - started_s
            if away_s >= self.patience_s:
                raise RunFailed(
                    f"{what}: the API server has not answered for {away_s:.0f} s ({trouble})",
                    "a RayJob that was created goes on by itself; run again to follow it",
                )
            self.say(f"{what}: {trouble}; trying again")
            self.pause(max(asked_s, pause_s))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def connect(namespace: str | None, pause: Callable[[float], None], say: Callable[[str], None]) -> KubeApi:
    """The API server of the pod's service account, or of KUBECONFIG where that is set, or of ~/.kube/config.

    `namespace` None: the pod's own, or the one of the current context. Raises StintError.
    """
    try:
        from kubernetes import client
        from kubernetes import config as untyped_config
    except ImportError as error:
        raise SpecError("the Kubernetes client is not installed", "pip install 'stint[k8s]'") from error

    config: Any = untyped_config
    settings = client.Configuration()
    try:
        if SERVICE_ACCOUNT_NAMESPACE.exists() and "KUBECONFIG" not in os.environ:
            config.load_incluster_config(client_configuration=settings)
            own_namespace = SERVICE_ACCOUNT_NAMESPACE.read_text().strip()
        else:
            file = os.environ.get("KUBECONFIG")
            config.load_kube_config(config_file=file, client_configuration=settings)
            own_namespace = config.list_kube_config_contexts(file)[1]["context"].get("namespace", "default")
    except config.ConfigException as error:
        raise SpecError(
            f"no way to a Kubernetes API server: {error}", "run in a pod with a service account, or set KUBECONFIG"
        ) from error
    settings.retries = False  # urllib3's own retries would sit in a pause that SIGTERM cannot end
    return KubeApi(client=client.ApiClient(settings), namespace=namespace or own_namespace, pause=pause, say=say)


def _passes(status: int | None) -> bool:
    return status in (408, 429) or (status or 0) >= 500


def _retry_after_s(error: Any) -> float:
    """The server's Retry-After, at most the longest pause; 0 without one."""
    asked = (error.headers or {}).get("Retry-After", "")
    return min(float(asked), LONGEST_PAUSE_S) if asked.isdigit() else 0.0


def _refused(what: str, namespace: str, error: Any) -> StintError:
    """An ApiException that trying again would not change, in words. Status 0: TLS (see the client's rest.py)."""
    try:
        told = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        told = error.reason
    next_steps = {
        0: "check the certificate authority and the address of the API server",
        401: "check the service account's token, or KUBECONFIG",
        403: f"grant it: kubectl auth can-i --list --namespace {namespace} shows what the service account may do",
    }
    return KubeRefused(
        f"{what} in namespace {namespace}: the API server refused with {error.status}: {told}",
        next_steps.get(error.status, "mend what the message names in the RayJob template, then run again"),
    )


def _fields(answer: object) -> dict[str, Any]:
    assert isinstance(answer, dict)
    return answer
