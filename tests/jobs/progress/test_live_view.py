"""The view of a run: the right numbers at every width, whatever the terminal's colours."""
# ruff: noqa: RUF001  (what a terminal shows)

from __future__ import annotations

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from rich.color import ColorType
from rich.console import Console, Group

from jobs.progress.live_view import view_lines
from jobs.progress.snapshot import Snapshot, UnderWay
from tests.support.snapshots import BEGUN, FULL, picture

EIGHTY = """\
products · run 20260301T020003Z-ab12cd · 1h04m ─────────────────────────────────
━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━────────────────────────  67.4%
rows      863,541 of 1,281,167 · 412 rows/s · 842 of 1,252 shards · 120 gone
          64,000 found in the ledger
ETA       14m50s–17m10s · 44m10s to spare
workers   20 scoring · 1 idle · 2 starting · 1 leaving · 24 wanted
time      ████████████████████████████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▒▒▒░
          █ decode 40% · ▓ predict 54% · ▒ wait 4% · ░ idle 2%
          predict (54% of the workers' time): the network is the work here, as
          it should be
used      cost 3.87 · 82.31 core-hours
bad rows  1,321 = 0.17% of those scored by this run · truncated 1,012 (77%)
          corrupt 207 (16%) · unsupported_format 60 (5%) · null 32 (2%)
          too_large 10 (1%)
failures  11 attempts · preempted 8 · crashed 2 · infra 1
slowest   00000003/00000517
          worker 12 on ip-10-0-3-17.eu-central-1.compute.internal
          3m12s, 4.3× expected
          00000003/00000801 · worker 3 on ip-10-0-7-101 · 1m11s, 1.6× expected
          00000003/00000803 · worker 7 on ip-10-0-7-101 · 44s, 1.0× expected
          00000003/00000804 · worker 8 on ip-10-0-7-101 · 40s, 0.9× expected
          00000003/00000811 · worker 21 on ip-10-0-2-9 · 39s
"""
NARROW = """\
products · run 20260301T020003Z-ab12cd · 1h04m ───
━━━━━━━━━━━━━━━━━━━━━━━━━━━━───────────────  67.4%
rows 863,541 of 1,281,167 · 412 rows/s
842 of 1,252 shards · 120 gone
64,000 found in the ledger
ETA 14m50s–17m10s · 44m10s to spare
workers 20 scoring · 1 idle · 2 starting
1 leaving · 24 wanted
time ████████████████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▒░
█ decode 40% · ▓ predict 54% · ▒ wait 4%
░ idle 2%
predict (54% of the workers' time): the network is
the work here, as it should be
used cost 3.87 · 82.31 core-hours
bad rows 1,321 = 0.17% of those scored by this run
truncated 1,012 (77%) · corrupt 207 (16%)
unsupported_format 60 (5%) · null 32 (2%)
too_large 10 (1%)
failures 11 attempts · preempted 8 · crashed 2
infra 1
slowest 00000003/00000517
worker 12 on
ip-10-0-3-17.eu-central-1.compute.internal
3m12s, 4.3× expected
00000003/00000801 · worker 3 on ip-10-0-7-101
1m11s, 1.6× expected
00000003/00000803 · worker 7 on ip-10-0-7-101
44s, 1.0× expected
00000003/00000804 · worker 8 on ip-10-0-7-101
40s, 0.9× expected
00000003/00000811 · worker 21 on ip-10-0-2-9 · 39s
"""


