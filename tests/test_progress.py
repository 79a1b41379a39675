"""The progress line: the same counts for a terminal and a job log."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from jobs.progress import Progress, duration
from workers.contract import ShardResult

RESULT = ShardResult(
    plan=1, index=0, committed=True, rows_ok=95, rows_bad=5, bad_by_code={"truncated": 5}, bad_samples={}, rows_gone=0,
    sha256="", object_bytes=1, bytes_read=1, stage_s={}, wall_s=1, cpu_s=1, threads_busy=1, torch_threads=1,
    peak_rss_bytes=1,
)  # fmt: skip


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
    assert second.startswith("0/1,000 rows (0.0%) · 0 rows/s · ETA unknown · 2 workers")
    assert third == "200/1,000 rows (20.0%) · 20 rows/s · ETA 40s · 2 workers · shards 2/10 · bad 10 (truncated 10)"
    assert "\x1b" not in out.getvalue()


def test_a_run_that_will_miss_its_deadline_says_by_how_much() -> None:
    clock = Clock()
    progress = Progress(1000, 10, finish_in_s=30, out=io.StringIO(), clock=clock)
    progress.tick(1, 1)
    clock.now = 10.0
    progress.shard_ended(RESULT)
    progress.tick(1, 1)
    assert "ETA 1m30s · LATE by 1m10s" in progress.line()


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
