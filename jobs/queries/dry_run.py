"""`stint plan`: what a run would do, from listing and ledger alone."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from jobs.console import Console
from jobs.errors import COMPLETE, FAILED, SpecError
from jobs.plan.command_line import for_each_day
from jobs.plan.discovery import Discovery, discover
from jobs.plan.job import Job
from jobs.report.new_model import new_model
from jobs.report.runs import estimate
from jobs.table import check_table
from workers.contract import ModelSpec
from workers.counted import counted
from workers.host.cores import read_topology
from workers.maker import judged_in, lacks_labels, outcome_of
from workers.model.names import ModelError, weights_enum_or_path
from workers.model.preprocess import IMAGENET, override
from workers.storage.filesystems import is_local


def command(arguments: argparse.Namespace, console: Console) -> int:
    """`stint plan`: 1 where a run would end so, because something cannot be read."""
    unreadable: list[str] = []

    def show(job: Job) -> None:
        _check_output(job.store.url)
        check_table(job)
        if not os.environ.get("RAY_ADDRESS"):  # which nodes a cluster has, only a run asks
            job = replace(job, workers_there=read_topology().budget // job.threads)
        found = discover(job, arguments.again or "")
        console.show(_describe(found))
        unreadable.extend(found.unreadable)

    return for_each_day(arguments, console, show) or (FAILED if unreadable else COMPLETE)


def _describe(found: Discovery) -> str:
    """New and missing shards and rows; time and cost by the rate of the last complete run, where there was one."""
    job = found.job
    cut, manifest = found.cut(), job.manifest()
    missing = job.ledger.missing(*found.open_plans)
    rows = found.fresh_rows + missing.rows
    lines = [
        f"job {job.spec.name} → {job.store.url}/{job.fingerprints.root}/",
        *found.lines(),
        f"to be claimed: {counted(found.fresh_rows, 'row')} in {cut.sizes()}",
        f"open plans: {len(found.open_plans)}, {counted(missing.rows, 'row')} missing in "
        f"{counted(len(missing), 'shard')}",
        f"bundle {job.fingerprints.bundle}: {'to be made' if manifest is None else 'there'}",
        f"preprocessing: {_preprocess(job.spec.model) if manifest is None else manifest.preprocess}",
    ]
    request = job.bundle_request()
    judge = manifest is not None and not lacks_labels(judged_in(manifest), request)
    if manifest is not None and judge and not outcome_of(judged_in(manifest), request, manifest).passed:
        lines.append("gate: refuses the bundle that is there; `stint quantize` shows why, and a run would end so, too")
    lines += [f"warning: {warning}" for warning in cut.warnings]
    change = new_model(found)
    lines += [estimate(job, rows)] if change is None else change.lines()
    unchecked = [] if is_local(job.store.url) else ["whether the output may be written"]
    if manifest is None:
        unchecked.append("whether the network can be built and takes its weights and labels")
    if not judge:
        unchecked.append("whether it passes the gate")
    unchecked.append("whether the images can be decoded, and whether nodes have the cores and memory for workers")
    return "\n".join([*lines, f"not checked, as only a run can: {'; '.join(unchecked)}"])


def _check_output(url: str) -> None:
    """Nothing is written to find out, so of a local folder alone."""
    if not is_local(url):
        return
    there = next(place for place in (Path(url), *Path(url).parents) if os.access(place, os.F_OK))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written" if there.is_dir() else "is not a folder"
        raise SpecError(f"output.uri: cannot write {url}: {there} {why}")


def _preprocess(model: ModelSpec) -> str:
    """As far as it is known before there is a bundle. Raises SpecError for what does not go together."""
    if model.weights is not None and weights_enum_or_path(model.weights) == "enum":
        changed = ", ".join(f"{key}: {value}" for key, value in model.preprocess.items())
        return f"what the weights {model.weights} come with" + (f", but {changed}" if changed else "")
    try:
        return str(override(IMAGENET, model.preprocess))
    except ModelError as error:
        raise SpecError(str(error)) from error
