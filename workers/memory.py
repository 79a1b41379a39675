"""Resident memory of this process, and the bound that a worker keeps to."""

from __future__ import annotations

import resource
from pathlib import Path


def peak_rss_bytes(process: str = "self") -> int:
    """The most resident memory that a process has had.

    `VmHWM`, because getrusage's figure also counts what the process that started this one held; where the kernel
    does not tell (gVisor), that one.
    """
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
