"""What an output table is asked: which edition it holds, and to go over to another one in a single commit.

An *edition* is a numbered content of the table: the rows that readers see when these plans of this root are done. The
table keeps the number of the edition that it holds, changed by the very commit that changes its rows.

Rows of a table have two columns that the objects have not, by which it is divided into parts: `model`, the name of
the root, and `plan`, the number of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import pyarrow as pa

MODEL, PLAN = pa.field("model", pa.string(), nullable=False), pa.field("plan", pa.int32(), nullable=False)
"""Columns that the files of a table do not hold, where its format lets them be said of a file as a whole."""


class Part(NamedTuple):
    """The rows of one plan of one model."""

    model: str
    """Of the root `model=<name>-<fp>`, what follows `model=`."""
    plan: int


@dataclass(frozen=True, slots=True)
class RowFile:
    """A Parquet file of rows of one part, without the columns `model` and `plan`: never changed once it is there."""

    uri: str
    """URL, or absolute path of a local file."""
    part: Part
    rows: int
    size: int
    """Bytes."""


Seen = Callable[[pa.Table], pa.Table]
"""Of rows with the columns source_uri, source_version, row_group and row (and any others), in their order, those that
readers see."""


Copy = Callable[[Part, pa.Table], RowFile]
"""Writes rows of a part, with the columns of the objects, as a file."""


@dataclass(frozen=True)
class Change:
    """From one edition to another."""

    added: Sequence[RowFile] = ()
    dropped: Collection[Part] = ()
    """Parts of which no row stays."""
    trimmed: Mapping[Part, Seen] = field(default_factory=dict)
    """Parts of which some rows go, whichever files other writers have them in by now."""


class TableMoved(Exception):
    """The table, or the edition that it holds, has changed since it was read: nothing of this commit is in it."""


class OutputTable(Protocol):
    """A table of one format, at one place."""

    def read(self) -> int:
        """Look at it anew: the number of the edition that it holds; 0 where there is no table, or one without rows of
        ours.

        Raises SpecError for a table that cannot be written, with the way out, StoreError, StoreDenied.
        """

    def commit(self, edition: int, schema: pa.Schema, change: Change, copy: Copy) -> None:
        """Carry out the change to the table as it was last `read`, and let it hold this edition: all of it in one
        commit, or nothing. A table that is not there is made.

        `schema` are the columns of the objects, without those of the table itself; a column that the table lacks is
        added to it, and one that it has more is null in what is added. Rows that stay of files of trimmed parts are
        written by `copy`, once for each such file; it gives the same file for the same rows. What other writers have
        done to the table meanwhile stays: their deletes, their columns, their compactions.

        Raises TableMoved when it is to be read again, and the edition looked up, before another try: also where no
        answer came. SpecError where the columns do not fit the table, StoreError, StoreDenied.
        """

    def rows(self) -> Mapping[Part, int]:
        """Live rows of each part, counted in the table as it was last read."""
