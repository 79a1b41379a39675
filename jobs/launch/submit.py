"""`stint submit`: run a job in a cluster from outside of it, and end with the exit code that the run itself had.

The working directory goes along and is the code that runs; the driver runs on the head node. A night that is under way
is joined, never started twice; one that has ended, however it did, is attempted again, which does what is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import secrets
import shlex
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from jobs.console import Console, out
from jobs.errors import COMPLETE, SpecError
from jobs.launch.attempts import DatedJob, UnknownJob, Unreachable, attempts_of, describe_end, remedy
from jobs.launch.follow import Follower, LogCopy
from jobs.launch.package import Upload, check_goes_along, find_files, local_path
from jobs.progress.format import size as in_bytes
from jobs.spec.days import days_in_zone, runs, today
from jobs.spec.load import load_spec
from workers.contract import ModelSpec
from workers.counted import counted
from workers.model.names import weights_enum_or_path
from workers.redaction import is_secret_name

if TYPE_CHECKING:
    from jobs.launch.job_server import JobServer

STOP_WAIT_S = 30
"""Seconds from Ray's SIGTERM to its SIGKILL, in place of 3: the run needs 1.5, a node under load may need more."""


@dataclass(frozen=True, kw_only=True)
class Submission:
    """A job ready to be sent, checked as far as it can be from here."""

    job: DatedJob
    upload: Upload
    env: Mapping[str, str]
    """Variables of the job. Their values are shown nowhere; whoever may ask the job server can read them."""
    address: str


def prepare_submission(arguments: argparse.Namespace, say: Callable[[str], None]) -> Submission:
    """Check everything that needs no cluster. The day is today in the spec's time zone when none is given.

    Raises SpecError: nothing has been sent then.
    """
    spec = load_spec(arguments.spec, arguments.overrides)
    days = days_in_zone(arguments.days, spec.schedule.timezone) or today(spec.schedule.timezone)
    runs(days, spec.input.by_date, spec.output.uri)  # refuses days that the job has no use for
    address = choose_address(arguments.address, os.environ)
    root = Path(arguments.working_dir).expanduser().absolute()
    inside = os.path.relpath(Path(arguments.spec).absolute(), root)
    if inside.startswith(".."):  # by their names: where the working directory is a link, the spec may still lie in it
        inside = os.path.relpath(Path(arguments.spec).resolve(), root.resolve())
    if inside.startswith(".."):
        raise SpecError(
            f"{arguments.spec} lies outside of the working directory {root}, which is all that the cluster gets to see",
            "copy it there, or name its project with --working-dir",
        )
    data = [uri for uri in (*spec.input.uris, spec.input.manifest, spec.output.uri) if uri]
    for uri in data:
        if (path := local_path(uri)) is not None and not Path(path).is_absolute():
            raise SpecError(
                f"{uri} counts from the working directory, of which every node gets a copy of its own, without data",
                f"give a bucket's URL, or {root / path} where all nodes share that file system",
            )
    upload = find_files(root, data)
    if upload.secrets:
        say(f"left out of the upload, because they look like credentials: {', '.join(upload.secrets)}")
    check_goes_along(upload, inside, "SPEC")
    for key, name in _files_of(spec.model, root):
        if (path := local_path(name)) and not Path(path).is_absolute():
            check_goes_along(upload, path, key)
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **_variables(arguments.env, say)}
    job = DatedJob(
        name=spec.name,
        days=days,
        spec=Path(inside).as_posix(),
        overrides=tuple(arguments.overrides),
        again=arguments.again,
    )
    return Submission(job=job, upload=upload, env=variables, address=address)


def submit(submission: Submission, *, wait: bool, say: Callable[[str], None]) -> int:
    """Start the job's next attempt or join the one under way; returns the exit code of the command.

    With `wait` the log goes to stdout and the code is the run's own; without, the submission id does and it is 0.
    Raises StintError.
    """
    os.environ.update(use_token(os.environ))
    from jobs.launch.job_server import JobServer

    server = JobServer(submission.address)
    attempt_id = _start_or_join(server, submission, say)
    again = f"the same command with {shlex.join(submission.job.options[-2:])} --wait follows it to its end"
    again += f"; ray job stop --address {server.shown} {attempt_id} stops it"
    if not wait:
        out(attempt_id)
        say(again)
        return COMPLETE
    attempt = Follower(server, attempt_id, LogCopy(partial(out, end="")), say, again).wait_for_end()
    say(f"stint: {describe_end(attempt)}" + (f"\nnext: {step}" if (step := remedy(attempt)) else ""))
    return attempt.code


