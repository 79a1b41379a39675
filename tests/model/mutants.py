"""Mistakes that a system like this one could well contain, one at a time put into the real code.

Each is a context in which the mistake is made, with a scenario and bounds in which the exploration must find it. An
oracle that lets one of them pass proves nothing about the code without it.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import jobs.accept
import jobs.ledger.current
import jobs.ledger.ledger
import jobs.plan.discovery
import jobs.plan.tables
import jobs.table
import jobs.tables.sync
from jobs.ledger.accepted import Acceptance
from jobs.ledger.done import DoneRecord, done_shard
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import BOOK, Plan, Shards, Source, decode_plan, encode_plan
from jobs.ledger.superseded import Claim, dead_claims
from jobs.ledger.table_files import Known
from jobs.plan.claims import NextClaim
from jobs.plan.discovery import Discovery
from jobs.plan.job import Job
from jobs.plan.table_claims import TableClaim, table_claim
from jobs.plan.tables import TableFound
from jobs.run.backlog import Backlog
from jobs.run.failed_attempts import FailedAttempts
from jobs.run.run import Run
from jobs.tables import target
from jobs.tables.state import TableState
from jobs.tables.sync import Moves
from jobs.tables.target import Copy
from tests.model.faults import Fault
from tests.model.model_table import FOLDER, ModelTable
from tests.model.pool import BAD, Slow
from tests.model.scenario import Change, Scenario, Stage
from tests.model.search import Bounds
from tests.model.tables import MADE, of_one
from workers.contract import Shard
from workers.storage.store import NotFound, ObjectStore

A, B = {"a.jpg": b"a"}, {"b.jpg": b"b"}


@dataclass(frozen=True)
class Mutant:
    name: str
    mistake: Callable[[Stage], AbstractContextManager[Any]]
    scenario: Scenario
    bounds: Bounds
    told: str
    """What the oracle must say, as a pattern."""
    immutable: bool = True


# ----------------------------------------------------------------------------------------------- the store


def no_token_check(self: ObjectStore, key: str, data: bytes) -> bool:
    """An unclear outcome counts as ours as soon as anything is at the key."""
    while True:
        try:
            self._fs.pipe_file(f"{self._base}/{key}", data, mode="create")
        except Exception:  # noqa: BLE001
            try:
                self.get(key)
            except NotFound:
                continue
        return True


def overwrite(self: ObjectStore, key: str, data: bytes) -> bool:
    self._fs.pipe_file(f"{self._base}/{key}", data)
    return True


def exists_then_create(self: ObjectStore, key: str, data: bytes) -> bool:
    """What fsspec does by default, and what passes the probe."""
    path = f"{self._base}/{key}"
    if self._fs.exists(path):
        return bool(self.get(key) == data)
    self._fs.pipe_file(path, data)
    return True


def streaming_write(self: ObjectStore, key: str, data: bytes) -> bool:
    """As with s3fs and pyarrow: leaving the `with` block by an exception publishes what was written so far."""
    path, sent = f"{self._base}/{key}", b""
    with suppress(Exception):
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            self._fs.find(f"{path}.part")  # stands for the request that takes the part, which may fail
            sent += part
    try:
        self._fs.pipe_file(path, sent, mode="create")
    except Exception:  # noqa: BLE001
        return bool(self.get(key) == data)
    return sent == data


# ---------------------------------------------------------------------------------------------- the ledger


def watermark(stage: Stage) -> AbstractContextManager[Any]:
    """New is what is younger than the youngest file claimed so far."""
    right = jobs.plan.discovery.next_claim

    def next_claim(sources: Sequence[Source], plans: Sequence[Plan], *arguments: Any, **options: Any) -> NextClaim:
        modified = stage.world.bucket.modified
        claimed = {uri for plan in plans for uri, _ in plan.claimed}
        mark = max((modified[uri.removeprefix("s3://")] for uri in claimed), default=-1)
        young = [s for s in sources if s.uri in claimed or modified[s.uri.removeprefix("s3://")] > mark]
        return right(young, plans, *arguments, **options)

    return mock.patch.object(jobs.plan.discovery, "next_claim", next_claim)


def done_too_early(self: Run) -> None:
    """The done record is written when the last shard is handed out, not when it is committed."""
    plans, left = self._open()
    if len(left) > 1:
        *parts, (plan, numbers) = left.parts
        self._score(plans, Shards((*parts, (plan, numbers[:-1]))))
        left = self._open()[1]
    for plan in plans:
        there = self.job.ledger.present(plan)
        shards = [shard for shard in plan.shards if shard.key in there]
        facts = self.job.ledger.facts(shards)
        self.job.ledger.record_done(plan, DoneRecord.of(map(done_shard, shards, facts)))
    if left:
        self._score(plans, left)


def claim_without_subtracting_again(
    self: Ledger, content: Callable[[Sequence[Plan]], Any], book: object
) -> Plan | None:
    """The number is taken, so the same claim goes under the next one."""
    made = content(self.plans())
    if made is None:
        return None
    number = len(self.plans()) + 1
    while not self.store.create(f"{self.root}/{self.keys_of(number)[0]}", data := encode_plan(made, f"token {number}")):
        number += 1
    return decode_plan(number, data)


def of_this_release_at_once(self: Job) -> str:
    """A root begins with this release's names, whoever made its bundle."""
    return BOOK


