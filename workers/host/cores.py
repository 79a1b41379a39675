"""Cores: how many this node lets us use, and which of them one worker holds.

Budget of a node = floor(min(affinity mask, cgroup quota)), SMT siblings counted once. Workers take disjoint sets of
physical cores, leased by `flock` on files: a killed worker frees its cores by dying. Core sets do not span an L3 cache
where they fit in one. Order matters in a worker: lease, pin, environment, *then* import torch, because OpenMP reads
both when its pool is made.
"""

from __future__ import annotations

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from workers.contract import ThreadPlan
from workers.counted import counted
from workers.host import cgroups

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
NODE_VARIABLE = "STINT_NODE"
"""Set in a pinned process and inherited by those that it starts: what the node was before."""


class NoCores(Exception):
    """Every core that this node lets us use is leased to another worker."""


class TooWide(Exception):
    """A worker takes more cores than this node lets us use."""


@dataclass(frozen=True)
class Topology:
    """What the kernel says of this process's place on the node."""

    cores: tuple[tuple[int, ...], ...]
    """Logical CPUs of each physical core that the affinity mask admits, grouped so that neighbours share an L3."""
    l3: tuple[int, ...]
    """For each core, an ordinal of its L3 cache."""
    quota_cpus: float | None
    """CPU seconds a second that the cgroup grants, or None where it sets no limit."""

    @property
    def threads_per_core(self) -> int:
        return max(len(core) for core in self.cores)

    @property
    def budget(self) -> int:
        """Physical cores to use, at least one."""
        quota = self.quota_cpus / self.threads_per_core if self.quota_cpus is not None else float("inf")
        return max(1, int(min(len(self.cores), quota)))

    @property
    def may_pin(self) -> bool:
        """Only where the mask is ours alone: under a mere quota every container would pin to the same cores."""
        return self.quota_cpus is None or sum(map(len, self.cores)) <= self.quota_cpus

    def plan(self, threads: int, slots: tuple[int, ...] = (), cpus: tuple[int, ...] = ()) -> ThreadPlan:
        budget, per_core = self.budget, self.threads_per_core
        return ThreadPlan(threads=threads, cpus=cpus, slots=slots, budget=budget, threads_per_core=per_core)


def read_topology(root: Path = Path("/"), mask: frozenset[int] | None = None) -> Topology:
    """Topology from `sys/devices/system/cpu`, `proc/self/cgroup` and `sys/fs/cgroup` below `root`."""
    mask = frozenset(os.sched_getaffinity(0)) if mask is None else mask
    cores: dict[tuple[int, ...], str] = {}
    for cpu in sorted(mask):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        siblings = cgroups.read_text(folder / "topology/thread_siblings_list") or str(cpu)
        core = tuple(sorted(set(parse_cpu_list(siblings)) & mask)) or (cpu,)
        cores[core] = cgroups.read_text(folder / "cache/index3/shared_cpu_list") or "all"
    caches = {cache: ordinal for ordinal, cache in enumerate(dict.fromkeys(cores.values()))}
    ordered = sorted(cores, key=lambda core: (caches[cores[core]], core))
    return Topology(
        cores=tuple(ordered), l3=tuple(caches[cores[core]] for core in ordered), quota_cpus=_quota_cpus(root)
    )


def parse_cpu_list(text: str) -> Iterator[int]:
    """`0-2,8` → 0, 1, 2, 8."""
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _quota_cpus(root: Path) -> float | None:
    """The tightest CPU quota among our cgroup and its ancestors, v2 (`cpu.max`) or v1 (`cpu.cfs_*_us`)."""
    quotas = list[float]()
    for folder in cgroups.folders(root, "cpu"):
        v1 = (cgroups.read_text(folder / f"cpu.cfs_{name}_us") or "max" for name in ("quota", "period"))
        quota, _, period = (cgroups.read_text(folder / "cpu.max") or " ".join(v1)).partition(" ")
        if "max" not in (quota, period) and int(quota) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def this_node() -> tuple[int, int, bool]:
    """The cores that this node grants all of its workers together, threads per core, and whether workers are pinned.

    From inside a pinned worker, too, whose own affinity shows its own cores alone.
    """
    if known := os.environ.get(NODE_VARIABLE):
        cores, threads_per_core, pinned = map(int, known.split(","))
        return cores, threads_per_core, bool(pinned)
    topology = read_topology()
    return topology.budget, topology.threads_per_core, topology.may_pin


