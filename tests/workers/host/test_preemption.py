"""A worker that has to go: what it finishes, what it hands back, and that it answers by the deadline."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fakes import RESULT
from workers.actor import Worker
from workers.contract import Shard, Slice
from workers.host.preemption import COMMIT_S, SLACK, Notice, Preempted, ends_in_time
from workers.outcomes import Failure, FailureCode, FailureKind

SHARD = Shard(
    plan=1,
    plan_token="t",
    index=0,
    slices=(Slice(uri="/nowhere/a", size=1, version="v", row_group=0, row_start=0, row_stop=1000),),
)

# ------------------------------------------------------------------------------------------- decision


@pytest.mark.parametrize(
    ("rows_done", "took_s", "left_s", "ends"),
    [
        (500, 10, 10 * SLACK + COMMIT_S, True),
        (500, 10, 10 * SLACK + COMMIT_S - 0.1, False),
        (1000, 10, COMMIT_S, True),  # all is scored: only the commit is left
        (1000, 10, COMMIT_S - 0.1, False),
        (0, 0, 60, True),  # nobody knows yet
        (0, 0, COMMIT_S, False),
        (1, 1000, float("inf"), True),  # a drain without a deadline waits for as long as it takes
    ],
)
def test_a_shard_is_finished_only_if_its_own_pace_says_that_it_ends_in_time(
    rows_done: int, took_s: float, left_s: float, ends: bool
) -> None:
    assert ends_in_time(rows_done, 1000, took_s, left_s) is ends


@given(
    rows=st.integers(1, 10_000), s_a_row=st.floats(0.001, 1), told_at=st.integers(0, 9_999), left_s=st.floats(0, 120)
)
def test_a_worker_that_keeps_its_pace_is_never_cut_off_in_a_shard_that_it_chose_to_finish(
    rows: int, s_a_row: float, told_at: int, left_s: float
) -> None:
    done = min(told_at, rows - 1) + 1
    if ends_in_time(done, rows, done * s_a_row, left_s):
        assert all(
            ends_in_time(d, rows, d * s_a_row, left_s - (d - done) * s_a_row + 1e-6) for d in range(done, rows + 1, 100)
        )
        assert (rows - done) * s_a_row + COMMIT_S <= left_s + 1e-6


# --------------------------------------------------------------------------------------------- notice


def test_the_earliest_deadline_counts() -> None:
    notice = Notice(clock=lambda: 100.0)
    assert not notice.given
    notice.begin()
    notice.give(float("inf"))
    assert notice.left_s() == float("inf")
    notice.give(20)
    notice.give(60)
    assert notice.left_s() == 20
    with pytest.raises(Preempted):
        notice.begin()


def test_work_that_waits_for_its_turn_is_taken_back_and_work_that_runs_is_waited_for() -> None:
    notice, may_end, begun = Notice(), threading.Event(), threading.Event()
    ran: list[str] = []

    def first() -> str:
        begun.set()
        may_end.wait(10)
        return "done"

    with ThreadPoolExecutor(1) as compute, ThreadPoolExecutor(2) as calls:
        running = calls.submit(notice.result_of, compute.submit(first), take_back=True)
        assert begun.wait(10)
        waiting = calls.submit(notice.result_of, compute.submit(lambda: ran.append("second")), take_back=True)
        notice.give(60)
        assert isinstance(waiting.exception(10), Preempted)
        assert not running.done()
        may_end.set()
        assert running.result(10) == "done"
    assert ran == []


def test_an_answer_comes_by_the_deadline_even_if_the_work_hangs() -> None:
    notice: Notice = Notice()
    hanging: Future[None] = Future()
    hanging.set_running_or_notify_cancel()
    notice.give(0.05)
    with pytest.raises(Preempted):
        notice.result_of(hanging, take_back=True)


# --------------------------------------------------------------------------------------------- worker


class RoundByRound:
    """In place of a loaded model: 10 rounds of 100 rows, each of which `each_round` may delay, as `commit` may that."""

    def __init__(self, each_round: Callable[[int], None], commit: Callable[[], None] = lambda: None) -> None:
        self._each_round = each_round
        self._commit = commit
        self.committed: list[Shard] = []

    def predict(self, blocks: Any, rows: int, reader: Any, between_rounds: Callable[[int], None]) -> None:
        for done in range(100, rows + 1, 100):
            self._each_round(done)
            between_rounds(done)

    def commit(self, shard: Shard, part: None) -> Any:
        self._commit()
        self.committed.append(shard)
        return RESULT


def worker_with(scorer: RoundByRound) -> Worker:
    worker = Worker(SimpleNamespace(pin=False, input=SimpleNamespace(format="parquet")))  # type: ignore[arg-type]
    worker._scorer = scorer  # type: ignore[assignment]
    return worker


def test_a_worker_finishes_what_ends_in_time_hands_back_what_it_read_ahead_and_begins_nothing_more() -> None:
    half, told = threading.Event(), threading.Event()

    def each_round(done: int) -> None:
        if done == 500:
            half.set()
            assert told.wait(10)

    scorer = RoundByRound(each_round)
    worker = worker_with(scorer)
    with ThreadPoolExecutor(2) as calls:
        first = calls.submit(worker.score, SHARD)
        assert half.wait(10)
        ahead = calls.submit(worker.score, SHARD)
        worker.leave(60)
        dropped = ahead.result(10)
        assert isinstance(dropped, Failure)
        assert (dropped.kind, dropped.code) == (FailureKind.INFRA, FailureCode.PREEMPTED)
        told.set()
        assert first.result(10) == RESULT
    assert scorer.committed == [SHARD]
    more = worker.score(SHARD)
    assert isinstance(more, Failure)
    assert more.code == FailureCode.PREEMPTED


def test_a_shard_is_written_while_the_next_one_is_predicted() -> None:
    writing, next_predicted = threading.Event(), threading.Event()

    def commit() -> None:
        writing.set()
        assert next_predicted.wait(10)

    scorer = RoundByRound(lambda done: next_predicted.set() if done == 1000 and writing.is_set() else None, commit)
    worker = worker_with(scorer)
    with ThreadPoolExecutor(2) as calls:
        first = calls.submit(worker.score, SHARD)
        assert writing.wait(10)
        second = calls.submit(worker.score, SHARD)
        assert (first.result(20), second.result(20)) == (RESULT, RESULT)
    assert scorer.committed == [SHARD, SHARD]
    worker.stop()


def test_what_is_scored_is_committed_however_the_notice_falls_between_the_two() -> None:
    """The commit is not taken back, though it has not begun when the notice is heard."""

    def score_and_leave() -> object:
        worker = worker_with(RoundByRound(lambda done: worker.leave(60) if done == 1000 else None))
        result = worker.score(SHARD)
        worker.stop()
        return result

    assert [score_and_leave() for _ in range(50)] == [RESULT] * 50


def test_an_isolated_process_that_went_with_its_worker_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd ends all processes of a unit at once."""
    worker = Worker(SimpleNamespace(pin=False))  # type: ignore[arg-type]
    worker._scorer = SimpleNamespace(settled=None)  # type: ignore[assignment]
    killed = Failure(kind=FailureKind.INFRA, code=FailureCode.CRASHED, message="killed from outside")

    def score_isolated(*_: object) -> Failure:
        worker.leave(60)
        return killed

    monkeypatch.setattr("workers.isolation.isolate.score_isolated", score_isolated)
    outcome = worker.score_isolated(SHARD, 60)
    assert isinstance(outcome, Failure)
    assert outcome.code == FailureCode.PREEMPTED
    worker.stop()


