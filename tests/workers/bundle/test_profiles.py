"""Profiles in the store: written once, the newest counts, damage is passed over; and the width that they ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.plan.worker_width import choose_width, describe_width, given_width, kept_share, of_host, worker_rate
from tests.support.fakes import MemoryStore
from workers.bundle import records
from workers.bundle.profiles import (
    Candidate,
    HostKind,
    Profile,
    Row,
    read_profile,
    read_profiles,
    store_profile,
)
from workers.storage.errors import StoreDenied
from workers.storage.store import ObjectInfo

ROOT = Path(__file__).parents[3]
HOST = HostKind(
    cpu_model="AMD EPYC 9B45", isa="x86-vnni", cores=8, threads_per_core=2, pinned=True, versions={"torch": "2.13.0"}
)
OTHER = replace(HOST, cpu_model="Intel Xeon", cores=4)


def row(threads: int, rate: float | None, *, batch: int = 16, cores: int = 8, **more: Any) -> Row:
    candidate = Candidate(engine="torch-int8/x86-vnni", threads=threads, workers=max(1, cores // threads), batch=batch)
    return Row(candidate=candidate, images_per_s=rate, **{"rounds": 3, **more})


def profile(host: HostKind = HOST, *, best: int = 1, tuned_at: str = "then", **rates: float) -> Profile:
    """`w2=150.0`: workers of two cores reach 150 images a second on the whole node; `best` is the chosen width."""
    table = tuple(row(int(name[1:]), rate, cores=host.cores) for name, rate in (rates or {"w1": 100.0}).items())
    chosen = next(r for r in table if r.candidate.threads == best)
    return Profile(host=host, chosen=chosen, table=table, why="it is", tuned_at=tuned_at, rows=256)


# ------------------------------------------------------------------------------------------------ the store


def test_a_profile_comes_back_as_it_was_stored() -> None:
    store = MemoryStore()
    made = profile(w1=100.0, w2=90.0)
    made = replace(made, table=(*made.table, row(4, None, out="took more than 1.00 GiB of memory", rounds=0)))
    key = store_profile(store, "b", made)
    assert key == f"_stint/bundles/b/profiles/{HOST.key}/000001.json"
    assert read_profile(store, "b", HOST) == made
    assert (made.threads, made.workers, made.chosen.candidate.batch) == (1, 8, 16)


def test_the_newest_profile_of_each_kind_of_node_counts() -> None:
    store = MemoryStore()
    for tuned_at in ("first", "second"):
        store_profile(store, "b", profile(tuned_at=tuned_at))
    store_profile(store, "b", profile(OTHER, tuned_at="third"))
    store_profile(store, "another bundle", profile(tuned_at="fourth"))
    assert read_profile(store, "b", HOST).tuned_at == "second"  # type: ignore[union-attr]
    assert sorted(p.tuned_at for p in read_profiles(store, "b")) == ["second", "third"]
    assert read_profile(store, "b", replace(HOST, cores=2)) is None


def test_of_two_tunings_at_the_same_time_none_is_lost() -> None:
    class Slow(MemoryStore):
        """Lists what was there before the other one wrote."""

        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            return iter(())

    store = Slow()
    assert store_profile(store, "b", profile()).endswith("/000001.json")
    assert store_profile(store, "b", profile()).endswith("/000002.json")


def corrupt(**changes: Any) -> bytes:
    raw = json.loads(records.to_json(profile()))
    for path, value in changes.items():
        at = raw
        *folders, name = path.split("__")
        for folder in folders:
            at = at[folder]
        at[name] = value
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'"text"',
        b"\xff\xfe",
        b"[" * 100_000,
        corrupt(schema=2),
        corrupt(host=None),
        corrupt(table=3),
        corrupt(chosen__images_per_s=None),
        corrupt(chosen__images_per_s=-1.0),
        corrupt(chosen__images_per_s=float("inf")),
        corrupt(chosen__candidate__batch=10**9),
        corrupt(chosen__candidate__batch="16"),
        corrupt(chosen__candidate__threads=0),
        corrupt(chosen__candidate__threads=64),
        corrupt(chosen__candidate__engine=7),
        corrupt(chosen__peak_bytes="much"),
        corrupt(chosen__rounds="3"),
        corrupt(chosen__out=None),
        corrupt(chosen__spread=[]),
        corrupt(host__cores="8"),
        corrupt(host__versions=["torch"]),
        corrupt(tuned_at=7),
        corrupt(host__cpu_model="of another kind of node"),
        corrupt(extra=1),
    ],
    ids=lambda data: data[:20].decode(errors="replace") + str(len(data)),
)
def test_a_damaged_profile_is_passed_over_with_a_note(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    store_profile(store, "b", profile(tuned_at="the one before"))
    store.create(f"_stint/bundles/b/profiles/{HOST.key}/000002.json", data)
    store.create(f"_stint/bundles/b/profiles/{HOST.key}/notes.txt", b"not ours")
    assert read_profile(store, "b", HOST).tuned_at == "the one before"  # type: ignore[union-attr]
    assert "000002.json is passed over" in caplog.text


def test_a_store_that_does_not_let_us_list_means_no_profile(caplog: pytest.LogCaptureFixture) -> None:
    class Closed(MemoryStore):
        def list(self, prefix: str) -> Iterator[ObjectInfo]:
            raise StoreDenied("403 ListBucket")

    assert read_profile(Closed(), "b", HOST) is None
    assert read_profiles(Closed(), "b") == ()
    assert "403 ListBucket" in caplog.text


# ------------------------------------------------------------------------------------------- kind of node


def test_whatever_decides_what_is_best_is_in_the_key_and_the_key_is_readable() -> None:
    assert HOST.key.startswith("amd-epyc-9b45-x86-vnni-8-cores-")
    others = [
        replace(HOST, cpu_model="AMD EPYC 9B46"),
        replace(HOST, isa="x86-no-vnni"),
        replace(HOST, cores=7),
        replace(HOST, threads_per_core=1),
        replace(HOST, pinned=False),
        replace(HOST, versions={"torch": "2.14.0"}),
        replace(HOST, versions={"torch": "2.13.0", "openvino": "2026.4"}),
    ]
    assert len({HOST.key, *(other.key for other in others)}) == 8


def test_a_worker_pinned_to_its_cores_finds_the_profile_of_its_whole_node() -> None:
    code = """
