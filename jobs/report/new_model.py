"""A job's model that is another one than before: what of it changed, and what is scored from the beginning for it.

Whoever changes a model may not know it: a library was upgraded, a file of code edited. Fingerprints tell that a model
is new; the reports of the runs before tell what was different.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from jobs.errors import SpecError
from jobs.ledger.current import complete_roots
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import latest_versions
from jobs.plan.discovery import Discovery
from jobs.plan.job import Job
from jobs.report.report import Report
from jobs.report.runs import estimate, reports
from jobs.spec.load import parse_spec
from workers.counted import counted
from workers.redaction import redacted_values
from workers.storage.errors import NotFound

_REPORTS_READ = 200
"""The newest ones, among which those of other models are looked for."""
_SHORT = 40
"""Characters of a value that is told."""
_KEYS = {
    "keys": "input.keys", "sample_key": "input.sample_key", "topk": "output.topk", "row_format": "the columns of a row"
}  # fmt: skip
"""What a part is called for a person, where it is no part of the model."""


@dataclass(frozen=True)
class NewModel:
    root: str
    before: str
    """Root of the model that has scored the job until now."""
    changed: tuple[str, ...]
    """Parts, for a person; empty where no report tells."""
    work: str
    cost: str

    def lines(self) -> Iterator[str]:
        yield f"the model is another one than before: {self.root} in place of {self.before}"
        yield f"changed: {', '.join(self.changed) or 'no report of a run before tells what'}"
        yield self.work
        yield self.cost

    def question(self) -> SpecError:
        """What ends a run that nobody watches."""
        return SpecError(
            "\n".join(self.lines()),
            "if that is meant, run it once with --set schedule.on_new_model=score, or put that into the spec; if not, "
            f"undo the change: then the nights go on with {self.before}",
        )


def new_model(found: Discovery) -> NewModel | None:
    """None unless the job is about to score its first rows with a model and has scored with another one before.

    Raises RunFailed for a damaged record; StoreError, StoreDenied.
    """
    job = found.job
    if found.plans or not found.fresh or (before := _before(job)) is None:
        return None
    former, report = before
    claimed = latest_versions(Ledger(job.store, former).plans())
    again = sum(opened.source.uri in claimed for opened in found.fresh)
    return NewModel(
        root=job.fingerprints.root,
        before=former,
        changed=() if report is None else tuple(_changed(job, report)),
        work=f"scored from the beginning: {counted(len(found.fresh), 'file')} with "
        f"{counted(found.fresh_rows, 'row')}; the model before has scored "
        f"{again:,} of the files",
        cost=estimate(job, found.fresh_rows, former),
    )


def _before(job: Job) -> tuple[str, Report | None] | None:
    """The root of the job's model before, with the newest report of it. A root of which no report tells whose it is may
    be the job's."""
    others = {root for root in complete_roots(job.store) if root != job.fingerprints.root}
    newest: dict[str, Report] = {}
    for report in reports(job.store, most=_REPORTS_READ) if others else ():
        if report.root in others:
            newest.setdefault(report.root, report)
        if newest.keys() == others:
            break
    of_job = [(root, report) for root, report in newest.items() if report.job == job.spec.name]
    unknown = [(root, None) for root in sorted(others - newest.keys())]
    return next(iter([*of_job, *unknown]), None)


def _changed(job: Job, report: Report) -> Iterator[str]:
    """Since the run of a report."""
    if report.model:
        now: Any = redacted_values(job.identity.parts)  # as a report has them
        yield from changed_parts(report.model, now)
        return
    try:  # an earlier release wrote it
        before = parse_spec(json.loads(job.store.get(f"_stint/runs/{report.run_id}/spec.json")))
    except (NotFound, ValueError, SpecError):
        return
    specs = (before, job.spec)
    keys = ({**asdict(spec.model), "keys": spec.input.keys, "topk": spec.output.topk} for spec in specs)
    yield from changed_parts(*keys) or ["nothing in the spec: the code, the content of a file, or a library"]


def changed_parts(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what differs, with both values where they are short. Both as Identity.parts."""
    changed = []
    for name in sorted(before.keys() | now.keys()):
        old: Any = before.get(name)
        new: Any = now.get(name)
        if old == new:
            continue
        what = _KEYS.get(name, name)
        if name == "code":
            old, new = old or {}, new or {}
            modules = sorted(module for module in old.keys() | new.keys() if old.get(module) != new.get(module))
            what = f"code ({', '.join(modules)})"
        elif all(isinstance(value, str) and len(value) <= _SHORT for value in (old, new)):
            what = f"{what} ({old} → {new})"
        changed.append(what)
    return changed
