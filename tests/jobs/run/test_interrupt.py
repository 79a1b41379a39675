"""SIGTERM ends a run with code 5 in time, also one whose main thread waits in a library and runs no Python."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

STUCK = """
import ctypes
from jobs.interrupt import InterruptFlag

flag = InterruptFlag()
flag.install()
print("ready", flush=True)
{waits}
"""
LOOKS = """
import time
while not flag():
    time.sleep(0.01)
print("told")
"""
IN_C = """
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)  # for ever, and no signal interrupts it
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("waits", "code", "told"),
    [(LOOKS, 0, "told"), (IN_C, 5, "interrupted; everything committed")],
    ids=["a loop", "a library"],
)
def test_a_signal_is_heeded_whatever_the_main_thread_is_at(
    waits: str, code: int, told: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK.format(waits=waits)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        sent = time.monotonic()
        try:
            output, _ = process.communicate(timeout=10)
        finally:
            process.kill()
    assert (process.returncode, told in output) == (code, True), output
    assert time.monotonic() - sent < 3


def test_an_interrupt_is_told_once_also_when_the_command_takes_long_to_end() -> None:
    ends = (
        LOOKS
        + """
from jobs.interrupt import tell
tell("stint: interrupted; by the run")
time.sleep(60)
"""
    )
    with subprocess.Popen(
        [sys.executable, "-c", STUCK.format(waits=ends)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=10)
        finally:
            process.kill()
    assert (process.returncode, output.count("interrupted")) == (5, 1), output
