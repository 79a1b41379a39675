"""An object store in a dictionary, and the fsspec file system through which the real store code talks to it.

Each call of the file system is one operation that a scheduler may hold up, fail, or let take effect later. Below
`workers.storage.store.ObjectStore`, so that its own read-back and retries are what is under test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from fsspec import AbstractFileSystem

from tests.model.faults import refused

IN, OUT = "in", "out"
JOURNALS = "/_stint/journals/"
"""Written by a thread that no step of a run waits for: nothing is explored there."""
UNCOUNTED = ("/_stint/runs/", JOURNALS)
"""Reports carry the time of day, and nothing depends on them: they are no part of a state."""


BUNDLES = "/_stint/bundles/"
"""Written before the runs begin, or the same whoever writes it, unless runs are of two releases."""


@dataclass(frozen=True)
class Op:
    """One call to the store."""

    kind: str
    """`put` (if absent), `overwrite`, `get`, `list`, `info`."""
    path: str
    data: bytes = b""

    def __str__(self) -> str:
        return f"{self.kind} {self.path if self.counted else 'of a report'}"

    @property
    def write(self) -> bool:
        return self.kind in ("put", "overwrite")

    @property
    def explored(self) -> bool:
        return JOURNALS not in f"{self.path}/"

    @property
    def counted(self) -> bool:
        return not any(folder in f"{self.path}/" for folder in UNCOUNTED)


@dataclass
class Bucket:
    """Objects by path, strongly consistent, and what must never happen to them."""

    watched: str
    """Folder whose objects must never change."""
    objects: dict[str, bytes] = field(default_factory=dict)
    modified: dict[str, int] = field(default_factory=dict)
    digest: int = 0
    """Of every object that counts, whatever the order in which they came."""
    history: list[str] = field(default_factory=list)
    """Writes that broke a rule."""
    present_at_done: dict[str, frozenset[str]] = field(default_factory=dict)
    """By path of a done record, what was there when it came."""

    def copy(self) -> Bucket:
        same = Bucket(self.watched, dict(self.objects), dict(self.modified), self.digest)
        same.present_at_done = dict(self.present_at_done)
        return same

    def apply(self, op: Op) -> Any:
        """Perform an operation and return its result, or raise what a server answers."""
        match op.kind:
            case "put":
                if op.path in self.objects:
                    raise refused()
                return self.put(op.path, op.data)
            case "overwrite":
                return self.put(op.path, op.data)
            case "get":
                return self._at(op.path)
            case "info":
                return self._info(op.path)
            case "list":
                folder = op.path.rstrip("/") + "/"
                return {path: self._file(path) for path in sorted(self.objects) if path.startswith(folder)}
        raise AssertionError(op.kind)

    def put(self, path: str, data: bytes, modified: int | None = None) -> None:
        if path in self.objects:
            if self.objects[path] == data:
                return
            if path.startswith(self.watched):
                self.history.append(f"{path} changed after it was visible")
            self.digest ^= self._hash(path)
        if "/_stint/done/" in path:
            self.present_at_done[path] = frozenset(self.objects)
        self.objects[path] = data
        self.modified[path] = len(self.modified) if modified is None else modified
        self.digest ^= self._hash(path)

    def remove(self, path: str) -> None:
        self.digest ^= self._hash(path)
        del self.objects[path]

    def _hash(self, path: str) -> int:
        return hash((path, self.objects[path])) if Op("get", path).counted else 0

    def _at(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def _file(self, path: str) -> dict[str, Any]:
        data = self.objects[path]
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        return {"name": path, "size": len(data), "type": "file", "ETag": etag}

    def _info(self, path: str) -> dict[str, Any]:
        if path in self.objects:
            return self._file(path)
        if any(name.startswith(path.rstrip("/") + "/") for name in self.objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)


class ModelFs(AbstractFileSystem):  # type: ignore[misc]
    """What `s3://` names while a model is checked."""

    protocol = "s3"
    cachable = False
    call: ClassVar[Callable[[Op], Any]]
    """Where operations go."""

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        ModelFs.call(Op("put" if mode == "create" else "overwrite", self._strip_protocol(path), bytes(value)))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        data: bytes = ModelFs.call(Op("get", self._strip_protocol(path)))
        return data[start:end]

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = ModelFs.call(Op("info", self._strip_protocol(path)))
        return found

    def exists(self, path: str, **options: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def isfile(self, path: str) -> bool:
        try:
            return bool(self.info(path)["type"] == "file")
        except FileNotFoundError:
            return False

    def find(self, path: str, maxdepth: int | None = None, withdirs: bool = False, **options: Any) -> dict[str, Any]:
        """Every file below `path`, each with its details."""
        found: dict[str, Any] = ModelFs.call(Op("list", self._strip_protocol(path)))
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        """What lies directly in a folder: names, or, where there are no folders in it, with details."""
        base = self._strip_protocol(path).rstrip("/") + "/"
        found: dict[str, Any] = ModelFs.call(Op("list", base))
        if detail:
            return list(found.values())
        return sorted({base + name.removeprefix(base).partition("/")[0] for name in found})