def test_a_shard_that_would_end_too_late_is_dropped_between_two_rounds_and_never_committed() -> None:
    rounds: list[int] = []

    def each_round(done: int) -> None:
        rounds.append(done)
        if done == 300:
            worker.leave(COMMIT_S)

    scorer = RoundByRound(each_round)
    worker = worker_with(scorer)
    outcome = worker.score(SHARD)
    assert isinstance(outcome, Failure)
    assert (outcome.kind, outcome.code) == (FailureKind.INFRA, FailureCode.PREEMPTED)
    assert (rounds, scorer.committed) == ([100, 200, 300], [])


# -------------------------------------------------------------------------------------------- SIGTERM

PROCESS = """
import os, signal, socket, sys, threading
from workers.host.preemption import Notice, heed_sigterm

# A signal leaves a byte, so that one that comes just before the main thread waits is not missed.
signalled, ours = socket.socketpair()
ours.setblocking(False)
signal.set_wakeup_fd(ours.fileno())
signal.signal(signal.SIGTERM, lambda *_: (print("left", flush=True), os._exit(7)))
notice = Notice()
heed_sigterm(notice, grace_s=float(sys.argv[1]))
def watch():
    while not notice.given:
        threading.Event().wait(0.01)
    print("told", flush=True)
threading.Thread(target=watch, daemon=True).start()
print("up", flush=True)
while True:
    signalled.recv(1)
"""


@pytest.mark.parametrize(("grace_s", "again"), [("0.2", False), ("60", True)], ids=["grace is over", "second SIGTERM"])
def test_sigterm_gives_notice_first_and_what_handled_it_before_gets_its_turn_later(grace_s: str, again: bool) -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, grace_s], cwd=root, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "up\n"
            os.kill(process.pid, signal.SIGTERM)
            assert process.stdout.readline() == "told\n"
            if again:
                os.kill(process.pid, signal.SIGTERM)
            assert process.stdout.readline() == "left\n"
            assert process.wait(10) == 7
        finally:
            process.kill()


ABOUT_TO_WAIT = """
import os, signal
from concurrent.futures import Future
from workers.host.preemption import Notice, Preempted, heed_sigterm

notice = Notice()
heed_sigterm(notice, grace_s=60)
wait = notice._changed.wait

def signalled_first(timeout=None):
    notice._changed.wait = wait
    os.kill(os.getpid(), signal.SIGTERM)
    return wait(timeout)

notice._changed.wait = signalled_first
try:
    notice.result_of(Future(), take_back=True)
except Preempted:
    print("heard", flush=True)
"""


def test_a_thread_that_sigterm_finds_about_to_wait_hears_of_it() -> None:
    root = Path(__file__).parents[3]
    said = subprocess.run(
        [sys.executable, "-c", ABOUT_TO_WAIT], cwd=root, capture_output=True, text=True, timeout=30, check=True
    )
    assert said.stdout == "heard\n"
