"""A call to storage, again until it works or it is time to give up."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from workers.storage_errors import Cause, NotFound, StoreDenied, StoreError, cause_of

TRIES = 6
BACKOFF_S = 0.2
BACKOFF_MAX_S = 8.0

T = TypeVar("T")


def retrying(action: Callable[[], T], what: str) -> T:
    """Run `action`, again after each storage fault with jittered, doubling pauses.

    NotFound is not a fault and goes straight up; a refusal becomes StoreDenied; the last fault becomes StoreError.
    """
    for attempt in range(1, TRIES + 1):
        try:
            return action()
        except Exception as error:  # sorted by type right below; what is not storage's goes up as it is
            match cause_of(error):
                case Cause.MISSING:
                    raise NotFound(what) from error
                case Cause.DENIED:
                    raise StoreDenied(f"{what}: {error}") from error
                case Cause.OTHER:
                    raise
            if attempt == TRIES:
                raise StoreError(f"{what}: {error} ({TRIES} tries)") from error
            pause(attempt)
    raise AssertionError("unreachable")


def pause(attempt: int) -> None:
    time.sleep(min(BACKOFF_MAX_S, BACKOFF_S * 2**attempt) * random.uniform(0.5, 1.0))  # noqa: S311  (jitter)
