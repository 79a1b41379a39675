"""Editions: a log of what the output table is to hold, each recorded once, before the table goes over to it.

    _stint/editions/00000002.json    {"edition": 731234002, "root": "model=resnet50-…", "done": [[1, 5], [7, 7]]}

What readers see follows from a root and from which of its plans are done (`jobs.ledger.superseded`), so no more is
recorded. Numbers begin at a random one: an edition of another output's table is not taken for one of this.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from jobs.errors import RunFailed
from workers.storage.store import Store

_EDITIONS = "_stint/editions"


@dataclass(frozen=True)
class Edition:
    root: str = ""
    """`model=<name>-<fp>`"""
    done: frozenset[int] = frozenset()
    """Plans of the root."""


class Editions:
    """The log, as one listing has it."""

    def __init__(self, store: Store) -> None:
        """Raises RunFailed for a damaged entry, StoreError, StoreDenied."""
        self._store = store
        self._keys = sorted(info.key for info in store.list(_EDITIONS))
        self._begin = self._read(0)[0] if self._keys else 0

    def get(self, number: int) -> Edition | None:
        """None for a number that none of the log has. Raises as the constructor."""
        return self._read(number - self._begin)[1] if 0 <= number - self._begin < len(self._keys) else None

    def record(self, edition: Edition) -> int | None:
        """Its number: of the last entry where that is the same one, or of a new one; None where another run has
        recorded one meanwhile."""
        if self._keys and self._read(-1)[1] == edition:
            return self._begin + len(self._keys) - 1
        number = self._begin + len(self._keys) if self._keys else 1 + secrets.randbelow(2**30)
        entry = {"edition": number, "root": edition.root, "done": _ranges(edition.done)}
        key = f"{_EDITIONS}/{len(self._keys) + 1:08d}.json"
        return number if self._store.create(key, json.dumps(entry).encode()) else None

    def _read(self, at: int) -> tuple[int, Edition]:
        key = self._keys[at]
        try:
            entry = json.loads(self._store.get(key))
            done = frozenset(number for first, last in entry["done"] for number in range(first, last + 1))
            return int(entry["edition"]), Edition(str(entry["root"]), done)
        except (ValueError, KeyError, TypeError) as error:
            raise RunFailed(
                f"{self._store.url}/{key} is damaged: it does not tell what the output table holds",
                "restore it from a copy, or name another output.table.uri, which is made anew",
            ) from error


def _ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of each run of numbers."""
    runs = groupby(enumerate(sorted(numbers)), lambda at: at[1] - at[0])
    return [(run[0][1], run[-1][1]) for run in (list(of_run) for _, of_run in runs)]
