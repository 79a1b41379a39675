"""Calls side by side, in order, a bounded number ahead of whoever reads their results.

`Executor.map` starts with everything: a million futures before the first result, and results that pile up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

AT_ONCE = 16
"""Threads that wait for a store: enough that a request's time is not the reader's."""
AHEAD = 4
"""Calls begun or waiting to be read, for each thread."""


def ahead(
    call: Callable[[_Item], _Result], items: Iterable[_Item], name: str, at_once: int = AT_ONCE, a_thread: int = AHEAD
) -> Iterator[_Result]:
    """`call` of every item, in order, by `at_once` threads called `name`. The first error is raised in its place.

    At most `a_thread` calls for each thread are begun or wait to be read: 1 where results are large.
    """
    waiting: deque[Future[_Result]] = deque()
    threads = ThreadPoolExecutor(at_once, name)
    try:
        for item in items:
            waiting.append(threads.submit(call, item))
            if len(waiting) == at_once * a_thread:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
