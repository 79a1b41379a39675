"""See to it that the model's bundle is in the output and passes the gate, before any input is claimed."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from jobs.errors import GateRefused, Interrupted, RunFailed, SpecError, StintError
from jobs.fleet.fleet import GroupTerms, terms_of
from jobs.input.footers import Opened
from jobs.plan.job import Job
from jobs.pool.contract import Cluster
from jobs.run import policy
from workers.bundle.bundle import read_manifest
from workers.contract import BundleRequest
from workers.maker import judged_in, lacks_labels, outcome_of
from workers.outcomes import BundleOutcome, Failure, FailureCode, FailureKind

POLL_S = 0.2
PAUSE_S = 2.0
TOLD = 8
"""Rows that a line to the user names."""


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
                f"the {request.model.precision} model is refused\n{outcome.table}",
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
        judged = judged_in(manifest)
        if lacks_labels(judged, request):
            return None
        return outcome_of(judged, request, created=False, began=time.perf_counter())

    def _made(self, request: BundleRequest) -> BundleOutcome:
        request = replace(request, sample=self.job.sample(self.opened()))
        if not request.sample:
            given = self.job.spec.input
            raise SpecError(f"input: {given.manifest or ', '.join(given.uris)} holds no rows to calibrate on")
        attempts = policy.Attempts()
        for group in itertools.cycle(self._groups()):
            outcome = self._attempt(request, group)
            if isinstance(outcome, BundleOutcome):
                return self._told(outcome)
            if outcome is None:
                self.say(f"the bundle got no node in {group.patience_s:.0f} s, asking the next group of workers.groups")
                continue
            counted = attempts.after(outcome)
            step = policy.maker_step(counted, outcome)
            attempts = attempts if step is policy.MakerStep.WAIT else counted
            match step:
                case policy.MakerStep.WAIT:
                    self.say(f"waiting to make the bundle: {outcome.message}")
                case policy.MakerStep.AGAIN:
                    self.say(f"making the bundle again: {outcome.message}")
                case policy.MakerStep.WITHOUT_EXTRAS:
                    self.say(f"making the bundle again, without the engines that auto adds: {outcome.message}")
                    request = replace(request, without_extras=True)
                case policy.MakerStep.GIVE_UP:
                    raise _error(outcome, request)
            time.sleep(PAUSE_S)
            if (existing := self._existing(request)) is not None:
                return existing  # made by another run meanwhile
        raise AssertionError("groups come round for ever")

    def _told(self, outcome: BundleOutcome) -> BundleOutcome:
        for row in outcome.left_out[:TOLD]:
            self.say(f"warning: left out of the sample: {row}")
        if len(outcome.left_out) > TOLD:
            self.say(f"warning: {len(outcome.left_out) - TOLD} more rows were left out of the sample")
        return outcome

    def _groups(self) -> Sequence[GroupTerms]:
        """Kinds of nodes to ask in turn, as for workers: one that never comes is not waited for."""
        workers = self.job.spec.workers
        if self.connected().most_workers(self.job.threads) is not None:
            workers = workers.model_copy(update={"groups": ()})  # one machine, which has no labels
        groups = terms_of(workers).groups
        return groups if len(groups) > 1 else [replace(groups[0], patience_s=None)]

    def _attempt(self, request: BundleRequest, group: GroupTerms) -> BundleOutcome | Failure | None:
        """One maker on a node of the group; None when the group had no node for it in time.

        One that never ends is left to be given up by the next attempt, or by the end of the run.
        """
        cluster = self.connected()
        cluster.start_bundle(request, group.labels)
        placed = False
        limit_s = group.patience_s
        began = time.monotonic()
        while (outcome := cluster.poll_bundle(POLL_S)) is None:
            if self.interrupted():
                raise Interrupted("interrupted while the bundle was made", "run the same command to go on")
            if not placed and cluster.bundle_has_node():
                placed, began = True, time.monotonic()
                limit_s = policy.maker_limit_s(sum(part.take for part in request.sample))
            if limit_s is not None and time.monotonic() - began > limit_s:
                return _stuck(limit_s) if placed else None
        return outcome


def _stuck(limit_s: float) -> Failure:
    message = f"the worker that makes the bundle has not ended in {limit_s:.0f} s"
    return Failure(kind=FailureKind.INFRA, code=FailureCode.STUCK, message=message)


def _error(failure: Failure, request: BundleRequest) -> StintError:
    if failure.code in (FailureCode.MODEL, FailureCode.DENIED):
        return SpecError(failure.message)
    message = f"the bundle could not be made: {failure.message}"
    if failure.traceback:
        message += f"\n{failure.traceback.rstrip()}"
    if policy.budget_of(failure) is not policy.Budget.CRASH:
        return RunFailed(message, "mend the cause, then run the same command")
    return RunFailed(
        f"{message}\nthe sample was {_sampled(request)}",
        "raise workers.memory if memory is short; look at the files named above and at the log of the worker; then run "
        "the same command",
    )


def _sampled(request: BundleRequest) -> str:
    """Which rows the sample is, for a person."""
    told = [
        f"{part.take} of the rows {part.rows.row_start}:{part.rows.row_stop} of {part.rows.uri} "
        f"row group {part.rows.row_group}"
        for part in request.sample[:TOLD]
    ]
    more = len(request.sample) - TOLD
    return "; ".join(told) + (f"; and {more} more row groups" if more > 0 else "")
