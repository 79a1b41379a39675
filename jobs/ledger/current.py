"""Which model's root readers follow: an append-only log of names, the last of which counts.

    _stint/current/00000002.json    {"root": "model=resnet50-…"}

While it is empty readers follow the only root with a complete plan. A second one does not leave them without any:
before its first plan is done, the first one becomes the log's first entry. Of two that have theirs done at the same
time, the first by name does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import PurePosixPath

from jobs.errors import RunFailed
from jobs.ledger.done import DoneRecord
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan
from workers.storage.errors import NotFound, StoreDenied
from workers.storage.filesystems import open_filesystem
from workers.storage.retries import retrying
from workers.storage.store import Store

_CURRENT = "_stint/current"


def current_root(store: Store) -> str | None:
    """Root of the promoted model, `model=<name>-<fp>`; None before the first promotion. Raises RunFailed for a damaged
    entry."""
    keys = sorted(info.key for info in store.list(_CURRENT))
    if not keys:
        return None
    try:
        return str(json.loads(store.get(keys[-1]))["root"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunFailed(
            f"{store.url}/{keys[-1]} is damaged: it names no root for readers to follow",
            "remove it: readers then follow the entry before it, until `stint promote` moves them",
        ) from error


def followed_root(store: Store) -> str | None:
    """Root that readers follow who name none; None where none has a complete plan, or several have and none is
    promoted. Raises StoreError, StoreDenied."""
    if (promoted := current_root(store)) is not None:
        return promoted
    complete = complete_roots(store)
    return complete[0] if len(complete) == 1 else None


def follow(store: Store, root: str) -> None:
    """From now on."""
    number = 1 + max((int(PurePosixPath(info.key).stem) for info in store.list(_CURRENT)), default=0)
    while not _append(store, number, root):
        number += 1


def keep_following(store: Store, newcomer: str) -> str | None:
    """Before the first plan of the root `newcomer` is done: readers stay with the root that they follow, which is
    returned if that had to be written down. A promotion that comes between wins."""
    if current_root(store) is not None:
        return None
    complete = [root for root in complete_roots(store) if root != newcomer]
    return complete[0] if len(complete) == 1 and _append(store, 1, complete[0]) else None


def follow_one(store: Store) -> str | None:
    """After the first plan of a root is done: where that of another was done at the same time, neither was there to be
    written down. Readers go on with the first by name then, which is returned. A promotion that comes between wins."""
    if len(roots(store.url)) < 2 or current_root(store) is not None:
        return None
    complete = complete_roots(store)
    return complete[0] if len(complete) > 1 and _append(store, 1, complete[0]) else None


def record_first(ledger: Ledger, plan: Plan, objects: DoneRecord, say: Callable[[str], None]) -> None:
    """Record that the first plan of a root is done: readers stay with the root that they follow, which is told.

    A store that refuses to have that written down holds up no plan.
    """
    kept = None
    try:
        kept = keep_following(ledger.store, ledger.root)
    except (StoreDenied, RunFailed) as error:
        say(f"warning: readers that name no model may find two, and none promoted: {error}")
    ledger.record_done(plan, objects)
    with suppress(StoreDenied, RunFailed):  # told before
        kept = kept or follow_one(ledger.store)
    if kept:
        say(f"readers go on with {kept}, until `stint promote` moves them")


def _append(store: Store, number: int, root: str) -> bool:
    entry = {"root": root, "promoted": datetime.now(UTC).isoformat(timespec="seconds")}
    return store.create(f"{_CURRENT}/{number:08d}.json", json.dumps(entry).encode())


def complete_roots(store: Store) -> list[str]:
    """Names of the models' roots that have a complete plan."""
    return [root for root in roots(store.url) if Ledger(store, root).done_numbers()]


def roots(url: str) -> list[str]:
    """Names of the models' roots below an output URL. Raises StoreError, StoreDenied."""
    fs, path = open_filesystem(url)
    try:
        names = retrying(lambda: fs.ls(path, detail=False), url)
    except NotFound:
        return []
    found = (str(name).rstrip("/").rpartition("/")[2] for name in names)
    return sorted(name for name in found if name.startswith("model="))
