"""The store behind a network that answers, loses, cuts, holds and resets: one winner a key, nothing written twice."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import pytest

from jobs.cli import main
from tests.objectstore.backends import Backend, versions
from tests.objectstore.fault_proxy import (
    Answered,
    Fault,
    FaultProxy,
    Late,
    LostAnswer,
    Plan,
    Request,
    Reset,
    Silent,
    Truncated,
    at_random,
    internal_error,
    slow_down,
)
from tests.support.digits_job import Digits
from workers.source.source_file import opened
from workers.storage import retries
from workers.storage.errors import StoreError
from workers.storage.filesystems import SILENCE_S, open_filesystem, read_url
from workers.storage.store import open_store

RACES = 20
WRITERS = 4
SLOW_MARKS = (pytest.mark.objectstore, pytest.mark.slow)
AIOHTTP_TRIES = 2
"""aiohttp by itself repeats an idempotent request, a PUT too, once and at once when its connection closes."""
NOW = threading.Event()
NOW.set()


@pytest.fixture
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tries, with shorter pauses."""
    monkeypatch.setattr(retries, "BACKOFF_S", 0.01)
    monkeypatch.setattr(retries, "THROTTLED_BACKOFF_S", 0.01)
    monkeypatch.setattr(retries, "THROTTLED_BACKOFF_MAX_S", 0.1)


@pytest.fixture(
    params=[
        pytest.param("ministack", marks=pytest.mark.objectstore),
        *(pytest.param(name, marks=SLOW_MARKS) for name in ("rados", "azurite")),
    ]
)
def remote(
    request: pytest.FixtureRequest, behind_proxy: Callable[[Backend], tuple[FaultProxy, str]], hurry: None
) -> tuple[FaultProxy, str]:
    """Each real store in turn: the proxy in front of it, and a new bucket."""
    return behind_proxy(request.getfixturevalue(request.param))


def written(proxy: FaultProxy) -> Counter[str]:
    """How often the store itself carried out a write of each key, whatever the writer heard."""
    return Counter(request.target.partition("?")[0] for request in proxy.applied)


def once(method: str, fault: Fault, times: int = 1) -> Plan:
    """Something happens to the first requests of a method."""
    left = [times]

    def plan(request: Request) -> Fault | None:
        if request.method != method or not left[0]:
            return None
        left[0] -= 1
        return fault

    return plan


STORMS = {
    "slow-down": ({slow_down(): 0.3, slow_down(0): 0.1}, {slow_down(): 0.3}),
    "lost-answers": ({LostAnswer(): 0.25}, {}),
    "zombies": ({Late(NOW): 0.25}, {}),
    "cut-answers": ({}, {Truncated(): 0.15}),
    "all": (
        {slow_down(): 0.1, internal_error(): 0.03, LostAnswer(): 0.1, Reset(): 0.03, Late(NOW): 0.1},
        {slow_down(): 0.1, internal_error(): 0.03, Truncated(): 0.03, Reset(): 0.03},
    ),
}
"""Name → what happens to writes and to reads, with which probability."""


@pytest.mark.parametrize(
    "storm", [pytest.param(name, marks=[] if name == "all" else pytest.mark.slow) for name in STORMS]
)
def test_of_writers_that_race_through_faults_exactly_one_wins_and_writes_once(
    remote: tuple[FaultProxy, str], storm: str
) -> None:
    proxy, url = remote
    proxy.plan = at_random(4, *STORMS[storm])
    stores = [open_store(url) for _ in range(WRITERS)]
    barrier = threading.Barrier(WRITERS, timeout=60)

    def write(writer: int) -> list[bool]:
        won = []
        for race in range(RACES):
            barrier.wait()
            won.append(stores[writer].create(f"race/{race}", f"writer {writer}".encode()))
        return won

    with ThreadPoolExecutor(WRITERS) as pool:
        outcomes = list(zip(*pool.map(write, range(WRITERS)), strict=True))
    assert [won.count(True) for won in outcomes] == [1] * RACES
    for race, won in enumerate(outcomes):
        assert stores[0].get(f"race/{race}") == f"writer {won.index(True)}".encode()
    assert sorted(written(proxy).values()) == [1] * RACES
    assert len(proxy.faults()) >= RACES // 4


@pytest.mark.parametrize("times", [1, AIOHTTP_TRIES])
def test_a_write_whose_answer_is_lost_was_won(remote: tuple[FaultProxy, str], times: int) -> None:
    proxy, url = remote
    proxy.plan = once("PUT", LostAnswer(), times)
    assert open_store(url).create("k", b"mine")
    assert sorted(written(proxy).values()) == [1]


def test_a_write_that_arrives_after_its_writer_gave_it_up_changes_nothing(remote: tuple[FaultProxy, str]) -> None:
    proxy, url = remote
    zombie = Late()
    proxy.plan = once("PUT", zombie, AIOHTTP_TRIES)
    assert open_store(url).create("k", b"mine")  # by the next try: the first ones hang in the network
    arrive(proxy, zombie)
    assert open_store(url).get("k") == b"mine"
    assert sorted(written(proxy).values()) == [1]