@dataclass(frozen=True)
class Lease:
    """Cores held by this process until `release` or its death."""

    plan: ThreadPlan
    descriptors: list[int]

    def release(self) -> None:
        while self.descriptors:
            os.close(self.descriptors.pop())


def unpinned(threads: int) -> ThreadPlan:
    """The plan of a worker that lives in somebody else's process: it holds no cores and is pinned to none."""
    return read_topology().plan(threads)


def lease(threads: int, topology: Topology | None = None, folder: Path | None = None, *, held_for: str = "") -> Lease:
    """Take `threads` physical cores of this node. Raises NoCores when not that many are free, TooWide when never.

    `held_for` is what whoever finds no cores is told of this process.
    """
    topology = topology or read_topology()
    folder = folder or Path(tempfile.gettempdir()) / f"stint-cores-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pin = topology.may_pin
    if threads > topology.budget:
        raise TooWide(
            f"a worker takes {counted(threads, 'core')} and this node lets us use {topology.budget}: lower workers.cpus"
        )
    # Where we pin, a slot is a core by its first CPU; where we must not, the ordinal of a core's worth of quota.
    slots = [core[0] for core in topology.cores][: topology.budget] if pin else list(range(topology.budget))
    caches = dict(zip(slots, topology.l3, strict=False)) if pin else dict.fromkeys(slots, 0)
    with (folder / "choosing").open("a") as choosing:
        # One at a time, so that two workers that want several cores each do not take half of each other's.
        fcntl.flock(choosing, fcntl.LOCK_EX)
        files = {slot: folder / f"{'cpu' if pin else 'slot'}{slot}" for slot in slots}
        held = {slot: d for slot, file in files.items() if (d := _try_lock(file)) is not None}
        chosen = choose_slots(list(held), caches, threads)
        for slot in held.keys() - chosen:
            os.close(held[slot])
        purpose = f" for {held_for}" if held_for else ""
        signature = f"process {os.getpid()}{purpose}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        for slot in chosen:
            os.ftruncate(held[slot], 0)
            os.pwrite(held[slot], signature.encode(), 0)
    if not chosen:
        others = [file.read_text(errors="replace") for slot, file in files.items() if slot not in held]
        holders = dict.fromkeys(signature or "another process" for signature in others)
        raise NoCores(
            f"{threads} of {counted(topology.budget, 'core')} wanted, {len(held)} free; held by {'; '.join(holders)}"
        )
    taken = tuple(sorted(chosen))
    return Lease(topology.plan(threads, taken, taken if pin else ()), [held[slot] for slot in chosen])


def choose_slots(free: list[int], caches: Mapping[int, int], wanted: int) -> set[int]:
    """`wanted` of the free slots: from the fullest L3 that still has room, across caches only if none has. Or none."""
    if len(free) < wanted:
        return set()
    groups = [[slot for slot in free if caches[slot] == cache] for cache in dict.fromkeys(map(caches.get, free))]
    roomy = [group for group in groups if len(group) >= wanted]
    return set(min(roomy, key=len)[:wanted] if roomy else free[:wanted])


def _try_lock(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that size the thread pools of OpenMP, MKL and OpenBLAS; read when those libraries load."""
    return dict.fromkeys(THREAD_VARIABLES, str(threads))


def apply(plan: ThreadPlan) -> None:
    """Pin every thread of this process and size its thread pools. Must run before torch is imported."""
    if "torch" in sys.modules:
        raise RuntimeError("torch is already imported: its OpenMP pool has been sized without the thread plan")
    os.environ.update(thread_environment(plan.threads))
    os.environ[NODE_VARIABLE] = f"{plan.budget},{plan.threads_per_core},{int(bool(plan.cpus))}"
    if plan.cpus:
        # Affinity belongs to a thread, and Ray's own threads already run: pin them all, new ones inherit.
        for task in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # a thread that has ended since the listing
                os.sched_setaffinity(int(task.name), plan.cpus)
