"""Crashes, counted durably: a small object for each time that a shard's worker died while it held the shard.

    _stint/crashes/00000007/00000012-<random>.json    plan 7, shard 12, created once

The count of a shard is the number of its objects: nothing is rewritten, any number of runs may add to it, and a run
that is killed leaves what it knew to the next. Correctness does not depend on them: they decide how a shard is scored.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from workers.contract import Shard, shard_key
from workers.outcomes import Failure, WorkerInfo
from workers.redaction import redacted
from workers.storage.store import Store

CRASHES_FOLDER = "_stint/crashes"
_KEY = re.compile(rf"{CRASHES_FOLDER}/(\d{{8}})/(\d{{8}})-[0-9a-f]{{32}}\.json")


@dataclass(frozen=True)
class CrashLog:
    """The crashes below one model root, as one run sees and adds to them."""

    store: Store
    root: str
    run_id: str = ""
    """Of the run that adds to it."""

    def counts(self, plans: Collection[int]) -> dict[str, int]:
        """Crashes of all runs by the key of the shard, with a listing for each plan. Raises StoreError, StoreDenied."""
        return dict(Counter(shard_key(*found) for plan in sorted(plans) for found in self._listed(plan)))

    def record(self, shard: Shard, failure: Failure, worker: WorkerInfo | None, *, at: str) -> None:
        """Count one more. Raises StoreError, StoreDenied."""
        crash = {
            "shard": shard.name,
            "code": failure.code,
            "reason": redacted(failure.message),
            "host": worker.host if worker else "",
            "pid": worker.pid if worker else None,
            "run_id": self.run_id,
            "at": at,
        }
        key = f"{self._folder(shard.plan)}/{shard.index:08d}-{uuid.uuid4().hex}.json"
        self.store.create(key, json.dumps(crash, indent=2).encode())

    def _folder(self, plan: int) -> str:
        return f"{self.root}/{CRASHES_FOLDER}/{plan:08d}"

    def _listed(self, plan: int) -> Iterator[tuple[int, int]]:
        for info in self.store.list(self._folder(plan)):
            if found := parse_crash_key(info.key.removeprefix(f"{self.root}/")):
                yield found


def parse_crash_key(key: str) -> tuple[int, int] | None:
    """Plan and shard index of a crash's key below the root; None for another key."""
    found = _KEY.fullmatch(key)
    return (int(found[1]), int(found[2])) if found else None
