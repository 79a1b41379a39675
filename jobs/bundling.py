"""See to it that the model's bundle is in the output and passes the gate, before any input is claimed."""

from __future__ import annotations

import time
from collections.abc import Callable

from jobs.errors import GateRefused, Interrupted, RunFailed, SpecError, StintError
from jobs.job import Job
from jobs.pool import Cluster
from workers.bundle import read_manifest
from workers.contract import BundleOutcome, BundleRequest, Failure, FailureCode
from workers.making import outcome_of

POLL_S = 0.2
NO_CORES_PAUSE_S = 2.0


def ensure_bundle(
    job: Job,
    request: BundleRequest,
    connected: Callable[[], Cluster],
    interrupted: Callable[[], bool],
    say: Callable[[str], None],
) -> BundleOutcome:
    """The bundle that is there, or a new one made on a worker: the driver has no torch, and often no such CPU.

    Raises GateRefused, SpecError for a model that cannot be had, Interrupted, RunFailed.
    """
    outcome = _existing(job, request) or _made(job, request, connected, interrupted, say)
    if not outcome.passed:
        raise GateRefused(
            f"the INT8 model is refused\n{outcome.table}",
            "look at the calibration sample (model.calibration), try precision: fp32, or change the gate knowingly",
        )
    made = f"made in {outcome.seconds:.1f} s" if outcome.created else "already there"
    say(f"bundle {outcome.fingerprint} {made}")
    if outcome.created and outcome.table:
        say(outcome.table)
    return outcome


def _existing(job: Job, request: BundleRequest) -> BundleOutcome | None:
    """Judged by its own report, without a worker; None where there is no bundle, or true labels must be measured."""
    manifest = read_manifest(job.store, request.fingerprint)
    if manifest is None:
        return None
    report = manifest.accuracy
    if report and request.gate.labels_column is not None and not report.labelled_rows:
        return None
    return outcome_of(report, request, created=False, began=time.perf_counter())


def _made(
    job: Job,
    request: BundleRequest,
    connected: Callable[[], Cluster],
    interrupted: Callable[[], bool],
    say: Callable[[str], None],
) -> BundleOutcome:
    while True:
        connected().start_bundle(request)
        outcome = None
        while outcome is None:
            if interrupted():
                raise Interrupted("interrupted while the bundle was made", "run the same command to go on")
            outcome = connected().poll_bundle(POLL_S)
        if isinstance(outcome, BundleOutcome):
            return outcome
        if outcome.code != FailureCode.NO_CORES:
            raise _error(outcome)
        say(f"waiting for cores to make the bundle: {outcome.message}")
        time.sleep(NO_CORES_PAUSE_S)
        if (existing := _existing(job, request)) is not None:
            return existing  # made by the run that held the cores


def _error(failure: Failure) -> StintError:
    if failure.code in (FailureCode.MODEL, FailureCode.DENIED):
        return SpecError(failure.message)
    return RunFailed(
        f"the bundle could not be made: {failure.message}\n{failure.traceback}".rstrip(),
        "mend the cause, then run the same command",
    )
