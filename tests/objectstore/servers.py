"""Fixtures: real object stores on loopback, started when a test first asks for one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.objectstore import packages
from tests.objectstore.backends import S3, Azure, Backend, reach
from tests.objectstore.ceph import KEY_ID, SECRET, Ceph, Gateway, started_ceph
from tests.objectstore.fault_proxy import FaultProxy
from tests.objectstore.processes import free_ports, started


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    [port] = free_ports(1)
    log = tmp_path_factory.mktemp("ministack") / "log"
    env = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": str(port)}
    with started([packages.needed(packages.ministack)], log, port=port, env=env):
        yield S3("ministack", port, "test", "test-secret-canary")


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    root = packages.needed(packages.ceph)
    with (
        tempfile.TemporaryDirectory(prefix="stint-ceph-") as folder,
        started_ceph(root, Path(folder)) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="session")
def gateway(ceph: Ceph) -> Iterator[Gateway]:
    with ceph.gateway() as gateway:
        yield gateway


@pytest.fixture(scope="session")
def rados(gateway: Gateway) -> S3:
    """Ceph's gateway, without versioning: what its versioned buckets do with conditions is a test of its own."""
    return S3("ceph", gateway.port, KEY_ID, SECRET, versioned=False)


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    pytest.importorskip("adlfs", reason="Azure's file system is not installed: pip install -e '.[test]'")
    program = packages.needed(packages.azurite)
    [port] = free_ports(1)
    folder = tmp_path_factory.mktemp("azurite")
    argv: list[str | Path] = [
        program, "--disableTelemetry", "--inMemoryPersistence", "--skipApiVersionCheck", "--silent",
        "--blobHost", "127.0.0.1", "--blobPort", str(port),
    ]  # fmt: skip
    with started(argv, folder / "log", port=port):
        yield Azure("azurite", port)


@pytest.fixture(scope="session")
def lying_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """rclone serves a folder as S3 and takes no notice of If-None-Match."""
    program = packages.needed(packages.rclone)
    [port] = free_ports(1)
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "data").mkdir()
    argv: list[str | Path] = [
        program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", "liar,liar-secret-canary",
        "--config", folder / "none.conf", folder / "data",
    ]  # fmt: skip
    with started(argv, folder / "log", port=port):
        yield S3("rclone", port, "liar", "liar-secret-canary", versioned=False)


@pytest.fixture(scope="session")
def s3_server(ministack: S3) -> dict[str, str]:
    """The environment variables with which s3fs, on its own, finds ministack."""
    return dict(ministack.env(ministack.port))


@pytest.fixture
def s3(ministack: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new bucket with versioning, as `s3://name`; this process's environment names the server."""
    reach(ministack, ministack.port, monkeypatch)
    return ministack.new_bucket()


@pytest.fixture
def behind_proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Backend], tuple[FaultProxy, str]]]:
    """Puts a proxy, without faults yet, in front of a store; gives it and a new bucket that is reached through it."""

    def connect(backend: Backend) -> tuple[FaultProxy, str]:
        reach(backend, backend.port, monkeypatch)
        url = backend.new_bucket()
        proxy = proxies.enter_context(FaultProxy(backend.port))
        reach(backend, proxy.port, monkeypatch)
        return proxy, url

    with ExitStack() as proxies:
        yield connect
