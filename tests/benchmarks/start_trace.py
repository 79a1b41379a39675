"""`python -m jobs`, which also tells when the steps of its start were over: for bench_start.

Writes a JSON object of step and Unix time to the file that START_TRACE names.
"""

from __future__ import annotations

import functools
import json
import os
import pkgutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOMENTS: dict[str, float] = {"interpreter": time.time()}
STEPS = {
    "job opened": ("jobs.plan.job:Job", "open"),
    "input discovered": ("jobs.run.run", "discover"),
    "Ray is up": ("jobs.run.run", "connect"),
    "bundle judged": ("jobs.run.run:Run", "_ensure_bundle"),
    "plan claimed": ("jobs.ledger.ledger:Ledger", "claim"),
}
"""Each with the function that ends it, by its owner and name."""


def told(step: str, owner: Any, name: str) -> None:
    """Have a function tell when it first returned."""
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def telling(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        finally:
            MOMENTS.setdefault(step, time.time())

    setattr(owner, name, telling)


def main() -> None:
    from jobs import cli
    from jobs.run import run
    from workers.host.without_pandas import without_pandas

    without_pandas()  # as jobs.cli.entrypoint does
    MOMENTS["import jobs.cli"] = time.time()
    for step, (owner, name) in STEPS.items():
        told(step, pkgutil.resolve_name(owner), name)
    original_ready = run.Loop.__init__

    @functools.wraps(original_ready)
    def starting(*args: Any, **kwargs: Any) -> None:
        MOMENTS.setdefault("loop begins", time.time())
        original_ready(*args, **kwargs)
        _watch(args[0].pool)

    run.Loop.__init__ = starting  # type: ignore[method-assign]
    try:
        code = cli.main(sys.argv[1:])
    finally:
        Path(os.environ["START_TRACE"]).write_text(json.dumps(MOMENTS))
    sys.exit(code)


def _watch(pool: Any) -> None:
    """When the first worker was placed, when it was ready, and when its first shard had ended."""
    original = pool.poll

    def poll(timeout_s: float) -> Any:
        events = original(timeout_s)
        for event in events:
            step = {"WorkerPlaced": "worker's process runs", "WorkerReady": "worker ready", "ShardEnded": "shard ended"}
            if (name := step.get(type(event).__name__)) is not None:
                MOMENTS.setdefault(name, time.time())
        return events

    pool.poll = poll


if __name__ == "__main__":
    main()
