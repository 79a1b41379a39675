"""The command line: its commands and their options. What they do is in `jobs.cli`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.errors import MEANING
from jobs.spec.days import parse_as_of, parse_days

VERSION = "0.1.0"
MOST_MINUTES = 24 * 60
WAYS = ("auto", "live", "lines", "json")
"""How a run may be shown (jobs.progress.displays); auto: live on a terminal, lines elsewhere."""


def parser() -> argparse.ArgumentParser:
    """Its result has the name of the command as `command`, and the options of that command."""
    root = argparse.ArgumentParser(
        prog="stint", description="Score every image of a data set, exactly once, with an INT8 model on CPU nodes.",
        epilog="exit codes: " + " · ".join(f"{code} {meaning}" for code, meaning in MEANING.items()),
    )  # fmt: skip
    root.add_argument("--version", action="version", version=f"stint {VERSION}")
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text)

    def of_job(name: str, text: str, *, to_do: str = "") -> argparse.ArgumentParser:
        sub = add(name, text)
        if to_do:
            sub.add_argument("to_do", choices=[to_do], metavar=to_do)
        sub.add_argument("spec", metavar="SPEC", help="YAML file, as conf/demo.yaml")
        _add_overrides(sub)
        option = sub.add_mutually_exclusive_group().add_argument
        day = "value of {as_of}, as 2026-03-01 or yesterday; default: today"
        option("--as-of", type=_in_words(parse_as_of), metavar="DATE", dest="days", help=day)
        option("--backfill", type=_in_words(parse_days), metavar="FROM..TO", dest="days", help="every day of these")
        return sub

    option = add("demo", "make data, train a small network, run the whole job on it and verify").add_argument
    option("--folder", default="demo-out", help="where to put it (default: %(default)s)")
    sub = of_job("run", "score what is missing: bundle, plan, predictions, done record")
    again = "score again: files with rows where this holds, as \"error_code = 'null'\"; a file or folder; a day's files"
    sub.add_argument("--again", metavar="SQL|FILE|DAY", help=again)
    way = os.environ.get("STINT_PROGRESS") or "auto"
    shown = "how it is shown (default: STINT_PROGRESS, or auto: live on a terminal, lines elsewhere)"
    sub.add_argument("--progress", type=_way, default=way, metavar="|".join(WAYS), help=shown)
    for option in (sub.add_argument, of_job("quantize", "make the INT8 bundle and compare it with fp32").add_argument):
        option("--address", help="Ray cluster; default: RAY_ADDRESS, or else a Ray of its own on this machine")
        pools = ("ray", "local")
        option("--pool", choices=pools, default="ray", help="local: one worker in this process, for a debugger")
    option = of_job("tune", "measure engines, cores a worker and batches, on this or each kind of node").add_argument
    option("--address", help="Ray cluster whose nodes are tuned; default: RAY_ADDRESS, else this machine, without Ray")
    option("--minutes", type=_minutes, default=5.0, help="about how long it may take a node (default: %(default)s)")
    option = of_job("compare", "weigh other, pruned, INT8, bf16 and fp32 networks: accuracy and cost").add_argument
    networks = "networks to weigh beside the job's own, as torchvision/resnet18; with DEFAULT weights, or those of FILE"
    option("--arch", type=_list, action="extend", default=[], metavar="A,B=FILE", help=networks)
    pruned = "percent of the job's network to take out, by multiplications; none: 0 (default: 10,25,50)"
    option("--prune", type=_in_words(_shares), default=(0.1, 0.25, 0.5), metavar="P,P", help=pruned)
    option("--save-pruned", type=Path, metavar="DIR", help="write the pruned networks there, for jobs to name")
    measured = "to measure each candidate (default: %(default)s); more is steadier"
    option("--seconds", type=_seconds, default=5.0, help=measured)
    option("--picture", type=Path, metavar="FILE", help="of the frontier, .svg or .png (default: compare-NAME.svg)")
    option("--json", type=Path, metavar="FILE", help="write all figures there")
    option = of_job("plan", "dry run: shards, rows, time and cost of what is new or missing").add_argument
    option("--again", metavar="SQL|FILE|DAY", help="as for `stint run`")
    option = of_job("status", "plans, shards, rows and runs as the ledger has them").add_argument
    option("--watch", action="store_true", help="show the run that is under way until it has ended")
    option("--every", type=_seconds, default=5.0, metavar="S", help="how often to look (default: %(default)s)")
    of_job("verify", "prove that input and output rows match one to one")
    sub = of_job("report", "what a run did: the last one, another one, or how the nights went; as text or as a page")
    option = sub.add_mutually_exclusive_group().add_argument
    option("--run", metavar="RUN_ID", help="not the last run with this model but this one; also if it died")
    option("--history", action="store_true", help="a line a run")
    sub.add_argument("--html", type=Path, metavar="FILE", help="write the page there instead")
    option = of_job("sample", "look at some predictions: a page of images, labels and scores").add_argument
    where = "condition over the columns of the output, as \"label = '3' AND score < 0.6\""
    option("--where", metavar="SQL", help=where)
    option("-n", type=_rows_shown, default=60, metavar="N", help="rows to show (default: %(default)s)")
    order = "which rows: any, least score first, or greatest score first (write --order=-score)"
    option("--order", choices=("random", "score", "-score"), default="random", help=order)
    option("--seed", type=_whole, default=0, help="another one takes other rows (default: %(default)s)")
    option("--open", action="store_true", help="also rows of plans that are not done yet")
    option("--fp32", action="store_true", help="ask the fp32 network as well, and mark where it differs")
    option("--html", type=Path, default=Path("sample.html"), metavar="FILE", help="the page (default: %(default)s)")
    option = of_job("explain", "follow one row: prediction, source, plan, shard, attempts, object, model").add_argument
    option("key", metavar="KEY", help="NAME=VALUE[,NAME=VALUE] of keys, URI#ROWGROUP/ROW, or an image's URI or name")
    option("--json", action="store_true", help="print it as JSON")
    sub = add("nightly", "in a CronJob: make the night's RayJob, wait for its end, return its exit code")
    option = sub.add_argument
    option("--template", required=True, metavar="NAME", help="suspended RayJob to copy")
    option("--namespace", help="default: the pod's, or the kubeconfig's")
    option("--as-of", type=_in_words(parse_as_of), metavar="DATE", help="the night; default: see --job")
    scheduled = "the CronJob's Job, whose scheduled time is the night (default: STINT_JOB_NAME, or else now)"
    option("--job", default=os.environ.get("STINT_JOB_NAME"), metavar="NAME", help=scheduled)
    zone = os.environ.get("TZ")
    option("--timezone", default=zone, metavar="ZONE", help="of the date (default: TZ, or the CronJob's)")
    older = "delete older RayJobs; 0: none (default: %(default)s)"
    option("--keep", type=_whole, default=30, metavar="NIGHTS", help=older)
    option = of_job("accept", "close a plan that has too many bad rows, with its bad rows").add_argument
    number = "its number, as the run or `stint status` tells it"
    option("--plan", type=_whole, required=True, metavar="N", help=number)
    option("--why", required=True, metavar="TEXT", help="the reason, kept in the ledger and shown in reports")
    option = of_job("promote", "let readers follow this job's model, once it has scored everything").add_argument
    option("--to", metavar="ROOT", help="another root of the output instead, as model=resnet50-0123…")
    option("--allow-fewer", action="store_true", help="also if the current model has predictions of more files")
    of_job("table", "let the table of the predictions (output.table) hold what is done, and nothing else", to_do="sync")
    option = of_job("prune", "show what _stint/ holds that nobody needs, or remove it; never predictions").add_argument
    unwritten = "only what nobody has written to for so long (default: %(default)g)"
    option("--older-than", type=_days, default=30.0, metavar="DAYS", help=unwritten)
    option("--delete", action="store_true", help="remove it")
    option = of_job("submit", "run the job in a cluster that is reached over HTTP; safe to repeat").add_argument
    option("--address", metavar="URL", help="http://HOST:8265; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS")
    option("--wait", action="store_true", help="follow the log and end with the run's exit code")
    uploaded = "what is uploaded, less what .rayignore and .gitignore name (default: the current directory)"
    option("--working-dir", default=".", metavar="DIR", help=uploaded)
    variable = "variable of the job; NAME: as it is here"
    option("--env", action="append", default=[], metavar="NAME[=VALUE]", help=variable)
    option("--again", metavar="SQL|FILE|DAY", help="as for `stint run`")
    sub = add("bench", "from fp32 as torch runs it to the whole job: what each step gives on this machine")
    option = sub.add_argument
    option("spec", metavar="SPEC", nargs="?", help="a job, measured on a sample of its images; default: see --arch")
    _add_overrides(sub)
    weights = "with random weights on made photographs"
    option("--arch", help=f"network to measure without a SPEC, {weights} (default: resnet50)")
    long = "about how long it may take (default: %(default)s); more is steadier"
    option("--minutes", type=_minutes, default=4.0, help=long)
    option("--picture", type=Path, metavar="FILE", help="draw the ladder, as bench.svg or bench.png")
    option("--json", action="store_true", help="print it as JSON")
    add("schema", "JSON Schema of the spec")
    return root


def _add_overrides(sub: argparse.ArgumentParser) -> None:
    option = sub.add_argument
    option("--set", action="append", default=[], metavar="A.B=V", dest="overrides", help="override a key of the spec")


def _number(what: str, least: float, most: float, kind: Callable[[str], Any] = float) -> Callable[[str], Any]:
    """For argparse."""

    def number(text: str) -> Any:
        try:
            given = kind(text)
        except ValueError:
            given = None
        if given is None or not least <= given <= most:
            raise argparse.ArgumentTypeError(f"{text}: {what} from {least:,} to {most:,} is wanted")
        return given

    return number


_minutes = _number("a number of minutes", 0.001, MOST_MINUTES)
_seconds = _number("a number of seconds", 0.001, 60 * MOST_MINUTES)
_days = _number("a number of days", 1, 3650)
"""Less is not asked: a run may be under way."""
_rows_shown = _number("a number of rows", 1, 1000, int)
_whole = _number("a whole number", 0, 1_000_000_000, int)


def _way(text: str) -> str:
    if text not in WAYS:
        raise argparse.ArgumentTypeError(f"{text!r}: one of {', '.join(WAYS)} is wanted, here or in STINT_PROGRESS")
    return text


def _list(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _shares(text: str) -> tuple[float, ...]:
    wanted = f"{text}: percentages above 0 and below 100, as 10,25,50; or 0 for none"
    if not all(re.fullmatch(r" *\d+(\.\d+)? *%? *", part) for part in _list(text)):
        raise ValueError(wanted)
    percents = sorted({float(part.strip(" %")) for part in _list(text)} - {0.0})
    if any(not 0 < percent < 100 for percent in percents):
        raise ValueError(wanted)
    return tuple(percent / 100 for percent in percents)


def _in_words(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """For argparse, which shows the words of this error only."""

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed
