"""The run loop with a LocalPool of fake workers and a store in memory: what it does when things go wrong."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from jobs.errors import Interrupted, RunFailed, SpecError
from jobs.ledger.ledger import Ledger
from jobs.ledger.plans import Plan
from jobs.plan.sharding import Bounds, cut
from jobs.pool.contract import Event, ShardEnded, WorkerGone, WorkerPlaced, WorkerReady
from jobs.pool.local import LocalPool
from jobs.progress.displays import display_for
from jobs.progress.progress import Progress
from jobs.run import loop as loop_module
from jobs.run.loop import Loop
from jobs.run.tally import Tally
from jobs.spec.schema import Limits, Workers
from tests.support.fakes import FakeWorker, MemoryStore, object_of, opened
from workers.contract import Shard
from workers.outcomes import Failure, FailureCode, FailureKind, ShardResult, WorkerInfo

ROOT = "model=net-0"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "POLL_S", 0.01)
    monkeypatch.setattr("jobs.run.loop.RELIST_S", 0.05)
    monkeypatch.setattr("jobs.run.policy.START_PAUSE_S", 0.01)
    monkeypatch.setattr("jobs.run.policy.FAULT_PAUSE_S", 0.01)


def setup(shards: int = 12) -> tuple[Ledger, Plan]:
    ledger = Ledger(MemoryStore(), ROOT)
    content = cut([opened("a", *[10] * shards)], Bounds(10, 10, 2**20))
    plan = ledger.claim(lambda _: content)
    assert plan is not None
    return ledger, plan


def loop(ledger: Ledger, plan: Plan, factory: Callable[[], Any], **changes: Any) -> Loop:
    pool = changes.pop("pool", None) or LocalPool(factory)
    missing, tally = ledger.missing(plan), Tally()
    settings: dict[str, Any] = {
        "ledger": ledger,
        "pool": pool,
        "plans": [plan],
        "missing": missing,
        "limits": Limits(),
        "workers": Workers(max=3),
        "progress": Progress(plan.rows, len(plan.shards), counts=tally, display=display_for(io.StringIO())),
        "tally": tally,
        "interrupted": lambda: False,
        "run_id": "run",
    }
    return Loop(**{**settings, **changes})


def test_every_missing_shard_is_scored_and_those_that_are_there_are_not() -> None:
    ledger, plan = setup()
    for shard in plan.shards[:5]:
        ledger.store.create(f"{ROOT}/{shard.key}", object_of(shard))
    workers: list[FakeWorker] = []

    def factory() -> FakeWorker:
        workers.append(FakeWorker(ledger.store, ROOT))
        return workers[-1]

    tally = loop(ledger, plan, factory).run()
    assert sorted(key for w in workers for key in w.scored) == [shard.key for shard in plan.shards[5:]]
    assert not ledger.missing(plan)
    assert (tally.rows_ok, tally.shards, tally.committed) == (70, 7, 7)


def test_two_runs_at_once_commit_each_shard_once() -> None:
    ledger, plan = setup(40)
    loops = [loop(ledger, plan, lambda: FakeWorker(ledger.store, ROOT)) for _ in range(2)]
    threads = [threading.Thread(target=one.run) for one in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sum(one.tally.committed for one in loops) == 40
    assert not ledger.missing(plan)


def fails_times(times: int, failure: Failure) -> Callable[[Shard], Failure | None]:
    left = {"n": times}
    lock = threading.Lock()

    def behave(shard: Shard) -> Failure | None:
        with lock:
            if shard.index == 3 and left["n"]:
                left["n"] -= 1
                return failure
        return None

    return behave


def test_a_lost_worker_costs_an_attempt_and_nothing_else() -> None:
    ledger, plan = setup()
    lost = Failure(kind=FailureKind.INFRA, message="node preempted")
    behave = fails_times(1, lost)
    tally = loop(ledger, plan, lambda: FakeWorker(ledger.store, ROOT, behave)).run()
    assert not ledger.missing(plan)
    assert tally.failures.total() == 1


def test_an_error_of_ours_that_repeats_stops_the_run_with_traceback_and_rows_in_hand() -> None:
    ledger, plan = setup()
    bug = Failure(kind=FailureKind.TASK, message="ZeroDivisionError", traceback="Traceback: line 7")
    with pytest.raises(RunFailed, match=r"(?s)shard 00000001/00000003 .*a row group 3 rows 0:10.*Traceback: line 7"):
        loop(ledger, plan, lambda: FakeWorker(ledger.store, ROOT, fails_times(99, bug))).run()


def test_a_source_that_cannot_be_read_is_set_aside_and_the_rest_is_scored() -> None:
    ledger, plan = setup()
    damaged = Failure(kind=FailureKind.DATA, message="page checksum")
    tally = loop(ledger, plan, lambda: FakeWorker(ledger.store, ROOT, fails_times(99, damaged))).run()
    assert [shard.index for shard, _ in tally.set_aside] == [3]
    assert [shard.index for shard in ledger.missing(plan)] == [3]


@pytest.mark.parametrize(
    ("kind", "code", "tries"),
    [(FailureKind.TASK, FailureCode.REFUSED, 20), (FailureKind.DATA, FailureCode.DENIED, 80)],
    ids=["no root", "no right"],  # of which another node may have one
)
def test_a_delivery_of_refused_rows_is_set_aside_and_every_other_plan_is_scored(
    kind: FailureKind, code: FailureCode, tries: int
) -> None:
    ledger, refused = setup(40)
    good = ledger.claim(lambda _: cut([opened("b", *[10] * 12)], Bounds(10, 10, 2**20)))
    assert good is not None
    tried: list[int] = []

    def behave(shard: Shard) -> Failure | None:
        tried.append(shard.plan)
        if shard.plan == good.number:
            return None
        return Failure(kind=kind, code=code, message="10 of 10 rows are refused")

    both = {"plans": [refused, good], "missing": ledger.missing(refused, good)}
    # One worker: with more, how many are tried once while a second worker starts would be a matter of speed.
    one = Workers(max=1)
    looped = loop(ledger, refused, lambda: FakeWorker(ledger.store, ROOT, behave), workers=one, **both)
    looped.progress.rows_total = refused.rows + good.rows
    looped.progress.shards_total = len(refused.shards) + len(good.shards)
    tally = looped.run()
    assert not ledger.missing(good)
    assert len(ledger.missing(refused)) == 40
    assert {shard.plan for shard, _ in tally.set_aside} == {refused.number}
    assert 10 <= tried.count(refused.number) <= tries  # the others are not tried in vain


class BadOnce(FakeWorker):
    """Of the first plan, two rows of each shard are bad."""

    def score(self, shard: Shard) -> ShardResult | Failure:
        self._bad = (0, 1) if shard.plan == 1 else ()
        return super().score(shard)


def test_a_plan_with_more_bad_rows_than_the_budget_is_given_up_and_no_other() -> None:
    ledger, bad = setup()
    good = ledger.claim(lambda _: cut([opened("b", *[10] * 12)], Bounds(10, 10, 2**20)))
    assert good is not None

    both = {"plans": [bad, good], "missing": ledger.missing(bad, good)}
    looped = loop(ledger, bad, lambda: BadOnce(ledger.store, ROOT), limits=Limits(bad_rows=0.01), **both)
    looped.progress.rows_total, looped.progress.shards_total = bad.rows + good.rows, len(bad.shards) + len(good.shards)
    tally = looped.run()
    (over,) = tally.over
    assert over.plan == bad
    assert over.reasons.by_code["empty"] >= 2
    assert not ledger.missing(good)
    assert ledger.missing(bad)  # all but what three workers had in hand
    assert looped.progress.rows_left == 0


def test_an_interrupt_ends_the_loop_and_keeps_what_is_committed() -> None:
    ledger, plan = setup()
    flag = threading.Event()

    def behave(shard: Shard) -> None:
        flag.set()

    with pytest.raises(Interrupted):
        loop(ledger, plan, lambda: FakeWorker(ledger.store, ROOT, behave), interrupted=flag.is_set).run()
    loop(ledger, plan, lambda: FakeWorker(ledger.store, ROOT)).run()
    assert not ledger.missing(plan)


class NeverStarts(FakeWorker):
    def start(self) -> WorkerInfo | Failure:
        return Failure(kind=FailureKind.INFRA, code="no_cores", message="2 of 2 cores are held")


def test_a_run_whose_workers_find_no_cores_ends_when_the_other_run_has_done_it_all() -> None:
    ledger, plan = setup(4)
    waiting = loop(ledger, plan, lambda: NeverStarts(ledger.store, ROOT))
    thread = threading.Thread(target=waiting.run)
    thread.start()
    loop(ledger, plan, lambda: FakeWorker(ledger.store, ROOT)).run()
    thread.join(30)
    assert not thread.is_alive()
    assert waiting.tally.rows_elsewhere == 40


def test_cores_that_do_not_come_free_are_told_once_and_end_the_run_after_a_while() -> None:
    ledger, plan = setup(4)
    out, tally = io.StringIO(), Tally()
    progress = Progress(plan.rows, len(plan.shards), counts=tally, display=display_for(out))
    waiting = loop(
        ledger, plan, lambda: NeverStarts(ledger.store, ROOT), progress=progress, tally=tally,
        limits=Limits(wait_for_cores_s=0.3),
    )  # fmt: skip
    with pytest.raises(SpecError, match=r"no cores came free in 0s \(limits.wait_for_cores_s\): 2 of 2 cores are held"):
        waiting.run()
    assert tally.failed_starts > 1
    told = [line for line in out.getvalue().splitlines() if "limits.wait_for_cores_s" in line]
    assert told == [
        "waiting for cores, for 0s at most (limits.wait_for_cores_s): 2 of 2 cores are held; "
        "they come free when that ends"
    ]


def test_workers_that_all_refuse_to_start_end_the_run_with_the_reason() -> None:
    ledger, plan = setup(4)

    class Unfit(FakeWorker):
        def start(self) -> WorkerInfo | Failure:
            return Failure(kind=FailureKind.INFRA, code="wrong_isa", message="made for x86-vnni, this is arm64")

    with pytest.raises(RunFailed, match="no worker can start: made for x86-vnni"):
        loop(ledger, plan, lambda: Unfit(ledger.store, ROOT)).run()


def test_workers_that_are_lost_together_while_they_start_do_not_end_a_run() -> None:
    """As with their node: more than may fail in a row."""
    ledger, plan = setup(4)
    lost = [True] * 6

    class Preempted(FakeWorker):
        def start(self) -> WorkerInfo | Failure:
            return Failure(kind=FailureKind.INFRA, message="node lost") if lost and lost.pop() else super().start()

    loop(ledger, plan, lambda: Preempted(ledger.store, ROOT), workers=Workers(max=6)).run()
    assert not ledger.missing(plan)


class Remembers(LocalPool):
    """Keeps what it was asked for."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        super().__init__(factory)
        self.asked: list[dict[str, str]] = []
        self.most = 0

    def start(self, labels: Mapping[str, str]) -> int:
        self.asked.append(dict(labels))
        worker = super().start(labels)
        self.most = max(self.most, self.size())
        return worker


