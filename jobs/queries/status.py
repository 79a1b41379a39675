"""`stint status`: plans and runs as the ledger has them, also those of runs that died; and a run under way, watched.

Nothing but the ledger is read, so it does not matter where a run is, or whether it still is.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from jobs.console import Console
from jobs.errors import COMPLETE
from jobs.input.passed_over import passed_over_lines
from jobs.ledger.accepted import accepted
from jobs.ledger.current import current_root, roots
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Shards
from jobs.plan.command_line import for_each_day, last_job_of
from jobs.plan.job import Job
from jobs.progress.displays import Display, display_for
from jobs.progress.format import first_few
from jobs.progress.snapshot import Snapshot
from jobs.report.report import PlanReport, PlanState
from jobs.report.runs import RunSeen, newest_runs, read_run
from workers.counted import counted
from workers.redaction import redacted
from workers.storage.errors import StoreError

RECENT = timedelta(days=1)
EVERY_S = 5.0
LOOK_SHARE = 0.05
"""Time spent on looking while a run is watched, as a share of all: listing a million shards takes a while."""


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint status`."""
    if not arguments.watch:
        return for_each_day(arguments, console, lambda job: console.show(describe_status(job)))
    if ended := watch(last_job_of(arguments), display_for(sys.stdout), every_s=arguments.every):
        console.show(ended)
    return COMPLETE


# ------------------------------------------------------------------------------------------- status


def describe_status(job: Job, now: datetime | None = None) -> str:
    """A line a plan: shards there, rows, done or not, and which shards have killed workers. A line a run: those of the
    last day, those under way, and the last one with this model. Reads the ledger only."""
    now = now or datetime.now(UTC)
    plans, done = job.ledger.plans(), job.ledger.done_numbers()
    lines = [f"job {job.spec.name}: {job.store.url}/{job.fingerprints.root}/"]
    if current := current_root(job.store):
        lines.append(f"readers follow {current}" + (" (this model)" if current == job.fingerprints.root else ""))
    if others := [root for root in roots(job.store.url) if root != job.fingerprints.root]:
        lines.append(f"other models here: {', '.join(others)}")
    open_plans = {plan.number for plan in plans} - done
    runs_seen = newest_runs(job.store)
    runs = _runs(runs_seen, job, now, left=bool(open_plans))
    if not plans:
        return "\n".join([*lines, "no plan yet: nothing has been scored with this model", *runs])
    crashes = job.ledger.crashes(open_plans) if open_plans else {}
    said = accepted(job.store, job.ledger.root, plans)
    too_bad = _too_bad(runs_seen, job.ledger.root)
    for plan in plans:
        if plan.number in done:
            record = job.ledger.read_done(plan.number)
            rows = f"{counted(record.rows.ok, 'row')} ok, {record.rows.bad:,} bad"
            why = f"; accepted: {said[plan.number].why}" if plan.number in said else ""
            lines.append(f"plan {plan.number}: done, {counted(len(record), 'shard')}, {rows}{why}")
            if record.rows.gone:
                gone = f"{counted(record.rows.gone, 'row')} whose file vanished or changed"
                lines.append(f"  beside these {gone}: {', '.join(first_few(record.gone, 'of them'))}")
            continue
        missing = job.ledger.missing(plan)
        if (left := too_bad.get(plan.number)) is not None and plan.number not in said:
            lines.append(
                f"{plan.name}: {left.state}: {left.rows.describe()}; have its files replaced or taken out, or close it "
                f"with `stint accept SPEC --plan {plan.number} --why TEXT`"
            )
            continue
        how = "run the job to finish it"
        if plan.number in said:
            how = f"accepted: {said[plan.number].why}; the next run finishes it"
        lines.append(
            f"plan {plan.number}: open, {len(plan.shards) - len(missing):,} of {counted(len(plan.shards), 'shard')}, "
            f"{plan.rows - missing.rows:,} of {counted(plan.rows, 'row')}; {how}"
        )
        killers = [
            f"  {shard.describe()}: its worker died {counted(crashes[shard.key], 'time')}"
            for shard in missing
            if shard.key in crashes
        ]
        lines += first_few(killers, "shards whose worker died")
    return "\n".join([*lines, *runs])


def _too_bad(runs: Sequence[RunSeen], root: str) -> dict[int, PlanReport]:
    """Plans that the last run that worked on them has left open, because of their bad rows, by number."""
    reports = (run.report for run in runs if run.report is not None and run.root == root)
    last = {left.plan: left for report in reports for left in report.of_plans}
    return {number: left for number, left in last.items() if left.state == PlanState.TOO_BAD}