def shown(snapshot: Snapshot, width: int, heard_s: float | None = None) -> str:
    """As a terminal of so many columns prints it, without what lies invisible at the ends of lines."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, legacy_windows=False)
    console.print(Group(*view_lines(snapshot, width, heard_s)))
    assert isinstance(console.file, io.StringIO)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())
    return "".join(f"{line.rstrip()}\n" for line in plain.splitlines())


@pytest.mark.parametrize(("width", "words"), [(80, EIGHTY), (50, NARROW)])
def test_the_whole_view(width: int, words: str) -> None:
    assert shown(FULL, width) == words


def test_a_wider_terminal_shows_more_of_long_names_and_never_more_than_the_eye_follows() -> None:
    assert "ip-10-0-3-17.eu-central-1.compute.internal" in shown(FULL, 140)
    assert shown(FULL, 140) == shown(FULL, 110)
    assert "the network is the work here, as it should be\n" in shown(FULL, 100)


@pytest.mark.parametrize("width", [1, 2, 7, 12, *range(20, 160, 3)])
@pytest.mark.parametrize("snapshot", [FULL, BEGUN], ids=["full", "begun"])
def test_no_line_is_wider_than_the_terminal(snapshot: Snapshot, width: int) -> None:
    assert max(line.cell_len for line in view_lines(snapshot, width)) <= width


@pytest.mark.parametrize("width", range(18, 120))
def test_no_number_is_cut_or_broken(width: int) -> None:
    numbers = ["863,541", "1,281,167", "412 rows/s", "1,252", "14m50s–17m10s", "44m10s", "82.31", "67.4%", "3.87"]
    words = {line.plain for line in view_lines(FULL, width)}
    words = {word for line in words for word in re.split(r"[ ·]+", line)}
    assert {word for number in numbers for word in number.split(" ")} <= words


def test_all_of_it_fits_a_terminal_of_24_rows_with_room_for_what_is_told_above() -> None:
    assert len(view_lines(FULL, 80, heard_s=7)) <= 22


def test_before_there_are_workers_it_says_what_is_waited_for() -> None:
    words = shown(BEGUN, 80)
    assert "0 of 1,000 · 0 rows/s · 0 of 10 shards" in words
    assert "ETA       waiting for workers (0 of 4 ready)" in words
    assert "workers   0 scoring · 4 starting · 4 wanted" in words
    assert "bad rows  none" in words
    assert not {"time", "failures", "slowest"} & {line.partition(" ")[0] for line in words.splitlines()}


def test_before_a_rate_the_eta_is_unknown_and_the_deadline_is_told() -> None:
    ready = replace(BEGUN, workers={"scoring": 4}, deadline_in_s=3600)
    assert "ETA       unknown · deadline in 1h00m" in shown(ready, 80)


def test_a_run_that_will_be_late_says_so_and_has_another_colour() -> None:
    late = replace(FULL, late_s=70)
    assert "ETA       14m50s–17m10s · LATE by 1m10s" in shown(late, 80)
    bar, in_time = (view_lines(snapshot, 80)[1].spans[0].style for snapshot in (late, FULL))
    assert (bar, in_time) == ("red", "green")


def test_what_was_heard_a_while_ago_says_when() -> None:
    assert "· as of 12s ago · 1h04m ──" in shown(FULL, 80, heard_s=12)


def test_without_a_price_there_is_no_cost() -> None:
    assert "used      82.31 core-hours" in shown(replace(FULL, cost=None), 80)


def test_a_share_that_is_not_all_is_never_shown_as_all() -> None:
    almost = replace(BEGUN, rows_total=10_000_000, rows_ok=9_999_999)
    assert shown(almost, 80).splitlines()[1].endswith("━─ >99.9%")
    assert shown(replace(almost, rows_ok=10_000_000), 80).splitlines()[1] == "━" * 73 + " 100.0%"


def test_many_reasons_for_bad_rows_end_in_a_sum() -> None:
    many = replace(FULL, rows_bad=45, bad_by_code={f"reason_{n}": n for n in range(1, 10)})
    assert "reason_4 4 (9%) · 3 other reasons 6" in shown(many, 110)


def test_only_colours_of_the_terminals_own_palette_are_used_and_none_for_the_background() -> None:
    console = Console(width=80, force_terminal=True, color_system="truecolor", file=io.StringIO())
    styles = [
        segment.style for segment in console.render(Group(*view_lines(replace(FULL, late_s=70), 80))) if segment.style
    ]
    assert {style.color.type for style in styles if style.color} == {ColorType.STANDARD}
    assert not [style for style in styles if style.bgcolor]


def test_shards_that_have_only_begun_are_not_worth_a_line() -> None:
    begun = replace(FULL, slowest=tuple(replace(it, age_s=0.4) for it in FULL.slowest[:2]) + FULL.slowest[2:3])
    lines = shown(begun, 80).splitlines()
    assert lines[-1].startswith("slowest   00000003/00000803 ")


def test_names_cannot_command_the_terminal_or_break_lines() -> None:
    hostile = "a\x1b[2J\nb\r\u202e"
    slow = UnderWay(shard="00000001/00000001", worker=1, host=hostile, rows=1, age_s=1)
    named = replace(FULL, job=hostile, run_id=hostile, slowest=(slow,), bad_by_code={hostile: 1})
    lines = view_lines(replace(named, failures_by_code={hostile: 1}), 80)
    assert all(line.plain.isprintable() for line in lines)


def test_the_picture_is_an_svg_with_the_same_numbers_and_always_the_same() -> None:
    svg = picture(FULL)
    assert svg == picture(FULL)
    text = "".join("".join(ElementTree.fromstring(svg).itertext()).split())
    for line in view_lines(FULL, 100):
        assert "".join(line.plain.split()) in text
