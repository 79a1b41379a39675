"""Budget, leases and pinning, on made-up machines and on this one."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from pathlib import Path

import pytest

from workers.host.cores import NoCores, TooWide, Topology, choose_slots, lease, parse_cpu_list, read_topology


def machine(root: Path, *, cpus: int, siblings: int = 1, l3: int = 64, cgroup: dict[str, str] | None = None) -> Path:
    """A /sys and /proc with `cpus` logical CPUs; the sibling of CPU n is n + cores, as on most x86 hosts."""
    cores = cpus // siblings
    for cpu in range(cpus):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}"
        (folder / "topology").mkdir(parents=True)
        (folder / "cache/index3").mkdir(parents=True)
        core = cpu % cores
        (folder / "topology/thread_siblings_list").write_text(",".join(str(core + s * cores) for s in range(siblings)))
        (folder / "cache/index3/shared_cpu_list").write_text(f"cache {core // l3}")
    for name, text in (cgroup or {}).items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_budget_is_the_affinity_mask_where_there_is_no_quota(tmp_path: Path) -> None:
    topology = read_topology(machine(tmp_path, cpus=8), frozenset({0, 1, 2}))
    assert (topology.budget, topology.may_pin, topology.threads_per_core) == (3, True, 1)


def test_smt_siblings_count_once(tmp_path: Path) -> None:
    topology = read_topology(machine(tmp_path, cpus=16, siblings=2), frozenset(range(16)))
    assert topology.budget == 8
    assert topology.threads_per_core == 2
    assert topology.cores[0] == (0, 8)


@pytest.mark.parametrize(
    ("cgroup", "budget"),
    [
        ({"proc/self/cgroup": "0::/pod/c", "sys/fs/cgroup/pod/c/cpu.max": "350000 100000"}, 3),
        ({"proc/self/cgroup": "0::/pod/c", "sys/fs/cgroup/pod/cpu.max": "200000 100000"}, 2),
        ({"proc/self/cgroup": "0::/host/path", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        ({"proc/self/cgroup": "0::/x", "sys/fs/cgroup/x/cpu.max": "max 100000"}, 8),
        ({"proc/self/cgroup": "0::/x", "sys/fs/cgroup/x/cpu.max": "50000 100000"}, 1),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/pod",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000",
            },
            2,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/pod",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000",
            },
            8,
        ),
    ],
    ids=["v2", "v2 of an ancestor", "v2 seen from inside", "v2 max", "less than one", "v1", "v1 none"],
)
def test_budget_honours_the_cgroup_quota(tmp_path: Path, cgroup: dict[str, str], budget: int) -> None:
    assert read_topology(machine(tmp_path, cpus=8, cgroup=cgroup), frozenset(range(8))).budget == budget


def test_a_quota_below_the_mask_forbids_pinning(tmp_path: Path) -> None:
    cgroup = {"proc/self/cgroup": "0::/c", "sys/fs/cgroup/c/cpu.max": "400000 100000"}
    root = machine(tmp_path, cpus=8, cgroup=cgroup)
    assert not read_topology(root, frozenset(range(8))).may_pin
    assert read_topology(root, frozenset(range(4))).may_pin


def test_cpu_lists_are_read_as_the_kernel_writes_them() -> None:
    assert list(parse_cpu_list("0-2,8\n")) == [0, 1, 2, 8]


def test_a_set_of_cores_stays_within_the_fullest_l3_that_has_room() -> None:
    caches = {0: 0, 1: 0, 2: 0, 3: 0, 4: 1, 5: 1}
    assert choose_slots([0, 1, 2, 3, 4, 5], caches, 2) == {4, 5}
    assert choose_slots([1, 2, 3, 4, 5], caches, 3) == {1, 2, 3}
    assert len(choose_slots([2, 3, 4, 5], caches, 3)) == 3  # no cache has three free: better spanning than none
    assert choose_slots([4], caches, 2) == set()


FOUR = Topology(cores=((0,), (1,), (2,), (3,)), l3=(0, 0, 1, 1), quota_cpus=None)


def test_leases_are_disjoint_and_come_back_when_released(tmp_path: Path) -> None:
    first, second = lease(2, FOUR, tmp_path), lease(2, FOUR, tmp_path)
    assert set(first.plan.cpus) | set(second.plan.cpus) == {0, 1, 2, 3}
    with pytest.raises(NoCores, match=r"1 of 4 cores wanted, 0 free; held by "):
        lease(1, FOUR, tmp_path)
    first.release()
    assert lease(2, FOUR, tmp_path).plan.cpus == first.plan.cpus
    second.release()


def test_whoever_finds_no_cores_is_told_who_has_them(tmp_path: Path) -> None:
    command = "`stint run job.yaml` (process 17 on here)"
    first, second = lease(2, FOUR, tmp_path, held_for=command), lease(2, FOUR, tmp_path)
    with pytest.raises(NoCores) as caught:
        lease(1, FOUR, tmp_path)
    pattern = (
        rf"process {os.getpid()} for {re.escape(command)}, since \d{{4}}-[\d: -]+ UTC; process {os.getpid()}, since"
    )
    assert re.search(pattern, str(caught.value))
    first.release()
    second.release()


def test_a_worker_wider_than_the_node_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(TooWide, match=r"takes 5 cores.*lets us use 4.*workers.cpus"):
        lease(5, FOUR, tmp_path)


def test_without_pinning_leases_are_slots_of_the_quota(tmp_path: Path) -> None:
    narrow = Topology(cores=FOUR.cores, l3=FOUR.l3, quota_cpus=2.0)
    held = [lease(1, narrow, tmp_path) for _ in range(2)]
    assert [h.plan.cpus for h in held] == [(), ()]
    assert {h.plan.slots for h in held} == {(0,), (1,)}
    with pytest.raises(NoCores):
        lease(1, narrow, tmp_path)


def _hold(folder: Path, ready: multiprocessing.synchronize.Event) -> None:
    held = lease(4, FOUR, folder)
    ready.set()
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # until this process is killed, or there is nobody left to do that
    held.release()


def test_a_killed_worker_frees_its_cores_by_dying(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, ready))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(NoCores):
        lease(1, FOUR, tmp_path)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(10)
    assert len(lease(4, FOUR, tmp_path).plan.cpus) == 4
