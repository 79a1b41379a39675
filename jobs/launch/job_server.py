"""Ray's job server over HTTP, with time limits and with errors that are types.

Ray's own client waits for ever for a server that accepts and does not answer, tells statuses apart only by text, and
lets RAY_ADDRESS override the address that it is given.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from pydantic import ValidationError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from jobs.errors import RunFailed
from jobs.launch.attempts import Attempt, UnknownJob, Unreachable

_CONNECT_S = 5.0
ANSWER_S = 10.0
"""To a question, from when it is asked."""
SUBMIT_S = 60.0
"""To an upload or a submission, from when it is sent: the head's agent may be busy with other jobs."""
SUBMITTER_KEY = "stint_submitter"
"""Metadata of a submission: a random word that tells submitters apart."""
HINT = "check --address and that the cluster is up; a port-forward or VPN may be wanted"


class _Client(JobSubmissionClient):  # type: ignore[misc]  # ray ships no types that mypy follows here
    def _do_request(self, method: str, endpoint: str, **kwargs: Any) -> requests.Response:
        answer_s = ANSWER_S if method == "GET" else SUBMIT_S
        response: requests.Response = super()._do_request(method, endpoint, timeout=(_CONNECT_S, answer_s), **kwargs)
        return response

    def _raise_error(self, r: requests.Response) -> None:
        lines = [line for line in r.text.splitlines() if re.search(r"\w", line)]  # a traceback's last line tells most
        text = lines[-1][:300] if lines else "no text"
        raise requests.HTTPError(f"HTTP {r.status_code}: {text}", response=r)


class JobServer:
    """All methods raise Unreachable, UnknownJob, or RunFailed when the cluster refuses the token or the request."""

    def __init__(self, address: str) -> None:
        """`address` is http(s)://HOST:PORT of the dashboard."""
        parts = urlsplit(address)
        self.shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        """The address without a password in it."""
        # Ray lets its variables override the argument: without this, --address would lose against RAY_ADDRESS.
        os.environ["RAY_API_SERVER_ADDRESS"] = address
        for handler in logging.getLogger("ray").handlers:
            handler.setLevel(logging.WARNING)
        with self._errors():
            self._client = _Client(address)

    def attempts(self) -> list[Attempt]:
        """Everything that was ever submitted to this cluster."""
        with self._errors():
            return [_attempt(job) for job in self._client.list_jobs() if job.submission_id]

    def attempt(self, submission_id: str) -> Attempt:
        with self._errors(submission_id):
            return _attempt(self._client.get_job_info(submission_id))

    def submit(
        self, submission_id: str, entrypoint: str, package: Path, env: Mapping[str, str], submitter: str, job: str
    ) -> None:
        """Upload the package if the cluster has none like it, and start the entrypoint on the head node."""
        with self._errors():
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=submission_id,
                runtime_env={"working_dir": str(package), "env_vars": dict(env)},
                metadata={SUBMITTER_KEY: submitter, "job_name": job},
            )

    def logs(self, submission_id: str) -> str:
        """The whole log so far."""
        with self._errors(submission_id):
            return str(self._client.get_job_logs(submission_id))

    async def tail(self, submission_id: str) -> AsyncGenerator[str, None]:
        """The log from its beginning, in chunks, until the job ends. A lost stream may also just end."""
        try:
            async for chunk in self._client.tail_job_logs(submission_id):
                yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError, RuntimeError) as error:  # RuntimeError: an abnormal close
            raise Unreachable(f"the log stream of {submission_id} was lost: {error}", HINT) from error

    @contextmanager
    def _errors(self, what: str = "what was asked for") -> Iterator[None]:
        """Turns what Ray's client raises into our types."""
        try:
            yield
        except AuthenticationError as error:
            raise RunFailed(
                f"the token for the cluster at {self.shown} is missing or wrong",
                "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, to the cluster's token, and RAY_AUTH_MODE=token",
            ) from error
        except requests.HTTPError as error:
            status = cast(requests.Response, error.response).status_code
            if status == HTTPStatus.NOT_FOUND:
                raise UnknownJob(
                    f"the cluster at {self.shown} does not know {what}: it forgets its jobs when it is made anew",
                    "check --address, then submit again; what was committed stays",
                ) from error
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                raise Unreachable(f"the job server at {self.shown} failed: {error}", HINT) from error
            raise RunFailed(f"the job server at {self.shown} refuses the request: {error}", HINT) from error
        except (RuntimeError, KeyError) as error:  # an answer, but not that of a job server
            raise RunFailed(f"{self.shown} is no job server of Ray that can be used: {error}", HINT) from error
        except (requests.RequestException, ConnectionError) as error:
            raise Unreachable(f"no job server of Ray answers at {self.shown} ({type(error).__name__})", HINT) from error
        except (ValidationError, TypeError) as error:  # Ray reads an answer into classes of its own version
            raise RunFailed(
                f"{self.shown} answers otherwise than a job server of Ray {ray.__version__} ({type(error).__name__})",
                "submit with the version of Ray that the cluster has",
            ) from error


def _attempt(job: JobDetails) -> Attempt:
    return Attempt(
        submission_id=str(job.submission_id),
        status=job.status.value,
        entrypoint=job.entrypoint,
        exit_code=job.driver_exit_code,
        error_type=job.error_type,
        message=job.message or "",
        submitter=(job.metadata or {}).get(SUBMITTER_KEY),
    )