def _runs(runs: Sequence[RunSeen], job: Job, now: datetime, *, left: bool) -> list[str]:
    """Those of other models and of other jobs with their names."""
    root = job.ledger.root

    def others(run: RunSeen) -> str:
        named = [f"job {run.job}"] if run.job not in ("", job.spec.name) else []
        named += [run.root] if run.root not in ("", root) else []
        return f" ({', '.join(named)})" if named else ""

    recent = f"{now.astimezone(UTC) - RECENT:%Y%m%dT%H%M%SZ}"
    last = next((run for run in reversed(runs) if run.root == root), None)
    listed = next((run.report for run in reversed(runs) if run.root == root and run.report is not None), None)
    return [
        f"run {run.run_id}: {run.describe(now, left=left)}{others(run)}"
        for run in runs
        if run is last or run.run_id >= recent or run.under_way(now)
    ] + passed_over_lines(listed.passed_over if listed else ())


# -------------------------------------------------------------------------------------------- watch


def watch(
    job: Job,
    display: Display,
    *,
    every_s: float = EVERY_S,
    now: Callable[[], datetime] = partial(datetime.now, UTC),  # noqa: B008  (a function)
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Show the newest run that is under way with the job's model until it has ended; how it did, for a person. Nothing,
    when the terminal has gone away.

    The ledger is looked at every `every_s`, and less often where that takes long. A store that fails is asked again.
    Raises StoreDenied.
    """
    run: RunSeen | None = None
    seen: Snapshot | None = None
    failing = False
    with closing(display):
        while True:
            began = clock()
            try:
                if run is not None:
                    run = read_run(job.store, run.run_id)
                else:
                    here = (run for run in reversed(newest_runs(job.store)) if run.root == job.ledger.root)
                    run = next((run for run in here if run.under_way(now())), None)
                if run is None:
                    return f"nothing is under way\n{describe_status(job, now())}"
                if not run.under_way(now()):
                    return f"run {run.run_id}: {run.describe(now(), left=bool(missing_of(job.ledger)))}"
                assert run.snapshot is not None, "it is under way"
                seen = with_ledger(run.snapshot, missing_of(job.ledger))
                failing = False
            except StoreError as error:
                if not failing:
                    display.note(f"could not look at the ledger, trying again: {redacted(str(error))}")
                failing = True
            again_at = clock() + max(every_s, (clock() - began) / LOOK_SHARE)
            while (left_s := again_at - clock()) > 0:
                if display.gone:
                    return ""
                if run is not None and seen is not None:
                    heard_s = run.heard_s(now())
                    display.show(aged(seen, heard_s), heard_s=heard_s)
                sleep(min(left_s, display.every_s))


def missing_of(ledger: Ledger) -> Shards:
    """Shards of the open plans that have no object."""
    done = ledger.done_numbers()
    return ledger.missing(*(plan for plan in ledger.plans() if plan.number not in done))


def with_ledger(snapshot: Snapshot, missing: Shards) -> Snapshot:
    """With what has been committed since, by this run or by others, as rows found done.

    A run works on the plans that were open when it began. Plans claimed later make this see less than there is, and
    never less than the run itself has said.
    """
    rows = max(0, snapshot.rows_total - missing.rows - snapshot.rows_done)
    shards = max(snapshot.shards_done, snapshot.shards_total - len(missing))
    left = {f"{plan.number:08d}": numbers for plan, numbers in missing.parts}

    def is_left(name: str) -> bool:
        plan, _, index = name.partition("/")
        return plan in left and bool((left[plan] == int(index)).any())

    return replace(
        snapshot,
        rows_elsewhere=snapshot.rows_elsewhere + rows,
        shards_done=shards,
        slowest=tuple(held for held in snapshot.slowest if is_left(held.shard)),
    )


def aged(snapshot: Snapshot, by_s: float) -> Snapshot:
    """As it stands so much later, if everything went on as it was."""
    eta, left_s = snapshot.eta_s, snapshot.deadline_in_s
    return replace(
        snapshot,
        elapsed_s=snapshot.elapsed_s + by_s,
        phase_s=snapshot.phase_s + by_s,
        eta_s=None if eta is None else (max(0.0, eta[0] - by_s), max(0.0, eta[1] - by_s)),
        deadline_in_s=None if left_s is None else left_s - by_s,
        slowest=tuple(replace(held, age_s=held.age_s + by_s) for held in snapshot.slowest),
    )
