"""Second attempts: when nothing waits, an idle worker takes over what would otherwise be waited for longest.

J. Dean and S. Ghemawat, "MapReduce" (OSDI 2004), 3.6, call them backup tasks; that the estimated end counts rather than
how far an attempt has come is from M. Zaharia et al., "Improving MapReduce Performance in Heterogeneous Environments"
(OSDI 2008). Whichever attempt commits first settles the shard. Pure functions of plain values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from workers.contract import Shard

CHECK_IDLE_S = 1.0
"""How often idle workers are checked, for second attempts and for who may go."""
WORTH_TIMES = 1.5
"""How much longer than the second attempt the first must be expected to take yet. Shards of one size on equal workers
differ by less, so that without a slow worker there are no second attempts."""
WORTH_S = 5.0
"""What is saved must be worth the trouble."""
SHARDS_A_SPARE = 50
"""While so many shards are under way one idle worker more is kept, because one of them may turn out to be late."""


def left_s(rows: int, s_a_row: float, elapsed_s: float) -> float:
    """Seconds that an attempt is still expected to take. One that is late is likely to be as late again."""
    return abs(rows * s_a_row - elapsed_s)


def second_attempts(
    running: Iterable[tuple[Shard, float]], idle: Mapping[int, float]
) -> Iterator[tuple[int, Shard, float]]:
    """Which idle workers should try which shards, and by how many seconds sooner those are expected to end then: the
    ones that end last go to the fastest worker that is idle.

    `running` has attempts under way, each with the seconds in which it is expected to end, with what its worker has to
    do before; `idle` the seconds that each worker takes for a row.
    """
    fastest = sorted(idle, key=lambda worker: (idle[worker], worker), reverse=True)
    for shard, ends_in_s in sorted(running, key=lambda a: (-a[1], a[0].plan, a[0].index)):
        if not fastest:
            return
        takes_s = shard.rows * idle[fastest[-1]]
        if pays(ends_in_s, takes_s):
            yield fastest.pop(), shard, ends_in_s - takes_s


def pays(first_ends_in_s: float, second_takes_s: float) -> bool:
    """Whether a second attempt would end well before the first."""
    return first_ends_in_s >= max(WORTH_TIMES * second_takes_s, second_takes_s + WORTH_S)


def spares(shards_left: int) -> int:
    """Idle workers to keep beyond one for each shard that is left."""
    return -(-shards_left // SHARDS_A_SPARE)
