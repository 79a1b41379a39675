"""Plans that a person has accepted: the first word stands, and holds for one claim alone."""

from __future__ import annotations

import pytest

from jobs.errors import RunFailed
from jobs.ledger.accepted import accept, acceptance, accepted
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Content, Plan
from jobs.plan.sharding import Bounds, cut
from tests.support.fakes import MemoryStore, opened

ROOT = "model=net-0"


def claimed(ledger: Ledger, name: str) -> Plan:
    content: Content = cut([opened(name, 10)], Bounds(10, 10, 2**20))
    plan = ledger.claim(lambda _: content)
    assert plan is not None
    return plan


def test_the_first_word_stands_whoever_says_what_afterwards() -> None:
    ledger = Ledger(MemoryStore(), ROOT)
    first, second = claimed(ledger, "a"), claimed(ledger, "b")
    said = accept(ledger.store, ROOT, first, "known", "2026-03-01T00:00:00+00:00")
    assert accept(ledger.store, ROOT, first, "another reason", "2026-03-02T00:00:00+00:00") == said
    assert accepted(ledger.store, ROOT, [first, second]) == {1: said}
    assert acceptance(ledger.store, ROOT, second) is None


def test_what_is_damaged_or_of_another_claim_with_the_same_number_is_told_and_accepts_nothing() -> None:
    ledger = Ledger(MemoryStore(), ROOT)
    plan, other = claimed(ledger, "a"), claimed(Ledger(MemoryStore(), ROOT), "b")
    accept(ledger.store, ROOT, other, "known", "")
    with pytest.raises(RunFailed, match="is of another plan"):
        acceptance(ledger.store, ROOT, plan)
    ledger = Ledger(MemoryStore(), ROOT)
    ledger.store.create(f"{ROOT}/_stint/accepted/00000001.json", b'{"plan": 1')
    with pytest.raises(RunFailed, match=r"00000001\.json is damaged"):
        accepted(ledger.store, ROOT, [plan])
