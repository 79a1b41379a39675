"""Ways to use a node, and which of them is the simplest. Pure functions of plain values."""

from __future__ import annotations

from collections.abc import Sequence

from workers.bundle.profiles import Candidate

BATCHES = (1, 2, 4, 8, 16, 32, 64)
SMALL_NODE_CORES = 4
"""On a node of no more cores than this one of them may be worth more to reading and writing than to another worker."""
SIMPLEST = "torch-int8"
"""It needs nothing beside the base installation."""


def candidates(engines: Sequence[str], cores: int, default: Candidate) -> tuple[Candidate, ...]:
    """Engine × threads a worker × workers × batch, what is likely to be good first: the time may end early.

    Those that share processes are neighbours, with batches that grow: what one takes of memory is not covered up by
    what another took before.
    """
    made = [
        Candidate(engine=engine, threads=threads, workers=workers, batch=batch)
        for threads, workers in layouts(cores)
        for engine in engines
        for batch in BATCHES
    ]
    first = [c for c in made if (c.engine, c.threads, c.workers) == (default.engine, default.threads, default.workers)]
    return tuple(dict.fromkeys((*first, *made)))


def layouts(cores: int) -> tuple[tuple[int, int], ...]:
    """(threads a worker, workers), for 1, 2, 4, … threads and all cores in one; as many workers as fit.

    On small nodes also one worker less, where that leaves a core free.
    """
    widths = [width for width in (2**power for power in range(cores.bit_length())) if width < cores] + [cores]
    full = [(width, cores // width) for width in widths]
    spared = [
        (width, workers - 1)
        for width, workers in full
        if cores <= SMALL_NODE_CORES and workers > 1 and cores - width * workers == 0
    ]
    return (*full, *spared)


def by_rule(engines: Sequence[str], cores: int, threads: int, batch: int) -> Candidate:
    """What runs without a profile."""
    threads = min(threads, cores)
    return Candidate(engine=engines[0], threads=threads, workers=cores // threads, batch=batch)


def effort(candidate: Candidate) -> tuple[int, ...]:
    """The less, the simpler: the engine that is always there, few threads a worker, full nodes, small batches."""
    other_engine = not candidate.engine.startswith(SIMPLEST + "/")
    return (int(other_engine), candidate.threads, -candidate.workers, candidate.batch)