def test_a_write_that_arrives_late_loses_to_the_writer_that_came_between(
    remote: tuple[FaultProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, url = remote
    zombie = Late()
    proxy.plan = once("PUT", zombie, AIOHTTP_TRIES)
    between = open_store(url)
    pauses: list[float] = []

    def other_writes(seconds: float) -> None:
        pauses.append(seconds)
        assert between.create("k", b"theirs")
        arrive(proxy, zombie)

    monkeypatch.setattr(retries, "sleep", other_writes)
    assert not open_store(url).create("k", b"mine")
    assert len(pauses) == 1
    assert between.get("k") == b"theirs"
    assert sorted(written(proxy).values()) == [1]


def arrive(proxy: FaultProxy, zombie: Late) -> None:
    """Let the held requests through to the store, which answers each."""
    zombie.when.set()
    for _ in proxy.faults():
        zombie.arrived.get(timeout=30)


def test_an_answer_that_is_cut_short_is_read_again_and_never_taken_for_whole(
    remote: tuple[FaultProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, url = remote
    data = bytes(range(256)) * 1000
    store = open_store(url)
    store.create("k", data)
    fs, path = open_filesystem(f"{url}/k")
    proxy.plan = once("GET", Truncated(), times=2)
    assert store.get("k") == data
    proxy.plan = once("GET", Truncated(), times=2)
    assert read_url(f"{url}/k") == data
    with opened(fs, path) as file:
        proxy.plan = once("GET", Truncated(), times=2)
        file.seek(1000)
        assert file.read(5000) == data[1000:6000]
        assert file.tell() == 6000
        proxy.plan = lambda request: Truncated()
        monkeypatch.setattr(retries, "TRIES", 2)  # Azure's library reads on four times within each, a second apart
        with pytest.raises(StoreError):
            file.read(5000)
    with pytest.raises(StoreError):
        store.get("k")


def test_a_server_that_falls_silent_is_given_up_in_time_and_asked_again(
    remote: tuple[FaultProxy, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, url = remote
    assert SILENCE_S <= 60
    monkeypatch.setattr("workers.storage.filesystems.SILENCE_S", 1)
    store = open_store(url)
    assert store.create("warm", b"")
    for method, call in (("PUT", lambda: store.create("k", b"mine")), ("GET", lambda: store.get("k") == b"mine")):
        proxy.plan = once(method, Silent())
        started = time.monotonic()
        assert call()
        assert 0.9 <= time.monotonic() - started < 10


def test_each_request_is_sent_as_often_as_we_say_and_no_library_repeats_it(remote: tuple[FaultProxy, str]) -> None:
    """Retries within retries multiply: six of ours would be 150 of theirs."""
    proxy, url = remote
    store = open_store(url)
    proxy.plan = lambda request: internal_error()
    with pytest.raises(StoreError):
        store.get("k")
    assert len(proxy.seen) == retries.TRIES
    proxy.plan = once("PUT", slow_down(), times=10)
    retries.take_throttled_s()
    assert store.create("k", b"mine")
    assert len(proxy.requests("PUT")) == 11
    assert retries.take_throttled_s() > 0


def test_a_job_through_a_storm_is_complete_and_has_written_nothing_twice(
    remote: tuple[FaultProxy, str], digits: Digits, write_spec: Callable[[dict[str, object]], str]
) -> None:
    proxy, url = remote
    faults = at_random(1, *STORMS["all"])
    window: list[float] = []

    def plan(request: Request) -> Fault | None:
        """In the middle of it all, everything is throttled for a while."""
        if request.method == "PUT" and "/plan=" in unquote(request.target) and not window:
            window.append(time.monotonic() + 1)
        return slow_down(1) if window and time.monotonic() < window[0] else faults(request)

    proxy.plan = plan
    spec = write_spec(digits.spec(f"{url}/out"))
    assert main(["run", spec, "--pool=local"]) == 0
    assert main(["verify", spec]) == 0
    assert window
    (report,) = (info.key for info in open_store(url).list("out/_stint/runs") if info.key.endswith("report.json"))
    assert json.loads(open_store(url).get(report))["stage_s"]["throttled"] > 0
    assert len(proxy.faults()) > 20
    assert set(written(proxy).values()) == {1}
    if url.startswith("s3://"):
        assert set(versions(url).values()) == {1}


def test_google_is_asked_to_write_only_where_nothing_is(hurry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no server of Google's storage to test against: what its library sends, and how its answers are taken."""
    answers = iter([Answered(409), Answered(404), Answered(200, b'{"size": "4"}')])
    with FaultProxy(upstream_port=1) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        store = open_store("gs://bucket/out")
        proxy.plan = lambda request: next(answers)
        assert store.create("plan=1/k", b"mine")
    assert [request.method for request, _ in proxy.seen] == ["POST", "GET", "POST"]
    assert all("ifGenerationMatch=0" in request.target for request in proxy.requests("POST"))
    fs, _ = open_filesystem("gs://bucket/out")
    assert fs.requests_timeout.sock_read == SILENCE_S
