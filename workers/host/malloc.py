"""How glibc's malloc serves a worker: read from the environment when its process starts, so whoever starts it sets it.

A worker computes in a thread of its own, and glibc gives each thread an arena of heaps of 64 MiB that go back to the
kernel whenever they are empty: by chance at every forward pass, a page fault for each 4 KiB. In one arena for all
threads that memory stays. Huge pages save misses of the TLB. docs/PERFORMANCE.md has the measurements.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"
TUNABLES = {"glibc.malloc.arena_max": "1", "glibc.malloc.hugetlb": "1"}
"""https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html; unknown ones are ignored."""


def variables(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Of the environment of a process that is to be a worker. What `given` sets by itself stays as it is."""
    tunables = dict(TUNABLES)
    for setting in filter(None, given.get(VARIABLE, "").split(":")):
        name, _, value = setting.partition("=")
        tunables[name] = value
    return {VARIABLE: ":".join(f"{name}={value}" for name, value in tunables.items())}
