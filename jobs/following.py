"""Follow a submitted attempt to its end: its log, each line once, and its status, each asked for by itself.

A log stream is lost in silence (a proxy that times out, a dashboard that restarts), and a new one starts at the
beginning of the log: what was shown is skipped by count. That a job has ended is told by its status, never by a stream.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Protocol

from jobs.attempts import Attempt
from jobs.errors import Interrupted, RunFailed

Say = Callable[[str], None]


class Server(Protocol):
    """What following asks of a job server; jobs.job_server.JobServer is one."""

    def attempt(self, submission_id: str) -> Attempt: ...
    def logs(self, submission_id: str) -> str: ...
    def tail(self, submission_id: str) -> AsyncIterator[str]: ...


class Lost(RunFailed):
    """Contact was lost for longer than is waited; the job itself may well go on."""


class Unreachable(RunFailed):
    """No answer, or one that may be another a moment later: worth another try."""


class UnknownJob(RunFailed):
    """The server answers, and knows no such job."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    poll_s: float = 2.0
    """Between two questions for the status."""
    retry_s: float = 1.0
    """Before the first retry of what failed; doubled with each further one."""
    retry_most_s: float = 15.0
    lost_after_s: float = 300.0
    """A head node that restarts, or a dropped VPN, is waited for this long."""
    silence_s: float = 120.0
    """A stream that brings nothing for so long may be cut without either end knowing: it is opened again."""

    def backoff_s(self, failures: int) -> float:
        return min(self.retry_s * 2.0 ** min(failures - 1, 30), self.retry_most_s)


class LogCopy:
    """Copies a log that comes as several streams, each from the log's beginning, line by line and each line once."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._position = 0
        """Characters of the present stream so far."""
        self._seen = 0
        """Characters of the log so far."""
        self._line = ""
        """The beginning of a line whose end has not come yet."""

    def restart(self) -> None:
        """A new stream begins."""
        self._position = 0

    def take(self, chunk: str) -> bool:
        """The next piece of the present stream; whether any of it is new."""
        fresh = chunk[max(0, self._seen - self._position) :]
        self._position += len(chunk)
        self._seen = max(self._seen, self._position)
        lines, newline, self._line = (self._line + fresh).rpartition("\n")
        if newline:
            self._write(lines + newline)
        return bool(fresh)

    def finish(self) -> None:
        """Write a last line that has no end."""
        if self._line:
            self._write(self._line + "\n")
            self._line = ""


def wait_for_end(
    server: Server, submission_id: str, *, write: Callable[[str], None], say: Say, again: str, patience: Patience
) -> Attempt:
    """Copy the log to `write` until the attempt has ended, and return it as it then is.

    Raises Interrupted on SIGINT and SIGTERM, which leave the job alone; Lost when the cluster does not answer for
    `patience.lost_after_s`; both say `again`, how to follow it again. What else the server raises, as for a job that it
    does not know, comes through.
    """
    try:
        return asyncio.run(_watch(_Following(server, submission_id, LogCopy(write), say, patience)))
    except (Interrupted, Lost) as error:
        error.next_step = again
        raise


async def _watch(following: _Following) -> Attempt:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    try:
        return await following.to_the_end()
    except asyncio.CancelledError:
        raise Interrupted(f"no longer waiting for {following.submission_id}, which goes on in the cluster") from None


class _Following:
    def __init__(self, server: Server, submission_id: str, log: LogCopy, say: Say, patience: Patience) -> None:
        self.submission_id = submission_id
        self._server = server
        self._log = log
        self._say = say
        self._patience = patience
        self._stream_ended = asyncio.Event()

    async def to_the_end(self) -> Attempt:
        copying = asyncio.create_task(self._copy_log())
        try:
            attempt = await self._poll(copying)
        finally:
            copying.cancel()
            await asyncio.wait([copying])  # `await copying` would raise its cancellation, or ours: nobody could tell
        if not copying.cancelled():
            copying.result()
        await self._rest_of_log()
        return attempt

    async def _poll(self, copying: asyncio.Task[None]) -> Attempt:
        failures, failing_since, shown = 0, 0.0, ""
        while True:
            try:
                attempt = await asyncio.to_thread(self._server.attempt, self.submission_id)
            except Unreachable as error:
                failures += 1
                if failures == 1:
                    failing_since = time.monotonic()
                    self._say(f"{error}; trying again for {self._patience.lost_after_s:.0f} s")
                if time.monotonic() - failing_since > self._patience.lost_after_s:
                    raise Lost(
                        f"{self.submission_id}: lost contact {time.monotonic() - failing_since:.0f} s ago, "
                        f"the job may well go on: {error}"
                    ) from error
                delay_s = self._patience.backoff_s(failures)
            else:
                if failures:
                    self._say("the cluster answers again")
                failures, delay_s = 0, self._patience.poll_s
                if attempt.status != shown and not attempt.ended:
                    self._say(f"{self.submission_id}: {attempt.status.lower()}")
                shown = attempt.status
                if attempt.ended:
                    return attempt
            if copying.done():
                copying.result()  # it never ends by itself: this raises what ended it
            with suppress(TimeoutError):  # not asyncio.wait_for: before Python 3.12 it may swallow a cancellation
                async with asyncio.timeout(delay_s):
                    await self._stream_ended.wait()  # most often, the job has then ended too
            self._stream_ended.clear()

    async def _copy_log(self) -> None:
        failures = 0
        while True:
            self._log.restart()
            with suppress(Unreachable, TimeoutError):
                async with aclosing(self._server.tail(self.submission_id)) as stream:  # type: ignore[type-var]
                    while True:
                        async with asyncio.timeout(self._patience.silence_s):
                            chunk = await anext(stream, None)
                        if chunk is None:
                            break
                        if self._log.take(chunk):
                            failures = 0
            failures += 1
            self._stream_ended.set()
            await asyncio.sleep(self._patience.backoff_s(failures))

    async def _rest_of_log(self) -> None:
        """What the stream had not brought when the job ended; the log does not change any more."""
        for failures in (1, 2, 3):
            try:
                whole = await asyncio.to_thread(self._server.logs, self.submission_id)
            except RunFailed as error:  # a cluster may be taken down at once when its job has ended
                if failures == 3:
                    self._say(f"the end of the log could not be fetched: {error}")
                else:
                    await asyncio.sleep(self._patience.backoff_s(failures))
            else:
                self._log.restart()
                self._log.take(whole)
                break
        self._log.finish()