@pytest.mark.parametrize(("finish_in_s", "most"), [(3600.0, 1), (None, 3)])
def test_with_a_far_deadline_and_a_known_rate_one_worker_is_asked_for_and_without_one_all_are(
    finish_in_s: float | None, most: int
) -> None:
    ledger, plan = setup()
    pool = Remembers(lambda: FakeWorker(ledger.store, ROOT))
    loop(ledger, plan, lambda: None, pool=pool, finish_in_s=finish_in_s, rate_before=10.0).run()
    assert pool.most == most


def test_workers_are_asked_for_by_the_labels_of_the_preferred_group() -> None:
    ledger, plan = setup()
    groups = ({"labels": {"market": "spot"}, "max": 2}, {"labels": {"market": "on-demand"}})
    pool = Remembers(lambda: FakeWorker(ledger.store, ROOT))
    loop(ledger, plan, lambda: None, pool=pool, workers=Workers.model_validate({"max": 3, "groups": groups})).run()
    assert pool.asked[:3] == [{"market": "spot"}, {"market": "spot"}, {"market": "on-demand"}]


def test_a_worker_that_is_ended_while_it_starts_is_never_heard_of() -> None:
    started = threading.Event()

    class Slow(FakeWorker):
        def start(self) -> WorkerInfo | Failure:
            started.wait(10)
            return super().start()

    pool = LocalPool(lambda: Slow(MemoryStore(), ROOT))
    worker = pool.start({})
    pool.end(worker)
    assert pool.size() == 0
    started.set()
    assert pool.poll(5.0) == []
    assert not pool.workers()


