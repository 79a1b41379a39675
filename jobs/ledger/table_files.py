"""How the files of a table stand, as plans say: which of their rows are the table's, and where their predictions are.

A file of a table is never changed, but the table takes rows out of it, and copies rows into other files. A plan says of
every file that it finds otherwise than the plans before it how it stands now. What readers see is the last word of the
plans that are done.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from workers.contract import TableOf

Positions = npt.NDArray[np.int64]
"""Of rows in a file, over all its row groups; ascending, each once."""
NONE_DELETED: Positions = np.zeros(0, np.int64)


class Standing(StrEnum):
    LIVE = "live"
    """It is one of the table's, and its rows have predictions of their own."""
    OUT = "out"
    """None of its rows are the table's."""
    KEPT = "kept"
    """It is gone, and its rows are the table's in files that were CARRIED, which say the same."""
    CARRIED = "carried"
    """Its rows have no predictions of their own: they are those of files that are KEPT."""


@dataclass(frozen=True, slots=True)
class FileStands:
    """How a file of a table stands since a plan."""

    standing: Standing
    deleted: Positions = field(default_factory=lambda: NONE_DELETED)
    """Rows that are not the table's."""
    group: str = ""
    """Which KEPT and CARRIED files belong together: the rows of the ones are those of the others."""
    group_rows: tuple[int, ...] = ()
    """Rows of each row group, of a file with predictions: readers see row groups and rows in them, not positions."""

    @property
    def predicted(self) -> bool:
        """Whether readers see predictions of it."""
        return self.standing in (Standing.LIVE, Standing.KEPT)

    @property
    def live_rows(self) -> int:
        """Of a file with predictions."""
        return sum(self.group_rows) - len(self.deleted) if self.group_rows else 0


@dataclass(frozen=True, slots=True)
class Known:
    """What all plans together say of a file."""

    now: FileStands
    unscored: Positions | None
    """Rows that no plan has claimed, as they were never the table's when one did; None where none were claimed."""


def known_files(says: Iterable[Mapping[str, FileStands]]) -> dict[str, Known]:
    """By URI, of what plans say, in their order."""
    known: dict[str, Known] = {}
    for of_plan in says:
        for uri, now in of_plan.items():
            unscored = known[uri].unscored if uri in known else None
            if now.standing is Standing.LIVE:
                deleted = now.deleted
                unscored = deleted if unscored is None else np.intersect1d(unscored, deleted, assume_unique=True)
            known[uri] = Known(now, unscored)
    return known


def without(one: Positions, other: Positions) -> Positions:
    """Those of `one` that are not in the other."""
    return np.setdiff1d(one, other, assume_unique=True)


_FILES = pa.schema(
    [
        ("uri", pa.string()),
        ("standing", pa.string()),
        ("deleted", pa.list_(pa.int64())),
        ("group", pa.string()),
        ("group_rows", pa.list_(pa.int64())),
        ("constants", pa.string()),
    ]
)


@dataclass(frozen=True, kw_only=True, eq=False)
class TablePart:
    """What a plan says of the table that it was made of."""

    of: TableOf
    format: str
    id: str = ""
    """Of the table, where its format has one: another one may be at the same place."""
    at: str = ""
    """When the version was committed, in ISO form, in UTC."""
    files: Mapping[str, FileStands]
    """Those that stand otherwise than plans before it say."""

    def encode(self) -> bytes:
        """Arrow's IPC stream, compressed."""
        columns = {
            "uri": list(self.files),
            "standing": [str(file.standing) for file in self.files.values()],
            "deleted": [file.deleted for file in self.files.values()],
            "group": [file.group for file in self.files.values()],
            "group_rows": [file.group_rows for file in self.files.values()],
            "constants": [json.dumps(self.of.constants.get(uri, {})) for uri in self.files],
        }
        about = {
            "url": self.of.url, "version": self.of.version, "format": self.format, "schema": self.of.schema,
            "id": self.id, "at": self.at,
            "copies": json.dumps(self.of.copies),
        }  # fmt: skip
        sink = pa.BufferOutputStream()
        table = pa.table(columns, schema=_FILES.with_metadata(about))
        with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
            stream.write_table(table)
        return bytes(sink.getvalue())

    @classmethod
    def decode(cls, data: bytes) -> TablePart:
        """Raises KeyError, ValueError, and what Arrow raises, for bytes that are none."""
        table = pa.ipc.open_stream(data).read_all()
        about = {key.decode(): value for key, value in table.schema.metadata.items()}
        files = {
            row["uri"]: FileStands(
                Standing(row["standing"]),
                np.array(row["deleted"], np.int64),
                row["group"],
                tuple(row["group_rows"]),
            )
            for row in table.to_pylist()
        }
        said = zip(table["uri"].to_pylist(), map(json.loads, table["constants"].to_pylist()), strict=True)
        of = TableOf(
            url=about["url"].decode(),
            version=about["version"].decode(),
            schema=about["schema"],
            constants={uri: constants for uri, constants in said if constants},
            copies=tuple(json.loads(about["copies"])),
        )
        named = {name: about[name].decode() for name in ("format", "id", "at")}
        return cls(of=of, files=files, **named)
