"""Ceph on loopback: a monitor, an OSD that keeps objects in memory, and RADOS gateways, which speak S3."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import requests

from tests.objectstore.processes import READY_S, end, free_ports, started

KEY_ID, SECRET = "AKIDCEPH", "ceph-secret-canary"

_CONFIG = """
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{port}
mon initial members = a
public addr = 127.0.0.1
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
run dir = {folder}
log file = {folder}/$name.log
admin socket =
pid file =
plugin dir = {lib}/ceph
erasure code dir = {lib}/ceph/erasure-code
osd class dir = {lib}/rados-classes
osd class load list = *
osd class default list = *
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4294967296
osd memory target = 939524096
osd journal =
[client.rgw]
rgw data = {folder}/rgw
rgw thread pool size = 64
rgw enable ops log = false
# Without it the gateway's second connection to the monitor is refused.
ms mon client mode = crc
"""


@dataclass
class Gateway:
    """One radosgw process. It may be killed and started again on the same port."""

    ceph: Ceph
    port: int
    options: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        log = (self.ceph.folder / f"rgw-{self.port}.out").open("ab")
        with log:
            self.process = subprocess.Popen(
                [
                    self.ceph.program("radosgw"), "-f", "-n", "client.rgw", "-c", self.ceph.config,
                    f"--rgw_frontends=beast endpoint=127.0.0.1:{self.port}",
                    f"--log_file={self.ceph.folder}/rgw-{self.port}.log", *self.options,
                ],
                env=self.ceph.env, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"radosgw ended with code {self.process.returncode}; see {self.ceph.folder}")
            try:
                requests.get(self.endpoint, timeout=5)
            except requests.ConnectionError:
                time.sleep(0.1)
            else:
                return
        raise RuntimeError(f"radosgw did not answer within {READY_S:.0f} s; see {self.ceph.folder}")

    def kill(self) -> None:
        """As the kernel does when memory is short."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)


@dataclass
class Ceph:
    root: Path
    """Where the packages were unpacked."""
    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    osd: subprocess.Popen[bytes] | None = None

    @property
    def config(self) -> Path:
        return self.folder / "ceph.conf"

    def program(self, name: str) -> Path:
        return self.root / "usr" / "bin" / name

    @contextmanager
    def gateway(self, *options: str) -> Iterator[Gateway]:
        gateway = Gateway(self, free_ports(1)[0], options)
        try:
            gateway.start()
            yield gateway
        finally:
            if gateway.process is not None:
                end(gateway.process)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No write is applied and no read answered, until it goes on where it stood."""
        assert self.osd is not None
        self.osd.send_signal(signal.SIGSTOP)
        os.waitpid(self.osd.pid, os.WUNTRACED)  # until every thread has stopped
        try:
            yield
        finally:
            self.osd.send_signal(signal.SIGCONT)

    def run(self, *argv: str | Path) -> str:
        return subprocess.run(
            argv, env=self.env, cwd=self.folder, capture_output=True, text=True, check=True, timeout=READY_S
        ).stdout


@contextmanager
def started_ceph(root: Path, folder: Path) -> Iterator[Ceph]:
    """A cluster with one S3 user and no gateway yet, about ten seconds."""
    (lib,) = (root / "usr" / "lib").glob("*-linux-gnu")
    lib_paths = [lib, lib / "ceph", root / "lib" / lib.name]
    ceph = Ceph(
        root,
        folder,
        {
            "PATH": f"{root}/usr/bin:/usr/bin:/bin",
            "LD_LIBRARY_PATH": ":".join(map(str, lib_paths)),
            "PYTHONPATH": f"{root}/usr/lib/python3/dist-packages",
            "CEPH_CONF": str(folder / "ceph.conf"),
        },
    )
    fsid, port = str(uuid.uuid4()), free_ports(1)[0]
    for name in ("mon", "osd"):
        (folder / name).mkdir(parents=True)
    ceph.config.write_text(_CONFIG.format(fsid=fsid, port=port, folder=folder, lib=lib))
    monmap = folder / "monmap"
    address = f"[v2:127.0.0.1:{port}]"
    ceph.run(ceph.program("monmaptool"), "--create", "--fsid", fsid, "--addv", "a", address, monmap)
    ceph.run(ceph.program("ceph-mon"), "--mkfs", "-i", "a", "--monmap", monmap, "-c", ceph.config)
    with ExitStack() as stack:
        stack.enter_context(
            started(
                [ceph.program("ceph-mon"), "-f", "-i", "a", "-c", ceph.config],
                folder / "mon.out", port=port, env=ceph.env,
            )
        )  # fmt: skip
        command = ("/usr/bin/python3", ceph.program("ceph"), "-c", ceph.config)
        osd_id = str(uuid.uuid4())
        ceph.run(*command, "osd", "new", osd_id)
        ceph.run(ceph.program("ceph-osd"), "--mkfs", "-i", "0", "--osd-uuid", osd_id, "-c", ceph.config)
        osd = [ceph.program("ceph-osd"), "-f", "-i", "0", "-c", ceph.config]
        ceph.osd = stack.enter_context(started(osd, folder / "osd.out", env=ceph.env))
        deadline = time.monotonic() + READY_S
        while "1 up" not in ceph.run(*command, "osd", "stat"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"Ceph's OSD did not come up; see {folder}")
            time.sleep(0.2)
        ceph.run(
            ceph.program("radosgw-admin"), "-c", ceph.config, "-n", "client.rgw", "user", "create",
            "--uid=stint", "--display-name=stint", f"--access-key={KEY_ID}", f"--secret-key={SECRET}",
        )  # fmt: skip
        yield ceph
