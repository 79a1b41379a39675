"""A Delta table in the modelled bucket: its files, the commits that may come at any time, and what is live in it."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.model.model_fs import IN, Bucket
from tests.model.scenario import Change
from tests.model.scheduler import World
from workers.image.errors import BadImage
from workers.score.copies import image_hash

LOG = "_delta_log"


def images(*rows: bytes) -> bytes:
    """A file of these images."""
    sink = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array(rows, pa.binary())}), sink)
    return sink.getvalue()


OLD, LATER, BOTH = images(b"a", b"b"), images(b"c"), images(b"c", b"b", b"a")
CHANGED, BACK = images(b"a", b"new"), images(b"b", b"a")
FILES = {"0.parquet": OLD, "1.parquet": LATER, "2.parquet": BOTH, "3.parquet": CHANGED, "4.parquet": BACK}


def add(file: str, *, data_change: bool = True) -> dict[str, Any]:
    size = len(FILES[file])
    return {"add": {"path": file, "size": size, "partitionValues": {}, "dataChange": data_change}}


def remove(file: str, *, data_change: bool = True) -> dict[str, Any]:
    return {"remove": {"path": file, "dataChange": data_change}}


def log_file(version: int) -> str:
    return f"{LOG}/{version:020}.json"


def commit(*actions: Mapping[str, Any]) -> bytes:
    return "\n".join(json.dumps(one) for one in ({"commitInfo": {"timestamp": 1}}, *actions)).encode()


_FIELD = {"name": "image", "type": "binary", "nullable": True, "metadata": {}}
_SCHEMA = json.dumps({"type": "struct", "fields": [_FIELD]})
MADE = {
    **FILES,
    log_file(0): commit(
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        {"metaData": {"id": "t", "schemaString": _SCHEMA, "partitionColumns": [], "configuration": {}}},
        add("0.parquet"),
    ),
}
"""A table of one commit, with the files of later ones beside it."""


@dataclass(frozen=True)
class Commit(Change):
    """A commit, after which some files may be cleaned up."""

    cleaned: Sequence[str] = ()

    def apply(self, world: World) -> None:
        for name in self.cleaned:
            if (path := f"{IN}/{name}") in world.bucket.objects:
                world.bucket.remove(path)
        super().apply(world)


APPEND = Commit(log_file(1), commit(add("1.parquet")))
REWRITE = Commit(log_file(1), commit(remove("0.parquet"), add("3.parquet")))
DROP = Commit(log_file(1), commit(remove("0.parquet")))


def compaction(version: int = 2, cleaned: Sequence[str] = ("0.parquet", "1.parquet")) -> Commit:
    """Of the first file and the one that was appended."""
    gone = (remove(name, data_change=False) for name in ("0.parquet", "1.parquet"))
    return Commit(log_file(version), commit(*gone, add("2.parquet", data_change=False)), cleaned=cleaned)


def of_one(version: int = 1) -> Commit:
    """The first file alone is compacted."""
    gone, come = remove("0.parquet", data_change=False), add("4.parquet", data_change=False)
    return Commit(log_file(version), commit(gone, come), cleaned=["0.parquet"])


def live_images(bucket: Bucket) -> Counter[bytes | None]:
    """Hashes of the images in the table as it is now, by its log alone."""
    files = set[str]()
    for path in sorted(path for path in bucket.objects if path.startswith(f"{IN}/{LOG}/")):
        for action in map(json.loads, bucket.objects[path].splitlines()):
            files |= {action["add"]["path"]} if "add" in action else set()
            files -= {action["remove"]["path"]} if "remove" in action else set()
    return Counter(hashed(image) for file in files for image in _images(FILES[file]))


def hashed(image: bytes | BadImage) -> bytes | None:
    return image_hash(image)


def _images(data: bytes) -> list[bytes]:
    found: list[bytes] = pq.read_table(io.BytesIO(data))["image"].to_pylist()
    return found
