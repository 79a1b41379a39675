"""Which workers are told that their node drains, when, and how much time they are said to have."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from jobs.draining import DrainWatch, news
from tests.ray_heads import await_true

INF = float("inf")


def test_workers_on_a_draining_node_are_told_the_seconds_they_have_left() -> None:
    nodes = {1: "a", 2: "b", 3: "a"}
    assert news({"a": 70_000}, nodes, {}, now_ms=40_000) == {1: (70_000, 30.0), 3: (70_000, 30.0)}
    assert news({}, nodes, {}, now_ms=40_000) == {}


def test_a_drain_without_a_deadline_leaves_all_the_time_and_one_that_is_over_none() -> None:
    assert news({"a": 0}, {1: "a"}, {}, now_ms=40_000) == {1: (INF, INF)}
    assert news({"a": 30_000}, {1: "a"}, {}, now_ms=40_000) == {1: (30_000, 0.0)}


def test_a_worker_is_told_once_and_again_only_if_its_time_becomes_shorter() -> None:
    nodes = {1: "a"}
    assert news({"a": 70_000}, nodes, {1: 70_000}, now_ms=40_000) == {}
    assert news({"a": 69_500}, nodes, {1: 70_000}, now_ms=40_000) == {}
    assert news({"a": 90_000}, nodes, {1: 70_000}, now_ms=40_000) == {}
    assert news({"a": 0}, nodes, {1: 70_000}, now_ms=40_000) == {}
    assert news({"a": 50_000}, nodes, {1: 70_000}, now_ms=40_000) == {1: (50_000, 10.0)}
    assert news({"a": 50_000}, nodes, {1: INF}, now_ms=40_000) == {1: (50_000, 10.0)}


def test_the_watch_remembers_whom_it_told() -> None:
    asked = threading.Semaphore(0)

    def ask() -> Mapping[str, int]:
        asked.release()
        return {"a": 100_000}

    watch = DrainWatch(ask, wall=lambda: 90.0)
    try:
        assert asked.acquire(timeout=10)
        assert await_true(lambda: watch.news({1: "a", 2: "b"}), "the drain is seen", 10) == {1: 10.0}
        assert watch.news({1: "a", 2: "b"}) == {}
        assert watch.news({1: "a", 3: "a"}) == {3: 10.0}  # one that came since
    finally:
        watch.close()


def test_a_cluster_that_does_not_answer_or_cannot_holds_nobody_up() -> None:
    stuck, entered = threading.Event(), threading.Event()

    def hang() -> Mapping[str, int]:
        entered.set()
        stuck.wait(30)
        return {}

    watch = DrainWatch(hang)
    assert entered.wait(10)
    assert watch.news({1: "a"}) == {}
    stuck.set()
    watch.close()

    def lacks_it() -> Mapping[str, int]:
        raise AttributeError("get_draining_nodes")

    without = DrainWatch(lacks_it)
    try:
        await_true(lambda: isinstance(without.failure, AttributeError), "the failure is kept", 10)
        assert without.news({1: "a"}) == {}
    finally:
        without.close()