def beside_what_was_there(claims: Iterable[Claim]) -> set[tuple[int, str, str]]:
    """What is scored again counts beside the rows of the same version before."""
    return dead_claims(claim._replace(afresh=False) for claim in claims)


# ---------------------------------------------------------------------------------------------- tables


def claimed_anyway(self: Discovery, plans: Sequence[Plan], right: Any = Discovery.content) -> Any:
    """What was found of a table is claimed, whoever has planned meanwhile."""
    return right(self, plans[: len(self.plans)])


def carried_though_gone(table: TableState, known: Mapping[str, Known], gone: object) -> TableClaim:
    """What a compaction took along counts as scored, if it was claimed."""
    return table_claim(table, known)


def of_present_files(self: TableFound) -> list[Source]:
    """Of files that the table has no more nobody asks whether their rows were gone."""
    return []


# -------------------------------------------------------------------------------------- two attempts


def counted_twice(self: Backlog, key: str, right: Callable[[Backlog, str], bool] = Backlog.settle) -> bool:
    """Whatever comes in is a result, also of the slower attempt."""
    right(self, key)
    return True


def settled_early(self: Backlog, shard: Shard, right: Callable[[Backlog, Shard], None] = Backlog.double) -> None:
    """What two workers try counts as good as done."""
    right(self, shard)
    self.settle(shard.key)


def dropped(self: FailedAttempts, retry: Any, now: float) -> None:
    """A failure is left to the other attempt, also where there is none any more."""


# ------------------------------------------------------------------------------------------ acceptance


def accepted_afterwards(stage: Stage) -> AbstractContextManager[Any]:
    """The plan is done first, and a person's word for it is recorded when there is time."""
    return mock.patch.object(jobs.accept, "accept", lambda store, root, plan, why, at: mock.Mock(why=why, at=at))


def accepted_over(stage: Stage) -> AbstractContextManager[Any]:
    """The last word stands."""

    def accept(store: ObjectStore, root: str, plan: Plan, why: str, at: str) -> Acceptance:
        said = Acceptance(plan=plan.number, token=plan.token, why=f"{why} {uuid.uuid4().hex}", at=at)
        overwrite(store, f"{root}/_stint/accepted/{plan.number:08d}.json", json.dumps(vars(said)).encode())
        return said

    return mock.patch.object(jobs.accept, "accept", accept)


# ------------------------------------------------------------------------------------------ the output table


