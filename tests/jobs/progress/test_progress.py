"""The progress of a run: counts, rate, time to the end, and who is shown them when."""

from __future__ import annotations

import io
import threading
from dataclasses import replace

import pytest

from jobs.progress.counts import Counts
from jobs.progress.displays import describe_snapshot, display_for
from jobs.progress.format import duration
from jobs.progress.progress import Progress, WorkersNow
from jobs.progress.snapshot import Price, Snapshot
from tests.support.fakes import INFO, RESULT
from workers.outcomes import ShardResult


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Seen:
    """A watcher."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.shown: list[Snapshot] = []

    def show(self, snapshot: Snapshot) -> None:
        self.shown.append(snapshot)


def end(progress: Progress, result: ShardResult) -> None:
    """What the loop does when a shard has ended."""
    progress.counts.add_result(result)
    progress.shard_ended(result.rows_ok + result.rows_bad)


def test_a_job_log_gets_a_plain_line_every_few_seconds_with_rate_eta_and_bad_rows() -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(1000, 10, display=display_for(out), clock=clock)
    progress.tick(0, 4)
    clock.now = 6.0
    progress.tick(2, 4)
    clock.now = 8.0
    end(progress, RESULT)
    end(progress, replace(RESULT, index=1))
    progress.tick(2, 4)  # too soon after the last line
    clock.now = 16.0
    progress.tick(2, 4)
    first, second, third = out.getvalue().splitlines()
    assert first == "0/1,000 rows (0.0%) · waiting for workers (0 of 4 ready) · shards 0/10 · bad 0"
    assert second.startswith("0/1,000 rows (0.0%) · 0 rows/s · ETA unknown · 2 of 4 workers")
    # After ten seconds the rate may be off by half; with all four workers it would be twice as high.
    assert third.startswith("200/1,000 rows (20.0%) · 20 rows/s · ETA 13s\N{EN DASH}1m20s · 2 of 4 workers · ")
    assert third.endswith(" · shards 2/10 · bad 10 (truncated 10)")
    assert "\x1b" not in out.getvalue()


def test_a_run_that_will_miss_its_deadline_says_by_how_much() -> None:
    clock = Clock()
    progress = Progress(1000, 10, finish_in_s=30, display=display_for(io.StringIO()), clock=clock)
    progress.tick(1, 1)
    clock.now = 10.0
    end(progress, RESULT)
    progress.tick(1, 1)
    assert "ETA 1m00s\N{EN DASH}3m00s · LATE by 1m10s · 1 worker" in describe_snapshot(progress.snapshot())


def test_a_run_in_time_says_how_much_it_has_to_spare_and_before_a_rate_when_the_deadline_is() -> None:
    clock = Clock()
    progress = Progress(1000, 10, finish_in_s=3600, display=display_for(io.StringIO()), clock=clock)
    progress.tick(1, 4)
    assert "ETA unknown · deadline in 1h00m · 1 of 4 workers" in describe_snapshot(progress.snapshot())
    clock.now = 10.0
    end(progress, RESULT)
    assert "to spare" in describe_snapshot(progress.snapshot())
    late_s = progress.snapshot().late_s
    assert late_s == pytest.approx(90 - 3590)


def test_the_rate_is_that_of_the_last_minutes() -> None:
    clock = Clock()
    progress = Progress(100_000, 1000, display=display_for(io.StringIO()), clock=clock)
    progress.tick(1, 1)
    end(progress, replace(RESULT, rows_ok=10_000))
    clock.now = 1000.0
    end(progress, RESULT)
    assert progress.rate() == pytest.approx(100 / 120)


def test_before_there_is_anything_to_score_a_log_gets_what_the_run_is_at_and_for_how_long() -> None:
    out, clock, journal = io.StringIO(), Clock(), Seen(60.0)
    progress = Progress(0, 0, phase="listing", watchers=(journal,), display=display_for(out), clock=clock)
    progress.tick(0, 0)
    assert [shown.phase for shown in journal.shown] == ["listing"]  # at once: whoever looks finds the run
    clock.now = 5.0
    progress.tick(0, 0)
    progress.enter("bundle")
    progress.enter("bundle", "calibrating")
    clock.now = 11.0
    progress.tick(0, 0)
    progress.score(100, 1, price=Price(), finish_in_s=None)
    progress.tick(0, 2)
    clock.now = 13.0
    progress.tick(2, 2)
    end(progress, RESULT)
    clock.now = 14.0
    progress.enter("finishing", "done records")
    clock.now = 14.5
    progress.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "listing input and ledger, 5s"
    assert lines[1] == "making the bundle: calibrating, 6s"
    assert lines[2].startswith("0/100 rows (0.0%) · waiting for workers (0 of 2 ready)")
    assert lines[3].startswith("100/100 rows (100.0%)")
    assert [(part["phase"], part["step"], part["began_s"], part["took_s"]) for part in progress.timeline] == [
        ("listing", "", 0.0, 5.0),
        ("bundle", "", 5.0, 0.0),
        ("bundle", "calibrating", 5.0, 6.0),
        ("workers", "", 11.0, 2.0),
        ("scoring", "", 13.0, 1.0),
        ("finishing", "done records", 14.0, 0.5),
    ]


def test_cores_that_others_hold_are_counted_on_the_line_of_the_run() -> None:
    clock = Clock()
    progress = Progress(100, 1, display=display_for(io.StringIO()), clock=clock)
    progress.no_cores_since = 0.0
    clock.now = 130.0
    progress.tick(0, 2)
    told = describe_snapshot(progress.snapshot())
    assert "waiting for workers (0 of 2 ready), 2m10s for cores that others hold" in told


def test_a_phase_that_is_one_long_call_is_shown_all_the_same() -> None:
    shown = threading.Event()

    class Tells(Seen):
        def show(self, snapshot: Snapshot) -> None:
            super().show(snapshot)
            shown.set()

    journal = Tells(60.0)
    progress = Progress(0, 0, phase="listing", watchers=(journal,), display=display_for(io.StringIO()))
    with progress.beating():
        assert shown.wait(30)
    assert journal.shown[0].phase == "listing"


def test_rows_that_others_scored_count_as_done() -> None:
    progress = Progress(1000, 10, display=display_for(io.StringIO()))
    progress.counts.add_elsewhere(3, 300)
    assert describe_snapshot(progress.snapshot()).startswith("300/1,000 rows (30.0%)")


def test_a_run_that_scores_a_second_time_goes_on_counting() -> None:
    counts = Counts()
    counts.add_result(RESULT)
    progress = Progress(
        counts.rows_done + 300, counts.shards_done + 3, counts=counts, display=display_for(io.StringIO())
    )
    end(progress, RESULT)
    assert describe_snapshot(progress.snapshot()).startswith("200/400 rows (50.0%)")
    assert progress.snapshot().bad_by_code == {"truncated": 2 * RESULT.rows_bad}


def steady(clock: Clock, at: tuple[int, ...]) -> Progress:
    """Of 1,000 rows, 100 of which end at each of these seconds; the first worker was ready two minutes ago."""
    progress = Progress(1000, 10, display=display_for(io.StringIO()), clock=clock)
    progress.tick(1, 1)
    for second in at:
        clock.now = second
        end(progress, RESULT)
    clock.now = 120.0
    return progress


def test_the_time_to_the_end_is_a_narrow_range_while_the_rate_is_steady() -> None:
    progress = steady(Clock(), (10, 30, 50, 70, 90, 110))  # 5 rows/s in each sixth of the window; 400 are left
    assert progress.eta_s() == pytest.approx((400 / (5 * 1.03), 400 / (5 * 0.97)))


def test_the_range_is_as_wide_as_the_rate_has_varied() -> None:
    # Rates of the sixths: 10, 5, 5, 5, 5, 0, so 5 rows/s with a standard deviation of √10 and an error of √(10 / 6).
    progress = steady(Clock(), (10, 11.5, 30, 50, 70, 90))
    unsure = 2 * (10 / 6) ** 0.5 / 5
    assert unsure > 0.5  # more than half is shown as half
    assert progress.eta_s() == pytest.approx((400 / (5 * 1.5), 400 / (5 * 0.5)))
    progress = steady(Clock(), (10, 30, 50, 70, 71.5, 90, 110))  # one of seven a sixth's second: 5.83 ± 0.83 rows/s
    rate = 700 / 120
    spread = (5 * (5 - rate) ** 2 + (10 - rate) ** 2) / 5
    unsure = 2 * (spread / 6) ** 0.5 / rate
    assert progress.eta_s() == pytest.approx((300 / (rate * (1 + unsure)), 300 / (rate * (1 - unsure))))


def test_cost_and_core_hours_are_those_of_the_workers_time() -> None:
    info = replace(INFO, plan=replace(INFO.plan, threads_per_core=2))
    counts = Counts(workers={0: info}, worker_seconds=3600.0, idle_seconds=36.0)
    price = Price(threads=2, per_cpu_hour=0.1)
    progress = Progress(1000, 10, counts=counts, price=price, display=display_for(io.StringIO()))
    progress.tick(1, 1)
    taken = progress.snapshot()
    assert taken.core_hours == pytest.approx(2.0)
    assert taken.cost == pytest.approx(2.0 * 2 * 0.1)
    assert taken.stage_s["idle"] == 36.0


def test_each_watcher_is_shown_as_often_as_it_wants_and_the_end_to_all_of_them() -> None:
    clock, often, seldom = Clock(), Seen(1.0), Seen(10.0)
    called: list[float] = []

    def workers_now() -> WorkersNow:
        called.append(clock.now)
        return {}, ()

    progress = Progress(1000, 10, watchers=(often, seldom), display=display_for(io.StringIO()), clock=clock)
    for tenth in range(25):
        clock.now = tenth / 10
        progress.tick(1, 1, workers_now)
    assert (len(often.shown), len(seldom.shown)) == (3, 1)
    assert called == [0.0, 1.0, 2.0]  # nothing is looked up while nobody is to be shown anything
    end(progress, RESULT)
    progress.close()
    progress.close()
    assert (len(often.shown), len(seldom.shown)) == (4, 2)
    assert often.shown[-1] == seldom.shown[-1]
    assert (seldom.shown[-1].ended, seldom.shown[-1].rows_done) == (True, 100)


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12s"), (513, "8m33s"), (7500, "2h05m")])
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