def test_a_local_pool_passes_on_that_a_shard_is_to_be_scored_in_isolation() -> None:
    ledger, plan = setup(2)
    worker = FakeWorker(ledger.store, ROOT)
    pool = LocalPool(lambda: worker)
    number = pool.start({})
    assert [type(event) for event in pool.poll(10)] == [WorkerReady]
    pool.assign(number, plan.shards[1], isolated_s=60.0)
    assert [type(event) for event in pool.poll(10)] == [ShardEnded]
    pool.close()
    assert worker.isolated == [plan.shards[1].key]


def test_a_thread_that_hangs_is_left_to_itself_and_its_shard_goes_on_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "OVERDUE_S", 0.05)
    ledger, plan = setup()
    released, first = threading.Event(), threading.Lock()

    class Hangs(FakeWorker):
        hangs = False

        def score(self, shard: Shard) -> ShardResult | Failure:
            if shard.index == 3 and first.acquire(blocking=False):
                self.hangs = True
                released.wait(30)
            return super().score(shard)

        def stop(self) -> None:
            if self.hangs:  # as a worker waits for its own threads
                released.wait(30)

    one = loop(ledger, plan, lambda: Hangs(ledger.store, ROOT), limits=Limits(stall_s=0.3))
    close = one.pool.close
    monkeypatch.setattr(one.pool, "close", lambda: (released.set(), close()))
    assert one.run().failures["stuck"] >= 1
    assert not ledger.missing(plan)