def _start_or_join(server: JobServer, submission: Submission, say: Callable[[str], None]) -> str:
    """The submission id of the attempt that runs then.

    Raises SpecError where the one under way does something else than is asked for.
    """
    job = submission.job
    attempts = attempts_of(job, server.attempts())
    there = next((attempt for attempt in reversed(attempts.values()) if not attempt.ended), None)
    if there is None:
        # After any end the next attempt may start, a success included: it finds nothing to do, or what came in late.
        if last := max(attempts, default=0):
            say(describe_end(attempts[last]))
        attempt_id, submitter = job.submission_id(last + 1), secrets.token_hex(8)
        with tempfile.TemporaryDirectory(prefix="stint-") as folder:
            package = Path(folder) / "package.zip"
            size = submission.upload.write(package)
            say(f"package: {counted(len(submission.upload.files), 'file')}, {in_bytes(size)}")
            try:
                server.submit(attempt_id, job.entrypoint, package, submission.env, submitter, job.name)
            except Unreachable as error:
                # Refused because another was first, or accepted with the answer lost: the job list says which.
                try:
                    there = server.attempt(attempt_id)
                except UnknownJob:
                    raise error from None
        if there is None or there.submitter == submitter:
            say(f"submitted {attempt_id} to {server.shown}: {job.entrypoint}")
            return attempt_id
    if there.entrypoint != job.entrypoint:
        raise SpecError(
            f"{there.submission_id} is under way with another command: {there.entrypoint}",
            "wait for its end, stop it, or give this one a name of its own with --set name=…",
        )
    say(f"{there.submission_id} is {there.status.lower()} already; no other is started")
    return there.submission_id


def choose_address(given: str | None, environment: Mapping[str, str]) -> str:
    """--address, or else Ray's variables where they name a job server. Raises SpecError for any other kind."""
    for name in ("--address", "RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        if not (address := given if name == "--address" else environment.get(name)):
            continue
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname:
            return address.rstrip("/")
        host = urlsplit(address if "://" in address else f"ray://{address}").hostname
        raise SpecError(
            f"{name} {address}: the job server is wanted, as http://{'HOST' if host in (None, 'auto') else host}:8265",
            "8265 is the dashboard's port on the head node; 6379 is Ray's own, for drivers inside of the cluster",
        )
    raise SpecError("no cluster is named", "give --address http://HOST:8265, or set RAY_API_SERVER_ADDRESS")


def use_token(environment: Mapping[str, str]) -> dict[str, str]:
    """What to set before Ray is imported: a token that is given is meant to be used."""
    given = environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH")
    return {"RAY_AUTH_MODE": "token"} if given and "RAY_AUTH_MODE" not in environment else {}


def _files_of(model: ModelSpec, root: Path) -> Iterator[tuple[str, str]]:
    """The key of the spec and the file, for each file that the model needs; the working directory's and others."""
    if model.weights and weights_enum_or_path(model.weights) == "file":
        yield "model.weights", model.weights
    if isinstance(model.labels, str) and (root / model.labels).is_file():
        yield "model.labels", model.labels
    module = Path(*model.arch.partition(":")[0].split("."))
    for name in (module.with_suffix(".py"), module / "__init__.py"):
        if ":" in model.arch and (root / name).is_file():
            yield "model.arch", str(name)


def _variables(given: Sequence[str], say: Callable[[str], None]) -> dict[str, str]:
    """`NAME=VALUE`, or `NAME` with the value that it has here. Raises SpecError, without any value in it."""
    variables = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise SpecError("--env: NAME or NAME=VALUE is wanted, NAME being letters, digits and underscores")
        if not equals:
            if name not in os.environ:
                raise SpecError(f"--env {name}: it is not set here", f"set it, or write --env {name}=VALUE")
            value = os.environ[name]
            if "$" in value:
                say(f"warning: --env {name} holds a $, which Ray takes for a reference to another variable")
        if is_secret_name(name):
            say(
                f"warning: --env {name} looks like a secret; Ray writes it to logs of the head node and shows it to "
                "whoever may ask the job server. A role of the nodes, or a Kubernetes Secret, does neither"
            )
        variables[name] = value
    return variables


def command(arguments: argparse.Namespace, console: Console) -> int:
    # Interrupted, code 5, also before there is a job to wait for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return submit(prepare_submission(arguments, console.say), wait=arguments.wait, say=console.say)
