"""What a table holds at one version: its files, which of their rows are live, and the commits since an earlier version.

The same for every format: what is new, and what is out of date, is decided from this alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Positions = npt.NDArray[np.int64]
NONE_DELETED: Positions = np.zeros(0, np.int64)

FIELD_ID = b"PARQUET:field_id"
"""Metadata of a field of `TableState.schema`: its number, by which files name it, whatever they call it."""
NAMES_IN_FILES = b"stint.names"
"""JSON list of what files without such numbers call it; without this metadata it is called as in the table."""
DEFAULT = b"stint.default"
"""JSON of what rows of files that lack it hold; without this metadata null. Bytes are hexadecimal digits, and dates,
times and decimals text."""


@dataclass(frozen=True, slots=True)
class TableFile:
    """A file of rows. It is never changed under its name: which of its rows are live is the table's to say."""

    uri: str
    """Absolute path, or URL with the scheme by which the table was named. For Lance that of the data file which holds
    the image column: rows are those of its fragment."""
    size: int
    """Bytes, as the table says."""
    rows: int | None = None
    """With those that are deleted; None where the table does not say."""
    deleted: Positions = field(default_factory=lambda: NONE_DELETED)
    """Positions in the whole file, ascending, each once, of rows that are not live."""
    constants: Mapping[str, object] = field(default_factory=dict)
    """By column, as the table calls it now: what it is in all rows, where the file does not hold it (a partition)."""


@dataclass(frozen=True, slots=True)
class TableCommit:
    """One step of the table's history. What several steps of one commit do is one."""

    version: str
    at: datetime
    added: frozenset[str] = frozenset()
    """URIs of files that are in the table since."""
    removed: frozenset[str] = frozenset()
    changed: frozenset[str] = frozenset()
    """URIs of files that stay, of which other rows are live since."""
    data_change: bool = True
    """False where the table says that the same rows are there as before, in other files."""


@dataclass(frozen=True, kw_only=True)
class TableState:
    version: str
    """As `input.version` names it: a number, or the id of a snapshot."""
    at: datetime
    """When it was committed, in UTC."""
    files: Sequence[TableFile]
    """With live rows or without, by URI."""
    schema: pa.Schema
    """Of the table now, by its present names, with the metadata above on fields and fields of structs."""
    commits: Sequence[TableCommit] | None = ()
    """After the version that was asked for by `since`, the oldest first; None where the history does not go back to it,
    or does not lead from it to this version."""
