"""`stint run`: discover, bundle, plan, score, done record, report; and `stint quantize`, which stops at the bundle.

Each step reads the ledger first. Order is law: predictions become visible, then the done record, then the report.
Killed between any two, the next run does what is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from zoneinfo import ZoneInfo

from jobs.console import Console
from jobs.errors import COMPLETE, Interrupted, NothingThere, RunFailed, SpecError, StintError
from jobs.input.footers import Opened
from jobs.interrupt import InterruptFlag
from jobs.ledger.accepted import accepted
from jobs.ledger.bad_rows import OverBudget, bad_rows_error
from jobs.ledger.current import record_first
from jobs.ledger.done import DoneRecord, Noting
from jobs.ledger.plans import Content, Plan, Shards
from jobs.pages.save import save_card, save_report, save_spec
from jobs.plan.command_line import for_each_day, last_job_of
from jobs.plan.discovery import Discovery, discover
from jobs.plan.job import Job
from jobs.plan.tables import unpin_done
from jobs.plan.worker_width import describe_width
from jobs.pool.connect import connect, in_cluster
from jobs.pool.contract import Cluster
from jobs.progress.displays import display_for
from jobs.progress.progress import Progress
from jobs.progress.snapshot import Price
from jobs.report.assemble import compose
from jobs.report.journal import Journal
from jobs.report.new_model import new_model
from jobs.report.report import COMPLETED, PlanReport, PlanState, Report, gone_lines, summary
from jobs.report.runs import rate_of_worker
from jobs.run import shortfall
from jobs.run.ensure_bundle import ensure_bundle
from jobs.run.loop import Loop
from jobs.run.policy import deadline
from jobs.run.shortfall import reasons_left
from jobs.run.tally import Tally
from jobs.spec.schema import Workers
from jobs.table import check_table, sync_table
from workers.bundle.profiles import HostKind
from workers.counted import counted
from workers.outcomes import NO_ROWS, BundleOutcome, Rows
from workers.storage.errors import StoreDenied, StoreError


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Score what is missing, and show the summary."""
    flag = console.interrupts()

    def complete(job: Job) -> None:
        one = _new_run(job, arguments, console, flag)
        try:
            one.complete()
        finally:
            if one.report.sources is not None or one.report.of_plans:  # else it has not come to what there is to tell
                console.show(summary(one.report))

    return for_each_day(arguments, console, complete, writing=True)


def quantize(arguments: argparse.Namespace, console: Console) -> int:
    """Make the bundle, or show the gate's table of the one that is there."""
    flag = console.interrupts()
    outcome = _new_run(last_job_of(arguments, writing=True), arguments, console, flag).bundle()
    if not outcome.created and outcome.table:
        console.say(outcome.table)
    return COMPLETE


def _new_run(job: Job, arguments: argparse.Namespace, console: Console, flag: InterruptFlag) -> Run:
    return Run(
        job=job if in_cluster(arguments.address) else replace(job, host=HostKind.here()),
        connect=lambda: connect(arguments.pool, arguments.address, flag),
        interrupted=flag,
        say=console.say,
        progress=getattr(arguments, "progress", "auto"),  # of `stint run` alone, as --again
        again=getattr(arguments, "again", None) or "",
        by_schedule=arguments.days is not None and not getattr(arguments.days, "backfill", False),
    )


def workers_that_fit(job: Job, cluster: Cluster) -> Workers:
    """The spec's section, its bounds within what a machine that cannot grow has; its one node has no labels either.

    Raises SpecError where not one worker fits such a machine.
    """
    given = job.spec.workers
    room = cluster.most_workers(job.threads)
    if room is None:
        return given
    if (tuned := job.width.profile) is not None and given.cpus == "auto" and job.host is not None:
        room = min(room, tuned.workers)  # fewer than fit, where that was found to be faster
    if room == 0:
        raise SpecError(f"workers.cpus: a worker takes {job.threads} cores, which this machine does not grant")
    if job.spec.model.device == "cuda":
        room = min(room, cluster.gpus())
    if room == 0:
        raise SpecError(
            "model.device: cuda, but this machine has no GPU that processes here may use",
            "run on a machine or a cluster with GPUs (see --address), or set model.device: cpu",
        )
    return given.model_copy(update={"max": min(given.max, room), "min": min(given.min, room), "groups": ()})


