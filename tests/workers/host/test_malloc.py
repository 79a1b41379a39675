"""What workers ask of glibc's malloc, and that it does it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from workers.host import malloc

ARENAS = """
import ctypes, os, re, threading

hold = [threading.Thread(target=lambda: ctypes.CDLL(None).malloc(5 << 20)) for _ in range(4)]
for thread in hold:
    thread.start()
for thread in hold:
    thread.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
reading, writing = os.pipe()
stream = ctypes.c_void_p(libc.fdopen(writing, b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(len(re.findall(rb"<heap nr=", os.read(reading, 1 << 20))))
"""


def arenas(variables: dict[str, str]) -> int:
    """Of a process in whose threads memory was allocated."""
    env = {name: value for name, value in os.environ.items() if name != malloc.VARIABLE} | variables
    done = subprocess.run([sys.executable, "-c", ARENAS], env=env, stdout=subprocess.PIPE, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc has another malloc")
def test_all_threads_of_a_worker_share_one_arena() -> None:
    assert arenas({}) > 1  # what this is about
    assert arenas(malloc.variables({})) == 1


def test_what_somebody_has_set_stays() -> None:
    given = {malloc.VARIABLE: "glibc.malloc.arena_max=4:glibc.malloc.check=3"}
    tunables = malloc.variables(given)[malloc.VARIABLE].split(":")
    assert sorted(tunables) == ["glibc.malloc.arena_max=4", "glibc.malloc.check=3", "glibc.malloc.hugetlb=1"]
    assert malloc.variables(malloc.variables(given)) == malloc.variables(given)
