"""A night's RayJob as plain values: its name, how it is copied from the template, what its status means.

The template is a suspended RayJob of the cluster; the copy is what runs. Field names and states are those of KubeRay
1.7's `ray.io/v1`. Nothing here talks to a server.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from jobs.errors import SpecError

RayJob = dict[str, Any]

MAX_NAME_CHARS = 47
"""KubeRay's limit: it derives names of clusters, services and pods from it."""
MAX_ATTEMPTS = 99
MAX_TEMPLATE_CHARS = MAX_NAME_CHARS - len("-yyyymmdd") - len(f"-a{MAX_ATTEMPTS}")
TEMPLATE_LABEL = "stint.dev/template"
AS_OF_LABEL = "stint.dev/as-of"
COPY_LABELS = "stint.dev/copy-labels"
"""Annotation of the template: a JSON object of labels that the copy gets and the template itself must not have."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_PASSED_ON = re.compile(r"([^/]+\.)?(ray\.io|kueue\.x-k8s\.io)(/|$)")
"""Annotations of these domains and their subdomains are copied. Those of whatever deployed the template are not: a
deployment tool would take the copy for a stray of its own and delete it."""

REFUSED = "ValidationFailed"

_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def attempt_name(template: str, as_of: date, attempt: int) -> str:
    """`<template>-<yyyymmdd>`, from the second attempt on `-a2`, …: the same for everybody who asks.

    Raises SpecError where KubeRay would refuse the name, at the first attempt already if only the last were too long.
    """
    if not _DNS_1035.fullmatch(template):
        raise SpecError(
            f"{template!r} cannot name RayJobs",
            "name the template with lower-case letters, digits and '-', a letter first, no '-' last",
        )
    if len(template) > MAX_TEMPLATE_CHARS:
        raise SpecError(
            f"the template's name {template} has {len(template)} characters: with date and attempt it is longer than "
            f"the {MAX_NAME_CHARS} that KubeRay allows",
            f"shorten the template's name to {MAX_TEMPLATE_CHARS} characters",
        )
    return f"{template}-{as_of:%Y%m%d}" + (f"-a{attempt}" if attempt > 1 else "")


def nightly_copy(template: RayJob, name: str, as_of: date) -> RayJob:
    """The RayJob of one night, ready to be created. Raises SpecError if the template is none.

    Labels come from the template's `stint.dev/copy-labels`, not from its own labels. With Kueue's queue name among
    them the copy is created suspended, as Kueue's own webhook would do, and Kueue starts it.
    """
    metadata, spec = template["metadata"], copy.deepcopy(template["spec"])
    source = metadata["name"]
    if not spec.get("suspend"):
        raise SpecError(
            f"RayJob {source} is not suspended, so it is a job rather than a template",
            f"set spec.suspend: true in {source}, or name another template",
        )
    if QUEUE_LABEL in labels_of(template):
        raise SpecError(
            f"RayJob {source} has the label {QUEUE_LABEL}, so Kueue would start the template itself",
            f"move the label into its annotation {COPY_LABELS}",
        )
    if not spec.get("entrypoint"):
        raise SpecError(f"RayJob {source} has no entrypoint", "set spec.entrypoint: python -m jobs run SPEC")
    annotations = metadata.get("annotations") or {}
    text = annotations.get(COPY_LABELS) or "{}"
    try:
        labels = TypeAdapter(dict[str, str]).validate_json(text)
    except ValidationError as error:
        raise SpecError(
            f"the annotation {COPY_LABELS} of RayJob {source} is not a JSON object of strings: {text}",
            f'write it as {{"{QUEUE_LABEL}": "nightly"}}',
        ) from error
    spec["entrypoint"] += f" --as-of {as_of.isoformat()}"
    spec["suspend"] = QUEUE_LABEL in labels
    passed_on = {key: value for key, value in annotations.items() if _PASSED_ON.match(key)}
    return {
        "apiVersion": template["apiVersion"],
        "kind": template["kind"],
        "metadata": {
            "name": name,
            "namespace": metadata["namespace"],
            "labels": {**labels, TEMPLATE_LABEL: source, AS_OF_LABEL: as_of.isoformat()},
            **({"annotations": passed_on} if passed_on else {}),
        },
        "spec": spec,
    }


def loses_exit_codes(spec: Mapping[str, Any]) -> bool:
    """Whether the cluster may be gone before anybody can ask it for the driver's exit code."""
    return bool(spec.get("shutdownAfterJobFinishes")) and (spec.get("ttlSecondsAfterFinished") or 0) < 60


def outdated(rayjobs: Iterable[RayJob], keep_nights: int) -> list[str]:
    """Names of the ended RayJobs that do not belong to the newest `keep_nights` nights, oldest first."""
    dated = [(night, rayjob) for rayjob in rayjobs if (night := labels_of(rayjob).get(AS_OF_LABEL))]
    kept = sorted({night for night, _ in dated})[-keep_nights:]
    old = [(night, each["metadata"]["name"]) for night, each in dated if night not in kept and State.of(each).ended]
    return [name for _, name in sorted(old)]


class State(BaseModel, frozen=True):
    """What a RayJob's status says. Empty strings: KubeRay has not said it yet."""

    deployment: str = Field("", alias="jobDeploymentStatus")
    """Cluster and submission."""
    job: str = Field("", alias="jobStatus")
    """The driver, as Ray has it."""
    reason: str = ""
    message: str = ""
    """KubeRay's explanation, or the tail of a failed driver's log: up to 20,000 characters."""
    job_id: str = Field("", alias="jobId")
    dashboard: str = Field("", alias="dashboardURL")
    """host:port of the head's dashboard."""
    deleting: bool

    @classmethod
    def of(cls, rayjob: RayJob) -> State:
        deleting = "deletionTimestamp" in rayjob["metadata"]
        return cls.model_validate({**(rayjob.get("status") or {}), "deleting": deleting})

    @property
    def ended(self) -> bool:
        """Nothing more will happen. (`Failed` with retries left is never shown: KubeRay writes `Retrying`.)"""
        return self.deployment in ("Complete", "Failed", REFUSED)

    def __str__(self) -> str:
        words = [self.deployment or "new", self.job and f"driver {self.job}", self.reason and f"({self.reason})"]
        return " ".join(filter(None, words)) + (", being deleted" if self.deleting else "")


def labels_of(rayjob: RayJob) -> Mapping[str, str]:
    return rayjob["metadata"].get("labels") or {}
