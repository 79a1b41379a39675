"""A run of an earlier release beside those of this one: it knows plans and done records by their earlier names alone,
and no bundle but those of its own schema. What it does besides is the same."""

from __future__ import annotations

from dataclasses import fields

from jobs.errors import RunFailed
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import EARLIER_BOOK
from jobs.plan.job import Job
from workers.bundle.manifest import Manifest


class EarlierLedger(Ledger):
    def keys_of(self, plan: int) -> tuple[str, str]:
        return f"_stint/plans/{plan:08d}{EARLIER_BOOK}", f"_stint/done/{plan:08d}{EARLIER_BOOK}"

    def _numbers(self, kind: str) -> list[int]:
        names = [info.key.rpartition("/")[2] for info in self.store.list(f"{self.root}/_stint/{kind}")]
        try:
            return sorted(int(name.removesuffix(EARLIER_BOOK)) for name in names)
        except ValueError as error:
            raise RunFailed(f"in truth a traceback: {error}") from error


class EarlierJob(Job):
    def manifest(self, bundle: str = "") -> Manifest | None:
        found = super().manifest(bundle)
        if found is not None and not found.earlier:
            raise RunFailed(f"it has schema {found.schema}, this code reads 2")
        return found

    def book(self) -> str:
        return EARLIER_BOOK


def earlier(job: Job) -> Job:
    """The same job as an earlier release has it."""
    given = {field.name: getattr(job, field.name) for field in fields(Job)}
    return EarlierJob(**{**given, "ledger": EarlierLedger(job.store, job.ledger.root)})
