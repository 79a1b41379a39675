"""Which model's root readers follow."""

from __future__ import annotations

import json

from workers.storage.errors import NotFound
from workers.storage.filesystems import open_filesystem
from workers.storage.retries import retrying
from workers.storage.store import Store

CURRENT = "_stint/current"


def current_root(store: Store) -> str | None:
    """Root of the promoted model, `model=<name>-<fp>`; None before the first promotion."""
    keys = sorted(info.key for info in store.list(CURRENT))
    return str(json.loads(store.get(keys[-1]))["root"]) if keys else None


def roots(url: str) -> list[str]:
    """Names of the models' roots below an output URL. Raises StoreError, StoreDenied."""
    fs, path = open_filesystem(url)
    try:
        names = retrying(lambda: fs.ls(path, detail=False), url)
    except NotFound:
        return []
    found = (str(name).rstrip("/").rpartition("/")[2] for name in names)
    return sorted(name for name in found if name.startswith("model="))
