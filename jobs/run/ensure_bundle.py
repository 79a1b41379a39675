"""See to it that the model's bundle is in the output and passes the gate, before any input is claimed."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from jobs.errors import GateRefused, Interrupted, RunFailed, SpecError, StintError
from jobs.input.footers import Opened
from jobs.plan.job import Job, require_decoders
from jobs.pool.contract import BundleMade, Cluster, WorkerGone, WorkerPlaced
from jobs.progress.format import first_few
from jobs.run import policy
from jobs.run.failed_attempts import describe_no_cores, no_cores_error
from jobs.run.policy import MakerStep
from jobs.scaling.groups import groups_of
from jobs.spec.schema import Group
from workers.contract import BundleRequest
from workers.maker import judged_in, lacks_labels, outcome_of
from workers.outcomes import BundleOutcome, Failure, FailureCode

_POLL_S = 0.2
PAUSE_S = 2.0
ROWS_NAMED = 8
"""In a line to the user."""


def ensure_bundle(
    job: Job,
    opened: Callable[[], Sequence[Opened]],
    connected: Callable[[], Cluster],
    interrupted: Callable[[], bool],
    say: Callable[[str], None],
    at: Callable[[str], None] = lambda _: None,
) -> BundleOutcome:
    """The bundle that is there, or a new one made on a worker: the driver has no torch, and often no such CPU.

    `opened` gives the input to sample from; it is asked for only when a bundle must be made or measured. `at` is
    told each step. Raises GateRefused, SpecError for a model that cannot be had or cores that others do not give back,
    Interrupted, RunFailed.
    """
    request = job.bundle_request()
    require_decoders(request.input)
    outcome = _existing(job, request)
    if outcome is None:
        request = replace(request, sample=job.sample(opened()))
        if not request.sample:
            given = job.spec.input
            raise SpecError(f"input: {given.manifest or ', '.join(given.uris)} holds no rows to calibrate on")
        outcome = _Making(job, request, connected(), interrupted, say, at).make()
    remarks = [f"preprocessing: {outcome.preprocess}"] if outcome.preprocess else []
    remarks += [f"warning: {outcome.doubt}"] if outcome.doubt else []
    if not outcome.passed:
        raise GateRefused(
            "\n".join([f"the {request.model.precision} model is refused", *remarks, outcome.table]),
            "see what to do above; the gate is a part of the spec, to be changed knowingly",
        )
    how = f"made in {outcome.seconds:.1f} s" if outcome.created else "already there"
    say(f"bundle {outcome.fingerprint} {how}")
    if outcome.created and outcome.table:
        say(outcome.table)
    for line in remarks:
        say(line)
    return outcome


def _existing(job: Job, request: BundleRequest) -> BundleOutcome | None:
    """Judged by its own report, without a worker; None where there is no bundle, or labels must be measured."""
    manifest = job.manifest()
    if manifest is None or lacks_labels(judged := judged_in(manifest), request):
        return None
    return outcome_of(judged, request, manifest)


@dataclass
class _Making:
    """A bundle that is made on a worker."""

    job: Job
    request: BundleRequest
    cluster: Cluster
    interrupted: Callable[[], bool]
    say: Callable[[str], None]
    at: Callable[[str], None]

    def make(self) -> BundleOutcome:
        """On a node of one group after the other, as for workers; they come round for ever."""
        job, no_cores_since, attempts = self.job, math.inf, policy.Attempts()
        one_machine = self.cluster.most_workers(job.threads) is not None  # it has no labels
        groups = groups_of(job.spec.workers.model_copy(update={"groups": ()}) if one_machine else job.spec.workers)
        self.at("waiting for a worker")
        for group in itertools.cycle(groups):
            patience_s = group.patience_s if len(groups) > 1 else None  # the only one is waited for
            outcome = self._attempt(group, patience_s)
            if isinstance(outcome, BundleOutcome):
                for row in first_few(outcome.left_out, "rows", ROWS_NAMED):
                    self.say(f"warning: left out of the sample: {row}")
                return outcome
            if outcome is None:
                self.say(f"the bundle got no node in {patience_s:.0f} s, asking the next group of workers.groups")
                continue
            budget = policy.budget_of(outcome)
            counted = attempts.after(outcome, budget)
            step = policy.maker_step(counted, outcome, budget)
            if step is MakerStep.GIVE_UP:
                raise _error(outcome, budget, self.request)
            if outcome.code != FailureCode.NO_CORES:
                no_cores_since = math.inf
                self.say(f"{step.value}: {outcome.message}")
            elif math.isinf(no_cores_since):
                no_cores_since = time.monotonic()
                self.say(describe_no_cores(outcome, job.spec.limits))
                self.at("waiting for cores that others hold")
            elif time.monotonic() - no_cores_since > job.spec.limits.wait_for_cores_s:
                raise no_cores_error(outcome, job.spec.limits)
            if step is MakerStep.WITHOUT_EXTRAS:
                self.request = replace(self.request, without_extras=True)
            attempts = attempts if step is MakerStep.WAIT else counted
            time.sleep(PAUSE_S)
            if (existing := _existing(job, self.request)) is not None:
                return existing  # made by another run meanwhile
        raise AssertionError("groups come round for ever")

    def _attempt(self, group: Group, patience_s: float | None) -> BundleOutcome | Failure | None:
        """One maker on a node of the group; None when the group had no node for it in time."""
        makers = self.cluster.pool(self.request)
        makers.start(group.labels)
        placed, limit_s, began = False, patience_s, time.monotonic()
        with closing(makers):
            while True:
                for event in makers.poll(_POLL_S):
                    match event:
                        case BundleMade():
                            return event.outcome
                        case WorkerGone():
                            return event.failure
                        case WorkerPlaced():
                            placed, began = True, time.monotonic()
                            limit_s = policy.maker_limit_s(sum(part.take for part in self.request.sample))
                if step := makers.doing():
                    self.at(step)
                if self.interrupted():
                    raise Interrupted("interrupted while the bundle was made", "run the same command to go on")
                if limit_s is not None and time.monotonic() - began > limit_s:
                    message = f"the worker that makes the bundle has not ended in {limit_s:.0f} s"
                    return policy.stuck(message) if placed else None


def _error(failure: Failure, budget: policy.Budget, request: BundleRequest) -> StintError:
    if failure.code in (FailureCode.MODEL, FailureCode.DENIED):
        return SpecError(failure.message)
    message = f"the bundle could not be made: {failure.message}"
    if failure.traceback:
        message += f"\n{failure.traceback.rstrip()}"
    if budget is not policy.Budget.CRASH:
        return RunFailed(message, "mend the cause, then run the same command")
    parts = [
        f"{part.take} of the rows {part.rows.row_start}:{part.rows.row_stop} of {part.rows.uri} "
        f"row group {part.rows.row_group}"
        for part in request.sample
    ]
    return RunFailed(
        f"{message}\nthe sample was {'; '.join(first_few(parts, 'row groups', ROWS_NAMED))}",
        "raise workers.memory if memory is short; look at the files named above and at the log of the worker; then run "
        "the same command",
    )
