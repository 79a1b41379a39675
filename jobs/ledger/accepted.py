"""Plans that a person has accepted with their bad rows, whatever limits.bad_rows allows.

_stint/accepted/00000007.json    {"plan": 7, "token": …, "why": …, "at": …}, created once: the first word stands
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from jobs.errors import RunFailed
from jobs.ledger.plans import Plan
from workers.redaction import redacted
from workers.storage.errors import NotFound
from workers.storage.store import Store

_FOLDER = "_stint/accepted"
ACCEPTED_KEY = re.compile(rf"{_FOLDER}/(\d{{8}})\.json")


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    plan: int
    token: str
    """The plan's: what was accepted is this claim, and no other with its number."""
    why: str
    at: str
    """UTC, ISO 8601."""


def accept(store: Store, root: str, plan: Plan, why: str, at: str) -> Acceptance:
    """Record it; returns what stands, which is the first word of anybody. Raises as `acceptance`."""
    said = Acceptance(plan=plan.number, token=plan.token, why=redacted(why), at=at)
    if store.create(_key(root, plan.number), json.dumps(asdict(said), indent=2).encode()):
        return said
    there = acceptance(store, root, plan)
    assert there is not None, "nothing is ever removed"
    return there


def acceptance(store: Store, root: str, plan: Plan) -> Acceptance | None:
    """Of the plan, if it has one. Raises RunFailed for one that is damaged or of another claim; StoreError."""
    key = _key(root, plan.number)
    try:
        data = store.get(key)
    except NotFound:
        return None
    try:
        found = Acceptance(**json.loads(data))
        if (found.plan, found.token) != (plan.number, plan.token):
            raise ValueError(f"it is of another plan {found.plan}")
    except (ValueError, TypeError) as error:
        way_out = "restore it from a copy, or remove it and accept the plan again"
        raise RunFailed(f"{store.url}/{key} is damaged: {error}", way_out) from error
    return found


def accepted(store: Store, root: str, plans: Iterable[Plan]) -> dict[int, Acceptance]:
    """Of those of the plans that have one, by number: one listing, and a read of each. Raises as `acceptance`."""
    there = {info.key for info in store.list(f"{root}/{_FOLDER}")}
    found = (acceptance(store, root, plan) for plan in plans if _key(root, plan.number) in there)
    return {one.plan: one for one in found if one is not None}


def _key(root: str, plan: int) -> str:
    return f"{root}/{_FOLDER}/{plan:08d}.json"