class TellsOfNodes(LocalPool):
    """Every worker has a node at once, as on one machine."""

    def start(self, labels: Mapping[str, str]) -> int:
        worker = super().start(labels)
        self._events.put(WorkerPlaced(worker, "here", 2))
        return worker


def test_the_first_worker_that_is_ready_leaves_the_others_their_share() -> None:
    """Of two shards it would have read one ahead, and the second worker would have come up for nothing."""
    ledger, plan = setup(2)
    scoring, both = threading.Event(), threading.Barrier(2, timeout=30)
    workers: list[FakeWorker] = []

    class StartsSecond(FakeWorker):
        def start(self) -> WorkerInfo | Failure:
            if self is not workers[0]:
                scoring.wait(30)
            return super().start()

    def behave(shard: Shard) -> None:
        scoring.set()
        both.wait()

    def factory() -> FakeWorker:
        workers.append(StartsSecond(ledger.store, ROOT, behave))
        return workers[-1]

    loop(ledger, plan, factory, pool=TellsOfNodes(factory), workers=Workers(max=2)).run()
    assert [len(worker.scored) for worker in workers] == [1, 1]


class LosesItsFirstWorker(LocalPool):
    """Reports the first worker as dead as soon as it holds shards."""

    def poll(self, timeout_s: float) -> list[Event]:
        if self._ready.get(0):
            self._retire(0, wait=False)
            return [WorkerGone(0, Failure(kind=FailureKind.INFRA, message="killed"))]
        return list(super().poll(timeout_s))


