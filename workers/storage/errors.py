"""What storage libraries raise, sorted by type (few of them derive from OSError), and what we raise instead.

The libraries are extras, so their types are looked up among the modules that are loaded: a library that is not loaded
has raised nothing.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Mapping
from typing import Any


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
    THROTTLED = "throttled"
    """The server answers and asks for fewer requests: it takes patience, not another server."""
    FAULT = "fault"
    """The network or the server: later it may work."""
    OTHER = "other"
    """Not storage's doing."""


THROTTLED_STATUSES = frozenset({429, 503})
"""S3, GCS and Azure all throttle with one of these (S3: SlowDown, Azure: ServerBusy)."""
_THROTTLED_CODES = frozenset(
    [
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "TooManyRequestsException",
        "RequestLimitExceeded",
        "RequestThrottled",
    ]
)
"""Of AWS, whose keys and credentials (KMS, STS) throttle with status 400. Source: botocore's `standard` retries."""
_CLOCK_CODES = frozenset(["RequestTimeTooSkewed", "RequestExpired"])
"""This machine's clock is wrong: s3fs takes that for a lack of permission, and another machine has none of it."""

_NO_SUCH_NAME = frozenset(["InvalidUri", "InvalidResourceName"])
"""Of Azure: no object can be called so. Data may name any."""

_MISSING = {
    "azure.core.exceptions": ("ResourceNotFoundError",),
    "google.api_core.exceptions": ("NotFound",),
}
_DENIED = {
    "botocore.exceptions": (
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "UnauthorizedSSOTokenError",
    ),
    "google.auth.exceptions": ("DefaultCredentialsError", "RefreshError"),
    "google.api_core.exceptions": ("Forbidden", "Unauthorized"),
    "azure.core.exceptions": ("ClientAuthenticationError",),
}
_FAULTS = {
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "aiohttp": ("ClientError",),
    "google.auth.exceptions": ("GoogleAuthError",),
    "google.api_core.exceptions": ("GoogleAPIError",),
    "gcsfs.retry": ("HttpError", "ChecksumError"),
    "azure.core.exceptions": ("AzureError",),
    "requests.exceptions": ("RequestException",),
}
_RENEWALS = {"google.auth.exceptions": ("RefreshError",)}
_WITH_A_CODE = {"gcsfs.retry": ("HttpError",), "google.api_core.exceptions": ("GoogleAPICallError",)}
"""Google's libraries keep the status, as a number or its digits, and no headers."""


def cause_of(error: BaseException) -> Cause:
    """Why a call to a storage library, or to our own functions around one, failed."""
    if isinstance(error, (FileNotFoundError, NotFound, *_loaded(_MISSING))) or _azure_code(error) in _NO_SUCH_NAME:
        return Cause.MISSING
    code = _aws_code(error)
    if code in _THROTTLED_CODES or _answer(error)[0] in THROTTLED_STATUSES:
        return Cause.THROTTLED
    # Google's library says of its own errors whether they pass: a token may have failed to be renewed in time.
    if code in _CLOCK_CODES or (isinstance(error, tuple(_loaded(_RENEWALS))) and error.retryable):  # type: ignore[attr-defined]
        return Cause.FAULT
    if isinstance(error, (PermissionError, StoreDenied, *_loaded(_DENIED))):
        return Cause.DENIED
    if isinstance(error, (OSError, TimeoutError, StoreError, *_loaded(_FAULTS))):
        return Cause.FAULT
    return Cause.OTHER


def retry_after_s(error: BaseException) -> float:
    """Seconds that the server asks to wait (`Retry-After`); 0 when it names none, or a date."""
    headers = {str(name).lower(): value for name, value in _answer(error)[1].items()}
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _answer(error: BaseException) -> tuple[int | None, Mapping[str, Any]]:
    """HTTP status and headers of the answer behind an error, where there was one.

    s3fs raises a plain OSError from botocore's ClientError, which has both.
    """
    for one in (error, error.__cause__):
        if isinstance(one, tuple(_loaded({"botocore.exceptions": ("ClientError",)}))):
            about: Mapping[str, Any] = one.response.get("ResponseMetadata", {})  # type: ignore[union-attr]
            return about.get("HTTPStatusCode"), about.get("HTTPHeaders", {})
        if isinstance(one, tuple(_loaded({"azure.core.exceptions": ("HttpResponseError",)}))):
            return one.status_code, getattr(one.response, "headers", {})  # type: ignore[union-attr]
        if isinstance(one, tuple(_loaded({"aiohttp": ("ClientResponseError",)}))):
            return one.status, one.headers or {}  # type: ignore[union-attr]
        if isinstance(one, tuple(_loaded({"workers.source.http_fetch": ("ServerFault",)}))):
            return one.status, one.headers  # type: ignore[union-attr]
        if isinstance(one, tuple(_loaded(_WITH_A_CODE))):
            return int(one.code or 0), {}  # type: ignore[union-attr]
    return None, {}


def _azure_code(error: BaseException) -> str | None:
    if isinstance(error, tuple(_loaded({"azure.core.exceptions": ("HttpResponseError",)}))):
        return getattr(error, "error_code", None)
    return None


def _aws_code(error: BaseException) -> str | None:
    """The code by which AWS names an error, without the service that it passes on (`KMS.ThrottlingException`)."""
    for one in (error, error.__cause__):
        if isinstance(one, tuple(_loaded({"botocore.exceptions": ("ClientError",)}))):
            return str(one.response.get("Error", {}).get("Code", "")).rpartition(".")[2]  # type: ignore[union-attr]
    return None


def _loaded(names: Mapping[str, tuple[str, ...]]) -> list[type[Exception]]:
    return [
        getattr(module, name)
        for module_name, types in names.items()
        if (module := sys.modules.get(module_name)) is not None
        for name in types
        if hasattr(module, name)
    ]


class ServerFault(ConnectionError):
    """No answer, a broken one, or one that says later: worth a retry."""

    def __init__(self, message: str, status: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
