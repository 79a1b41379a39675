"""Kills one process as soon as it holds more resident memory than it may. A process of its own, started by its path.

Apart from the process that it watches, because a decoder in C may hold that one's interpreter for as long as it
allocates; and not a limit of the kernel's on the address space, because an allocation that fails inside a decoder looks
like a damaged image. It imports nothing but the standard library and takes some 10 MB.
"""

from __future__ import annotations

import os
import select
import signal
import sys

EVERY_MS, SELDOM_MS = 20, 500
"""A process that allocates as fast as a core can gets some 100 MB beyond its bound in EVERY_MS. As long as it is far
from there it is checked less often, down to SELDOM_MS: each check interrupts a worker."""
FASTEST_BYTES_A_S = 20e9
"""No process is expected to take memory faster, with all its threads."""
KILLED = 3
"""Exit code after a kill; 0 when the watch was over before."""


def next_check_ms(room_bytes: int) -> int:
    """When to look again at a process that may take so many bytes more."""
    return int(min(max(room_bytes / FASTEST_BYTES_A_S * 1000, EVERY_MS), SELDOM_MS))


def guard(pid: int, bound_bytes: int) -> int:
    """Until `pid` holds more than `bound_bytes`, or is gone, or nobody holds our standard input open any more."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    over = select.poll()
    over.register(sys.stdin.fileno(), select.POLLIN)
    try:
        statm = os.open(f"/proc/{pid}/statm", os.O_RDONLY)  # of this very process, even if its id were used again
        wait_ms = EVERY_MS
        while not over.poll(wait_ms):
            resident_bytes = int(os.pread(statm, 256, 0).split()[1]) * page_bytes
            if resident_bytes > bound_bytes:
                os.kill(pid, signal.SIGKILL)
                print(
                    f"stint: process {pid} took {resident_bytes / 2**20:.0f} MiB of memory, more than its bound of "
                    f"{bound_bytes / 2**20:.0f} MiB (workers.memory), and was killed",
                    file=sys.stderr,
                )
                return KILLED
            wait_ms = next_check_ms(bound_bytes - resident_bytes)
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        pass
    return 0


if __name__ == "__main__":
    sys.exit(guard(int(sys.argv[1]), int(sys.argv[2])))
