"""One function that sorts what went wrong in a worker. By type, never by text."""

from __future__ import annotations

import traceback

from workers.bundle.bundle import BundleRefused
from workers.host.child import KilledFromOutside
from workers.host.cores import NoCores, TooWide
from workers.host.memory import BoundTooLow
from workers.host.preemption import Preempted
from workers.model.names import ModelError
from workers.outcomes import Failure, FailureCode, FailureKind
from workers.redaction import redacted
from workers.source.shard_reader import SourceChanged
from workers.source.source_file import InputUnreadable
from workers.storage.errors import NotFound, StoreDenied, StoreError


def classify(error: Exception) -> Failure:
    """INFRA works somewhere else or later; TASK repeats; DATA is the input as a whole."""
    kind, code = FailureKind.TASK, str(FailureCode.OTHER)
    match error:
        case NoCores():
            kind, code = FailureKind.INFRA, FailureCode.NO_CORES
        case TooWide():
            kind, code = FailureKind.INFRA, FailureCode.TOO_WIDE
        case Preempted():
            kind, code = FailureKind.INFRA, FailureCode.PREEMPTED
        case BundleRefused():
            kind, code = FailureKind.INFRA, error.code
        case StoreError() | SourceChanged() | ConnectionError() | TimeoutError():
            kind = FailureKind.INFRA
        case KilledFromOutside():
            kind, code = FailureKind.INFRA, FailureCode.CRASHED
        case MemoryError() | BoundTooLow():
            kind, code = FailureKind.INFRA, FailureCode.MEMORY
        case InputUnreadable():
            kind = FailureKind.DATA
        case StoreDenied() | NotFound():
            code = FailureCode.DENIED
        case ModelError():
            code = FailureCode.MODEL
    # Errors of our own say what happened by themselves; of others the type is half the message.
    ours = type(error).__module__.startswith("workers.")
    return Failure(
        kind=kind,
        code=code,
        message=redacted(str(error) if ours else f"{type(error).__name__}: {error}"),
        # A worker that had to go has nothing to explain.
        traceback="" if code == FailureCode.PREEMPTED else redacted("".join(traceback.format_exception(error))),
    )