def appended(self: ModelTable, edition: int, files: list[Any]) -> None:
    """Whatever others did meanwhile: as an append that the format rebases."""
    number, new = self._versions + 1, [file for file in files if list(file) not in self._held["files"]]
    while True:
        before = json.loads(self._store.get(f"{FOLDER}/{number - 1:08d}.json"))["files"] if number > 1 else []
        data = json.dumps({"edition": edition, "files": before + new, "id": uuid.uuid4().hex}).encode()
        if self._store.create(f"{FOLDER}/{number:08d}.json", data):
            return
        number += 1


def looked_at_once(self: ModelTable, right: Callable[[ModelTable], int] = ModelTable.read) -> int:
    """What it held is known already, when a commit has to be tried again."""
    known = vars(self).setdefault("known", [])
    edition = right(self)
    known.append(edition)
    return int(known[0])


def in_two_commits(
    self: ModelTable, edition: int, schema: Any, change: target.Change, copy: Copy,
    right: Callable[..., None] = ModelTable.commit,
) -> None:  # fmt: skip
    """Rows go, and then those that replace them come."""
    if change.added and (change.dropped or change.trimmed):
        right(self, int(self._held["edition"]), schema, replace(change, added=()), copy)
        self.read()
        change = replace(change, dropped=(), trimmed={})
    right(self, edition, schema, change, copy)


def only_if_something_was_done(self: Run, right: Callable[[Run], Any] = Run._sync_table) -> Any:
    """A run that has completed no plan has nothing to show."""
    return right(self) if self.report.plans else None


def rows_stay(self: Moves, copy: Copy, right: Callable[[Moves, Copy], target.Change] = Moves.change) -> target.Change:
    return replace(right(self, copy), dropped=(), trimmed={})


# --------------------------------------------------------------------------------------------------- all


def creating(create: Callable[[ObjectStore, str, bytes], bool]) -> Callable[[Stage], AbstractContextManager[Any]]:
    return lambda stage: mock.patch.object(ObjectStore, "create", create)


def method(owner: type, name: str, mistake: Callable[..., Any]) -> Callable[[Stage], AbstractContextManager[Any]]:
    return lambda stage: mock.patch.object(owner, name, mistake)


TWO_ATTEMPTS = Scenario("a slow worker", A | B, slow=Slow.FIRST)
TWO_RUNS = Scenario("two runs", A, runs=2)
ACCEPTED = Scenario("accepted", {}, before={"bad.jpg": BAD}, accept=True)
ACCEPTED_TWICE = Scenario("accepted twice", {}, runs=2, before={"bad.jpg": BAD}, accept=True)
A_TABLE = Scenario("a table", A, before=B, output_table=True)
TABLE_OF_TWO = Scenario("a table of two runs", A, runs=2, before=B, output_table=True)
TABLE_AGAIN = Scenario("a table, scored again", {}, before=A | B, again="a.jpg", output_table=True)
RACE = Bounds(faults=0, preemptions=1)
COMPACTED = Scenario("a table is compacted and cleaned", MADE, changes=[of_one()], table=True)
RACES = Bounds(faults=0, preemptions=2)
ONE_FAULT = Bounds(faults=1)
ONE_DIES = Bounds(faults=1, every_call=False, only=frozenset({Fault.WORKER_LOST_BEFORE}))
BOTH_DIE = Bounds(faults=2, every_call=False, only=frozenset({Fault.WORKER_LOST_BEFORE}))
CRASHES = Bounds(faults=1, preemptions=1, every_call=False, only=frozenset({Fault.CRASH_BEFORE}))

