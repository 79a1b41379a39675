"""The few calls to the Kubernetes API server that a night needs, through the official client.

Trouble that passes (429, 5xx, resets, timeouts) is retried with growing pauses; what stays is a StintError that says
what to change. The client is an extra (`pip install 'stint[k8s]'`) and imported by `KubeApi` alone.

The kinds are known beforehand, so nothing is discovered: the client's discovery would ask for `/version` and `/apis`
without a time limit, and would keep the answers in a file of the temporary folder that is never out of date.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from jobs.errors import RunFailed, SpecError

RayJob = dict[str, Any]
LONGEST_PAUSE_S = 30.0
REQUEST_TIMEOUT_S = 30
SCHEDULED_AT = "batch.kubernetes.io/cronjob-scheduled-timestamp"
"""Annotation that the CronJob controller puts on each Job, RFC 3339 in the CronJob's own time zone."""
SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
KINDS = {"RayJob": ("ray.io", "rayjobs"), "Job": ("batch", "jobs"), "CronJob": ("batch", "cronjobs")}
"""Kind → (API group, plural); all of version v1."""


class KubeRefused(SpecError):
    """The API server refused for good: credentials, permissions, or an object that it does not accept."""


@dataclass(frozen=True, kw_only=True)
class KubeApi:
    """RayJobs and Jobs of one namespace. Every call may raise KubeRefused, RunFailed, or what `pause` raises."""

    client: Any
    """The client's CustomObjectsApi, which gives and takes plain fields of any kind; the package has no types."""
    namespace: str
    pause: Callable[[float], None]
    """Waits that many seconds; may raise to end everything."""
    say: Callable[[str], None]
    patience_s: float = 600.0
    """How long an API server may be away, at one stretch, before a night gives up on it."""
    first_pause_s: float = 1.0

    @classmethod
    def connect(cls, namespace: str | None, pause: Callable[[float], None], say: Callable[[str], None]) -> KubeApi:
        """The API server of the pod's service account, or of KUBECONFIG where that is set, or of ~/.kube/config.

        `namespace` None: the pod's own, or the one of the current context. Raises StintError.
        """
        try:
            from kubernetes import client, config
        except ImportError as error:
            raise SpecError("the Kubernetes client is not installed", "pip install 'stint[k8s]'") from error

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
        objects = client.CustomObjectsApi(client.ApiClient(settings))
        return cls(client=objects, namespace=namespace or own_namespace, pause=pause, say=say)

    def rayjob(self, name: str) -> RayJob | None:
        """None: there is no such RayJob (or KubeRay's CRD is not installed, which answers alike)."""
        return self.call("get", "RayJob", name)

    def scheduled_at(self, job: str) -> datetime:
        """When a CronJob meant its Job to start, or else when the Job was made; in the CronJob's zone.

        A Job that somebody made of a CronJob by hand is owned by it, but has no scheduled time.
        """
        found = self.call("get", "Job", job)
        if found is None:
            raise KubeRefused(
                f"no Job {job} in namespace {self.namespace}, so the night is not known", "give --as-of DATE"
            )
        metadata = found["metadata"]
        if scheduled := (metadata.get("annotations") or {}).get(SCHEDULED_AT):
            return datetime.fromisoformat(scheduled)
        created = datetime.fromisoformat(metadata["creationTimestamp"])
        owners = [owner["name"] for owner in metadata.get("ownerReferences") or () if owner["kind"] == "CronJob"]
        # The CronJob may be deleted, its Jobs soon to follow.
        cronjob = self.call("get", "CronJob", owners[0]) if owners else None
        zone = cronjob["spec"].get("timeZone") if cronjob else None
        return created.astimezone(ZoneInfo(zone)) if zone else created

    def call(self, verb: str, kind: str, name: str | None = None, **arguments: Any) -> dict[str, Any] | None:
        """The answer as plain fields; None for 404, and none of them for 409: answers, too, rather than trouble.

        `verb` is get, list, create or delete. Where something is to be created, 404 is a refusal, and 409 says that it
        exists: somebody else's, or of a request of ours whose answer was lost.
        """
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        group, plural = KINDS[kind]
        what = f"{verb} {kind} {name}" if name else f"{verb} {plural}"
        request = getattr(self.client, f"{verb}_namespaced_custom_object")
        if name and "body" not in arguments:
            arguments["name"] = name
        started_s, pause_s = time.monotonic(), self.first_pause_s
        while True:
            try:
                answer: dict[str, Any] = request(
                    group, "v1", self.namespace, plural, _request_timeout=REQUEST_TIMEOUT_S, **arguments
                )
                return answer
            except ApiException as error:
                if error.status == HTTPStatus.CONFLICT:
                    return {}
                if error.status == HTTPStatus.NOT_FOUND and verb != "create":
                    return None
                if error.status not in (408, 429) and error.status < 500:
                    raise self._refused(what, error) from error
                trouble, asked = f"HTTP {error.status}", (error.headers or {}).get("Retry-After", "")
            except HTTPError as error:
                trouble, asked = f"{type(error).__name__}: {error}", ""
            away_s = time.monotonic() - started_s
            if away_s >= self.patience_s:
                raise RunFailed(
                    f"{what}: the API server has not answered for {away_s:.0f} s ({trouble})",
                    "a RayJob that was created goes on by itself; run again to follow it",
                )
            self.say(f"{what}: {trouble}; trying again")
            self.pause(max(pause_s, min(float(asked), LONGEST_PAUSE_S) if asked.isdigit() else 0.0))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _refused(self, what: str, error: Any) -> KubeRefused:
        """An error that trying again would not change, in words. Status 0: TLS (see the client's rest.py)."""
        try:
            reason = json.loads(error.body or "")["message"]
        except (ValueError, KeyError, TypeError):
            reason = error.reason
        next_steps = {
            0: "check the certificate authority and the address of the API server",
            401: "check the service account's token, or KUBECONFIG",
            403: f"grant it: kubectl auth can-i --list --namespace {self.namespace} shows what the account may do",
        }
        return KubeRefused(
            f"{what} in namespace {self.namespace}: the API server refused with {error.status}: {reason}",
            next_steps.get(error.status, "mend what the message names in the RayJob template, then run again"),
        )
