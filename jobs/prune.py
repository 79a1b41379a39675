"""`stint prune`: what lies below `_stint/` and is needed by nobody any more. Shown, and with `--delete` removed.

Never a prediction, a plan, a done record, what was promoted, or a report: the ledger and the history stay whole. What
goes is advisory, or a bundle without a prediction; and of that only what nobody has written to for some days.

    _stint/journals/<run id>/            of runs that have a report; of others they are the only account
    <root>/_stint/noted/<plan>/          of plans that are done
    _stint/bundles/<fingerprint>/        of no root, and not the spec's own
    _stint/tmp/                          what killed writers left in a folder of this machine
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from jobs.console import Console
from jobs.ledger.current import roots
from jobs.ledger.ledger import Ledger
from jobs.plan.command_line import for_each_day
from jobs.plan.job import Job
from jobs.progress.format import size
from jobs.report import journal
from jobs.report.runs import newest_runs
from workers.counted import counted
from workers.output import NotOurs, OutputObject
from workers.storage.errors import NotFound
from workers.storage.filesystems import open_filesystem
from workers.storage.retries import retrying
from workers.storage.store import Store

_WRITTEN = ("mtime", "LastModified", "last_modified", "updated", "created")
"""Where the file systems of fsspec have the time at which an object was written."""


@dataclass(frozen=True)
class Leftover:
    """A folder of the output, or a temporary file, that may go."""

    what: str
    path: str
    """As the file system names it."""
    objects: int
    size: int


def command(arguments: argparse.Namespace, console: Console) -> int:

    def prune(job: Job) -> None:
        found, kept = leftovers(job, timedelta(days=arguments.older_than))
        if arguments.delete:
            remove(job.store, found)
        end = "removed" if arguments.delete else "nothing is removed yet: --delete removes it"
        nothing = f"nothing to remove: all of it is needed, or younger than --older-than {arguments.older_than:g}"
        lines = [_line([one for one in found if one.what == what]) for what in dict.fromkeys(o.what for o in found)]
        console.show("\n".join([f"{job.store.url}/", *lines, *kept, end if found else nothing]))

    return for_each_day(arguments, console, prune)


def _line(found: list[Leftover]) -> str:
    objects, bytes_there = sum(one.objects for one in found), sum(one.size for one in found)
    return f"  {found[0].what}: {len(found):,}, in {counted(objects, 'object')} of {size(bytes_there)}"


def leftovers(job: Job, older: timedelta, now: datetime | None = None) -> tuple[list[Leftover], list[str]]:
    """What nobody needs and nobody has written to for so long; and, for a person, why bundles stay that might go.

    Raises StoreError, StoreDenied; RunFailed for a damaged plan.
    """
    store, before = job.store, (now or datetime.now(UTC)) - older
    folders = partial(_folders, store, before=before)
    reported = {info.key.split("/")[2] for info in store.list("_stint/runs") if info.key.endswith("/report.json")}
    found = list(folders("journals of runs that have a report", journal.FOLDER, reported))
    found += folders("temporary files", "_stint/tmp", None)
    used: set[str | None] = {job.fingerprints.bundle}
    for root in roots(store.url):
        ledger = Ledger(store, root)
        done = {f"{number:08d}" for number in ledger.done_numbers()}
        found += folders("notes of plans that are done", f"{root}/_stint/noted", done)
        used.add(_bundle_of(ledger))
    bundles = list(folders("bundles of no model here", "_stint/bundles", None))
    bundles = [one for one in bundles if one.path.rpartition("/")[2] not in used]
    kept = []
    if bundles and None in used:
        kept = ["  bundles stay: a model here has no predictions yet, so its bundle is not known"]
    elif bundles and any(run.report is None and run.heard_at > before for run in newest_runs(store)):
        kept = ["  bundles stay: a run may be under way"]
    return found if kept else found + bundles, kept


def remove(store: Store, found: list[Leftover]) -> None:
    """What another one has removed is passed over. Raises StoreError, StoreDenied."""
    fs, _ = open_filesystem(store.url)
    for one in found:
        try:
            retrying(partial(fs.rm, one.path, recursive=True), one.path)
        except NotFound:
            continue


def _folders(store: Store, what: str, folder: str, names: set[str] | None, *, before: datetime) -> Iterator[Leftover]:
    """Those in `folder` that have one of `names`, or any name, and in which nothing was written since `before`."""
    fs, base = open_filesystem(f"{store.url}/{folder}")
    base = base.rstrip("/")
    try:
        listed = retrying(lambda: fs.find(base, detail=True), base)
    except NotFound:
        return
    inside: dict[str, list[Any]] = {}
    for path, info in listed.items():
        name = str(path).removeprefix(f"{base}/").partition("/")[0]
        if names is None or name in names:
            inside.setdefault(name, []).append(info)
    for name, infos in sorted(inside.items()):
        if all(_written(info) < before for info in infos):
            yield Leftover(what, f"{base}/{name}", len(infos), sum(int(info["size"]) for info in infos))


def _written(info: Any) -> datetime:
    """When an object was written; of one that does not tell, as late as can be, so that it stays."""
    at = next((info[name] for name in _WRITTEN if info.get(name)), None)
    if isinstance(at, int | float):
        return datetime.fromtimestamp(at, UTC)
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    if not isinstance(at, datetime):
        return datetime.max.replace(tzinfo=UTC)
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _bundle_of(ledger: Ledger) -> str | None:
    """The bundle that made a model's predictions: all of a root have one. None where there is none that tells."""
    for plan in ledger.plans():
        key = next(iter(ledger.present(plan)), None)
        if key is not None:
            try:
                return OutputObject(ledger.store.get(f"{ledger.root}/{key}")).metadata.get("bundle")
            except NotOurs:
                continue  # `stint verify` tells of it
    return None
