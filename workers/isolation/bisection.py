"""Which rows of a shard kill the process that scores them: the search, without the processes.

A range of rows that kills is halved until single rows remain. What survives is kept, so that every good row is scored
once and no range is tried again as a whole: rows that only kill together, or by what has piled up in the process
before them, end in different ranges and are all good. A row is blamed only by the death of a process that had scored
nothing else.

With k rows that kill by themselves, of n: at most k·(⌈log2 n⌉ + 2) deaths, and at most 4·n tries whatever happens.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

MOST_BLAMED = 64
"""More rows of one shard are not the rows' doing, and each costs some seconds for every halving."""
NONE_SURVIVED = 8
"""So many rows, each of which killed, and nothing that was scored: then it is not the rows'."""


@dataclass(eq=False)
class Hopeless(Exception):
    """So many rows kill that the reason lies elsewhere."""

    blamed: dict[int, str]


@dataclass(eq=False)
class ReadingKills(Exception):
    """It is not the image that kills: reading the row is enough."""

    row: int
    how: str


@dataclass(frozen=True)
class Try:
    """Score the rows [first, last) of the shard."""

    first: int
    last: int
    fresh: bool = False
    """In a process that has scored nothing before."""
    blamed: str | None = None
    """Why this single row, which kills, is not to be touched: its error row is all there is to be made."""

    @property
    def rows(self) -> int:
        return self.last - self.first


@dataclass(frozen=True)
class Death:
    """How a try ended whose process died of it."""

    how: str
    """For a person: what the row did to it."""
    used: bool
    """It had scored other rows before."""


def search(rows: int) -> Generator[Try, Death | None, dict[int, str]]:
    """Yields tries and is sent how each ended, None if it was scored. Returns the rows that kill, with how they do.

    Each row is part of exactly one try that was scored, in ascending order. Raises Hopeless, ReadingKills.
    """
    waiting = [Try(0, rows)] if rows else []
    blamed: dict[int, str] = {}
    survived = 0
    while waiting:
        this = waiting.pop()
        death = yield this
        if death is None:
            survived += this.blamed is None
        elif this.blamed is not None:
            raise ReadingKills(this.first, death.how)
        elif this.rows > 1:
            middle = (this.first + this.last) // 2
            waiting += [Try(middle, this.last), Try(this.first, middle)]
        elif death.used:
            waiting.append(Try(this.first, this.last, fresh=True))
        else:
            blamed[this.first] = death.how
            if len(blamed) > MOST_BLAMED or (len(blamed) >= NONE_SURVIVED and not survived):
                raise Hopeless(blamed)
            waiting.append(Try(this.first, this.last, blamed=death.how))
    return blamed
