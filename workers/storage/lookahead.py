"""Calls side by side, in order, a bounded number ahead of whoever reads their results.

`Executor.map` starts with everything: a million futures before the first result, and results that pile up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 4
"""Calls begun or waiting to be read, for each thread."""


def ahead(call: Callable[[T], R], items: Iterable[T], at_once: int, name: str) -> Iterator[R]:
    """`call` of every item, in order, by `at_once` threads called `name`. The first error is raised in its place."""
    waiting: deque[Future[R]] = deque()
    threads = ThreadPoolExecutor(at_once, name)
    try:
        for item in items:
            waiting.append(threads.submit(call, item))
            if len(waiting) == at_once * AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
