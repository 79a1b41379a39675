"""`stint nightly`, run by a CronJob: makes the night's RayJob, waits for its end, returns its result.

Which RayJob that is follows from template and date alone: `<template>-<yyyymmdd>`. So a restarted pod, a second pod or
somebody who starts it by hand all come to the same one: what runs is followed, what has succeeded is reported, and only
when every attempt of the night has ended without success is the next one (`-a2`, …) created, one for each call. Another
attempt is always safe, because a run does what the ledger misses. A missed night is not caught up here: the next one
finds its files where it looks at them, see `input.days`.

The template is a suspended RayJob of the cluster; the copy is what runs. Field names and states are those of KubeRay
1.7's `ray.io/v1`.

It polls. A watch would save nothing at one request in five seconds, and has to be mended when it expires.
"""

from __future__ import annotations

import argparse
import copy
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from jobs.console import Console
from jobs.errors import BAD_SPEC, COMPLETE, Interrupted, RunFailed, SpecError
from jobs.launch.attempts import ENDED, REMEDIES, Attempt, Unreachable, exit_code
from jobs.launch.kubernetes_api import KubeApi, KubeRefused, RayJob
from jobs.spec.days import Days

LOG_LINES = 20
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
    if len(template) > MAX_TEMPLATE_CHARS or not _DNS_1035.fullmatch(template):
        raise SpecError(
            f"{template!r} cannot name RayJobs: with date and attempt KubeRay allows {MAX_NAME_CHARS} characters",
            f"name the template with at most {MAX_TEMPLATE_CHARS} lower-case letters, digits and '-', a letter first, "
            "no '-' last",
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


def night_of(zone: str | None, scheduled: datetime | None, now: datetime | None = None) -> date:
    """The date that a call belongs to: when it was meant to start, rather than when a late or retried pod did.

    `scheduled`: see `KubeApi.scheduled_at`; without it, now. `zone` None: the zone that `scheduled` is in (that of the
    CronJob), else UTC. Raises SpecError for an unknown zone.
    """
    moment = scheduled or now or datetime.now(UTC)
    if zone is None:
        return moment.date()
    try:
        return moment.astimezone(ZoneInfo(zone)).date()
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise SpecError(f"unknown time zone {zone!r}", "give --timezone or TZ as Europe/Berlin") from error


def pause(pause_s: float, interrupted: Callable[[], bool], check_s: float = 0.2) -> None:
    """`time.sleep` that raises Interrupted soon after SIGTERM."""
    until_s = time.monotonic() + pause_s
    while not interrupted():
        if (left_s := until_s - time.monotonic()) <= 0:
            return
        time.sleep(min(left_s, check_s))
    raise Interrupted("interrupted while waiting; a RayJob that was created goes on", "run again to follow it")


@dataclass(kw_only=True)
class NightlyRun:
    """One night of one template. `complete()` may be called anywhere, any number of times, also at once."""

    api: KubeApi
    template: str
    as_of: date
    poll_s: float = 5.0
    driver_patience_s: float = 30.0
    """How long the head is asked for the exit code of a driver that has ended."""
    _drivers: dict[str, Attempt] = field(default_factory=dict)
    """How drivers ended, by Ray's submission id."""
    _said: str = ""

    def complete(self) -> int:
        """The night's exit code (`jobs.errors`). Raises StintError where there is none to be had."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            name = attempt_name(self.template, self.as_of, attempt)
            while (found := self.api.rayjob(name)) and State.of(found).deleting:
                self._say_new(f"RayJob {name} is being deleted; waiting until it is gone")
                self.api.pause(self.poll_s)
            if found is None:
                self._create(name)
                return self._follow(name)
            state = self._state(found)
            if not state.ended:
                self.api.say(f"RayJob {name} exists; following it")
                return self._follow(name)
            if state.job == "SUCCEEDED":
                self.api.say(f"RayJob {name} has succeeded already: nothing to do")
                self.api.say(f"to score that night once more: kubectl -n {self.api.namespace} delete rayjob {name}")
                return COMPLETE
            self.api.say(f"RayJob {name} ended earlier without success: {state}")
        raise RunFailed(
            f"{MAX_ATTEMPTS} attempts at {self.as_of} have failed",
            f"mend the cause, then kubectl -n {self.api.namespace} delete rayjob -l {TEMPLATE_LABEL}={self.template}",
        )

    def prune(self, keep_nights: int) -> None:
        """Delete the ended RayJobs of all but the newest nights. Not being allowed to is no failure of the night."""
        try:
            listed = self.api.call("list", "RayJob", label_selector=f"{TEMPLATE_LABEL}={self.template}") or {
                "items": ()
            }
            for name in outdated(listed["items"], keep_nights):
                self.api.call("delete", "RayJob", name)  # its submitter Job and pods go with it
                self.api.say(f"RayJob {name} deleted: older than the last {keep_nights} nights")
        except (KubeRefused, RunFailed) as error:
            self.api.say(f"old RayJobs stay: {error}")

    def _say_new(self, text: str) -> None:
        """Unless it was the last that was said so."""
        if text != self._said:
            self._said = text
            self.api.say(text)

    def _create(self, name: str) -> None:
        template = self.api.rayjob(self.template)
        if template is None:
            raise SpecError(
                f"no RayJob {self.template} in namespace {self.api.namespace} to copy",
                "apply the template (kubectl apply -k), or install KubeRay's CRDs if kubectl knows no rayjobs",
            )
        rayjob = nightly_copy(template, name, self.as_of)
        if loses_exit_codes(rayjob["spec"]):
            self.api.say(
                "note: ttlSecondsAfterFinished is below 60: exit codes 2 to 5 may be lost with the cluster, as 1"
            )
        if self.api.call("create", "RayJob", name, body=rayjob, field_manager="stint-nightly"):
            self.api.say(f"RayJob {name} created: {rayjob['spec']['entrypoint']}")
        else:
            self.api.say(f"RayJob {name} was created by somebody else; following it")

    def _follow(self, name: str) -> int:
        """Wait for the end of a RayJob, one line for each change of its state."""
        state: State | None = None
        while found := self.api.rayjob(name):
            state = self._state(found)
            self._say_new(f"RayJob {name}: {state}")
            if state.ended:
                break
            if state.job == "FAILED":
                with suppress(RunFailed):  # the sooner the better: the cluster goes soon after the end
                    self._driver(state, patience_s=0)
            self.api.pause(self.poll_s)
        if state is None or (found is None and state.job not in ENDED):  # else deleted with its cluster, by a rule
            raise RunFailed(
                f"RayJob {name} was deleted before its end",
                "run again: what it committed stays, the rest is scored",
            )
        return self._conclude(name, state)

    def _conclude(self, name: str, state: State) -> int:
        code, of_driver = BAD_SPEC if state.deployment == REFUSED else exit_code(state.job, None), ""
        if state.job not in ("SUCCEEDED", "STOPPED"):
            try:
                driver = self._driver(state, self.driver_patience_s)
            except RunFailed as error:
                self.api.say(f"the driver's exit code could not be had ({error}); going by the RayJob's state")
            else:  # what Ray says of its driver goes before what KubeRay says of the RayJob
                code = driver.code
                of_driver = "" if driver.exit_code is None else f", driver's exit code {driver.exit_code}"
        if code != COMPLETE and state.message:
            tail = state.message.rstrip().splitlines()[-LOG_LINES:]
            self.api.say("\n".join(["the last that it said:", *(f"  {line}" for line in tail)]))
        self.api.say(f"night {self.as_of}: RayJob {name} ended: {state}{of_driver}; exit code {code}")
        kubectl = f"kubectl -n {self.api.namespace}"
        self.api.say(f"look: {kubectl} describe rayjob {name}; where a Job submits it: {kubectl} logs job/{name}")
        if code != COMPLETE:
            self.api.say(f"next: {REMEDIES[code]}")
        return code

    def _driver(self, state: State, patience_s: float) -> Attempt:
        """How the driver ended, by the head's job server: only there is its exit code kept. A head that does not
        answer is asked for so long. Raises RunFailed with the reason where there is nothing to be had."""
        until_s = time.monotonic() + patience_s
        while state.job_id not in self._drivers:
            if not (state.dashboard and state.job_id):
                raise RunFailed("the RayJob never had a driver")
            from jobs.launch.job_server import JobServer

            address = state.dashboard if "://" in state.dashboard else f"http://{state.dashboard}"
            try:
                driver = JobServer(address).attempt(state.job_id)
            except Unreachable:
                if time.monotonic() >= until_s:
                    raise
                self.api.pause(min(2.0, self.poll_s))
                continue
            if not driver.ended:
                raise RunFailed(f"the driver is {driver.status}")
            self._drivers[state.job_id] = driver
        return self._drivers[state.job_id]

    def _state(self, rayjob: RayJob) -> State:
        if labels_of(rayjob).get(TEMPLATE_LABEL) != self.template:
            name, label = rayjob["metadata"]["name"], f"{TEMPLATE_LABEL}={self.template}"
            raise SpecError(
                f"RayJob {name} exists, but was not made from {self.template} (no label {label})",
                f"delete or rename {name}, or the template",
            )
        return State.of(rayjob)


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint nightly`; returns the night's exit code. Raises StintError.

    `--job`, the CronJob's Job that this pod belongs to, says what night it is when `--as-of` does not.
    """
    api = KubeApi.connect(arguments.namespace, partial(pause, interrupted=console.interrupts()), console.say)
    given: Days | int | None = arguments.as_of
    if isinstance(given, Days):
        as_of = given.last
    else:
        scheduled = api.scheduled_at(arguments.job) if arguments.job and given is None else None
        as_of = night_of(arguments.timezone or None, scheduled) - timedelta(given or 0)
    night = NightlyRun(api=api, template=arguments.template, as_of=as_of)
    code = night.complete()
    if arguments.keep > 0:
        night.prune(arguments.keep)
    return code
