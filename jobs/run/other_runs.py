"""What other runs commit meanwhile, from listing again and again. Time comes in as a number; nothing here waits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from jobs.errors import RunFailed
from jobs.ledger.background import Errands
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan
from jobs.ledger.presence import Present
from jobs.run.policy import LISTING_FAILURES
from workers.storage.errors import StoreDenied, StoreError

RELIST_S = 5.0
RELIST_SHARE = 0.05
"""Time spent on listing, as a share of all."""


class Relisting:
    def __init__(self, ledger: Ledger, plans: Sequence[Plan], say: Callable[[str], None], *, now: float) -> None:
        self._ledger, self._plans, self._say = ledger, plans, say
        self._listings: Errands[Present] = Errands("listing")
        self._began = now
        self._again_after = now + RELIST_S
        self._failures = 0

    def present(self, open_plans: Collection[int], now: float) -> Collection[str]:
        """Keys that the last listing has found, once; empty until the next, of `open_plans`, is over.

        Raises StoreDenied, and RunFailed when listing keeps failing.
        """
        if not self._listings.under_way and now >= self._again_after:
            plans = [plan for plan in self._plans if plan.number in open_plans]
            self._listings.send(lambda: Present.of_all(self._ledger.present(plan) for plan in plans))
            self._began = now
        found: Collection[str] = ()
        for outcome in self._listings.ended():
            self._again_after = now + max(RELIST_S, (now - self._began) / RELIST_SHARE)
            if isinstance(outcome, StoreDenied):
                raise outcome
            if isinstance(outcome, StoreError):
                self._failed(outcome)
            else:
                self._failures = 0
                found = outcome
        return found

    def close(self) -> None:
        self._listings.close()

    def _failed(self, error: StoreError) -> None:
        self._failures += 1
        if self._failures >= LISTING_FAILURES:
            raise RunFailed(
                f"the output could not be listed {self._failures} times in a row: {error}",
                "check the store, then run the same command: committed shards stay",
            ) from error
        self._say(f"could not look for what other runs have committed, trying again: {error}")