@dataclass
class Run:
    """One execution of a job. `connect` brings up the cluster, and only when there is work for it."""

    job: Job
    connect: Callable[[], Cluster]
    interrupted: Callable[[], bool]
    say: Callable[[str], None]
    progress: str = "auto"
    """How the run is shown, see jobs.progress.displays.display_for."""
    by_schedule: bool = False
    """Whether nobody may be there to read what it says."""
    again: str = ""
    """What is to be scored again, see jobs.plan.asked."""
    cluster: Cluster | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        now = datetime.now(UTC)
        self.report = Report(
            run_id=f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z-{uuid.uuid4().hex[:6]}",  # in order of time
            job=self.job.spec.name,
            root=self.job.fingerprints.root,
            output=self.job.store.url,
            task=self.job.spec.model.task,
            model=self.job.identity.parts,
            started=now.isoformat(timespec="seconds"),
        )
        self._began = time.monotonic()
        self._journal = Journal(self.job.store, self.report.run_id, self.say)
        self._tally = Tally(journal=self._journal)
        self._progress = Progress(
            0, 0, counts=self._tally, run_id=self.report.run_id, job=self.report.job, root=self.report.root,
            phase="listing", display=display_for(sys.stderr, self.progress),
        )  # fmt: skip
        self.report.as_of = str(self.job.days.last)
        self._accuracy: Mapping[str, object] = {}
        self._artifacts: tuple[str, ...] = ()
        """What the gate lets pass of the bundle; () where nothing had to be judged."""
        self._plans: list[Plan] = []
        self._claimed = 0
        """The last plan that this run itself has claimed."""
        self._done: set[int] = set()
        """As far as this run has seen."""
        self._left: dict[int, PlanReport] = {}
        """How plans are left that this run worked on, by number."""
        self._over: list[OverBudget] = []
        """Of those, the ones with too many bad rows."""
        self._taken_away = set[int]()
        """Of those, the ones that are done because their bad files were mended, with which rows may have gone."""
        self._gaps: dict[int, DoneRecord] = {}
        """Of those, the objects of done ones that lack rows which are gone."""

    def complete(self) -> Report:
        """Do everything that is missing. Raises StintError with the exit code of what stood in the way."""
        self._progress.watch(self._journal)
        with self._progress.beating():
            try:
                save_spec(self.job, self.report.run_id, self.say)  # first of all: who looks finds a run under way
                self._complete()
                self.report.outcome = COMPLETED
            except StintError as error:
                self.report.outcome = type(error).__name__
                self.report.error, self.report.next_step = str(error), error.next_step
                raise
            finally:
                self._write_report()
                for line in gone_lines(self.report) if self.report.outcome != COMPLETED else ():  # else the summary
                    self.say(line)
                self.close()
        return self.report

    def close(self) -> None:
        self._progress.close()
        if self.cluster:
            self.cluster.close()

    def bundle(self) -> BundleOutcome:
        """Make the bundle, or judge the one that is there by the spec's gate. Raises StintError."""
        with self._progress.beating(), closing(self):
            return self._ensure_bundle(discover(self.job).to_sample)

    def _complete(self) -> None:
        check_table(self.job)  # what is wrong with it is told before a night's work
        absent = self._discover()
        if absent is None:
            self._finish_open()  # another run may have claimed in between: whatever is open is this run's business too
        elif self._open()[1]:  # what earlier nights left does not wait for tonight's delivery
            self._ensure_bundle(list)
            self._finish_open()
        if self._gaps and not (absent or self._over or self.report.set_aside):
            self._look_again()
        found: list[StintError] = []
        if self._over:
            over = sorted(self._over, key=lambda one: one.plan.number)
            found.append(bad_rows_error(over, str(self.job.spec.limits.bad_rows)))
        found += shortfall.of_sources(self.report.unreadable, self._tally.set_aside)
        gaps = {number: objects for number, objects in self._gaps.items() if number not in self._taken_away}
        found += shortfall.of_gone_rows(self.job, gaps)
        short = None if self.again else shortfall.of_delivery(self.job)  # what a person asks for is no delivery
        found += [one for one in (short, absent, self._sync_table()) if one is not None]
        if found:
            raise shortfall.as_one(found)

    def _sync_table(self) -> StintError | None:
        """The error of a table that could not be brought up is told last: what the night scored is safe."""
        self._progress.enter("finishing", "table")
        try:
            self.report.output_table = sync_table(self.job)
        except StintError as error:
            return error
        return None

    def _discover(self) -> NothingThere | None:
        """Up to the claim. What was found is let go then: listing and footers of a first night take much memory.

        Where there is nothing, that is returned."""
        self._progress.enter("listing")
        try:
            found = discover(self.job, self.again)
        except NothingThere as error:
            return error
        self._take(found)
        return None

    def _take(self, found: Discovery) -> None:
        """Have workers and a model that may score what was found, and claim it."""
        self._say_found(found)
        if (change := new_model(found)) is not None:
            if self.by_schedule and self.job.spec.schedule.on_new_model == "ask":
                raise change.question()
            for line in change.lines():
                self.say(line)
        if found.fresh_rows or not all(self.job.ledger.whole(plan) for plan in found.open_plans):
            cluster = self._connected()
            workers_that_fit(self.job, cluster)  # refused here, before anything is claimed
            if self._on_gpus and not cluster.gpus():  # of a cluster, which may grow
                self.say("model.device: cuda, and no node has a GPU now: workers wait until one with a GPU joins")
            self._accuracy = self._ensure_bundle(found.to_sample).report
        self._claim(found)

    def _look_again(self) -> None:
        """Files that were gone when it was their turn, perhaps in a run before this one, may be there again, or others
        in their place. While their plan was open nobody could know of them without reading its objects."""
        self._progress.enter("listing")
        try:
            found = discover(self.job)
        except SpecError as error:  # the input has become wrong since: this run's rows are done, the next one ends so
            self.say(f"rows were gone when it was their turn, and could not be looked for again: {error}")
            return
        if not found.nothing:
            self._take(found)
            self._finish_open()
        self.report.unreadable |= {u: found.unreadable[u] for u in self.report.gone if u in found.unreadable}

    def _say_found(self, found: Discovery) -> None:
        for line in found.lines():
            self.say(line)
        self.report.sources, self.report.sources_before = len(found.sources), found.claimed_before
        if found.table is not None and (found.table.claim.says or not self.report.table):
            self.report.table = found.table.figures(found.fresh)
        self.report.passed_over = list(found.listing.passed_over)
        self.report.unreadable = dict(found.unreadable)
        self.report.overlooked = dict(found.overlooked)
        self.report.changed = [source.uri for source in found.claim.kept]
        self.report.again = self.report.again or found.asked.text
        self.report.superseded = sorted({*self.report.superseded, *found.superseded})

    def _claim(self, found: Discovery) -> None:
        """Claim what is new as the next plan, less what another run claims first."""
        if found.nothing:
            return
        self._progress.enter("listing", "claiming what is new")
        found = replace(found, job=self.job)  # which knows by now what workers there are
        claimed: Content | None = None

        def content(plans: Sequence[Plan]) -> Content | None:
            nonlocal claimed
            claimed = found.content(plans)
            return claimed

        if self.job.spec.input.pin and found.table is not None and found.fresh_rows:
            found.table.pin(self.job)
        plan = self.job.ledger.claim(content, self.job.book)
        if plan is not None and claimed is not None:
            self._claimed = plan.number
            if plan.number == 1:
                save_card(self.job, self.say)
            for warning in claimed.warnings:
                self.say(f"warning: {warning}")
            self.say(f"plan {plan.number}: {counted(plan.rows, 'row')} in {counted(len(plan.shards), 'shard')}")

    def _connected(self) -> Cluster:
        if self.cluster is None:
            self._progress.enter("ray")
            self.cluster = self.connect()
            self._progress.watch(self.cluster)
            self.say(self.cluster.describe())
            self.job = replace(self.job, most_threads=self.cluster.most_threads())
            there = self.cluster.workers_there(self.job.threads)
            self.job = replace(self.job, workers_there=min(there, self.cluster.gpus()) if self._on_gpus else there)
        return self.cluster

    @property
    def _on_gpus(self) -> bool:
        return self.job.spec.model.device == "cuda"

    def _open(self) -> tuple[list[Plan], Shards]:
        """Plans that are not done, and what of them is missing."""
        self._done |= self.job.ledger.done_numbers()
        self._plans = self.job.ledger.plans()
        plans = [plan for plan in self._plans if plan.number not in self._done]
        for plan in plans:
            self._leave(plan, PlanState.OPEN)
        return plans, self.job.ledger.missing(*plans)

    def _finish_open(self) -> None:
        plans, left = self._open()
        if left:
            self._score(plans, left)
        given_up = {one.plan.number for one in self._tally.over}  # which may be whole all the same
        self._finish([plan for plan in plans if plan.number not in given_up or self.job.ledger.whole(plan)])
        if self.job.spec.input.pin:
            try:  # whichever run has done a plan; where it fails, the next run's
                unpin_done(self.job, self._plans, self._done | self.job.ledger.done_numbers())
            except StoreError as error:
                self.say(f"warning: {error}")

    def _ensure_bundle(self, opened: Callable[[], Sequence[Opened]]) -> BundleOutcome:
        self._progress.enter("bundle")
        at = partial(self._progress.enter, "bundle")
        outcome = ensure_bundle(self.job, opened, self._connected, self.interrupted, self.say, at)
        self._artifacts = outcome.artifacts
        self.report.preprocess, self.report.doubt = outcome.preprocess, outcome.doubt
        return outcome

    def _score(self, plans: Sequence[Plan], missing: Shards) -> None:
        total, total_shards = sum(plan.rows for plan in plans), sum(len(plan.shards) for plan in plans)
        finish_in_s = self._finish_in_s()
        self._say_profile()
        cluster = self._connected()
        # A machine that cannot grow is paid for anyway: all of it is used.
        sized = finish_in_s is not None and cluster.most_workers(self.job.threads) is None
        uris = (uri for plan in plans for uri in plan.sources["uri"].to_pylist())
        self._progress.score(total, total_shards, price=self._price, finish_in_s=finish_in_s)
        self._tally.add_elsewhere(total_shards - len(missing), total - missing.rows)
        before = [plan for plan in plans if plan.number != self._claimed]
        may_stay = accepted(self.job.store, self.job.ledger.root, before) if before else {}
        self._tally.done = noting = Noting(self.job.store, self.job.ledger.root, plans, self.say)
        loop = Loop(
            ledger=self.job.ledger,
            pool=cluster.pool(self.job.worker_spec(plans[-1], uris, self._artifacts, tuple(may_stay))),
            plans=plans,
            missing=missing,
            limits=self.job.spec.limits,
            workers=workers_that_fit(self.job, cluster),
            progress=self._progress,
            tally=self._tally,
            interrupted=self.interrupted,
            run_id=self.report.run_id,
            finish_in_s=finish_in_s if sized else None,
            rate_before=rate_of_worker(self.job) if sized else None,
        )
        try:
            loop.run()
        finally:
            noting.close()
            self.report = replace(self.report, **self._tally.figures(self._price))

    @property
    def _price(self) -> Price:
        return Price(self.job.threads, self.job.spec.cost.per_cpu_hour)

    def _finish_in_s(self) -> float | None:
        schedule = self.job.spec.schedule
        if schedule.finish_by is None:
            return None
        now = datetime.now(UTC)
        return (deadline(schedule.finish_by, ZoneInfo(schedule.timezone), now) - now).total_seconds()

    def _say_profile(self) -> None:
        """What `stint tune` has found of such nodes, where the spec leaves something to it."""
        given, width = self.job.spec.workers, self.job.width
        if self.job.spec.model.device == "cpu" and "auto" in (given.cpus, given.batch):
            self.say(describe_width(width))
        self.report.profile = {"threads": width.threads, "reason": width.reason, "tuned": width.from_profiles}
        if width.profile is not None:
            self.report.profile |= {"node": width.profile.host.key, "tuned_at": width.profile.tuned_at}

    def _finish(self, plans: Sequence[Plan]) -> None:
        """Done records of the plans that are whole, unless they are over the budget of bad rows."""
        self._progress.enter("finishing", "done records")
        broken = {shard.plan for shard, _ in self._tally.set_aside}
        budget = self.job.spec.limits.bad_rows
        too_bad: list[tuple[Plan, DoneRecord]] = []
        for plan in plans:
            if plan.number in broken:
                continue
            objects = self.job.ledger.finish(plan, self._tally.done[plan.number])
            if budget.exceeded(objects.rows.bad, plan.rows):
                too_bad.append((plan, objects))
            else:
                self._record_done(plan, objects)
        whole = {plan.number for plan in plans} - broken
        self._over = [one for one in self._tally.over if one.plan.number not in whole]
        for one in self._over:
            self._leave(one.plan, PlanState.TOO_BAD)
        may_stay = accepted(self.job.store, self.job.ledger.root, [plan for plan, _ in too_bad]) if too_bad else {}
        # One bad delivery does not hold up the others; and what newer ones have replaced since counts no more.
        for plan, objects in reversed(too_bad):
            if plan.number in may_stay:
                self._record_done(plan, objects, why=may_stay[plan.number].why)
            elif budget.exceeded((reasons := reasons_left(self.job, plan, objects)).by_code.total(), plan.rows):
                self._over.append(OverBudget(plan, reasons))
                self._leave(plan, PlanState.TOO_BAD, objects.rows)
            else:
                self.say(f"{plan.name}: {objects.rows.describe()}; its bad rows are replaced or taken away: done")
                self._record_done(plan, objects)
                self._taken_away.add(plan.number)

    def _record_done(self, plan: Plan, objects: DoneRecord, why: str = "") -> None:
        if self._done:
            self.job.ledger.record_done(plan, objects)
        else:
            record_first(self.job.ledger, plan, objects, self.say)
        self._done.add(plan.number)
        self.report.plans.append(plan.number)
        self._leave(plan, PlanState.ACCEPTED if why else PlanState.DONE, objects.rows, why)
        if objects.rows.gone:
            self._gaps[plan.number] = objects.with_gaps
            self.report.gone += objects.gone

    def _leave(self, plan: Plan, state: PlanState, rows: Rows = NO_ROWS, why: str = "") -> None:
        self._left[plan.number] = PlanReport(plan=plan.number, day=plan.day, state=state, rows=rows, why=why)

    def _count_rows(self, *, hurry: bool) -> None:
        """What has become of the rows of this run's plans, and of all plans; hardly anything is read for it."""
        ledger, known = self.job.ledger, self._tally.done
        rows = {number: left.rows for number, left in self._left.items() if left.rows.total}
        by_number = {plan.number: plan for plan in self._plans}
        rows |= {n: ledger.rows(by_number[n], known[n]) for n in by_number.keys() - rows.keys() - self._done}
        self.report.of_plans = [
            replace(left, rows=rows.get(number) or ledger.done_rows([number]))  # another run may have done it meanwhile
            for number, left in sorted(self._left.items())
        ]
        before = by_number.keys() - rows.keys()
        self.report.data_set = sum(rows.values(), ledger.done_rows(before))
        self.report.data_set_plans = len(by_number)
        if self.report.data_set.bad and not hurry:
            said = accepted(self.job.store, ledger.root, self._plans)
            self.report.accepted = {by_number[number].name: its.why for number, its in sorted(said.items())}

    def _compose(self, *, hurry: bool) -> None:
        # A night with nothing to do does not look up what a worker costs.
        price = self._price if self.report.workers else Price()
        compose(self.report, self.job, price, self._tally.distributions, self._accuracy, hurry=hurry)

    def _write_report(self) -> None:
        self.report.elapsed_s = round(time.monotonic() - self._began, 2)
        self.report.ended = datetime.now(UTC).isoformat(timespec="seconds")
        self._progress.enter("finishing", "report")
        self._progress.end()
        self.report.phases = self._progress.timeline
        self._journal.close()
        if lines := self.report.table.get("lines"):
            lines.append(
                f"kept its image's prediction, without being decoded: {counted(self.report.rows_copied, 'row')}"
            )
        hurry = self.report.outcome == Interrupted.__name__  # whoever sent SIGTERM may send SIGKILL soon
        for part in (self._count_rows, self._compose):
            try:
                part(hurry=hurry)
            except (StoreError, StoreDenied, RunFailed) as error:
                self.say(f"the run's report is not whole (predictions are not affected): {error}")
        save_report(self.job, self.report, self.say, pictures=not hurry)
