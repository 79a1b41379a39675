"""`python -m jobs nightly`, run by a CronJob: makes the night's RayJob, waits for its end, returns its result.

Which RayJob that is follows from template and date alone: `<template>-<yyyymmdd>`. So a restarted pod, a second pod or
somebody who starts it by hand all come to the same one: what runs is followed, what has succeeded is reported, and only
when every attempt of the night has ended without success is the next one (`-a2`, …) created, one for each call. Another
attempt is always safe, because a run does what the ledger misses; a missed night needs no catching up here either, the
next one finds its rows.

It polls. A watch would save nothing at one request in five seconds, and has to be mended when it expires.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from jobs.console import Console
from jobs.errors import (
    BAD_ROWS,
    BAD_SPEC,
    COMPLETE,
    FAILED,
    GATE_REFUSED,
    INTERRUPTED,
    Interrupted,
    RunFailed,
    SpecError,
)
from jobs.launch.head import DashboardSilent, driver_end, token_from
from jobs.launch.kubernetes_api import KubeApi, KubeRefused, connect
from jobs.launch.rayjob import (
    JOB_ENDED,
    MAX_ATTEMPTS,
    STOPPED,
    SUCCEEDED,
    TEMPLATE_LABEL,
    DriverEnd,
    RayJob,
    State,
    attempt_name,
    exit_code,
    loses_exit_codes,
    made_from,
    nightly_copy,
    outdated,
)

POLL_S = 5.0
DRIVER_PATIENCE_S = 30.0
"""How long the head is asked for the exit code of a driver that has ended."""
LOG_LINES = 20
NEXT_STEPS = {
    COMPLETE: "",
    FAILED: "read the log; run again, or let the next night catch up",
    BAD_SPEC: "mend what the log names in the spec or the template; run again",
    BAD_ROWS: "look at the table of reasons in the log; raise limits.bad_rows knowingly; run again",
    GATE_REFUSED: "look at the table in the log; more calibration rows, or precision: fp32",
    INTERRUPTED: "run again; nothing is lost",
}


def nightly(
    *,
    template: str,
    namespace: str | None,
    as_of: date | None,
    zone: str | None,
    job: str | None,
    keep_nights: int,
    interrupted: Callable[[], bool],
    say: Callable[[str], None],
) -> int:
    """The whole command; returns the night's exit code. Raises StintError.

    `job`: the CronJob's Job that this pod belongs to, which says what night it is when `as_of` does not.
    """
    pause = Pauses(interrupted=interrupted)
    api = connect(namespace, pause, say)
    as_of = as_of or night_of(zone, api.scheduled_at(job) if job else None)
    night = Night(api=api, template=template, as_of=as_of, token=token_from(), pause=pause, say=say)
    code = night.complete()
    if keep_nights > 0:
        night.prune(keep_nights)
    return code


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
        raise SpecError(f"unknown time zone {zone!r}", "give an IANA name, as Europe/Berlin") from error


@dataclass(frozen=True, kw_only=True)
class Pauses:
    """`time.sleep` that ends with Interrupted soon after SIGTERM."""

    interrupted: Callable[[], bool]
    look_s: float = 0.2

    def __call__(self, pause_s: float) -> None:
        until_s = time.monotonic() + pause_s
        while True:
            if self.interrupted():
                raise Interrupted(
                    "interrupted while waiting; a RayJob that was created goes on", "run again to follow it"
                )
            left_s = until_s - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(left_s, self.look_s))


@dataclass(kw_only=True)
class Night:
    """One night of one template. `complete()` may be called anywhere, any number of times, also at once."""

    api: KubeApi
    template: str
    as_of: date
    token: str | None
    """For heads with RAY_AUTH_MODE=token."""
    pause: Callable[[float], None]
    say: Callable[[str], None]
    poll_s: float = POLL_S
    driver_patience_s: float = DRIVER_PATIENCE_S
    _ends: dict[str, DriverEnd] = field(default_factory=dict)
    """How drivers ended, by Ray's submission id."""

    def complete(self) -> int:
        """The night's exit code (`jobs.errors`). Raises StintError where there is none to be had."""
        for attempt in range(1, MAX_ATTEMPTS + 1):
            name = attempt_name(self.template, self.as_of, attempt)
            found = self._standing(name)
            if found is None:
                self._create(name)
                return self._follow(name)
            state = self._state(found)
            if not state.ended:
                self.say(f"RayJob {name} exists; following it")
                return self._follow(name)
            if state.succeeded:
                self.say(f"RayJob {name} has succeeded already: nothing to do")
                self.say(f"to score that night once more: kubectl -n {self.api.namespace} delete rayjob {name}")
                return COMPLETE
            self.say(f"RayJob {name} ended earlier without success: {state}")
        raise RunFailed(
            f"{MAX_ATTEMPTS} attempts at {self.as_of} have failed",
            f"mend the cause, then kubectl -n {self.api.namespace} delete rayjob -l {self._selector()}",
        )

    def prune(self, keep_nights: int) -> None:
        """Delete the ended RayJobs of all but the newest nights. Not being allowed to is no failure of the night."""
        try:
            for name in outdated(self.api.rayjobs_of(self.template), keep_nights):
                self.api.delete_rayjob(name)
                self.say(f"RayJob {name} deleted: older than the last {keep_nights} nights")
        except (KubeRefused, RunFailed) as error:
            self.say(f"old RayJobs stay: {error}")

    def _standing(self, name: str) -> RayJob | None:
        """The RayJob of that name once it is not being deleted any more; None: the name is free."""
        told = False
        while (found := self.api.rayjob(name)) is not None and State.of(found).deleting:
            if not told:
                self.say(f"RayJob {name} is being deleted; waiting until it is gone")
                told = True
            self.pause(self.poll_s)
        return found

    def _create(self, name: str) -> None:
        template = self.api.rayjob(self.template)
        if template is None:
            raise SpecError(
                f"no RayJob {self.template} in namespace {self.api.namespace} to copy",
                "apply the template (kubectl apply -k), or install KubeRay's CRDs if kubectl knows no rayjobs",
            )
        rayjob = nightly_copy(template, name, self.as_of)
        if loses_exit_codes(rayjob["spec"]):
            self.say("note: ttlSecondsAfterFinished is below 60: exit codes 2 to 5 may be lost with the cluster, as 1")
        if self.api.create_rayjob(rayjob):
            self.say(f"RayJob {name} created: {rayjob['spec']['entrypoint']}")
        else:
            self.say(f"RayJob {name} was created by somebody else; following it")

    def _follow(self, name: str) -> int:
        """Wait for the end of a RayJob, one line for each change of its state."""
        state, shown = None, ""
        while True:
            found = self.api.rayjob(name)
            if found is None:
                if state and state.job in JOB_ENDED:  # deleted together with its cluster, by a deletion rule
                    break
                raise RunFailed(
                    f"RayJob {name} was deleted before its end",
                    "run again: what it committed stays, the rest is scored",
                )
            state = self._state(found)
            if str(state) != shown:
                shown = str(state)
                self.say(f"RayJob {name}: {shown}")
            if state.job in JOB_ENDED and not state.ended:
                with suppress(DashboardSilent):
                    self._ask_driver(state)  # the sooner the better: the cluster goes soon after the end
            if state.ended:
                break
            self.pause(self.poll_s)
        return self._conclude(name, state, found)

    def _conclude(self, name: str, state: State, rayjob: RayJob | None) -> int:
        driver = None if state.job in (SUCCEEDED, STOPPED) else self._driver(state)
        code = exit_code(state, driver)
        if code != COMPLETE and state.message:
            tail = state.message.rstrip().splitlines()[-LOG_LINES:]
            self.say("\n".join(["the last that it said:", *(f"  {line}" for line in tail)]))
        told = f", driver's exit code {driver.exit_code}" if driver and driver.exit_code is not None else ""
        self.say(f"night {self.as_of}: RayJob {name} ended: {state}{told}; exit code {code}")
        look = f"look: kubectl -n {self.api.namespace} describe rayjob {name}"
        if (rayjob or {"spec": {}})["spec"].get("submissionMode", "K8sJobMode") == "K8sJobMode":
            look += f"; kubectl -n {self.api.namespace} logs job/{name}"
        self.say(look)
        if NEXT_STEPS[code]:
            self.say(f"next: {NEXT_STEPS[code]}")
        return code

    def _driver(self, state: State) -> DriverEnd | None:
        """How the driver ended; asked until the head answers, has no answer, or patience ends."""
        until_s = time.monotonic() + self.driver_patience_s
        while True:
            try:
                return self._ask_driver(state)
            except DashboardSilent as silence:
                if silence.final or time.monotonic() >= until_s:
                    self.say(f"the driver's exit code could not be had ({silence}); going by the RayJob's state")
                    return None
            self.pause(min(2.0, self.poll_s))

    def _ask_driver(self, state: State) -> DriverEnd:
        if state.job_id not in self._ends:
            if not (state.dashboard and state.job_id):
                raise DashboardSilent("the RayJob never had a driver", final=True)
            end = driver_end(state.dashboard, state.job_id, self.token)
            if end.status not in JOB_ENDED:
                raise DashboardSilent(f"the driver is {end.status}", final=state.ended)
            self._ends[state.job_id] = end
        return self._ends[state.job_id]

    def _state(self, rayjob: RayJob) -> State:
        if not made_from(rayjob, self.template):
            name = rayjob["metadata"]["name"]
            raise SpecError(
                f"RayJob {name} exists, but was not made from {self.template} (no label {self._selector()})",
                f"delete or rename {name}, or the template",
            )
        return State.of(rayjob)

    def _selector(self) -> str:
        return f"{TEMPLATE_LABEL}={self.template}"


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint nightly`."""
    return nightly(
        template=arguments.template,
        namespace=arguments.namespace,
        as_of=arguments.as_of,
        zone=arguments.timezone or None,
        job=arguments.job or None,
        keep_nights=arguments.keep,
        interrupted=console.interrupts(),
        say=console.say,
    )