import os
from workers.host import cores
from workers.contract import ThreadPlan
from workers.bundle.profiles import HostKind
before = HostKind.here()
first = min(os.sched_getaffinity(0))
pin = (first,) if before.pinned else ()
plan = ThreadPlan(threads=1, cpus=pin, slots=(first,), budget=before.cores, threads_per_core=before.threads_per_core)
cores.apply(plan)
print(HostKind.here().key == before.key, len(os.sched_getaffinity(0)) == 1 or not pin)
"""
    env = {name: value for name, value in os.environ.items() if name != "STINT_NODE"}
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["True", "True"]


# ---------------------------------------------------------------------------------------------- the width


def test_without_a_profile_a_worker_gets_one_core() -> None:
    width = choose_width([])
    assert (width.threads, width.from_profiles) == (1, False)
    assert "stint tune" in describe_width(width)
    assert choose_width(of_host([profile(OTHER, best=2, w2=10.0)], HOST)).threads == 1


def test_the_one_kind_of_node_there_is_decides_alone() -> None:
    width = choose_width([profile(best=2, w1=100.0, w2=99.5)])
    assert (width.threads, width.profile.host) == (2, HOST)  # type: ignore[union-attr]
    assert describe_width(width).startswith("profile: torch-int8/x86-vnni, 4 workers of 2 cores, batch 16: 100 img/s")
    mine = choose_width(of_host([profile(best=2, w2=10.0), profile(OTHER, best=1, w1=10.0)], HOST))
    assert mine.threads == 2


def test_on_a_mixed_cluster_the_width_loses_least_on_the_kind_that_loses_most() -> None:
    first = profile(HOST, best=1, w1=100.0, w2=95.0, w4=60.0)
    second = profile(OTHER, best=4, w1=50.0, w2=90.0, w4=100.0)
    width = choose_width([first, second])
    assert (width.threads, width.from_profiles, width.profile) == (2, True, None)
    assert "90% of its best" in describe_width(width)
    assert kept_share(4, [first.rates(), second.rates()]) == pytest.approx(0.6)


def test_a_width_that_was_not_measured_on_every_kind_is_not_taken() -> None:
    width = choose_width([profile(HOST, best=8, w1=10.0, w8=100.0), profile(OTHER, best=1, w1=100.0)])
    assert width.threads == 1
    nothing = choose_width([profile(HOST, best=8, w8=100.0), profile(OTHER, best=1, w1=100.0)])
    assert (nothing.threads, nothing.from_profiles) == (1, False)


def test_workers_are_never_wider_than_the_nodes_that_are_there() -> None:
    tuned = profile(best=8, w1=70.0, w2=90.0, w8=100.0)
    assert choose_width([tuned], most_threads=8).threads == 8
    assert choose_width([tuned], most_threads=4).threads == 2
    assert choose_width([profile(best=8, w8=100.0)], most_threads=4).from_profiles is False


def test_a_width_of_the_spec_stands_and_takes_what_was_tuned_for_it() -> None:
    tuned = profile(best=1, w1=100.0, w2=90.0)
    assert given_width(2, [tuned]).profile == tuned
    assert tuned.row_at(2) == tuned.table[1]
    assert given_width(4, [tuned]).from_profiles is False
    assert tuned.row_at(4) is None


def test_the_best_of_a_width_is_the_one_that_came_furthest() -> None:
    early, late, out = row(2, 95.0, batch=4, rounds=1), row(2, 90.0, batch=8), row(2, 99.0, batch=64, out="no memory")
    assert replace(profile(), table=(*profile().table, early, late, out)).row_at(2) == late


def test_the_rate_of_a_worker_is_that_of_the_slowest_kind_of_node() -> None:
    both = [profile(HOST, w1=80.0), profile(OTHER, w1=100.0)]
    assert worker_rate(both, 1) == pytest.approx(10)  # 80 by 8 workers, 100 by 4
    assert worker_rate(of_host(both, OTHER), 1) == pytest.approx(25)
    assert worker_rate(both, 2) is None
    assert worker_rate([], 1) is None
