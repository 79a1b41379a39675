"""`stint` = `python -m jobs`. Exit codes are the API of a nightly job; `jobs.errors` lists them.

Importing this module imports neither torch nor Ray: the head node needs no torch, and thread variables must be set
before its OpenMP pool exists.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from jobs.arguments import parser
from jobs.errors import COMPLETE, FAILED, INTERRUPTED, NothingThere, StintError
from jobs.interrupt import InterruptFlag
from jobs.plan.job import Job
from jobs.pool.contract import Cluster
from jobs.progress.displays import display_for
from jobs.report.report import summary
from jobs.run.run import Run
from jobs.spec.days import Days, runs
from jobs.spec.load import load_spec
from jobs.spec.schema import JobSpec
from workers.bundle.profiles import HostKind
from workers.host.without_pandas import without_pandas
from workers.redaction import redacted
from workers.storage.errors import StoreDenied, StoreError

if TYPE_CHECKING:
    from jobs.measure.tune import Nodes

# ----------------------------------------------------------------------------------------------------
# Where the workers of a command run: a Ray cluster, a Ray of this machine's own, or the command's process.


def in_cluster(address: str | None) -> bool:
    """Whether workers run in a cluster that is there, and not on this machine alone."""
    return bool(address or os.environ.get("RAY_ADDRESS"))


def connect(pool: str, address: str | None, flag: InterruptFlag) -> Cluster:
    """`pool` is `ray` or `local`. Raises what connecting to Ray does, see jobs.pool.ray_cluster."""
    cluster: Cluster
    if pool == "local":
        from jobs.pool.local import LocalCluster

        cluster = LocalCluster()
    else:
        from jobs.pool.ray_cluster import RayCluster

        cluster = RayCluster(address)
    flag.install()  # ray.init puts its own handlers in place
    return cluster


def entrypoint() -> None:
    sys.path.insert(0, "")  # as `python -m` does: a model's module:function may lie in the working directory
    sys.excepthook = _show_bug
    without_pandas()
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; one line on stderr says what happened when it is not 0."""
    arguments = parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments)
    except StintError as error:
        print(f"stint: {error}" + (f"\nnext: {error.next_step}" if error.next_step else ""), file=sys.stderr)
        return error.exit_code
    except (StoreError, StoreDenied) as error:
        print(
            f"stint: {redacted(str(error))}\nnext: check the store and its credentials, then run again", file=sys.stderr
        )
        return FAILED
    except KeyboardInterrupt:
        print("stint: interrupted", file=sys.stderr)
        return INTERRUPTED


# ---------------------------------------------------------------------------------------- commands


def _run(arguments: argparse.Namespace) -> int:
    flag = _interrupts()
    return _each(arguments, lambda days: _show(summary(_new_run(arguments, days, flag).complete())))


def _quantize(arguments: argparse.Namespace) -> int:
    outcome = _new_run(arguments, _runs(arguments)[-1], _interrupts()).bundle()
    if not outcome.created and outcome.table:
        _say(outcome.table)
    return COMPLETE


def _tune(arguments: argparse.Namespace) -> int:
    from jobs.measure.tune import Tuning

    flag = _interrupts()
    job = Job.open(_spec(arguments), _runs(arguments)[-1])

    def nodes(_: Cluster) -> Nodes:
        from jobs.measure.tune_ray import RayNodes

        return RayNodes(job.spec.workers.groups, flag, _say)

    tuning = Tuning(
        job=job,
        connect=lambda: connect("ray", arguments.address, flag),
        nodes=nodes if in_cluster(arguments.address) else None,
        seconds=arguments.minutes * 60,
        interrupted=flag,
        say=_say,
    )
    for text in tuning.complete():
        _show(text)
    return COMPLETE


def _plan(arguments: argparse.Namespace) -> int:
    from jobs.queries.dry_run import describe_plan

    return _each(arguments, lambda days: _show(describe_plan(_job(arguments, days))))


def _status(arguments: argparse.Namespace) -> int:
    from jobs.queries.status import describe_status, watch

    if arguments.watch:
        job = _job(arguments, _runs(arguments)[-1])
        if told := watch(job, display_for(sys.stdout), every_s=arguments.every):
            _show(told)
        return COMPLETE
    return _each(arguments, lambda days: _show(describe_status(_job(arguments, days))))


def _verify(arguments: argparse.Namespace) -> int:
    from jobs.queries.verify import verify

    verdicts = []

    def check(days: Days | None) -> None:
        verdict = verify(_job(arguments, days))
        for note in verdict.notes:
            _show(f"note: {note}")
        for problem in verdict.problems:
            _show(f"PROBLEM: {problem}")
        print(("verified: " if verdict.ok else f"{len(verdict.problems)} problem(s): ") + verdict.summary())
        verdicts.append(verdict)

    _each(arguments, check)
    return COMPLETE if all(verdict.ok for verdict in verdicts) else FAILED


