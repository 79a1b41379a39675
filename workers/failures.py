"""One function that sorts what went wrong in a worker. By type, never by text."""

from __future__ import annotations

import traceback

from workers.bundle import BundleRefused
from workers.contract import Failure, FailureKind
from workers.model_names import ModelError
from workers.parquet import InputUnreadable
from workers.reading import SourceChanged
from workers.store import NotFound, StoreDenied, StoreError
from workers.threads import NoCores

NO_CORES = "no_cores"


def classify(error: Exception) -> Failure:
    """INFRA works somewhere else or later; TASK repeats; DATA is the input as a whole."""
    kind, code = FailureKind.TASK, ""
    match error:
        case NoCores():
            kind, code = FailureKind.INFRA, NO_CORES
        case BundleRefused():
            kind, code = FailureKind.INFRA, error.code
        case StoreError() | SourceChanged() | ConnectionError() | TimeoutError() | MemoryError():
            kind = FailureKind.INFRA
        case InputUnreadable():
            kind = FailureKind.DATA
        case StoreDenied() | NotFound():
            code = "denied"
        case ModelError():
            code = "model"
    return Failure(
        kind=kind,
        code=code,
        message=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
    )
