"""Calls to the store that the run loop does not wait for.

A store that throttles may take a quarter of an hour to answer; meanwhile workers want shards, nodes are drained, and
a person may want the run to end.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

from workers.storage.errors import StoreDenied, StoreError

_T = TypeVar("_T")


class Errands(Generic[_T]):
    """Done in threads of their own, `at_once` at a time."""

    def __init__(self, name: str, at_once: int = 1) -> None:
        self._threads = ThreadPoolExecutor(at_once, name)
        self._under_way: deque[Future[_T]] = deque()

    @property
    def under_way(self) -> bool:
        return bool(self._under_way)

    def send(self, action: Callable[[], _T]) -> None:
        self._under_way.append(self._threads.submit(action))

    def ended(self, wait_s: float = 0.0) -> Iterator[_T | StoreError | StoreDenied]:
        """What has come of those that are over, in the order in which they were sent; waits up to `wait_s` in all."""
        until = time.monotonic() + wait_s
        while self._under_way:
            outcome: _T | StoreError | StoreDenied
            try:
                outcome = self._under_way[0].result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                return
            except (StoreError, StoreDenied) as error:
                outcome = error
            self._under_way.popleft()
            yield outcome

    def close(self) -> None:
        """What has not begun is not done any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
