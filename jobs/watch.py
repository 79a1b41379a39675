"""Who holds which shard since when, and who is overdue. Time comes in as a number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobs import policy
from jobs.policy import Manner
from jobs.spec import Limits
from workers.contract import Shard
from workers.outcomes import Failure, FailureCode, FailureKind


@dataclass
class _Held:
    shard: Shard
    manner: Manner
    since: float
    """Since when nothing that was given before it is under way."""
    isolated_s: float


class Watch:
    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held: dict[int, list[_Held]] = {}
        """By worker, in the order in which they were given."""
        self._placed_at: dict[int, float] = {}
        """Of workers that are not ready."""
        self._ready: set[int] = set()

    def placed(self, worker: int, now: float) -> None:
        """A pool may hear of it late, when the worker is ready already."""
        if worker not in self._ready:
            self._placed_at[worker] = now

    def ready(self, worker: int) -> None:
        self._ready.add(worker)
        self._placed_at.pop(worker, None)

    def assigned(self, worker: int, shard: Shard, manner: Manner, now: float, *, isolated_s: float = 0.0) -> None:
        self._held.setdefault(worker, []).append(_Held(shard, manner, now, isolated_s))

    def ended(self, worker: int, shard: Shard, now: float) -> Manner:
        """An attempt is over; in which manner it was made."""
        held = self._held[worker]
        index = next(i for i, it in enumerate(held) if it.shard.key == shard.key)
        it = held.pop(index)
        if index == 0 and held:
            held[0].since = now
        return it.manner

    def gone(self, worker: int) -> dict[str, Manner]:
        """Forget a worker; how it held its shards, by key."""
        self._ready.discard(worker)
        self._placed_at.pop(worker, None)
        return {it.shard.key: it.manner for it in self._held.pop(worker, [])}

    def shards(self, worker: int) -> tuple[Shard, ...]:
        return tuple(it.shard for it in self._held.get(worker, []))

    def idle(self) -> bool:
        """Whether nothing is under way anywhere."""
        return not any(self._held.values())

    def takes_no_more(self, worker: int) -> bool:
        """It holds a shard that wants to be alone."""
        return any(it.manner is not Manner.BESIDE for it in self._held.get(worker, []))

    def isolates(self, worker: int) -> bool:
        return any(it.manner is Manner.ISOLATED for it in self._held.get(worker, []))

    def overdue(self, now: float, s_a_row: float | None) -> Iterator[tuple[int, Failure]]:
        """Workers to be ended, and why; `s_a_row` is what a row has taken on average in this run."""
        for worker, placed_at in self._placed_at.items():
            if now - placed_at > policy.PLACED_LIMIT_S:
                yield worker, _stuck(f"worker {worker} has had its node for {now - placed_at:.0f} s and is not ready")
        least_s = policy.stall_after_s(self._limits.stall_s, s_a_row, rows=0)
        for worker, held in self._held.items():
            if not held or now - held[0].since <= (least_s or 0.0):
                continue
            oldest = held[0]  # what was given first is worked on first, or is at least being read
            if oldest.manner is Manner.ISOLATED:
                limit_s: float | None = policy.ISOLATED_TIMES * oldest.isolated_s
            else:
                rows = sum(it.shard.rows for it in held)
                limit_s = policy.stall_after_s(self._limits.stall_s, s_a_row, rows)
            if limit_s is not None and now - oldest.since > limit_s:
                yield (
                    worker,
                    _stuck(
                        f"worker {worker} has been with {oldest.shard.describe()} for {now - oldest.since:.0f} s, "
                        f"longer than {limit_s:.0f} s (limits.stall_s)"
                    ),
                )


def _stuck(message: str) -> Failure:
    return Failure(kind=FailureKind.INFRA, code=FailureCode.STUCK, message=message)
