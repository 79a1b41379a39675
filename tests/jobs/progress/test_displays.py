"""Where a run is shown: lines for a job log, JSON for programs, and a live view on a terminal, which may go away."""
# ruff: noqa: RUF001  (what a terminal shows)

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pyte
import pytest

from jobs.arguments import parser
from jobs.progress.displays import JsonDisplay, LineDisplay, LiveDisplay, describe_snapshot, display_for
from jobs.progress.format import describe_eta, money
from jobs.progress.snapshot import Snapshot
from tests.support.snapshots import BEGUN, FULL

ROOT = Path(__file__).parents[3]
HOSTILE = 'a "quote", \x1b[2J\x07, \ud800, \u202e, {"event"}\nand another line'


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


# -------------------------------------------------------------------------------------------- lines


def test_a_line_says_how_a_run_stands() -> None:
    snapshot = Snapshot(
        run_id="r", job="products", root="model=net-1", at="2026-03-01T02:00:00+00:00", elapsed_s=16, rows_total=1000,
        rows_ok=190, rows_bad=10, rows_gone=0, rows_elsewhere=0, shards_total=10, shards_done=2, rate=20.0,
        bad_by_code={"truncated": 10}, eta_s=(36, 44), workers_wanted=4, workers={"scoring": 2, "starting": 2},
    )  # fmt: skip
    assert describe_snapshot(snapshot) == (
        "200/1,000 rows (20.0%) · 20 rows/s · ETA 36s–44s · 2 of 4 workers · shards 2/10 · bad 10 (truncated 10)"
    )
    assert " · 2 of 4 workers · cost 0.42 · shards " in describe_snapshot(replace(snapshot, cost=0.42))
    assert " · ETA 36s–44s · 58m20s to spare · 2 of" in describe_snapshot(
        replace(snapshot, late_s=-3500, deadline_in_s=3540)
    )
    assert " · ETA 36s–44s · LATE by 1m10s · 2 of" in describe_snapshot(replace(snapshot, late_s=70, deadline_in_s=30))
    assert " · ETA unknown · deadline in 1h00m · " in describe_snapshot(
        replace(snapshot, eta_s=None, deadline_in_s=3600)
    )
    assert " · ETA unknown · LATE by 5s · " in describe_snapshot(replace(snapshot, eta_s=None, deadline_in_s=-5))
    assert " · 2 workers · " in describe_snapshot(replace(snapshot, workers_wanted=2))


def test_a_line_before_there_are_workers_says_what_is_waited_for() -> None:
    assert describe_snapshot(BEGUN) == "0/1,000 rows (0.0%) · waiting for workers (0 of 4 ready) · shards 0/10 · bad 0"


@pytest.mark.parametrize(
    ("eta_s", "words"),
    [
        ((40.1, 40.4), "40s"),
        ((36.2, 43.8), "36s–44s"),
        ((500, 545), "8m20s–9m05s"),
        ((55, 65), "55s–1m05s"),
        ((58, 59.6), "58s–1m00s"),
        ((7000, 7210), "1h56m–2h00m"),
        ((7200, 7210), "2h00m"),
    ],
)
def test_an_eta_is_a_range_where_its_ends_differ(eta_s: tuple[float, float], words: str) -> None:
    assert describe_eta(eta_s) == words


@pytest.mark.parametrize(
    ("value", "words"), [(0, "0.00"), (0.42, "0.42"), (0.00421, "0.0042"), (1234.5, "1,234.50"), (1e-5, "<0.0001")]
)
def test_small_costs_do_not_round_to_nothing(value: float, words: str) -> None:
    assert money(value) == words


def test_a_job_log_gets_plain_lines_and_notes_without_escape_codes() -> None:
    out = io.StringIO()
    display = display_for(out)
    display.show(replace(FULL, bad_by_code={"a\x1b[2J": 1}))
    display.show(BEGUN, heard_s=12)
    display.note(HOSTILE)
    display.close()
    first, second, *notes = out.getvalue().splitlines()
    assert first.endswith("cost 3.87 · shards 842/1252 · bad 1321 (a�[2J 1) of those scored by this run")
    assert second.endswith(" · bad 0 · as of 12s ago")
    assert notes == ['a "quote", �[2J�, �, �, {"event"}', "and another line"]


def test_a_stream_without_the_characters_gets_them_escaped() -> None:
    data = io.BytesIO()
    out = io.TextIOWrapper(data, "ascii")
    display_for(out).show(BEGUN)
    assert data.getvalue().startswith(b"0/1,000 rows (0.0%) \\xb7 waiting")


# --------------------------------------------------------------------------------------------- json


def test_programs_get_an_object_a_line_with_all_that_a_snapshot_has() -> None:
    out = io.StringIO()
    display = display_for(out, "json")
    display.show(FULL)
    display.show(replace(FULL, rate=float("inf")), heard_s=12)
    display.note(HOSTILE)
    display.close()
    progress, later, note = map(json.loads, out.getvalue().splitlines())
    assert progress.pop("event") == "progress"
    assert Snapshot.from_json(json.dumps(progress)) == FULL
    assert (later["rate"], later["heard_s"]) == (None, 12)
    assert (note["event"], note["text"]) == ("note", HOSTILE)
    assert note["at"].endswith("+00:00")


# ------------------------------------------------------------------------------------------- choice


@pytest.mark.parametrize(
    ("out", "term", "how", "kind"),
    [
        (Terminal(), "xterm-256color", "auto", LiveDisplay),
        (Terminal(), "dumb", "auto", LineDisplay),
        (Terminal(), "xterm-256color", "lines", LineDisplay),
        (Terminal(), "xterm-256color", "json", JsonDisplay),
        (io.StringIO(), "xterm-256color", "auto", LineDisplay),
        (io.StringIO(), "xterm-256color", "live", LiveDisplay),
    ],
)
def test_a_terminal_that_can_draw_gets_the_live_view_unless_it_is_asked_otherwise(
    monkeypatch: pytest.MonkeyPatch, out: io.StringIO, term: str, how: str, kind: type
) -> None:
    monkeypatch.setenv("TERM", term)
    assert type(display_for(out, how)) is kind


def test_a_terminal_that_lacks_the_characters_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    out.encoding = "iso8859-1"  # type: ignore[misc]
    assert type(display_for(out)) is LineDisplay


def test_the_command_line_says_how_and_the_environment_where_it_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("STINT_PROGRESS", raising=False)
    assert parser().parse_args(["run", "job.yaml"]).progress == "auto"
    monkeypatch.setenv("STINT_PROGRESS", "json")
    assert parser().parse_args(["run", "job.yaml"]).progress == "json"
    assert parser().parse_args(["run", "job.yaml", "--progress", "lines"]).progress == "lines"
    monkeypatch.setenv("STINT_PROGRESS", "loud")
    with pytest.raises(SystemExit):
        parser().parse_args(["run", "job.yaml"])
    assert "--progress" in capsys.readouterr().err.splitlines()[-1]


# --------------------------------------------------------------------------------------------- gone


@pytest.mark.parametrize("how", ["live", "lines", "json"])
@pytest.mark.parametrize("end", ["terminal", "pipe"])
def test_a_terminal_or_a_pipe_that_goes_away_ends_no_run(how: str, end: str) -> None:
    ours, theirs = pty.openpty() if end == "terminal" else os.pipe()
    out = os.fdopen(theirs, "w", encoding="utf-8")
    display = display_for(out, how)
    before = sys.stderr
    display.show(FULL)
    assert not display.gone
    os.close(ours)
    for _ in range(2):
        display.show(FULL)
        display.note("a worker was lost")
    display.show(FULL)
    assert display.gone
    assert sys.stderr is before
    display.close()
    display.close()
    with pytest.raises(OSError):  # noqa: PT011  (EIO or EPIPE: what was never written is still to go)
        out.close()


def test_what_fails_while_it_is_drawn_is_not_taken_for_a_terminal_that_went_away() -> None:
    display = display_for(Terminal(), "live")
    try:
        with pytest.raises(TypeError):
            display.show(replace(FULL, rate=None))  # type: ignore[arg-type]
    finally:
        display.close()


# ------------------------------------------------------------------------------------- the terminal

CHILD = """
import os, sys
from jobs.progress.displays import display_for
from tests.support.snapshots import BEGUN, FULL

display = display_for(sys.stderr)
for number, command in enumerate(sys.stdin):
    exec(command)
    sys.stderr.flush()
    os.write(2, b"\\x1b]2;%d\\x07" % number)  # the window's title: all before it has been drawn
"""


class Screen:
    """A terminal with a program that draws on it."""

    def __init__(self, ours: int, commands: io.TextIOWrapper, columns: int, rows: int) -> None:
        self._ours, self._commands, self._sent = ours, commands, 0
        self.screen = pyte.HistoryScreen(columns, rows, history=1000)
        self._stream = pyte.ByteStream(self.screen)
        self.drawn = b""
        """What the last command wrote."""

    def does(self, command: str) -> list[str]:
        """What the screen shows once the program has done it."""
        self._commands.write(f"{command}\n")
        self._commands.flush()
        self.drawn = b""
        while self.screen.title != str(self._sent):
            self.drawn += (read := os.read(self._ours, 65536))
            self._stream.feed(read)
        self._sent += 1
        return self.shows()

    def shows(self) -> list[str]:
        lines = [line.rstrip() for line in self.screen.display]
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def resize(self, columns: int, rows: int) -> None:
        size_of(self._ours, columns, rows)
        self.screen.resize(rows, columns)


def size_of(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def on_screen(columns: int, rows: int, **environment: str) -> Iterator[Screen]:
    ours, theirs = pty.openpty()
    size_of(ours, columns, rows)
    unset = {"COLUMNS", "LINES", "NO_COLOR", "COLORTERM", "FORCE_COLOR"}
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    program = subprocess.Popen(
        [sys.executable, "-c", CHILD], cwd=ROOT, env={**inherited, "TERM": "xterm-256color", **environment},
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=theirs, text=True,
    )  # fmt: skip
    os.close(theirs)
    assert isinstance(program.stdin, io.TextIOWrapper)
    try:
        yield Screen(ours, program.stdin, columns, rows)
    finally:
        program.stdin.close()
        assert program.wait() == 0
        os.close(ours)


def test_a_person_at_a_terminal_sees_the_run_with_notes_above_it_and_at_the_end_the_notes_alone() -> None:
    with on_screen(80, 30) as screen:
        screen.does("print('plan 1: 1,000 rows', file=sys.stderr)")
        shown = screen.does("display.show(BEGUN)")
        assert shown[0] == "plan 1: 1,000 rows"
        assert "ETA       waiting for workers (0 of 4 ready)" in shown
        shown = screen.does("display.show(FULL)")
        assert shown[1].startswith("products · run 20260301T020003Z-ab12cd · 1h04m ──")
        assert shown[2].endswith("──  67.4%")
        assert "workers   20 scoring · 1 idle · 2 starting · 1 leaving · 24 wanted" in shown
        assert "          predict (54% of the workers' time): the network is the work here, as" in shown
        drawn = shown[1:]
        screen.does("display.note('[bold]worker 3 was lost :warning:')")
        screen.does("print('a library says this', file=sys.stderr)")
        shown = screen.does("display.show(FULL)")
        assert shown == ["plan 1: 1,000 rows", "[bold]worker 3 was lost :warning:", "a library says this", *drawn]
        shown = screen.does("display.close()")
        assert shown == ["plan 1: 1,000 rows", "[bold]worker 3 was lost :warning:", "a library says this"]
        assert (screen.screen.cursor.hidden, screen.screen.cursor.y, screen.screen.cursor.x) == (False, 3, 0)
        assert screen.does("print('complete', file=sys.stderr)")[-1] == "complete"


def test_a_terminal_of_another_size_is_drawn_on_as_it_is_now() -> None:
    with on_screen(80, 30) as screen:
        screen.does("display.note('above')")
        screen.does("display.show(FULL)")
        screen.resize(110, 30)
        shown = screen.does("display.show(FULL)")
        assert shown[0] == "above"
        assert " · 1h04m ──" in shown[1]
        assert len(shown[1]) == 110
        assert shown[-5].endswith("worker 12 on ip-10-0-3-17.eu-central-1.compute.internal · 3m12s, 4.3× expected")
        assert sum(" 1h04m ─" in line for line in shown) == 1
        screen.resize(50, 30)
        shown = screen.does("display.show(FULL)")
        assert "slowest 00000003/00000517" in shown
        assert sum(line.startswith("ETA ") for line in shown) == 1
        screen.does("display.close()")
        assert not any(screen.shows()[1:])
        assert not screen.screen.cursor.hidden


def test_a_terminal_with_few_rows_has_the_most_important_ones_and_scrolls_only_for_notes() -> None:
    with on_screen(80, 8) as screen:
        for _ in range(3):
            shown = screen.does("display.show(FULL)")
            assert len(shown) == 8
            assert shown[1].endswith(" 67.4%")
            assert shown[4].startswith("ETA ")
        assert not screen.screen.history.top
        screen.does("display.note('a note')")
        assert screen.does("display.close()")[-1:] in ([], ["a note"])
        scrolled = ["".join(row[x].data for x in range(80)).rstrip() for row in screen.screen.history.top]
        assert [*scrolled, *screen.shows()].count("a note") == 1


def test_a_driver_that_is_killed_leaves_a_cursor() -> None:
    with on_screen(80, 30) as screen:
        screen.does("display.show(FULL)")
        assert not screen.screen.cursor.hidden


def test_without_colours_nothing_is_lost() -> None:
    with on_screen(80, 30, NO_COLOR="1") as screen:
        plain = screen.does("display.show(FULL)")
        assert {char.fg for row in screen.screen.buffer.values() for char in row.values()} == {"default"}
    with on_screen(80, 30) as screen:
        assert screen.does("display.show(FULL)") == plain
        colours = {char.fg for row in screen.screen.buffer.values() for char in row.values()}
        assert {"green", "cyan", "brown", "magenta", "default", "red"} >= colours > {"green", "default"}


def test_what_does_not_change_is_drawn_over_in_one_go() -> None:
    """A frame that came in pieces would flicker."""
    writes: list[str] = []

    class Slow(Terminal):
        def write(self, text: str) -> int:
            writes.append(text)
            return len(text)

    display = display_for(Slow(), "live")
    display.show(FULL)
    writes.clear()
    display.show(FULL)
    assert len(writes) == 1
    display.close()
