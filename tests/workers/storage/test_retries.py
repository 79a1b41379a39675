"""Patience with storage: bounded by tries for faults, by time for throttling; both are told by type and status."""

from __future__ import annotations

import errno
import itertools
import math
from collections.abc import Callable
from types import SimpleNamespace

import azure.core.exceptions as azure_errors
import google.api_core.exceptions as google_errors
import pytest
from azure.storage.blob import StorageErrorCode
from botocore.exceptions import ClientError, CredentialRetrievalError, EndpointConnectionError, NoCredentialsError
from gcsfs.retry import HttpError
from google.auth.exceptions import RefreshError
from s3fs.errors import translate_boto_error

from workers.storage import retries
from workers.storage.errors import Cause, NotFound, StoreDenied, StoreError, cause_of, retry_after_s


class Clock:
    """Time that only passes in pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        self.pauses_s: list[float] = []
        monkeypatch.setattr("workers.storage.retries.sleep", self.pass_)
        monkeypatch.setattr("workers.storage.retries.monotonic", lambda: self.now_s)
        retries.take_throttled_s()

    def pass_(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.now_s += seconds


def throttled(status: int = 503, **headers: str) -> ClientError:
    return said("SlowDown" if status in (429, 503) else "Other", status, **headers)


def said(code: str, status: int, **headers: str) -> ClientError:
    response = {
        "Error": {"Code": code},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers},
    }
    return ClientError(response, "PutObject")


def failing(times: float, error: Exception) -> Callable[[], str]:
    left = itertools.count(1)

    def action() -> str:
        if next(left) <= times:
            raise error
        return "done"

    return action


def test_throttling_is_waited_out_long_after_a_fault_would_have_ended_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    assert retries.retrying(failing(5 * retries.TRIES, throttled()), "the key") == "done"
    assert retries.take_throttled_s() == pytest.approx(sum(clock.pauses_s))
    assert retries.take_throttled_s() == 0
    assert max(clock.pauses_s) <= retries.THROTTLED_BACKOFF_MAX_S


def test_throttling_without_end_ends_the_call_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with pytest.raises(StoreError, match=r"the key: .*SlowDown.*throttled for \d+ s"):
        retries.retrying(failing(math.inf, throttled()), "the key")
    assert retries.THROTTLED_MAX_S <= clock.now_s <= retries.THROTTLED_MAX_S + retries.THROTTLED_BACKOFF_MAX_S


def test_a_server_that_says_when_to_come_back_is_obeyed_within_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    retries.retrying(failing(1, throttled(**{"retry-after": "7"})), "the key")
    assert 7 <= clock.pauses_s[-1] <= 7 + retries.THROTTLED_BACKOFF_S
    retries.retrying(failing(1, throttled(**{"retry-after": "86400"})), "the key")
    assert clock.pauses_s[-1] <= retries.THROTTLED_BACKOFF_MAX_S + retries.THROTTLED_BACKOFF_S


def test_faults_are_bounded_by_tries_and_pauses_are_random(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    for _ in range(2):
        with pytest.raises(StoreError, match="the key: reset"):
            retries.retrying(failing(math.inf, ConnectionResetError("reset")), "the key")
    first, second = clock.pauses_s[: retries.TRIES - 1], clock.pauses_s[retries.TRIES - 1 :]
    assert len(first) == len(second) == retries.TRIES - 1
    assert first != second
    assert max(clock.pauses_s) <= retries.BACKOFF_MAX_S


def answer(status: int) -> SimpleNamespace:
    return SimpleNamespace(status_code=status, reason="", headers={"Retry-After": "3"})


def azure_said(code: StorageErrorCode) -> Exception:
    error = azure_errors.HttpResponseError(response=answer(400))
    error.error_code = code  # type: ignore[attr-defined]  (as azure.storage does)
    return error


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (throttled(), Cause.THROTTLED),
        (throttled(429), Cause.THROTTLED),
        (throttled(500), Cause.FAULT),
        (translate_boto_error(throttled()), Cause.THROTTLED),
        (translate_boto_error(throttled(409)), Cause.FAULT),
        (translate_boto_error(said("KMS.ThrottlingException", 400)), Cause.THROTTLED),
        (said("RequestLimitExceeded", 400), Cause.THROTTLED),
        (translate_boto_error(said("RequestTimeTooSkewed", 403)), Cause.FAULT),
        (translate_boto_error(said("AccessDenied", 403)), Cause.DENIED),
        (translate_boto_error(said("ExpiredToken", 400)), Cause.DENIED),
        (CredentialRetrievalError(provider="iam-role", error_msg="no answer"), Cause.FAULT),
        (NoCredentialsError(), Cause.DENIED),
        (RefreshError("no answer", retryable=True), Cause.FAULT),
        (RefreshError("no such account"), Cause.DENIED),
        (azure_errors.HttpResponseError(response=answer(503)), Cause.THROTTLED),
        (azure_errors.HttpResponseError(response=answer(500)), Cause.FAULT),
        (azure_errors.ResourceNotFoundError("no container"), Cause.MISSING),
        (azure_said(StorageErrorCode.INVALID_URI), Cause.MISSING),
        (azure_said(StorageErrorCode.INVALID_HEADER_VALUE), Cause.FAULT),
        (azure_errors.ClientAuthenticationError("no"), Cause.DENIED),
        (azure_said(StorageErrorCode.BLOB_ARCHIVED), Cause.DENIED),
        (translate_boto_error(said("InvalidObjectState", 403)), Cause.DENIED),
        (translate_boto_error(said("KMS.DisabledException", 400)), Cause.DENIED),
        (OSError("Forbidden: https://storage.googleapis.com/b/o"), Cause.DENIED),  # as gcsfs says it
        (OSError("Forbidding weather"), Cause.FAULT),
        (azure_errors.IncompleteReadError("cut"), Cause.FAULT),
        (HttpError({"code": 429}), Cause.THROTTLED),
        (HttpError({"code": "503"}), Cause.THROTTLED),
        (HttpError({"code": 500}), Cause.FAULT),
        (HttpError(), Cause.FAULT),
        (google_errors.TooManyRequests("slow down"), Cause.THROTTLED),
        (google_errors.Forbidden("no"), Cause.DENIED),
        (google_errors.DeadlineExceeded("late"), Cause.FAULT),
        (EndpointConnectionError(endpoint_url="x"), Cause.FAULT),
        (OSError(errno.EBUSY, "busy"), Cause.FAULT),
        (OSError(errno.ELOOP, "a link to itself"), Cause.MISSING),
        (OSError(errno.ENAMETOOLONG, "too long"), Cause.MISSING),
        (StoreError("after retries"), Cause.FAULT),
        (StoreDenied("no"), Cause.DENIED),
        (NotFound("k"), Cause.MISSING),
        (ZeroDivisionError(), Cause.OTHER),
    ],
    ids=repr,
)
def test_what_libraries_raise_is_sorted_by_type_and_status(error: Exception, cause: Cause) -> None:
    assert cause_of(error) is cause


def test_the_wait_that_a_server_asks_for_is_read_from_each_librarys_error() -> None:
    azure = azure_errors.HttpResponseError(response=answer(503))
    assert [retry_after_s(error) for error in (azure, throttled(**{"Retry-After": "2"}), OSError())] == [3, 2, 0]
    assert retry_after_s(throttled(**{"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"})) == 0
