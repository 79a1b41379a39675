"""What storage libraries raise, sorted by type (few of them derive from OSError), and what we raise instead.

The libraries are extras, so their types are given by name, and none is loaded to sort an error.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Mapping
from typing import Any


class StoreError(Exception):
    """A storage fault that outlasted the retries. Somewhere else or later it may work."""


class StoreDenied(Exception):
    """The store refuses us: no permission, no bucket, no conditional writes. Retrying does not help."""


class NotFound(Exception):
    """No object at the key."""


class ServerFault(ConnectionError):
    """No answer, a broken one, or one that says later: worth a retry."""

    def __init__(self, message: str, status: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


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


_THROTTLED_STATUSES = frozenset({429, 503})
"""S3, GCS and Azure all throttle with one of these (S3: SlowDown, Azure: ServerBusy)."""
_THROTTLED_CODES = frozenset(
    [
        *("SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "TooManyRequestsException"),
        *("RequestLimitExceeded", "RequestThrottled"),
    ]
)
"""Of AWS, whose keys and credentials (KMS, STS) throttle with status 400. Source: botocore's `standard` retries."""
_CLOCK_CODES = frozenset(["RequestTimeTooSkewed", "RequestExpired"])
"""This machine's clock is wrong: s3fs takes that for a lack of permission, and another machine has none of it."""

_KEY_CODES = frozenset(["DisabledException", "KMSInvalidStateException", "KeyUnavailableException"])
"""Of AWS's KMS, with status 400: the key of an encrypted object is switched off. s3fs makes plain OSErrors of them."""
_ARCHIVED = frozenset(["BlobArchived", "BlobBeingRehydrated"])  # of Azure, with status 409
_FORBIDDEN = "Forbidden: "
"""How gcsfs begins its words of a 403: a plain OSError without number, status or cause is all that it raises."""

_NO_SUCH_NAME = frozenset(["InvalidUri", "InvalidResourceName"])
"""Of Azure: no object can be called so. Data may name any."""

_AWS_ANSWER = frozenset(["botocore.exceptions.ClientError"])
_AZURE_ANSWER = frozenset(["azure.core.exceptions.HttpResponseError"])
_AIOHTTP_ANSWER = frozenset(["aiohttp.client_exceptions.ClientResponseError"])
_GOOGLE_ANSWER = frozenset(["gcsfs.retry.HttpError", "google.api_core.exceptions.GoogleAPICallError"])
"""They keep the status, as a number or its digits, and no headers."""
_RENEWAL = frozenset(["google.auth.exceptions.RefreshError"])

_NO_SUCH_PATH = (errno.ENAMETOOLONG, errno.ELOOP)
_NOT_THERE = (FileNotFoundError, NotADirectoryError, NotFound)
_MISSING = frozenset(["azure.core.exceptions.ResourceNotFoundError", "google.api_core.exceptions.NotFound"])
_DENIED = _RENEWAL | {
    "botocore.exceptions.NoCredentialsError",
    "botocore.exceptions.PartialCredentialsError",
    "botocore.exceptions.ProfileNotFound",
    "botocore.exceptions.UnauthorizedSSOTokenError",
    "google.auth.exceptions.DefaultCredentialsError",
    "google.api_core.exceptions.Forbidden",
    "google.api_core.exceptions.Unauthorized",
    "azure.core.exceptions.ClientAuthenticationError",
}
_FAULTS = _AWS_ANSWER | {
    "botocore.exceptions.BotoCoreError",
    "aiohttp.client_exceptions.ClientError",
    "google.auth.exceptions.GoogleAuthError",
    "google.api_core.exceptions.GoogleAPIError",
    "gcsfs.retry.HttpError",
    "gcsfs.retry.ChecksumError",
    "azure.core.exceptions.AzureError",
    "requests.exceptions.RequestException",
}


def cause_of(error: BaseException) -> Cause:
    """Why a call to a storage library, or to our own functions around one, failed."""
    aws_code, status, _ = _answer(error)
    azure_code = getattr(error, "error_code", None) if _is(error, _AZURE_ANSWER) else None
    if isinstance(error, _NOT_THERE) or _is(error, _MISSING) or azure_code in _NO_SUCH_NAME:
        return Cause.MISSING
    if getattr(error, "errno", None) in _NO_SUCH_PATH:
        return Cause.MISSING
    if aws_code in _THROTTLED_CODES or status in _THROTTLED_STATUSES:
        return Cause.THROTTLED
    # Google's library says of its own errors whether they pass: a token may have failed to be renewed in time.
    if aws_code in _CLOCK_CODES or (_is(error, _RENEWAL) and error.retryable):  # type: ignore[attr-defined]
        return Cause.FAULT
    by_gcsfs = type(error) is OSError and error.errno is None and str(error).startswith(_FORBIDDEN)
    if isinstance(error, (PermissionError, StoreDenied)) or _is(error, _DENIED) or by_gcsfs:
        return Cause.DENIED
    if aws_code in _KEY_CODES or azure_code in _ARCHIVED or (azure_code and status == 403):
        return Cause.DENIED
    if isinstance(error, (OSError, StoreError)) or _is(error, _FAULTS):
        return Cause.FAULT
    return Cause.OTHER


def retry_after_s(error: BaseException) -> float:
    """Seconds that the server asks to wait (`Retry-After`); 0 when it names none, or a date."""
    headers = {str(name).lower(): value for name, value in _answer(error)[2].items()}
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0


def _answer(error: BaseException) -> tuple[str, int | None, Mapping[str, Any]]:
    """AWS's code, status and headers of the HTTP answer behind an error, or behind its cause, where there was one.

    s3fs raises a plain OSError from botocore's ClientError.
    """
    one: Any
    for one in (error, error.__cause__):
        if _is(one, _AWS_ANSWER):
            about = one.response.get("ResponseMetadata", {})
            # Without the service that the code is passed on from, as in `KMS.ThrottlingException`.
            code = str(one.response.get("Error", {}).get("Code", "")).rpartition(".")[2]
            return code, about.get("HTTPStatusCode"), about.get("HTTPHeaders", {})
        if isinstance(one, ServerFault) or _is(one, _AIOHTTP_ANSWER):
            return "", one.status, one.headers or {}
        if _is(one, _AZURE_ANSWER):
            return "", one.status_code, getattr(one.response, "headers", {})
        if _is(one, _GOOGLE_ANSWER):
            return "", int(one.code or 0), {}
    return "", None, {}


def _is(error: BaseException | None, names: frozenset[str]) -> bool:
    """Whether an error is of one of the types with these names, or of a type derived from one."""
    return any(f"{kind.__module__}.{kind.__name__}" in names for kind in type(error).__mro__)
