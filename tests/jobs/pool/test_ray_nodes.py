"""A driver whose node has been given up by the cluster would wait for workers for ever: it ends instead."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest

from jobs.errors import RunFailed
from jobs.pool import nodes as ray_nodes
from jobs.pool.nodes import NodeWatch

UP = [{"NodeID": "home", "Alive": True}, {"NodeID": "other", "Alive": False}]
GIVEN_UP = [{"NodeID": "home", "Alive": False, "DeathReason": 2}, {"NodeID": "other", "Alive": True}]


class Cluster:
    """Answers as it is told to, and tells when it has been asked."""

    def __init__(self, *answers: Sequence[dict[str, Any]] | Exception) -> None:
        self._answers = list(answers)
        self.asked = threading.Semaphore(0)

    def nodes(self) -> Sequence[dict[str, Any]]:
        answer = self._answers[0] if len(self._answers) == 1 else self._answers.pop(0)
        self.asked.release()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def await_answers(self, number: int) -> None:
        for _ in range(number):
            assert self.asked.acquire(timeout=10)


def test_a_run_ends_when_the_node_that_it_is_connected_to_is_given_up() -> None:
    cluster = Cluster(UP, ConnectionError("no answer"), GIVEN_UP)
    watch = NodeWatch("home", cluster.nodes, every_s=0.01)
    cluster.await_answers(3)
    watch.close()  # returns when the answer that says so has been taken in
    with pytest.raises(RunFailed, match="connected to is lost") as raised:
        watch.check()
    assert raised.value.exit_code == 1
    assert "again" in raised.value.next_step


def test_other_nodes_that_die_and_a_cluster_that_does_not_answer_do_not_end_a_run() -> None:
    cluster = Cluster(ConnectionError("no answer"), UP)
    watch = NodeWatch("home", cluster.nodes, every_s=0.01)
    cluster.await_answers(3)
    watch.check()
    watch.close()


def test_a_listing_counts_only_for_what_happened_before_it_and_one_is_made_soon_when_it_is_wanted() -> None:
    cluster = Cluster(UP)
    watch = NodeWatch("home", cluster.nodes, every_s=60)
    cluster.await_answers(1)
    at = time.monotonic()
    assert watch.since(at) is None  # and another one is asked for
    cluster.await_answers(1)
    watch.close()  # returns when it has been taken in
    listing = watch.since(at)
    assert listing is not None
    assert listing.nodes == UP


def test_a_watch_that_is_closed_just_before_it_looks_again_ends_at_once() -> None:
    cluster = Cluster(UP)
    watch = NodeWatch("home", cluster.nodes, every_s=60)
    cluster.await_answers(1)
    clear = watch._soon.clear

    def closed_first() -> None:
        watch._closed.set()
        watch._soon.set()
        clear()

    watch._soon.clear = closed_first  # type: ignore[method-assign]
    watch._soon.set()
    watch._thread.join(10)
    assert not watch._thread.is_alive()


def test_a_cluster_that_does_not_answer_is_not_waited_for_and_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ray_nodes, "CLUSTER_SILENT_S", 0.05)
    frozen, asked = threading.Event(), threading.Event()

    def ask() -> Sequence[dict[str, Any]]:
        asked.set()
        frozen.wait()
        return UP

    watch = NodeWatch("home", ask)
    assert asked.wait(10)
    try:
        began = time.monotonic()
        while time.monotonic() - began < 0.1:
            watch.check()
            assert watch.since(began) is None
        assert len(caplog.records) == 1
        assert "run the same command again" in caplog.text
    finally:
        frozen.set()
        watch.close()
