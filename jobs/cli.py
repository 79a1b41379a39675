"""`stint` = `python -m jobs`. Exit codes are the API of a nightly job; `jobs.errors` lists them.

Importing this module imports neither torch nor Ray: the head node needs no torch, and thread variables must be set
before its OpenMP pool exists.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from jobs.days import Days, parse_day, parse_days, runs
from jobs.errors import COMPLETE, FAILED, INTERRUPTED, NothingThere, StintError
from jobs.interrupt import InterruptFlag
from jobs.job import Job
from jobs.pool import Cluster
from jobs.report import summary
from jobs.running import Run
from jobs.spec import JobSpec
from jobs.spec_file import load_spec
from workers.store import StoreDenied, StoreError

EPILOG = """exit codes: 0 complete · 1 failed or incomplete · 2 bad spec or usage · 3 bad-row budget exceeded ·
4 accuracy gate refused · 5 interrupted, safe to resume"""


def entrypoint() -> None:
    sys.path.insert(0, "")  # as `python -m` does: a model's module:function may lie in the working directory
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; one line on stderr says what happened when it is not 0."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except StintError as error:
        print(f"stint: {error}" + (f"\nnext: {error.next_step}" if error.next_step else ""), file=sys.stderr)
        return error.exit_code
    except (StoreError, StoreDenied) as error:
        print(f"stint: {error}\nnext: check the store and its credentials, then run again", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("stint: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stint", description="Score every image of a data set, exactly once, with an INT8 model on CPU nodes.",
        epilog=EPILOG,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    def add_spec(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("spec", metavar="SPEC", help="YAML file, as conf/demo.yaml")
        sub.add_argument(
            "--set", action="append", default=[], metavar="A.B=V", dest="overrides", help="override a key of the spec"
        )
        days = sub.add_mutually_exclusive_group()
        days.add_argument(
            "--as-of", type=_dates(parse_day), metavar="DATE", dest="days", help="value of {as_of}; default: today"
        )
        days.add_argument(
            "--backfill", type=_dates(parse_days), metavar="FROM..TO", dest="days", help="every day of these"
        )

    def add_cluster(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--address", help="Ray cluster; default: RAY_ADDRESS, or else a Ray of its own on this machine"
        )
        sub.add_argument(
            "--pool", choices=("ray", "local"), default="ray", help="local: one worker in this process, for a debugger"
        )

    demo = add("demo", _demo, "make data, train a small network, run the whole job on it and verify")
    demo.add_argument("--folder", default="demo-out", help="where to put it (default: %(default)s)")
    for name, command, text in (
        ("run", _run, "score what is missing: bundle, plan, predictions, done record"),
        ("quantize", _quantize, "make the INT8 bundle and compare it with fp32"),
    ):
        sub = add(name, command, text)
        add_spec(sub)
        add_cluster(sub)
    for name, command, text in (
        ("plan", _plan, "dry run: shards, rows, time and cost of what is new or missing"),
        ("status", _status, "plans, shards and rows as the ledger has them"),
        ("verify", _verify, "prove that input and output rows match one to one"),
    ):
        add_spec(add(name, command, text))
    nightly = add("nightly", _nightly, "in a CronJob: make the night's RayJob, wait for its end, return its exit code")
    nightly.add_argument("--template", required=True, metavar="NAME", help="suspended RayJob to copy")
    nightly.add_argument("--namespace", help="default: the pod's, or the kubeconfig's")
    nightly.add_argument("--as-of", type=date.fromisoformat, metavar="DATE", help="the night; default: see --job")
    nightly.add_argument(
        "--job", default=os.environ.get("STINT_JOB_NAME"), metavar="NAME",
        help="the CronJob's Job, whose scheduled time is the night (default: STINT_JOB_NAME, or else now)",
    )  # fmt: skip
    nightly.add_argument(
        "--timezone", default=os.environ.get("TZ"), metavar="ZONE", help="of the date (default: TZ, or the CronJob's)"
    )
    nightly.add_argument(
        "--keep", type=int, default=30, metavar="NIGHTS", help="delete older RayJobs; 0: none (default: %(default)s)"
    )
    promote = add("promote", _promote, "let readers follow this job's model, once it has scored everything")
    add_spec(promote)
    promote.add_argument("--to", metavar="ROOT", help="another root of the output instead, as model=resnet50-0123…")
    promote.add_argument(
        "--allow-fewer", action="store_true", help="also if the current model has predictions of more files"
    )
    submit = add("submit", _submit, "run the job in a cluster that is reached over HTTP; safe to repeat")
    add_spec(submit)
    submit.add_argument(
        "--address", metavar="URL", help="http://HOST:8265; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS"
    )
    submit.add_argument("--wait", action="store_true", help="follow the log and end with the run's exit code")
    submit.add_argument(
        "--working-dir", default=".", metavar="DIR",
        help="what is uploaded, less what .rayignore and .gitignore name (default: the current directory)",
    )  # fmt: skip
    submit.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="variable of the job; NAME: as it is here"
    )
    add("schema", _schema, "JSON Schema of the spec")
    return parser


# ---------------------------------------------------------------------------------------- commands


def _run(arguments: argparse.Namespace) -> int:
    return _each(arguments, lambda days: print(summary(_new_run(arguments, days).complete())))


def _quantize(arguments: argparse.Namespace) -> int:
    outcome = _new_run(arguments, _runs(arguments)[-1]).bundle()
    if not outcome.created and outcome.table:
        _say(outcome.table)
    return COMPLETE


def _plan(arguments: argparse.Namespace) -> int:
    from jobs.planned import describe_plan

    return _each(arguments, lambda days: print(describe_plan(_job(arguments, days))))


def _status(arguments: argparse.Namespace) -> int:
    from jobs.planned import describe_status

    return _each(arguments, lambda days: print(describe_status(_job(arguments, days))))


def _verify(arguments: argparse.Namespace) -> int:
    from jobs.verify import verify

    verdicts = []

    def check(days: Days | None) -> None:
        verdict = verify(_job(arguments, days))
        for note in verdict.notes:
            print(f"note: {note}")
        for problem in verdict.problems:
            print(f"PROBLEM: {problem}")
        print(("verified: " if verdict.ok else f"{len(verdict.problems)} problem(s): ") + verdict.summary())
        verdicts.append(verdict)

    _each(arguments, check)
    return COMPLETE if all(verdict.ok for verdict in verdicts) else FAILED


def _promote(arguments: argparse.Namespace) -> int:
    from jobs.promotion import promote

    def move(days: Days | None) -> None:
        print(promote(_job(arguments, days), arguments.to, allow_fewer=arguments.allow_fewer))

    return _each(arguments, move)


def _nightly(arguments: argparse.Namespace) -> int:
    from jobs.nightly import nightly

    flag = InterruptFlag()
    flag.install()
    return nightly(
        template=arguments.template,
        namespace=arguments.namespace,
        as_of=arguments.as_of,
        zone=arguments.timezone or None,
        job=arguments.job or None,
        keep_nights=arguments.keep,
        interrupted=flag,
        say=_say,
    )


def _submit(arguments: argparse.Namespace) -> int:
    from jobs.submit import prepare, submit

    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # interrupted, code 5, also before there is a job to wait for
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


def _demo(arguments: argparse.Namespace) -> int:
    from jobs.demo import demo

    return demo(Path(arguments.folder))


# ------------------------------------------------------------------------------------------ helpers


def _dates(parse: Callable[[str], Days]) -> Callable[[str], Days]:
    """For argparse, which shows the words of this error only."""

    def parsed(text: str) -> Days:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


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


def _new_run(arguments: argparse.Namespace, days: Days | None) -> Run:
    flag = InterruptFlag()
    flag.install()
    return Run(
        job=Job.open(_spec(arguments), days),
        connect=lambda: connect(arguments.pool, arguments.address, flag),
        interrupted=flag,
        say=_say,
    )


def connect(pool: str, address: str | None, flag: InterruptFlag) -> Cluster:
    cluster: Cluster
    if pool == "local":
        from jobs.local_pool import LocalCluster

        cluster = LocalCluster()
    else:
        from jobs.ray_pool import RayCluster

        cluster = RayCluster(address)
    flag.install()  # ray.init puts its own handlers in place
    return cluster


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
