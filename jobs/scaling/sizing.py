"""How many workers are wanted: the cheapest number that meets the deadline. Pure functions of plain values.

The work is the same whoever does it, so what a fleet costs beyond it is nodes that come up, nodes that end idle, and
cores of nodes that nobody uses. Hence as few nodes as will do, each of them full; and a worker that is up is never sent
away while there are shards for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MARGIN = 0.10
"""Work that the fleet is sized for beyond what is left: lost attempts, slow nodes, a rate that was guessed too high."""
MARGIN_LEAST = 0.03
MARGIN_MOST = 0.20
"""The fleet is sized anew when its margin is outside these; within them its size does not follow noise."""
CLOSING_S = 60.0
"""Kept free before the deadline for what follows the last shard: done record and report."""
START_DELAY_S = 180.0
"""From asking for a worker to its being ready, before the first has been seen: a virtual machine that boots, an image
that is pulled."""
PROBE_WORKERS = 4
"""Asked for to measure the rate where no earlier run has."""
PROBE_LEAST_S = 3600.0
"""With the deadline nearer than this there is no time to measure first."""
PROBE_SHARE = 0.1
"""Share of the night after which a fleet that has measured nothing yet is no longer waited for."""
MEMORY_SHARDS = 128
"""The measured rate forgets shards in about this number."""
MEMORY_STARTS = 8


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is known when the number of workers is decided. Rates are rows a second."""

    rows_left: int
    """Not committed, those under way included."""
    shards_left: int
    time_left_s: float | None
    """Until the deadline; None without one."""
    waited_s: float = 0.0
    """Since the run began to score."""
    ready: int = 0
    ready_rate: float = 0.0
    """Of all ready workers together."""
    pending_s: Sequence[float] = ()
    """For each worker that is asked for and not ready: how long it is still expected to take."""
    rate: float | None = None
    """Of one more worker: measured, or that of an earlier run; None if nobody knows."""
    start_delay_s: float = START_DELAY_S
    node_holds: int = 1
    """Workers that fit a node."""
    nodes_hold: Sequence[int] = ()
    """For each group, the preferred first: workers that fit the nodes on which this run has some already."""
    losing: bool = False
    """Workers have been lost in this run, so more may be: the last of them must be replaced in time."""

    @property
    def shard_s(self) -> float:
        """A worker's time for a shard. While others have gone idle one may still be at its last."""
        return self.rows_left / self.shards_left / self.rate if self.rate and self.shards_left else 0.0


def workers_wanted(outlook: Outlook, before: int | None, *, least: int, most: int) -> int:
    """The cheapest number that meets the deadline, within the spec's bounds and no more than there are shards.

    `before` is the last answer: it stands while its margin is neither spent nor excessive. Without a deadline, or with
    one that cannot be met, as many as allowed.
    """
    if outlook.shards_left == 0:
        return 0
    most = min(most, outlook.shards_left)
    if outlook.time_left_s is None:
        wanted = most
    elif outlook.rate is None:
        wanted = min(most, PROBE_WORKERS) if _time_to_probe(outlook) else most
    else:
        tight, enough, ample = (_cheapest(outlook, m, most) for m in (MARGIN_LEAST, MARGIN, MARGIN_MOST))
        wanted = before if before is not None and tight <= before <= ample else enough
    return max(least, min(_fill(wanted, outlook), most, _useful(outlook)))


def _fill(wanted: int, outlook: Outlook) -> int:
    """Rounded up to full nodes: what is paid for may as well work.

    Of the most preferred group that works all nodes count, of the others only as many as are needed.
    """
    room = 0
    for nodes_hold in outlook.nodes_hold:
        room += min(nodes_hold, _whole_nodes(wanted - room, outlook)) if room else nodes_hold
    return room + _whole_nodes(wanted - room, outlook)


def _whole_nodes(wanted: int, outlook: Outlook) -> int:
    return -(-max(0, wanted) // outlook.node_holds) * outlook.node_holds


def _time_to_probe(outlook: Outlook) -> bool:
    assert outlook.time_left_s is not None, "asked with a deadline"
    night_s = outlook.waited_s + outlook.time_left_s
    return night_s >= PROBE_LEAST_S and outlook.waited_s <= PROBE_SHARE * night_s


def _cheapest(outlook: Outlook, margin: float, most: int) -> int:
    """The least number of workers that ends in time, or `most`.

    n workers that take shards from one queue end at most one shard's time after even shares would
    (R. L. Graham, Bounds for certain multiprocessing anomalies, 1966), so that time is taken off.
    """
    assert outlook.time_left_s is not None, "asked with a deadline"
    assert outlook.rate is not None, "asked with a rate"
    time_s = outlook.time_left_s - CLOSING_S - outlook.shard_s - (outlook.start_delay_s if outlook.losing else 0.0)
    if time_s <= 0:
        return most
    rows = outlook.rows_left * (1 + margin)
    supply = outlook.ready_rate * time_s
    if supply >= rows:
        return max(1, math.ceil(outlook.ready * rows / supply))
    number = outlook.ready
    for pending_s in sorted(outlook.pending_s):
        supply += outlook.rate * max(0.0, time_s - pending_s)
        number += 1
        if supply >= rows:
            return number
    each = outlook.rate * (time_s - outlook.start_delay_s)
    return min(most, number + math.ceil((rows - supply) / each)) if each > 0 else most


def _useful(outlook: Outlook) -> int:
    """How many workers can still help: one that comes up when those at work are about to end only costs."""
    if not outlook.ready_rate:
        return outlook.shards_left
    help_ends_s = outlook.rows_left / outlook.ready_rate - outlook.shard_s
    if outlook.start_delay_s < help_ends_s:
        return outlook.shards_left
    return outlook.ready + sum(pending_s < help_ends_s for pending_s in outlook.pending_s)


@dataclass
class RecentRate:
    """Rows that a worker commits in a second in which it holds a shard; lost attempts count as time without rows."""

    _rows: float = 0.0
    _busy_s: float = 0.0

    def add(self, rows: int, busy_s: float) -> None:
        keep = 1 - 1 / MEMORY_SHARDS
        self._rows, self._busy_s = self._rows * keep + rows, self._busy_s * keep + busy_s

    @property
    def value(self) -> float | None:
        """None until something was committed."""
        return self._rows / self._busy_s if self._rows and self._busy_s else None


@dataclass
class StartDelay:
    """From asking for a worker to its being ready: the longest of the last ones, because some find a node waiting."""

    _seen_s: deque[float] = field(default_factory=lambda: deque(maxlen=MEMORY_STARTS))

    def add(self, delay_s: float) -> None:
        self._seen_s.append(delay_s)

    @property
    def value_s(self) -> float:
        return max(self._seen_s, default=START_DELAY_S)

    def still_s(self, ages_s: Iterable[float]) -> list[float]:
        """Expected of workers asked for so long ago. One that is overdue is likely to take as long again."""
        delay_s = self.value_s
        return [abs(delay_s - age_s) for age_s in ages_s]


def pool_target(missing: int, *, least: int, most: int) -> int:
    """Workers that `missing` shards can use: one each, within the spec's bounds, none when nothing is left."""
    return 0 if missing == 0 else max(least, min(most, missing))
