"""See to it that the model's bundle is in the output and passes the gate, before any input is claimed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jobs.errors import GateRefused, Interrupted, RunFailed, SpecError, StintError
from jobs.job import Job
from jobs.pool import Cluster
from jobs.sources import Opened
from workers.bundle import read_manifest
from workers.contract import BundleOutcome, BundleRequest, Failure, FailureCode
from workers.making import outcome_of

POLL_S = 0.2
NO_CORES_PAUSE_S = 2.0


@dataclass
class Bundling:
    """How one run comes by its bundle."""

    job: Job
    opened: Callable[[], Sequence[Opened]]
    """The input to sample from; asked for only when a bundle must be made or measured."""
    connected: Callable[[], Cluster]
    interrupted: Callable[[], bool]
    say: Callable[[str], None]

    def ensure(self) -> BundleOutcome:
        """The bundle that is there, or a new one made on a worker: the driver has no torch, and often no such CPU.

        Raises GateRefused, SpecError for a model that cannot be had, Interrupted, RunFailed.
        """
        request = self.job.bundle_request()
        outcome = self._existing(request) or self._made(request)
        if not outcome.passed:
            raise GateRefused(
                f"the INT8 model is refused\n{outcome.table}",
                "look at the calibration sample (model.calibration), try precision: fp32, or change the gate knowingly",
            )
        made = f"made in {outcome.seconds:.1f} s" if outcome.created else "already there"
        self.say(f"bundle {outcome.fingerprint} {made}")
        if outcome.created and outcome.table:
            self.say(outcome.table)
        return outcome

    def _existing(self, request: BundleRequest) -> BundleOutcome | None:
        """Judged by its own report, without a worker; None where there is no bundle, or labels must be measured."""
        manifest = read_manifest(self.job.store, request.fingerprint)
        if manifest is None:
            return None
        report = manifest.accuracy
        if report and request.gate.labels_column is not None and not report.labelled_rows:
            return None
        return outcome_of(report, request, created=False, began=time.perf_counter())

    def _made(self, request: BundleRequest) -> BundleOutcome:
        request = replace(request, sample=self.job.sample(self.opened()))
        if not request.sample:
            raise SpecError(f"input.uri: {self.job.spec.input.uri} holds no rows to calibrate on")
        while True:
            self.connected().start_bundle(request)
            outcome = None
            while outcome is None:
                if self.interrupted():
                    raise Interrupted("interrupted while the bundle was made", "run the same command to go on")
                outcome = self.connected().poll_bundle(POLL_S)
            if isinstance(outcome, BundleOutcome):
                return outcome
            if outcome.code != FailureCode.NO_CORES:
                raise _error(outcome)
            self.say(f"waiting for cores to make the bundle: {outcome.message}")
            time.sleep(NO_CORES_PAUSE_S)
            if (existing := self._existing(request)) is not None:
                return existing  # made by the run that held the cores


def _error(failure: Failure) -> StintError:
    if failure.code in (FailureCode.MODEL, FailureCode.DENIED):
        return SpecError(failure.message)
    return RunFailed(
        f"the bundle could not be made: {failure.message}\n{failure.traceback}".rstrip(),
        "mend the cause, then run the same command",
    )
