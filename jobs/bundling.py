"""See to it that the model's bundle is in the output and passes the gate, before any input is claimed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jobs import policy
from jobs.errors import GateRefused, Interrupted, RunFailed, SpecError, StintError
from jobs.fleet import GroupTerms
from jobs.job import Job
from jobs.loop import terms_of
from jobs.pool import Cluster
from jobs.sources import Opened
from workers.bundle import read_manifest
from workers.contract import BundleRequest
from workers.making import outcome_of
from workers.outcomes import BundleOutcome, Failure, FailureCode, FailureKind

POLL_S = 0.2
PAUSE_S = 2.0


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
            given = self.job.spec.input
            raise SpecError(f"input: {given.manifest or ', '.join(given.uris)} holds no rows to calibrate on")
        failures = 0
        for group in itertools.cycle(self._groups()):
            outcome = self._attempt(request, group)
            if isinstance(outcome, BundleOutcome):
                return outcome
            if outcome is None:
                self.say(f"the bundle got no node in {group.patience_s:.0f} s, asking the next group of workers.groups")
                continue
            if outcome.code == FailureCode.NO_CORES:
                self.say(f"waiting for cores to make the bundle: {outcome.message}")
            elif _works_elsewhere(outcome) and failures < policy.START_FAILURES:
                failures += 1
                self.say(f"making the bundle again: {outcome.message}")
            else:
                raise _error(outcome)
            time.sleep(PAUSE_S)
            if (existing := self._existing(request)) is not None:
                return existing  # made by another run meanwhile
        raise AssertionError("groups come round for ever")

    def _groups(self) -> Sequence[GroupTerms]:
        """Kinds of nodes to ask in turn, as for workers: one that never comes is not waited for."""
        workers = self.job.spec.workers
        if self.connected().most_workers(self.job.threads) is not None:
            workers = workers.model_copy(update={"groups": ()})  # one machine, which has no labels
        groups = terms_of(workers).groups
        return groups if len(groups) > 1 else [replace(groups[0], patience_s=None)]

    def _attempt(self, request: BundleRequest, group: GroupTerms) -> BundleOutcome | Failure | None:
        """One maker on a node of the group; None when the group had no node for it in time."""
        cluster = self.connected()
        cluster.start_bundle(request, group.labels)
        began, placed = time.monotonic(), group.patience_s is None
        while (outcome := cluster.poll_bundle(POLL_S)) is None:
            if self.interrupted():
                raise Interrupted("interrupted while the bundle was made", "run the same command to go on")
            placed = placed or cluster.bundle_has_node()
            if not placed and group.patience_s is not None and time.monotonic() - began > group.patience_s:
                return None
        return outcome


def _works_elsewhere(failure: Failure) -> bool:
    """A node that was taken away or had too little memory left, or a storage fault; not a node that will never do."""
    elsewhere = (FailureCode.OTHER, FailureCode.MEMORY, FailureCode.PREEMPTED)
    return failure.kind is FailureKind.INFRA and failure.code in elsewhere


def _error(failure: Failure) -> StintError:
    if failure.code in (FailureCode.MODEL, FailureCode.DENIED):
        return SpecError(failure.message)
    return RunFailed(
        f"the bundle could not be made: {failure.message}\n{failure.traceback}".rstrip(),
        "mend the cause, then run the same command",
    )
