"""Memory: what a worker may take, what it has taken, and who sees to it that it takes no more."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from workers.contract import ThreadPlan
from workers.host import cgroups, memory_guard

NODE_SHARE = 0.9
"""Of a node's memory, what its workers may take together. The rest is Ray's, the kernel's, and page cache."""


class BoundTooLow(Exception):
    """A worker holds more than it may before it has scored anything."""


def node_bytes(root: Path = Path("/")) -> int:
    """Memory that this node grants: the machine's, or the tightest limit among our cgroup and its ancestors."""
    limits = [1024 * int(kib) for kib in re.findall(r"^MemTotal:\s*(\d+)", (root / "proc/meminfo").read_text(), re.M)]
    for folder in cgroups.folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):  # v2, v1
            text = cgroups.read_text(folder / name)
            if text and text != "max":
                limits.append(int(text))
    return min(limits)


def bound_bytes(named_bytes: int | None, plan: ThreadPlan, root: Path = Path("/")) -> int:
    """Most resident memory of a worker that holds these cores: what the spec names, else its cores' share of the node.

    Never more than the node has for workers: beyond that the kernel would choose whom to kill.
    """
    for_workers = node_bytes(root) * NODE_SHARE
    if named_bytes is not None:
        return int(min(named_bytes, for_workers))
    return int(for_workers * plan.threads / plan.budget)


def peak_rss_bytes() -> int:
    """The most resident memory that this process has had.

    `VmHWM`, because getrusage's figure also counts what the process that started this one held; where the kernel
    does not tell (gVisor), that one.
    """
    peak = re.search(r"^VmHWM:\s*(\d+)", Path("/proc/self/status").read_text(), re.M)
    return 1024 * (int(peak[1]) if peak else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def forget_peak() -> None:
    """Have `peak_rss_bytes` tell the peak from now on, where the kernel lets us."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to what is resident now


def resident_bytes() -> int:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def check_room(bound_bytes: int) -> None:
    """Raise BoundTooLow if this process holds more than its bound already."""
    held_bytes = resident_bytes()
    if held_bytes > bound_bytes:
        raise BoundTooLow(
            f"a worker that has loaded its network holds {held_bytes / 2**20:.0f} MiB and may take "
            f"{bound_bytes / 2**20:.0f} MiB: raise workers.memory, or take nodes with more memory a core"
        )


class Guard:
    """Has a process killed as soon as it takes more than its bound; ends with the process that started it."""

    def __init__(self, pid: int, bound_bytes: int) -> None:
        self._command = [sys.executable, "-I", "-S", memory_guard.__file__, str(pid), str(bound_bytes)]
        self._process = self._start()

    def keep(self) -> None:
        """Start the watch again if somebody has ended it."""
        if self._process.poll() is not None:
            self.close()
            self._process = self._start()

    def close(self) -> bool:
        """End the watch. True if it has killed."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self._process.wait() == memory_guard.KILLED

    def _start(self) -> subprocess.Popen[bytes]:
        # It watches for as long as we hold its standard input open, so it cannot outlive us.
        return subprocess.Popen(self._command, stdin=subprocess.PIPE)