MUTANTS = (
    Mutant("done before accepted", accepted_afterwards, ACCEPTED, ONE_FAULT, "before anybody had accepted"),
    Mutant("accepted over", accepted_over, ACCEPTED_TWICE, RACES, "changed after it was visible", immutable=False),
    Mutant("no token check", creating(no_token_check), TWO_RUNS, RACES, "was altered"),
    Mutant("overwrite", creating(overwrite), TWO_RUNS, CRASHES, "was altered", immutable=False),
    Mutant("exists() then create", creating(exists_then_create), TWO_RUNS, RACES, "was altered", immutable=False),
    Mutant(
        "modification-time watermark", watermark,
        Scenario("a late file", A, before=B, changes=[Change("late.jpg", b"late", modified=-1)]),
        Bounds(faults=0), "late.jpg .*is claimed by no plan",
    ),
    Mutant("streaming write", creating(streaming_write), Scenario("one run", A), ONE_FAULT, "parquet cannot be read"),
    Mutant(
        "done before the last shard", method(Run, "_finish_open", done_too_early),
        Scenario("one run", A | B), ONE_FAULT, "the done record of plan 1 lacks",
    ),
    Mutant(
        "claim again without subtracting", method(Ledger, "claim", claim_without_subtracting_again), TWO_RUNS, RACES,
        "is scored by plans 1 and 2",
    ),
    Mutant(
        "plans are renamed while an earlier release may begin the root", method(Job, "book", of_this_release_at_once),
        Scenario("two releases", A, runs=2, first_night=True, earlier=frozenset({0})), RACES, "names are to end alike",
    ),
    Mutant(
        "readers are left between two models",
        lambda _: mock.patch.object(jobs.ledger.current, "keep_following", return_value=None),
        Scenario("a second model", A, earlier_model=True), Bounds(faults=0), "readers stay with the earlier model",
    ),
    Mutant(
        "readers are left between two models by who accepts",
        lambda _: mock.patch.object(jobs.ledger.current, "keep_following", return_value=None),
        replace(ACCEPTED, earlier_model=True), Bounds(faults=0), "readers stay with the earlier model",
    ),
    Mutant(
        "scored again beside what was there",
        lambda stage: mock.patch.object(jobs.ledger.ledger, "dead_claims", beside_what_was_there),
        Scenario("asked to score again", {}, before=A, again="a.jpg"), Bounds(faults=0), "readers see 2 rows of",
    ),
    Mutant(
        "a table is claimed although another run has planned", method(Discovery, "content", claimed_anyway),
        Scenario("two runs, a table", MADE, runs=2, table=True), Bounds(faults=0, preemptions=1),
        "is scored by plans 1 and 2",
    ),
    Mutant(
        "rows that were gone are carried",
        lambda _: mock.patch.object(jobs.plan.tables, "table_claim", carried_though_gone), COMPACTED, Bounds(faults=0),
        "rows? of the table, which has",
    ),
    Mutant(
        "what was gone of files that are no more is forgotten",
        lambda _: mock.patch.object(TableFound, "predicted", property(of_present_files)), COMPACTED, Bounds(faults=0),
        "rows? of the table, which has",
    ),
    Mutant(
        "a second result is counted too", method(Backlog, "settle", counted_twice), TWO_ATTEMPTS, Bounds(faults=0),
        "tells of 3 shards scored, and there are 2",
    ),
    Mutant(
        "settled before either attempt has committed", method(Backlog, "double", settled_early), TWO_ATTEMPTS,
        BOTH_DIE, "ended with NotFound",
    ),
    Mutant(
        "the other attempt is relied on too long", method(FailedAttempts, "_follow_up", dropped), TWO_ATTEMPTS,
        ONE_DIES, "does not come to an end",
    ),
    Mutant(
        "the table takes what others committed beside", method(ModelTable, "create", appended), TABLE_OF_TWO, RACE,
        "has a row 2 times",
    ),
    Mutant(
        "what the table holds is looked up once", method(ModelTable, "read", looked_at_once), TABLE_OF_TWO, RACE,
        "has a row 2 times",
    ),
    Mutant(
        "rows leave the table before others come", method(ModelTable, "commit", in_two_commits), TABLE_AGAIN,
        Bounds(faults=0), "which the one before shows",
    ),
    Mutant(
        "the table is left to who completes a plan", method(Run, "_sync_table", only_if_something_was_done), A_TABLE,
        CRASHES, "the table lacks",
    ),
    Mutant(
        "rows stay in the table", method(Moves, "change", rows_stay), TABLE_AGAIN, Bounds(faults=0),
        "somebody else has changed its rows",
    ),
)  # fmt: skip
