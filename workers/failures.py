"""One function that sorts what went wrong in a worker. By type, never by text."""

from __future__ import annotations

import traceback

from workers.bundle.bundle import BundleRefused
from workers.host.child import KilledFromOutside
from workers.host.cores import NoCores, TooWide
from workers.host.memory import BoundTooLow
from workers.host.preemption import Preempted
from workers.image.errors import DecoderMissing, RowsRefused
from workers.model.names import ModelError
from workers.outcomes import Failure, FailureCode, FailureKind
from workers.redaction import redacted
from workers.source.shard_reader import SourceChanged
from workers.source.source_file import InputDenied, InputUnreadable
from workers.storage.errors import NotFound, StoreDenied, StoreError

_SORTED: tuple[tuple[tuple[type[Exception], ...], FailureKind, FailureCode], ...] = (
    ((NoCores,), FailureKind.INFRA, FailureCode.NO_CORES),
    ((TooWide,), FailureKind.INFRA, FailureCode.TOO_WIDE),
    ((Preempted,), FailureKind.INFRA, FailureCode.PREEMPTED),
    ((KilledFromOutside,), FailureKind.INFRA, FailureCode.CRASHED),
    ((MemoryError, BoundTooLow), FailureKind.INFRA, FailureCode.MEMORY),
    ((BundleRefused, StoreError, SourceChanged, ConnectionError, TimeoutError), FailureKind.INFRA, FailureCode.OTHER),
    ((InputDenied,), FailureKind.DATA, FailureCode.DENIED),
    ((InputUnreadable,), FailureKind.DATA, FailureCode.OTHER),
    ((StoreDenied, NotFound), FailureKind.TASK, FailureCode.DENIED),
    ((RowsRefused,), FailureKind.TASK, FailureCode.REFUSED),
    ((ModelError, DecoderMissing), FailureKind.TASK, FailureCode.MODEL),
    ((Exception,), FailureKind.TASK, FailureCode.OTHER),
)
"""The first line that fits counts."""


def classify(error: Exception) -> Failure:
    """INFRA works somewhere else or later; TASK repeats; DATA is the input as a whole."""
    kind, code = next((kind, code) for types, kind, code in _SORTED if isinstance(error, types))
    # Errors of our own say what happened by themselves; of others the type is half the message.
    ours = type(error).__module__.startswith("workers.")
    return Failure(
        kind=kind,
        code=error.code if isinstance(error, BundleRefused) else code,
        message=redacted(str(error) if ours else f"{type(error).__name__}: {error}"),
        # A worker that had to go has nothing to explain.
        traceback="" if code == FailureCode.PREEMPTED else redacted("".join(traceback.format_exception(error))),
    )
