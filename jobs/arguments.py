"""The command line: its commands and their options. What they do is in `jobs.cli`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import date
from pathlib import Path

from jobs.spec.days import Days, parse_day, parse_days

EPILOG = """exit codes: 0 complete · 1 failed or incomplete · 2 bad spec or usage · 3 bad-row budget exceeded ·
4 accuracy gate refused · 5 interrupted, safe to resume"""

MOST_MINUTES = 24 * 60
WAYS = ("auto", "live", "lines", "json")
"""How a run may be shown (jobs.progress.displays); auto: live on a terminal, lines elsewhere."""


def parser() -> argparse.ArgumentParser:
    """Its result has the name of the command as `command`, and the options of that command."""
    root = argparse.ArgumentParser(
        prog="stint", description="Score every image of a data set, exactly once, with an INT8 model on CPU nodes.",
        epilog=EPILOG,
    )  # fmt: skip
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

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

    demo = add("demo", "make data, train a small network, run the whole job on it and verify")
    demo.add_argument("--folder", default="demo-out", help="where to put it (default: %(default)s)")
    for name, text in (
        ("run", "score what is missing: bundle, plan, predictions, done record"),
        ("quantize", "make the INT8 bundle and compare it with fp32"),
    ):
        sub = add(name, text)
        add_spec(sub)
        add_cluster(sub)
        if name == "run":
            sub.add_argument(
                "--progress", type=_way, default=os.environ.get("STINT_PROGRESS") or "auto", metavar="|".join(WAYS),
                help="how it is shown (default: STINT_PROGRESS, or auto: live on a terminal, lines elsewhere)",
            )  # fmt: skip
    tune = add("tune", "measure engines, cores a worker and batches on this node, or on one of each kind of a cluster")
    add_spec(tune)
    tune.add_argument(
        "--address", help="Ray cluster whose nodes are tuned; default: RAY_ADDRESS, or else this machine, without Ray"
    )
    tune.add_argument(
        "--minutes", type=_minutes, default=5.0, help="about how long it may take a node (default: %(default)s)"
    )
    compare = add(
        "compare", "weigh smaller, pruned, INT8, bf16 and fp32 networks on the job's sample: accuracy and cost"
    )
    add_spec(compare)
    add_compare(compare)
    for name, text in (
        ("plan", "dry run: shards, rows, time and cost of what is new or missing"),
        ("status", "plans, shards, rows and runs as the ledger has them"),
        ("verify", "prove that input and output rows match one to one"),
    ):
        sub = add(name, text)
        add_spec(sub)
        if name == "status":
            sub.add_argument("--watch", action="store_true", help="show the run that is under way until it has ended")
            sub.add_argument(
                "--every", type=_seconds, default=5.0, metavar="S", help="how often to look (default: %(default)s)"
            )
    report = add("report", "what a run did: the last one, another one, or how the nights went; as text or as a page")
    add_spec(report)
    shown = report.add_mutually_exclusive_group()
    shown.add_argument("--run", metavar="RUN_ID", help="not the last run with this model but this one; also if it died")
    shown.add_argument("--history", action="store_true", help="a line a night")
    report.add_argument("--html", type=Path, metavar="FILE", help="write the page there instead")
    add_sample(add("sample", "look at some predictions: a page of images, labels and scores"), add_spec)
    explain = add("explain", "follow one row: prediction, source, plan, shard, attempts, object, model")
    add_spec(explain)
    explain.add_argument(
        "key", metavar="KEY", help="NAME=VALUE[,NAME=VALUE] of keys, URI#ROWGROUP/ROW, or an image's URI"
    )
    explain.add_argument("--json", action="store_true", help="print it as JSON")
    nightly = add("nightly", "in a CronJob: make the night's RayJob, wait for its end, return its exit code")
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
    promote = add("promote", "let readers follow this job's model, once it has scored everything")
    add_spec(promote)
    promote.add_argument("--to", metavar="ROOT", help="another root of the output instead, as model=resnet50-0123…")
    promote.add_argument(
        "--allow-fewer", action="store_true", help="also if the current model has predictions of more files"
    )
    submit = add("submit", "run the job in a cluster that is reached over HTTP; safe to repeat")
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
    add_bench(add("bench", "from fp32 as torch runs it to the whole job: what each step gives on this machine"))
    add("schema", "JSON Schema of the spec")
    return root


def add_sample(sub: argparse.ArgumentParser, add_spec: Callable[[argparse.ArgumentParser], None]) -> None:
    add_spec(sub)
    sub.add_argument(
        "--where", metavar="SQL", help="condition over the columns of the output, as \"label = '3' AND score < 0.6\""
    )
    sub.add_argument("-n", type=_rows_shown, default=60, metavar="N", help="rows to show (default: %(default)s)")
    sub.add_argument(
        "--order", choices=("random", "score", "-score"), default="random",
        help="which rows: any, least score first, or greatest score first (write --order=-score)",
    )  # fmt: skip
    sub.add_argument("--seed", type=int, default=0, help="another one takes other rows (default: %(default)s)")
    sub.add_argument("--open", action="store_true", help="also rows of plans that are not done yet")
    sub.add_argument("--fp32", action="store_true", help="ask the fp32 network as well, and mark where it differs")
    sub.add_argument(
        "--html", type=Path, default=Path("sample.html"), metavar="FILE", help="the page (default: %(default)s)"
    )


def add_compare(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--arch", type=_list, action="extend", default=[], metavar="A,B=FILE",
        help="networks to weigh beside the job's own, as torchvision/resnet18; with DEFAULT weights, or those of FILE",
    )  # fmt: skip
    sub.add_argument(
        "--prune", type=_shares, default=(0.1, 0.25, 0.5), metavar="P,P",
        help="percent of the job's network to take out, by multiplications; none: 0 (default: 10,25,50)",
    )  # fmt: skip
    sub.add_argument(
        "--save-pruned", type=Path, metavar="DIR", help="write the pruned networks there, as models that a job can name"
    )
    sub.add_argument(
        "--seconds", type=float, default=5.0, help="to measure each candidate (default: %(default)s); more is steadier"
    )
    sub.add_argument(
        "--picture", type=Path, metavar="FILE", help="of the frontier, .svg or .png (default: compare-NAME.svg)"
    )
    sub.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def add_bench(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "spec", metavar="SPEC", nargs="?", help="a job, measured on a sample of its images; default: see --arch"
    )
    sub.add_argument(
        "--set", action="append", default=[], metavar="A.B=V", dest="overrides", help="override a key of the spec"
    )
    sub.add_argument(
        "--arch", help="network to measure without a SPEC, with random weights on made photographs (default: resnet50)"
    )
    sub.add_argument(
        "--minutes",
        type=_minutes,
        default=4.0,
        help="about how long it may take (default: %(default)s); more is steadier",
    )
    sub.add_argument("--picture", type=Path, metavar="FILE", help="draw the ladder, as bench.svg or bench.png")
    sub.add_argument("--json", action="store_true", help="print it as JSON")


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(f"{text}: a number of minutes above 0, at most {MOST_MINUTES}")
    return minutes


def _rows_shown(text: str) -> int:
    rows = int(text)
    if not 0 < rows <= 1000:
        raise argparse.ArgumentTypeError(f"{text}: a page shows 1 to 1000 rows")
    return rows


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= MOST_MINUTES * 60:
        raise argparse.ArgumentTypeError(f"{text}: a number of seconds above 0, at most {MOST_MINUTES * 60}")
    return seconds


def _way(text: str) -> str:
    if text not in WAYS:
        raise argparse.ArgumentTypeError(f"{text!r}: one of {', '.join(WAYS)} is wanted")
    return text


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _shares(text: str) -> tuple[float, ...]:
    percents = sorted({float(part) for part in _list(text)} - {0.0})
    if any(not 0 < percent < 100 for percent in percents):
        raise argparse.ArgumentTypeError(f"{text}: percentages above 0 and below 100, as 10,25,50; or 0 for none")
    return tuple(percent / 100 for percent in percents)


def _dates(parse: Callable[[str], Days]) -> Callable[[str], Days]:
    """For argparse, which shows the words of this error only."""

    def parsed(text: str) -> Days:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed
