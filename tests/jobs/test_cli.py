"""The command line itself: its version, the words for options that cannot be, and output that nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.arguments import VERSION, parser
from jobs.spec.days import Days

ROOT = Path(__file__).parents[2]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"stint {VERSION}\n")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run job.yaml --as-of 01.03.2026", "'01.03.2026' is no day; write it as 2026-03-01"),
        ("run job.yaml --backfill 2026-03-01", "FROM..TO is wanted"),
        ("nightly --template t --as-of soon", "'soon' is no day"),
        ("nightly --template t --keep all", "all: a whole number from 0 to 1,000,000,000 is wanted"),
        ("sample job.yaml --seed x", "x: a whole number from 0 to 1,000,000,000 is wanted"),
        ("sample job.yaml -n many", "many: a number of rows from 1 to 1,000 is wanted"),
        ("tune job.yaml --minutes long", "long: a number of minutes from 0.001 to 1,440 is wanted"),
        ("compare job.yaml --prune half", "half: percentages above 0 and below 100, as 10,25,50"),
        ("compare job.yaml --prune 120", "120: percentages above 0 and below 100"),
    ],
)
def test_an_option_that_cannot_be_is_answered_in_words(
    line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(line.split())
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert words in said
    assert "invalid" not in said


def test_a_way_to_show_a_run_that_is_none_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STINT_PROGRESS", "fancy")
    with pytest.raises(SystemExit):
        parser().parse_args(["run", "job.yaml"])
    assert "'fancy': one of auto, live, lines, json is wanted, here or in STINT_PROGRESS" in capsys.readouterr().err


def test_days_and_percents_are_taken_as_people_write_them() -> None:
    assert parser().parse_args(["run", "j", "--as-of", "yesterday"]).days == 1
    assert isinstance(parser().parse_args(["nightly", "--template", "t", "--as-of", "2026-3-1"]).as_of, Days)
    assert parser().parse_args(["compare", "j", "--prune", "10%, 25"]).prune == (0.1, 0.25)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("line", "code"), [("schema", 0), ("--help", 0), ("plan no-such.yaml", 2), ("run job.yaml --as-of x", 2)]
)
def test_output_that_nobody_reads_changes_no_exit_code_and_is_not_spoken_of(stream: str, line: str, code: int) -> None:
    read, write = os.pipe()
    os.close(read)
    other = "stderr" if stream == "stdout" else "stdout"
    command = [sys.executable, "-m", "jobs", *line.split()]
    ended = subprocess.run(command, cwd=ROOT, **{stream: write, other: subprocess.PIPE}, text=True)  # type: ignore[call-overload]
    os.close(write)
    assert ended.returncode == code
    assert "Broken" not in f"{ended.stderr}{ended.stdout}"


@pytest.mark.parametrize(("line", "code"), [("plan no-such.yaml", 2), ("--version", 0), ("no-such-command", 2)])
def test_the_interpreter_is_not_torn_down_beside_threads_of_libraries_but_what_waits_for_the_end_is_done(
    line: str, code: int
) -> None:
    """Arrow's threads may let go of Python objects later than the command ends, which aborts the process then."""
    program = f"""
import atexit, os, sys, jobs.cli
class Kept:
    def __del__(self, write=os.write): write(1, b"torn down")
sys.kept = Kept()
register, sys.argv = atexit.register, ["stint", *{line.split()!r}]
main, jobs.cli.main = jobs.cli.main, lambda argv: (register(print, "at exit", end=""), main(argv))[1]
jobs.cli.entrypoint()
"""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == code
    assert ended.stdout.endswith("at exit")
