"""Which shards of a plan have an object: a bit a shard, found by listing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from workers.contract import parse_shard_key, shard_key
from workers.storage.store import Store

Bits = npt.NDArray[np.bool_]

PART = 1000
"""Shards that one request lists: object stores answer with a page of so many."""
PARTS_TOGETHER = 16
"""Parts that are listed before gaps are looked for."""


def plan_of(key: str) -> int:
    """The plan of a shard's object, by the object's key below the root."""
    return int(key[len("plan=") : key.index("/")])


@dataclass(frozen=True, eq=False)
class Present(Collection[str]):
    """Keys, below the root, of the objects that are there."""

    bits: Mapping[int, Bits]
    """By plan and shard."""

    def __contains__(self, key: object) -> bool:
        plan, index = (parse_shard_key(key) if isinstance(key, str) else None) or (0, 0)
        bits = self.bits.get(plan, ())
        return index < len(bits) and bool(bits[index])

    def __len__(self) -> int:
        return sum(int(bits.sum()) for bits in self.bits.values())

    def __iter__(self) -> Iterator[str]:
        for plan, bits in self.bits.items():
            yield from (shard_key(plan, index) for index in np.flatnonzero(bits).tolist())


class PlanListing:
    """Lists the folder of one plan, again and again. Objects never vanish, so parts that were complete are left out."""

    def __init__(self, store: Store, root: str, plan: int, shards: int) -> None:
        self._store, self._root, self._plan = store, root, plan
        self.bits = np.zeros(shards, np.bool_)
        """What was there when it was last listed."""

    def present(self) -> Bits:
        """What is there now, by shard. Raises StoreError, StoreDenied."""
        if parts := self._with_gaps():
            self._list(parts)
        return self.bits.copy()

    def whole(self) -> bool:
        """Whether every shard has its object; lists no more than it must. Raises StoreError, StoreDenied."""
        while parts := self._with_gaps()[:PARTS_TOGETHER]:
            self._list(parts)
            if not set(parts).isdisjoint(self._with_gaps()):
                return False
        return True

    def _with_gaps(self) -> list[int]:
        """First shards of the parts that are not known to be whole."""
        return [first for first in range(0, len(self.bits), PART) if not self.bits[first : first + PART].all()]

    def _list(self, parts: list[int]) -> None:
        names = [f"{first:08d}"[:-3] for first in parts] if len(self.bits) > PART else []
        for info in self._store.list(f"{self._root}/plan={self._plan:08d}", names):
            found = parse_shard_key(info.key[len(self._root) + 1 :])
            if found and found[1] < len(self.bits):
                self.bits[found[1]] = True
