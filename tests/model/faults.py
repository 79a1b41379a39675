"""What can go wrong with one call to the store, and what the caller sees of it.

Errors are the ones that s3fs makes of a server's answer: they come out of s3fs's own table.
"""

from __future__ import annotations

import enum

from botocore.exceptions import ClientError, ReadTimeoutError
from s3fs.errors import translate_boto_error


class Crash(BaseException):
    """The process is gone, as by kill -9. Nothing catches it, and nothing that it calls on its way out has effect."""


class WorkerLost(BaseException):
    """One worker's process is gone; the driver lives on and is told."""


class Fault(enum.Enum):
    """What happens to one call. `late` writes stay in flight: the scheduler says when they arrive, if ever."""

    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"
    CRASH_LATE = "crash, write in flight"
    LOST_ACK = "lost ack"
    """Applied; the connection is reset before the answer."""
    LOST_ACK_REPEATED = "lost ack, 412 on repeat"
    """Applied; the library repeats the request by itself and is told of its own write."""
    LATE = "delayed apply"
    """The caller sees a timeout; the write comes later."""
    CONFLICT_409 = "409"
    PRECONDITION_412 = "412"
    """As from a server that lost to another conditional write, which then failed: nothing is there."""
    SLOW_DOWN_503 = "503"
    TIMEOUT = "timeout"
    OUTAGE = "500 from here on"
    """Every later call of this run fails too: more than the retries stand."""
    WORKER_LOST_BEFORE = "worker lost before"
    WORKER_LOST_AFTER = "worker lost after"
    WORKER_LOST_LATE = "worker lost, write in flight"

    @property
    def applies(self) -> bool:
        """Whether the write takes effect at once."""
        return self in (Fault.CRASH_AFTER, Fault.WORKER_LOST_AFTER, Fault.LOST_ACK, Fault.LOST_ACK_REPEATED)

    @property
    def late(self) -> bool:
        return self in (Fault.LATE, Fault.CRASH_LATE, Fault.WORKER_LOST_LATE)


READS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.SLOW_DOWN_503, Fault.TIMEOUT, Fault.OUTAGE)
WRITES = (
    *READS,
    Fault.CRASH_LATE,
    Fault.LOST_ACK,
    Fault.LOST_ACK_REPEATED,
    Fault.LATE,
    Fault.CONFLICT_409,
    Fault.PRECONDITION_412,
)
OF_WORKERS = (Fault.WORKER_LOST_BEFORE, Fault.WORKER_LOST_AFTER)


def faults_of(*, write: bool, by_worker: bool) -> tuple[Fault, ...]:
    """Every fault that a call can meet."""
    of_workers = (*OF_WORKERS, Fault.WORKER_LOST_LATE) if write else OF_WORKERS
    return (WRITES if write else READS) + (of_workers if by_worker else ())


def raised(fault: Fault) -> BaseException:
    """What the caller gets."""
    match fault:
        case Fault.CRASH_BEFORE | Fault.CRASH_AFTER | Fault.CRASH_LATE:
            return Crash(fault.value)
        case Fault.WORKER_LOST_BEFORE | Fault.WORKER_LOST_AFTER | Fault.WORKER_LOST_LATE:
            return WorkerLost(fault.value)
        case Fault.LOST_ACK:
            return ConnectionResetError("reset by peer")
        case Fault.TIMEOUT | Fault.LATE:
            return ReadTimeoutError(endpoint_url="s3://model")
        case Fault.CONFLICT_409:
            return answer("ConditionalRequestConflict")
        case Fault.LOST_ACK_REPEATED | Fault.PRECONDITION_412:
            return refused()
        case Fault.SLOW_DOWN_503:
            return answer("SlowDown")
        case Fault.OUTAGE:
            return answer("InternalError")


def answer(code: str, **more: str) -> Exception:
    error: Exception = translate_boto_error(
        ClientError({"Error": {"Code": code, "Message": code, **more}}, "PutObject")
    )
    return error


def refused() -> Exception:
    """A conditional write to a key that is taken."""
    return answer("PreconditionFailed", Condition="If-None-Match")
