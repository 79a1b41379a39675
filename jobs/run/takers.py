"""The workers that take shards at this moment, with their hosts: asked about a few, and never written out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Takers(Mapping[int, str]):
    ready: Mapping[int, int]
    """Of the pool."""
    released: Collection[int]
    """Ready ones that get no more."""
    host: Callable[[int], str]
    busy_for_long: Callable[[int], bool]
    """One that isolates may do so for hours, too long for others to be waited for."""

    @property
    def number(self) -> int:
        """Of those that are ready and not released."""
        return len(self.ready) - sum(worker in self.ready for worker in self.released)

    def may_have(self, worker: int) -> bool:
        """It is ready and not released."""
        return worker in self.ready and worker not in self.released

    def __getitem__(self, worker: int) -> str:
        if not self.may_have(worker) or self.busy_for_long(worker):
            raise KeyError(worker)
        return self.host(worker)

    def __iter__(self) -> Iterator[int]:
        return (worker for worker in self.ready if self.may_have(worker) and not self.busy_for_long(worker))

    def __len__(self) -> int:
        return sum(1 for _ in self)
