"""The progress line: the same counts for a terminal and a job log."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from jobs.progress import Progress, duration
from tests.fakes import RESULT


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_job_log_gets_a_plain_line_every_few_seconds_with_rate_eta_and_bad_rows() -> None:
    out, clock = io.StringIO(), Clock()
    progress = Progress(1000, 10, out=out, clock=clock)
    progress.tick(0, 4)
    clock.now = 6.0
    progress.tick(2, 4)
    clock.now = 8.0
    progress.shard_ended(RESULT)
    progress.shard_ended(replace(RESULT, index=1))
    progress.tick(2, 4)  # too soon after the last line
    clock.now = 16.0
    progress.tick(2, 4)
    first, second, third = out.getvalue().splitlines()
    assert first == "0/1,000 rows (0.0%) · waiting for workers (0 of 4 ready) · shards 0/10 · bad 0"
    assert second.startswith("0/1,000 rows (0.0%) · 0 rows/s · ETA unknown · 2 of 4 workers")
    assert third.startswith("200/1,000 rows (20.0%) · 20 rows/s · ETA 40s · 2 of 4 workers · ")
    assert third.endswith(" · shards 2/10 · bad 10 (truncated 10)")
    assert "\x1b" not in out.getvalue()


def test_a_run_that_will_miss_its_deadline_says_by_how_much() -> None:
    clock = Clock()
    progress = Progress(1000, 10, finish_in_s=30, out=io.StringIO(), clock=clock)
    progress.tick(1, 1)
    clock.now = 10.0
    progress.shard_ended(RESULT)
    progress.tick(1, 1)
    assert "ETA 1m30s · LATE by 1m10s · 1 workers" in progress.line()


def test_a_run_in_time_says_how_much_it_has_to_spare_and_before_a_rate_when_the_deadline_is() -> None:
    clock = Clock()
    progress = Progress(1000, 10, finish_in_s=3600, out=io.StringIO(), clock=clock)
    progress.tick(1, 4)
    assert "ETA unknown · deadline in 1h00m · 1 of 4 workers" in progress.line()
    clock.now = 10.0
    progress.shard_ended(RESULT)
    assert "ETA 1m30s · 58m20s to spare" in progress.line()


def test_the_rate_is_that_of_the_last_minutes() -> None:
    clock = Clock()
    progress = Progress(100_000, 1000, out=io.StringIO(), clock=clock)
    progress.tick(1, 1)
    progress.shard_ended(replace(RESULT, rows_ok=10_000))
    clock.now = 1000.0
    progress.shard_ended(RESULT)
    assert progress.rate() == pytest.approx(100 / 120)


def test_rows_that_others_scored_count_as_done() -> None:
    progress = Progress(1000, 10, out=io.StringIO())
    progress.shards_elsewhere(3, 300)
    assert progress.line().startswith("300/1,000 rows (30.0%)")


def test_a_terminal_gets_a_live_bar_with_the_same_words() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    progress = Progress(1000, 10, out=out)
    progress.shard_ended(RESULT)
    progress.tick(1, 1)
    progress.note("a worker was lost")
    progress.close()
    assert "100/1,000 rows (10.0%)" in out.getvalue()
    assert "a worker was lost" in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(12.4, "12s"), (513, "8m33s"), (7500, "2h05m")])
def test_durations_read_as_a_person_says_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
