"""What storage libraries raise, sorted by type (few of them derive from OSError), and what we raise instead.

The libraries are extras, so their types are looked up among the modules that are loaded: a library that is not loaded
has raised nothing.
"""

from __future__ import annotations

import enum
import sys


class StoreError(Exception):
    """A storage fault that outlasted the retries. Somewhere else or later it may work."""


class StoreDenied(Exception):
    """The store refuses us: no permission, no bucket, no conditional writes. Retrying does not help."""


class NotFound(Exception):
    """No object at the key."""


class Cause(enum.Enum):
    MISSING = "missing"
    """There is no such object or bucket."""
    DENIED = "denied"
    """No permission or no credentials: retrying does not help."""
    FAULT = "fault"
    """The network or the server: later it may work."""
    OTHER = "other"
    """Not storage's doing."""


_DENIED = {
    "botocore.exceptions": (
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "UnauthorizedSSOTokenError",
    ),
    "google.auth.exceptions": ("DefaultCredentialsError", "RefreshError"),
    "azure.core.exceptions": ("ClientAuthenticationError",),
}
_FAULTS = {
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "aiohttp": ("ClientError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "gcsfs.retry": ("HttpError", "ChecksumError"),
    "azure.core.exceptions": ("AzureError",),
    "requests.exceptions": ("RequestException",),
}


def cause_of(error: BaseException) -> Cause:
    """Why a call to a storage library failed."""
    if isinstance(error, FileNotFoundError):
        return Cause.MISSING
    if isinstance(error, (PermissionError, *_loaded(_DENIED))):
        return Cause.DENIED
    if isinstance(error, (OSError, TimeoutError, *_loaded(_FAULTS))):
        return Cause.FAULT
    return Cause.OTHER


def _loaded(names: dict[str, tuple[str, ...]]) -> list[type[Exception]]:
    return [
        getattr(module, name)
        for module_name, types in names.items()
        if (module := sys.modules.get(module_name)) is not None
        for name in types
        if hasattr(module, name)
    ]