def _report(arguments: argparse.Namespace) -> int:
    from jobs.queries.report import report_command

    job = _job(arguments, _runs(arguments)[-1])
    return report_command(job, run_id=arguments.run, history=arguments.history, html=arguments.html, show=_show)


def _sample(arguments: argparse.Namespace) -> int:
    from jobs.queries.contact_sheet import sample_command

    return sample_command(arguments, _job(arguments, _runs(arguments)[-1]), _show)


def _explain(arguments: argparse.Namespace) -> int:
    from jobs.queries.explain import explain_command

    return explain_command(_job(arguments, _runs(arguments)[-1]), arguments.key, as_json=arguments.json, show=_show)


def _promote(arguments: argparse.Namespace) -> int:
    from jobs.promote import promote

    def move(days: Days | None) -> None:
        print(promote(_job(arguments, days), arguments.to, allow_fewer=arguments.allow_fewer))

    return _each(arguments, move)


def _nightly(arguments: argparse.Namespace) -> int:
    from jobs.launch.nightly import nightly

    return nightly(
        template=arguments.template,
        namespace=arguments.namespace,
        as_of=arguments.as_of,
        zone=arguments.timezone or None,
        job=arguments.job or None,
        keep_nights=arguments.keep,
        interrupted=_interrupts(),
        say=_say,
    )


def _submit(arguments: argparse.Namespace) -> int:
    from jobs.launch.submit import prepare, submit

    # Interrupted, code 5, also before there is a job to wait for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    prepared = prepare(
        arguments.spec,
        arguments.overrides,
        arguments.days,
        working_dir=arguments.working_dir,
        env=arguments.env,
        address=arguments.address,
        say=_say,
    )
    return submit(prepared, wait=arguments.wait, say=_say)


def _schema(_: argparse.Namespace) -> int:
    print(json.dumps(JobSpec.model_json_schema(), indent=2))
    return COMPLETE


def _bench(arguments: argparse.Namespace) -> int:
    from jobs.measure.bench import bench_command

    return bench_command(arguments, _say)


def _compare(arguments: argparse.Namespace) -> int:
    from jobs.measure.compare import compare_command

    return compare_command(arguments, _job(arguments, _runs(arguments)[-1]), _interrupts(), show=_show, say=_say)


def _demo(arguments: argparse.Namespace) -> int:
    from jobs.demo import demo

    return demo(Path(arguments.folder), main)


COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "demo": _demo,
    "run": _run,
    "quantize": _quantize,
    "tune": _tune,
    "compare": _compare,
    "plan": _plan,
    "status": _status,
    "verify": _verify,
    "report": _report,
    "sample": _sample,
    "explain": _explain,
    "promote": _promote,
    "submit": _submit,
    "nightly": _nightly,
    "schema": _schema,
    "bench": _bench,
}


# ------------------------------------------------------------------------------------------ helpers


def _spec(arguments: argparse.Namespace) -> JobSpec:
    return load_spec(arguments.spec, arguments.overrides)


def _runs(arguments: argparse.Namespace) -> list[Days | None]:
    """The days of each run that the command stands for."""
    spec = _spec(arguments)
    return runs(arguments.days, spec.input.by_date, spec.output.uri)


def _each(arguments: argparse.Namespace, do: Callable[[Days | None], None]) -> int:
    """Each of the command's runs; of several, those of days without a delivery are named and passed over."""
    of_days = _runs(arguments)
    absent = 0
    for days in of_days:
        try:
            do(days)
        except NothingThere as error:
            absent += 1
            if absent == len(of_days):
                raise
            _say(f"{days} is passed over: {error}")
    return COMPLETE


def _job(arguments: argparse.Namespace, days: Days | None) -> Job:
    """For commands that only look."""
    return Job.open(_spec(arguments), days, writing=False)


def _interrupts() -> InterruptFlag:
    flag = InterruptFlag()
    flag.install()
    return flag


def _new_run(arguments: argparse.Namespace, days: Days | None, flag: InterruptFlag) -> Run:
    job = Job.open(_spec(arguments), days)
    progress = getattr(arguments, "progress", "auto")  # of `stint run` alone
    return Run(
        job=job if in_cluster(arguments.address) else replace(job, host=HostKind.here()),
        connect=lambda: connect(arguments.pool, arguments.address, flag),
        interrupted=flag,
        say=_say if progress != "json" else _say_as_json,
        progress=progress,
    )


def _show_bug(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
    """As Python does it, without credentials that a library may have put into its error."""
    print(redacted("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def _show(text: str) -> None:
    """What a command is asked for."""
    print(redacted(text))


def _say_as_json(text: str) -> None:
    display_for(sys.stderr, "json").note(redacted(text))


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that has gone away ends no run
        print(redacted(text), file=sys.stderr, flush=True)
