"""A run from start to end: discover, bundle, plan, score, done record, report. Each step reads the ledger first.

Order is law: predictions become visible, then the done record, then the report. Killed between any two, the next run
does what is missing.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from zoneinfo import ZoneInfo

from jobs.bad_rows import bad_rows_error
from jobs.bundling import Bundling
from jobs.crashes import CrashLog
from jobs.discovery import Discovery, discover
from jobs.done import DoneRecord
from jobs.errors import NothingThere, RunFailed, SpecError, StintError
from jobs.job import Job
from jobs.loop import Loop
from jobs.noting import Noting
from jobs.plans import Content, Missing, Plan
from jobs.policy import bad_rows_exceeded, deadline
from jobs.pool import Cluster
from jobs.prior import rate_of_worker
from jobs.progress import Progress
from jobs.report import Report
from jobs.sources import Opened, open_sources
from jobs.spec import Workers
from jobs.tally import Tally
from jobs.widths import told
from workers.outcomes import BundleOutcome
from workers.redaction import redacted_values
from workers.storage_errors import StoreDenied, StoreError

Say = Callable[[str], None]


@dataclass
class Run:
    """One execution of a job. `connect` brings up the cluster, and only when there is work for it."""

    job: Job
    connect: Callable[[], Cluster]
    interrupted: Callable[[], bool]
    say: Say
    cluster: Cluster | None = None

    def __post_init__(self) -> None:
        now = datetime.now(UTC)
        self.report = Report(
            run_id=f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}",
            job=self.job.spec.name,
            root=self.job.fingerprints.root,
            output=self.job.store.url,
            started=now.isoformat(timespec="seconds"),
        )
        self._began = time.monotonic()
        self._artifacts: tuple[str, ...] = ()
        """What the gate lets pass of the bundle; () where nothing had to be judged."""

    def complete(self) -> Report:
        """Do everything that is missing. Raises StintError with the exit code of what stood in the way."""
        try:
            self._complete()
            self.report.outcome = "complete"
            return self.report
        except StintError as error:
            self.report.outcome = type(error).__name__
            raise
        finally:
            self._write_report()
            if self.cluster:
                self.cluster.close()

    def bundle(self) -> BundleOutcome:
        """Make the bundle, or judge the one that is there by the spec's gate. Raises StintError."""
        try:
            return self._ensure_bundle(partial(self._to_sample, discover(self.job)))
        finally:
            if self.cluster:
                self.cluster.close()

    def _complete(self) -> None:
        self._discover()
        self._finish_open()  # another run may have claimed in between: whatever is open is this run's business too
        if self.report.unreadable or self.report.set_aside:
            names = [*self.report.unreadable, *self.report.set_aside]
            raise RunFailed(
                f"{len(names)} source(s) or shard(s) could not be read or scored and have no predictions: "
                f"{'; '.join(names[:5])}",
                "mend or replace the files named above (where workers died: mind the nodes' memory, workers.memory) "
                "and run again; everything else is committed",
            )

    # -------------------------------------------------------------------------------------------- steps

    def _discover(self) -> None:
        """Up to the claim. What was found is let go then: listing and footers of a first night take much memory."""
        try:
            found = discover(self.job)
        except NothingThere:
            if self._open()[1]:  # what earlier nights left does not wait for tonight's delivery
                self._ensure_bundle(list)
                self._finish_open()
            raise
        self._tell(found)
        if found.fresh_rows or not all(self.job.ledger.whole(plan) for plan in found.open_plans):
            self._workers()  # refused here, before anything is claimed
            self._tell_gpus()
            outcome = self._ensure_bundle(partial(self._to_sample, found))
            self.report.accuracy = dict(outcome.report)
        self._claim(found)

    def _tell(self, found: Discovery) -> None:
        for line in found.lines():
            self.say(line)
        self.report.as_of = str(self.job.days.last)
        self.report.unreadable = dict(found.unreadable)
        self.report.changed = [source.uri for source in found.wanted.kept]
        self.report.superseded = sorted(found.wanted.supersedes)

    def _claim(self, found: Discovery) -> None:
        """Claim what is new as the next plan, less what another run claims first."""
        if not found.fresh and not found.wanted.again:
            return
        made: Content | None = None

        def content(plans: Sequence[Plan]) -> Content | None:
            nonlocal made
            made = found.content(plans)
            return made

        plan = self.job.ledger.claim(content)
        if plan is not None and made is not None:
            for warning in made.cut.warnings:
                self.say(f"warning: {warning}")
            self.say(f"plan {plan.number}: {plan.rows:,} rows in {len(plan.shards):,} shards")

    def _connected(self) -> Cluster:
        if self.cluster is None:
            self.cluster = self.connect()
            self.say(self.cluster.describe())
            self.job = replace(self.job, most_threads=self.cluster.most_threads())
        return self.cluster

    def _to_sample(self, found: Discovery) -> list[Opened]:
        """With nothing new, from what is there: the bundle of an open plan may still be missing."""
        return found.fresh or open_sources(found.sources, self.job.spec.input)[0]

    def _open(self) -> tuple[list[Plan], Missing]:
        """Plans that are not done, and what of them is missing."""
        done = self.job.ledger.done_numbers()
        plans = [plan for plan in self.job.ledger.plans() if plan.number not in done]
        return plans, self.job.ledger.missing(*plans)

    def _finish_open(self) -> None:
        plans, left = self._open()
        tally = self._score(plans, left) if left else Tally()
        self._finish(plans, tally)

    def _ensure_bundle(self, opened: Callable[[], list[Opened]]) -> BundleOutcome:
        outcome = Bundling(self.job, opened, self._connected, self.interrupted, self.say).ensure()
        self._artifacts = outcome.artifacts
        return outcome

    def _score(self, plans: Sequence[Plan], missing: Missing) -> Tally:
        total, total_shards = sum(plan.rows for plan in plans), sum(len(plan.shards) for plan in plans)
        finish_in_s = self._finish_in_s()
        self._tell_profile()
        # A machine that cannot grow is paid for anyway: all of it is used.
        sized = finish_in_s is not None and self._connected().most_workers(self.job.threads) is None
        uris = {uri for plan in plans for uri, _ in plan.claimed}
        progress = Progress(total, total_shards, finish_in_s=finish_in_s)
        progress.shards_elsewhere(total_shards - len(missing), total - missing.rows)
        noting = Noting(self.job.store, self.job.ledger.root, plans, self.say)
        loop = Loop(
            ledger=self.job.ledger,
            pool=self._connected().pool(self.job.worker_spec(plans[-1].keys, uris, self._artifacts)),
            plans=plans,
            missing=missing,
            limits=self.job.spec.limits,
            workers=self._workers(),
            progress=progress,
            tally=Tally(done=noting),
            interrupted=self.interrupted,
            crashes=CrashLog(self.job.store, self.job.ledger.root, self.report.run_id),
            finish_in_s=finish_in_s if sized else None,
            rate_before=rate_of_worker(self.job) if sized else None,
        )
        try:
            return loop.run()
        finally:
            noting.close()
            self.say(progress.line())
            self.report.count(loop.tally, threads=self.job.threads, per_cpu_hour=self.job.spec.cost.per_cpu_hour)

    def _finish_in_s(self) -> float | None:
        schedule = self.job.spec.schedule
        if schedule.finish_by is None:
            return None
        now = datetime.now(UTC)
        return (deadline(schedule.finish_by, ZoneInfo(schedule.timezone), now) - now).total_seconds()

    def _workers(self) -> Workers:
        """The spec's bounds, within what a machine that cannot grow has; its one node has no labels either."""
        given = self.job.spec.workers
        room = self._connected().most_workers(self.job.threads)
        if room is None:
            return given
        if (tuned := self.job.width.profile) is not None and given.cpus == "auto" and self.job.host is not None:
            room = min(room, tuned.workers)  # fewer than fit, where that was found to be faster
        if room == 0:
            raise SpecError(f"workers.cpus: a worker takes {self.job.threads} cores, which this machine does not grant")
        if self.job.spec.model.device == "cuda":
            room = min(room, self._connected().gpus())
        if room == 0:
            raise SpecError(
                "model.device: cuda, but this machine has no GPU that processes here may use",
                "run on a machine or a cluster with GPUs (see --address), or set model.device: cpu",
            )
        return given.model_copy(update={"max": min(given.max, room), "min": min(given.min, room), "groups": ()})

    def _tell_profile(self) -> None:
        """What `stint tune` has found of such nodes, where the spec leaves something to it."""
        given, width = self.job.spec.workers, self.job.width
        if self.job.spec.model.device == "cpu" and "auto" in (given.cpus, given.batch):
            self.say(told(width))
        self.report.profile = {"threads": width.threads, "reason": width.reason, "tuned": width.from_profiles}
        if width.profile is not None:
            self.report.profile |= {"node": width.profile.host.key, "tuned_at": width.profile.tuned_at}

    def _tell_gpus(self) -> None:
        """A cluster without a GPU may grow one; who waits for it is to know."""
        cluster = self._connected()
        if (
            self.job.spec.model.device == "cuda"
            and cluster.most_workers(self.job.threads) is None
            and not cluster.gpus()
        ):
            self.say(
                "model.device: cuda, and no node of the cluster has a GPU now: workers wait until one with a GPU joins"
            )

    def _finish(self, plans: Sequence[Plan], tally: Tally) -> None:
        """Done records of the plans that are whole, and the budget of bad rows over each of them."""
        broken = {shard.plan for shard, _ in tally.set_aside}
        budget = self.job.spec.limits.bad_rows
        too_bad: list[tuple[Plan, DoneRecord]] = []
        for plan in plans:
            if plan.number in broken:
                continue
            objects = self.job.ledger.finish(plan, tally.done.of(plan.number))
            if bad_rows_exceeded(objects.rows_bad, plan.rows, budget):
                too_bad.append((plan, objects))
            else:
                self._record_done(plan, objects)
        # One bad delivery does not hold up the others; and what has been replaced since counts no more.
        errors: list[StintError] = []
        for plan, objects in too_bad:
            reasons = self.job.ledger.bad_rows(plan, self._replaced(plan))
            rows_bad = reasons.counts.total()
            if bad_rows_exceeded(rows_bad, plan.rows, budget):
                errors.append(bad_rows_error(rows_bad, plan.rows, budget, reasons))
            else:
                self._record_done(plan, objects)
        if errors:
            raise errors[0]

    def _record_done(self, plan: Plan, objects: DoneRecord) -> None:
        self.job.ledger.record_done(plan, objects)
        self.report.plans.append(plan.number)
        self.report.rows_ok += objects.rows_ok
        self.report.rows_bad += objects.rows_bad
        self.report.rows_gone += objects.rows_gone

    def _replaced(self, plan: Plan) -> set[tuple[str, str]]:
        """(uri, version) of files whose rows readers would not see of this plan, because a done plan has newer ones."""
        done = self.job.ledger.done_numbers()
        plans = [p for p in self.job.ledger.plans() if p.number in done | {plan.number}]
        return self.job.ledger.superseded(plans, done)

    # ------------------------------------------------------------------------------------------- report

    def _write_report(self) -> None:
        self.report.elapsed_s = round(time.monotonic() - self._began, 2)
        key = f"_stint/runs/{self.report.run_id}/"
        spec = self.job.spec.model_dump_json(indent=2).encode()
        try:
            self.job.store.create(key + "spec.json", spec)
            self.job.store.create(
                key + "report.json", json.dumps(redacted_values(asdict(self.report)), indent=2).encode()
            )
        except (StoreError, StoreDenied) as error:
            self.say(f"the run's report could not be written (predictions are not affected): {error}")
