"""An output table of a made-up format in the modelled bucket: a log of versions, each created once.

As every real format has it: a version names files and the edition, a commit creates the next one or finds that somebody
else has. Its calls go through the modelled store, so each of them may be held up, fail or be the last of its run.
"""

from __future__ import annotations

import io
import json
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.tables.target import Change, Copy, Portion, TableMoved
from tests.model.model_fs import OUT, Bucket
from workers.storage.errors import StoreError
from workers.storage.store import ObjectStore, open_store

FOLDER = "_stint/model-table"
EMPTY: dict[str, Any] = {"edition": 0, "files": []}


class ModelTable:
    def __init__(self, url: str) -> None:
        store = open_store(url)
        assert isinstance(store, ObjectStore)
        self._store = store
        self._versions = 0
        self._held = EMPTY

    def read(self) -> int:
        keys = sorted(info.key for info in self._store.list(FOLDER))
        self._versions, self._held = len(keys), json.loads(self._store.get(keys[-1])) if keys else EMPTY
        return int(self._held["edition"])

    def commit(self, edition: int, schema: pa.Schema, change: Change, copy: Copy) -> None:
        files = list[tuple[str, list[Any]]]()
        for uri, part in self._held["files"]:
            of = Portion(*part)
            rows = self._rows(uri) if of in change.trimmed else None
            if of in change.dropped:
                continue
            if rows is None or len(rest := change.trimmed[of](rows)) == len(rows):
                files.append((uri, part))
            elif len(rest):
                files.append((copy(of, rest).uri, part))
        files += [(file.uri, list(file.part)) for file in change.added]
        self.create(edition, files)

    def create(self, edition: int, files: list[tuple[str, list[Any]]]) -> None:
        key = f"{FOLDER}/{self._versions + 1:08d}.json"
        try:
            version = {"edition": edition, "files": files, "id": uuid.uuid4().hex}  # so that no two are the same
            made = self._store.create(key, json.dumps(version).encode())
        except StoreError as error:  # perhaps it is there
            raise TableMoved from error
        if not made:
            raise TableMoved

    def rows(self) -> Mapping[Portion, int]:
        found: Counter[Portion] = Counter()
        for uri, part in self._held["files"]:
            found[Portion(*part)] += len(self._rows(uri))
        return found

    def _rows(self, uri: str) -> pa.Table:
        return pq.read_table(io.BytesIO(self._store.get(uri.removeprefix(f"{self._store.url}/"))))


def versions(bucket: Bucket) -> list[tuple[int, Counter[tuple[int, str, str, int]]]]:
    """Edition, and rows by plan, URI, version and number, of each version of the table."""
    found = []
    for path in sorted(path for path in bucket.objects if path.startswith(f"{OUT}/{FOLDER}/")):
        version, rows = json.loads(bucket.objects[path]), Counter[tuple[int, str, str, int]]()
        for uri, part in version["files"]:
            table = pq.read_table(io.BytesIO(bucket.objects[uri.removeprefix("s3://")]))
            columns = (table[name].to_pylist() for name in ("source_uri", "source_version", "row"))
            rows.update((int(part[1]), *row) for row in zip(*columns, strict=True))
        found.append((int(version["edition"]), rows))
    return found


def compact(bucket: Bucket) -> None:
    """By somebody else, at once: the files of each part become one."""
    paths = sorted(path for path in bucket.objects if path.startswith(f"{OUT}/{FOLDER}/"))
    if not paths:
        return
    version, of_parts = json.loads(bucket.objects[paths[-1]]), dict[tuple[Any, ...], list[pa.Table]]()
    for uri, part in version["files"]:
        table = pq.read_table(io.BytesIO(bucket.objects[uri.removeprefix("s3://")]))
        of_parts.setdefault(tuple(part), []).append(table)
    files = []
    for part, tables in of_parts.items():
        sink, path = io.BytesIO(), f"{OUT}/_stint/model-compacted/{len(paths)}-{part[1]}"
        pq.write_table(pa.concat_tables(tables), sink)
        bucket.put(path, sink.getvalue())
        files.append((f"s3://{path}", list(part)))
    data = json.dumps({"edition": version["edition"], "files": files}).encode()
    bucket.put(f"{OUT}/{FOLDER}/{len(paths) + 1:08d}.json", data)
