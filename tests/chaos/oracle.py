"""What came out, counted without the product's own code: rows by key, and whether any object was written twice."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.chaos.hooks.sitecustomize import kind_of
from tests.objectstore.backends import versions

DONE = re.compile(r"(?P<root>.*model=[^/]+)/_stint/done/(?P<number>\d{8})\.stint$")
MARKS = ("_stint/tmp/",)
"""Temporary files of a local store: the only thing below an output that is not write-once."""


@dataclass(frozen=True)
class Count:
    """Of one output: rows that strict readers see, against those that were delivered."""

    rows: int
    lost: int
    doubled: int
    quarantined: int
    """Rows that were given up as crashing their worker."""


@dataclass
class Folder:
    """A local output."""

    path: Path
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    rewritten: set[str] = field(default_factory=set)

    def read(self, key: str) -> bytes:
        return (self.path / key).read_bytes()

    def keys(self) -> list[str]:
        files = (file.relative_to(self.path).as_posix() for file in self.path.rglob("*") if file.is_file())
        return sorted(key for key in files if not key.startswith(MARKS))

    def scratch(self) -> int:
        """Temporary files that killed writers left."""
        return sum(1 for _ in self.path.glob("**/_stint/tmp/*"))

    def look(self) -> None:
        """Remember every object as it is; one that has changed or gone since the last look was not write-once."""
        now = {key: (stat.st_ino, stat.st_mtime_ns) for key in self.keys() for stat in [(self.path / key).stat()]}
        self.rewritten |= {key for key, mark in self._seen.items() if now.get(key) != mark}
        self._seen = now


@dataclass
class Bucket:
    """An output on an object store that keeps every version. `fs` is an s3fs of it."""

    fs: Any
    path: str
    """bucket/folder"""
    rewritten: set[str] = field(default_factory=set)

    def read(self, key: str) -> bytes:
        return bytes(self.fs.cat_file(f"{self.path}/{key}"))

    def keys(self) -> list[str]:
        return sorted(path.removeprefix(f"{self.path}/") for path in self.fs.find(self.path))

    def scratch(self) -> int:
        return 0

    def look(self) -> None:
        bucket, _, folder = self.path.partition("/")
        written = versions(f"s3://{bucket}")
        self.rewritten |= {key.removeprefix(f"{folder}/") for key, n in written.items() if n > 1}


Output = Folder | Bucket


def count(output: Output, delivered: Collection[int], column: str = "id") -> Count:
    """Rows of done plans by their key `column`, against the keys that were delivered."""
    found: Counter[int] = Counter()
    quarantined = 0
    for key in _done_objects(output):
        table = pq.read_table(io.BytesIO(output.read(key)), columns=[column, "error_code"])
        found.update(table[column].to_pylist())
        quarantined += sum(code == "crashed_worker" for code in table["error_code"].to_pylist())
    return Count(
        rows=found.total(),
        lost=len(set(delivered) - found.keys()),
        doubled=sum(n - 1 for n in found.values()) + len(found.keys() - set(delivered)),
        quarantined=quarantined,
    )


def _done_objects(output: Output) -> Iterable[str]:
    for key in output.keys():  # noqa: SIM118  (a listing, no dictionary)
        if match := DONE.match(key):
            record = pq.read_table(io.BytesIO(output.read(key)), columns=["key"])
            yield from (f"{match['root']}/{name}" for name in record["key"].to_pylist())


def kinds(keys: Iterable[str]) -> Counter[str]:
    """How many keys there are of each kind of object."""
    return Counter(map(kind_of, keys))