def test_the_shards_of_a_dead_worker_go_to_the_others() -> None:
    ledger, plan = setup()
    slow = threading.Event()

    def behave(shard: Shard) -> None:
        slow.wait(0.05)

    pool = LosesItsFirstWorker(lambda: FakeWorker(ledger.store, ROOT, behave))
    one = loop(ledger, plan, lambda: None, pool=pool)
    assert one.run().failures.total() >= 1
    assert not ledger.missing(plan)


class LosesWithoutAWord(LocalPool):
    """The third worker, the only one of its host, is lost as soon as it is ready; that its end is told takes long."""

    def workers(self) -> Collection[int]:
        return self._ready.keys() - {2}

    def poll(self, timeout_s: float) -> list[Event]:
        return [
            replace(event, info=replace(event.info, host="far" if event.worker == 2 else "near"))
            if isinstance(event, WorkerReady)
            else event
            for event in super().poll(timeout_s)
        ]


def test_a_shard_that_failed_does_not_wait_for_a_worker_that_is_lost() -> None:
    ledger, plan = setup()
    everybody, ends = threading.Barrier(3), time.monotonic() + 20

    class Starts(FakeWorker):
        def start(self) -> WorkerInfo | Failure:
            everybody.wait(10)
            return super().start()

    behave = fails_times(1, Failure(kind=FailureKind.INFRA, message="a disk of that host"))
    pool = LosesWithoutAWord(lambda: Starts(ledger.store, ROOT, behave))
    loop(ledger, plan, lambda: None, pool=pool, interrupted=lambda: time.monotonic() > ends).run()
    assert not ledger.missing(plan)


def test_a_store_that_does_not_answer_a_listing_holds_up_neither_shards_nor_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One that throttles may take a quarter of an hour for it."""
    ledger, plan = setup()
    asked, answers = threading.Event(), threading.Event()

    def listing(_: Plan) -> set[str]:
        asked.set()
        answers.wait()
        return set()

    def behave(shard: Shard) -> None:
        asked.wait(10)  # every shard is committed while the listing is under way

    one = loop(ledger, plan, lambda: FakeWorker(ledger.store, ROOT, behave))
    monkeypatch.setattr(ledger, "present", listing)
    try:
        one.run()
        assert asked.is_set()
        assert not answers.is_set()
    finally:
        answers.set()
    monkeypatch.undo()
    assert not ledger.missing(plan)


def test_crashes_are_recorded_beside_the_loop_and_waited_for_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, plan = setup()
    create, recording, answers = ledger.store.create, threading.Event(), threading.Event()
    attempts = count()

    def slow(key: str, data: bytes) -> bool:
        if "/crashes/" in key:
            recording.set()
            answers.wait()
        return create(key, data)

    def behave(shard: Shard) -> Failure | None:
        if shard.index != 3:
            return None
        if next(attempts):
            assert recording.wait(30)
            return None
        return Failure(kind=FailureKind.INFRA, code=FailureCode.CRASHED, message="the process died")

    one = loop(ledger, plan, lambda: FakeWorker(ledger.store, ROOT, behave))
    monkeypatch.setattr(ledger.store, "create", slow)
    close = one.pool.close
    monkeypatch.setattr(one.pool, "close", lambda: (answers.set(), close()))  # once everything is scored
    one.run()
    assert not ledger.missing(plan)
    assert ledger.crashes({plan.number}) == {plan.shards[3].key: 1}


def test_a_run_in_which_nothing_fails_never_pauses() -> None:
    ledger, plan = setup(40)
    pauses: list[float] = []
    loop(ledger, plan, lambda: FakeWorker(ledger.store, ROOT), workers=Workers(max=1), sleep=pauses.append).run()
    assert pauses == []
