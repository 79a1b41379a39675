"""`stint` = `python -m jobs`. Exit codes are the API of a nightly job; `jobs.errors` lists them.

Importing this module imports neither torch nor Ray: the head node needs no torch, and thread variables must be set
before its OpenMP pool exists.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

from jobs.errors import COMPLETE, FAILED, INTERRUPTED, StintError
from jobs.interrupt import InterruptFlag
from jobs.job import Job
from jobs.pool import Cluster
from jobs.report import summary
from jobs.running import Run
from jobs.spec import JobSpec, load_spec
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
        sub.add_argument("--as-of", type=date.fromisoformat, metavar="DATE", help="value of {as_of}; default: today")

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
    add("schema", _schema, "JSON Schema of the spec")
    return parser


# ---------------------------------------------------------------------------------------- commands


def _run(arguments: argparse.Namespace) -> int:
    report = _new_run(arguments).complete()
    print(summary(report))
    return COMPLETE


def _quantize(arguments: argparse.Namespace) -> int:
    outcome = _new_run(arguments).bundle()
    if not outcome.created and outcome.table:
        _say(outcome.table)
    return COMPLETE


def _plan(arguments: argparse.Namespace) -> int:
    from jobs.planned import describe_plan

    print(describe_plan(Job.open(_spec(arguments), writing=False)))
    return COMPLETE


def _status(arguments: argparse.Namespace) -> int:
    from jobs.planned import describe_status

    print(describe_status(Job.open(_spec(arguments), writing=False)))
    return COMPLETE


def _verify(arguments: argparse.Namespace) -> int:
    from jobs.verify import verify

    verdict = verify(Job.open(_spec(arguments), writing=False))
    for note in verdict.notes:
        print(f"note: {note}")
    for problem in verdict.problems:
        print(f"PROBLEM: {problem}")
    print(("verified: " if verdict.ok else f"{len(verdict.problems)} problem(s): ") + verdict.summary())
    return COMPLETE if verdict.ok else FAILED


def _schema(_: argparse.Namespace) -> int:
    print(json.dumps(JobSpec.model_json_schema(), indent=2))
    return COMPLETE


def _demo(arguments: argparse.Namespace) -> int:
    from jobs.demo import demo

    return demo(Path(arguments.folder))


# ------------------------------------------------------------------------------------------ helpers


def _spec(arguments: argparse.Namespace) -> JobSpec:
    return load_spec(arguments.spec, arguments.overrides, arguments.as_of)


def _new_run(arguments: argparse.Namespace) -> Run:
    flag = InterruptFlag()
    flag.install()
    return Run(
        job=Job.open(_spec(arguments)),
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
