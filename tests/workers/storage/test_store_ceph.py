"""Faults that a real Ceph makes by itself: it throttles, its gateway is killed, its OSD hangs with writes in flight."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.objectstore.backends import S3, reach
from tests.objectstore.ceph import KEY_ID, SECRET, Ceph, Gateway
from workers.storage import retries
from workers.storage.errors import StoreError
from workers.storage.store import Store, open_store

pytestmark = [pytest.mark.objectstore, pytest.mark.slow]

WRITERS = 12
KEYS = 60


def through(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new output that is reached through this gateway."""
    backend = S3("ceph", gateway.port, KEY_ID, SECRET, versioned=False)
    reach(backend, gateway.port, monkeypatch)
    return f"{backend.new_bucket()}/out"


def test_a_gateway_that_takes_two_requests_at_a_time_slows_the_writers_and_fails_none(
    ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers what is above with 503 SlowDown."""
    with ceph.gateway("--rgw_max_concurrent_requests=2") as gateway:
        url = through(gateway, monkeypatch)
        data = bytes(2**20)
        retries.take_throttled_s()

        def write(writer: int) -> list[bool]:
            store = open_store(url)
            return [store.create(f"{writer}/{number}", data) for number in range(5)]

        with ThreadPoolExecutor(WRITERS) as pool:
            assert all(all(won) for won in pool.map(write, range(WRITERS)))
        assert retries.take_throttled_s() > 0
        assert len(list(open_store(url).list(""))) == WRITERS * 5


def test_a_gateway_that_is_killed_and_comes_back_loses_and_doubles_nothing(
    ceph: Ceph, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ceph.gateway() as gateway:
        url = through(gateway, monkeypatch)
        written = threading.Semaphore(0)

        def write(writer: int) -> list[bool]:
            store = open_store(url)
            won = []
            for key in range(KEYS):
                won.append(store.create(f"{key}", f"writer {writer}".encode()))
                written.release()
            return won

        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write, number) for number in range(4)]
            for _ in range(2):
                for _ in range(KEYS):
                    written.acquire()
                gateway.kill()
                gateway.start()
            outcomes = list(zip(*(writer.result() for writer in writers), strict=True))
        store = open_store(url)
        assert [won.count(True) for won in outcomes] == [1] * KEYS
        assert [store.get(f"{key}") for key in range(KEYS)] == [
            f"writer {won.index(True)}".encode() for won in outcomes
        ]


def test_a_write_that_hangs_in_the_osd_until_long_after_its_writer_gave_up_is_one_of_two_and_stays(
    ceph: Ceph, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.storage.filesystems.SILENCE_S", 1)
    monkeypatch.setattr(retries, "TRIES", 2)
    url = through(gateway, monkeypatch)
    first, second = open_store(url), open_store(url)
    assert first.create("warm", b"")

    def attempt(store: Store, data: bytes) -> bool:
        try:
            return store.create("k", data)
        except StoreError:
            return False

    with ceph.frozen(), pytest.raises(StoreError):
        first.create("k", b"zombie")
    won = attempt(second, b"second") or attempt(second, b"second")
    there = second.get("k")
    assert there == (b"second" if won else b"zombie")
    assert not first.create("k", b"third")
    assert first.get("k") == there
