"""Attempts at a job of certain days: how they are numbered, which one to start or to join, and what their ends mean.

An attempt's submission id is `<job>-<as_of>-a<N>`. Ray refuses an id that it has seen, so of two submitters of the same
attempt one starts it, and the other finds it started.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from jobs.errors import BAD_ROWS, BAD_SPEC, COMPLETE, FAILED, GATE_REFUSED, INTERRUPTED, MEANING, RunFailed
from jobs.spec.days import Days

REMEDIES = {
    FAILED: "read the end of the log, mend what it names, run again",
    BAD_SPEC: "mend what the log names; run again",
    BAD_ROWS: "look at the table of reasons in the log; replace the files and run again, or stint accept the plan",
    GATE_REFUSED: "look at the table in the log; more calibration rows, or precision: fp32; if fp32 itself is below "
    "gate.min_top1, check labels and preprocessing",
    INTERRUPTED: "run again; it goes on where it stopped, nothing is lost",
}
"""What to do next, by exit code."""
ENDED = ("STOPPED", "SUCCEEDED", "FAILED")
"""Statuses of a job in Ray that do not change any more."""


class Unreachable(RunFailed):
    """The job server gave no answer, or one that may be another a moment later: worth another try."""


class UnknownJob(RunFailed):
    """The job server answers, and knows no such job."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One submission as the cluster knows it."""

    submission_id: str
    status: Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
    entrypoint: str
    exit_code: int | None = None
    """Of the driver process, where it ended by itself."""
    error_type: str | None = None
    """Ray's word for why it failed, as RUNTIME_ENV_SETUP_FAILURE."""
    message: str = ""
    submitter: str | None = None
    """A random word of its submitter, to know its own again."""

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def code(self) -> int:
        """Ours, once it has ended."""
        return exit_code(self.status, self.exit_code)


@dataclass(frozen=True, kw_only=True)
class DatedJob:
    """What is submitted: a job for certain days. `spec` is relative to the working directory."""

    name: str
    days: Days
    spec: str
    overrides: tuple[str, ...] = ()
    again: str | None = None

    @property
    def stem(self) -> str:
        """What the submission ids of all attempts begin with."""
        return f"{self.name}-{str(self.days).replace('..', '-to-')}"

    def submission_id(self, number: int) -> str:
        return f"{self.stem}-a{number}"

    @property
    def options(self) -> tuple[str, ...]:
        """Options of the command line that name the same job and days, today being spelled out."""
        sets = [word for override in self.overrides for word in ("--set", override)]
        again = [] if self.again is None else ["--again", self.again]
        return (*sets, *again, "--as-of" if len(self.days) == 1 else "--backfill", str(self.days))

    @property
    def entrypoint(self) -> str:
        """The shell command that the head node runs."""
        return shlex.join(["python", "-m", "jobs", "run", self.spec, *self.options])


def attempts_of(job: DatedJob, submitted: Iterable[Attempt]) -> dict[int, Attempt]:
    """Attempts at this job and these days among everything on the cluster, by number, in order."""
    pattern = re.compile(re.escape(job.stem) + r"-a([1-9]\d*)")
    found = ((pattern.fullmatch(attempt.submission_id), attempt) for attempt in submitted)
    return dict(sorted((int(match[1]), attempt) for match, attempt in found if match))


def exit_code(status: str, driver_code: int | None) -> int:
    """Ours for a job that Ray says has ended: the driver's own, 5 when it was stopped, 1 for anything else."""
    if status == "SUCCEEDED":
        return COMPLETE
    if status == "STOPPED":
        return INTERRUPTED
    return driver_code if driver_code in MEANING and driver_code != COMPLETE else FAILED


def describe_end(attempt: Attempt) -> str:
    """One line: what became of an attempt that has ended."""
    code = attempt.code
    if attempt.status == "STOPPED":
        how = "was stopped"
    elif attempt.status == "SUCCEEDED" or attempt.exit_code == code:
        how = "ended"
    elif attempt.exit_code is None:
        reason = (attempt.message.strip() or "no message").splitlines()[-1].strip()
        how = f"was lost by Ray ({attempt.error_type or 'no error type'}): {reason}"
    else:
        how = f"ended with code {attempt.exit_code} of its process"
    return f"{attempt.submission_id} {how}: exit code {code}, {MEANING[code]}"


def remedy(attempt: Attempt) -> str:
    """What to do about the end of an attempt; empty when all is well."""
    code = attempt.code
    if attempt.exit_code == 127:
        return "the head node has no `python` on its PATH: use an image that has, or pass --env PATH=…"
    if code == FAILED and attempt.exit_code != FAILED:
        return "nothing committed is lost: look at the head node's memory and events, then submit again"
    return REMEDIES.get(code, "")
