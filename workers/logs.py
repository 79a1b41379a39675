"""What a worker logs: a few lines of its life, through the logger `stint`, and no credentials in any line.

With RAY_LOGGING_CONFIG_ENCODING (JSON or TEXT) in the driver's environment Ray sets up Python's logging in every
process of the job: a handler of the root logger, whose lines name job, node, worker and actor. Without it nothing of
this is written anywhere.
"""

from __future__ import annotations

import logging
import math

from workers.outcomes import Failure, FailureCode, WorkerInfo
from workers.redaction import redacted

logger = logging.getLogger("stint")
logger.addHandler(logging.NullHandler())  # or Python would print warnings on stderr, into the progress of a local pool
OURS = ("stint", "jobs", "workers", "ray")
"""Heard from INFO on. Other libraries only from WARNING on: some tell every request that they make."""


class _Clean(logging.Filter):
    """Redacts what libraries put into their lines, and drops their chatter."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING and record.name.partition(".")[0] not in OURS:
            return False
        record.msg, record.args = redacted(record.getMessage()), None
        if record.exc_info and not record.exc_text:
            record.exc_text = redacted(logging.Formatter().formatException(record.exc_info))
        return True


def keep_clean() -> None:
    """Have every line of this process pass the filter. For processes of our own, once Ray has set up logging."""
    for handler in logging.getLogger().handlers:
        if not any(isinstance(one, _Clean) for one in handler.filters):
            handler.addFilter(_Clean())


def ready(info: WorkerInfo) -> None:
    logger.info(
        "ready: %s, batch %d, %d threads", info.engine, info.batch, info.plan.threads,
        extra={
            "engine": info.engine, "batch": info.batch, "threads": info.plan.threads, "cores": list(info.plan.cpus),
            "memory_bytes": info.memory_bytes, "start_s": {k: round(s, 3) for k, s in info.start_s.items()},
        },
        stacklevel=2,
    )  # fmt: skip


def failed(doing: str, failure: Failure) -> None:
    """`doing`: what was tried, as `start` or the name of a shard. Being taken away with notice is no failure."""
    level = logging.INFO if failure.code == FailureCode.PREEMPTED else logging.WARNING
    extra = {"doing": doing, "kind": failure.kind.value, "code": str(failure.code)}
    logger.log(level, "%s: %s", doing, redacted(failure.message), extra=extra, stacklevel=3)


def leaving(left_s: float) -> None:
    logger.info("has to go" if math.isinf(left_s) else f"has to go within {left_s:.0f} s", stacklevel=2)
