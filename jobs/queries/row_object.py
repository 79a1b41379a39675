"""One row in its output object: what the object says of itself, and what it predicts for the row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.errors import RunFailed
from jobs.report.row_images import RowAt
from workers.bundle.manifest import Manifest
from workers.output import SOURCE_FIELDS, key_names, shown_keys
from workers.storage.errors import NotFound
from workers.storage.store import Store


@dataclass(frozen=True)
class Held:
    """An output object, and a row in it."""

    data: bytes
    metadata: Mapping[str, str]
    """`stint.…`, without the prefix."""
    row: pa.Table
    """One row, or none: then its source was gone when it was its turn."""

    @property
    def there(self) -> bool:
        return bool(self.row.num_rows)

    @property
    def keys(self) -> dict[str, str]:
        """Values of the key columns, for a person."""
        return shown_keys(self.row.select(key_names(self.row.schema)), 0) if self.there else {}

    def prediction(self, manifest: Manifest | None) -> dict[str, Any] | None:
        """As `jobs.queries.explanation.Explanation` has it; class names come from the manifest, where it is there."""
        if not self.there:
            return None
        keys = set(key_names(self.row.schema))
        row = self.row.select([name for name in self.row.column_names if name not in keys]).to_pylist()[0]
        if row["error_code"] is not None:
            return {"error_code": row["error_code"], "error_message": row["error_message"]}
        if "embedding" in row:
            return {"embedding": len(row["embedding"])}
        top = zip(row["topk_label"], row["topk_score"], strict=True)
        return {"label": row["label"], "score": row["score"], "top": [(class_name(manifest, k), s) for k, s in top]}


def held(store: Store, key: str, at: RowAt) -> Held | None:
    """None while there is no object. Raises RunFailed for one that is damaged; StoreError, StoreDenied."""
    try:
        data = store.get(key)
    except NotFound:
        return None
    try:
        table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
        for column, value in zip(SOURCE_FIELDS, astuple(at), strict=True):
            table = table.filter(pc.equal(table[column.name], pa.scalar(value, column.type)))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise RunFailed(f"{key} cannot be read: {error}", "`stint verify` names all that is damaged") from error
    found = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    ours = {name.removeprefix("stint."): value for name, value in found.items() if name.startswith("stint.")}
    return Held(data, ours, table)


def class_name(manifest: Manifest | None, index: int) -> str:
    """As the model's labels call it; its number where they are not known."""
    labels = None if manifest is None else manifest.labels
    return labels[index] if labels and 0 <= index < len(labels) else str(index)
