"""How the files of a table stand, as plans say: which of their rows are the table's, and where their predictions are.

A file of a table is never changed, but the table takes rows out of it, and copies rows into other files. A plan says of
every file that it finds otherwise than the plans before it how it stands now. What readers see is the last word of the
plans that are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

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
    def live_rows(self) -> int:
        """Of a file with predictions."""
        return sum(self.group_rows) - len(self.deleted)


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
                unscored = now.deleted if unscored is None else common(unscored, now.deleted)
            known[uri] = Known(now, unscored)
    return known


def common(one: Positions, other: Positions) -> Positions:
    return np.intersect1d(one, other, assume_unique=True)


def without(one: Positions, other: Positions) -> Positions:
    """Those of `one` that are not in the other."""
    return np.setdiff1d(one, other, assume_unique=True)
