"""Which rows of a shard kill the process that scores them: the search, without the processes.

A range of rows that kills is halved until single rows remain. What survives is kept, so that every good row is scored
once and no range is tried again as a whole: rows that only kill together, or by what has piled up in the process
before them, end in different ranges and are all good. A row is blamed only by the death of a process that had scored
nothing else.

With k rows that kill by themselves, of n: at most k·(⌈log2 n⌉ + 2) deaths, and at most 4·n tries whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable
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
    blamed: str | None = None
    """Why this single row, which kills, is not to be touched: its error row is all there is to be made."""

    @property
    def rows(self) -> int:
        return self.last - self.first


def search(rows: int, attempt: Callable[[Try], str | None]) -> dict[int, str]:
    """The rows that kill, with how they do.

    `attempt` makes a try in the process that made the one before, or, if it died of that, in a new one. It tells how
    the process died of it, for a person; None if the rows were scored. Each row is part of exactly one try that was
    scored, in ascending order. Raises Hopeless, ReadingKills.
    """
    waiting = [Try(0, rows)] if rows else []
    blamed: dict[int, str] = {}
    survived = 0
    used = False
    while waiting:
        this = waiting.pop()
        how = attempt(this)
        alone, used = not used, how is None
        if how is None:
            survived += this.blamed is None
        elif this.blamed is not None:
            raise ReadingKills(this.first, how)
        elif this.rows > 1:
            middle = (this.first + this.last) // 2
            waiting += [Try(middle, this.last), Try(this.first, middle)]
        elif not alone:
            waiting.append(this)
        else:
            blamed[this.first] = how
            if len(blamed) > MOST_BLAMED or (len(blamed) >= NONE_SURVIVED and not survived):
                raise Hopeless(blamed)
            waiting.append(Try(this.first, this.last, blamed=how))
    return blamed
