"""Follow a submitted attempt to its end: its log, each line once, and its status, each asked for by itself.

A log stream is lost in silence (a proxy that times out, a dashboard that restarts), and a new one starts at the
beginning of the log: what was shown is skipped by count. The status says that a job has ended, never a stream.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.errors import Interrupted, RunFailed
from jobs.launch.attempts import Attempt, Unreachable

if TYPE_CHECKING:
    from jobs.launch.job_server import JobServer


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


@dataclass
class Follower:
    """Copies the log of an attempt, and waits for its end."""

    server: JobServer
    submission_id: str
    log: LogCopy
    say: Callable[[str], None]
    again: str
    """What to do next where following ends before the job does."""
    poll_s: float = 2.0
    """Between two questions for the status."""
    retry_s: float = 1.0
    """Before the first retry of what failed; doubled with each further one."""
    retry_most_s: float = 15.0
    lost_after_s: float = 300.0
    """A head node that restarts, or a dropped VPN, is waited for this long."""
    silence_s: float = 120.0
    """A stream that brings nothing for so long may be cut without either end knowing: it is opened again."""

    def wait_for_end(self) -> Attempt:
        """The attempt once it has ended and all of its log is copied.

        Raises Interrupted on SIGINT and SIGTERM, which leave the job alone; RunFailed when the cluster does not answer
        for `lost_after_s`; what else the server raises, as for a job that it does not know.
        """
        return asyncio.run(self._follow())

    async def _follow(self) -> Attempt:
        task = asyncio.current_task()
        assert task is not None
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            async with asyncio.TaskGroup() as group:
                copying = group.create_task(self._copy_log())
                attempt = await self._poll()
                copying.cancel()
            await self._rest_of_log()
            return attempt
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        except asyncio.CancelledError:
            message = f"no longer waiting for {self.submission_id}, which goes on in the cluster"
            raise Interrupted(message, self.again) from None

    async def _poll(self) -> Attempt:
        failures, failing_since_s, shown = 0, 0.0, ""
        while True:
            try:
                attempt = await asyncio.to_thread(self.server.attempt, self.submission_id)
            except Unreachable as error:
                failures += 1
                if failures == 1:
                    failing_since_s = time.monotonic()
                    self.say(f"{error}; trying again for {self.lost_after_s:.0f} s")
                if (away_s := time.monotonic() - failing_since_s) > self.lost_after_s:
                    raise RunFailed(
                        f"{self.submission_id}: lost contact {away_s:.0f} s ago, the job may well go on: {error}",
                        self.again,
                    ) from error
                delay_s = self._backoff_s(failures)
            else:
                if failures:
                    self.say("the cluster answers again")
                if attempt.ended:
                    return attempt
                if attempt.status != shown:
                    self.say(f"{self.submission_id}: {attempt.status.lower()}")
                failures, shown, delay_s = 0, attempt.status, self.poll_s
            await asyncio.sleep(delay_s)

    async def _copy_log(self) -> None:
        failures = 0
        while True:
            self.log.restart()
            with suppress(Unreachable, TimeoutError):
                async with (
                    aclosing(self.server.tail(self.submission_id)) as stream,
                    asyncio.timeout(self.silence_s) as limit,
                ):
                    async for chunk in stream:
                        limit.reschedule(asyncio.get_running_loop().time() + self.silence_s)
                        if self.log.take(chunk):
                            failures = 0
            failures += 1
            await asyncio.sleep(self._backoff_s(failures))

    async def _rest_of_log(self) -> None:
        """What the stream had not brought when the job ended; the log does not change any more."""
        self.log.restart()
        for failures in (1, 2, 3):
            try:
                self.log.take(await asyncio.to_thread(self.server.logs, self.submission_id))
                break
            except RunFailed as error:  # a cluster may be taken down at once when its job has ended
                if failures == 3:
                    self.say(f"the end of the log could not be fetched: {error}")
                else:
                    await asyncio.sleep(self._backoff_s(failures))
        self.log.finish()

    def _backoff_s(self, failures: int) -> float:
        return min(self.retry_s * 2.0 ** min(failures - 1, 30), self.retry_most_s)
